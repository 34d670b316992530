"""A heatmap's derivative is the one that differences show: what an attacker of a heatmap needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from art_defenses_ext.attribution.relevance import (
    Composite,
    Layer,
    Start,
    TopK,
    epsilon_plus,
    relevance,
    uniform,
)
from art_defenses_ext.attribution.rules import Z_PLUS, AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox

NB_CLASSES = 4


class Net(nn.Module):
    """Batch norm, both poolings, a residual connection and a concatenation."""

    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.third = nn.Conv2d(8, 8, 2)
        self.activation = activation()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8, 8), activation(), nn.Linear(8, NB_CLASSES))
        for tensor in self.norm.state_dict().values():
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        z = self.activation(self.norm(self.first(x)))  # (N, 4, 6, 6)
        z = torch.cat([F.max_pool2d(z, 2), F.avg_pool2d(self.activation(self.second(z) + z), 2)], dim=1)  # (N, 8, 3, 3)
        z = F.adaptive_avg_pool2d(self.activation(self.third(z)), 1)
        logits: Tensor = self.head(z)
        return logits


ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], float | None]] = {
    # Name -> (activation, the softplus that replaces it).
    "softplus modules": (lambda: nn.Softplus(beta=3.0), None),
    "ReLU replaced by softplus": (lambda: nn.ReLU(inplace=True), 3.0),
    "ReLU away from its kinks": (nn.ReLU, None),
    "leaky ReLU replaced by softplus": (lambda: nn.LeakyReLU(0.2), 3.0),
}
RULES: dict[str, Composite] = {
    "epsilon": uniform(Epsilon(1e-2)),
    "z+": uniform(Z_PLUS),
    "alpha 2, beta 1": uniform(AlphaBeta()),
    "gamma": uniform(Gamma(stabilizer=1e-2)),
    "epsilon-plus": epsilon_plus(1e-2),
    "z-box first": Composite(Z_PLUS, Epsilon(1e-2), ZBox(-5.0, 5.0)),
    "w-square first": Composite(Z_PLUS, Epsilon(1e-2), WSquare()),
    "flat first": Composite(Z_PLUS, Epsilon(1e-2), Flat()),
}
STARTS: dict[str, Start] = {
    "predicted": "predicted",
    "positive": "positive",
    "last convolution": "last_conv",
    "a class": 2,
    "classes": torch.tensor([3, 1]),
    "top 2": TopK(2),
    "a convolution": Layer("second"),
    "an activation": Layer("activation"),
    "a block": Layer("head"),
}


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def slope(function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, step: float = 1e-4) -> Tensor:
    """d function(x + t direction) / dt at 0, by differences of fourth order."""

    def value_at(t: float) -> Tensor:
        return function(x + t * step * direction).detach()

    return (8 * (value_at(1) - value_at(-1)) - (value_at(2) - value_at(-2))) / (12 * step)


def assert_slopes(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Along two directions at random, to 1e-6 of the steepest slope."""
    live = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(live), live)
    assert gradient.abs().max() > 0
    for _ in range(2):
        direction = F.normalize(torch.randn_like(x).flatten(), dim=0).reshape(x.shape)
        error = (gradient * direction).sum() - slope(function, x, direction)
        assert error.abs() <= 1e-6 * gradient.norm()


def check(activation: Callable[[], nn.Module], softplus: float | None, rules: Composite, start: Start) -> None:
    model, x = Net(activation).double().eval(), torch.randn(2, 2, 6, 6, dtype=torch.float64)
    weight = torch.randn_like(x)

    def of_the_heatmap(x: Tensor) -> Tensor:
        heat = relevance(model, x, start, rules, softplus=softplus)
        return (weight * heat + heat**2).sum()

    def of_what_it_weights(x: Tensor) -> Tensor:
        logits: Tensor = model(relevance(model, x, start, rules, softplus=softplus) * x)
        return logits[:, 1].sum()

    assert_slopes(of_the_heatmap, x)
    assert_slopes(of_what_it_weights, x)


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
def test_under_each_rule(rules: Composite) -> None:
    check(*ACTIVATIONS["ReLU away from its kinks"], rules, "predicted")


def test_of_a_leaky_relu_that_is_replaced() -> None:
    check(*ACTIVATIONS["leaky ReLU replaced by softplus"], epsilon_plus(1e-2), "predicted")


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())
def test_from_each_start(start: Start) -> None:
    check(*ACTIVATIONS["ReLU replaced by softplus"], epsilon_plus(1e-2), start)


def test_the_whole_jacobian_and_the_order_after_it() -> None:
    activation, softplus = ACTIVATIONS["ReLU replaced by softplus"]
    model = nn.Sequential(
        *(nn.Conv2d(1, 2, 2), activation(), nn.AvgPool2d(2, 1), nn.Conv2d(2, 2, 2), activation()),
        *(nn.Flatten(), nn.Linear(2, NB_CLASSES)),
    ).double()
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    for rules in (uniform(AlphaBeta(2, 1, 0.1)), uniform(Gamma(0.25, 0.1))):

        def heat(x: Tensor, rules: Composite = rules) -> Tensor:
            return relevance(model, x, 1, rules, softplus=softplus)

        assert torch.autograd.gradcheck(heat, (x,), rtol=1e-5, atol=1e-8)
        assert torch.autograd.gradgradcheck(heat, (x,), rtol=1e-4, atol=1e-6)


def test_the_derivative_reaches_what_made_x_and_no_parameter() -> None:
    model = Net(nn.Softplus).double()
    scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    start = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    relevance(model, scale * start, 1).square().sum().backward()
    expected = slope(lambda scale: relevance(model, scale * start, 1).square().sum(), scale.detach(), torch.ones(()))
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(expected.item(), rel=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_replaced_relu_is_a_softplus_module() -> None:
    smooth = Net(lambda: nn.Softplus(beta=3.0)).double().eval()
    kinked = Net(nn.ReLU).double().eval()
    kinked.load_state_dict(smooth.state_dict())
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    for start in STARTS.values():
        torch.testing.assert_close(relevance(kinked, x, start, softplus=3.0), relevance(smooth, x, start))
