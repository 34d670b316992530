"""A forward pass recorded as steps, through which relevance is propagated back.

The pass runs inside a torch function mode, which intercepts each operation of a network on its input;
no hook, copy or change of the network is needed. The values are those of the ordinary forward pass, connected
by autograd as usual, so that relevance computed from them is exactly differentiable.

The pass has evaluation semantics in any mode of the network: batch norm uses its running statistics, dropout does
nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from art_defenses_ext.attribution import activations, attention, normalisation  # noqa: F401 (they add their handlers)
from art_defenses_ext.attribution.axes import Follow, aligned
from art_defenses_ext.attribution.linear_map import LinearMap, scaled
from art_defenses_ext.attribution.operations import HANDLERS, IN_PLACE, Back
from art_defenses_ext.base.errors import AttributionError
from art_defenses_ext.base.validation import is_compiled


@dataclass(eq=False)
class Step:
    """One operation of the pass.

    Attributes:
        inputs: its inputs that belong to the pass.
        output: its output.
        back: from the relevance of the output to that of the inputs; None for a linear layer, whose rule is chosen
            later.
        layer: the linear layer, else None.
        nonnegative: whether the input of a linear layer is never below zero.
        follow: where an axis of an input is in the output.
    """

    inputs: tuple[Tensor, ...]
    output: Tensor
    back: Back | None
    layer: LinearMap | None = None
    nonnegative: bool = False
    follow: Follow = aligned


def check_visible(model: nn.Module) -> None:
    """Refuse a network whose operations cannot be seen.

    Raises:
        InputError: for compiled TorchScript, and for what ``torch.compile`` compiled.
    """
    for name, module in model.named_modules():
        scripted = isinstance(module, torch.jit.ScriptModule)
        if scripted or is_compiled(module):
            where = f"layer {name!r}" if name else "the model"
            how = "compiled TorchScript" if scripted else "compiled by torch.compile"
            raise AttributionError(f"{where} is {how}, whose operations cannot be seen; pass it uncompiled")


class Trace(TorchFunctionMode):
    """A torch function mode that records the operations of a network on ``x`` while active.

    Args:
        x: the input (N, ...).
        model: the network, for the names of its layers in errors.
        softplus: a number b replaces every ReLU by softplus(b z) / b, which is twice differentiable.
        stabilizer: stabiliser of the denominators of averages and sums.
        attention_rule: the rule of softmax attention, see :mod:`.attention`.

    Attributes:
        steps: the operations in their order.

    Raises:
        InputError: for TorchScript.
    """

    def __init__(
        self, x: Tensor, model: nn.Module, softplus: float | None, stabilizer: float, attention_rule: str = "shared"
    ) -> None:
        super().__init__()
        self.x, self.model, self.softplus, self.stabilizer = x, model, softplus, stabilizer
        self.attention_rule = attention_rule
        self.steps: list[Step] = []
        self._known: dict[int, Tensor] = {id(x): x}  # tensors of the pass; held, so that no id is reused
        self._now: dict[int, Tensor] = {}  # the current value of a tensor after in-place operations
        self._stale: set[int] = set()  # tensors that share memory with an overwritten one
        self._views: dict[int, set[int]] = {}  # tensors that share memory, by each of them
        self._held: list[Tensor] = []  # constants with views, so that no id is reused
        self._nonnegative: set[int] = set()
        self._gates: set[int] = set()
        self._names = {module: name for name, module in model.named_modules()}
        self._running: list[nn.Module] = []  # the layers that are running, the innermost last
        self._constants = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        seen = map(id, _tensors((*args, *kwargs.values())))
        if not any(key in self._known or key in self._stale for key in seen):
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
        if func in IN_PLACE or _asks_for_in_place(func, args, kwargs):
            self._overwrite(given, result)
        return result

    def value(self, tensor: Any) -> Tensor:
        """Return the current value of ``tensor``, a result of the network, at the end of the pass.

        Raises:
            InputError: if ``tensor`` does not belong to the pass.
        """
        if not self.knows(tensor):
            raise AttributionError(
                "the model's output does not come from its input by operations that can be seen (a compiled or "
                "scripted model?); a plain nn.Module that returns logits was expected"
            )
        current: Tensor = self._current(tensor)
        return current

    def knows(self, tensor: Any) -> bool:
        """Return whether ``tensor`` belongs to the pass."""
        return id(tensor) in self._known

    def fold(self, keep: Tensor) -> None:
        """Fold each batch norm into the layer before, if nothing else reads that layer's output.

        Args:
            keep: a tensor of the pass that must remain, since relevance starts there.
        """
        readers = Counter(id(tensor) for step in self.steps for tensor in step.inputs)
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
        """Record a linear layer."""
        self.steps.append(Step((a,), z, None, layer, id(a) in self._nonnegative))
        return self._add(z)

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
        """Record any other operation; by default its output is nonnegative, or a gate, if all inputs are."""
        if any(output is tensor for tensor in inputs):
            return output
        self.steps.append(Step(tuple(inputs), output, back, follow=follow))
        for kind, given in ((self._nonnegative, nonnegative), (self._gates, gate)):
            if all(id(tensor) in kind for tensor in inputs) if given is None else given:
                kind.add(id(output))
        return self._add(output)

    def is_gate(self, tensor: Tensor) -> bool:
        """Return whether ``tensor`` weights the values that it is multiplied with, such as a sigmoid's output."""
        return id(tensor) in self._gates

    def is_nonnegative(self, tensor: Tensor) -> bool:
        """Return whether ``tensor`` is known to be never below zero."""
        return id(tensor) in self._nonnegative

    def view(self, base: Tensor, output: Tensor) -> Tensor:
        """Record that ``output`` may share its memory with ``base``."""
        family = self._views.setdefault(id(base), {id(base)})
        family.add(id(output))
        self._views[id(output)] = family
        return output

    def without_parameters(self, value: Any) -> Any:
        """Return ``value``, detached if it is a tensor outside the pass: parameters are constants."""
        return value.detach() if isinstance(value, Tensor) and not self.knows(value) else value

    # Inside

    def _add(self, tensor: Tensor) -> Tensor:
        self._known[id(tensor)] = tensor
        return tensor

    def _aside(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation outside the pass, without writing to the network's tensors, and note the views it returns.

        A constant may be written to with values of the pass, which its other views would not see.
        """
        if _writes(func) and args and id(args[0]) in self._constants:
            args = (args[0].clone(), *args[1:])
        result = func(*args, **kwargs)
        for part in _tensors((result,)):  # torch's public comparison of storages refuses tensors inside vmap
            for base in _tensors((*args, *kwargs.values())):
                if part is not base and torch._C._is_alias_of(part, base):  # type: ignore[attr-defined]
                    self.view(base, part)
                    self._held += [base, part]
        return result

    def _current(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self._current(item) for item in value)
        current = self._now.get(id(value), value)
        if id(current) in self._stale:
            raise AttributionError(f"{self._where()} reads what was overwritten in place through another view of it")
        return current

    def _overwrite(self, tensor: Tensor, result: Tensor) -> None:
        """Let ``tensor`` read as ``result`` from now on; earlier steps keep its earlier value."""
        before = self._now.get(id(tensor), tensor)
        if before is result:
            return  # dropout, which does nothing
        # Tensors that stood for the same memory continue to do so.
        same = {id(tensor), id(before)} | {key for key, value in self._now.items() if value is before}
        self._now.update(dict.fromkeys(same, result))
        self._known[id(tensor)] = tensor  # it may have been a constant
        self._stale |= self._views.get(id(before), set()) - same

    def _untreatable(self, func: Callable[..., Any]) -> AttributionError:
        name = getattr(func, "__name__", repr(func))
        return AttributionError(
            f"{self._where()} calls {name}, which relevance cannot be sent through; linear layers, convolutions, "
            "norms, pooling, dropout, activations, attention, sums, products and moves of values were expected"
        )

    def _where(self) -> str:
        """Return the innermost running layer of the network, for errors."""
        if not self._running:
            return "the model"
        module = self._running[-1]
        name = self._names[module]
        return f"layer {name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"

    def __enter__(self) -> Self:
        self._hooks = (
            register_module_forward_pre_hook(lambda module, _: self._enters(module)),
            register_module_forward_hook(lambda module, *_: self._leaves(module), always_call=True),
        )
        entered: Self = super().__enter__()  # type: ignore[no-untyped-call]
        return entered

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _enters(self, module: nn.Module) -> None:
        if module in self._names:
            self._running.append(module)

    def _leaves(self, module: nn.Module) -> None:
        if self._running and self._running[-1] is module:
            self._running.pop()


def _writes(func: Callable[..., Any]) -> bool:
    """Return whether ``func`` writes to its first argument, judged by its name."""
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _asks_for_in_place(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether the argument ``inplace`` of ``func`` is True, by name or by place."""
    if "inplace" in kwargs or len(args) < 2:
        return kwargs.get("inplace") is True
    place = _place_of_inplace(func)
    return place is not None and place < len(args) and args[place] is True


@cache
def _place_of_inplace(func: Callable[..., Any]) -> int | None:
    names = getattr(getattr(func, "__code__", None), "co_varnames", ())
    return names.index("inplace") if "inplace" in names else None


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
