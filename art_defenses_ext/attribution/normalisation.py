"""Layer, group, instance and RMS norm, and division by a length, as operations of a recorded forward pass.

For a norm y_k = w_k (a_k - mean a) / sqrt(var a + eps) + b_k over the values of a group, the deviation counts as a
constant, and what remains is linear. Its relevance is that of the epsilon rule:

    R_j = a_j (s_j - mean s),  s_k = w_k R_k / (y_k stabilised) / sqrt(var a + eps).

Where no mean is subtracted and no bias added, this is R_j = R_j (the identity rule), and computed so.

*Source*: Ali et al. 2022 (arXiv:2202.07304; a constant deviation); Achtibat et al. 2024 (arXiv:2402.05602;
the identity rule).

**Convention**: a bias takes part in the denominator and keeps its share, as in a linear layer (:mod:`.rules`). The
derivative of relevance with respect to the input takes the deviation as the function that it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from art_defenses_ext.attribution.operations import Notes, are_constants, handles, pass_on
from art_defenses_ext.attribution.rules import stabilised
from art_defenses_ext.estimator.rebuild import at_least_float32


@handles(F.layer_norm, torch.layer_norm)
def _layer_norm(
    note: Notes,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Any:
    weight, bias = note.without_parameters(weight), note.without_parameters(bias)
    output = F.layer_norm(input, normalized_shape, weight, bias, eps)
    groups = (*input.shape[: input.ndim - len(normalized_shape)], -1)
    return _normalised(note, input, output, groups, weight, eps)


@handles(F.group_norm, torch.group_norm)
def _group_norm(
    note: Notes,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Any:
    weight, bias = note.without_parameters(weight), note.without_parameters(bias)
    output = F.group_norm(input, num_groups, weight, bias, eps)
    along = None if weight is None else weight.reshape(-1, *[1] * (input.ndim - 2))
    return _normalised(note, input, output, (len(input), num_groups, -1), along, eps)


@handles(F.instance_norm)
def _instance_norm(
    note: Notes,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if not use_input_stats or input.ndim < 3:
        return NotImplemented
    return _group_norm(note, input, input.shape[1], weight, bias, eps)


def _normalised(
    note: Notes, input: Tensor, output: Tensor, groups: tuple[int, ...], weight: Tensor | None, eps: float
) -> Tensor:
    """Record a norm over the last axis of the input in the shape ``groups``."""

    def back(r: Tensor) -> tuple[Tensor]:
        a = at_least_float32(input).reshape(groups)
        share = r / stabilised(at_least_float32(output), note.stabilizer)
        share = (share if weight is None else share * weight).reshape(groups)
        share = share * (a.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()
        return ((a * (share - share.mean(-1, keepdim=True))).reshape(input.shape),)

    return note.step([input], output, back, nonnegative=False, gate=False, monotonic=False)


@handles(F.rms_norm, torch.rms_norm)
def _rms_norm(
    note: Notes,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Any:
    if not are_constants(note, weight):
        return NotImplemented
    output = F.rms_norm(input, list(normalized_shape), note.without_parameters(weight), eps)
    return note.step([input], output, pass_on, nonnegative=False, gate=False, monotonic=False)


@handles(F.normalize)
def _unit_length(note: Notes, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    return note.step([input], F.normalize(input, *args, **kwargs), pass_on, monotonic=False)
