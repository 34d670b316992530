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
    classifier: PyTorchClassifier

    def evades(self, images: Any) -> Any:
        """Misclassified and not rejected (n,)."""
        predicted = self.classifier.predict(images).argmax(axis=1)
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


def halfspaces(problem: Linear, row: int, target: int | None = None) -> list[tuple[Any, Any]]:
    """A and a of all sets A x' + a <= 0 of which one must hold to evade: a rival wins and the detector is silent.

    Untargeted there is one for each rival, which need only beat the label; with a target it must beat all others.
    """
    label, classes = problem.y[row], range(len(problem.weight))
    wins = (
        [[(label, k)] for k in classes if k != label]
        if target is None
        else [[(k, target) for k in classes if k != target]]
    )
    systems = []
    for pairs in wins:
        rows = [
            (problem.weight[loser] - problem.weight[winner], problem.bias[loser] - problem.bias[winner])
            for loser, winner in pairs
        ] + [(problem.slope, problem.offset)]
        systems.append(
            (np.array([normal for normal, _ in rows], float), np.array([offset for _, offset in rows], float))
        )
    return systems


def least_linf(problem: Linear, targets: Any = None) -> Any:
    """The least radius (n,) of a linf ball in which each image can evade inside the clip range; inf if none is.

    A linear program in x' and r: minimise r, where |x' - x| <= r in every pixel.
    """
    within = np.hstack([np.vstack([np.eye(8), -np.eye(8)]), -np.ones((16, 1))])

    def radius(x: Any, matrix: Any, offset: Any) -> float:
        solution = linprog(
            np.eye(9)[8],
            A_ub=np.vstack([np.hstack([matrix, np.zeros((len(matrix), 1))]), within]),
            b_ub=np.concatenate([-offset, x, -x]),
            bounds=[(0, 1)] * 8 + [(0, None)],
        )
        return float(solution.fun) if solution.status == 0 else np.inf

    goals = [None] * len(problem.x) if targets is None else targets
    return np.array(
        [min(radius(x, *system) for system in halfspaces(problem, row, goals[row])) for row, x in enumerate(problem.x)]
    )


# Strength


def test_nearly_all_that_can_evade_do_and_nothing_else(linear_classifier: Build) -> None:
    """95 % of those that can with 5 % of eps to spare, 90 % of those of them that cannot with 30 % to spare.

    The three attacks and one towards each rival: an untargeted one follows the largest logit, which need not belong to
    the class that the detector lets pass. Without the rivals 90 %.
    """
    eps = 0.15
    problem = linear(linear_classifier, 100, count=100)
    radius = least_linf(problem)
    images = [kind(problem.classifier, eps=eps, max_iter=50).generate(problem.x, problem.y) for kind in ATTACKS]
    towards = LagrangianPGD(problem.classifier, eps=eps, max_iter=50, targeted=True, batch_size=300)
    rivals = np.concatenate([(problem.y + offset) % 4 for offset in (1, 2, 3)])
    images += np.split(towards.generate(np.tile(problem.x, (3, 1)), rivals), 3)
    evaded: Any = np.array([problem.evades(adversarial) for adversarial in images])  # (attacks, images)
    union, untargeted = evaded.any(axis=0), evaded[:3].any(axis=0)
    reachable = radius <= 0.95 * eps
    difficult = reachable & (radius > 0.7 * eps)
    assert (radius > eps).sum() > 15
    assert difficult.sum() > 8
    assert not union[radius > eps].any()
    assert union[reachable].mean() >= 0.95
    assert union[difficult].mean() >= 0.8
    assert untargeted[reachable].mean() >= 0.9
    assert (evaded[:3, reachable].mean(axis=1) >= 0.8).all()


def test_a_class_to_reach_is_reached_nearly_wherever_it_can_be(linear_classifier: Build) -> None:
    eps = 0.2
    problem = linear(linear_classifier, 0, count=60)
    goals = (problem.y + np.random.default_rng(0).integers(1, 4, 60)) % 4
    radius = least_linf(problem, goals)
    images = [kind(problem.classifier, eps=eps, targeted=True).generate(problem.x, goals) for kind in ATTACKS]
    reached = np.any(
        [problem.classifier.predict(adversarial).argmax(axis=1) == goals for adversarial in images], axis=0
    )
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
    attack = kind(problem.classifier, norm, 0.2, eps_step=0.15, random_start=True, max_iter=6, batch_size=25)
    adversarial = attack.generate(problem.x, problem.y)
    assert adversarial.dtype == np.float32
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert np.linalg.norm(adversarial - problem.x, ord=norm, axis=1).max() <= 0.2 * (1 + 1e-5)
    assert not np.array_equal(adversarial, problem.x)


def record_queries(attack: RejectionAttack) -> list[Tensor]:
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
    attack = kind(problem.classifier, norm, 0.1, max_iter=20, stop_below=-np.inf, targeted=targeted)
    queries = record_queries(attack)
    y = (problem.y + 1) % 4 if targeted else problem.y
    adversarial = attack.generate(problem.x, y)
    points = torch.stack(queries).numpy()  # (looks, n, 8)
    assert len(points) == 21 * len(getattr(attack, "weights", (1.0,)))

    logits = points.astype(float) @ problem.weight.T + problem.bias
    label_logits = np.take_along_axis(logits, y[None, :, None], axis=2)[..., 0]
    rival_logits = np.where(np.eye(4, dtype=bool)[y], -np.inf, logits).max(axis=2)
    gap = (rival_logits - label_logits) if targeted else (label_logits - rival_logits)
    excess = points.astype(float) @ problem.slope + problem.offset
    misclassified = (gap < 0).any(axis=0)
    assert 3 < misclassified.sum() < 37
    expected = np.where(misclassified, np.where(gap < 0, excess, np.inf).argmin(axis=0), gap.argmin(axis=0))
    expected_points = points[expected, np.arange(len(y))]
    np.testing.assert_allclose(adversarial, expected_points, atol=1e-6)


# Steps


def make_place(classifier_slope: Tensor, detector_slope: Tensor, gaps: list[float], excess: float = 1.0) -> Place:
    """Images of the given gaps, all with the same slopes."""
    count = len(gaps)
    return Place(
        torch.tensor(gaps),
        torch.full((count,), excess),
        classifier_slope.expand(count, -1, -1),
        detector_slope.expand(count, -1, -1),
    )


def test_the_detector_s_turn_comes_once_the_image_is_misclassified_by_the_margin() -> None:
    classifier_gradient, detector_gradient = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    place = make_place(classifier_gradient, detector_gradient, [1.0, 0.0, -0.04, -0.06, -1.0])
    direction = selective_direction(place, 0.05)
    assert torch.equal(direction, torch.stack([classifier_gradient[0]] * 3 + [detector_gradient[0]] * 2))
    direction = selective_direction(place, 0.5)
    assert torch.equal(direction, torch.stack([classifier_gradient[0]] * 4 + [detector_gradient[0]]))


def test_an_orthogonal_direction_is_what_the_other_gradient_leaves() -> None:
    """Pythagoras: it is orthogonal to the other, and differs from its own gradient by a multiple of the other."""
    classifier_gradient, detector_gradient = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    before, after = orthogonal_direction(make_place(classifier_gradient, detector_gradient, [1.0, -1.0]), 0.05)
    for direction, own_gradient, other_gradient in (
        (before, classifier_gradient[0], detector_gradient[0]),
        (after, detector_gradient[0], classifier_gradient[0]),
    ):
        assert abs((direction * other_gradient).sum()) < 1e-6
        removed = own_gradient - direction
        torch.testing.assert_close(
            removed, other_gradient * (removed * other_gradient).sum() / (other_gradient * other_gradient).sum()
        )
        assert direction.norm() > 0.1


@pytest.mark.parametrize("norm", [2, np.inf])
def test_the_sum_weighs_unit_gradients_and_drops_what_is_met(norm: float) -> None:
    classifier_gradient, detector_gradient = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    dual = 1 if norm == np.inf else 2
    units = [
        part[0] / torch.linalg.vector_norm(part, ord=dual) for part in (classifier_gradient, 100 * detector_gradient)
    ]
    combined, detector = lagrangian_direction(
        make_place(classifier_gradient, 100 * detector_gradient, [1.0, -1.0]), 3.0, ball_type(norm), Descent()
    )
    torch.testing.assert_close(combined, units[0] + 3 * units[1])
    torch.testing.assert_close(detector, 3 * units[1])
    classifier, no_direction = lagrangian_direction(
        make_place(classifier_gradient, 100 * detector_gradient, [1.0, -1.0], excess=-1.0),
        3.0,
        ball_type(norm),
        Descent(),
    )
    torch.testing.assert_close(classifier, units[0])
    assert not no_direction.any()


def test_a_gradient_of_zero_is_no_direction_and_takes_nothing_away() -> None:
    gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    component = torch.stack([torch.zeros(4), gradient[1], torch.ones(4)])
    remainder = without_component(gradient, component)
    assert torch.equal(remainder[0], gradient[0])
    torch.testing.assert_close(remainder[1], torch.zeros(4), atol=1e-6, rtol=0)
    assert abs(remainder[2].sum()) < 1e-6


@every_attack
@pytest.mark.parametrize(("norm", "flat"), [(2, "classifier"), (2, "detector"), (np.inf, "both")])
def test_without_a_gradient_images_stay_finite(
    kind: type[RejectionAttack], norm: float, flat: str, linear_classifier: Build
) -> None:
    problem = linear(linear_classifier, 0)
    weight, slope = problem.weight, np.stack([0 * problem.slope, problem.slope])
    classifier = linear_classifier(0 * weight if flat != "detector" else weight, problem.bias, (8,))
    detector = linear_classifier(0 * slope if flat != "classifier" else slope, np.array([0, 1], np.float32), (8,))
    rejecting_classifier = rejecting(classifier, BinaryInputDetector(detector))
    adversarial = kind(rejecting_classifier, norm, 0.1, max_iter=10).generate(problem.x, problem.y)
    assert np.isfinite(adversarial).all()


# Stopping


@every_attack
def test_a_sample_leaves_once_it_evades_and_never_at_minus_infinity(
    kind: type[RejectionAttack], linear_classifier: Build
) -> None:
    problem = linear(linear_classifier, 0)
    lengths = {}
    for stop_below in (0.0, -0.2, -np.inf):
        attack = kind(problem.classifier, eps=0.3, max_iter=30, stop_below=stop_below)
        queries = record_queries(attack)
        adversarial = attack.generate(problem.x, problem.y)
        lengths[stop_below] = [len(points) for points in queries]
        evaded = problem.evades(adversarial) & (adversarial @ problem.slope + problem.offset < stop_below)
        if stop_below > -np.inf:
            assert lengths[stop_below][-1] == 40 - evaded.sum() or evaded.all()
    assert lengths[-np.inf] == [40] * 31 * len(getattr(attack, "weights", (1.0,)))
    assert lengths[0.0][:5] == [40] * 5  # who is done leaves at every fifth step
    assert sum(lengths[0.0]) < 0.5 * sum(lengths[-np.inf])
    assert sum(lengths[0.0]) < sum(lengths[-0.2])


def test_later_weights_are_for_samples_that_are_left(linear_classifier: Build) -> None:
    problem = linear(linear_classifier, 0)
    attack = LagrangianPGD(problem.classifier, eps=0.1, weights=(1.0, 5.0), max_iter=10)
    queries = record_queries(attack)
    one_weight = LagrangianPGD(problem.classifier, eps=0.1, weights=(1.0,), max_iter=10).generate(problem.x, problem.y)
    two_weights = attack.generate(problem.x, problem.y)
    starts = [points for points in queries if any(torch.equal(points[0], torch.from_numpy(row)) for row in problem.x)]
    unbroken = ~problem.evades(one_weight)
    assert 0 < unbroken.sum() < 40
    np.testing.assert_array_equal(starts[-1], problem.x[unbroken])
    np.testing.assert_array_equal(two_weights[~unbroken], one_weight[~unbroken])


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
    rejecting_classifier, steps = stepped
    x, y = brightened(digits)
    assert (rejecting_classifier.predict(x).argmax(axis=1) == 10).all()

    def share(**options: Any) -> float:
        predicted = rejecting_classifier.predict(
            kind(rejecting_classifier, eps=0.3, max_iter=20, **options).generate(x, y)
        ).argmax(axis=1)
        return float(((predicted != y) & (predicted != 10)).mean())

    default, smooth, exact = share(), share(gradient_mode="smooth"), share(gradient_mode="exact")
    assert default == smooth
    assert default >= 0.9
    assert exact <= 0.3
    assert (steps.gradient_mode, steps.surrogate_width) == ("exact", 1.0)

    steps.widths.clear()
    attack = kind(rejecting_classifier, eps=0.15, max_iter=10, factors=(2.0, 1.0, 0.5), stop_below=-np.inf)
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
    modes: set[str] = set()
    kind, shape, loss = PyTorchClassifier, (1, 8, 8), nn.CrossEntropyLoss()
    classifier = kind(
        nn.Sequential(foreign, digits_classifier.model), loss, shape, 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    jumping = JumpReLU(classifier, 0.3)()
    detector = BinaryInputDetector(kind(steps, loss, shape, 2, clip_values=(0.0, 1.0), device_type="cpu"))
    rejecting_classifier = rejecting(jumping, detector)
    defences = find_defences(rejecting_classifier)
    jump = next(defence for defence in defences if defence.name == "jump_relu")
    jump.register_forward_hook(lambda module, *_: modes.add(module.gradient_mode))  # type: ignore[attr-defined]
    attack = SelectivePGD(rejecting_classifier, max_iter=2)
    assert sorted(attack._mode().split("+")) == ["exact", "smooth", "smooth"]  # type: ignore[union-attr]
    attack.generate(digits.test.x[:2], digits.test.y[:2])
    assert modes == {"smooth"}
    assert [defence.gradient_mode for defence in defences] == ["exact"] * 3


# What is refused


@every_attack
def test_a_classifier_that_does_not_reject_is_refused(
    kind: type[RejectionAttack], digits_classifier: PyTorchClassifier
) -> None:
    with pytest.raises(InputError, match=r"estimator is .*, which rejects nothing; one from rejecting\("):
        kind(digits_classifier)
