"""Which class logits name, and that those which are not finite name none."""

from __future__ import annotations

import torch
from torch import Tensor

NO_CLASS = -1
"""The class of an image whose logits are not finite: no label is that, so it is wrong."""


def undefined(logits: Tensor) -> Tensor:
    """Which images (n,) have logits (n, K) without a softmax: with NaN or plus infinity, or all minus infinity.

    **Convention**: minus infinity beside finite logits is a class of probability zero, as of networks that mask some.
    """
    return logits.isnan().any(dim=1) | logits.isposinf().any(dim=1) | logits.isneginf().all(dim=1)


def named_classes(logits: Tensor) -> Tensor:
    """The class of the largest of the logits (n, K), (n,); ``NO_CLASS`` where they are undefined.

    An argmax alone would name the first class for NaN.
    """
    return torch.where(undefined(logits), NO_CLASS, logits.argmax(dim=1))
