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
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, nn

from art_defenses_ext.attack.annealed_pgd import Factors
from art_defenses_ext.attack.ball import L2, into_range, per_sample, unit
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


@dataclass(eq=False, repr=False)
class RejectionAttack(BallAttack):
    """An attack on a classifier that rejects: descent of one gradient made of two.

    It returns the misclassified image of lowest detection margin that was seen, judged by the forward pass, which is
    exact in every gradient mode; without any, the one nearest to misclassification.

    Args:
        estimator: a classifier that rejects, from :func:`.rejecting`.
        norm, eps: see :class:`BallAttack`.
        eps_step: step size in pixel values; None for eps / 10.
        max_iter: steps a run.
        random_start: begin at a random point of the ball instead of at the image.
        stop_below: a sample is done once it is misclassified with a detection margin below this; -inf never stops,
            for the lowest one that can be found.
        switch_margin: how far beyond the boundary, in logits, an image must be for the detector's turn to come.
        factors: of the width of the defences' smooth surrogates, one for each of as many equal phases of a run; without
            such a surrogate they make no difference.
        targeted: as ART has it: ``y`` is the class to reach, not the one to leave.
        **options: see :class:`TensorAttack`; but with ``gradient_mode`` None every defence that has a mode whose
            surrogate has a width is attacked under that one, and the others under ``"exact"``.

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

    def _weights(self) -> tuple[float, ...]:
        """One for each run."""
        return (1.0,)

    @abstractmethod
    def direction(self, at: Place, weight: float) -> Tensor:
        """Return the gradient to descend (n, ...); ``weight`` is the run's."""

    def perturb(self, module: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        seen = _Seen(x)
        rows = torch.arange(len(x), device=x.device)
        for weight in self._weights():
            start = x[rows]
            if self.random_start:
                start = into_range(start + self.ball.random_inside(start, generator), self.estimator.clip_values)
            self._descend(module, x, y, start, rows, seen, weight)
            rows = rows[seen.lowest_detection_margin[rows] >= self.stop_below]
            if len(rows) == 0:
                break
        return seen.points

    def _descend(
        self, module: nn.Module, x: Tensor, y: Tensor, current: Tensor, rows: Tensor, seen: _Seen, weight: float
    ) -> None:
        """One run of the images ``rows`` of ``x`` from ``current``; every point on the way is offered to ``seen``."""
        ball = self.ball
        step = self.eps / 10 if self.eps_step is None else self.eps_step
        for done in self._phases(module):
            at = self._look(module, current, y[rows])
            seen.offer(current, at, rows)
            towards = self.direction(at, weight)
            if self.stop_below > -math.inf and done % PERIOD == PERIOD - 1:
                active = (seen.lowest_detection_margin[rows] >= self.stop_below).nonzero().squeeze(1)
                rows, current, towards = rows[active], current[active], towards[active]
                if len(rows) == 0:
                    return
            moved = current - step * ball.step(towards)
            current = ball.inside(moved, x[rows], self.estimator.clip_values)
        with torch.no_grad():
            seen.offer(current, self._look(module, current, y[rows]), rows)

    def _phases(self, module: nn.Module) -> Iterator[int]:
        """The steps' numbers, each handed out while the surrogates have the width of its phase."""
        limits = [number * self.max_iter // len(self.factors) for number in range(len(self.factors) + 1)]
        for factor, first, end in zip(self.factors, limits[:-1], limits[1:], strict=True):
            with surrogate_width(module, factor):
                yield from range(first, end)

    def _look(self, module: nn.Module, x: Tensor, y: Tensor) -> Place:
        """The network's two answers at images (n, ...) and, where gradients are on, their slopes."""
        x = x.detach().requires_grad_()
        logits, detection_margin = parts_of(module, x)
        class_margin = -margin(logits, y) if self.targeted else margin(logits, y)
        slopes = gradient_of(class_margin, x, retain_graph=True), gradient_of(detection_margin, x)
        return Place(class_margin.detach(), detection_margin.detach(), *slopes)

    def _mode(self) -> str | None:
        if self.gradient_mode is not None or not annealable_modes(self.estimator):
            return self.gradient_mode
        return "+".join((*defence.annealable_modes, "exact")[0] for defence in find_defences(self.estimator))

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

    def direction(self, at: Place, weight: float) -> Tensor:
        return self._turn(at, at.class_slope, at.detection_slope)

    def _turn(self, at: Place, until_missed: Tensor, afterwards: Tensor) -> Tensor:
        """Whose turn it is, sample by sample."""
        return torch.where(per_sample(at.class_margin > -self.switch_margin, until_missed), until_missed, afterwards)


class OrthogonalPGD(SelectivePGD):
    """The selective attack on gradients without their component along each other.

    A step of l2 then changes the other loss in no first order. **Convention**, the source's: the sign of a linf step is
    taken after the projection, and does not keep it.

    Args:
        **options: see :class:`RejectionAttack`.

    Source: Bryniarski et al. 2022 (arXiv:2106.15023), the orthogonal attack.
    """

    def direction(self, at: Place, weight: float) -> Tensor:
        slope, other = at.class_slope, at.detection_slope
        return self._turn(at, without_component(slope, other), without_component(other, slope))


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

    def _weights(self) -> tuple[float, ...]:
        return self.weights

    def direction(self, at: Place, weight: float) -> Tensor:
        size = self.geometry.dual_size
        missing = unit(at.class_slope, size) * per_sample(at.class_margin > -self.switch_margin, at.class_slope)
        passing = unit(at.detection_slope, size) * per_sample(
            at.detection_margin >= self.stop_below, at.detection_slope
        )
        return missing + weight * passing


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


def without_component(gradient: Tensor, other: Tensor) -> Tensor:
    """``gradient`` (n, ...) less its component along ``other`` (n, ...), sample by sample; whole where that is zero."""
    along = L2.steepest(other)
    return gradient - per_sample((gradient * along).flatten(1).sum(dim=1), gradient) * along
