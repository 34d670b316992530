"""Attacks on a classifier and a detector at once: on linear ones, where a linear program knows what can be reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from art.defences.detector.evasion import BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from scipy.optimize import linprog
from torch import Tensor, nn

from art_defenses_ext import JumpReLU
from art_defenses_ext.attack.ball import ball_type
from art_defenses_ext.attack.orthogonal_pgd import (
    Descent,
    LagrangianPGD,
    OrthogonalPGD,
    Parts,
    Place,
    RejectionAttack,
    SelectivePGD,
    lagrangian_direction,
    orthogonal_direction,
    selective_direction,
    without_component,
)
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.rejecting import rejecting
from art_defenses_ext.gradients.modes import Defence, find_defences
from art_defenses_ext.gradients.surrogate import replaced
from art_defenses_ext.zoo.datasets import Dataset

ATTACKS: tuple[type[RejectionAttack], ...] = (SelectivePGD, OrthogonalPGD, LagrangianPGD)
Build = Callable[..., PyTorchClassifier]
every_attack = pytest.mark.parametrize("kind", ATTACKS)
both_norms = pytest.mark.parametrize("norm", [2, np.inf])


class Linear(NamedTuple):
    """Logits W x + b, rejected where v x + c > 0; images (n, 8), their labels, and both as one classifier."""

    weight: Any
    bias: Any
    slope: Any
    offset: float
    x: Any
    y: Any
    whole: PyTorchClassifier

    def evades(self, images: Any) -> Any:
        """Misclassified and not rejected (n,)."""
        predicted = self.whole.predict(images).argmax(axis=1)
        return (predicted != self.y) & (predicted != len(self.weight))


def linear(build: Build, seed: int, spread: float = 1.0, count: int = 40) -> Linear:
    """A random problem of four classes, with images within ``spread`` / 2 of the middle, half of them rejected."""
    random = np.random.default_rng(seed)
    weight, slope = (random.normal(size=shape).astype(np.float32) for shape in ((4, 8), 8))
    x = (0.5 + spread * random.uniform(-0.5, 0.5, size=(count, 8))).astype(np.float32)
    bias = -weight.sum(axis=1) / 2
    offset = np.float32(-np.median(x @ slope))
    detector = build(np.stack([0 * slope, slope]), np.array([0, offset], np.float32), (8,))
    classifier = build(weight, bias, (8,))
    y = classifier.predict(x).argmax(axis=1)
    return Linear(weight, bias, slope, float(offset), x, y, rejecting(classifier, BinaryInputDetector(detector)))


def halfspaces(of: Linear, row: int, target: int | None = None) -> list[tuple[Any, Any]]:
    """A and a of all sets A x' + a <= 0 of which one must hold to evade: a rival wins and the detector is silent.

    Untargeted there is one for each rival, which need only beat the label; with a target it must beat all others.
    """
    label, classes = of.y[row], range(len(of.weight))
    wins = (
        [[(label, k)] for k in classes if k != label]
        if target is None
        else [[(k, target) for k in classes if k != target]]
    )
    found = []
    for pairs in wins:
        rows = [(of.weight[a] - of.weight[b], of.bias[a] - of.bias[b]) for a, b in pairs] + [(of.slope, of.offset)]
        found.append((np.array([one for one, _ in rows], float), np.array([one for _, one in rows], float)))
    return found


def least_linf(of: Linear, targets: Any = None) -> Any:
    """The least radius (n,) of a linf ball in which each image can evade inside the clip range; inf if none is.

    A linear program in x' and r: minimise r, where |x' - x| <= r in every pixel.
    """
    within = np.hstack([np.vstack([np.eye(8), -np.eye(8)]), -np.ones((16, 1))])

    def radius(x: Any, matrix: Any, offset: Any) -> float:
        found = linprog(
            np.eye(9)[8],
            A_ub=np.vstack([np.hstack([matrix, np.zeros((len(matrix), 1))]), within]),
            b_ub=np.concatenate([-offset, x, -x]),
            bounds=[(0, 1)] * 8 + [(0, None)],
        )
        return float(found.fun) if found.status == 0 else np.inf

    goals = [None] * len(of.x) if targets is None else targets
    return np.array([min(radius(x, *one) for one in halfspaces(of, row, goals[row])) for row, x in enumerate(of.x)])


# Strength


def test_nearly_all_that_can_evade_do_and_nothing_else(linear_classifier: Build) -> None:
    """95 % of those that can with 5 % of eps to spare, 90 % of those of them that cannot with 30 % to spare.

    The three attacks and one towards each rival: an untargeted one follows the largest logit, which need not belong to
    the class that the detector lets pass. Without the rivals 90 %.
    """
    eps = 0.15
    problem = linear(linear_classifier, 100, count=100)
    radius = least_linf(problem)
    images = [kind(problem.whole, eps=eps, max_iter=50).generate(problem.x, problem.y) for kind in ATTACKS]
    towards = LagrangianPGD(problem.whole, eps=eps, max_iter=50, targeted=True)
    images += [towards.generate(problem.x, (problem.y + offset) % 4) for offset in (1, 2, 3)]
    each: Any = np.array([problem.evades(one) for one in images])  # (attacks, images)
    union, untargeted = each.any(axis=0), each[:3].any(axis=0)
    reachable = radius <= 0.95 * eps
    difficult = reachable & (radius > 0.7 * eps)
    assert (radius > eps).sum() > 15
    assert difficult.sum() > 8
    assert not union[radius > eps].any()
    assert union[reachable].mean() >= 0.95
    assert union[difficult].mean() >= 0.8
    assert untargeted[reachable].mean() >= 0.9
    assert (each[:3, reachable].mean(axis=1) >= 0.8).all()


def test_a_class_to_reach_is_reached_nearly_wherever_it_can_be(linear_classifier: Build) -> None:
    eps = 0.2
    problem = linear(linear_classifier, 0, count=60)
    goals = (problem.y + np.random.default_rng(0).integers(1, 4, 60)) % 4
    radius = least_linf(problem, goals)
    images = [kind(problem.whole, eps=eps, targeted=True).generate(problem.x, goals) for kind in ATTACKS]
    reached = np.any([problem.whole.predict(one).argmax(axis=1) == goals for one in images], axis=0)
    assert not reached[radius > eps].any()
    assert 0.3 < (radius <= 0.95 * eps).mean() < 0.9
    assert reached[radius <= 0.95 * eps].mean() >= 0.95


# What is kept


@every_attack
@both_norms
def test_images_stay_in_the_ball_and_the_clip_range(
    kind: type[RejectionAttack], norm: float, linear_classifier: Build
) -> None:
    problem = linear(linear_classifier, 0)
    attack = kind(problem.whole, norm, 0.2, eps_step=0.15, random_start=True, max_iter=15, batch_size=16)
    found = attack.generate(problem.x, problem.y)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert np.linalg.norm(found - problem.x, ord=norm, axis=1).max() <= 0.2 * (1 + 1e-5)
    assert not np.array_equal(found, problem.x)


def overheard(attack: RejectionAttack) -> list[Tensor]:
    """Every point that ``attack`` is going to look at."""
    points: list[Tensor] = []
    network = attack.network

    def listening(module: nn.Module) -> Parts:
        parts = network(module)

        def listen(x: Tensor) -> tuple[Tensor, Tensor]:
            points.append(x.detach().clone())
            return parts(x)

        return listen

    attack.network = listening  # type: ignore[method-assign]
    return points


@every_attack
@pytest.mark.parametrize(("norm", "targeted"), [(2, False), (np.inf, True)])
def test_the_misclassified_point_of_lowest_excess_is_kept(
    kind: type[RejectionAttack], norm: float, targeted: bool, linear_classifier: Build
) -> None:
    """Without a misclassified one, that of lowest margin."""
    problem = linear(linear_classifier, 3)
    attack = kind(problem.whole, norm, 0.1, max_iter=20, stop_below=-np.inf, targeted=targeted)
    heard = overheard(attack)
    y = (problem.y + 1) % 4 if targeted else problem.y
    found = attack.generate(problem.x, y)
    points = torch.stack(heard).numpy()  # (looks, n, 8)
    assert len(points) == 21 * len(getattr(attack, "weights", (1.0,)))

    logits = points.astype(float) @ problem.weight.T + problem.bias
    own = np.take_along_axis(logits, y[None, :, None], axis=2)[..., 0]
    others = np.where(np.eye(4, dtype=bool)[y], -np.inf, logits).max(axis=2)
    gap = (others - own) if targeted else (own - others)
    excess = points.astype(float) @ problem.slope + problem.offset
    ever = (gap < 0).any(axis=0)
    assert 3 < ever.sum() < 37
    expected = np.where(ever, np.where(gap < 0, excess, np.inf).argmin(axis=0), gap.argmin(axis=0))
    kept = points[expected, np.arange(len(y))]
    np.testing.assert_allclose(found, kept, atol=1e-6)


# Steps


def in_turn(classifier_slope: Tensor, detector_slope: Tensor, gaps: list[float], excess: float = 1.0) -> Place:
    """Images of the given gaps, all with the same slopes."""
    count = len(gaps)
    return Place(
        torch.tensor(gaps),
        torch.full((count,), excess),
        classifier_slope.expand(count, -1, -1),
        detector_slope.expand(count, -1, -1),
    )


def test_the_detector_s_turn_comes_once_the_image_is_misclassified_by_the_margin() -> None:
    one, other = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    at = in_turn(one, other, [1.0, 0.0, -0.04, -0.06, -1.0])
    direction = selective_direction(at, 0.05)
    assert torch.equal(direction, torch.stack([one[0], one[0], one[0], other[0], other[0]]))
    direction = selective_direction(at, 0.5)
    assert torch.equal(direction, torch.stack([one[0]] * 4 + [other[0]]))


def test_an_orthogonal_direction_is_what_the_other_gradient_leaves() -> None:
    """Pythagoras: it is orthogonal to the other, and differs from its own gradient by a multiple of the other."""
    one, other = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    before, after = orthogonal_direction(in_turn(one, other, [1.0, -1.0]), 0.05)
    for direction, own, against in ((before, one[0], other[0]), (after, other[0], one[0])):
        assert abs((direction * against).sum()) < 1e-6
        removed = own - direction
        torch.testing.assert_close(removed, against * (removed * against).sum() / (against * against).sum())
        assert direction.norm() > 0.1


@pytest.mark.parametrize("norm", [2, np.inf])
def test_the_sum_weighs_unit_gradients_and_drops_what_is_met(norm: float) -> None:
    one, other = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    dual = 1 if norm == np.inf else 2
    units = [part[0] / torch.linalg.vector_norm(part, ord=dual) for part in (one, 100 * other)]
    both, detector = lagrangian_direction(in_turn(one, 100 * other, [1.0, -1.0]), 3.0, ball_type(norm), Descent())
    torch.testing.assert_close(both, units[0] + 3 * units[1])
    torch.testing.assert_close(detector, 3 * units[1])
    classifier, nothing = lagrangian_direction(
        in_turn(one, 100 * other, [1.0, -1.0], excess=-1.0), 3.0, ball_type(norm), Descent()
    )
    torch.testing.assert_close(classifier, units[0])
    assert not nothing.any()


def test_a_gradient_of_zero_is_no_direction_and_takes_nothing_away() -> None:
    gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    other = torch.stack([torch.zeros(4), gradient[1], torch.ones(4)])
    left = without_component(gradient, other)
    assert torch.equal(left[0], gradient[0])
    torch.testing.assert_close(left[1], torch.zeros(4), atol=1e-6, rtol=0)
    assert abs(left[2].sum()) < 1e-6


@every_attack
@pytest.mark.parametrize(("norm", "flat"), [(2, "classifier"), (2, "detector"), (np.inf, "both")])
def test_without_a_gradient_images_stay_finite(
    kind: type[RejectionAttack], norm: float, flat: str, linear_classifier: Build
) -> None:
    problem = linear(linear_classifier, 0)
    weight, slope = problem.weight, np.stack([0 * problem.slope, problem.slope])
    classifier = linear_classifier(0 * weight if flat != "detector" else weight, problem.bias, (8,))
    detector = linear_classifier(0 * slope if flat != "classifier" else slope, np.array([0, 1], np.float32), (8,))
    whole = rejecting(classifier, BinaryInputDetector(detector))
    found = kind(whole, norm, 0.1, max_iter=10).generate(problem.x, problem.y)
    assert np.isfinite(found).all()


# Stopping


@every_attack
def test_a_sample_leaves_once_it_evades_and_never_at_minus_infinity(
    kind: type[RejectionAttack], linear_classifier: Build
) -> None:
    problem = linear(linear_classifier, 0)
    lengths = {}
    for stop_below in (0.0, -0.2, -np.inf):
        attack = kind(problem.whole, eps=0.3, max_iter=40, stop_below=stop_below)
        heard = overheard(attack)
        found = attack.generate(problem.x, problem.y)
        lengths[stop_below] = [len(points) for points in heard]
        done = problem.evades(found) & (found @ problem.slope + problem.offset < stop_below)
        if stop_below > -np.inf:
            assert lengths[stop_below][-1] == 40 - done.sum() or done.all()
    assert lengths[-np.inf] == [40] * 41 * len(getattr(attack, "weights", (1.0,)))
    assert lengths[0.0][:5] == [40] * 5  # who is done leaves at every fifth step
    assert sum(lengths[0.0]) < 0.5 * sum(lengths[-np.inf])
    assert sum(lengths[0.0]) < sum(lengths[-0.2])


def test_later_weights_are_for_samples_that_are_left(linear_classifier: Build) -> None:
    problem = linear(linear_classifier, 0)
    attack = LagrangianPGD(problem.whole, eps=0.1, weights=(1.0, 5.0), max_iter=10)
    heard = overheard(attack)
    once = LagrangianPGD(problem.whole, eps=0.1, weights=(1.0,), max_iter=10).generate(problem.x, problem.y)
    twice = attack.generate(problem.x, problem.y)
    starts = [points for points in heard if any(torch.equal(points[0], torch.from_numpy(row)) for row in problem.x)]
    left = ~problem.evades(once)
    assert 0 < left.sum() < 40
    np.testing.assert_array_equal(starts[-1], problem.x[left])
    np.testing.assert_array_equal(twice[~left], once[~left])


# Surrogates


class Steps(nn.Module, Defence):
    """Rejects bright images by a number of steps without a slope; its surrogate is a sigmoid of some width."""

    name = "steps"
    gradient_modes = ("exact", "smooth")
    annealable_modes = ("smooth",)

    def __init__(self) -> None:
        super().__init__()
        self.widths: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.flatten(1).mean(dim=1) - 0.45
        excess = brightness.sign() + 0 * brightness
        if torch.is_grad_enabled() and self.gradient_mode == "smooth":
            self.widths.append(self.surrogate_width)
            excess = replaced(2 * (brightness / self.surrogate_width).sigmoid() - 1, excess)
        return torch.stack([torch.zeros_like(excess), excess], dim=1)


@pytest.fixture
def stepped(digits_classifier: PyTorchClassifier) -> tuple[PyTorchClassifier, Steps]:
    steps = Steps()
    detector = PyTorchClassifier(steps, nn.CrossEntropyLoss(), (1, 8, 8), 2, clip_values=(0.0, 1.0), device_type="cpu")
    return rejecting(digits_classifier, BinaryInputDetector(detector)), steps


def brightened(digits: Dataset) -> tuple[Any, Any]:
    """Images whose mean is .5, which are rejected."""
    x = digits.test.x[:10]
    for _ in range(20):
        x = np.clip(x + 0.5 - x.mean(axis=(1, 2, 3), keepdims=True), 0, 1)
    return x, digits.test.y[:10]


@every_attack
def test_a_surrogate_with_a_width_is_taken_and_narrowed_by_itself(
    kind: type[RejectionAttack], stepped: tuple[PyTorchClassifier, Steps], digits: Dataset
) -> None:
    """The exact derivative of the detector is zero: nothing evades under it."""
    whole, steps = stepped
    x, y = brightened(digits)
    assert (whole.predict(x).argmax(axis=1) == 10).all()

    def share(**options: Any) -> float:
        predicted = whole.predict(kind(whole, eps=0.3, max_iter=60, **options).generate(x, y)).argmax(axis=1)
        return float(((predicted != y) & (predicted != 10)).mean())

    by_itself, told, exact = share(), share(gradient_mode="smooth"), share(gradient_mode="exact")
    assert by_itself == told
    assert by_itself >= 0.9
    assert exact <= 0.3
    assert (steps.gradient_mode, steps.surrogate_width) == ("exact", 1.0)

    steps.widths.clear()
    attack = kind(whole, eps=0.15, max_iter=10, factors=(2.0, 1.0, 0.5), stop_below=-np.inf)
    attack.generate(x, y)
    assert steps.widths == ([2.0] * 3 + [1.0] * 3 + [0.5] * 4) * len(getattr(attack, "weights", (1.0,)))
    assert (steps.gradient_mode, steps.surrogate_width) == ("exact", 1.0)


class Foreign(Defence, nn.Module):
    """A defence without a width, which notes its mode."""

    name = "foreign"
    gradient_modes = ("exact", "identity")

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add(self.gradient_mode)
        return x


def test_defences_without_a_width_stay_exact(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    foreign, steps = Foreign(), Steps()
    seen: set[str] = set()
    kind, shape, loss = PyTorchClassifier, (1, 8, 8), nn.CrossEntropyLoss()
    classifier = kind(
        nn.Sequential(foreign, digits_classifier.model), loss, shape, 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    jumping = JumpReLU(classifier, 0.3)()
    detector = BinaryInputDetector(kind(steps, loss, shape, 2, clip_values=(0.0, 1.0), device_type="cpu"))
    whole = rejecting(jumping, detector)
    defences = find_defences(whole)
    jump = next(one for one in defences if one.name == "jump_relu")
    jump.register_forward_hook(lambda module, *_: seen.add(module.gradient_mode))  # type: ignore[attr-defined]
    attack = SelectivePGD(whole, max_iter=2)
    assert sorted(attack._mode().split("+")) == ["exact", "smooth", "smooth"]  # type: ignore[union-attr]
    attack.generate(digits.test.x[:2], digits.test.y[:2])
    assert seen == {"smooth"}
    assert [one.gradient_mode for one in defences] == ["exact"] * 3


# What is refused


@every_attack
def test_a_classifier_that_does_not_reject_is_refused(
    kind: type[RejectionAttack], digits_classifier: PyTorchClassifier
) -> None:
    with pytest.raises(InputError, match=r"estimator is .*, which rejects nothing; one from rejecting\("):
        kind(digits_classifier)
