"""Predicted classes of logits; logits that are not finite predict none."""

from __future__ import annotations

import torch
from torch import Tensor

NO_CLASS = -1
"""The class of an image whose logits are not finite, which equals no label."""


def undefined(logits: Tensor) -> Tensor:
    """Return which images (n,) have logits (n, K) without a softmax: NaN, plus infinity, or all minus infinity.

    **Convention**: minus infinity beside finite logits is a class of probability zero, as with masked classes.
    """
    return ~logits.detach().amax(dim=1).isfinite()  # the largest of logits is NaN where any is


def named_classes(logits: Tensor) -> Tensor:
    """Return the class (n,) of the largest of the logits (n, K); ``NO_CLASS`` where they are undefined.

    An argmax alone would return the first class for NaN.
    """
    return torch.where(undefined(logits), NO_CLASS, logits.argmax(dim=1))
