"""Auto-PGD in stages: short runs on all images, longer runs on the unbroken images of lowest margin.

Source: images that are hard to break are discarded under a budget as in Liu et al. 2022, "Practical Evaluation of
Adversarial Robustness via Adaptive Auto Attack" (arXiv:2203.05154), section 3.3. Each stage has a fixed budget for
fewer candidates, as in successive halving, Jamieson, Talwalkar 2016 (arXiv:1502.07943).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from art_defenses_ext.attack.auto_pgd import AutoPGD, auto_pgd
from art_defenses_ext.attack.ball import Ball, ClipValues
from art_defenses_ext.attack.base import BallAttack, BestPoints
from art_defenses_ext.attack.losses import MIN_CLASSES, Logits, LossName, Objective, margins_at
from art_defenses_ext.base.declared import Count, Declared, Flag, Kind, Positive, number
from art_defenses_ext.gradients.modes import surrogate_width


@dataclass(frozen=True)
class Stage(Declared):
    """Runs of Auto-PGD on the unbroken images of lowest margin.

    Attributes:
        loss: a name in ``losses.LOSSES``.
        max_iter: number of gradients per run.
        nb_runs: number of runs per image.
        share: maximum number of images that are attacked, as a share of all images.
        least: this many images may be attacked even if the share allows fewer.
        from_best: whether the first run begins at the best point so far instead of a random point.
        factor: factor of the surrogates' width.

    Raises:
        InputError: for a value of another kind.
    """

    loss: LossName
    max_iter: Count
    nb_runs: Count = 1
    share: Annotated[float, number("a share above 0 and up to 1", lambda share: 0 < share <= 1)] = 1.0
    least: Count = 1
    from_best: Flag = True
    factor: Positive = 1.0


def staged_pgd(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    stages: Sequence[Stage],
    width: Callable[[float], AbstractContextManager[None]],
    generator: torch.Generator,
    clip_values: ClipValues = None,
    batch_size: int = 256,
    confirmations: int = 1,
) -> Tensor:
    """Return the points of lowest margin (N, ...) that all stages find.

    Args:
        logits: the network under attack.
        x: clean images (N, ...).
        y: labels (N,).
        ball: the ball in which to search around each image.
        stages: the stages, in order.
        width: function that returns a context in which the surrogates' width is multiplied by a factor.
        generator: source of the random starts.
        clip_values: lowest and highest pixel value.
        batch_size: number of images per pass.
        confirmations: see :func:`.auto_pgd`.
    """
    shared: dict[str, Any] = {"clip_values": clip_values, "batch_size": batch_size, "generator": generator}
    search = partial(auto_pgd, logits, ball=ball, confirmations=confirmations, **shared)
    best = BestPoints(x)
    begun = False
    for stage in stages:
        rows = nearest(best.margins, max(math.ceil(stage.share * len(x)), stage.least))
        if len(rows) == 0:
            break
        start = best.points[rows] if stage.from_best and begun else None
        run = partial(search, max_iter=stage.max_iter, nb_runs=stage.nb_runs, objective=Objective(stage.loss))
        with width(stage.factor):
            points = run(x=x[rows], y=y[rows], start=start)
        best.offer(points, margins_at(logits, points, y[rows], batch_size), rows)
        begun = True
    return best.points


def nearest(margins: Tensor, most: int) -> Tensor:
    """Return the indices of the unbroken images in order, at most ``most`` of them: those of lowest margin."""
    rows = (margins >= 0).nonzero().squeeze(1)
    if len(rows) > most:
        rows = rows[margins[rows].argsort(stable=True)[:most]].sort().values
    return rows


def _stages(values: Any) -> Any:
    if not isinstance(values, tuple | list) or not values or not all(isinstance(value, Stage) for value in values):
        raise ValueError
    return tuple(values)


STAGES = (
    Stage("probability_margin", 30),
    Stage("dlr_targeted", 20, nb_runs=4, share=0.6, from_best=False, factor=0.5),
    Stage("dlr_targeted", 50, nb_runs=4, share=0.18, from_best=False, factor=0.25),
    Stage("cross_entropy", 100, share=0.09, from_best=False, factor=0.1),
    Stage("dlr_targeted", 100, nb_runs=9, share=0.03, from_best=False, factor=0.05),
)
"""The stages of the suite ``fast``. **Convention**: chosen on validation images, see docs/evaluation.md."""


@dataclass(eq=False, repr=False)
class StagedPGD(BallAttack):
    """Auto-PGD on one loss after the other, on fewer and fewer images.

    A stage skips images that are broken, and images whose margin is not among the lowest.

    Args:
        estimator, norm, eps: see :class:`BallAttack`.
        stages: the stages, in order.
        **options: see :class:`TensorAttack`.

    Raises:
        InputError: for a parameter that cannot be used, or an estimator that ART would misread.
    """

    stages: Annotated[tuple[Stage, ...], Kind("a sequence of stages", _stages)] = STAGES

    batches_per_block = AutoPGD.batches_per_block

    function = staticmethod(staged_pgd)

    def options(self, module: nn.Module, x: Tensor) -> dict[str, Any]:
        stages = [self._suited(stage) for stage in self.stages]
        return super().options(module, x) | {"width": partial(surrogate_width, module), "stages": stages}

    def _suited(self, stage: Stage) -> Stage:
        """The stage as a network of few classes can have it: without a logit to divide by, and no more targets."""
        few = self._paired or self.nb_labels < MIN_CLASSES.get(stage.loss, 2)
        loss = stage.loss.replace("dlr", "margin") if few else stage.loss
        return replace(stage, loss=loss, nb_runs=min(stage.nb_runs, self.nb_labels - 1))
