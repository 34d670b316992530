"""Layers as linear maps: against their dense matrices, whose columns are what unit vectors give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from art_defenses_ext.attribution.linear_map import Geometry, LinearMap, scaled

LAYERS: dict[str, tuple[LinearMap, tuple[int, ...]]] = {}
"""Name -> (layer, shape of one input)."""


def _randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def _convolution(weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> LinearMap:
    return LinearMap("convolution", weight, _randn(len(weight)), Geometry(stride, padding, dilation, groups))


LAYERS["dense"] = LinearMap("linear", _randn(3, 5), _randn(3)), (5,)
LAYERS["dense, each place"] = LinearMap("linear", _randn(3, 5), _randn(3)), (4, 5)
LAYERS["scale"] = LinearMap("scale", _randn(3), _randn(3)), (3, 2, 2)
LAYERS["1d"] = _convolution(_randn(4, 2, 3), [2], [1], [1], 1), (2, 8)
LAYERS["2d"] = _convolution(_randn(4, 2, 3, 2), [2, 1], [1, 0], [1, 2], 1), (2, 6, 5)
LAYERS["2d in groups"] = _convolution(_randn(4, 2, 3, 3), [1, 1], [1, 1], [1, 1], 2), (4, 4, 3)
LAYERS["2d, depthwise, with pixels left over"] = _convolution(_randn(4, 1, 2, 2), [3, 3], [0, 0], [1, 1], 4), (4, 6, 6)
LAYERS["3d"] = _convolution(_randn(2, 2, 2, 2, 2), [1, 2, 1], [1, 0, 0], [1, 1, 1], 1), (2, 3, 4, 2)

layers = pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS.keys())


def dense_matrix(layer: LinearMap, shape: tuple[int, ...], weight: Tensor) -> Tensor:
    """(outputs, inputs), without the bias."""
    units = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).reshape(-1, *shape)
    return layer(units, weight, None).flatten(1).T


@layers
@pytest.mark.parametrize("part", ["weight"])
def test_a_map_and_its_transpose_are_those_of_the_dense_matrix(
    layer: LinearMap, shape: tuple[int, ...], part: str
) -> None:
    weight, a = getattr(layer, part), _randn(2, *shape)
    matrix = dense_matrix(layer, shape, weight)
    z = layer(a, weight, None)
    torch.testing.assert_close(z.flatten(1), a.flatten(1) @ matrix.T)
    back = layer.transposed(z, weight, a)
    assert back.shape == a.shape
    torch.testing.assert_close(back.flatten(1), z.flatten(1) @ matrix)


@layers
def test_the_bias_of_an_output_is_that_of_its_channel(layer: LinearMap, shape: tuple[int, ...]) -> None:
    assert layer.bias is not None
    assert layer.nb_outputs == len(layer.bias)
    z = layer(torch.zeros(1, *shape, dtype=torch.float64), layer.weight, layer.bias)
    channels_last = z if layer.kind == "linear" else z.movedim(1, -1)
    torch.testing.assert_close(channels_last, layer.bias.expand_as(channels_last))


@layers
def test_parts_add_up_and_are_made_once(layer: LinearMap, shape: tuple[int, ...]) -> None:
    torch.testing.assert_close(layer.positive + layer.negative, layer.weight)
    assert layer.positive.min() == 0 or (layer.weight > 0).all()
    assert layer.negative.max() == 0 or (layer.weight < 0).all()
    assert layer.positive is layer.positive
    assert layer.negative is layer.negative
    assert layer.positive_bias is not None
    assert layer.bias is not None
    assert torch.equal(layer.positive_bias, layer.bias.clamp(min=0))
    assert LinearMap("linear", layer.weight, None).positive_bias is None


@layers
def test_both_directions_can_be_differentiated_twice(layer: LinearMap, shape: tuple[int, ...]) -> None:
    a = _randn(1, *shape).requires_grad_()
    z = layer(a, layer.weight, layer.bias).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: layer.transposed(z, layer.weight, a), (z,))
    assert torch.autograd.gradgradcheck(lambda z: layer.transposed(z, layer.weight, a) ** 2, (z,))


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "dense, each place"])
@pytest.mark.parametrize("with_bias", [True])
def test_scaling_a_layer_is_the_layer_and_then_the_scale(name: str, with_bias: bool) -> None:
    layer, shape = LAYERS[name]
    layer = LinearMap(layer.kind, layer.weight, layer.bias if with_bias else None, layer.geometry)
    norm: Any = nn.BatchNorm1d(layer.nb_outputs).double().eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2)
    scale, shift = norm.weight / (norm.running_var + norm.eps).sqrt(), norm.bias
    both = scaled(layer, scale, shift - norm.running_mean * scale)
    a = _randn(2, *shape)
    z = layer(a, layer.weight, layer.bias)
    expected = norm(z.flatten(2) if z.ndim > 2 else z).reshape(z.shape)
    torch.testing.assert_close(both(a, both.weight, both.bias), expected)
