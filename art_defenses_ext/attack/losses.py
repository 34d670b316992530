"""The losses of attacks, per sample, and their gradients. An attack raises its loss.

Source: Croce, Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
Attacks" (arXiv:2003.01690), section 4 for the difference of logits ratio (DLR), equations 6 and 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from art_defenses_ext.base.declared import one_of
from art_defenses_ext.base.logits import undefined

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits (n, K), labels (n,) to leave, target classes (n,) of targeted losses -> losses (n,)."""

Logits = Callable[[Tensor, Tensor], Tensor]
"""A network under attack: images (n, ...) and their labels (n,) -> logits (n, K). Only networks that reject use the
labels: rejection is merged into the label's logit."""

_TINY = 1e-12


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the logit of class ``y`` (n,) minus the largest other logit: below zero only for a misclassified image.

    At zero two classes tie and the prediction may be either. The margin is minus infinity if the logits (n, K) are not
    finite: they predict no class, so the image is misclassified.
    """
    others = logits.scatter(1, y[:, None], -torch.inf)
    return torch.where(undefined(logits), -torch.inf, _at(logits, y) - others.amax(dim=1))


@torch.no_grad()
def margins_at(logits: Logits, points: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """Return margins (N,) of images (N, ...) of classes ``y`` (N,), with ``batch_size`` images per pass."""
    batches = zip(points.split(batch_size), y.split(batch_size), strict=True)
    return torch.cat([margin(logits(images, labels), labels) for images, labels in batches])


def only_pair(logits: Tensor, y: Tensor) -> Tensor:
    """Return logits (n, 2 B) masked except for the pair of classes 2 i and 2 i + 1 that contains ``y`` (n,)."""
    classes = torch.arange(logits.shape[1], device=logits.device)
    return logits.masked_fill(classes // 2 != y[:, None] // 2, -torch.inf)


def gradient_of(losses: Tensor, x: Tensor, retain_graph: bool = False) -> Tensor:
    """Return the gradient of each of ``losses`` (n,) with respect to its own image of ``x`` (n, ...).

    It is zero if no graph leads to the image, for example through a defence that detaches, and where it is not finite.
    The evaluation's checks report both.
    """
    if not losses.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(losses.sum(), x, retain_graph=retain_graph, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)


def _at(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)


def _cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def _margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return -margin(logits, y)


def _probability_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return -margin(logits.softmax(dim=1), y)


def _dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    ranked = logits.topk(3, dim=1)[0]
    return -margin(logits, y) / (ranked[:, 0] - ranked[:, 2] + _TINY)


def _margin_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return _at(logits, target) - _at(logits, y)


def _dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    ranked = logits.topk(4, dim=1)[0]
    spread = ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2
    return _margin_targeted(logits, y, target) / (spread + _TINY)


LOSSES: dict[str, Loss] = {
    "cross_entropy": _cross_entropy,
    "margin": _margin,
    "probability_margin": _probability_margin,
    "dlr": _dlr,
    "margin_targeted": _margin_targeted,
    "dlr_targeted": _dlr_targeted,
}
"""The losses by name. Losses that end in ``_targeted`` have one target class."""

LossName = Annotated[str, one_of(*LOSSES)]

MIN_CLASSES = {"dlr": 3, "dlr_targeted": 4}
"""The minimum number of logits of a loss, if it is more than two."""


@dataclass(frozen=True)
class Objective:
    """The loss that an attack raises, and its differentiation.

    Attributes:
        loss: a name in ``LOSSES``.
        eot: number of forward and backward passes averaged at each point (EOT), for networks that draw random numbers.
        targeted: whether the labels are classes to reach, so that the loss is lowered instead.
    """

    loss: str = "margin"
    eot: int = 1
    targeted: bool = False

    def differentiate(self, logits: Logits, x: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return margins (n,), below zero on success, losses (n,) and their gradient (n, ...)."""
        sums: list[Tensor] = []
        for _ in range(self.eot):
            x = x.detach().requires_grad_()
            outputs = logits(x, y)
            losses = LOSSES[self.loss](outputs, y, target)
            if self.targeted:
                losses = -losses
            terms = [outputs.detach(), losses.detach(), gradient_of(losses, x)]
            sums = [total + term for total, term in zip(sums, terms, strict=True)] if sums else terms
        outputs, losses, gradient = (total / self.eot for total in sums) if self.eot > 1 else sums
        if self.loss == "margin" and self.eot == 1:
            return -losses, losses, gradient
        margins = margin(outputs, y)
        return -margins if self.targeted else margins, losses, gradient
