"""Auto-PGD through smooth surrogates that narrow from run to run.

The gradient of a wide surrogate responds to a distant discontinuity; that of a narrow one resolves on which side a
point lies.

Source: Dombrowski et al. 2019 (arXiv:1906.07983), section 4.2, who anneal the beta of a softplus.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from art_defenses_ext.attack.auto_pgd import MARGIN, AutoPGD, auto_pgd
from art_defenses_ext.attack.ball import Ball, ClipValues
from art_defenses_ext.attack.base import BallAttack, BestPoints
from art_defenses_ext.attack.losses import Logits, LossName, Objective, margins_at
from art_defenses_ext.base.declared import Count, Kind
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


def annealed_pgd(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    width: Callable[[float], AbstractContextManager[None]],
    generator: torch.Generator,
    factors: Sequence[float] = FACTORS,
    objective: Objective = MARGIN,
    max_iter: int = 100,
    clip_values: ClipValues = None,
    batch_size: int = 256,
    confirmations: int = 1,
) -> Tensor:
    """Return the points of lowest margin (N, ...) of several runs of Auto-PGD, each from the best points so far.

    Args:
        logits: the network under attack.
        x: clean images (N, ...).
        y: labels (N,).
        ball: the ball in which to search around each image.
        width: function that returns a context in which the surrogates' width is multiplied by a factor.
        generator: source of the first run's random start.
        factors: factor of the width in each run.
        objective: the loss to raise.
        max_iter: number of gradients per run.
        clip_values: lowest and highest pixel value.
        batch_size: number of images per pass.
        confirmations: see :func:`.auto_pgd`.
    """
    options: dict[str, Any] = {"clip_values": clip_values, "batch_size": batch_size, "generator": generator}
    options["confirmations"] = confirmations
    search = partial(auto_pgd, logits, ball=ball, objective=objective, max_iter=max_iter, **options)
    best = BestPoints(x)
    unbroken, start = torch.arange(len(x), device=x.device), None
    for factor in factors:
        with width(factor):
            points = search(x=x[unbroken], y=y[unbroken], start=start)
        best.offer(points, margins_at(logits, points, y[unbroken], batch_size), unbroken)
        unbroken = unbroken[best.margins[unbroken] >= 0]
        if len(unbroken) == 0:
            break
        start = best.points[unbroken]
    return best.points


@dataclass(eq=False, repr=False)
class AnnealedPGD(BallAttack):
    """Several runs of Auto-PGD on the images that are not broken, each from the best point so far.

    The widths of the defences' surrogates are multiplied by ``factors``. Without such a width the runs are restarts
    from the best point.

    Args:
        estimator, norm, eps: see :class:`BallAttack`.
        factors: factor of the surrogates' width in each run. **Convention**: from 1 to 1/20; the table in
            docs/methods/jump_relu.md compares schedules.
        max_iter: number of gradients per run.
        loss: a name in ``losses.LOSSES``.
        **options: see :class:`TensorAttack`.

    Raises:
        InputError: for a parameter that cannot be used, or an estimator that ART would misread.
    """

    factors: Factors = FACTORS
    max_iter: Count = 100
    loss: LossName = "margin"

    batches_per_block = AutoPGD.batches_per_block

    function = staticmethod(annealed_pgd)

    def options(self, module: nn.Module, x: Tensor) -> dict[str, Any]:
        width, objective = partial(surrogate_width, module), self._run().objective
        return super().options(module, x) | {"width": width, "objective": objective}

    def _run(self) -> AutoPGD:
        """Return the attack of a single run, whose checks refuse a loss that needs more classes."""
        return AutoPGD(self.estimator, self.norm, self.eps, loss=self.loss)

    def _check_params(self) -> None:
        super()._check_params()
        self._run()
