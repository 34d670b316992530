"""A layer that is linear but for its bias: what it computes, its transpose, and the parts of its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from art_defenses_ext.estimator.rebuild import at_least_float32

Kind = Literal["convolution", "linear", "scale"]

_CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@dataclass(frozen=True)
class Geometry:
    """How a convolution moves: one number a spatial dimension, and the groups."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


@dataclass(frozen=True, eq=False)
class LinearMap:
    """z = W a + b, of a convolution, a dense layer or an elementwise scale (a batch norm that stands alone).

    Weights are constants here: no gradient reaches the parameters of the network. Their parts are made once a pass and
    go with it: not every optimiser tells that it wrote to a weight (fused ones leave the version of a parameter as it
    was), so kept parts could be stale.

    Attributes:
        kind: which of the three.
        weight: convolution (O, I / groups, *kernel), dense (O, I), or scale (C,).
        bias: (O,) or None.
        geometry: of a convolution.
    """

    kind: Kind
    weight: Tensor
    bias: Tensor | None
    geometry: Geometry | None = None

    def __call__(self, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer would compute of ``a`` (N, ...) with another weight and bias of the same shapes."""
        if self.geometry is not None:
            one = self.geometry
            convolve: Any = _CONVOLVE[len(one.stride)]
            convolved: Tensor = convolve(a, weight, bias, one.stride, one.padding, one.dilation, one.groups)
            return convolved
        if self.kind == "linear":
            return functional.linear(a, weight, bias)
        scaled = a * _along_channels(weight, a)
        return scaled if bias is None else scaled + _along_channels(bias, a)

    def transposed(self, s: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """W^T s: the derivative of (W a) . s with respect to ``a``, of the shape of ``like``."""
        if self.geometry is not None:
            one = self.geometry
            back: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
                s,
                like.detach(),
                weight,
                None,
                one.stride,
                one.padding,
                one.dilation,
                False,
                [0] * len(one.stride),
                one.groups,
                [True, False, False],
            )
            return back[0]
        return s @ weight if self.kind == "linear" else s * _along_channels(weight, s)

    @property
    def nb_outputs(self) -> int:
        """How many channels or units the layer has."""
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
    """``layer`` with numbers of float32 at least."""
    bias = None if layer.bias is None else at_least_float32(layer.bias)
    return replace(layer, weight=at_least_float32(layer.weight), bias=bias)


def scaled(layer: LinearMap, scale: Tensor, shift: Tensor) -> LinearMap:
    """``layer`` followed by an elementwise scale (O,) and shift (O,): a batch norm folded into the layer before."""
    weight = layer.weight * scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    bias = shift if layer.bias is None else layer.bias * scale + shift
    return LinearMap(layer.kind, weight, bias, layer.geometry)


def _along_channels(values: Tensor, like: Tensor) -> Tensor:
    """``values`` (C,) shaped to fit ``like`` (N, C, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 2))
