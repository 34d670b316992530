"""Each rule against its definition, written out in loops over inputs and outputs; sums; derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from art_defenses_ext.attribution.linear_map import Geometry, LinearMap
from art_defenses_ext.attribution.rules import (
    Z_PLUS,
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Rule,
    WSquare,
    ZBox,
    positive_part,
    stabilised,
)
from art_defenses_ext.base.errors import InputError

LOW, HIGH = -3.0, 4.0
Share = Callable[[list[float], list[float], float, list[bool]], list[float]]
"""(inputs a_j, weights W_j, bias, which j the output reads) of one output -> what each input gets of its relevance."""


def sign(value: float) -> float:
    return -1.0 if value < 0 else 1.0


def epsilon(eps: float) -> Share:
    def share(a: list[float], weights: list[float], bias: float, reads: list[bool]) -> list[float]:
        z = bias + sum(value * weight for value, weight in zip(a, weights, strict=True))
        return [value * weight / (z + eps * sign(z)) for value, weight in zip(a, weights, strict=True)]

    return share


def alpha_beta(alpha: float, beta: float, eps: float) -> Share:
    def share(a: list[float], weights: list[float], bias: float, reads: list[bool]) -> list[float]:
        contributions = [value * weight for value, weight in zip(a, weights, strict=True)]
        above = eps + max(bias, 0) + sum(max(part, 0) for part in contributions)
        below = -eps + min(bias, 0) + sum(min(part, 0) for part in contributions)
        return [alpha * max(part, 0) / above - beta * min(part, 0) / below for part in contributions]

    return share


def gamma(gamma: float, eps: float) -> Share:
    """Andeol et al.: four kinds of (sign of input, sign of output), in each of which one part of W is raised."""

    def share(a: list[float], weights: list[float], bias: float, reads: list[bool]) -> list[float]:
        z = bias + sum(value * weight for value, weight in zip(a, weights, strict=True))
        if z == 0:
            return [0.0] * len(a)
        part = max if z > 0 else min  # what speaks for the output
        raised = [
            value * (weight + gamma * (part if value >= 0 else {max: min, min: max}[part])(weight, 0))
            for value, weight in zip(a, weights, strict=True)
        ]
        total = sum(raised) + bias + gamma * part(bias, 0)
        return [value / (total + eps * sign(total)) for value in raised]

    return share


def z_box(low: float, high: float, eps: float) -> Share:
    def share(a: list[float], weights: list[float], bias: float, reads: list[bool]) -> list[float]:
        parts = [
            value * weight - low * max(weight, 0) - high * min(weight, 0)
            for value, weight in zip(a, weights, strict=True)
        ]
        total = sum(parts)
        return [part / (total + eps * sign(total)) for part in parts]

    return share


def w_square(eps: float) -> Share:
    def share(a: list[float], weights: list[float], bias: float, reads: list[bool]) -> list[float]:
        total = bias**2 + sum(weight**2 for weight in weights)
        return [weight**2 / (total + eps) for weight in weights]

    return share


def flat(eps: float) -> Share:
    def share(a: list[float], weights: list[float], bias: float, reads: list[bool]) -> list[float]:
        return [read / (sum(reads) + eps) for read in reads]

    return share


RULES: dict[str, tuple[Rule, Share]] = {
    "epsilon": (Epsilon(), epsilon(1e-6)),
    "epsilon, large": (Epsilon(0.3), epsilon(0.3)),
    "z+": (Z_PLUS, alpha_beta(1, 0, 1e-6)),
    "alpha 2, beta 1": (AlphaBeta(), alpha_beta(2, 1, 1e-6)),
    "alpha 1.5, beta .5, stabilised": (AlphaBeta(1.5, 0.5, 0.2), alpha_beta(1.5, 0.5, 0.2)),
    "gamma": (Gamma(), gamma(0.25, 1e-6)),
    "gamma, large, stabilised": (Gamma(3.0, 0.2), gamma(3.0, 0.2)),
    "z-box": (ZBox(LOW, HIGH), z_box(LOW, HIGH, 1e-6)),
    "w-square": (WSquare(0.1), w_square(0.1)),
    "flat": (Flat(0.1), flat(0.1)),
}
# Without their stabilisers: what they share out is then all there is.
CONSERVING: dict[str, Rule] = {
    "epsilon": Epsilon(1e-12),
    "z+": AlphaBeta(1, 0, 1e-12),
    "alpha 2, beta 1": AlphaBeta(2, 1, 1e-12),
    "gamma": Gamma(0.25, 1e-12),
    "z-box": ZBox(LOW, HIGH, 1e-12),
    "w-square": WSquare(1e-12),
    "flat": Flat(1e-12),
}
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], Geometry | None]] = {
    # Name -> (weight, one input, geometry).
    "dense": ((4, 6), (6,), None),
    "dense, each place": ((3, 4), (2, 4), None),
    "1d": ((3, 2, 3), (2, 7), Geometry([2], [1], [1], 1)),
    "2d": ((3, 2, 2, 3), (2, 5, 4), Geometry([1, 2], [1, 1], [2, 1], 1)),
    "2d in groups": ((4, 1, 3, 3), (2, 4, 3), Geometry([1, 1], [1, 1], [1, 1], 2)),
    "3d": ((2, 2, 2, 1, 2), (2, 3, 2, 3), Geometry([1, 1, 1], [0, 1, 0], [1, 1, 1], 1)),
}

rules = pytest.mark.parametrize(("rule", "share"), RULES.values(), ids=RULES.keys())


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield


def problem(shape: str, nonnegative: bool = False, with_bias: bool = True) -> tuple[LinearMap, Tensor, Tensor, Tensor]:
    """A layer, two inputs in [LOW, HIGH], its outputs, and relevance of both signs for them."""
    weight_shape, input_shape, geometry = SHAPES[shape]
    weight = torch.randn(weight_shape, dtype=torch.float64)
    bias = torch.randn(weight_shape[0], dtype=torch.float64) if with_bias else None
    layer = LinearMap("linear" if geometry is None else "convolution", weight, bias, geometry)
    a = torch.randn(2, *input_shape, dtype=torch.float64).clamp(LOW, HIGH)
    a = a.clamp(min=0) if nonnegative else a
    z = layer(a, weight, bias)
    return layer, a, z, torch.randn_like(z)


def by_loops(share: Share, layer: LinearMap, a: Tensor, r: Tensor) -> Tensor:
    """R_j = sum_k share_jk R_k, with the layer's dense matrix W_kj from unit vectors."""
    units = torch.eye(a[0].numel(), dtype=torch.float64).reshape(-1, *a.shape[1:])
    weights = layer(units, layer.weight, None).flatten(1).T.tolist()
    reads = (layer(units, torch.ones_like(layer.weight), None).flatten(1).T > 0).tolist()
    zero = torch.zeros_like(a[:1])
    biases = layer(zero, layer.weight, layer.bias).flatten().tolist()
    result = []
    for inputs, relevance in zip(a.flatten(1).tolist(), r.flatten(1).tolist(), strict=True):
        total = [0.0] * len(inputs)
        for k, output_relevance in enumerate(relevance):
            for j, part in enumerate(share(inputs, weights[k], biases[k], reads[k])):
                total[j] += part * output_relevance
        result.append(total)
    return torch.tensor(result, dtype=torch.float64).reshape(a.shape)


@rules
@pytest.mark.parametrize(
    ("shape", "nonnegative", "with_bias"),
    [*((shape, False, True) for shape in SHAPES), ("2d", True, True), ("dense", True, False), ("1d", False, False)],
)
def test_a_rule_is_its_definition(rule: Rule, share: Share, shape: str, nonnegative: bool, with_bias: bool) -> None:
    layer, a, z, r = problem(shape, nonnegative, with_bias)
    expected = by_loops(share, layer, a, r)
    torch.testing.assert_close(rule(layer, a, z, r, nonnegative), expected, rtol=1e-9, atol=1e-9)
    if nonnegative:  # the shorter way is only shorter
        torch.testing.assert_close(rule(layer, a, z, r, False), expected, rtol=1e-9, atol=1e-9)


@rules
@pytest.mark.parametrize("nonnegative", [False, True])
def test_a_scale_is_a_diagonal_matrix(rule: Rule, share: Share, nonnegative: bool) -> None:
    a = torch.randn(2, 3, 2, dtype=torch.float64)
    a = a.abs() if nonnegative else a
    scale = LinearMap("scale", torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64))
    z = scale(a, scale.weight, scale.bias)
    r = torch.randn_like(z)
    torch.testing.assert_close(rule(scale, a, z, r, nonnegative), by_loops(share, scale, a, r), rtol=1e-9, atol=1e-9)


def test_unit_weights_share_evenly_and_a_lone_input_gets_all() -> None:
    """Numbers that anybody can check."""
    layer = LinearMap("linear", torch.tensor([[1.0, 1.0, -2.0]]), None)
    a, r = torch.tensor([[3.0, 1.0, 1.0]]), torch.tensor([[8.0]])
    z = layer(a, layer.weight, None)  # 3 + 1 - 2
    expected: dict[Rule, list[float]] = {
        Epsilon(1e-9): [12.0, 4.0, -8.0],
        AlphaBeta(1, 0, 1e-9): [6.0, 2.0, 0.0],
        AlphaBeta(2, 1, 1e-9): [12.0, 4.0, -8.0],
        Gamma(1.0, 1e-9): [8.0, 8 / 3, -8 / 3],  # (6, 2, -2) of 6
        WSquare(1e-9): [8 / 6, 8 / 6, 32 / 6],
        Flat(1e-9): [8 / 3, 8 / 3, 8 / 3],
        ZBox(0.0, 4.0, 1e-9): [24 / 10, 8 / 10, 48 / 10],  # (3, 1, -2 + 8) of 10
    }
    for rule, values in expected.items():
        torch.testing.assert_close(rule(layer, a, z, r, True), torch.tensor([values]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", CONSERVING.values(), ids=CONSERVING.keys())
@pytest.mark.parametrize(("shape", "nonnegative"), [("dense", False), ("2d in groups", True)])
def test_without_a_bias_no_relevance_is_lost(rule: Rule, shape: str, nonnegative: bool) -> None:
    layer, a, z, r = problem(shape, nonnegative, with_bias=False)
    above = positive_part(layer, a, nonnegative)
    r = r * (z.abs() > 1e-6)
    if isinstance(rule, AlphaBeta):
        # Where no input speaks for (or against) an output, nobody can be given its relevance.
        r = r * (above > 1e-6) * (z - above < -1e-6)
    actual = rule(layer, a, z, r, nonnegative)
    torch.testing.assert_close(actual.flatten(1).sum(dim=1), r.flatten(1).sum(dim=1), rtol=1e-6, atol=1e-6)


@rules
@pytest.mark.parametrize("nonnegative", [False, True])
def test_a_rule_can_be_differentiated_twice(rule: Rule, share: Share, nonnegative: bool) -> None:
    for shape in ("dense", "1d"):
        layer, a, _, r = problem(shape)
        a = a.abs() + 0.1 if nonnegative else a

        def of_inputs(a: Tensor, r: Tensor, layer: LinearMap = layer) -> Tensor:
            return rule(layer, a, layer(a, layer.weight, layer.bias), r, nonnegative)

        arguments = a[:1].clone().requires_grad_(), r[:1].clone().requires_grad_()
        assert torch.autograd.gradcheck(of_inputs, arguments, rtol=1e-4)
        if shape == "dense":
            assert torch.autograd.gradgradcheck(of_inputs, arguments, rtol=1e-3, atol=1e-4)


def test_the_ends_of_the_box_may_differ_from_channel_to_channel() -> None:
    layer, a, z, r = problem("2d")
    low, high = torch.tensor([-4.0, -3.5]), torch.tensor([3.0, 5.0])
    ends = low.reshape(2, 1, 1), high.reshape(2, 1, 1)
    expected = ZBox(ends[0].expand(2, 5, 4), ends[1].expand(2, 5, 4))(layer, a, z, r, False)
    for shape in ((2, 1, 1), (1, 2, 1, 1)):
        actual = ZBox(low.reshape(shape), high.reshape(shape))(layer, a, z, r, False)
        torch.testing.assert_close(actual, expected)
    # From the dense matrix: parts (N, k, j) of x_j W_kj - l_j W_kj+ - h_j W_kj-.
    units = torch.eye(a[0].numel(), dtype=torch.float64).reshape(-1, *a.shape[1:])
    matrix = layer(units, layer.weight, None).flatten(1).T
    lows, highs = (end.double().repeat_interleave(a[0, 0].numel()) for end in (low, high))
    parts = a.flatten(1)[:, None] * matrix - lows * matrix.clamp(min=0) - highs * matrix.clamp(max=0)
    by_matrix = torch.einsum("nkj,nk->nj", parts / (parts.sum(dim=2, keepdim=True) + 1e-6), r.flatten(1))
    torch.testing.assert_close(expected.flatten(1), by_matrix, rtol=1e-9, atol=1e-9)


def test_stabilised_moves_away_from_zero_and_zero_upwards() -> None:
    z = torch.tensor([-2.0, -0.0, 0.0, 3.0])
    assert torch.equal(stabilised(z, 0.5), torch.tensor([-2.5, 0.5, 0.5, 3.5]))


@pytest.mark.parametrize(
    ("shape", "nonnegative", "with_bias"), [("dense", False, True), ("2d", True, True), ("3d", False, False)]
)
def test_the_positive_part_sums_what_speaks_for_an_output(shape: str, nonnegative: bool, with_bias: bool) -> None:
    layer, a, z, _ = problem(shape, nonnegative, with_bias)
    above = positive_part(layer, a, nonnegative)
    below = positive_part(LinearMap(layer.kind, -layer.weight, None, layer.geometry), a, nonnegative)
    if layer.bias is not None:
        zero = torch.zeros_like(a)
        below = below + layer(zero, layer.weight, (-layer.bias).clamp(min=0))
    torch.testing.assert_close(above - below, z)
    assert above.min() >= 0
    torch.testing.assert_close(positive_part(layer, a, nonnegative, 0.25), above + 0.25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Epsilon(0.0), "epsilon is 0.0; a finite number > 0 that float32 holds was expected"),
        (lambda: AlphaBeta(2.0, 0.5), "alpha is 2.0 and beta is 0.5; beta >= 0 and alpha = 1 [+] beta expected"),
        (lambda: AlphaBeta(0.5, -0.5), "alpha is 0.5 and beta is -0.5"),
        (lambda: AlphaBeta(stabilizer=-1.0), "stabilizer is -1.0"),
        (lambda: Gamma(0.0), "gamma is 0.0"),
        (lambda: Gamma(stabilizer=0.0), "stabilizer is 0.0"),
        (lambda: ZBox(1.0, 1.0), "low is 1.0 and high is 1.0; low < high was expected"),
        (lambda: ZBox(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0])), "low < high was expected"),
        (lambda: ZBox(0.0, 1.0, stabilizer=0.0), "stabilizer is 0.0"),
        (lambda: WSquare(0.0), "stabilizer is 0.0"),
        (lambda: Flat(0.0), "stabilizer is 0.0"),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
