"""Replacement of every ReLU of a network at run time.

A ReLU can be an ``nn.ReLU`` (one object may serve several calls), ``F.relu``, ``torch.relu`` or ``Tensor.relu``, in
place or not, anywhere inside a ``forward``. All of them use torch's function overrides, so a mode around the forward
pass intercepts each call, in the order of execution, without changing the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from art_defenses_ext.base.errors import InputError

Replacement = Callable[[Tensor, int], Tensor]
"""Replacement of a ReLU: (pre-activation z, number of earlier ReLU calls in this pass) -> activation."""


class _Call(NamedTuple):
    """A ReLU call: its pre-activation, its upper limit or None, and whether it overwrites its input."""

    z: Tensor
    ceiling: float | None
    inplace: bool


def _relu(input: Tensor, inplace: bool = False) -> _Call:
    return _Call(input, None, inplace)


def _relu_(input: Tensor) -> _Call:
    return _Call(input, None, True)


def _relu6(input: Tensor, inplace: bool = False) -> _Call:
    return _Call(input, 6.0, inplace)


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> _Call | None:
    return _Call(input, max_val, inplace) if min_val == 0 else None


def _hardtanh_(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> _Call | None:
    return _hardtanh(input, min_val, max_val, inplace=True)


_READ: dict[Callable[..., Any], Callable[..., _Call | None]] = {
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    torch.relu_: _relu_,  # also F.relu_
    Tensor.relu_: _relu_,
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.hardtanh_: _hardtanh_,
}


class ReplaceReLU(TorchFunctionMode):
    """A torch function mode that replaces each ReLU call by ``replacement(z, call number)`` while active.

    An in-place ReLU still overwrites its input, which the network may read again. A clipped ReLU,
    ``nn.ReLU6`` or a hardtanh with a lower limit of zero, is replaced too.

    **Convention** ReLU6 becomes min(replacement(z), 6): the upper limit serves the number format that MobileNet
    was designed for, and is not part of the activation that a paper replaces.

    Args:
        replacement: maps a pre-activation of any shape, and the call's number from 0, to a tensor of that shape.

    Attributes:
        calls: number of replaced ReLU calls so far.
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
        answer = self.replacement(call.z.clone() if call.inplace else call.z, self.calls)
        self.calls += 1
        if call.ceiling is not None:
            answer = answer.clamp(max=call.ceiling)
        return call.z.copy_(answer) if call.inplace else answer


def softplus_for_relu(beta: float | None) -> AbstractContextManager[object]:
    """Replace every ReLU by softplus(beta z) / beta inside the block; None replaces nothing."""
    return nullcontext() if beta is None else ReplaceReLU(lambda z, _: F.softplus(z, beta=beta))


def check_replaceable(model: nn.Module) -> None:
    """Refuse a network whose ReLUs function overrides cannot intercept.

    Raises:
        InputError: for compiled TorchScript, for recurrent layers, and for ``DataParallel``, whose worker threads do
            not inherit the override.
    """
    for name, module in model.named_modules():
        where = f"the model's layer {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(f"{where} is compiled TorchScript, whose ReLUs cannot be replaced; pass the eager module")
        if isinstance(module, nn.RNNBase):
            raise InputError(
                f"{where} is a recurrent layer: ART differentiates such networks in training mode, where no ReLU is "
                "replaced; a network without one was expected"
            )
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise InputError(f"{where} is a {type(module).__name__}; its .module was expected")


def count_relus(model: nn.Module, x: Tensor) -> int:
    """Return the number of ReLU calls in an evaluation pass of ``model`` on ``x`` (N, ...).

    Raises:
        InputError: if autograd does not record a ReLU, as with activation checkpointing: the backward pass would then
            run the layer again, outside the mode, and give the gradient of another network.
    """
    saved = 0

    def count_saved(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += 1
        return tensor

    def probe(z: Tensor, _: int) -> Tensor:
        before = saved
        answer = torch.relu(z)
        # A ReLU saves a tensor for its backward pass. Checkpointing intercepts it before our hook, or disables
        # gradients meanwhile.
        if not torch.is_grad_enabled() or (answer.requires_grad and saved == before):
            raise InputError(
                "the model keeps ReLUs from autograd (activation checkpointing, no_grad), where they cannot be "
                "replaced; a model without that was expected"
            )
        return answer

    hooks = torch.autograd.graph.saved_tensors_hooks(count_saved, lambda tensor: tensor)
    with torch.enable_grad(), hooks, ReplaceReLU(probe) as mode:
        model(x.detach().requires_grad_().clone())  # a clone, since the network may begin with an in-place operation
    calls: int = mode.calls
    return calls
