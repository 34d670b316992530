"""Auto-PGD under smooth surrogates that grow sharper from run to run.

A wide surrogate feels a step from afar, a narrow one tells on which side of it a point lies. Source: the growing
sharpness of Dombrowski et al. 2019 (arXiv:1906.07983), section 4.2, there of a softplus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.ball import NormName
from art_defenses_ext.attack.base import BestPoints, TensorAttack
from art_defenses_ext.attack.losses import LossName, margin
from art_defenses_ext.base.declared import Count, Kind, Positive
from art_defenses_ext.base.validation import check_positive
from art_defenses_ext.gradients.modes import surrogate_width

FACTORS = (1.0, 0.5, 0.25, 0.1, 0.05)


def _factors(values: Any) -> Any:
    if not isinstance(values, tuple | list) or not values:
        raise ValueError
    for value in values:
        check_positive("factors", value)
    return values


Factors = Annotated[tuple[float, ...], Kind("a sequence of numbers > 0", _factors)]


@dataclass(eq=False, repr=False)
class AnnealedPGD(TensorAttack):
    """Several runs of Auto-PGD on those samples that are left, each from the best point so far.

    Defences whose surrogates have a width are made wider and narrower by ``factors``; on others these are plain
    restarts from the best point.

    Args:
        estimator: the classifier under attack.
        norm: ``"linf"`` or ``"l2"``, or as ART has it, inf or 2.
        eps: radius of the ball, in pixel values.
        factors: of the surrogates' width, one for each run. **Convention**: from the width itself to a twentieth; the
            table in docs/methods/jump_relu.md compares schedules.
        max_iter: gradients a run.
        loss: a name out of ``losses.LOSSES``.
        **options: see :class:`TensorAttack`.

    Raises:
        InputError: for a parameter that cannot be used, or an estimator that ART would misread.
    """

    norm: NormName = "linf"
    eps: Positive = 0.3
    factors: Factors = FACTORS
    max_iter: Count = 100
    loss: LossName = "margin"

    batches_per_block = AutoPGD.batches_per_block

    def perturb(self, module: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        run = self._run()
        best = BestPoints(x)
        left = torch.arange(len(x), device=x.device)
        start = None
        for factor in self.factors:
            with surrogate_width(module, factor):
                points = run.perturb(module, x[left], y[left], generator, start)
            best.offer(points, self._margins(module, points, y[left]), left)
            left = left[best.margins[left] >= 0]
            if len(left) == 0:
                break
            start = best.points[left]
        return best.points

    def _run(self) -> AutoPGD:
        return AutoPGD(
            self.estimator, self.norm, self.eps, max_iter=self.max_iter, loss=self.loss, batch_size=self.batch_size
        )

    def _margins(self, module: nn.Module, points: Tensor, y: Tensor) -> Tensor:
        batches = zip(points.split(self.batch_size), y.split(self.batch_size), strict=True)
        with torch.no_grad():
            return torch.cat([margin(self.logits(module, batch, labels), labels) for batch, labels in batches])

    def _check_params(self) -> None:
        super()._check_params()
        self._run()  # refuses a loss that needs more classes
