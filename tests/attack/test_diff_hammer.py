"""DiffHammer: the selective gradient from its formula, and a defence whose mean gradient is zero."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext import L2, Linf
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.ball import Ball
from art_defenses_ext.attack.diff_hammer import DiffHammer, selective_gradient
from art_defenses_ext.evaluation.suite.attacker import averaged
from art_defenses_ext.evaluation.suite.suites import DIFF_HAMMER

MARGIN, SLOPE = 0.3, 3.5


class Alternating(nn.Module):
    """Two modes in turn, whose margins rise in opposite directions, so that the mean over both has no gradient."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        margin = MARGIN + (-1) ** self.calls * SLOPE * (x[:, 0] - 0.5)
        return torch.stack([margin, 0 * margin], dim=1)


@pytest.fixture
def alternating() -> PyTorchClassifier:
    return PyTorchClassifier(
        Alternating(), nn.CrossEntropyLoss(), (3,), 2, clip_values=(0, 1), device_type="cpu"
    )  # fmt: skip


def by_loops(losses: Tensor, gradients: Tensor, ball: Ball) -> Tensor:
    """The formula of the docstring for one image, number by number."""
    step = {"linf": np.sign, "l2": lambda g: g / np.linalg.norm(g)}[ball.norm_name]
    pairs = [(float(loss), gradient.numpy()) for loss, gradient in zip(losses, gradients, strict=True)]

    def predicted(direction: np.ndarray) -> list[float]:
        return [loss + ball.eps * float(step(direction) @ gradient) for loss, gradient in pairs]

    def elu(value: float) -> float:
        return value if value > 0 else math.exp(value) - 1

    direction = max((g for _, g in pairs), key=lambda g: sum(map(elu, predicted(g))))
    for _ in range(5):
        weights = [1 / (1 + math.exp(-5 * value)) for value in predicted(direction)]
        direction = sum(w * g for w, (_, g) in zip(weights, pairs, strict=True)) / sum(weights)
    return torch.from_numpy(np.asarray(direction))


@pytest.mark.parametrize("ball", [Linf(0.2), L2(0.5)])
def test_the_selective_gradient_is_its_formula(ball: Ball) -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    gradients = torch.randn(6, 4, 5, generator=generator, dtype=torch.float64)
    expected = torch.stack([by_loops(losses[:, i], gradients[:, i], ball) for i in range(4)])
    assert torch.allclose(selective_gradient(losses, gradients, ball), expected)


def test_of_equal_draws_it_is_their_gradient() -> None:
    gradient = torch.tensor([[1.0, -2.0, 0.5]])
    selected = selective_gradient(torch.full((4, 1), -0.3), gradient.expand(4, 1, 3), Linf(0.1))
    assert torch.allclose(selected, gradient)
    assert torch.equal(selective_gradient(torch.zeros(4, 1), torch.zeros(4, 1, 3), L2(0.1)), torch.zeros(1, 3))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_breaks_half_of_the_passes_where_their_mean_has_no_gradient(
    alternating: PyTorchClassifier, norm: str
) -> None:
    """A change by .0857 breaks every other pass. Attacks on the mean find it only if their random start lies there."""
    x, y = np.full((40, 3), 0.5, np.float32), np.zeros(40, np.int64)
    share = []
    for attack in (
        AutoPGD(averaged(alternating, 16), norm, 0.1, max_iter=20),
        DiffHammer(alternating, norm, 0.1, draws=4, max_iter=20),
    ):
        change = np.abs(attack.generate(x, y) - x)[:, 0]
        share.append((change > MARGIN / SLOPE).mean())
    assert share[0] < 0.5
    assert share[1] == 1


def test_the_attack_of_an_evaluation_draws_single_passes(alternating: PyTorchClassifier) -> None:
    """Not means of passes, which would cancel."""
    x, y = np.full((4, 3), 0.5, np.float32), np.eye(2, dtype=np.float32)[[0] * 4]
    network = next(module for module in alternating.model.modules() if isinstance(module, Alternating))
    before = network.calls
    adversarial = DIFF_HAMMER.attack_on(averaged(alternating, 16), Linf(0.1), 0).generate(x, y)
    assert (np.abs(adversarial - x)[:, 0] > MARGIN / SLOPE).all()
    assert network.calls - before == (30 + 1) * 20
