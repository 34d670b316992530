"""Gradients whose flaws are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext import L2, JumpReLU, Linf
from art_defenses_ext.evaluation.checks.gradient_health import examine_gradients
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.zoo.datasets import Dataset


class Bent(nn.Module):
    """A linear network whose logits pass through something that a test chooses."""

    def __init__(self, bend: Any) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 8, generator=generator))
        self.bend = bend

    def forward(self, x: Tensor) -> Tensor:
        return self.bend(x @ self.weight.T)


def make_classifier(bend: Any) -> PyTorchClassifier:
    return PyTorchClassifier(Bent(bend), nn.CrossEntropyLoss(), (8,), 3, clip_values=(0, 1), device_type="cpu")


def add_nan_gradient(z: Tensor) -> Tensor:
    return z + 0 * torch.sqrt((z - z.detach()) ** 2)  # the root has an infinite slope at zero


FLAWS = {
    "zero": lambda z: torch.round(100 * z),
    "not_finite": add_nan_gradient,
    "vanishing": lambda z: z.detach() + 1e-7 * z,
}
X = np.random.default_rng(0).uniform(size=(20, 8)).astype(np.float32)
Y = np.arange(20) % 3


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.3)])
def test_a_linear_network_is_faithful_everywhere(threat: Threat) -> None:
    (health,) = examine_gradients(make_classifier(lambda z: z), X, Y, threat, ("exact",), 0)
    assert (health.points, health.zero, health.not_finite, health.vanishing) == (40, 0, 0, 0)
    assert health.faithful >= 36  # but where a step changes the runner-up
    assert health.is_faithful
    assert all(health.useful)


@pytest.mark.parametrize(("flaw", "bend"), FLAWS.items())
def test_each_flaw_is_counted_at_every_point(flaw: str, bend: Any) -> None:
    (health,) = examine_gradients(make_classifier(bend), X, Y, Linf(0.1), ("exact",), 0)
    assert getattr(health, flaw) == health.points == 40
    assert sum(getattr(health, other_flaw) for other_flaw in FLAWS if other_flaw != flaw) == 0
    assert not any(health.useful)
    assert not health.is_faithful


def test_a_zero_gradient_differs_from_a_missing_graph() -> None:
    """Rounding has a gradient of zero; a forward pass under no_grad, or one that ignores the image, has none."""

    def without_grad(z: Tensor) -> Tensor:
        with torch.no_grad():
            return 2 * z

    bias = nn.Parameter(torch.tensor([0.0, 1.0, 2.0]))

    def ignore_input(z: Tensor) -> Tensor:
        return torch.zeros_like(z) + bias

    for bend, count in ((FLAWS["zero"], 0), (without_grad, 40), (ignore_input, 40)):
        (health,) = examine_gradients(make_classifier(bend), X, Y, Linf(0.1), ("exact",), 0)
        assert (health.zero, health.no_graph) == (40, count)


def test_gradients_are_examined_under_the_caller_s_no_grad() -> None:
    classifier = make_classifier(lambda z: z)
    with torch.inference_mode():
        (health,) = examine_gradients(classifier, X, Y, Linf(0.1), ("exact",), 0)
    assert (health.zero, health.no_graph) == (0, 0)


def test_a_gradient_of_the_wrong_size_is_not_faithful() -> None:
    """A straight-through step forwards, ten times its slope backwards."""
    (health,) = examine_gradients(make_classifier(lambda z: z + 9 * (z - z.detach())), X, Y, Linf(0.1), ("exact",), 0)
    assert (health.faithful, health.is_faithful) == (0, False)
    assert all(health.useful)


def test_a_random_defence_is_compared_under_the_same_numbers() -> None:
    (health,) = examine_gradients(make_classifier(lambda z: z + torch.randn_like(z)), X, Y, Linf(0.1), ("exact",), 0)
    assert health.is_faithful


def test_the_jump_s_exact_gradient_is_unfaithful_and_its_smooth_surrogate_faithful(
    digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    defended = JumpReLU(digits_classifier, 0.7)()
    x, y = digits.test.x[:100], digits.test.y[:100]
    health_of_mode = {
        health.mode: health for health in examine_gradients(defended, x, y, Linf(0.1), ("exact", "relu", "smooth"), 0)
    }
    assert not health_of_mode["exact"].is_faithful
    assert health_of_mode["smooth"].is_faithful
    (undefended_health,) = examine_gradients(digits_classifier, x, y, Linf(0.1), ("exact",), 0)
    assert undefended_health.faithful >= 0.97 * undefended_health.points
