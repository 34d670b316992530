"""Affine layers: forward pass, transpose, and positive and negative parts of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from art_defenses_ext.estimator.rebuild import at_least_float32

Kind = Literal["convolution", "linear", "scale"]

_CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class Geometry(NamedTuple):
    """Stride, padding and dilation of a convolution per spatial dimension, and its groups; or a transposed one."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    transposed: bool = False
    output_padding: Sequence[int] = ()


@dataclass(frozen=True, eq=False)
class LinearMap:
    """z = W a + b, of a convolution, a dense layer or an elementwise scale (a batch norm that is not folded).

    Weights are constants here: no gradient reaches the parameters of the network. Their parts are computed once per
    pass and not cached, since fused optimisers change a parameter without advancing its version.

    Attributes:
        kind: kind of the layer.
        weight: convolution (O, I / groups, *kernel), transposed (I, O / groups, *kernel), dense (O, I), or scale (C,).
        bias: (O,) or None.
        geometry: geometry of a convolution, else None.
    """

    kind: Kind
    weight: Tensor
    bias: Tensor | None
    geometry: Geometry | None = None

    def __call__(self, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output for ``a`` (N, ...) with another weight and bias of the same shapes."""
        if self.geometry is not None:
            *places, groups, transposed, output_padding = self.geometry
            if transposed:
                general: Any = torch.convolution
                moved: Tensor = general(a, weight, bias, *places, True, output_padding, groups)
                return moved
            convolve: Any = _CONVOLVE[len(self.geometry.stride)]
            convolved: Tensor = convolve(a, weight, bias, *places, groups)
            return convolved
        if self.kind == "linear":
            return functional.linear(a, weight, bias)
        scaled = a * _along_channels(weight, a)
        return scaled if bias is None else scaled + _along_channels(bias, a)

    def transposed(self, s: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """Return W^T s, the derivative of (W a) . s with respect to ``a``, of the shape of ``like``."""
        if self.geometry is not None:
            *places, groups, transposed, output_padding = self.geometry
            kind = transposed, output_padding or [0] * len(self.geometry.stride)
            back: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
                s, like.detach(), weight, None, *places, *kind, groups, [True, False, False]
            )
            return back[0]
        return s @ weight if self.kind == "linear" else s * _along_channels(weight, s)

    @property
    def nb_outputs(self) -> int:
        """Number of output channels or units."""
        if self.geometry is not None and self.geometry.transposed:
            return int(self.weight.shape[1]) * self.geometry.groups
        return int(self.weight.shape[0])

    @cached_property
    def positive(self) -> Tensor:
        """W+, the weight's positive part."""
        return self.weight.clamp(min=0)

    @cached_property
    def negative(self) -> Tensor:
        """W-, the weight's negative part, so that W = W+ + W-."""
        return self.weight.clamp(max=0)

    @property
    def positive_bias(self) -> Tensor | None:
        """b+, or None without a bias."""
        return None if self.bias is None else self.bias.clamp(min=0)


def widened(layer: LinearMap) -> LinearMap:
    """Return ``layer`` in at least float32."""
    bias = None if layer.bias is None else at_least_float32(layer.bias)
    return replace(layer, weight=at_least_float32(layer.weight), bias=bias)


def scaled(layer: LinearMap, scale: Tensor, shift: Tensor) -> LinearMap:
    """Return ``layer`` followed by a scale (O,) and shift (O,): a batch norm folded into the layer before."""
    ones = [1] * (layer.weight.ndim - 1)
    if layer.geometry is not None and layer.geometry.transposed:  # outputs second, of each group
        scales = scale.reshape(layer.geometry.groups, 1, -1, *ones[1:])
        weight = (layer.weight.unflatten(0, (layer.geometry.groups, -1)) * scales).flatten(0, 1)
    else:
        weight = layer.weight * scale.reshape(-1, *ones)
    bias = shift if layer.bias is None else layer.bias * scale + shift
    return LinearMap(layer.kind, weight, bias, layer.geometry)


def _along_channels(values: Tensor, like: Tensor) -> Tensor:
    """Return ``values`` (C,) in a shape that broadcasts against ``like`` (N, C, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 2))
