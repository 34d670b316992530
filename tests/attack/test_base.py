"""What all attacks promise: ART's interface, the classifier left as it was, the same examples for the same seed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.attack import EvasionAttack
from art.defences.detector.evasion import BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from hypothesis import given, strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from art_defenses_ext import JumpReLU, gradient_mode
from art_defenses_ext.attack.annealed_pgd import AnnealedPGD
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.base import BestPoints, TensorAttack, iterate_until_broken
from art_defenses_ext.attack.deep_fool import DeepFoolLp
from art_defenses_ext.attack.iterative_fgsm import IterativeFGSM
from art_defenses_ext.attack.losses import margin
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.attack.orthogonal_pgd import LagrangianPGD, OrthogonalPGD, SelectivePGD
from art_defenses_ext.attack.random_noise import RandomNoise
from art_defenses_ext.attack.square import Square
from art_defenses_ext.attack.staged_pgd import StagedPGD
from art_defenses_ext.attack.warm_start import CrossedPGD, WarmSquare
from art_defenses_ext.base.declared import Kind, declared_of
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.rejecting import rejecting
from art_defenses_ext.zoo.datasets import Dataset

# Name -> (class, settings, norm and radius of the ball in which the examples must lie).
ATTACKS: dict[str, tuple[type[TensorAttack], dict[str, Any], tuple[float, float]]] = {
    "fgsm": (IterativeFGSM, {"eps_step": 0.02, "max_iter": 12}, (np.inf, 12 * 0.02)),
    "fgsm l2": (IterativeFGSM, {"eps_step": 0.2, "max_iter": 12, "norm": 2}, (2, 12 * 0.2)),
    "deep fool linf": (DeepFoolLp, {"norm": np.inf, "max_iter": 20}, (np.inf, 1.0)),
    "deep fool l2": (DeepFoolLp, {"norm": 2, "max_iter": 20}, (2, 8.0)),
    "pgd linf": (MarginPGD, {"norm": "inf", "eps": 0.15, "max_iter": 12}, (np.inf, 0.15)),
    "pgd l2": (MarginPGD, {"norm": 2, "eps": 0.9, "max_iter": 12, "nb_starts": 2}, (2, 0.9)),
    "annealed linf": (
        AnnealedPGD,
        {"norm": np.inf, "eps": 0.15, "max_iter": 10, "factors": (1.0, 0.2)},
        (np.inf, 0.15),
    ),
    "annealed l2": (AnnealedPGD, {"norm": 2, "eps": 0.9, "max_iter": 10, "factors": (1.0, 0.2)}, (2, 0.9)),
    "noise linf": (RandomNoise, {"norm": np.inf, "eps": 0.3, "nb_draws": 20}, (np.inf, 0.3)),
    "noise l2": (RandomNoise, {"norm": 2, "eps": 2.0, "nb_draws": 20}, (2, 2.0)),
}
OTHERS: dict[str, tuple[type[TensorAttack], dict[str, Any], tuple[float, float]]] = {
    "auto pgd": (AutoPGD, {"norm": 2, "eps": 0.5, "max_iter": 10}, (2, 0.5)),
    "square": (Square, {"eps": 0.1, "max_queries": 20}, (np.inf, 0.1)),
    "staged": (StagedPGD, {"eps": 0.15}, (np.inf, 0.15)),
    "crossed pgd": (CrossedPGD, {"eps": 0.1, "max_iter": 10, "modes": ("exact", "relu")}, (np.inf, 0.1)),
    "warm square": (WarmSquare, {"eps": 0.1, "max_iter": 5, "max_queries": 20}, (np.inf, 0.1)),
}
KINDS = (
    *(AnnealedPGD, AutoPGD, CrossedPGD, DeepFoolLp, IterativeFGSM, LagrangianPGD, MarginPGD),
    *(OrthogonalPGD, RandomNoise, SelectivePGD, Square, StagedPGD, WarmSquare),
)
RANDOM = ("pgd linf", "annealed l2", "noise l2")
NOT_RANDOM = ("fgsm", "fgsm l2", "deep fool linf", "deep fool l2")
GRADIENT = (*NOT_RANDOM, "pgd linf", "pgd l2", "annealed linf", "annealed l2")

every_attack = pytest.mark.parametrize("name", ATTACKS)
every_kind = pytest.mark.parametrize("name", ["fgsm", "deep fool l2", "pgd linf", "annealed l2", "noise linf"])


def attack(name: str, classifier: PyTorchClassifier, **options: Any) -> TensorAttack:
    kind, settings, _ = (ATTACKS | OTHERS)[name]
    return kind(classifier, **(settings | options))


@pytest.fixture
def defended(own_classifier: PyTorchClassifier) -> PyTorchClassifier:
    return JumpReLU(own_classifier, 0.3)()


@pytest.fixture
def x(digits: Dataset) -> Any:
    return digits.test.x[:7].copy()


@pytest.fixture
def y(digits: Dataset) -> Any:
    return digits.test.y[:7].copy()


def count_correct(classifier: PyTorchClassifier, x: Any, y: Any) -> int:
    return int((classifier.predict(x).argmax(axis=1) == y).sum())


def assert_allowed(x_adv: Any, x: Any, name: str) -> None:
    """float32, of the shape of ``x``, in the ball and in the clip range [0, 1]."""
    norm, radius = ATTACKS[name][2]
    assert isinstance(x_adv, np.ndarray)
    assert x_adv.dtype == np.float32
    assert x_adv.shape == x.shape
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert np.linalg.norm((x_adv - x).reshape(len(x), -1), ord=norm, axis=1).max() <= radius * (1 + 1e-5)


# ART's interface


@every_attack
def test_examples_are_allowed(name: str, defended: PyTorchClassifier, x: Any, y: Any) -> None:
    evasion = attack(name, defended, batch_size=3)
    assert isinstance(evasion, EvasionAttack)
    x_adv = evasion.generate(x, y)
    assert_allowed(x_adv, x, name)
    assert not np.array_equal(x_adv, x)


@every_attack
def test_labels_may_be_indices_one_hot_or_left_out(name: str, defended: PyTorchClassifier, x: Any) -> None:
    predicted = defended.predict(x).argmax(axis=1)
    expected = attack(name, defended).generate(x, predicted)
    for labels in (np.eye(10, dtype=np.float32)[predicted], None):
        np.testing.assert_array_equal(attack(name, defended).generate(x=x, y=labels), expected)


@pytest.mark.parametrize("name", NOT_RANDOM)
def test_an_image_that_is_misclassified_already_is_left_alone(name: str, defended: PyTorchClassifier, x: Any) -> None:
    wrong = (defended.predict(x).argmax(axis=1) + 1) % 10
    np.testing.assert_array_equal(attack(name, defended).generate(x, wrong), x)


@every_attack
def test_without_clip_values_the_ball_is_the_only_bound(name: str, own_classifier: PyTorchClassifier, x: Any) -> None:
    unbounded = PyTorchClassifier(
        own_classifier.model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=None, device_type="cpu"
    )
    norm, radius = ATTACKS[name][2]
    x_adv = attack(name, unbounded).generate(x)
    assert x_adv.min() < 0
    if not name.startswith("deep fool"):
        assert np.linalg.norm((x_adv - x).reshape(len(x), -1), ord=norm, axis=1).max() <= radius * (1 + 1e-5)


@every_attack
def test_clip_values_may_differ_from_pixel_to_pixel(name: str, own_classifier: PyTorchClassifier, x: Any) -> None:
    low = np.linspace(0, 0.2, 64, dtype=np.float32).reshape(1, 8, 8)
    high = np.linspace(1, 0.6, 64, dtype=np.float32).reshape(1, 8, 8)
    bounded = PyTorchClassifier(
        own_classifier.model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(low, high), device_type="cpu"
    )
    x_adv = attack(name, bounded).generate(np.clip(x, low, high))
    assert (x_adv >= low).all()
    assert (x_adv <= high).all()


# Nothing is disturbed


@every_attack
def test_images_that_may_not_be_written_to_are_welcome(name: str, defended: PyTorchClassifier, x: Any, y: Any) -> None:
    x.flags.writeable = y.flags.writeable = False
    torch.set_warn_always(True)  # or torch would warn in the first of these tests alone
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            x_adv = attack(name, defended).generate(x, y)
            assert_allowed(x_adv, x, name)
            assert not np.shares_memory(x_adv, x)
    finally:
        torch.set_warn_always(False)


@every_kind
def test_the_model_is_left_as_it_was(
    name: str,
    own_classifier: PyTorchClassifier,
    x: Any,
    y: Any,
    only_read: Callable[[nn.Module], AbstractContextManager[None]],
) -> None:
    model = own_classifier.model
    next(model.children()).train()
    frozen = next(iter(model.parameters()))
    frozen.requires_grad_(False)
    frozen.grad = torch.ones_like(frozen)
    with only_read(model):
        attack(name, own_classifier).generate(x, y)


# Seeds


@pytest.mark.parametrize("name", [*RANDOM, "fgsm", "deep fool l2", "auto pgd", "square"])
def test_the_seed_alone_decides_what_is_drawn(name: str, defended: PyTorchClassifier, x: Any) -> None:
    """And the caller's random numbers are left alone."""
    evasion = attack(name, defended, seed=3, batch_size=3)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = evasion.generate(x).tobytes()
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    torch.rand(5)
    assert evasion.generate(x).tobytes() == first
    assert (attack(name, defended, seed=4, batch_size=3).generate(x).tobytes() == first) == (name in NOT_RANDOM)


# Gradient modes


@pytest.mark.parametrize("name", GRADIENT)
def test_a_mode_given_to_the_attack_is_the_mode_set_on_the_classifier(
    name: str, defended: PyTorchClassifier, x: Any, y: Any
) -> None:
    results = {}
    for mode in ("exact", "smooth"):
        results[mode] = attack(name, defended, gradient_mode=mode).generate(x, y)
        assert defended.model.gradient_mode == "exact"
        with gradient_mode(defended, mode):
            np.testing.assert_array_equal(attack(name, defended).generate(x, y), results[mode])
    assert not np.array_equal(results["exact"], results["smooth"])


def test_without_a_defence_exact_is_understood_and_nothing_else(own_classifier: PyTorchClassifier, x: Any) -> None:
    exact = attack("pgd linf", own_classifier, gradient_mode="exact").generate(x)
    np.testing.assert_array_equal(exact, attack("pgd linf", own_classifier).generate(x))
    with pytest.raises(InputError, match="gradient mode 'smooth': one of exact was expected"):
        attack("pgd linf", own_classifier, gradient_mode="smooth")


# Networks of other kinds


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_may_compute_in_another_precision(
    name: str, dtype: torch.dtype, own_classifier: PyTorchClassifier, x: Any
) -> None:
    own_classifier.model.to(dtype)
    assert_allowed(attack(name, own_classifier).generate(x), x, name)


class Detached(nn.Module):
    """Logits that lead nowhere: cut off, in steps, without a graph, all the same, or no numbers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "detached":
            return self.linear(x.flatten(1).detach())  # the parameters still require a gradient
        if self.kind == "rounded":
            return self.linear(((x * 4).round() / 4).flatten(1))
        if self.kind in ("constant", "no numbers"):
            return self.linear(x.flatten(1)) * (0 if self.kind == "constant" else torch.nan)
        with torch.no_grad():
            return self.linear(x.flatten(1))  # type: ignore[no-any-return]


@every_kind
@pytest.mark.parametrize("kind", ["detached", "rounded", "without a graph", "constant", "no numbers"])
def test_a_defence_that_lets_no_gradient_pass_is_attacked_all_the_same(name: str, kind: str, x: Any) -> None:
    """It may not escape by making the attack fail."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Detached(kind)
    classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    assert_allowed(attack(name, classifier).generate(x, np.zeros(7, int)), x, name)


# What is refused


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_value_that_an_option_does_not_declare_is_refused_before_any_work(
    kind: type[TensorAttack], guarded: PyTorchClassifier, wrong_values: Callable[[Kind], list[Any]]
) -> None:
    options = declared_of(kind)
    assert len(options) >= 4
    attack = kind(guarded)
    for name, declared in options.items():
        for value in wrong_values(declared):
            with pytest.raises(InputError, match=rf"^{name} is "):
                kind(guarded, **{name: value})
        with pytest.raises(InputError, match=rf"^{name} is "):
            attack.set_params(**{name: value})
        attack.set_params(**{name: getattr(kind(guarded), name)})


def test_an_unknown_parameter_is_refused_wherever_it_is_given(own_classifier: PyTorchClassifier, x: Any) -> None:
    name = "pgd linf"
    with pytest.raises(TypeError, match="strength"):
        attack(name, own_classifier, strength=3)
    with pytest.raises(ValueError, match="strength"):
        attack(name, own_classifier).set_params(strength=3)
    with pytest.raises(InputError, match="generate has no argument 'mask'"):
        attack(name, own_classifier).generate(x, mask=x)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (x.astype(np.float64), y), "x is float64"),
        (lambda x, y: (x * 2, y), "x ranges from"),
        (lambda x, y: (x[:, 0], y), "x has shape"),
        (lambda x, y: (x[:0], y[:0]), "x is empty"),
        (lambda x, y: (x, y[:-1]), "y has 6 labels for 7 images"),
        (lambda x, y: (x, y + 5), "y holds labels from"),
        (lambda x, y: (x, np.eye(9, dtype=np.float32)[y % 9]), "one-hot of width 9"),
        (lambda x, y: (x, y.astype(np.float32)), "y is "),
    ],
)
def test_unusable_images_and_labels_are_refused(
    spoil: Callable[[Any, Any], Any], message: str, digits_classifier: PyTorchClassifier, x: Any, y: Any
) -> None:
    with pytest.raises(InputError, match=message):
        attack("pgd linf", digits_classifier).generate(*spoil(x, y))


def test_a_classifier_that_art_would_misread_is_refused() -> None:
    class OwnForward(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    classifier = PyTorchClassifier(
        OwnForward(nn.Flatten(), nn.Linear(64, 10)), nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu"
    )
    with pytest.raises(InputError, match=r"estimator: .*OwnForward"):
        attack("pgd linf", classifier)


# Strength


def test_gradients_beat_noise(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    """Carlini et al. 2019: an attack that follows the gradient and loses to noise is broken."""
    x, y = digits.test.x[:60], digits.test.y[:60]
    for norm, eps in ((np.inf, 0.15), (2, 0.9)):
        noisy = RandomNoise(digits_classifier, norm, eps, nb_draws=50).generate(x, y)
        attacked = MarginPGD(digits_classifier, norm, eps, max_iter=20).generate(x, y)
        assert count_correct(digits_classifier, attacked, y) < 0.5 * count_correct(digits_classifier, noisy, y)


# Rejection

Build = Callable[..., PyTorchClassifier]


@pytest.fixture
def guarded(linear_classifier: Build) -> PyTorchClassifier:
    """Four classes; the first four pixels' mean lifts class 1 over class 0 at .56, that of the others rejects at .53.

    From an image of class 0 that is grey all over, rejection is nearer than class 1, by logits and by distance.
    """
    first, second = np.repeat(np.eye(2, dtype=np.float32), 4, axis=1) / 4
    zero = np.zeros(8, np.float32)
    bias = np.array([0, -5.6, -3, -3.1], np.float32)
    classifier = linear_classifier(np.stack([zero, 10 * first, zero, zero]), bias, (1, 2, 4))
    detector = linear_classifier(np.stack([zero, 5 * second]), np.array([0, -2.65], np.float32), (1, 2, 4))
    return rejecting(classifier, BinaryInputDetector(detector))


def greys(second: float) -> Any:
    """Images (16, 1, 2, 4) of mean .5 in their first row and of a given mean in the second, noisy: all of class 0."""
    noise = np.random.default_rng(0).uniform(-0.02, 0.02, size=(16, 1, 2, 4))
    x = np.array([[0.5], [second]]) + noise - noise.mean(axis=3, keepdims=True)
    return x.astype(np.float32)


REJECTION: dict[str, Callable[[PyTorchClassifier], TensorAttack]] = {
    **{
        name: lambda classifier, name=name: attack(name, classifier)  # type: ignore[misc]
        for name in ("fgsm", "deep fool linf", "pgd linf", "annealed l2")
    },
    **{
        f"auto pgd {loss}": lambda classifier, loss=loss: AutoPGD(classifier, eps=0.15, max_iter=40, loss=loss)  # type: ignore[misc]
        for loss in ("cross_entropy", "dlr", "margin_targeted")
    },
    "noise": lambda classifier: RandomNoise(classifier, eps=0.3, nb_draws=300),
    "square": lambda classifier: Square(classifier, eps=0.15, max_queries=500),
}
every_attack_on_rejection = pytest.mark.parametrize("make", REJECTION.values(), ids=REJECTION)


@every_attack_on_rejection
@pytest.mark.parametrize("second", [0.52, 0.56])
def test_an_image_is_broken_only_where_it_is_not_rejected(
    make: Callable[[PyTorchClassifier], TensorAttack], second: float, guarded: PyTorchClassifier
) -> None:
    x, y = greys(second), np.zeros(16, int)
    assert (guarded.predict(x).argmax(axis=1) == (4 if second > 0.53 else 0)).all()
    assert (guarded.predict(make(guarded).generate(x, y)).argmax(axis=1) == 1).all()


@every_attack_on_rejection
def test_a_rejected_image_is_attacked_as_the_class_it_would_have(
    make: Callable[[PyTorchClassifier], TensorAttack], guarded: PyTorchClassifier
) -> None:
    x = greys(0.56)
    np.testing.assert_array_equal(make(guarded).generate(x), make(guarded).generate(x, np.zeros(16, int)))


@pytest.mark.parametrize(
    "make",
    [
        lambda classifier: AutoPGD(classifier, eps=0.15, max_iter=40, targeted=True),
        lambda classifier: Square(classifier, eps=0.15, max_queries=500, targeted=True),
    ],
    ids=["auto pgd", "square"],
)
def test_a_class_to_reach_is_reached_where_it_is_not_rejected(
    make: Callable[[PyTorchClassifier], TensorAttack], guarded: PyTorchClassifier
) -> None:
    adversarial = make(guarded).generate(greys(0.56), np.ones(16, int))
    assert (guarded.predict(adversarial).argmax(axis=1) == 1).all()


@pytest.mark.parametrize("kind", [AutoPGD, Square])
def test_without_a_class_to_reach_a_targeted_attack_is_refused(
    kind: type[TensorAttack], digits_classifier: PyTorchClassifier, x: Any
) -> None:
    with pytest.raises(InputError, match="y is None; with targeted"):
        kind(digits_classifier, targeted=True).generate(x)


def test_rejected_is_no_label(guarded: PyTorchClassifier) -> None:
    message = "y holds the label 4, which means rejected; 0 to 3 were expected"
    for labels in (np.full(16, 4), np.eye(5)[np.full(16, 4)]):
        with pytest.raises(InputError, match=message):
            MarginPGD(guarded).generate(greys(0.52), labels)
    with pytest.raises(InputError, match=message):
        AutoPGD(guarded, targeted=True).generate(greys(0.52), np.full(16, 4))


# The parts


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_the_margin_is_positive_where_the_class_wins(seed: int, nb_classes: int) -> None:
    random = np.random.default_rng(seed)
    logits, y = random.normal(size=(5, nb_classes)), random.integers(0, nb_classes, 5)
    expected = [row[label] - np.delete(row, label).max() for row, label in zip(logits, y, strict=True)]
    margins = margin(torch.from_numpy(logits), torch.from_numpy(y))
    np.testing.assert_allclose(margins, expected)
    np.testing.assert_array_equal(margins > 0, logits.argmax(axis=1) == y)


@given(st.integers(0, 10_000))
def test_the_best_point_of_each_image_is_kept(seed: int) -> None:
    random = np.random.default_rng(seed)
    best_points = BestPoints(torch.full((4, 2), -1.0))
    lowest = {row: (np.inf, [-1.0, -1.0]) for row in range(4)}
    for _ in range(6):
        rows = random.integers(0, 4, random.integers(0, 6))  # an image may stand several times
        points = random.random((len(rows), 2), dtype=np.float32)
        margins = random.choice(np.array([-2, -1, 0, 1, 2, 3, np.nan], np.float32), len(rows))
        best_points.offer(torch.from_numpy(points), torch.from_numpy(margins), torch.from_numpy(rows))
        for row, point, value in zip(rows, points, margins, strict=True):
            if value < lowest[row][0]:
                lowest[row] = (value, point.tolist())
    np.testing.assert_array_equal(best_points.margins, [lowest[row][0] for row in range(4)])
    np.testing.assert_array_equal(best_points.points, np.array([lowest[row][1] for row in range(4)], np.float32))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 12), st.integers(1, 7))
def test_steps_go_on_until_an_image_is_broken(needed: list[int], max_iter: int, period: int) -> None:
    """An image that needs k steps gets min(k, max_iter), whenever the broken ones leave the batch."""
    goal = torch.tensor(needed, dtype=torch.float32)

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        unbroken = images[:, 0] < labels
        return images + unbroken[:, None], unbroken

    start = torch.zeros(len(needed), 1)
    result = iterate_until_broken(step, start, goal, max_iter, period)
    assert result[:, 0].tolist() == [min(k, max_iter) for k in needed]
    assert (start == 0).all()


LONGER: dict[str, Callable[[PyTorchClassifier, int], TensorAttack]] = {
    "auto pgd": lambda classifier, steps: AutoPGD(classifier, np.inf, 1e-4, max_iter=steps),
    "annealed pgd": lambda classifier, steps: AnnealedPGD(classifier, np.inf, 1e-4, factors=(1.0,), max_iter=steps),
    "square linf": lambda classifier, steps: Square(classifier, np.inf, 1e-4, max_queries=steps),
    "square l2": lambda classifier, steps: Square(classifier, 2, 1e-4, max_queries=steps),
}


@pytest.mark.parametrize("attack", LONGER.values(), ids=LONGER)
def test_no_step_waits_for_the_device(
    attack: Callable[[PyTorchClassifier, int], TensorAttack], digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    """What makes the host wait is counted: it may happen where the batch is sorted out, every tenth step."""
    waits = {Tensor.item, Tensor.cpu, Tensor.tolist, Tensor.nonzero, torch.nonzero, Tensor.__bool__, Tensor.numpy}

    class Counter(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
            Counter.calls += func in waits
            return func(*args, **(kwargs or {}))

    x, y = digits.test.x[:16], digits.test.y[:16]
    counts = []
    for steps in (20, 60):
        Counter.calls = 0
        with Counter():
            attack(digits_classifier, steps).generate(x, y)
        counts.append(Counter.calls)
    assert counts[1] - counts[0] <= 3 * (60 - 20) / 10
