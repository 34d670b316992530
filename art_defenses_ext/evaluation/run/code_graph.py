"""The parts of a value that decide its behaviour, the same in every process.

Parts without influence are left out: the device of a tensor, its gradient, the numbers of hooks, names of files and
lines, comments, docstrings, and the code of released packages, whose versions the manifest names.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import logging
import re
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from torch import nn
from torch.utils.hooks import RemovableHandle

from art_defenses_ext.gradients.modes import Defence

RELEASED = {"art", "art_defenses_ext", "numpy", "torch", "torchvision"} | sys.stdlib_module_names
"""Packages whose versions are in a run's manifest, including Python's own; their code is identified by its name."""

VERSIONED = {
    *("PIL", "cv2", "huggingface_hub", "matplotlib", "pandas", "safetensors", "scipy", "skimage", "sklearn", "timm"),
    "transformers",
}
"""Packages whose code is identified by its name and the package's version."""

OPAQUE = (logging.Logger, torch.optim.Optimizer, RemovableHandle, weakref.ref, torch.Generator)
"""Types whose contents do not influence the outputs of a network, or differ from pass to pass."""

Part = tuple[str, Any]
"""The name of a place, and its value."""

HOOKS = {
    "_forward_pre_hooks": "_forward_pre_hooks_with_kwargs",
    "_forward_hooks": "_forward_hooks_with_kwargs",
    "_backward_pre_hooks": "",
    "_backward_hooks": "",
}
"""Attributes of a module that hold its hooks by number, and attributes with the numbers of hooks that take keywords."""

UNUSED_BY_A_PASS = {
    *HOOKS.values(),
    *("_forward_hooks_always_called", "_non_persistent_buffers_set", "_compiled_call_impl"),
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
}
"""Other attributes of a module that forward and backward passes do not use."""

UNUSED_OF_DEFENCES = {"tuning", "trainings", "_gradient_mode"}
"""Attributes of a defence without influence on the forward pass: its history, and the mode, which each attack sets."""

UNUSED_OF_CLASSES = {
    *("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__"),
    *("__annotate__", "__annotate_func__", "__annotations_cache__", "__firstlineno__", "__static_attributes__"),
    "__slotnames__",  # left there when an object of the class is copied
}
"""Attributes of a class without influence on its behaviour."""

DEVICE = re.compile(r"(cpu|gpu|cuda|mps)(:\d+)?")
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def text_of(value: Any) -> str | None:
    """Return a value without parts as text; None for a value with parts, and for arrays."""
    if (isinstance(value, str) and DEVICE.fullmatch(value)) or isinstance(value, torch.device):
        return "device"
    if type(value) in (bool, int, float, complex, str, bytes) or value is None or value is Ellipsis:
        return repr(value)
    if isinstance(value, enum.Enum) and released(type(value).__module__):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, OPAQUE):
        return type(value).__qualname__
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    if isinstance(value, types.FunctionType | type):
        version = None if "<locals>" in value.__qualname__ else released(value.__module__)
        return None if version is None else f"{value.__module__}.{value.__qualname__} {version}"
    if isinstance(value, types.BuiltinFunctionType | types.WrapperDescriptorType | types.MethodDescriptorType):
        return f"{getattr(value, '__module__', '')}.{value.__qualname__}"
    return None


def released(module: str | None) -> str | None:
    """Return the version of a module's package, empty if the manifest names it; None for a user's own code."""
    package = (module or "").partition(".")[0]
    if package in RELEASED:
        return ""
    if package in VERSIONED:
        return str(getattr(sys.modules.get(package), "__version__", ""))
    return None


def is_array(value: Any) -> bool:
    """Return whether a value is a tensor, a numpy array or a numpy number, without Python objects."""
    return isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject)


def array_digest(value: Any) -> str:
    """Return the digest of the numbers of a tensor or an array, whatever its device and memory layout."""
    if isinstance(value, torch.Tensor):
        kind = f"{value.dtype} {tuple(value.shape)}"
        try:
            dense = (value.detach() if value.layout == torch.strided else value.detach().to_dense()).cpu()
            content = dense.resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        except (RuntimeError, NotImplementedError, ValueError, TypeError):  # meta device, or a user's tensor class
            content = b""
        if not value.numel():
            content = b""
    else:
        kind, content = f"{value.dtype} {value.shape}", value.tobytes()
    return f"array {kind} {hashlib.sha256(content).hexdigest()}"


def parts_of_value(value: Any) -> tuple[str, list[Part]]:
    """Return a description of a value, and its parts by their places.

    The places of an object, a class and a function's globals have names; a container is one place, ``""``.
    """
    for kinds, read in READERS:
        if isinstance(value, kinds):
            return read(value)
    return _object(value)


def _items(value: Any) -> tuple[str, list[Part]]:
    return _kind(value), [*_own_type(value), *(("", part) for part in value)]


def _pairs(value: Any) -> tuple[str, list[Part]]:
    return _kind(value), [*_own_type(value), *(("", part) for pair in value.items() for part in pair)]


def _own_type(value: Any) -> list[Part]:
    """Return the class of a container, if it is a user's own."""
    return [] if released(type(value).__module__) is not None else [("type", type(value))]


def _set(value: Any) -> tuple[str, list[Part]]:
    texts = sorted(text_of(part) or type(part).__qualname__ for part in value)
    return f"{_kind(value)} {texts}", []


def _kind(value: Any) -> str:
    kinds = [kind for kind in (list, tuple, deque, dict, set, frozenset) if isinstance(value, kind)]
    return f"{kinds[0].__name__} {type(value).__qualname__}"


def _code(code: types.CodeType) -> tuple[str, list[Part]]:
    return _instructions(code), [("", part) for part in code.co_consts]


def _instructions(code: types.CodeType) -> str:
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    shape = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    return f"code {code.co_code.hex()} {code.co_exceptiontable.hex()} {code.co_names} {arguments} {shape}"


def _function(function: types.FunctionType) -> tuple[str, list[Part]]:
    code = function.__code__
    skipped = 1 if function.__doc__ is not None and code.co_consts[:1] == (function.__doc__,) else 0
    constants = [("constant", part) for part in code.co_consts[skipped:]]
    cells = [(f"cell {number}", _content(cell)) for number, cell in enumerate(function.__closure__ or ())]
    fixed = [("defaults", function.__defaults__), ("keywords", function.__kwdefaults__)]
    own = [(f"attribute {name}", part) for name, part in sorted(vars(function).items())]
    kind = f"function {function.__qualname__} {skipped} {_instructions(code)}"
    return kind, [*constants, *fixed, *cells, *_globals(function), *own]


def _globals(function: types.FunctionType) -> Iterator[Part]:
    """Yield the globals that a function names; for a user's own modules also the attributes that it may refer to."""
    names = sorted(_names(function.__code__))
    for name in names:
        value = function.__globals__.get(name, function)
        if value is not function:
            yield f"global {name}", value
        if isinstance(value, types.ModuleType) and released(value.__name__) is None:
            yield from (
                (f"global {name}.{attribute}", vars(value)[attribute])
                for attribute in names
                if attribute in vars(value)
            )


def _names(code: types.CodeType) -> set[str]:
    """Return the names to which code refers, including the functions inside it."""
    inner = (_names(inner_code) for inner_code in code.co_consts if isinstance(inner_code, types.CodeType))
    return set(code.co_names).union(*inner)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell has no value yet
        return "empty"


def _class(value: type) -> tuple[str, list[Part]]:
    own = [(name, part) for name, part in sorted(vars(value).items()) if name not in UNUSED_OF_CLASSES]
    own = [(name, part) for name, part in own if not name.startswith("_abc_")]
    return f"class {value.__qualname__}", own + [("base", base) for base in value.__bases__ if base is not object]


def _method(value: types.MethodType) -> tuple[str, list[Part]]:
    return "method", [("function", value.__func__), ("self", value.__self__)]


def _wrapper(value: Any) -> tuple[str, list[Part]]:
    names = ("__func__", "fget", "fset", "fdel", "func", "__wrapped__", "args", "keywords")
    return type(value).__qualname__, [(name, getattr(value, name, None)) for name in names]


def _standardisation(value: StandardisationMeanStdPyTorch) -> tuple[str, list[Part]]:
    """Return the parts without those that ART's first pass stores: the same numbers in the shape of images."""
    names = ("mean", "std", "apply_fit", "apply_predict")
    return "standardisation", [("type", type(value)), *((name, getattr(value, name)) for name in names)]


def _classifier(value: PyTorchClassifier) -> tuple[str, list[Part]]:
    """Return the parts of a classifier that images pass and attacks read, without its optimizer and ART's state."""
    names = ("model", "loss", "clip_values", "input_shape", "nb_classes", "channels_first")
    parts = [("type", type(value)), ("preprocessing", tuple(value.preprocessing_operations or ()))]
    return "classifier", parts + [(name, getattr(value, name)) for name in names]


def _module(value: nn.Module) -> tuple[str, list[Part]]:
    if type(value).__name__ == "OptimizedModule":  # torch.compile changes the speed only
        return "compiled", [("_orig_mod", value._orig_mod)]
    if isinstance(value, torch.jit.ScriptModule):
        code = [(name, getattr(part, "code", "")) for name, part in value.named_modules()]
        return f"script {code}", sorted(value.state_dict().items())
    state: dict[str, Any] = dict(vars(value))
    parts: list[Part] = [("type", type(value))]
    for kind, with_keywords in HOOKS.items():
        hooks, marked = state.pop(kind, None) or {}, state.pop(with_keywords, None) or {}
        parts += [(f"{kind} {place}", (hooks[number], number in marked)) for place, number in enumerate(hooks)]
    parts += [(f"module {name}", part) for name, part in (state.pop("_modules", None) or {}).items()]  # in their order
    for kind in ("_parameters", "_buffers"):
        parts += [(f"{kind} {name}", part) for name, part in sorted((state.pop(kind, None) or {}).items())]
    unused = UNUSED_BY_A_PASS | (UNUSED_OF_DEFENCES if isinstance(value, Defence) else set())
    unused |= {"_graph", "meta"} if isinstance(value, torch.fx.GraphModule) else set()  # its code holds the same
    return "module", parts + [(name, part) for name, part in sorted(state.items()) if name not in unused]


def _object(value: Any) -> tuple[str, list[Part]]:
    kind = type(value)
    state = dict(getattr(value, "__dict__", None) or {}) | _slots(value)
    version = released(kind.__module__)
    standard = kind.__module__.partition(".")[0] in sys.stdlib_module_names and kind is not types.SimpleNamespace
    if standard or (version is not None and not state):
        return f"{kind.__qualname__} {_repr_without_address(value)}", []
    unused = UNUSED_OF_DEFENCES if isinstance(value, Defence) else set()
    return "object", [("type", kind), *((name, part) for name, part in sorted(state.items()) if name not in unused)]


def _slots(value: Any) -> dict[str, Any]:
    declared = (vars(base).get("__slots__", ()) for base in type(value).__mro__)
    names = [name for slots in declared for name in ([slots] if isinstance(slots, str) else slots)]
    return {name: getattr(value, name) for name in names if not name.startswith("__") and hasattr(value, name)}


def _repr_without_address(value: Any) -> str:
    """Return the ``repr`` of an object; empty if it holds a memory address."""
    text = repr(value)
    return "" if ADDRESS.search(text) else text


READERS: list[tuple[tuple[type, ...], Callable[[Any], tuple[str, list[Part]]]]] = [
    ((dict,), _pairs),
    ((list, tuple, deque), _items),
    ((set, frozenset), _set),
    ((np.ndarray,), lambda value: (f"array {value.shape}", [("", item) for item in value.ravel().tolist()])),
    ((types.CodeType,), _code),
    ((types.FunctionType,), _function),
    ((type,), _class),
    ((types.MethodType,), _method),
    ((staticmethod, classmethod, property, functools.partial, functools.cached_property), _wrapper),
    ((functools._lru_cache_wrapper,), _wrapper),
    ((PyTorchClassifier,), _classifier),
    ((StandardisationMeanStdPyTorch,), _standardisation),
    ((nn.Module,), _module),
]
"""The functions that read the parts of a value, by its type, in the order in which the types are tried."""
