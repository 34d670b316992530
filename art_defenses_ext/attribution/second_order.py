"""Second derivatives of a network, which attacks on explanations need, and third ones, which tests of them need.

torch's fused operations cannot all be differentiated so often. The same functions, written as elementary ones, can:

- attention: fused kernels have no second derivative; the math kernel has one;
- hard sigmoid: has no second derivative;
- layer norm: its third derivative is wrong, since its second holds mean and deviation constant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from art_defenses_ext.base.errors import AttributionError
from art_defenses_ext.base.validation import is_compiled
from art_defenses_ext.estimator.rebuild import at_least_float32, evaluation_mode
from art_defenses_ext.gradients.activation import check_replaceable, count_rectifiers


@contextmanager
def elementary_operations() -> Iterator[None]:
    """Compute attention, hard sigmoids and layer norms by elementary operations inside the block."""
    with sdpa_kernel(SDPBackend.MATH), _Elementary():
        yield


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    output = (input + 3).clamp(0, 6) / 6
    return input.copy_(output) if inplace else output


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    centred = at_least_float32(input)
    centred = centred - centred.mean(axes, keepdim=True)
    normalised = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    normalised = normalised.to(input.dtype)
    scaled = normalised if weight is None else normalised * weight
    return scaled if bias is None else scaled + bias


_ELEMENTARY: dict[Any, Callable[..., Any]] = {
    F.hardsigmoid: _hardsigmoid,
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
}


class _Elementary(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        operation: Callable[..., Any] = _ELEMENTARY.get(func, func)
        return operation(*args, **(kwargs or {}))


def check_second_derivative(explain: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> None:
    """Refuse a network whose explanation is not differentiable, or whose rectifiers no surrogate replaces.

    Attacks need both: a surrogate that replaces nothing would be the exact derivative under another name.

    Args:
        explain: from images (n, ...) to an explanation that uses the network's first derivative.
        model: the network, for error messages.
        x: a few images.

    Raises:
        InputError: for an operation without a second derivative, by its name, for what ``torch.compile`` compiled, and
            as :func:`.check_replaceable` and :func:`.count_rectifiers`.
    """
    if any(map(is_compiled, model.modules())):
        raise _refused(model, "a part compiled by torch.compile")
    check_replaceable(model)
    inputs: list[Tensor] = []
    roots: list[Any] = []
    handles = (
        model.register_forward_pre_hook(lambda _, arguments: inputs.extend(arguments[:1])),
        model.register_forward_hook(lambda _, __, output: roots.append(getattr(output, "grad_fn", None))),
    )
    with torch.inference_mode(False), torch.enable_grad():
        live = x.clone().requires_grad_()
        try:
            explanation = explain(live)
        finally:
            for handle in handles:
                handle.remove()
            # Also after an error, since checkpointing may be its cause.
            with evaluation_mode(model):
                for seen in inputs[:1]:
                    count_rectifiers(model, seen)
        once = sorted(_once_differentiable(roots))
        if once:  # torch raises only if the explanation's first derivative depends on a second one
            raise _refused(model, f"the autograd function {', '.join(once)}")
        if not explanation.requires_grad:
            return  # a linear network, whose explanation is constant
        try:
            torch.autograd.grad(explanation.sum(), live, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise _refused(model, _operation(error)) from error


def _refused(model: nn.Module, operation: str) -> AttributionError:
    return AttributionError(
        f"model is a {type(model).__name__} with {operation}, which torch cannot differentiate twice; whoever attacks "
        "a defence that looks at gradients must do so, and a network of operations that have a second derivative was "
        "expected"
    )


def _operation(error: RuntimeError) -> str:
    """Return the operation without a second derivative that torch's error names."""
    named = re.search(r"derivative for '?(?:aten::)?(\w+)'? is not implemented", str(error))
    if named is not None:
        return f"the operation {named[1].removeprefix('_').removesuffix('_backward')}"
    return f"an operation ({' '.join(str(error).split())})"


def _once_differentiable(roots: list[Any]) -> set[str]:
    """Return the names of Python autograd functions before ``roots`` that are differentiable only once."""
    seen: set[Any] = set()
    waiting = list(roots)
    names: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [further for further, _ in node.next_functions]
        function = getattr(type(node), "_forward_cls", None)
        if function is not None and getattr(function.backward, "__code__", None) is _ONCE:
            names.add(function.__name__)
    return names


_ONCE = once_differentiable(lambda *_: None).__code__
"""Code of torch's wrapper of such a backward pass."""
