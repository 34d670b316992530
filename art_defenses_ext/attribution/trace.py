"""A forward pass written down as steps, so that relevance can be sent back through it.

The pass runs inside a torch function mode, which sees each operation that a network calls on its way from the input;
no hook, no copy and no change of the network is needed. The values are those of the ordinary forward pass, connected
by autograd as usual, so whatever is computed of them on the way back can be differentiated exactly.

Evaluation semantics hold whatever the network's mode: batch norm takes its running statistics, dropout nothing.
"""

from __future__ import annotations

import operator
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from art_defenses_ext.attribution.linear_map import Geometry, LinearMap, scaled
from art_defenses_ext.attribution.rules import stabilised
from art_defenses_ext.base.validation import AttributionError
from art_defenses_ext.estimator.rebuild import at_least_float32

Back = Callable[[Tensor], tuple[Tensor, ...]]
"""Relevance of a step's output -> that of each of its inputs."""


@dataclass(eq=False)
class Step:
    """One operation of the pass.

    Attributes:
        inputs: what it took of the pass.
        output: what it gave.
        back: how relevance goes back; None for a linear layer, whose rule is chosen later.
        layer: the linear layer, if it is one.
        nonnegative: of a linear layer, whether its input cannot be below zero.
    """

    inputs: tuple[Tensor, ...]
    output: Tensor
    back: Back | None
    layer: LinearMap | None = None
    nonnegative: bool = False


class Trace(TorchFunctionMode):
    """While active, writes down what a network does with ``x``.

    Args:
        x: the input (N, ...).
        model: the network, for the names of its layers in errors.
        softplus: with a number b, every ReLU is answered by softplus(b z) / b, which can be differentiated twice.
        stabilizer: keeps the denominators of averages and sums away from zero.

    Attributes:
        steps: the operations in their order.

    Raises:
        InputError: for TorchScript.
    """

    def __init__(self, x: Tensor, model: nn.Module, softplus: float | None, stabilizer: float) -> None:
        super().__init__()
        self.x, self.model, self.softplus, self.stabilizer = x, model, softplus, stabilizer
        self.steps: list[Step] = []
        self._known: dict[int, Tensor] = {id(x): x}  # all of the pass; held, so that no id is given twice
        self._now: dict[int, Tensor] = {}  # what an in-place operation has put in the place of a tensor
        self._stale: set[int] = set()  # shares its memory with one that was overwritten
        self._views: dict[int, set[int]] = {}  # tensors that share memory, by each of them
        self._nonnegative: set[int] = set()
        self._constants = {id(one) for one in (*model.parameters(), *model.buffers())}
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                where = f"layer {name!r}" if name else "the model"
                raise AttributionError(
                    f"{where} is compiled TorchScript, whose operations cannot be seen; pass it uncompiled"
                )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not any(id(one) in self._known for one in _tensors((*args, *kwargs.values()))):
            return self._aside(func, args, kwargs)
        given: Any = args[0] if args else kwargs.get("input")
        args, kwargs = self._current(args), {key: self._current(value) for key, value in kwargs.items()}
        if func not in HANDLERS:
            result = NotImplemented if _writes(func) else func(*args, **kwargs)
            if result is NotImplemented or any(True for _ in _tensors((result,))):
                raise self._untreatable(func)
            return result
        result = HANDLERS[func](self, *args, **kwargs)
        if result is NotImplemented:
            raise self._untreatable(func)
        if func in IN_PLACE or kwargs.get("inplace") is True:
            self._overwrite(given, result)
        return result

    def value(self, tensor: Any) -> Tensor:
        """What ``tensor``, a result of the network, stands for at the end of the pass.

        Raises:
            InputError: if the pass was not followed up to it.
        """
        if not self.knows(tensor):
            raise AttributionError(
                "the model's output does not come from its input by operations that can be seen (a compiled or "
                "scripted model?); a plain nn.Module that returns logits was expected"
            )
        current: Tensor = self._current(tensor)
        return current

    def knows(self, tensor: Any) -> bool:
        """Whether ``tensor`` belongs to the pass."""
        return id(tensor) in self._known

    def fold(self, keep: Tensor) -> None:
        """Fold each batch norm into the layer before, where nothing else reads that layer's output.

        Args:
            keep: a tensor of the pass that must not be folded away, since relevance starts there.
        """
        readers = Counter(id(one) for step in self.steps for one in step.inputs)
        producers = {id(step.output): step for step in self.steps}
        folded: set[int] = set()
        for step in self.steps:
            if step.layer is None or step.layer.kind != "scale":
                continue
            before = producers.get(id(step.inputs[0]))
            if before is None or before.layer is None or readers[id(before.output)] > 1 or before.output is keep:
                continue
            if before.layer.kind == "linear" and before.output.ndim > 2:
                continue  # its units are the last dimension, the batch norm's channels the second
            assert step.layer.bias is not None
            step.layer = scaled(before.layer, step.layer.weight, step.layer.bias)
            step.inputs, step.nonnegative = before.inputs, before.nonnegative
            folded.add(id(before.output))
        self.steps = [step for step in self.steps if id(step.output) not in folded]

    # What handlers call

    def linear(self, a: Tensor, layer: LinearMap, z: Tensor) -> Tensor:
        """Note a linear layer."""
        self.steps.append(Step((a,), z, None, layer, id(a) in self._nonnegative))
        return self._add(z)

    def step(self, inputs: Sequence[Tensor], output: Tensor, back: Back, *, nonnegative: bool | None = None) -> Tensor:
        """Note any other operation; by default its output is not negative where no input is."""
        if any(output is one for one in inputs):
            return output
        self.steps.append(Step(tuple(inputs), output, back))
        if all(id(one) in self._nonnegative for one in inputs) if nonnegative is None else nonnegative:
            self._nonnegative.add(id(output))
        return self._add(output)

    def view(self, base: Tensor, output: Tensor) -> Tensor:
        """Note that ``output`` may share its memory with ``base``."""
        family = self._views.setdefault(id(base), {id(base)})
        family.add(id(output))
        self._views[id(output)] = family
        return output

    def without_parameters(self, value: Any) -> Any:
        """``value``, detached if it is a tensor that is not of the pass: parameters count as constants."""
        return value.detach() if isinstance(value, Tensor) and not self.knows(value) else value

    # Inside

    def _add(self, tensor: Tensor) -> Tensor:
        self._known[id(tensor)] = tensor
        return tensor

    def _aside(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation that has nothing to do with the input; it must not write to the network's tensors either."""
        if _writes(func) and args and id(args[0]) in self._constants:
            args = (args[0].clone(), *args[1:])
        return func(*args, **kwargs)

    def _current(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self._current(one) for one in value)
        current = self._now.get(id(value), value)
        if id(current) in self._stale:
            raise AttributionError(f"{self._where()} reads what was overwritten in place through another view of it")
        return current

    def _overwrite(self, tensor: Tensor, result: Tensor) -> None:
        """From here on ``tensor`` reads as ``result``; the pass keeps what it was."""
        before = self._now.get(id(tensor), tensor)
        if before is result:
            return  # dropout, which does nothing
        # What stood for the same memory goes on standing for it.
        same = {id(tensor), id(before)} | {key for key, value in self._now.items() if value is before}
        self._now.update(dict.fromkeys(same, result))
        self._known[id(tensor)] = tensor  # it may have been a constant
        self._stale |= self._views.get(id(before), set()) - same

    def _untreatable(self, func: Callable[..., Any]) -> AttributionError:
        name = getattr(func, "__name__", repr(func))
        return AttributionError(
            f"{self._where()} calls {name}, which relevance cannot be sent through; linear layers, convolutions, batch "
            "norm, pooling, dropout, ReLU, softplus, addition, concatenation and reshaping were expected"
        )

    def _where(self) -> str:
        """The innermost layer of the network that is running."""
        names = {id(module): name for name, module in self.model.named_modules()}
        frame = sys._getframe()
        while frame.f_back is not None:
            frame = frame.f_back
            owner = frame.f_locals.get("self")
            if id(owner) in names:
                name = names[id(owner)]
                return f"layer {name!r} ({type(owner).__name__})" if name else f"the model ({type(owner).__name__})"
        return "the model"


def _writes(func: Callable[..., Any]) -> bool:
    """Whether ``func`` writes to its first argument, as far as names tell."""
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


# How each operation is noted

Handler = Callable[..., Any]
HANDLERS: dict[Any, Handler] = {}
"""By torch function; returns the output, or NotImplemented."""

IN_PLACE: set[Any] = set()
"""Those of them that write to their first argument."""


def _handles(*functions: Any, in_place: Sequence[Any] = ()) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys((*functions, *in_place), handler))
        IN_PLACE.update(in_place)
        return handler

    return register


@_handles(F.linear)
def _linear(trace: Trace, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not _are_constants(trace, weight, bias):
        return NotImplemented
    layer = LinearMap("linear", weight.detach(), None if bias is None else bias.detach())
    return trace.linear(input, layer, F.linear(input, layer.weight, layer.bias))


def _convolution(nb_dims: int) -> Handler:
    def handler(
        trace: Trace,
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
        if not _are_constants(trace, weight, bias) or paddings is None or input.ndim != nb_dims + 2:
            return NotImplemented
        layer = LinearMap(
            "convolution",
            weight.detach(),
            None if bias is None else bias.detach(),
            Geometry(strides, paddings, dilations, groups),
        )
        return trace.linear(input, layer, layer(input, layer.weight, layer.bias))

    return handler


HANDLERS |= {F.conv1d: _convolution(1), F.conv2d: _convolution(2), F.conv3d: _convolution(3)}


def _each(value: int | Sequence[int], nb_dims: int) -> list[int]:
    values = [value] * nb_dims if isinstance(value, int) else list(value)
    return values * nb_dims if len(values) == 1 else values


def _paddings(padding: int | str | Sequence[int], kernel: Sequence[int], dilation: list[int]) -> list[int] | None:
    """Padding on each side of each dimension; None if it is not the same on both sides."""
    if padding == "valid":
        return [0] * len(kernel)
    if padding == "same":
        totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        return None if any(total % 2 for total in totals) else [total // 2 for total in totals]
    assert not isinstance(padding, str)
    return _each(padding, len(kernel))


@_handles(F.batch_norm)
def _batch_norm(
    trace: Trace,
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
        return NotImplemented  # what it does to an image depends on the others of the batch
    with torch.no_grad():
        scale = (running_var + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        shift = -running_mean * scale if bias is None else bias - running_mean * scale
    layer = LinearMap("scale", scale, shift)
    return trace.linear(input, layer, layer(input, scale, shift))


@_handles(F.relu, torch.relu, Tensor.relu, in_place=(torch.relu_, Tensor.relu_))
def _relu(trace: Trace, input: Tensor, inplace: bool = False) -> Any:
    if trace.softplus is not None:
        return _softplus(trace, input, beta=trace.softplus, threshold=float("inf"))
    # Relevance passes: where the output is zero, so is its relevance.
    return trace.step([input], torch.relu(input), _pass, nonnegative=True)


@_handles(F.relu6)
def _relu6(trace: Trace, input: Tensor, inplace: bool = False) -> Any:
    return _hardtanh(trace, input, 0.0, 6.0)


@_handles(F.hardtanh, in_place=(F.hardtanh_,))
def _hardtanh(trace: Trace, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    if min_val != 0 or trace.softplus is not None:
        return NotImplemented
    return trace.step([input], F.hardtanh(input, 0.0, max_val), _pass, nonnegative=True)


@_handles(F.softplus)
def _softplus(trace: Trace, input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    output = F.softplus(input, beta) if threshold == 20 else _smooth_relu(input, beta)

    def back(r: Tensor) -> tuple[Tensor]:
        # Relevance as gradient times input, as a ReLU has it too: softplus is not zero below zero, so passing all of
        # the relevance on would be divided by pre-activations near zero further down.
        z = at_least_float32(input)
        return (r / stabilised(at_least_float32(output), trace.stabilizer) * torch.sigmoid(beta * z) * z,)

    return trace.step([input], output, back, nonnegative=True)


def _smooth_relu(z: Tensor, beta: float) -> Tensor:
    """softplus(beta z) / beta without F.softplus's jump to the identity, which finite differences would see."""
    return torch.logaddexp(beta * z, torch.zeros_like(z)) / beta


@_handles(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
def _dropout(trace: Trace, input: Tensor, *_: Any, **__: Any) -> Tensor:
    return input


def _pass(r: Tensor) -> tuple[Tensor]:
    return (r,)


def _route(function: Callable[..., Tensor]) -> Handler:
    """An operation that only moves values (or picks the largest): relevance goes back to where a value came from."""

    def handler(trace: Trace, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = function(input, *args, **kwargs)
        if not isinstance(output, Tensor):
            return NotImplemented

        def back(r: Tensor) -> tuple[Tensor]:
            return (_pulled_back(lambda a: function(a, *args, **kwargs), input, r),)

        return trace.step([input], output, back)

    return handler


def _reshape(function: Callable[..., Tensor]) -> Handler:
    """A route that keeps the order of the values, and may share their memory."""

    def handler(trace: Trace, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = function(input, *args, **kwargs)
        return trace.view(input, trace.step([input], output, lambda r: (r.reshape(input.shape),)))

    return handler


def _cast(function: Callable[..., Tensor]) -> Handler:
    """A copy, or the same values in another dtype or on another device; the very input where nothing changes."""

    def handler(trace: Trace, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = function(input, *args, **kwargs)
        return output if output is input else trace.step([input], output, lambda r: (r.to(at_least_float32(input)),))

    return handler


def _view(function: Callable[..., Tensor]) -> Handler:
    """A route that may share its input's memory."""
    route = _route(function)

    def handler(trace: Trace, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = route(trace, input, *args, **kwargs)
        return output if output is NotImplemented else trace.view(input, output)

    return handler


def _average(function: Callable[..., Tensor]) -> Handler:
    """A fixed linear operation: relevance goes back in proportion to what each value contributed."""

    def handler(trace: Trace, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = function(input, *args, **kwargs)

        def back(r: Tensor) -> tuple[Tensor]:
            share = r / stabilised(at_least_float32(output), trace.stabilizer)
            return (input * _pulled_back(lambda a: function(a, *args, **kwargs), input, share),)

        return trace.step([input], output, back)

    return handler


def _max_pool(function: Callable[..., tuple[Tensor, Tensor]]) -> Handler:
    """Relevance goes back to the largest of each window; its place is kept, so nothing is pooled again."""

    def handler(trace: Trace, input: Tensor, *args: Any, return_indices: bool = False, **kwargs: Any) -> Any:
        if return_indices or len(args) > _BEFORE_RETURN_INDICES[function]:
            return NotImplemented
        output, places = function(input, *args, **kwargs)
        nb_windowed = input.ndim - 2  # images come in batches, with channels

        def back(r: Tensor) -> tuple[Tensor]:
            empty = torch.zeros(*input.shape[:2], input.shape[2:].numel(), dtype=r.dtype, device=r.device)
            spread = empty.scatter_add(2, places.flatten(2), r.flatten(2))
            return (spread.reshape(input.shape),)

        return NotImplemented if nb_windowed < 1 else trace.step([input], output, back)

    return handler


_WITH_PLACES: dict[Any, Any] = {
    F.max_pool1d: F.max_pool1d_with_indices,
    F.max_pool2d: F.max_pool2d_with_indices,
    F.max_pool3d: F.max_pool3d_with_indices,
    torch.max_pool1d: F.max_pool1d_with_indices,
    torch.max_pool2d: F.max_pool2d_with_indices,
    torch.max_pool3d: F.max_pool3d_with_indices,
    F.adaptive_max_pool1d: F.adaptive_max_pool1d_with_indices,
    F.adaptive_max_pool2d: F.adaptive_max_pool2d_with_indices,
    F.adaptive_max_pool3d: F.adaptive_max_pool3d_with_indices,
}
_BEFORE_RETURN_INDICES: dict[Any, int] = {one: 1 if "adaptive" in one.__name__ else 5 for one in _WITH_PLACES.values()}
HANDLERS |= {one: _max_pool(with_places) for one, with_places in _WITH_PLACES.items()}
_RESHAPES: tuple[Any, ...] = (
    torch.flatten,
    Tensor.flatten,
    torch.reshape,
    Tensor.reshape,
    Tensor.view,
    torch.squeeze,
    Tensor.squeeze,
    torch.unsqueeze,
    Tensor.unsqueeze,
    Tensor.contiguous,
)
HANDLERS |= {one: _reshape(one) for one in _RESHAPES}
_CASTS: tuple[Any, ...] = (
    Tensor.to,
    Tensor.type,
    Tensor.type_as,
    Tensor.float,
    Tensor.double,
    Tensor.half,
    Tensor.bfloat16,
    Tensor.clone,
    torch.clone,
)
HANDLERS |= {one: _cast(one) for one in _CASTS}
_VIEWS: tuple[Any, ...] = (
    torch.permute,
    Tensor.permute,
    torch.transpose,
    Tensor.transpose,
    Tensor.__getitem__,
    torch.movedim,
    Tensor.movedim,
    torch.moveaxis,
    Tensor.moveaxis,
    torch.swapaxes,
    Tensor.swapaxes,
    torch.swapdims,
    Tensor.swapdims,
    torch.narrow,
    Tensor.narrow,
)
HANDLERS |= {one: _view(one) for one in _VIEWS}
HANDLERS |= {one: _route(one) for one in (torch.flip, Tensor.flip)}
_AVERAGES: tuple[Any, ...] = (
    F.avg_pool1d,
    F.avg_pool2d,
    F.avg_pool3d,
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
    torch.mean,
    Tensor.mean,
    torch.sum,
    Tensor.sum,
)
HANDLERS |= {one: _average(one) for one in _AVERAGES}


@_handles(F.pad)
def _pad(trace: Trace, input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    if mode == "constant" and value:
        return NotImplemented  # the value would be a bias
    return _route(F.pad)(trace, input, pad, mode)


@_handles(torch.cat, torch.concat, torch.concatenate)
def _concatenate(trace: Trace, tensors: Sequence[Tensor], dim: int = 0) -> Any:
    if not all(trace.knows(one) for one in tensors):
        return NotImplemented
    sizes = [one.shape[dim] for one in tensors]
    return trace.step(list(tensors), torch.cat(list(tensors), dim), lambda r: tuple(r.split(sizes, dim)))


def _sum_of_two(sign: int) -> Handler:
    """a + b or a - b: relevance goes back in proportion; a constant takes none of it."""

    def handler(trace: Trace, input: Any, other: Any, *, alpha: float = 1) -> Any:
        factor = sign * alpha
        input, other = trace.without_parameters(input), trace.without_parameters(other)
        output = input + factor * other if factor != 1 else input + other
        parts = [(one, times) for one, times in ((input, 1), (other, factor)) if trace.knows(one)]
        if len(parts) == 1:
            return _constant(trace, parts[0][0], output)
        if input.shape != other.shape or input is other:
            return NotImplemented

        def back(r: Tensor) -> tuple[Tensor, ...]:
            share = r / stabilised(at_least_float32(output), trace.stabilizer)
            return tuple(times * one * share if times != 1 else one * share for one, times in parts)

        return trace.step([input, other], output, back, nonnegative=None if factor >= 0 else False)

    return handler


_handles(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, in_place=(Tensor.add_, Tensor.__iadd__))(
    _sum_of_two(1)
)
_handles(torch.sub, Tensor.sub, Tensor.__sub__, in_place=(Tensor.sub_, Tensor.__isub__))(_sum_of_two(-1))


def _scaling(operation: Callable[[Any, Any], Tensor]) -> Handler:
    def handler(trace: Trace, input: Any, other: Any) -> Any:
        if trace.knows(input) and trace.knows(other):
            return NotImplemented
        output = operation(trace.without_parameters(input), trace.without_parameters(other))
        return _constant(trace, input if trace.knows(input) else other, output)

    return handler


_handles(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, in_place=(Tensor.mul_, Tensor.__imul__))(
    _scaling(operator.mul)
)


@_handles(torch.div, Tensor.div, Tensor.__truediv__, in_place=(Tensor.div_, Tensor.__itruediv__))
def _divided(trace: Trace, input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None or trace.knows(other):
        return NotImplemented
    return _constant(trace, input, input / trace.without_parameters(other))


def _constant(trace: Trace, input: Tensor, output: Tensor) -> Any:
    """Elementwise with a constant. **Convention**: relevance passes, since it belongs to a pixel, whatever the scale
    and origin of its values; as a bias, the mean that a network subtracts would take relevance away."""
    if output.shape != input.shape:
        return NotImplemented
    return trace.step([input], output, _pass, nonnegative=False)


def _are_constants(trace: Trace, *tensors: Tensor | None) -> bool:
    return not any(trace.knows(one) for one in tensors)


def _pulled_back(function: Callable[[Tensor], Tensor], at: Tensor, cotangent: Tensor) -> Tensor:
    """The derivative of ``function`` at ``at``, transposed, times ``cotangent``; differentiable in the latter.

    All that comes here is linear or picks values, so its derivative depends on ``at`` at most in steps.
    """
    pull: Any = torch.func.vjp(function, at.detach().to(cotangent.dtype))[1]
    (pulled,) = pull(cotangent)
    result: Tensor = pulled
    return result
