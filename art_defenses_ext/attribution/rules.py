"""Rules of layer-wise relevance propagation: how a linear layer distributes the relevance of its outputs.

Each rule takes a layer z = W a + b, its input ``a`` (N, ...), its output ``z`` and the relevance ``r`` of the output,
and returns the relevance of the input. All operations on ``a``, ``z`` and ``r`` are differentiable, so a
rule is differentiable as often as a convolution in torch.

In the formulas below, R_k belongs to output k and R_j to input j; x+ and x- are positive and negative parts, and a
stabiliser eps keeps denominators away from zero: z moves by eps in the direction of its own sign, zero upwards.

Sources: Bach et al. 2015 (doi:10.1371/journal.pone.0130140; epsilon, alpha-beta); Montavon et al. 2017
(arXiv:1512.02479; z+, z-box, w-square); Montavon et al. 2019 (doi:10.1007/978-3-030-28954-6_10; gamma); Andeol et al.
2021 (arXiv:2106.04923; gamma for inputs of any sign); Lapuschkin et al. 2019 (arXiv:1902.10178; flat).

**Convention**: biases take part in the denominators and keep their share of the relevance, as in Bach et al. and in
the common implementations; flat and z-box know no bias by construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from art_defenses_ext.attribution.linear_map import LinearMap
from art_defenses_ext.base.declared import Declared, Number, Positive
from art_defenses_ext.base.errors import AttributionError
from art_defenses_ext.base.validation import may_look

STABILIZER = 1e-6


class Rule(Protocol):
    """(layer, a, z, r, whether a >= 0 everywhere) -> relevance of a, in its shape."""

    def __call__(self, layer: LinearMap, a: Tensor, z: Tensor, r: Tensor, nonnegative: bool) -> Tensor:
        """Return the relevance of ``a``, given the relevance ``r`` of ``z``."""
        ...


@dataclass(frozen=True)
class Epsilon(Declared):
    """R_j = sum_k a_j W_jk R_k / (z_k + eps sign z_k).

    Args:
        epsilon: > 0; a small value only stabilises, a larger one removes weak and contradictory relevance.
    """

    epsilon: Positive = STABILIZER

    def __call__(self, layer: LinearMap, a: Tensor, z: Tensor, r: Tensor, nonnegative: bool) -> Tensor:
        return a * layer.transposed(r / stabilised(z, self.epsilon), layer.weight, a)


@dataclass(frozen=True)
class AlphaBeta(Declared):
    """R_j = sum_k (alpha (a_j W_jk)+ / z_k+ - beta (a_j W_jk)- / z_k-) R_k.

    z_k+ sums the positive contributions (bias among them) and z_k- the negative ones. alpha 1, beta 0 is the z+ rule,
    :data:`Z_PLUS`.

    Args:
        alpha: >= 1, weight of positive contributions.
        beta: alpha - 1, weight of negative contributions.
        stabilizer: > 0.
    """

    alpha: Number = 2.0
    beta: Number = 1.0
    stabilizer: Positive = STABILIZER

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 0 or self.alpha - self.beta != 1:
            raise AttributionError(
                f"alpha is {self.alpha} and beta is {self.beta}; beta >= 0 and alpha = 1 + beta expected"
            )

    def __call__(self, layer: LinearMap, a: Tensor, z: Tensor, r: Tensor, nonnegative: bool) -> Tensor:
        denominator = positive_part(layer, a, nonnegative, self.stabilizer)
        positive = r / denominator
        if self.beta == 0:
            return _both_signs(layer, a, nonnegative, positive, None)
        # z - (z+ + eps) is z- - eps: one convolution less. Rounding may leave z- above zero.
        negative = r / (z - denominator).clamp(max=-self.stabilizer)
        return _both_signs(layer, a, nonnegative, self.alpha * positive, -self.beta * negative)


@dataclass(frozen=True)
class Gamma(Declared):
    """R_j = sum_k a_j (W_jk + gamma W_jk+) R_k / (z_k + gamma z_k+) where z_k > 0.

    Where z_k < 0 the same with negative parts; inputs of both signs are treated as in Andeol et al.

    Args:
        gamma: > 0; towards 0 it is the epsilon rule, towards infinity z+.
        stabilizer: > 0.
    """

    gamma: Positive = 0.25
    stabilizer: Positive = STABILIZER

    def __call__(self, layer: LinearMap, a: Tensor, z: Tensor, r: Tensor, nonnegative: bool) -> Tensor:
        positive = positive_part(layer, a, nonnegative)
        raised = z + self.gamma * positive
        lowered = z + self.gamma * (z - positive)
        above = torch.where(z > 0, r / stabilised(raised, self.stabilizer), 0)
        below = torch.where(z < 0, r / stabilised(lowered, self.stabilizer), 0)
        # (W + gamma W+)^T above + (W + gamma W-)^T below, for a >= 0; with the parts of W exchanged for a < 0.
        common = layer.transposed(above + below, layer.weight, a)
        signed = _both_signs(layer, a, nonnegative, above, below)
        return a * common + self.gamma * signed


@dataclass(frozen=True)
class ZBox(Declared):
    """R_j = sum_k (x_j W_jk - l_j W_jk+ - h_j W_jk-) R_k / (the same summed over j), for inputs in [l, h].

    For the first layer: it measures how far each pixel is from the end of its range that the weight favours least. As
    the first layer's rule (:class:`.Composite`) it takes the range of the network's input; operations before the first
    layer, such as a normalisation, are applied to the range too.

    Args:
        low: l, the minimum value of an input; a number, or a tensor that broadcasts against an image (C, H, W).
        high: h, the maximum value of an input.
        stabilizer: > 0.
    """

    low: float | Tensor
    high: float | Tensor
    stabilizer: Positive = STABILIZER

    def __post_init__(self) -> None:
        super().__post_init__()
        readable = may_look(self.low) and may_look(self.high)
        if readable and not bool(torch.all(torch.as_tensor(self.low < self.high))):
            raise AttributionError(f"low is {self.low} and high is {self.high}; low < high was expected")

    def __call__(self, layer: LinearMap, a: Tensor, z: Tensor, r: Tensor, nonnegative: bool) -> Tensor:
        return self.between(*self.ends(a), layer, a, z, r)

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the minimum and maximum values, each as one image (1, ...) like those of ``x``."""
        low, high = (torch.as_tensor(end, dtype=x.dtype, device=x.device) for end in (self.low, self.high))
        return low.expand(x[:1].shape), high.expand(x[:1].shape)

    def between(self, low: Tensor, high: Tensor, layer: LinearMap, a: Tensor, z: Tensor, r: Tensor) -> Tensor:
        """Apply the rule to inputs ``a`` (N, ...) of the layer between ``low`` and ``high`` (1, ...)."""
        ends = layer(low, layer.positive, layer.bias) + layer(high, layer.negative, None)
        s = r / stabilised(z - ends, self.stabilizer)
        from_low, from_high = (layer.transposed(s, part, a) for part in (layer.positive, layer.negative))
        return a * (from_low + from_high) - low * from_low - high * from_high


@dataclass(frozen=True)
class WSquare(Declared):
    """R_j = sum_k W_jk^2 R_k / (sum_j W_jk^2 + b_k^2), for any inputs; for the first layer.

    Args:
        stabilizer: > 0.
    """

    stabilizer: Positive = STABILIZER

    def __call__(self, layer: LinearMap, a: Tensor, z: Tensor, r: Tensor, nonnegative: bool) -> Tensor:
        bias = None if layer.bias is None else layer.bias.square()
        return _shared(layer, a, r, layer.weight.square(), bias, self.stabilizer)


@dataclass(frozen=True)
class Flat(Declared):
    """R_j = sum_k R_k / (number of inputs of k): shared evenly over the receptive field; for the first layer.

    Args:
        stabilizer: > 0.
    """

    stabilizer: Positive = STABILIZER

    def __call__(self, layer: LinearMap, a: Tensor, z: Tensor, r: Tensor, nonnegative: bool) -> Tensor:
        return _shared(layer, a, r, torch.ones_like(layer.weight), None, self.stabilizer)


Z_PLUS = AlphaBeta(1.0, 0.0)
"""The z+ rule: relevance is distributed in proportion to positive contributions."""


def stabilised(z: Tensor, eps: float) -> Tensor:
    """Return ``z`` moved away from zero by ``eps``, zero itself upwards."""
    return torch.where(z < 0, z - eps, z + eps)


def positive_part(layer: LinearMap, a: Tensor, nonnegative: bool, shift: float = 0.0) -> Tensor:
    """Return z+ + shift: the positive contributions a_j W_jk to each output, its bias if positive, and ``shift``.

    The shift is added to the bias, which saves a pass over the activations.
    """
    bias = layer.positive_bias
    if shift:
        bias = layer.weight.new_full((layer.nb_outputs,), shift) if bias is None else bias + shift
    if nonnegative:
        return layer(a, layer.positive, bias)
    return layer(a.clamp(min=0), layer.positive, bias) + layer(a.clamp(max=0), layer.negative, None)


def _shared(layer: LinearMap, a: Tensor, r: Tensor, weight: Tensor, bias: Tensor | None, stabilizer: float) -> Tensor:
    """Distribute relevance by fixed weights >= 0, for any inputs."""
    total = layer(torch.ones_like(a[:1]), weight, bias)  # the same for all images
    return layer.transposed(r / (total + stabilizer), weight, a)


def _both_signs(layer: LinearMap, a: Tensor, nonnegative: bool, positive: Tensor, negative: Tensor | None) -> Tensor:
    """Return sum_k (a_j W_jk)+ positive_k + (a_j W_jk)- negative_k; a ``negative`` of None counts as zero."""
    to_positive = layer.transposed(positive, layer.positive, a)
    if negative is not None:
        to_positive = to_positive + layer.transposed(negative, layer.negative, a)
    if nonnegative:
        return a * to_positive
    to_negative = layer.transposed(positive, layer.negative, a)
    if negative is not None:
        to_negative = to_negative + layer.transposed(negative, layer.positive, a)
    return a.clamp(min=0) * to_positive + a.clamp(max=0) * to_negative
