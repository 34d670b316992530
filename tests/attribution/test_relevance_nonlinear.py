"""Activations, gates, norms, attention and transposed convolutions, against gradient x input of what they stand for.

Without stabilisers a rule equals gradient x input of the operation with the factors held that the rule counts as
constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from art_defenses_ext.attribution.gradient import gradient_x_input
from art_defenses_ext.attribution.relevance import Composite, epsilon_alpha2_beta1, epsilon_plus, relevance
from art_defenses_ext.attribution.rules import Epsilon

TINY = 1e-12
UNSTABILISED = Composite(Epsilon(TINY), Epsilon(TINY), scale=Epsilon(TINY), stabilizer=TINY)
Operation = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class Headed(nn.Module):
    """An operation, and a dense layer on what comes out of it."""

    def __init__(self, operation: Operation, head: nn.Linear) -> None:
        super().__init__()
        self.operation, self.head = operation, head

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.operation(x).flatten(1))
        return logits


def images() -> Tensor:
    return torch.randn(2, 4, 6, 6, dtype=torch.float64)


def head_for(operation: Operation, x: Tensor) -> nn.Linear:
    return nn.Linear(operation(x).flatten(1).shape[1], 3, dtype=x.dtype)


def halves(product: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """A product of which each factor gets half of the gradient."""
    return (product(a, b.detach()) + product(a.detach(), b)) / 2


def normed(x: Tensor, *shape: int) -> Tensor:
    """(x - mean) / deviation over the last axis of ``shape``, with the deviation held."""
    groups = x.reshape(len(x), *shape)
    centred = groups - groups.mean(-1, keepdim=True)
    return (centred / (groups.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt().detach()).reshape(x.shape)


ACTIVATIONS: dict[str, Operation] = {
    "GELU": F.gelu,
    "SiLU": nn.SiLU(inplace=True),
    "mish": F.mish,
    "hard-swish": nn.Hardswish(inplace=True),
    "leaky ReLU": nn.LeakyReLU(0.2, inplace=True),
    "PReLU": lambda x: F.prelu(x, torch.full((4,), 0.3, dtype=x.dtype)),
    "ELU": nn.ELU(inplace=True),
    "SELU": F.selu,
    "CELU": F.celu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hard-sigmoid": F.hardsigmoid,
    "a power": lambda x: x**2,
}


def held(activation: Operation) -> Operation:
    """The activation as a factor of its input."""
    return lambda x: x * (activation(x.detach().clone()) / x.detach())


def heads_of(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, :2], x[:, 2:].transpose(2, 3)


HELD: dict[str, tuple[Operation, Operation]] = {
    # Name -> (operation, the same with the constants of its rule held).
    **{name: (lambda x, f=function: f(x.clone()), held(function)) for name, function in ACTIVATIONS.items()},
    "a gate": (lambda x: x * x[:, :1].sigmoid(), lambda x: x * x[:, :1].sigmoid().detach()),
    "squeeze and excitation": (
        lambda x: F.hardsigmoid(x.mean((2, 3), keepdim=True)).view(2, 4, 1, 1).expand_as(x) * x,
        lambda x: F.hardsigmoid(x.mean((2, 3), keepdim=True)).detach() * x,
    ),
    "two gates": (
        lambda x: x * x[:, :1].sigmoid() + x.flip(1) * (1 - x[:, :1].sigmoid()),
        lambda x: x * x[:, :1].sigmoid().detach() + x.flip(1) * (1 - x[:, :1].sigmoid()).detach(),
    ),
    "a product": (lambda x: x[:, :1] * x[:, 1:], lambda x: halves(torch.mul, x[:, :1], x[:, 1:])),
    "matrices": (lambda x: torch.matmul(*heads_of(x)), lambda x: halves(torch.matmul, *heads_of(x))),
    "a sum by letters": (
        lambda x: torch.einsum("nchw,nchv->ncwv", x[:, :2], x[:, 2:]),
        lambda x: halves(lambda a, b: a.transpose(2, 3) @ b, x[:, :2], x[:, 2:]),
    ),
    "a quotient": (lambda x: x / (1 + x**2).sqrt(), lambda x: x / (1 + x**2).sqrt().detach()),
    "layer norm": (lambda x: F.layer_norm(x, (6, 6)), lambda x: normed(x, 4, 36)),
    "layer norm with weights": (
        lambda x: F.layer_norm(x, (6,), torch.arange(6.0).to(x) - 2, torch.ones(6).to(x)),
        lambda x: normed(x, 4, 6, 6) * (torch.arange(6.0).to(x) - 2) + 1,
    ),
    "group norm": (
        lambda x: F.group_norm(x, 2, torch.arange(4.0).to(x) - 2),
        lambda x: normed(x, 2, 72) * (torch.arange(4.0).to(x) - 2)[:, None, None],
    ),
    "instance norm": (lambda x: F.instance_norm(x), lambda x: normed(x, 4, 36)),
    "RMS norm": (
        lambda x: F.rms_norm(x, (6,), eps=1e-5),
        lambda x: x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt().detach(),
    ),
    "unit length": (lambda x: F.normalize(x, dim=-1), lambda x: x / x.norm(dim=-1, keepdim=True).detach()),
}


@pytest.mark.parametrize(("operation", "constant"), HELD.values(), ids=HELD.keys())
def test_a_rule_is_gradient_times_input_with_its_constants_held(operation: Operation, constant: Operation) -> None:
    x = images()
    head = head_for(operation, x)
    torch.testing.assert_close(operation(x), constant(x))
    expected = gradient_x_input(Headed(constant, head), x, 2)
    torch.testing.assert_close(relevance(Headed(operation, head), x, 2, UNSTABILISED), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("operation", [op for op, _ in HELD.values()], ids=HELD.keys())
def test_its_derivative_is_that_of_finite_differences(operation: Operation) -> None:
    x = images()
    model = Headed(operation, head_for(operation, x))
    rules = Composite(Epsilon(0.1), Epsilon(0.1), stabilizer=0.1)
    weight, direction = torch.randn_like(x), F.normalize(torch.randn_like(x).flatten(), dim=0).view_as(x)

    def heat(x: Tensor) -> Tensor:
        total: Tensor = (weight * relevance(model, x, 2, rules)).sum()
        return total

    live = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(heat(live), live)
    slope = (heat(x + 1e-6 * direction) - heat(x - 1e-6 * direction)) / 2e-6
    assert ((gradient * direction).sum() - slope).abs() <= 1e-4 * gradient.norm()


def test_one_minus_x_passes_relevance_on() -> None:
    x = images()
    head = head_for(torch.relu, x)
    above = relevance(Headed(nn.Identity(), head), 1 - x, 2)
    torch.testing.assert_close(relevance(Headed(lambda x: 1 - x, head), x, 2), above)


class Attention(nn.Module):
    """Attention of the 4 x 6 tokens of each image, in one of three spellings."""

    def __init__(self, spelling: str, mask: Tensor | None) -> None:
        super().__init__()
        self.spelling, self.mask = spelling, mask
        self.module = nn.MultiheadAttention(6, 2, batch_first=True, dtype=torch.float64)
        nn.init.normal_(self.module.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1, 2)  # (N, 24, 6)
        if self.spelling == "module":
            blocked = None if self.mask is None else ~self.mask
            attended: Tensor = self.module(x, x, x, need_weights=False, attn_mask=blocked)[0]
            return attended
        projected = F.linear(x, self.module.in_proj_weight, self.module.in_proj_bias)
        q, k, v = projected.reshape(2, 24, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        if self.spelling == "function":
            values = F.scaled_dot_product_attention(q, k, v, self.mask)
        else:
            scores = (q / math.sqrt(3)) @ k.transpose(-2, -1)
            if self.mask is not None:
                scores = scores + torch.zeros_like(scores).masked_fill(~self.mask, -math.inf)
            values = torch.softmax(scores, dim=-1) @ v
        return self.module.out_proj(values.transpose(1, 2).reshape(2, 24, 6))


@pytest.mark.parametrize("spelling", ["module", "function"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rule", ["shared", "values"])
def test_attention_is_its_products_and_its_softmax(spelling: str, masked: bool, rule: str) -> None:
    x, mask = images(), torch.ones(24, 24, dtype=torch.bool).tril() if masked else None
    by_hand, spelled = Attention("by hand", mask), Attention(spelling, mask)
    spelled.load_state_dict(by_hand.state_dict())
    head = head_for(by_hand, x)
    torch.testing.assert_close(spelled(x), by_hand(x))
    rules = replace(epsilon_plus(), attention=rule)
    expected = relevance(Headed(by_hand, head), x, 2, rules)
    assert expected.abs().max() > 0
    torch.testing.assert_close(relevance(Headed(spelled, head), x, 2, rules), expected)


def test_the_sign_of_a_negated_gate_is_seen_by_the_layer_after_it() -> None:
    x = images()
    layer, head = nn.Conv2d(4, 4, 3).double(), nn.Linear(64, 3).double()
    gated = Headed(lambda x: layer(x.relu() * -x[:, :1].sigmoid()), head)
    signed = Headed(lambda x: layer(-(x.relu() * x[:, :1].sigmoid())), head)
    torch.testing.assert_close(relevance(gated, x, 2), relevance(signed, x, 2))


def test_a_transposed_convolution_is_a_linear_layer_into_which_a_batch_norm_folds() -> None:
    x = images()
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2).double()
    norm = nn.BatchNorm2d(6).double().eval()
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    model = Headed(nn.Sequential(layer, norm, nn.ReLU()), head_for(norm, layer(x)))
    torch.testing.assert_close(relevance(model, x, 2, UNSTABILISED), gradient_x_input(model, x, 2))


def test_a_transposed_convolution_with_stride_one_is_a_convolution() -> None:
    x = images()
    transposed, convolution = nn.ConvTranspose2d(4, 5, 3, padding=1).double(), nn.Conv2d(4, 5, 3, padding=1).double()
    with torch.no_grad():
        convolution.weight.copy_(transposed.weight.transpose(0, 1).flip(2, 3))
        assert convolution.bias is not None
        assert transposed.bias is not None
        convolution.bias.copy_(transposed.bias)
    head = head_for(convolution, x)
    actual, expected = (
        relevance(Headed(layer, head), x, 2, epsilon_alpha2_beta1()) for layer in (transposed, convolution)
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("rectifier", [nn.ReLU6, lambda: nn.LeakyReLU(0.2, inplace=True), lambda: nn.PReLU(4)])
def test_a_steep_softplus_passes_relevance_as_a_rectifier_with_kinks_does(rectifier: Callable[[], nn.Module]) -> None:
    x = 8 * images()
    model = nn.Sequential(nn.Conv2d(4, 4, 3), rectifier(), nn.Flatten(), nn.Linear(64, 3)).double()
    assert (model[0](x) > 6).any()
    torch.testing.assert_close(relevance(model, x, softplus=1e5), relevance(model, x), rtol=1e-4, atol=1e-5)
