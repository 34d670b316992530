"""Projected gradient descent on a classifier and on the detector beside it, at once.

An attacker of both must be misclassified and stay below the detector's threshold. A sum of two losses can trade one for
the other and get stuck between them. The selective attack follows one gradient per sample and step: the classifier's
until the image is misclassified, then the detector's. The orthogonal one first takes out of it the component along the
other gradient, so that a step undoes as little as it can of what was reached. The Lagrangian one does follow the sum.

Source: Bryniarski, Hingun, Pachuca, Wang, Carlini 2022, "Evading Adversarial Example Detection Defenses with Orthogonal
Projected Gradient Descent" (arXiv:2106.15023); for the sum, Carlini, Wagner 2017, "Adversarial Examples Are Not Easily
Detected" (arXiv:1705.07263).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from art_defenses_ext.attack.annealed_pgd import Factors
from art_defenses_ext.attack.ball import L2, Ball, ClipValues, into_range, per_sample, unit
from art_defenses_ext.attack.base import BallAttack, BestPoints
from art_defenses_ext.attack.losses import gradient_of, margin
from art_defenses_ext.base.declared import Count, Flag, NonNegative, Positive
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.validation import check_number
from art_defenses_ext.estimator.rejecting import parts_of, rejects
from art_defenses_ext.gradients.modes import annealable_modes, find_defences, surrogate_width

FACTORS = (1.0, 0.5, 0.25, 0.1)
WEIGHTS = (1.0, 0.3, 3.0, 0.1, 10.0)
PERIOD = 5  # steps from one look at which samples are done to the next: each costs a wait for the device


Parts = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A network that rejects: images (n, ...) -> the classifier's logits (n, K) and the detection margin (n,)."""


class Place(NamedTuple):
    """Margins and slopes at images (n, ...), from one forward and two backward passes.

    Attributes:
        class_margin: of the classifier's logits (n,): below zero where the image is misclassified.
        detection_margin: the detection score minus its threshold (n,): above zero where the image is rejected.
        class_slope: the gradient of ``class_margin`` (n, ...).
        detection_slope: the gradient of ``detection_margin`` (n, ...).
    """

    class_margin: Tensor
    detection_margin: Tensor
    class_slope: Tensor
    detection_slope: Tensor


Direction = Callable[[Place], Tensor]
"""The gradient to descend (n, ...), out of both slopes."""


def _as_it_is(factor: float) -> AbstractContextManager[None]:
    """Leave the surrogates as wide as they are."""
    return nullcontext()


@dataclass(frozen=True)
class Descent:
    """How long an attack descends, how far at a time, and when it stops.

    Attributes:
        step_size: in pixel values; None for a tenth of the radius.
        max_iter: steps a run.
        random_start: begin at a random point of the ball instead of at the image.
        stop_below: a sample is done once it is misclassified with a detection margin below this; -inf never stops,
            for the lowest one that can be found.
        switch_margin: how far beyond the boundary, in logits, an image must be for the detector's turn to come.
        factors: of the width of the defences' smooth surrogates, one for each of as many equal phases of a run.
        width: makes a context in which the surrogates' width is multiplied by a factor.
        targeted: the labels are classes to reach, not to leave.
        clip_values: least and largest pixel value.
    """

    step_size: float | None = None
    max_iter: int = 100
    random_start: bool = False
    stop_below: float = 0.0
    switch_margin: float = 0.05
    factors: Sequence[float] = FACTORS
    width: Callable[[float], AbstractContextManager[None]] = _as_it_is
    targeted: bool = False
    clip_values: ClipValues = None

    def phases(self) -> Iterator[int]:
        """Yield the steps' numbers, each while the surrogates have the width of its phase."""
        limits = [number * self.max_iter // len(self.factors) for number in range(len(self.factors) + 1)]
        for factor, first, end in zip(self.factors, limits[:-1], limits[1:], strict=True):
            with self.width(factor):
                yield from range(first, end)


def selective_pgd(
    parts: Parts, x: Tensor, y: Tensor, ball: Ball, *, descent: Descent, generator: torch.Generator
) -> Tensor:
    """Descend the classifier's margin until the image is misclassified, then the detection margin.

    Args:
        parts: the network under attack.
        x: clean images (N, ...).
        y: their labels (N,), or the classes to reach.
        ball: where to descend.
        descent: how.
        generator: of a random start.

    Returns:
        Of each image the misclassified point of lowest detection margin that was seen, judged by the forward pass;
        without any, the one nearest to misclassification.
    """
    direction = partial(selective_direction, switch_margin=descent.switch_margin)
    return _descend(parts, x, y, ball, [direction], descent, generator)


def orthogonal_pgd(
    parts: Parts, x: Tensor, y: Tensor, ball: Ball, *, descent: Descent, generator: torch.Generator
) -> Tensor:
    """Descend as :func:`selective_pgd`, along gradients without their component along each other.

    Args:
        parts, x, y, ball, descent, generator: as :func:`selective_pgd`.
    """
    direction = partial(orthogonal_direction, switch_margin=descent.switch_margin)
    return _descend(parts, x, y, ball, [direction], descent, generator)


def lagrangian_pgd(
    parts: Parts,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    descent: Descent,
    generator: torch.Generator,
    weights: Sequence[float] = WEIGHTS,
) -> Tensor:
    """Descend the sum of both losses, each until it is met, in one run for each weight of the detector's.

    Args:
        parts, x, y, ball, descent, generator: as :func:`selective_pgd`.
        weights: of the detector's gradient, in the order of the runs; later ones are for the images that are not done.
    """
    directions = [partial(lagrangian_direction, weight=weight, ball=type(ball), descent=descent) for weight in weights]
    return _descend(parts, x, y, ball, directions, descent, generator)


def selective_direction(at: Place, switch_margin: float) -> Tensor:
    """Return the classifier's slope for the images that are not yet misclassified, the detector's for the others."""
    return _whose_turn(at, at.class_slope, at.detection_slope, switch_margin)


def orthogonal_direction(at: Place, switch_margin: float) -> Tensor:
    """Return the selective direction without its component along the other slope."""
    slope, other = at.class_slope, at.detection_slope
    return _whose_turn(at, without_component(slope, other), without_component(other, slope), switch_margin)


def _whose_turn(at: Place, until_misclassified: Tensor, afterwards: Tensor, switch_margin: float) -> Tensor:
    return torch.where(per_sample(at.class_margin > -switch_margin, afterwards), until_misclassified, afterwards)


def lagrangian_direction(at: Place, weight: float, ball: type[Ball], descent: Descent) -> Tensor:
    """Return the sum of both slopes, each of length 1 in the dual norm, and zero where its loss is met."""
    size = ball.dual_size
    missing = unit(at.class_slope, size) * per_sample(at.class_margin > -descent.switch_margin, at.class_slope)
    passing = unit(at.detection_slope, size) * per_sample(at.detection_margin >= descent.stop_below, at.detection_slope)
    return missing + weight * passing


def _descend(
    parts: Parts,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    directions: Sequence[Direction],
    descent: Descent,
    generator: torch.Generator,
) -> Tensor:
    """Descend once along each of ``directions`` from the images that are not done; return the best points (N, ...)."""
    seen = _Seen(x)
    step_size = ball.eps / 10 if descent.step_size is None else descent.step_size
    remaining = torch.arange(len(x), device=x.device)
    for direction in directions:
        rows, points = remaining, x[remaining]
        if descent.random_start:
            points = into_range(points + ball.random_inside(points, generator), descent.clip_values)
        for done in descent.phases():
            at = look(parts, points, y[rows], descent.targeted)
            seen.offer(points, at, rows)
            towards = direction(at)
            if descent.stop_below > -math.inf and done % PERIOD == PERIOD - 1:
                active = (seen.lowest_detection_margin[rows] >= descent.stop_below).nonzero().squeeze(1)
                rows, points, towards = rows[active], points[active], towards[active]
                if len(rows) == 0:
                    break
            points = ball.inside(points - step_size * ball.step(towards), x[rows], descent.clip_values)
        else:
            with torch.no_grad():
                seen.offer(points, look(parts, points, y[rows], descent.targeted), rows)
        remaining = remaining[seen.lowest_detection_margin[remaining] >= descent.stop_below]
        if len(remaining) == 0:
            break
    return seen.points


def look(parts: Parts, x: Tensor, y: Tensor, targeted: bool = False) -> Place:
    """Return both margins at images (n, ...) and, where gradients are on, their slopes."""
    x = x.detach().requires_grad_()
    logits, detection_margin = parts(x)
    class_margin = -margin(logits, y) if targeted else margin(logits, y)
    slopes = gradient_of(class_margin, x, retain_graph=True), gradient_of(detection_margin, x)
    return Place(class_margin.detach(), detection_margin.detach(), *slopes)


def without_component(gradient: Tensor, other: Tensor) -> Tensor:
    """``gradient`` (n, ...) less its component along ``other`` (n, ...), sample by sample; whole where that is zero."""
    along = L2.steepest(other)
    return gradient - per_sample((gradient * along).flatten(1).sum(dim=1), gradient) * along


class _Seen:
    """The best that was seen of each image of ``x`` (N, ...)."""

    def __init__(self, x: Tensor) -> None:
        self._missed, self._nearest = BestPoints(x), BestPoints(x)

    def offer(self, points: Tensor, at: Place, rows: Tensor) -> None:
        """Take what is better of ``points`` (n, ...), which belong to the images ``rows`` (n,)."""
        self._missed.offer(points, torch.where(at.class_margin < 0, at.detection_margin, torch.inf), rows)
        self._nearest.offer(points, at.class_margin, rows)

    @property
    def lowest_detection_margin(self) -> Tensor:
        """The lowest detection margin of misclassified points (N,); inf without any."""
        return self._missed.margins

    @property
    def points(self) -> Tensor:
        """The misclassified point of lowest detection margin, without any the one nearest to that (N, ...)."""
        missed = self._missed.points
        return torch.where(per_sample(self.lowest_detection_margin < torch.inf, missed), missed, self._nearest.points)


@dataclass(eq=False, repr=False)
class RejectionAttack(BallAttack):
    """An attack on a classifier that rejects: descent of one gradient made of two.

    It returns the misclassified image of lowest detection margin that was seen, judged by the forward pass, which is
    exact in every gradient mode; without any, the one nearest to misclassification.

    Args:
        estimator: a classifier that rejects, from :func:`.rejecting`.
        norm, eps: see :class:`BallAttack`.
        eps_step, max_iter, random_start, stop_below, switch_margin, factors, targeted: see :class:`Descent`; the first
            is its step size. Without surrogates that have a width ``factors`` make no difference.
        **options: see :class:`TensorAttack`; but with ``gradient_mode`` None every defence that has a mode whose
            surrogate has a width is attacked under that one, and the others under their first.

    Raises:
        InputError: for a classifier that does not reject.
    """

    eps_step: Positive | None = None
    max_iter: Count = 100
    random_start: Flag = False
    stop_below: float = 0.0
    switch_margin: NonNegative = 0.05
    factors: Factors = FACTORS
    targeted: Flag = False

    def network(self, module: nn.Module) -> Parts:
        """What the function attacks: logits and detection margin apart."""
        return partial(parts_of, module)

    def options(self, module: nn.Module, x: Tensor) -> dict[str, Any]:
        descent = Descent(
            self.eps_step,
            self.max_iter,
            self.random_start,
            self.stop_below,
            self.switch_margin,
            self.factors,
            partial(surrogate_width, module),
            self.targeted,
            self.estimator.clip_values,
        )
        return vars(self) | {"descent": descent}

    def _mode(self) -> str | None:
        if self.gradient_mode is not None or not annealable_modes(self.estimator):
            return self.gradient_mode
        return "+".join(
            (*defence.annealable_modes, *defence.gradient_modes)[0] for defence in find_defences(self.estimator)
        )

    def _check_params(self) -> None:
        super()._check_params()
        if not rejects(self.estimator):
            raise InputError(
                f"estimator is a classifier over a {type(self.estimator.model).__name__}, which rejects nothing; "
                "one from rejecting(classifier, detector) was expected"
            )
        if not (isinstance(self.stop_below, Real) and self.stop_below in (-math.inf, math.inf)):
            check_number("stop_below", self.stop_below, "a number")


class SelectivePGD(RejectionAttack):
    """Descend the classifier's margin until the image is misclassified, then the detection margin.

    Args:
        **options: see :class:`RejectionAttack`.

    Source: Bryniarski et al. 2022 (arXiv:2106.15023), the selective attack.
    """

    function = staticmethod(selective_pgd)


class OrthogonalPGD(RejectionAttack):
    """The selective attack on gradients without their component along each other.

    A step of l2 then changes the other loss in no first order. **Convention**, the source's: the sign of a linf step is
    taken after the projection, and does not keep it.

    Args:
        **options: see :class:`RejectionAttack`.

    Source: Bryniarski et al. 2022 (arXiv:2106.15023), the orthogonal attack.
    """

    function = staticmethod(orthogonal_pgd)


@dataclass(eq=False, repr=False)
class LagrangianPGD(RejectionAttack):
    """Descend the sum of both losses, each until it is met, in one run for each weight of the detector's.

    Runs after the first are for the samples that are not done. **Departure** from the source: both gradients are
    brought to unit length (in the dual norm) before they are added, so that a weight means the same for every detector;
    and the weights are swept, not searched.

    Args:
        estimator, norm, eps: see :class:`RejectionAttack`.
        weights: of the detector's gradient, in the order of the runs.
        **options: see :class:`RejectionAttack`.

    Source: Carlini, Wagner 2017 (arXiv:1705.07263).
    """

    weights: Factors = WEIGHTS

    function = staticmethod(lagrangian_pgd)
