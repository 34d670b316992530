"""What a function does, as far as a hash can tell: its code, and the values and functions that it refers to."""

from __future__ import annotations

import functools
import hashlib
import sys
import types
from typing import Any

import numpy as np
import torch

RELEASED = {"art", "art_defenses_ext", "numpy", "torch", "torchvision"} | sys.stdlib_module_names
"""Packages whose versions a run's manifest names, Python's own among them: their code is known by its name."""


def code_hash(function: Any) -> str:
    """A hash that changes with what a function does, not with where or when it was made.

    It covers the compiled code (so a comment changes nothing, another version of Python does), defaults, what closures
    hold, globals that are plain values, and functions and classes that come from no released package. What an object
    of one's own does in other ways, such as in a file that it reads, is not seen.

    Args:
        function: or any other value.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(repr(_described(function, {})).encode()).hexdigest()


Seen = dict[int, tuple[int, Any]]
"""By id: in which place a value was met first, and the value, kept so that nothing else gets its id meanwhile."""


def _described(value: Any, seen: Seen) -> Any:
    """``value`` as nested tuples of text that are the same in every process."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return _numbers(value)
    if isinstance(value, types.ModuleType):
        return "module", value.__name__
    if id(value) in seen:
        return "seen before", seen[id(value)][0]
    seen[id(value)] = len(seen), value
    return _held(value, seen)


def _held(value: Any, seen: Seen) -> Any:
    """The same of what holds other values, and may hold itself."""
    if isinstance(value, list | tuple):
        return "sequence", *(_described(one, seen) for one in value)
    if isinstance(value, dict):
        return "pairs", *sorted(repr((repr(key), _described(one, seen))) for key, one in value.items())
    if isinstance(value, set | frozenset):
        return "set", *sorted(repr(one) for one in value)
    if isinstance(value, types.CodeType):
        return value.co_code.hex(), value.co_exceptiontable.hex(), value.co_names, _described(value.co_consts, seen)
    if isinstance(value, types.MethodType):
        return _described(value.__func__, seen), _described(value.__self__, seen)
    if isinstance(value, staticmethod | classmethod):
        return type(value).__name__, _described(value.__func__, seen)
    if isinstance(value, property | functools.cached_property):
        parts = [getattr(value, name, None) for name in ("fget", "fset", "fdel", "func")]
        return type(value).__name__, _described(parts, seen)
    if isinstance(value, functools.partial):
        return _described(value.func, seen), _described(value.args, seen), _described(value.keywords, seen)
    if isinstance(value, types.FunctionType | type):
        name = value.__module__, value.__qualname__
        if value.__module__.partition(".")[0] in RELEASED and "<locals>" not in value.__qualname__:
            return name
        return name, _class(value, seen) if isinstance(value, type) else _function(value, seen)
    return _described(type(value), seen), _described(getattr(value, "__dict__", None), seen)


def _numbers(value: Any) -> tuple[str, ...]:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return "array", str(array.dtype), str(array.shape), hashlib.sha256(array.tobytes()).hexdigest()


def _function(value: types.FunctionType, seen: Seen) -> tuple[Any, ...]:
    cells = [_content(cell) for cell in value.__closure__ or ()]
    used = {name: value.__globals__[name] for name in sorted(_names(value.__code__)) if name in value.__globals__}
    return tuple(
        _described(one, seen) for one in (value.__code__, value.__defaults__, value.__kwdefaults__, cells, used)
    )


def _names(code: types.CodeType) -> set[str]:
    """What the code and the functions written inside it refer to by name."""
    inner = (_names(one) for one in code.co_consts if isinstance(one, types.CodeType))
    return set(code.co_names).union(*inner)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return "empty"


UNTOLD = {
    *("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__"),
    *("__annotate__", "__annotate_func__", "__annotations_cache__", "__firstlineno__", "__static_attributes__"),
}
"""What a class holds that says nothing of what it does."""


def _class(value: type, seen: Seen) -> tuple[Any, ...]:
    own = {name: one for name, one in vars(value).items() if name not in UNTOLD and not name.startswith("_abc_")}
    return _described(own, seen), *(_described(base, seen) for base in value.__bases__ if base is not object)
