"""The average of several passes of a random network (EOT), and the single pass behind it.

Source: Athalye, Carlini, Wagner 2018 (arXiv:1802.00420), section 4.2.
"""

from __future__ import annotations

import copy

from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext.estimator.rebuild import rebuild


class Averaged(nn.Module):
    """The mean of several passes of a module, image by image."""

    def __init__(self, module: nn.Module, draws: int) -> None:
        super().__init__()
        self.module, self.draws = module, draws

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean logits (N, K), pass by pass, since a defence may draw once for a whole batch."""
        logits: Tensor = self.module(x)
        for _ in range(self.draws - 1):
            logits = logits + self.module(x)
        return logits / self.draws


def averages(network: nn.Module) -> bool:
    """Return whether a network, or one that it wraps, is an :class:`Averaged`."""
    return any(isinstance(module, Averaged) for module in network.modules())


def one_pass(classifier: PyTorchClassifier) -> PyTorchClassifier:
    """Return the classifier without the average over passes, for attacks that make their draws themselves."""
    model = classifier.model
    return rebuild(classifier, model=_one_pass(model)) if averages(model) else classifier


def _one_pass(network: nn.Module) -> nn.Module:
    """Return a network with the module of an :class:`Averaged` in its place, wherever it is; all else is shared."""
    if isinstance(network, Averaged):
        return network.module
    if not averages(network):
        return network
    twin = copy.copy(network)
    twin._modules = {name: None if part is None else _one_pass(part) for name, part in network._modules.items()}
    return twin
