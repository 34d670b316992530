"""The operations of a recorded forward pass, and how each propagates relevance back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from art_defenses_ext.attribution.axes import Follow, aligned, moved, reshaped, stacked
from art_defenses_ext.attribution.linear_map import Geometry, LinearMap
from art_defenses_ext.attribution.rules import stabilised
from art_defenses_ext.estimator.rebuild import at_least_float32

Back = Callable[[Tensor], tuple[Tensor, ...]]
"""From the relevance of a step's output to that of each of its inputs."""


class Notes(Protocol):
    """The record of a forward pass, as its operations use it."""

    softplus: float | None
    stabilizer: float
    attention_rule: str

    def linear(self, a: Tensor, layer: LinearMap, z: Tensor) -> Tensor:
        """Record a linear layer."""

    def step(
        self,
        inputs: Sequence[Tensor],
        output: Tensor,
        back: Back,
        *,
        nonnegative: bool | None = None,
        gate: bool | None = None,
        monotonic: bool = True,
        follow: Follow = aligned,
    ) -> Tensor:
        """Record any other operation; by default its output is nonnegative, or a gate, if all inputs are.

        ``monotonic``: whether each value of the output rises, or falls, with the values of one input that it depends
        on. ``follow``: where an axis of an input is in the output.
        """

    def is_gate(self, tensor: Tensor) -> bool:
        """Return whether ``tensor`` weights the values that it is multiplied with, such as a sigmoid's output."""

    def is_nonnegative(self, tensor: Tensor) -> bool:
        """Return whether ``tensor`` is known to be never below zero."""

    def view(self, base: Tensor, output: Tensor) -> Tensor:
        """Record that ``output`` may share its memory with ``base``."""

    def knows(self, tensor: Any) -> bool:
        """Return whether ``tensor`` belongs to the pass."""

    def without_parameters(self, value: Any) -> Any:
        """Return ``value``, detached if it is a tensor outside the pass."""


Handler = Callable[..., Any]
HANDLERS: dict[Any, Handler] = {}
"""Handlers by torch function; each returns the output, or NotImplemented."""

IN_PLACE: set[Any] = set()
"""The torch functions that write to their first argument."""


def handles(*functions: Any, in_place: Sequence[Any] = ()) -> Callable[[Handler], Handler]:
    """Register the handler of some torch functions, and of those that do the same in place."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys((*functions, *in_place), handler))
        IN_PLACE.update(in_place)
        return handler

    return register


@handles(F.linear)
def _linear(note: Notes, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not are_constants(note, weight, bias):
        return NotImplemented
    layer = LinearMap("linear", weight.detach(), None if bias is None else bias.detach())
    return note.linear(input, layer, F.linear(input, layer.weight, layer.bias))


def _convolution(nb_dims: int) -> Handler:
    def handler(
        note: Notes,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Any:
        strides, dilations = _each(stride, nb_dims), _each(dilation, nb_dims)
        paddings = _paddings(padding, weight.shape[2:], dilations)
        if not are_constants(note, weight, bias) or paddings is None or input.ndim != nb_dims + 2:
            return NotImplemented
        layer = LinearMap(
            "convolution",
            weight.detach(),
            None if bias is None else bias.detach(),
            Geometry(strides, paddings, dilations, groups),
        )
        return note.linear(input, layer, layer(input, layer.weight, layer.bias))

    return handler


HANDLERS |= {F.conv1d: _convolution(1), F.conv2d: _convolution(2), F.conv3d: _convolution(3)}


def _transposed_convolution(nb_dims: int) -> Handler:
    def handler(
        note: Notes,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        dilation: int | Sequence[int] = 1,
    ) -> Any:
        if not are_constants(note, weight, bias) or input.ndim != nb_dims + 2:
            return NotImplemented
        strides, paddings, dilations, outer = (
            _each(value, nb_dims) for value in (stride, padding, dilation, output_padding)
        )
        geometry = Geometry(strides, paddings, dilations, groups, transposed=True, output_padding=outer)
        layer = LinearMap("convolution", weight.detach(), None if bias is None else bias.detach(), geometry)
        return note.linear(input, layer, layer(input, layer.weight, layer.bias))

    return handler


HANDLERS |= {
    F.conv_transpose1d: _transposed_convolution(1),
    F.conv_transpose2d: _transposed_convolution(2),
    F.conv_transpose3d: _transposed_convolution(3),
}


def _each(value: int | Sequence[int], nb_dims: int) -> list[int]:
    values = [value] * nb_dims if isinstance(value, int) else list(value)
    return values * nb_dims if len(values) == 1 else values


def _paddings(padding: int | str | Sequence[int], kernel: Sequence[int], dilation: list[int]) -> list[int] | None:
    """Return the padding per side of each dimension; None if the two sides differ."""
    if padding == "valid":
        return [0] * len(kernel)
    if padding == "same":
        totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        return None if any(total % 2 for total in totals) else [total // 2 for total in totals]
    assert not isinstance(padding, str)
    return _each(padding, len(kernel))


@handles(F.batch_norm)
def _batch_norm(
    note: Notes,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if running_mean is None or running_var is None:
        return NotImplemented  # its output for an image depends on the rest of the batch
    with torch.no_grad():
        scale = (running_var + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        shift = -running_mean * scale if bias is None else bias - running_mean * scale
    layer = LinearMap("scale", scale, shift)
    return note.linear(input, layer, layer(input, scale, shift))


@handles(F.relu, torch.relu, Tensor.relu, in_place=(torch.relu_, Tensor.relu_))
def _relu(note: Notes, input: Tensor, inplace: bool = False) -> Any:
    if note.softplus is not None:
        return _softplus(note, input, note.softplus, float("inf"))
    # Relevance passes: where the output is zero, so is its relevance.
    return note.step([input], torch.relu(input), pass_on, nonnegative=True)


@handles(F.relu6)
def _relu6(note: Notes, input: Tensor, inplace: bool = False) -> Any:
    return _hardtanh(note, input, 0.0, 6.0)


@handles(F.hardtanh, in_place=(F.hardtanh_,))
def _hardtanh(note: Notes, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    if min_val != 0:
        return NotImplemented
    if note.softplus is not None:
        return _softplus(note, input, note.softplus, float("inf"), ceiling=max_val)
    return note.step([input], F.hardtanh(input, 0.0, max_val), pass_on, nonnegative=True)


@handles(F.softplus)
def _softplus(
    note: Notes, input: Tensor, beta: float = 1.0, threshold: float = 20.0, *, ceiling: float | None = None
) -> Tensor:
    output = F.softplus(input, beta) if threshold == 20 else smooth_relu(input, beta)

    def back(r: Tensor) -> tuple[Tensor]:
        # Relevance as gradient times input, as for a ReLU: softplus is not zero below zero, so passing all
        # relevance would lead to divisions by pre-activations near zero in the layer before.
        z = at_least_float32(input)
        return (r / stabilised(at_least_float32(output), note.stabilizer) * torch.sigmoid(beta * z) * z,)

    clipped = output if ceiling is None else output.clamp(max=ceiling)  # relevance passes the ceiling of a ReLU6
    return note.step([input], clipped, back, nonnegative=True)


def smooth_relu(z: Tensor, beta: float) -> Tensor:
    """Return softplus(beta z) / beta without F.softplus's jump to the identity, which finite differences detect."""
    return torch.logaddexp(beta * z, torch.zeros_like(z)) / beta


@handles(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
def _dropout(note: Notes, input: Tensor, *_: Any, **__: Any) -> Tensor:
    return input


def pass_on(r: Tensor) -> tuple[Tensor]:
    """Return the relevance unchanged: R_in = R_out."""
    return (r,)


def route(function: Callable[..., Tensor], *, moves_axes: bool = False) -> Handler:
    """Return the handler of an operation that moves or selects values: relevance returns to their origin."""

    def handler(note: Notes, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = function(input, *args, **kwargs)
        if not isinstance(output, Tensor):
            return NotImplemented

        def back(r: Tensor) -> tuple[Tensor]:
            return (pulled_back(lambda a: function(a, *args, **kwargs), input, r),)

        keeps_axes = output.ndim == input.ndim and not moves_axes
        return note.step([input], output, back, follow=aligned if keeps_axes else moved(function, *args, **kwargs))

    return handler


def _reshape(function: Callable[..., Tensor]) -> Handler:
    """Return the handler of an operation that keeps the order of the values, and may share their memory."""

    def handler(note: Notes, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = function(input, *args, **kwargs)
        return note.view(input, note.step([input], output, lambda r: (r.reshape(input.shape),), follow=reshaped))

    return handler


def _cast(function: Callable[..., Tensor]) -> Handler:
    """Return the handler of a copy, or a conversion of dtype or device; without a change it returns the input."""

    def handler(note: Notes, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = function(input, *args, **kwargs)
        return output if output is input else note.step([input], output, lambda r: (r.to(at_least_float32(input)),))

    return handler


def _view(function: Callable[..., Tensor]) -> Handler:
    """Return the handler of an operation that moves values, and axes, and may share their memory."""
    move = route(function, moves_axes=True)

    def handler(note: Notes, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = move(note, input, *args, **kwargs)
        return output if output is NotImplemented else note.view(input, output)

    return handler


def average(
    function: Callable[..., Tensor], *, has_negative_weights: bool = False, follow: Follow | None = None
) -> Handler:
    """Return the handler of a fixed linear operation: relevance is distributed by contribution."""

    def handler(note: Notes, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = function(input, *args, **kwargs)

        def back(r: Tensor) -> tuple[Tensor]:
            share = r / stabilised(at_least_float32(output), note.stabilizer)
            return (input * pulled_back(lambda a: function(a, *args, **kwargs), input, share),)

        by_default = aligned if output.ndim == input.ndim else moved(function, *args, **kwargs)
        place = by_default if follow is None else follow
        nonnegative = False if has_negative_weights else None
        return note.step(
            [input], output, back, nonnegative=nonnegative, monotonic=not has_negative_weights, follow=place
        )

    return handler


def _max_pool(function: Callable[..., tuple[Tensor, Tensor]], nb_arguments: int) -> Handler:
    """Return the handler of max pooling: relevance returns to the maximum of each window, by its index.

    ``nb_arguments`` positional ones come between the input and ``return_indices``.
    """

    def handler(note: Notes, input: Tensor, *args: Any, return_indices: bool = False, **kwargs: Any) -> Any:
        if return_indices or len(args) > nb_arguments:
            return NotImplemented
        output, places = function(input, *args, **kwargs)
        nb_windowed = input.ndim - 2  # images come in batches, with channels

        def back(r: Tensor) -> tuple[Tensor]:
            empty = torch.zeros(*input.shape[:2], input.shape[2:].numel(), dtype=r.dtype, device=r.device)
            spread = empty.scatter_add(2, places.flatten(2), r.flatten(2))
            return (spread.reshape(input.shape),)

        return NotImplemented if nb_windowed < 1 else note.step([input], output, back)

    return handler


def each_named(names: str, *owners: Any) -> list[Any]:
    """Return the functions that have these names in torch, ``torch.nn.functional`` or ``Tensor``."""
    return [getattr(owner, name) for name in names.split() for owner in owners if hasattr(owner, name)]


for _pool in each_named("max_pool1d max_pool2d max_pool3d", F, torch):
    HANDLERS[_pool] = _max_pool(getattr(F, f"{_pool.__name__}_with_indices"), nb_arguments=5)
for _pool in each_named("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", F):
    HANDLERS[_pool] = _max_pool(getattr(F, f"{_pool.__name__}_with_indices"), nb_arguments=1)


def _pieces(function: Callable[..., Sequence[Tensor]]) -> Handler:
    """Return the handler of an operation that returns several parts of its input, which share its memory."""

    def handler(note: Notes, input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        def taken(place: int) -> Callable[[Tensor], Tensor]:
            return lambda a: function(a, *args, **kwargs)[place]

        def recorded(piece: Tensor, take: Callable[[Tensor], Tensor]) -> Tensor:
            return note.step([input], piece, lambda r: (pulled_back(take, input, r),), follow=moved(take))

        pieces = enumerate(function(input, *args, **kwargs))
        return tuple(note.view(input, recorded(piece, taken(place))) for place, piece in pieces)

    return handler


_RESHAPES = "flatten reshape view squeeze unsqueeze contiguous unflatten reshape_as view_as ravel"
_VIEWS = "permute transpose movedim moveaxis swapaxes swapdims narrow expand expand_as broadcast_to t select unfold"
_MOVES = "flip fliplr flipud roll rot90 tile repeat repeat_interleave index_select gather take_along_dim"
_SHUFFLES = "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle"
_PIECES = "chunk tensor_split split unbind hsplit vsplit"
_AVERAGES = "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
for _make, _functions in (
    (_reshape, each_named(_RESHAPES, torch, Tensor)),
    (_cast, [torch.clone, *each_named("clone to type type_as float double half bfloat16", Tensor)]),
    (_view, [Tensor.__getitem__, *each_named(_VIEWS, torch, Tensor)]),
    (route, [*each_named(_MOVES, torch, Tensor), *each_named(_SHUFFLES, torch, F), F.unfold]),
    (_pieces, each_named(_PIECES, torch, Tensor)),
    (average, [*each_named(_AVERAGES, F), F.fold, *each_named("mean sum", torch, Tensor)]),
):
    HANDLERS |= {function: _make(function) for function in _functions}


@handles(F.interpolate)
def _interpolate(note: Notes, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    mode = args[2] if len(args) > 2 else kwargs.get("mode", "nearest")
    # Any other mode, such as bicubic, overshoots.
    averages = mode in ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "area")
    return average(F.interpolate, has_negative_weights=not averages)(note, input, *args, **kwargs)


@handles(torch.clamp, Tensor.clamp, torch.clip, Tensor.clip)
def _clamp(note: Notes, input: Tensor, min: Any = None, max: Any = None) -> Any:
    if min is not None or not isinstance(max, int | float):
        return NotImplemented
    # Relevance passes an upper limit, as that of a ReLU6.
    return note.step([input], input.clamp(max=max), pass_on, nonnegative=None if max >= 0 else False)


@handles(in_place=(Tensor.copy_,))
def _copy(note: Notes, input: Tensor, src: Tensor, non_blocking: bool = False) -> Any:
    if not note.knows(src):
        return NotImplemented  # what was computed of the image would be lost
    output = src.expand(input.shape).to(input, copy=True)
    return note.step([src], output, lambda r: (r.to(at_least_float32(src)).sum_to_size(src.shape),))


@handles(F.pad)
def _pad(note: Notes, input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    if mode == "constant" and value:
        return NotImplemented  # the value would be a bias
    return route(F.pad)(note, input, pad, mode)


@handles(torch.cat, torch.concat, torch.concatenate)
def _concatenate(note: Notes, tensors: Sequence[Tensor], dim: int = 0) -> Any:
    sizes = [tensor.shape[dim] for tensor in tensors]
    return _together(note, tensors, torch.cat(list(tensors), dim), lambda r: r.split(sizes, dim))


@handles(torch.stack)
def _stack(note: Notes, tensors: Sequence[Tensor], dim: int = 0) -> Any:
    return _together(note, tensors, torch.stack(list(tensors), dim), lambda r: r.unbind(dim), stacked(dim))


def _together(
    note: Notes,
    tensors: Sequence[Tensor],
    output: Tensor,
    parts: Callable[[Tensor], Sequence[Tensor]],
    follow: Follow = aligned,
) -> Any:
    """Record a concatenation.

    **Convention**: a part that does not depend on the image, such as a class token, keeps its relevance, as a bias.
    """
    places = [place for place, tensor in enumerate(tensors) if note.knows(tensor)]

    def back(r: Tensor) -> tuple[Tensor, ...]:
        shares = parts(r)
        return tuple(shares[place] for place in places)

    nonnegative = None if len(places) == len(tensors) else False
    known = [tensors[place] for place in places]
    return note.step(known, output, back, nonnegative=nonnegative, gate=nonnegative, follow=follow)


def _sum_of_two(sign: int, *, swapped: bool = False) -> Handler:
    """Return the handler of a + b or a - b, or b - a: relevance is distributed by contribution, none to a constant."""

    def handler(note: Notes, input: Any, other: Any, *, alpha: float = 1) -> Any:
        factor = sign * alpha
        if swapped:
            input, other = other, input
        input, other = note.without_parameters(input), note.without_parameters(other)
        output = input + factor * other if factor != 1 else input + other
        parts = [(term, times) for term, times in ((input, 1), (other, factor)) if note.knows(term)]
        if len(parts) == 1:
            return _constant(note, parts[0][0], output)

        def back(r: Tensor) -> tuple[Tensor, ...]:
            share = r / stabilised(at_least_float32(output), note.stabilizer)
            shares = (times * term * share if times != 1 else term * share for term, times in parts)
            return tuple(
                part if part.shape == term.shape else part.sum_to_size(term.shape)
                for part, (term, _) in zip(shares, parts, strict=True)
            )

        nonnegative = None if factor >= 0 else False
        return note.step([input, other], output, back, nonnegative=nonnegative, monotonic=False)

    return handler


handles(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, in_place=(Tensor.add_, Tensor.__iadd__))(_sum_of_two(1))
handles(torch.sub, Tensor.sub, Tensor.__sub__, in_place=(Tensor.sub_, Tensor.__isub__))(_sum_of_two(-1))


handles(torch.rsub, Tensor.__rsub__)(_sum_of_two(-1, swapped=True))


@handles(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, in_place=(Tensor.mul_, Tensor.__imul__))
def _product(note: Notes, input: Any, other: Any) -> Any:
    """Record a product.

    **Convention**: where one factor is a gate (a sigmoid, a softmax), the other takes all relevance, as in Arras et al.
    2017 (arXiv:1706.07206); else each takes half, the uniform rule of Achtibat et al. 2024 (arXiv:2402.05602).
    """
    output = note.without_parameters(input) * note.without_parameters(other)
    factors = [factor for factor in (input, other) if note.knows(factor)]
    if len(factors) == 1:
        return _constant(note, factors[0], output)
    signals = [factor for factor in factors if not note.is_gate(factor)] or factors

    def back(r: Tensor) -> tuple[Tensor, ...]:
        return tuple((r / len(signals)).sum_to_size(signal.shape) for signal in signals)

    nonnegative = all(map(note.is_nonnegative, factors))  # a gate may be negated
    return note.step(signals, output, back, nonnegative=nonnegative, monotonic=False)


@handles(torch.div, Tensor.div, Tensor.__truediv__, in_place=(Tensor.div_, Tensor.__itruediv__))
def _divided(note: Notes, input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    """Record a quotient; the divisor counts as a constant, as the deviation of a layer norm does."""
    if rounding_mode is not None or not note.knows(input):
        return NotImplemented
    return _constant(note, input, input / note.without_parameters(other), monotonic=not note.knows(other))


@handles(torch.neg, Tensor.neg, Tensor.__neg__)
def _negative(note: Notes, input: Tensor) -> Any:
    return _constant(note, input, -input)


_NEW = "zeros_like ones_like full_like empty_like rand_like randn_like"
for _new in (*each_named(_NEW, torch), *each_named("new_zeros new_ones new_full new_empty new_tensor", Tensor)):
    HANDLERS[_new] = lambda note, *args, _new=_new, **kwargs: _new(*args, **kwargs)  # constants


def _constant(note: Notes, input: Tensor, output: Tensor, *, monotonic: bool = True) -> Any:
    """Record an elementwise operation with a constant; where that repeats a value, its relevances are added.

    **Convention**: relevance passes through, since it belongs to a pixel at any scale and origin of its values; treated
    as a bias, the mean that a network subtracts would absorb relevance. So it is for a position embedding.
    """
    same = output.shape == input.shape
    back: Back = pass_on if same else lambda r: (r.sum_to_size(input.shape),)
    return note.step([input], output, back, nonnegative=False, gate=note.is_gate(input), monotonic=monotonic)


def are_constants(note: Notes, *tensors: Tensor | None) -> bool:
    """Return whether none of ``tensors`` depends on the input of the pass."""
    return not any(note.knows(tensor) for tensor in tensors)


def pulled_back(function: Callable[[Tensor], Tensor], at: Tensor, cotangent: Tensor) -> Tensor:
    """Return the vector-Jacobian product of ``function`` at ``at`` with ``cotangent``; differentiable in the latter.

    ``function`` is linear or selects values, so its derivative is piecewise constant in ``at``.
    """
    pull: Any = torch.func.vjp(function, at.detach().to(cotangent.dtype))[1]
    (pulled,) = pull(cotangent)
    result: Tensor = pulled
    return result
