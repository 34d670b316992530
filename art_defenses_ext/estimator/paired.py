"""Many two-class problems in one network, so that an attack solves them in one batch."""

from __future__ import annotations

from art.estimators.classification import PyTorchClassifier
from torch import nn


class PairedNetwork(nn.Module):
    """Images (n, ...) -> logits (n, 2 B): classes 2 i and 2 i + 1 are those of problem i.

    An image belongs to the problem of its label, and only the two classes of this problem count for it: our attacks
    ignore the others. Other attacks need a network with a single problem.
    """


def paired(classifier: PyTorchClassifier) -> bool:
    """Return whether the network of ``classifier``, or one that it wraps, is a :class:`PairedNetwork`."""
    return any(isinstance(module, PairedNetwork) for module in classifier.model.modules())
