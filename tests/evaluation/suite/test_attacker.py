"""What an attacker is given in place of a defended classifier."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.detector.evasion import BinaryInputDetector
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext import L2, JumpReLU, Linf, Surrogate, as_module, defend, gradient_mode, rejecting
from art_defenses_ext.estimator.averaged import averages, one_pass
from art_defenses_ext.estimator.rebuild import rebuild
from art_defenses_ext.estimator.rejecting import rejects
from art_defenses_ext.evaluation.records.costs import measured
from art_defenses_ext.evaluation.suite.attacker import (
    EOT_DRAWS,
    VOTES,
    Attacker,
    averaged,
    is_random,
    smoothed,
    with_surrogates,
)
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.gradients.modes import find_defences, gradient_modes
from art_defenses_ext.zoo.datasets import Dataset

THREAT = Linf(0.1)


class Rounding(PreprocessorPyTorch):
    def __init__(self) -> None:
        super().__init__(is_fitted=True, apply_fit=False, apply_predict=True)

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        return torch.round(4 * x) / 4, y


class Noise(Rounding):
    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        return x + 0.3 * torch.randn_like(x), y


def compute_logits(classifier: PyTorchClassifier, x: np.ndarray) -> Tensor:
    with torch.no_grad():
        return as_module(classifier)(torch.tensor(x))


def test_foreign_preprocessors_get_a_surrogate_and_ours_are_left_alone(
    digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    surrogate = Surrogate(Rounding(), torch.tanh)
    defended = defend(digits_classifier, surrogate, Rounding())
    exposed = with_surrogates(defended)
    first, second = exposed.preprocessing_defences
    assert first is surrogate
    assert isinstance(second, Surrogate)
    assert gradient_modes(exposed) == ("exact+exact", "exact+surrogate", "surrogate+exact", "surrogate+surrogate")
    assert torch.equal(compute_logits(exposed, digits.test.x[:5]), compute_logits(defended, digits.test.x[:5]))
    assert not isinstance(defended.preprocessing_defences[1], Surrogate)
    assert with_surrogates(digits_classifier) is digits_classifier


def test_only_passes_that_differ_make_a_defence_random(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    x = digits.test.x[:5]
    assert not is_random(digits_classifier, x, 0)
    assert not is_random(defend(digits_classifier, Rounding()), x, 0)
    before = torch.get_rng_state()
    assert is_random(defend(digits_classifier, Noise()), x, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e4])
def test_randomness_is_seen_in_logits_of_any_size(
    scale: float, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    """The classes, and an attacker's success, are the same whatever all logits are multiplied by."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = digits_classifier.model

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = scale * self.model(x)
            return logits

    scaled = rebuild(digits_classifier, model=Scaled().eval())
    assert is_random(defend(scaled, Noise()), digits.test.x[:5], 0)
    assert not is_random(scaled, digits.test.x[:5], 0)


def test_an_adaptive_attacker_has_every_mode_and_a_naive_one_the_exact_gradient(
    digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    defended = defend(JumpReLU(digits_classifier, 1.0)(), Noise())
    x = digits.test.x[:5]
    adaptive = Attacker.of(defended, x, THREAT, adaptive=True, seed=0)
    assert adaptive.modes == tuple(f"{a}+{b}" for a in ("exact", "surrogate") for b in ("exact", "relu", "smooth"))
    assert adaptive.annealable == ("exact+smooth", "surrogate+smooth")
    assert (adaptive.draws, adaptive.votes, adaptive.withheld) == (EOT_DRAWS, VOTES, ())
    naive = Attacker.of(defended, x, THREAT, adaptive=False, seed=0)
    assert (naive.modes, naive.annealable, naive.draws, naive.votes) == (("exact",), (), 1, VOTES)
    assert naive.withheld == adaptive.modes[1:]


def test_modes_keep_their_order_in_the_attacked_classifier(
    digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    """The averaged network lists its defences as the classifier does: preprocessors first."""
    defended = defend(JumpReLU(digits_classifier, 1.0)(), Noise())
    attacker = Attacker.of(defended, digits.test.x[:5], THREAT, adaptive=True, seed=0)
    assert gradient_modes(attacker.attacked) == attacker.modes
    with gradient_mode(attacker.attacked, "surrogate+smooth"):
        assert [defence.gradient_mode for defence in find_defences(attacker.attacked)] == ["surrogate", "smooth"]


def test_the_average_converges_to_the_expectation(linear_classifier: Any) -> None:
    """For a linear network under noise of mean zero it is the network itself, forwards and backwards."""
    weight = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    classifier = linear_classifier(weight, np.zeros(3, np.float32), (8,))
    noisy = defend(classifier, Noise())
    x = torch.rand(4, 8, requires_grad=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = as_module(averaged(noisy, 4000))
        out = module(x)
    torch.testing.assert_close(out, as_module(classifier)(x), atol=0.1, rtol=0)
    (gradient,) = torch.autograd.grad(out[:, 0].sum(), x)
    torch.testing.assert_close(gradient, torch.tensor(weight[0]).expand(4, 8), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("threat", "sigma"), [(Linf(0.1), 0.1), (L2(0.8), 0.1)])
def test_the_smoothed_network_predicts_the_same_and_spreads_its_noise_like_the_threat(
    threat: Threat, sigma: float, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    defended = defend(digits_classifier, Rounding())
    smoothed_classifier = smoothed(defended, threat)
    assert torch.equal(
        compute_logits(smoothed_classifier, digits.test.x[:5]), compute_logits(defended, digits.test.x[:5])
    )
    (surrogate,) = [defence for defence in find_defences(smoothed_classifier) if isinstance(defence, Surrogate)]
    assert surrogate.sigma == pytest.approx(sigma)  # an image has 64 pixels
    x = torch.tensor(digits.test.x[:5], requires_grad=True)
    (gradient,) = torch.autograd.grad(as_module(smoothed_classifier)(x)[:, 0].sum(), x)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()  # through the rounding, where autograd finds none


class Stepped(nn.Module):
    """A detector whose score is a step of the pixels' mean: no gradient passes."""

    def forward(self, x: Tensor) -> Tensor:
        score = torch.sign(x.flatten(1).mean(dim=1) - 0.3)
        return torch.stack([torch.zeros_like(score), score], dim=1)


def test_an_averaged_or_smoothed_classifier_still_rejects(
    digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    """The logits stay; the detector's score is smoothed by itself, since the last logit is of another kind."""
    binary_classifier = PyTorchClassifier(
        Stepped(), nn.CrossEntropyLoss(), (1, 8, 8), 2, clip_values=(0, 1), device_type="cpu"
    )
    rejecting_classifier = rejecting(digits_classifier, BinaryInputDetector(binary_classifier))
    x = digits.test.x[:40]
    expected_logits = compute_logits(rejecting_classifier, x)
    assert 0 < (expected_logits.argmax(dim=1) == 10).sum() < len(x)
    for stand_in in (averaged(rejecting_classifier, 3), smoothed(rejecting_classifier, Linf(0.3))):
        assert rejects(stand_in)
        assert torch.allclose(compute_logits(stand_in, x), expected_logits, rtol=1e-4, atol=1e-4)
    network = smoothed(rejecting_classifier, Linf(0.3)).model
    images = torch.tensor(x).requires_grad_()
    _, margin = network.parts(images)
    (slope,) = torch.autograd.grad(margin.sum(), images)
    assert slope.abs().sum() > 0
    assert (slope.flatten(1).mean(dim=1) > 0).float().mean() > 0.6  # brighter is more suspicious


@pytest.mark.parametrize("kind", ["float32", "float64", "rejecting"])
def test_one_pass_is_one_pass_behind_every_wrapper(
    kind: str, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    noisy = PyTorchClassifier(
        copy.deepcopy(as_module(digits_classifier)), nn.CrossEntropyLoss(), (1, 8, 8), 10,
        clip_values=(0, 1), device_type="cpu",
    )  # fmt: skip
    noisy = defend(noisy, Noise())
    if kind == "float64":
        noisy = rebuild(noisy, model=noisy.model.double(), preprocessing_defences=[Noise()])
    if kind == "rejecting":
        binary = PyTorchClassifier(
            Stepped(), nn.CrossEntropyLoss(), (1, 8, 8), 2, clip_values=(0, 1), device_type="cpu"
        )
        noisy = rejecting(noisy, BinaryInputDetector(binary))
    x = digits.test.x[:3]
    attacked = Attacker.of(noisy, x, THREAT, adaptive=True, seed=0).attacked
    for target, passes in ((attacked, EOT_DRAWS), (one_pass(attacked), 1)):
        assert averages(target.model) == (passes > 1)
        assert rejects(target) == (kind == "rejecting")
        with measured(noisy) as cost, torch.no_grad():
            as_module(target)(torch.tensor(x))
        assert cost.forward == passes * len(x)
