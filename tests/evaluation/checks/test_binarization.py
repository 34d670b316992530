"""The binarization test: the planted example exists, chance does not find it, and a blind attack fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext import L2, JumpReLU, Linf
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.losses import margin, only_pair
from art_defenses_ext.attack.random_noise import RandomNoise
from art_defenses_ext.estimator.rebuild import rebuild
from art_defenses_ext.evaluation.checks import binarization
from art_defenses_ext.evaluation.checks.binarization import binarization_test, last_linear
from art_defenses_ext.evaluation.suite.suites import FAST
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.zoo.datasets import Dataset

THREATS: list[Threat] = [Linf(0.1), L2(0.6)]
WHITE = (FAST[0].build, "exact")


def build_blind_attack(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    return RandomNoise(classifier, threat.norm, threat.eps, nb_draws=20, seed=seed)


def build_attack_outside_the_ball(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    return FAST[0].build(classifier, threat.at(3 * threat.eps), seed)


@pytest.mark.parametrize("threat", THREATS)
def test_a_working_attack_finds_planted_examples_and_a_blind_one_does_not(
    threat: Threat, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    x = digits.test.x[:10]
    works = binarization_test(digits_classifier, x, threat, [WHITE], 0)
    fails = binarization_test(digits_classifier, x, threat, [(build_blind_attack, "exact")], 0)
    assert works is not None
    assert fails is not None
    assert works.built.rate == 1
    assert works.found.rate >= 0.9
    assert max(works.by_chance.rate, fails.found.rate, fails.by_chance.rate) <= 0.1


@pytest.mark.parametrize("images", [1, 5])
def test_the_dlr_loss_finds_planted_examples_with_two_logits(
    images: int, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    """The loss of three logits would divide by an infinite spread, and a good attack would be called too weak."""
    tries: list[binarization.Try] = [(lambda c, t, s: AutoPGD(c, t.norm, t.eps, loss="dlr", seed=s), "exact")]
    result = binarization_test(digits_classifier, digits.test.x[:images], Linf(0.1), tries, 0)
    assert result is not None
    assert result.found.rate >= 0.9


def test_examples_outside_the_clip_range_do_not_count(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    def build_unclipped(classifier: Any, threat: Threat, seed: int) -> EvasionAttack:
        return AutoPGD(rebuild(classifier, clip_values=None), threat.norm, threat.eps, seed=seed)

    result = binarization_test(digits_classifier, digits.test.x[:5], Linf(0.1), [(build_unclipped, "exact")], 0)
    assert result is not None
    assert result.found.count == 0


def test_examples_outside_the_ball_do_not_count(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    result = binarization_test(
        digits_classifier, digits.test.x[:6], Linf(0.1), [(build_attack_outside_the_ball, "exact")], 0
    )
    assert result is not None
    assert result.found.count < 3


def make_heads(classifier: PyTorchClassifier, x: Any) -> tuple[nn.Linear, list[binarization.Head]]:
    layer = last_linear(classifier, x[:1])
    assert layer is not None
    heads = [binarization._head(classifier, layer, image, Linf(0.1), seed) for seed, image in enumerate(x)]
    assert None not in heads
    return layer, [head for head in heads if head is not None]


@pytest.fixture(scope="module")
def binary(digits_classifier: PyTorchClassifier, digits: Dataset) -> PyTorchClassifier:
    """Problems of the first six digits; every other one is put out of reach."""
    layer, heads = make_heads(digits_classifier, digits.test.x[:6])
    heads = [(weight, bias - 1e3 * (i % 2)) for i, (weight, bias) in enumerate(heads)]
    return binarization._binary(digits_classifier, layer, heads)


@pytest.mark.parametrize("attack", ["ours", "smoothed", "ART's"])
def test_problems_solved_side_by_side_do_not_mix(attack: str, binary: PyTorchClassifier, digits: Dataset) -> None:
    """Only the problems out of reach stay unsolved, and a single one keeps its scores."""
    x = digits.test.x[:6]
    tries: dict[str, binarization.Try] = {
        "ours": WHITE,
        "smoothed": (FAST[0].build, None),
        "ART's": (lambda c, t, s: ProjectedGradientDescent(c, t.norm, t.eps, t.eps / 5, 40, verbose=False), "exact"),
    }
    broken = binarization._broken(binary, x, Linf(0.1), [tries[attack]], 0)
    assert broken[1::2] == [False] * 3
    assert sum(broken) >= 2
    selected, images = binarization._select(binary, 4), torch.tensor(x)
    scores = binarization._scores(binary, images)[:, 4]
    np.testing.assert_allclose(binarization._scores(selected, images)[:, 0], scores, rtol=1e-4)


def test_only_the_pair_of_logits_counts() -> None:
    logits = torch.tensor([[1.0, 2.0, 9.0, -3.0], [1.0, 2.0, 9.0, -3.0]], requires_grad=True)
    y = torch.tensor([0, 3])
    pair_logits = only_pair(logits, y)
    assert margin(pair_logits, y).tolist() == [-1.0, -12.0]
    torch.nn.functional.cross_entropy(pair_logits, y).backward()
    assert logits.grad is not None
    assert logits.grad[0, 2:].tolist() == logits.grad[1, :2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("threat", THREATS)
def test_the_planted_point_alone_crosses_the_boundary(
    threat: Threat, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    """The surface point is called 1, the clean image and a thousand others inside are called 0."""
    image = digits.test.x[0]
    layer = last_linear(digits_classifier, image[None])
    assert layer is not None
    head = binarization._head(digits_classifier, layer, image, threat, seed=5)
    assert head is not None
    binary = binarization._binary(digits_classifier, layer, [head])
    generator = torch.Generator().manual_seed(5)
    clean = torch.tensor(image)[None]
    inside = clean.expand(binarization.INNER_POINTS, *image.shape)
    inside = inside + threat.at(binarization.INNER_RADIUS * threat.eps).random_inside(inside, generator)
    surface = binarization._on_surface(clean, threat, (0.0, 1.0), generator)
    points = torch.cat([surface, clean, inside]).clamp(0, 1).numpy()
    np.testing.assert_array_equal(points[:1], surface)
    assert binary.predict(points).argmax(axis=1).tolist() == [1] + [0] * (1 + binarization.INNER_POINTS)
    size = np.linalg.norm((surface.numpy() - image).ravel(), ord=threat.norm)
    assert size == pytest.approx(threat.eps, rel=1e-6)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.6), L2(2.0)], ids=str)
@pytest.mark.parametrize("clip_values", [(0.0, 1.0), (-1024.0, 3071.0), None], ids=str)
def test_the_planted_point_lies_on_the_surface_and_in_the_clip_range(
    clip_values: tuple[float, float] | None, threat: Threat, digits: Dataset
) -> None:
    """Most pixels of a digit are black or white, and half of all directions lead out of the range there."""
    low, high = clip_values or (0.0, 1.0)
    images = torch.tensor(low + (high - low) * digits.test.x[:10]).float()
    ball = threat.at(threat.eps * (high - low))
    for seed, image in enumerate(images):
        clean = image[None]
        point = binarization._on_surface(clean, ball, clip_values, torch.Generator().manual_seed(seed))
        if clip_values is not None:
            assert low <= point.min()
            assert point.max() <= high
        size = np.linalg.norm((point.double() - clean.double()).numpy().ravel(), ord=ball.norm)
        assert size == pytest.approx(ball.eps, rel=1e-5)
        assert size <= ball.eps


def test_where_the_clip_range_ends_inside_the_ball_the_furthest_corner_is_planted() -> None:
    """From (.2, .5, .9) the corner (1, 0 or 1, 0) is sqrt(.8^2 + .5^2 + .9^2) = 1.304 away, and all others nearer."""
    clean = torch.tensor([[0.2, 0.5, 0.9]])
    for threat in (L2(1.31), L2(5.0), Linf(0.95)):
        for seed in range(8):
            point = binarization._on_surface(clean, threat, (0.0, 1.0), torch.Generator().manual_seed(seed))
            assert point[0, [0, 2]].tolist() == [1.0, 0.0]
            assert point[0, 1].item() in (0.0, 1.0)


def test_gradient_modes_and_smoothing_reach_the_defence_inside(
    digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    defended = JumpReLU(digits_classifier, 0.7)()
    for mode in ("smooth", None):
        result = binarization_test(defended, digits.test.x[:4], Linf(0.1), [(FAST[0].build, mode)], 0)
        assert result is not None
        assert result.found.total == 4
        assert result.found.count >= 2


def test_networks_without_a_last_linear_layer_have_no_binarization_test(digits: Dataset) -> None:
    convolution = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    squashed = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Unflatten(1, (10, 2)), nn.AvgPool1d(2))
    squashed.append(nn.Flatten())
    for model in (convolution, squashed):
        classifier: Any = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu")
        assert last_linear(classifier, digits.test.x[:1]) is None
        assert binarization_test(classifier, digits.test.x[:2], Linf(0.1), [WHITE], 0) is None


def test_the_network_is_left_as_it_was(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    before = digits_classifier.predict(digits.test.x[:5])
    binarization_test(digits_classifier, digits.test.x[:2], Linf(0.1), [WHITE], 0)
    np.testing.assert_array_equal(digits_classifier.predict(digits.test.x[:5]), before)
    hooks = [
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in digits_classifier.model.modules()
    ]
    assert sum(hooks) == 0
