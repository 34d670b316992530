"""Replacement of every rectifier of a network at run time.

A rectifier is a ReLU, or one of its successors: large values pass as they are, those below zero are damped. It can be a
module (one object may serve several calls), a function of ``torch`` or ``torch.nn.functional``, or a method of a
tensor, in place or not, anywhere inside a ``forward``. All of them use torch's function overrides, so a mode around the
forward pass intercepts each call, in the order of execution, without changing the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.validation import is_compiled


class Rectifier(NamedTuple):
    """A rectifier with the parameters of one call.

    Attributes:
        function: from pre-activations to activations, element by element; ``torch.relu`` for every form of the ReLU.
        has_kink: whether it is linear on either side of zero, so that its second derivative is zero.
        ceiling: upper limit of the activation, which also holds for what replaces it; None without one.
    """

    function: Callable[[Tensor], Tensor]
    has_kink: bool = False
    ceiling: float | None = None


Replacement = Callable[[Rectifier, Tensor, int], Tensor]
"""Replacement of a rectifier: (rectifier, pre-activation z, number of earlier calls in this pass) -> activation."""


class _Call(NamedTuple):
    """A call: its pre-activation, its rectifier, and whether it overwrites its input."""

    z: Tensor
    rectifier: Rectifier
    inplace: bool


_Reader = Callable[..., _Call | None]
"""From the arguments of a torch function to the call; None where it is no rectifier."""


def _plain(function: Callable[..., Tensor], *, inplace: bool = False, has_kink: bool = False) -> _Reader:
    """Return the reader of r(z), r(z, parameter) and their forms with ``inplace``."""

    def read(input: Tensor, *args: Any, **kwargs: Any) -> _Call:
        overwrites = kwargs.pop("inplace", inplace) or any(value is True for value in args)
        parameters = [value for value in args if not isinstance(value, bool)]
        bound = (lambda z: function(z, *parameters, **kwargs)) if parameters or kwargs else function
        return _Call(input, Rectifier(bound, has_kink), overwrites)

    return read


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> _Call | None:
    return _Call(input, Rectifier(torch.relu, True, max_val), inplace) if min_val == 0 else None


def _rrelu(
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
    **_: Any,
) -> _Call | None:
    mean = partial(F.leaky_relu, negative_slope=(lower + upper) / 2)
    return None if training else _Call(input, Rectifier(mean, True), inplace)


_READ: dict[Callable[..., Any], _Reader] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _plain(torch.relu, has_kink=True)),
    **dict.fromkeys((torch.relu_, Tensor.relu_), _plain(torch.relu, inplace=True, has_kink=True)),  # also F.relu_
    F.relu6: lambda input, inplace=False: _hardtanh(input, 0.0, 6.0, inplace),
    F.hardtanh: _hardtanh,
    F.hardtanh_: partial(_hardtanh, inplace=True),
    F.leaky_relu: _plain(F.leaky_relu, has_kink=True),
    F.leaky_relu_: _plain(F.leaky_relu, inplace=True, has_kink=True),
    **dict.fromkeys((torch.prelu, Tensor.prelu), _plain(torch.prelu, has_kink=True)),  # also F.prelu
    **dict.fromkeys((F.rrelu, torch.rrelu), _rrelu),
    torch.rrelu_: partial(_rrelu, inplace=True),
    **{each: _plain(each) for each in (F.gelu, F.silu, F.mish, F.hardswish, F.softplus, F.elu)},
    F.elu_: _plain(F.elu, inplace=True),
    **dict.fromkeys((F.selu, torch.selu), _plain(torch.selu)),
    torch.selu_: _plain(torch.selu, inplace=True),
    **dict.fromkeys((F.celu, torch.celu), _plain(torch.celu)),
    torch.celu_: _plain(torch.celu, inplace=True),
}


class ReplaceRectifiers(TorchFunctionMode):
    """A torch function mode that replaces each rectifier by ``replacement(rectifier, z, call number)`` while active.

    ReLU, leaky ReLU, PReLU, RReLU, ELU, SELU, CELU, GELU, SiLU, Mish, hard-swish and softplus are rectifiers. What does
    not rectify stays: tanh, sigmoid, hard-sigmoid, softmax, and arithmetic such as ``clamp`` or ``z * z.sigmoid()``. An
    in-place rectifier still overwrites its input, which the network may read again. A clipped ReLU, ``nn.ReLU6`` or a
    hardtanh with a lower limit of zero, is replaced too.

    **Convention** ReLU6 becomes min(replacement(z), 6): the upper limit serves the number format that MobileNet
    was designed for, and is not part of the activation that a paper replaces.

    Args:
        replacement: maps a rectifier, its pre-activation of any shape, and the call's number from 0, to a tensor of
            that shape.

    Attributes:
        calls: number of replaced calls so far.
    """

    def __init__(self, replacement: Replacement) -> None:
        super().__init__()
        self.replacement = replacement
        self.calls = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        call = _READ[func](*args, **kwargs) if func in _READ else None
        if call is None:
            return func(*args, **kwargs)
        answer = self.replacement(call.rectifier, call.z.clone() if call.inplace else call.z, self.calls)
        self.calls += 1
        if call.rectifier.ceiling is not None:
            answer = answer.clamp(max=call.rectifier.ceiling)
        return call.z.copy_(answer) if call.inplace else answer


def softplus_for_kinks(beta: float | None) -> AbstractContextManager[object]:
    """Smooth every rectifier with a kink inside the block, a ReLU by softplus(beta z) / beta; None replaces nothing.

    A piecewise linear rectifier is r(z) = r(relu(z)) + r(-relu(-z)); the softplus replaces both ReLUs.
    """
    if beta is None:
        return nullcontext()

    def smooth(rectifier: Rectifier, z: Tensor, _: int) -> Tensor:
        function = rectifier.function
        if not rectifier.has_kink:
            return function(z)
        positive = F.softplus(z, beta=beta)
        return positive if function is torch.relu else function(positive) + function(-F.softplus(-z, beta=beta))

    return ReplaceRectifiers(smooth)


def check_replaceable(model: nn.Module) -> None:
    """Refuse a network whose rectifiers function overrides cannot intercept.

    Raises:
        InputError: for compiled TorchScript, for what ``torch.compile`` compiled, for recurrent layers, and for
            ``DataParallel``, whose worker threads do not inherit the override.
    """
    for name, module in model.named_modules():
        where = f"the model's layer {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"{where} is compiled TorchScript, whose rectifiers cannot be replaced; pass the eager module"
            )
        if is_compiled(module):
            raise InputError(
                f"{where} is compiled by torch.compile, whose rectifiers cannot be replaced; pass it uncompiled"
            )
        if isinstance(module, nn.RNNBase):
            raise InputError(
                f"{where} is a recurrent layer: ART differentiates such networks in training mode, in which none "
                "is replaced; a network without one was expected"
            )
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise InputError(f"{where} is a {type(module).__name__}; its .module was expected")


def count_rectifiers(model: nn.Module, x: Tensor) -> int:
    """Return the number of rectifiers called in an evaluation pass of ``model`` on ``x`` (N, ...).

    Raises:
        InputError: if autograd does not record a rectifier, as with activation checkpointing: the backward pass would
            then run the layer again, outside the mode, and give the gradient of another network.
    """
    saved = 0

    def count_saved(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += 1
        return tensor

    def probe(rectifier: Rectifier, z: Tensor, _: int) -> Tensor:
        before = saved
        answer = rectifier.function(z)
        # A rectifier saves a tensor for its backward pass. Checkpointing intercepts it before our hook, or disables
        # gradients meanwhile.
        if not torch.is_grad_enabled() or (answer.requires_grad and saved == before):
            raise InputError(
                "the model keeps rectifiers from autograd (activation checkpointing, no_grad), where they cannot be "
                "replaced; a model without that was expected"
            )
        return answer

    hooks = torch.autograd.graph.saved_tensors_hooks(count_saved, lambda tensor: tensor)
    with torch.enable_grad(), hooks, ReplaceRectifiers(probe) as mode:
        model(x.detach().requires_grad_().clone())  # a clone, since the network may begin with an in-place operation
    calls: int = mode.calls
    return calls
