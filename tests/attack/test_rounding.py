"""Float32 at the edge of a ball: what other people's attacks return is inside, what ours return is so to the bit."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext.attack.annealed_pgd import AnnealedPGD
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.ball import L2, Ball, Linf
from art_defenses_ext.attack.base import TensorAttack
from art_defenses_ext.attack.iterative_fgsm import IterativeFGSM
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.attack.random_noise import RandomNoise
from art_defenses_ext.attack.square import Square
from art_defenses_ext.attack.staged_pgd import StagedPGD

RANGES = [(0.0, 1.0), (-1024.0, 3071.0), (0.0, 1e-3)]
NORMS: tuple[type[Ball], ...] = (Linf, L2)
SHAPE = (1, 8, 8)


def images(low: float, high: float, kind: str) -> Any:
    """32 images away from the ends of the range, so that every change is allowed."""
    random = np.random.default_rng(0)
    values = random.uniform(0.2, 0.8, size=(32, *SHAPE))
    if kind == "constant":  # all values round to the same side, so that the errors of l2 add up
        values = np.broadcast_to(values[:, :, :1, :1], values.shape)
    return (low + (high - low) * values).astype(np.float32)


def added(x: Any, eps: float, norm: type[Ball]) -> Any:
    """x + a change of size eps, as an attack in float32 does it."""
    signs = np.random.default_rng(1).choice(np.array([-1, 1], np.float32), size=x.shape)
    step = np.float32(eps if norm is Linf else eps / x[0].size ** 0.5)
    return x + step * signs


def exact_size(clean: Any, adversarial: Any, norm: type[Ball]) -> Fraction:
    """The largest change, or the square of the Euclidean length, in whole numbers."""
    pairs = zip(adversarial.ravel().tolist(), clean.ravel().tolist(), strict=True)
    changes = [abs(Fraction(a) - Fraction(b)) for a, b in pairs]
    return max(changes) if norm is Linf else sum((change**2 for change in changes), Fraction(0))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["drawn", "constant"])
@pytest.mark.parametrize("clip_values", RANGES, ids=str)
def test_what_is_added_in_float32_is_inside_and_a_thousandth_more_is_not(
    clip_values: tuple[float, float], kind: str, norm: type[Ball]
) -> None:
    low, high = clip_values
    eps = 8e-4 * (high - low)  # 3.3 Hounsfield units of 4,095
    eps *= 1.0 if norm is Linf else 8.0
    x = images(low, high, kind)
    for known_range in (clip_values, None):
        assert (norm(eps).sizes(x, added(x, eps, norm), known_range) <= eps * (1 + 1e-5)).all()
        assert (norm(eps).sizes(x, added(x, 1.001 * eps, norm), known_range) > eps * (1 + 1e-5)).all()


def test_there_is_something_to_forgive() -> None:
    x = images(-1024, 3071, "drawn")
    sizes = [exact_size(*pair, Linf) for pair in zip(x, added(x, 3.3, Linf), strict=True)]
    assert max(sizes) > Fraction(3.3) * Fraction(100_001, 100_000)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("clip_values", RANGES, ids=str)
def test_what_rounding_left_outside_is_moved_in_by_its_last_place(
    clip_values: tuple[float, float], norm: type[Ball]
) -> None:
    low, high = clip_values
    eps = 8e-4 * (high - low) * (1.0 if norm is Linf else 8.0)
    x = images(low, high, "drawn")
    before = added(x, eps, norm)
    moved = norm(eps).moved_inside(x, before, clip_values)
    limit = Fraction(eps) ** (1 if norm is Linf else 2)
    assert all(exact_size(*pair, norm) <= limit for pair in zip(x, moved, strict=True))
    assert (np.abs(moved - before) <= 2 * np.spacing(np.float32(max(abs(low), abs(high))))).all()


ATTACKS: list[tuple[type[TensorAttack], dict[str, Any]]] = [
    (AutoPGD, {"max_iter": 10}),
    (AnnealedPGD, {"max_iter": 5}),
    (MarginPGD, {"max_iter": 5}),
    (StagedPGD, {}),
    (Square, {"max_queries": 50}),
    (RandomNoise, {"nb_draws": 5}),
    (IterativeFGSM, {"max_iter": 1}),
]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("attack", "options"), ATTACKS, ids=lambda value: getattr(value, "__name__", ""))
def test_attacks_return_points_of_the_ball_to_the_last_bit(
    attack: type[TensorAttack], options: dict[str, Any], norm: type[Ball]
) -> None:
    """On a network that no attack breaks, so that all of them go to the edge."""
    low, high, eps = -1024.0, 3071.0, 3.3
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), SHAPE, 3, clip_values=(low, high), device_type="cpu")
    x = images(low, high, "drawn")
    y = classifier.predict(x).argmax(axis=1)
    radius = {"eps_step": eps} if attack is IterativeFGSM else {"eps": eps}
    adversarial = attack(classifier, norm=norm, **radius, **options).generate(x, y)
    limit = Fraction(eps) ** (1 if norm is Linf else 2)
    sizes = [exact_size(*pair, norm) for pair in zip(x, adversarial, strict=True)]
    assert max(sizes) <= limit
    assert max(sizes) > 0
