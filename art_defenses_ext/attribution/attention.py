"""Softmax attention z_i = sum_j A_ij v_j, as operations of a recorded forward pass, by one of two rules.

``"shared"``: the product by the uniform rule, the softmax by its first Taylor term. Half of the relevance goes through
the attention weights A to queries and keys, where the softmax keeps a part: relevance is not conserved.
*Source*: Achtibat et al. 2024 (arXiv:2402.05602), AttnLRP.

``"values"``: A is a constant, and the values take all relevance, which is conserved:

    R(v_j) = sum_i A_ij v_j R_i / (z_i stabilised).

*Source*: Ali et al. 2022 (arXiv:2202.07304), the AH-rule. Their LN-rule for layer norms, a constant deviation, holds
under either (:mod:`.normalisation`).

**Convention**: ``"values"`` applies to a matrix product of a gate, such as the softmax's output, and a signal. A
softmax that no such product reads keeps its Taylor rule. The derivative of relevance with respect to the input takes
the attention weights as the function that they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from art_defenses_ext.attribution.axes import Follow, aligned, lettered
from art_defenses_ext.attribution.linear_map import LinearMap
from art_defenses_ext.attribution.operations import HANDLERS, Notes, average, handles, pulled_back
from art_defenses_ext.attribution.rules import stabilised
from art_defenses_ext.estimator.rebuild import at_least_float32


@handles(torch.softmax, Tensor.softmax, F.softmax)
def _softmax(note: Notes, input: Tensor, dim: int, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """Record a softmax s = softmax(x): R_i = x_i (R_i - s_i sum_j R_j).

    That is gradient x input. It does not conserve: the part of s that x does not explain stays, as a bias would.
    """
    output = torch.softmax(input, dim, dtype=dtype)

    def back(r: Tensor) -> tuple[Tensor]:
        share = r - at_least_float32(output) * r.sum(dim, keepdim=True)
        x = at_least_float32(input)
        return (x.where(x > -math.inf, 0.0) * share,)  # a masked place has no relevance

    return note.step([input], output, back, nonnegative=True, gate=True, monotonic=False)


@handles(torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.bmm, Tensor.bmm)
def _matrix_product(note: Notes, input: Tensor, other: Tensor) -> Any:
    if not note.knows(other) and other.ndim == 2:  # a dense layer without its module
        layer = LinearMap("linear", other.detach().T, None)
        return note.linear(input, layer, input @ layer.weight.T)
    return bilinear(note, torch.matmul, input, other)


@handles(torch.einsum)
def _einsum(note: Notes, equation: str, *operands: Any) -> Any:
    contract: Any = torch.einsum
    tensors = operands[0] if len(operands) == 1 and not isinstance(operands[0], Tensor) else operands
    if len(tensors) == 1:
        single: Any = average(lambda a: contract(equation, a), follow=lettered(equation, tensors))
        return single(note, *tensors)
    if len(tensors) != 2:
        return NotImplemented
    input, other = tensors
    return bilinear(note, lambda a, b: contract(equation, a, b), input, other, lettered(equation, tensors))


def bilinear(
    note: Notes,
    function: Callable[[Tensor, Tensor], Tensor],
    input: Tensor,
    other: Tensor,
    follow: Follow = aligned,
) -> Tensor:
    """Record a product z = sum_p a_p b_p of two tensors, such as two matrices.

    Each factor takes half of the relevance, shared by contribution (the uniform rule):

        R(a_p) = sum over z of a_p b_p R / (2 z stabilised), and the same for b_p.

    A factor that does not depend on the image takes none, and neither does a gate under the rule ``"values"``.
    """
    input, other = note.without_parameters(input), note.without_parameters(other)
    output = function(input, other)
    factors = known = [tensor for tensor in (input, other) if note.knows(tensor)]
    if note.attention_rule == "values":
        factors = [tensor for tensor in known if not note.is_gate(tensor)] or known

    def back(r: Tensor) -> tuple[Tensor, ...]:
        a, b = at_least_float32(input), at_least_float32(other)
        share = r / stabilised(at_least_float32(output), note.stabilizer) / len(factors)
        relevances = []
        if any(tensor is input for tensor in factors):
            relevances.append(a * pulled_back(lambda left: function(left, b), a, share))
        if any(tensor is other for tensor in factors):
            relevances.append(b * pulled_back(lambda right: function(a, right), b, share))
        return tuple(relevances)

    nonnegative = None if len(factors) == 2 else False
    return note.step(factors, output, back, nonnegative=nonnegative, gate=False, monotonic=False, follow=follow)


def _run(note: Notes, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation on tensors of the pass, or on others."""
    known = any(note.knows(value) for value in args)
    return HANDLERS[function](note, *args, **kwargs) if known else function(*args, **kwargs)


@handles(F.scaled_dot_product_attention)
def _attention(
    note: Notes,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Record softmax(scale q k^T + mask) v as its products and its softmax."""
    if enable_gqa or note.knows(attn_mask):
        return NotImplemented
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    return _attended(note, query, key, value, attn_mask, scale)[0]


def _attended(
    note: Notes, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    scaled = _run(note, torch.mul, query, 1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    scores = _run(note, torch.matmul, scaled, _run(note, torch.transpose, key, -2, -1))
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -math.inf)
        scores = _run(note, torch.add, scores, mask)
    weights = _run(note, torch.softmax, scores, -1)
    return _run(note, torch.matmul, weights, value), weights


@handles(F.multi_head_attention_forward)
def _multi_head_attention(
    note: Notes,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    **separate: Any,
) -> Any:
    """Record ``nn.MultiheadAttention`` of sequences (L, N, E) as its dense layers and its attention."""
    unusual = (bias_k, bias_v, key_padding_mask, in_proj_weight is None or None, add_zero_attn or None)
    if query.ndim != 3 or use_separate_proj_weight or any(value is not None for value in unusual):
        return NotImplemented
    assert in_proj_weight is not None
    biases = [None] * 3 if in_proj_bias is None else in_proj_bias.chunk(3)

    def heads(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        projected = _run(note, F.linear, x, weight, bias)
        split = _run(note, torch.reshape, projected, (*x.shape[:2], num_heads, -1))  # (L, N, heads, E / heads)
        moved: Tensor = _run(note, torch.permute, split, (1, 2, 0, 3))
        return moved

    q, k, v = map(heads, (query, key, value), in_proj_weight.chunk(3), biases)
    mask = attn_mask
    if mask is not None and mask.dtype == torch.bool:
        mask = ~mask  # here True is where no attention goes
    if mask is not None and mask.ndim == 3:
        mask = mask.unflatten(0, (-1, num_heads))
    attended, weights = _attended(note, q, k, v, mask, None)
    joined = _run(note, torch.reshape, _run(note, torch.permute, attended, (2, 0, 1, 3)), query.shape)
    output = _run(note, F.linear, joined, out_proj_weight, out_proj_bias)
    if not need_weights:
        return output, None
    return output, _run(note, torch.mean, weights, 1) if average_attn_weights else weights
