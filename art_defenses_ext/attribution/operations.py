"""The operations of a recorded forward pass, and how each propagates relevance back."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from art_defenses_ext.attribution.linear_map import Geometry, LinearMap
from art_defenses_ext.attribution.rules import stabilised
from art_defenses_ext.estimator.rebuild import at_least_float32

Back = Callable[[Tensor], tuple[Tensor, ...]]
"""From the relevance of a step's output to that of each of its inputs."""


class Notes(Protocol):
    """The record of a forward pass, as its operations use it."""

    softplus: float | None
    stabilizer: float

    def linear(self, a: Tensor, layer: LinearMap, z: Tensor) -> Tensor:
        """Record a linear layer."""

    def step(self, inputs: Sequence[Tensor], output: Tensor, back: Back, *, nonnegative: bool | None = None) -> Tensor:
        """Record any other operation; by default its output is nonnegative if all inputs are."""

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


def _handles(*functions: Any, in_place: Sequence[Any] = ()) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys((*functions, *in_place), handler))
        IN_PLACE.update(in_place)
        return handler

    return register


@_handles(F.linear)
def _linear(note: Notes, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not _are_constants(note, weight, bias):
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
        if not _are_constants(note, weight, bias) or paddings is None or input.ndim != nb_dims + 2:
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


@_handles(F.batch_norm)
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


@_handles(F.relu, torch.relu, Tensor.relu, in_place=(torch.relu_, Tensor.relu_))
def _relu(note: Notes, input: Tensor, inplace: bool = False) -> Any:
    if note.softplus is not None:
        return _softplus(note, input, beta=note.softplus, threshold=float("inf"))
    # Relevance passes: where the output is zero, so is its relevance.
    return note.step([input], torch.relu(input), _pass, nonnegative=True)


@_handles(F.relu6)
def _relu6(note: Notes, input: Tensor, inplace: bool = False) -> Any:
    return _hardtanh(note, input, 0.0, 6.0)


@_handles(F.hardtanh, in_place=(F.hardtanh_,))
def _hardtanh(note: Notes, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    if min_val != 0 or note.softplus is not None:
        return NotImplemented
    return note.step([input], F.hardtanh(input, 0.0, max_val), _pass, nonnegative=True)


@_handles(F.softplus)
def _softplus(note: Notes, input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    output = F.softplus(input, beta) if threshold == 20 else _smooth_relu(input, beta)

    def back(r: Tensor) -> tuple[Tensor]:
        # Relevance as gradient times input, as for a ReLU: softplus is not zero below zero, so passing all
        # relevance would lead to divisions by pre-activations near zero in the layer before.
        z = at_least_float32(input)
        return (r / stabilised(at_least_float32(output), note.stabilizer) * torch.sigmoid(beta * z) * z,)

    return note.step([input], output, back, nonnegative=True)


def _smooth_relu(z: Tensor, beta: float) -> Tensor:
    """Return softplus(beta z) / beta without F.softplus's jump to the identity, which finite differences detect."""
    return torch.logaddexp(beta * z, torch.zeros_like(z)) / beta


@_handles(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
def _dropout(note: Notes, input: Tensor, *_: Any, **__: Any) -> Tensor:
    return input


def _pass(r: Tensor) -> tuple[Tensor]:
    return (r,)


def _route(function: Callable[..., Tensor]) -> Handler:
    """Return the handler of an operation that moves or selects values: relevance returns to their origin."""

    def handler(note: Notes, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = function(input, *args, **kwargs)
        if not isinstance(output, Tensor):
            return NotImplemented

        def back(r: Tensor) -> tuple[Tensor]:
            return (_pulled_back(lambda a: function(a, *args, **kwargs), input, r),)

        return note.step([input], output, back)

    return handler


def _reshape(function: Callable[..., Tensor]) -> Handler:
    """Return the handler of an operation that keeps the order of the values, and may share their memory."""

    def handler(note: Notes, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = function(input, *args, **kwargs)
        return note.view(input, note.step([input], output, lambda r: (r.reshape(input.shape),)))

    return handler


def _cast(function: Callable[..., Tensor]) -> Handler:
    """Return the handler of a copy, or a conversion of dtype or device; without a change it returns the input."""

    def handler(note: Notes, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = function(input, *args, **kwargs)
        return output if output is input else note.step([input], output, lambda r: (r.to(at_least_float32(input)),))

    return handler


def _view(function: Callable[..., Tensor]) -> Handler:
    """Return the handler of an operation that moves values and may share their memory."""
    route = _route(function)

    def handler(note: Notes, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = route(note, input, *args, **kwargs)
        return output if output is NotImplemented else note.view(input, output)

    return handler


def _average(function: Callable[..., Tensor]) -> Handler:
    """Return the handler of a fixed linear operation: relevance is distributed by contribution."""

    def handler(note: Notes, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = function(input, *args, **kwargs)

        def back(r: Tensor) -> tuple[Tensor]:
            share = r / stabilised(at_least_float32(output), note.stabilizer)
            return (input * _pulled_back(lambda a: function(a, *args, **kwargs), input, share),)

        return note.step([input], output, back)

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


def _each_named(names: str, *owners: Any) -> list[Any]:
    """Return the functions that have these names in torch, ``torch.nn.functional`` or ``Tensor``."""
    return [getattr(owner, name) for name in names.split() for owner in owners if hasattr(owner, name)]


for _pool in _each_named("max_pool1d max_pool2d max_pool3d", F, torch):
    HANDLERS[_pool] = _max_pool(getattr(F, f"{_pool.__name__}_with_indices"), nb_arguments=5)
for _pool in _each_named("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", F):
    HANDLERS[_pool] = _max_pool(getattr(F, f"{_pool.__name__}_with_indices"), nb_arguments=1)

_VIEWS = "permute transpose movedim moveaxis swapaxes swapdims narrow"
_AVERAGES = "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
for _make, _functions in (
    (_reshape, _each_named("flatten reshape view squeeze unsqueeze contiguous", torch, Tensor)),
    (_cast, [torch.clone, *_each_named("clone to type type_as float double half bfloat16", Tensor)]),
    (_view, [Tensor.__getitem__, *_each_named(_VIEWS, torch, Tensor)]),
    (_route, _each_named("flip", torch, Tensor)),
    (_average, [*_each_named(_AVERAGES, F), *_each_named("mean sum", torch, Tensor)]),
):
    HANDLERS |= {function: _make(function) for function in _functions}


@_handles(F.pad)
def _pad(note: Notes, input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    if mode == "constant" and value:
        return NotImplemented  # the value would be a bias
    return _route(F.pad)(note, input, pad, mode)


@_handles(torch.cat, torch.concat, torch.concatenate)
def _concatenate(note: Notes, tensors: Sequence[Tensor], dim: int = 0) -> Any:
    if not all(note.knows(tensor) for tensor in tensors):
        return NotImplemented
    sizes = [tensor.shape[dim] for tensor in tensors]
    return note.step(list(tensors), torch.cat(list(tensors), dim), lambda r: tuple(r.split(sizes, dim)))


def _sum_of_two(sign: int) -> Handler:
    """Return the handler of a + b or a - b: relevance is distributed by contribution, none to a constant."""

    def handler(note: Notes, input: Any, other: Any, *, alpha: float = 1) -> Any:
        factor = sign * alpha
        input, other = note.without_parameters(input), note.without_parameters(other)
        output = input + factor * other if factor != 1 else input + other
        parts = [(term, times) for term, times in ((input, 1), (other, factor)) if note.knows(term)]
        if len(parts) == 1:
            return _constant(note, parts[0][0], output)
        if input.shape != other.shape or input is other:
            return NotImplemented

        def back(r: Tensor) -> tuple[Tensor, ...]:
            share = r / stabilised(at_least_float32(output), note.stabilizer)
            return tuple(times * term * share if times != 1 else term * share for term, times in parts)

        return note.step([input, other], output, back, nonnegative=None if factor >= 0 else False)

    return handler


_handles(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, in_place=(Tensor.add_, Tensor.__iadd__))(
    _sum_of_two(1)
)
_handles(torch.sub, Tensor.sub, Tensor.__sub__, in_place=(Tensor.sub_, Tensor.__isub__))(_sum_of_two(-1))


def _scaling(operation: Callable[[Any, Any], Tensor]) -> Handler:
    def handler(note: Notes, input: Any, other: Any) -> Any:
        if note.knows(input) and note.knows(other):
            return NotImplemented
        output = operation(note.without_parameters(input), note.without_parameters(other))
        return _constant(note, input if note.knows(input) else other, output)

    return handler


_handles(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, in_place=(Tensor.mul_, Tensor.__imul__))(
    _scaling(operator.mul)
)


@_handles(torch.div, Tensor.div, Tensor.__truediv__, in_place=(Tensor.div_, Tensor.__itruediv__))
def _divided(note: Notes, input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None or note.knows(other):
        return NotImplemented
    return _constant(note, input, input / note.without_parameters(other))


def _constant(note: Notes, input: Tensor, output: Tensor) -> Any:
    """Record an elementwise operation with a constant.

    **Convention**: relevance passes through, since it belongs to a pixel at any scale and origin of its values; treated
    as a bias, the mean that a network subtracts would absorb relevance.
    """
    if output.shape != input.shape:
        return NotImplemented
    return note.step([input], output, _pass, nonnegative=False)


def _are_constants(note: Notes, *tensors: Tensor | None) -> bool:
    return not any(note.knows(tensor) for tensor in tensors)


def _pulled_back(function: Callable[[Tensor], Tensor], at: Tensor, cotangent: Tensor) -> Tensor:
    """Return the vector-Jacobian product of ``function`` at ``at`` with ``cotangent``; differentiable in the latter.

    ``function`` is linear or selects values, so its derivative is piecewise constant in ``at``.
    """
    pull: Any = torch.func.vjp(function, at.detach().to(cotangent.dtype))[1]
    (pulled,) = pull(cotangent)
    result: Tensor = pulled
    return result
