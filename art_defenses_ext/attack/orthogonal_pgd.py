"""Projected gradient descent on a classifier and a detector together.

An adversarial image must be misclassified and stay below the detector's threshold. Descent of the sum of two losses can
get stuck between them. The selective attack follows one gradient per image and step: the classifier's until the image
is misclassified, then the detector's. The orthogonal attack also removes the component along the other gradient, so
that a step changes the other loss as little as possible. The Lagrangian attack follows the sum.

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
PERIOD = 5  # number of steps between two searches for finished images, which wait for the device


Parts = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A network that rejects: images (n, ...) -> the classifier's logits (n, K) and the detection margin (n,)."""


class Place(NamedTuple):
    """Margins and slopes at images (n, ...), from one forward and two backward passes.

    Attributes:
        class_margin: margin of the classifier's logits (n,), below zero if the image is misclassified.
        detection_margin: detection score minus its threshold (n,), above zero if the image is rejected.
        class_slope: the gradient of ``class_margin`` (n, ...).
        detection_slope: the gradient of ``detection_margin`` (n, ...).
    """

    class_margin: Tensor
    detection_margin: Tensor
    class_slope: Tensor
    detection_slope: Tensor


Direction = Callable[[Place], Tensor]
"""The gradient to descend (n, ...), from both slopes."""


def _keep_width(factor: float) -> AbstractContextManager[None]:
    """Return a context that does not change the surrogates' width."""
    return nullcontext()


@dataclass(frozen=True)
class Descent:
    """The steps of an attack and their end.

    Attributes:
        step_size: step size in pixel values; None for a tenth of the radius.
        max_iter: number of steps per run.
        random_start: whether to begin at a random point of the ball instead of at the image.
        stop_below: stop at an image once it is misclassified with a detection margin below this; -inf never stops, and
            finds the lowest detection margin.
        switch_margin: distance beyond the decision boundary, in logits, from which on the detector's gradient counts.
        factors: factor of the width of the defences' smooth surrogates in each of as many equal phases of a run.
        width: function that returns a context in which the surrogates' width is multiplied by a factor.
        targeted: whether the labels are classes to reach, not to leave.
        clip_values: lowest and highest pixel value.
    """

    step_size: float | None = None
    max_iter: int = 100
    random_start: bool = False
    stop_below: float = 0.0
    switch_margin: float = 0.05
    factors: Sequence[float] = FACTORS
    width: Callable[[float], AbstractContextManager[None]] = _keep_width
    targeted: bool = False
    clip_values: ClipValues = None

    def phases(self) -> Iterator[int]:
        """Yield the number of each step while the surrogates have the width of its phase."""
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
        y: labels (N,) to leave, or classes to reach.
        ball: the ball in which to descend around each image.
        descent: steps and stopping rule.
        generator: source of a random start.

    Returns:
        For each image the misclassified point of lowest detection margin on its path, by the forward pass; the point of
        lowest classification margin if none is misclassified.
    """
    direction = partial(selective_direction, switch_margin=descent.switch_margin)
    return _descend(parts, x, y, ball, [direction], descent, generator)


def orthogonal_pgd(
    parts: Parts, x: Tensor, y: Tensor, ball: Ball, *, descent: Descent, generator: torch.Generator
) -> Tensor:
    """Descend like :func:`selective_pgd`, along each gradient without its component along the other.

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
    """Descend the sum of both losses, each until its goal is reached, in one run for each weight of the detector.

    Args:
        parts, x, y, ball, descent, generator: as :func:`selective_pgd`.
        weights: weight of the detector's gradient in each run; later runs attack the images that are not broken.
    """
    directions = [partial(lagrangian_direction, weight=weight, ball=type(ball), descent=descent) for weight in weights]
    return _descend(parts, x, y, ball, directions, descent, generator)


def selective_direction(at: Place, switch_margin: float) -> Tensor:
    """Return the classifier's slope for the images that are not yet misclassified, the detector's for the others."""
    return _select(at, at.class_slope, at.detection_slope, switch_margin)


def orthogonal_direction(at: Place, switch_margin: float) -> Tensor:
    """Return the selective direction without its component along the other slope."""
    slope, other = at.class_slope, at.detection_slope
    return _select(at, without_component(slope, other), without_component(other, slope), switch_margin)


def _select(at: Place, class_slope: Tensor, detection_slope: Tensor, switch_margin: float) -> Tensor:
    return torch.where(per_sample(at.class_margin > -switch_margin, class_slope), class_slope, detection_slope)


def lagrangian_direction(at: Place, weight: float, ball: type[Ball], descent: Descent) -> Tensor:
    """Return the sum of both slopes, each of length 1 in the dual norm, and zero once its goal is reached."""
    size = ball.dual_size
    class_term = unit(at.class_slope, size) * per_sample(at.class_margin > -descent.switch_margin, at.class_slope)
    is_rejected = per_sample(at.detection_margin >= descent.stop_below, at.detection_slope)
    return class_term + weight * unit(at.detection_slope, size) * is_rejected


def _descend(
    parts: Parts,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    directions: Sequence[Direction],
    descent: Descent,
    generator: torch.Generator,
) -> Tensor:
    """Descend once along each of ``directions`` from the unbroken images; return the best points (N, ...)."""
    seen = _Best(x)
    step_size = ball.eps / 10 if descent.step_size is None else descent.step_size
    remaining = torch.arange(len(x), device=x.device)
    for direction in directions:
        rows, points = remaining, x[remaining]
        if descent.random_start:
            points = into_range(points + ball.random_inside(points, generator), descent.clip_values)
        for done in descent.phases():
            at = differentiate(parts, points, y[rows], descent.targeted)
            seen.offer(points, at, rows)
            gradient = direction(at)
            if descent.stop_below > -math.inf and done % PERIOD == PERIOD - 1:
                active = (seen.lowest_detection_margin[rows] >= descent.stop_below).nonzero().squeeze(1)
                rows, points, gradient = rows[active], points[active], gradient[active]
                if len(rows) == 0:
                    break
            points = ball.inside(points - step_size * ball.step(gradient), x[rows], descent.clip_values)
        else:
            with torch.no_grad():
                seen.offer(points, differentiate(parts, points, y[rows], descent.targeted), rows)
        remaining = remaining[seen.lowest_detection_margin[remaining] >= descent.stop_below]
        if len(remaining) == 0:
            break
    return seen.points


def differentiate(parts: Parts, x: Tensor, y: Tensor, targeted: bool = False) -> Place:
    """Return both margins at images (n, ...) and their slopes, which are zero under ``torch.no_grad``."""
    x = x.detach().requires_grad_()
    logits, detection_margin = parts(x)
    class_margin = -margin(logits, y) if targeted else margin(logits, y)
    slopes = gradient_of(class_margin, x, retain_graph=True), gradient_of(detection_margin, x)
    return Place(class_margin.detach(), detection_margin.detach(), *slopes)


def without_component(gradient: Tensor, other: Tensor) -> Tensor:
    """Return ``gradient`` (n, ...) without its component along ``other`` (n, ...), sample by sample."""
    along = L2.steepest(other)
    return gradient - per_sample((gradient * along).flatten(1).sum(dim=1), gradient) * along


class _Best:
    """The best points of each image of ``x`` (N, ...) so far."""

    def __init__(self, x: Tensor) -> None:
        self._missed, self._nearest = BestPoints(x), BestPoints(x)

    def offer(self, points: Tensor, at: Place, rows: Tensor) -> None:
        """Keep the better of ``points`` (n, ...), which belong to the images ``rows`` (n,)."""
        self._missed.offer(points, torch.where(at.class_margin < 0, at.detection_margin, torch.inf), rows)
        self._nearest.offer(points, at.class_margin, rows)

    @property
    def lowest_detection_margin(self) -> Tensor:
        """The lowest detection margin of misclassified points (N,); inf without such a point."""
        return self._missed.margins

    @property
    def points(self) -> Tensor:
        """The misclassified points of lowest detection margin (N, ...), else those of lowest classification margin."""
        missed = self._missed.points
        return torch.where(per_sample(self.lowest_detection_margin < torch.inf, missed), missed, self._nearest.points)


@dataclass(eq=False, repr=False)
class RejectionAttack(BallAttack):
    """An attack on a classifier that rejects, by descent along a combination of two gradients.

    It returns the misclassified image of lowest detection margin on its path, by the forward pass, which is exact in
    every gradient mode; the image of lowest classification margin if none is misclassified.

    Args:
        estimator: a classifier that rejects, from :func:`.rejecting`.
        norm, eps: see :class:`BallAttack`.
        eps_step, max_iter, random_start, stop_below, switch_margin, factors, targeted: see :class:`Descent`; the first
            is its step size. ``factors`` have no effect without surrogates that have a width.
        **options: see :class:`TensorAttack`. With ``gradient_mode`` None each defence is attacked in its first mode
            that has a width, or in its first mode.

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
        """Return the network that ``function`` attacks, with logits and detection margin apart."""
        return partial(parts_of, module)

    def options(self, module: nn.Module, x: Tensor) -> dict[str, Any]:
        names = ("max_iter", "random_start", "stop_below", "switch_margin", "factors", "targeted")
        options = {name: getattr(self, name) for name in names} | {"clip_values": self.estimator.clip_values}
        descent = Descent(self.eps_step, width=partial(surrogate_width, module), **options)
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
    """The selective attack along each gradient without its component along the other.

    To first order a step in l2 then does not change the other loss. **Convention**, as in the source: the sign of a
    linf step is taken after the projection, so the step is not orthogonal.

    Args:
        **options: see :class:`RejectionAttack`.

    Source: Bryniarski et al. 2022 (arXiv:2106.15023), the orthogonal attack.
    """

    function = staticmethod(orthogonal_pgd)


@dataclass(eq=False, repr=False)
class LagrangianPGD(RejectionAttack):
    """Descend the sum of both losses, each until its goal is reached, in one run for each weight of the detector.

    Runs after the first attack the images that are not broken. **Departure** from the source: both gradients are scaled
    to unit length in the dual norm before they are added, so that a weight has the same meaning for every detector; and
    the weights are swept, not searched.

    Args:
        estimator, norm, eps: see :class:`RejectionAttack`.
        weights: weight of the detector's gradient in each run.
        **options: see :class:`RejectionAttack`.

    Source: Carlini, Wagner 2017 (arXiv:1705.07263).
    """

    weights: Factors = WEIGHTS

    function = staticmethod(lagrangian_pgd)
