"""Training images against closed forms on linear networks, a recursion in numpy and ART's own attacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from hypothesis import given, strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.training.inputs import (
    INPUTS,
    Clean,
    GaussianNoise,
    Networks,
    SignedGradient,
    TrainingInput,
    bim,
    ffgsm,
    fgsm,
    mim,
    mixture,
    pgd,
)
from art_defenses_ext.zoo.catalogue import MODELS
from art_defenses_ext.zoo.datasets import Dataset

SHAPE = (3, 4, 5)
EPS = 0.1

ATTACKS: dict[str, Callable[[float], SignedGradient]] = {
    "fgsm": fgsm,
    "ffgsm": ffgsm,
    "bim": bim,
    "mim": mim,
    "pgd": pgd,
}

attacks = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_batch(count: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images that touch both ends of [0, 1], and labels of three classes."""
    x = torch.rand(count, *SHAPE, generator=noise(seed), dtype=torch.float64)
    return (1.2 * x - 0.1).clamp(0, 1), torch.arange(count) % 3


def around(network: Callable[[Tensor], Tensor], low: float = 0.0, high: float = 1.0) -> Networks:
    return Networks(network, network, (low, high))


def linear(nb_classes: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(60, nb_classes)).double()


def smooth() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2)
        return nn.Sequential(nn.Flatten(), nn.Linear(60, 16), nn.Softplus(), nn.Linear(16, 3)).double()


def gradient(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of each image's cross-entropy with a linear network: (p - e_y) W."""
    weight = network[1].weight
    return ((network(x).softmax(dim=1) - F.one_hot(y, len(weight))) @ weight).detach().reshape(x.shape)


# One step and many


def test_noise_has_the_deviation_asked_for_and_is_clipped() -> None:
    x = torch.full((2, 3, 100, 100), 0.5)
    noisy = GaussianNoise(0.1)(x, torch.zeros(2), around(linear()), noise())
    assert (noisy - x).std().item() == pytest.approx(0.1, rel=0.01)
    assert (noisy - x).mean().item() == pytest.approx(0, abs=0.002)
    assert noisy.dtype == x.dtype
    clipped = GaussianNoise(1.0)(x, torch.zeros(2), around(linear(), 0.45, 0.6), noise())
    torch.testing.assert_close(clipped, (0.5 + 1.5 * (noisy - 0.5)).clamp(0.45, 0.6))  # the range is 0.15 wide
    unclipped = GaussianNoise(0.1)(x, torch.zeros(2), around(linear(), -9.5, 10.5), noise())
    assert (unclipped - x).std().item() == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("clip_values", [(0.0, 1.0), (0.2, 0.7)])
def test_fgsm_is_one_step_along_the_sign(clip_values: tuple[float, float]) -> None:
    network, (x, y) = linear(), draw_batch()
    x = x.clamp(*clip_values)
    adversarial = fgsm(EPS)(x, y, around(network, *clip_values), noise())
    eps = EPS * (clip_values[1] - clip_values[0])
    expected = (x + eps * gradient(network, x, y).sign()).clamp(*clip_values)
    torch.testing.assert_close(adversarial, expected, rtol=0, atol=1e-15)


@attacks
@pytest.mark.parametrize("clip_values", [(0.0, 1.0), (-1.5, 0.9)])
def test_every_attack_stays_in_the_ball_and_the_clip_range(
    attack: Callable[[float], SignedGradient], clip_values: tuple[float, float]
) -> None:
    x, y = draw_batch(30)
    x = x.clamp(*clip_values)
    for network in (linear(), smooth()):
        adversarial = attack(EPS)(x, y, around(network, *clip_values), noise())
        assert (adversarial - x).abs().max() <= EPS * (clip_values[1] - clip_values[0]) + 1e-15
        assert adversarial.min() >= clip_values[0]
        assert adversarial.max() <= clip_values[1]
        assert not torch.equal(adversarial, x)


@attacks
def test_of_two_classes_on_a_linear_network_every_attack_but_ffgsm_ends_in_the_corner(
    attack: Callable[[float], SignedGradient],
) -> None:
    """The gradient's sign is that of the other class's weights less the own one's, wherever the image is."""
    network, (x, y) = linear(nb_classes=2), draw_batch()
    y = y % 2
    weight = network[1].weight.detach()
    corner = (x + EPS * (weight[1 - y] - weight[y]).sign().reshape(x.shape)).clamp(0, 1)
    adversarial = attack(EPS)(x, y, around(network), noise())
    if attack is not ffgsm:
        torch.testing.assert_close(adversarial, corner, rtol=0, atol=1e-15)
        return
    # One step of 1.25 eps from anywhere: in 5 of 8 pixels it reaches the corner, and never less than eps / 4.
    reached = ((adversarial - corner).abs() < 1e-12).double().mean().item()
    assert 0.5 < reached < 0.8
    unclipped = (corner - x).abs() == EPS
    assert ((adversarial - x) * (corner - x).sign())[unclipped].min() >= EPS / 4 - 1e-15


@pytest.mark.parametrize("decay", [0.3, 1.0])
def test_mim_is_its_recursion_written_out(decay: float) -> None:
    """Dong et al. 2018, equations 6 and 7, with the projection of each step."""
    network, (x, y) = linear(), draw_batch()
    weight, bias = (tensor.detach().numpy() for tensor in network[1].parameters())
    clean, labels, steps = x.numpy().reshape(len(x), -1), y.numpy(), 7

    def slope(images: FloatArray) -> FloatArray:
        logits = images @ weight.T + bias
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        residuals: FloatArray = odds / odds.sum(axis=1, keepdims=True) - np.eye(3)[labels]
        return residuals @ weight

    # The weights are scaled up so that the gradient turns on its way, and the momentum matters.
    weight *= 30
    current, momentum = clean, np.zeros_like(clean)
    for _ in range(steps):
        gradient = slope(current)
        momentum = decay * momentum + gradient / np.abs(gradient).sum(axis=1, keepdims=True)
        current = np.clip(np.clip(current + EPS / steps * np.sign(momentum), clean - EPS, clean + EPS), 0, 1)
    adversarial = SignedGradient(EPS, EPS / steps, steps, decay=decay)(x, y, around(network), noise())
    np.testing.assert_allclose(adversarial.numpy().reshape(len(x), -1), current, rtol=0, atol=1e-14)
    if decay == 1:
        assert torch.equal(adversarial, mim(EPS, steps)(x, y, around(network), noise()))
        assert not torch.allclose(adversarial, bim(EPS, steps)(x, y, around(network), noise()))


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd without a start"])
def test_art_s_attacks_make_the_same_images(name: str, digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    x, y = digits.test.x[:40], digits.test.y[:40]
    ours, theirs = {
        "fgsm": (fgsm(EPS), FastGradientMethod(digits_classifier, eps=EPS)),
        "bim": (bim(EPS, 8), projected(digits_classifier, EPS / 8, 8)),
        "pgd without a start": (SignedGradient(EPS, 0.03, 9), projected(digits_classifier, 0.03, 9)),
    }[name]
    mean, std = MODELS["digits_cnn"].mean[0], MODELS["digits_cnn"].std[0]

    def logits(x: Tensor) -> Tensor:
        result: Tensor = digits_classifier.model((x - mean) / std)
        return result

    adversarial = ours(torch.from_numpy(x), torch.from_numpy(y), around(logits), noise()).numpy()
    expected = theirs.generate(x, np.eye(10, dtype=np.float32)[y])
    # A sign may differ where float32 cannot tell the gradient from zero, and all that follows in that image with it.
    agree = np.abs(adversarial - expected).reshape(len(x), -1).max(axis=1) < 1e-6
    assert agree.mean() >= 0.95
    assert np.abs(expected - x).max() == pytest.approx(EPS, rel=1e-5)


def projected(classifier: PyTorchClassifier, step: float, steps: int) -> ProjectedGradientDescentPyTorch:
    return ProjectedGradientDescentPyTorch(
        classifier, norm=np.inf, eps=EPS, eps_step=step, max_iter=steps, num_random_init=0, verbose=False
    )


# Where an attack starts, and through what it goes


def test_a_random_start_is_spread_evenly_over_the_ball_and_comes_from_the_given_noise() -> None:
    start = SignedGradient(EPS, 1e-12, random_start=True)
    x = torch.full((2, 3, 100, 100), 0.5, dtype=torch.float64)
    flat = around(lambda x: x.flatten(1)[:, :3])
    started = start(x, torch.tensor([0, 1]), flat, noise())
    shift = (started - x).flatten().sort().values
    torch.testing.assert_close(shift, torch.linspace(-EPS, EPS, len(shift), dtype=torch.float64), rtol=0, atol=0.002)
    assert torch.equal(start(x, torch.tensor([0, 1]), flat, noise()), started)
    assert not torch.equal(start(x, torch.tensor([0, 1]), flat, noise(1)), started)


def test_an_attack_without_a_random_start_draws_nothing() -> None:
    x, y = draw_batch()
    generator = noise()
    before = generator.get_state(), torch.get_rng_state()
    for attack in (fgsm(EPS), bim(EPS), mim(EPS)):
        attack(x, y, around(linear()), generator)
    assert torch.equal(generator.get_state(), before[0])
    pgd(EPS)(x, y, around(linear()), generator)
    assert not torch.equal(generator.get_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_end_to_end_means_through_the_defended_network() -> None:
    network, (x, y) = smooth(), draw_batch()
    bare, defended = network, lambda x: network(x.flip(3) ** 2)
    for steps in (1, 4):
        end_to_end = SignedGradient(EPS, EPS / 2, steps, through="defence")
        adversarial = end_to_end(x, y, Networks(bare, defended, (0, 1)), noise())
        assert torch.equal(adversarial, SignedGradient(EPS, EPS / 2, steps)(x, y, around(defended), noise()))
        assert not torch.equal(adversarial, SignedGradient(EPS, EPS / 2, steps)(x, y, around(bare), noise()))
    slope = torch.autograd.functional.jacobian(lambda x: F.cross_entropy(defended(x), y, reduction="sum"), x)
    adversarial = SignedGradient(EPS, EPS, through="defence")(x, y, Networks(bare, defended, (0, 1)), noise())
    torch.testing.assert_close(adversarial, (x + EPS * slope.sign()).clamp(0, 1), rtol=0, atol=1e-15)
    assert INPUTS["end_to_end"](EPS) == pgd(EPS, through="defence")


@attacks
def test_an_attack_leaves_images_and_networks_as_they_were(attack: Callable[[float], SignedGradient]) -> None:
    network, (x, y) = smooth(), draw_batch()
    values = x.clone()
    x.requires_grad_()
    adversarial = attack(EPS)(x, y, around(network), noise())
    with torch.no_grad():
        assert torch.equal(attack(EPS)(x, y, around(network), noise()), adversarial)
    assert torch.equal(x.detach(), values)
    assert x.grad is None
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_named_kinds_are_what_their_papers_say() -> None:
    assert fgsm(0.2) == SignedGradient(0.2, 0.2)
    assert ffgsm(0.2) == SignedGradient(0.2, 0.25, random_start=True)
    assert bim(0.2, 4) == SignedGradient(0.2, 0.05, 4)
    assert mim(0.2, 4) == SignedGradient(0.2, 0.05, 4, decay=1.0)
    assert pgd(0.2, 4) == SignedGradient(0.2, 0.125, 4, random_start=True)
    inputs = {name: make(0.2) for name, make in INPUTS.items()}
    assert inputs == {
        "clean": Clean(),
        "noise": GaussianNoise(0.2),
        "fgsm": fgsm(0.2),
        "ffgsm": ffgsm(0.2),
        "bim": bim(0.2),
        "mim": mim(0.2),
        "pgd": pgd(0.2),
        "end_to_end": pgd(0.2, through="defence"),
    }


# Mixtures


def marked(number: int, labels_seen: dict[int, Tensor] | None = None) -> TrainingInput:
    """A kind that adds its number to the images, and keeps the labels that it saw."""

    def make(x: Tensor, y: Tensor, networks: Networks, noise: torch.Generator) -> Tensor:
        assert torch.equal(x.flatten(1)[:, 0], y.double())
        if labels_seen is not None:
            labels_seen[number] = y
        return (x + 100 * number).requires_grad_()

    return make


@given(count=st.integers(1, 20), nb_kinds=st.integers(1, 7))
def test_a_batch_is_dealt_out_evenly_image_by_image(count: int, nb_kinds: int) -> None:
    labels, labels_seen = torch.arange(count), {}
    images = labels.double().reshape(-1, 1, 1, 1).expand(-1, *SHAPE)
    mixed = mixture([marked(number, labels_seen) for number in range(nb_kinds)], EPS)(
        images, labels, around(linear()), noise()
    )
    assert torch.equal(mixed, images + 100 * (labels % nb_kinds).double().reshape(-1, 1, 1, 1))
    assert {number: y.tolist() for number, y in labels_seen.items()} == {
        number: list(range(number, count, nb_kinds)) for number in range(min(count, nb_kinds))
    }
    assert not mixed.requires_grad


def test_a_mixture_of_names_makes_what_they_stand_for() -> None:
    network, (x, y) = smooth(), draw_batch(7)
    mixed = mixture(["clean", "fgsm", mim(2 * EPS)], EPS)(x, y, around(network), noise())
    assert torch.equal(mixed[::3], x[::3])
    assert torch.equal(mixed[1::3], fgsm(EPS)(x[1::3], y[1::3], around(network), noise()))
    assert torch.equal(mixed[2::3], mim(2 * EPS)(x[2::3], y[2::3], around(network), noise()))


# Refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianNoise(0.0), "sigma is 0.0; a finite number > 0"),
        (lambda: SignedGradient(0.0, 0.1), "eps is 0.0; a share of the clip range, at most 1, was"),
        (lambda: SignedGradient(0.1, -1), "step is -1; a finite number > 0"),
        (lambda: SignedGradient(0.1, 0.1, decay=0), "decay is 0; a finite number > 0"),
        (lambda: SignedGradient(0.1, 0.1, through="both"), "through is 'both'; one of classifier, defence"),
        (lambda: bim(0.1, 0), "nb_steps is 0; a whole number"),
        (lambda: pgd("0.1"), "eps is '0.1'; a share of"),
        (lambda: mixture(["clean"], 0.0), "eps is 0.0; a share of the clip range, at most 1, was"),
        (lambda: mixture([], EPS), r"inputs is \[\]; a list of clean, noise, .*, or of functions was expected"),
        (lambda: mixture("clean", EPS), "inputs is 'clean'; a list of"),
        (
            lambda: mixture(["clean", "cw"], EPS),
            r"inputs is .*'cw'.*; a list of clean, noise, fgsm",
        ),
        (lambda: mixture(["clean", 3], EPS), r"inputs is .*3\]; a list of clean"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
