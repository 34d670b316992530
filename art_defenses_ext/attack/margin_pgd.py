"""Projected gradient descent on the logit margin, with random starts and any gradient mode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from art_defenses_ext.attack.ball import NormName
from art_defenses_ext.attack.base import BestPoints, TensorAttack
from art_defenses_ext.attack.losses import gradient_of, margin
from art_defenses_ext.base.declared import Count, Flag, Positive


@dataclass(eq=False, repr=False)
class MarginPGD(TensorAttack):
    """Steepest descent of the margin inside a ball, from random starts; the best point seen is returned.

    The margin, z_y less the largest other logit, does not saturate as the cross-entropy does, and it is negative
    exactly where the image is misclassified.

    Args:
        estimator: the classifier under attack.
        norm: ``"linf"`` or ``"l2"``, or as ART has it, inf or 2.
        eps: radius of the ball, in pixel values.
        eps_step: step size in pixel values; None for eps / 4.
        max_iter: steps a start.
        nb_starts: random starts, uniform in the ball.
        stop_when_broken: leave an image alone once it is misclassified. False digs deeper, for transfer.
        **options: see :class:`TensorAttack`.

    Raises:
        InputError: for a parameter that cannot be used, or an estimator that ART would misread.

    Source: Madry et al. 2018 (arXiv:1706.06083) for the descent; Carlini, Wagner 2017 (arXiv:1608.04644), f6, for
    the margin.
    """

    norm: NormName = "linf"
    eps: Positive = 0.3
    eps_step: Positive | None = None
    max_iter: Count = 40
    nb_starts: Count = 1
    stop_when_broken: Flag = True

    def perturb(self, module: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        best = BestPoints(x)
        for _ in range(self.nb_starts):
            rows = torch.arange(len(x), device=x.device)
            if self.stop_when_broken:
                rows = rows[best.margins >= 0]
            if len(rows) == 0:
                break
            start = self.clip(x[rows] + self.geometry(self.eps).random_inside(x[rows], generator))
            self._descend(module, x, y, start, rows, best)
        return best.points

    def _descend(
        self, module: nn.Module, x: Tensor, y: Tensor, current: Tensor, rows: Tensor, best: BestPoints
    ) -> None:
        """One descent of the images ``rows`` of ``x`` from ``current``; offers every point on the way to ``best``."""
        ball = self.geometry(self.eps)
        step = self.eps / 4 if self.eps_step is None else self.eps_step
        for done in range(self.max_iter):
            current = current.detach().requires_grad_()
            margins = margin(self.logits(module, current, y[rows]), y[rows])
            gradient = gradient_of(margins, current)
            current = current.detach()
            best.offer(current, margins.detach(), rows)
            if self.stop_when_broken and done % 5 == 4:  # finding the broken ones costs a wait for the device
                left = best.margins[rows] >= 0
                rows, current, gradient = rows[left], current[left], gradient[left]
                if len(rows) == 0:
                    return
            moved = current - step * ball.step(gradient)
            current = ball.inside(moved, x[rows], self.estimator.clip_values)
        with torch.no_grad():
            best.offer(current, margin(self.logits(module, current, y[rows]), y[rows]), rows)
