"""Options declared once, by a type with its bounds, from which their checks and error messages follow.

``Count``, ``Positive``, ``Flag`` and the like are ordinary annotations (``Annotated[int, Kind(...)]``). The same
declaration serves arguments of a function (:func:`validated`), attributes of an object whose parameters ART sets
(:func:`check_declared`), and fields of a frozen object (:class:`Options`).

Nothing heavy is imported here, not even pydantic, since a command's ``--help`` needs the same declarations.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache, wraps
from numbers import Integral, Real
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ParamSpec,
    Self,
    TypeVar,
    Unpack,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

P = ParamSpec("P")
T = TypeVar("T")

LARGEST = (2 - 2.0**-23) * 2.0**127
"""The largest number that float32 holds."""


@dataclass(frozen=True)
class Kind:
    """A kind of values.

    Attributes:
        expected: the kind in words, such as "a whole number of at least 1".
        accept: returns the value as Python's own type, numpy's scalars converted; raises ``ValueError`` for others.
        names: the possible values, if these are names.
    """

    expected: str
    accept: Callable[[Any], Any]
    names: tuple[str, ...] = ()

    def checked(self, argument: str, value: Any) -> Any:
        """Return the accepted value.

        Raises:
            InputError: for a value of another kind.
        """
        try:
            return self.accept(value)
        except ValueError:
            raise InputError(f"{argument} is {shown(value)}; {self.expected} was expected") from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check a field of pydantic in the same way."""
        from pydantic_core import PydanticCustomError, core_schema

        def accept(value: Any) -> Any:
            try:
                return self.accept(value)
            except ValueError:
                raise PydanticCustomError("kind", "{expected} was expected", {"expected": self.expected}) from None

        return core_schema.no_info_plain_validator_function(
            accept, serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value)
        )


def number(expected: str, holds: Callable[[float], bool] = lambda _: True) -> Kind:
    """Return the kind of finite numbers for which ``holds`` is true; numpy's scalars count, truth values do not."""

    def accept(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError
        try:
            converted = float(value)
        except OverflowError:  # an integer beyond floating point
            raise ValueError from None
        if not math.isfinite(converted) or abs(converted) > LARGEST or not holds(converted):
            raise ValueError
        return converted

    return Kind(expected, accept)


def integer(least: int, expected: str | None = None, most: int = 2**63 - 1) -> Kind:
    """Return the kind of whole numbers from ``least`` to ``most``, by default those of 64 bits."""

    def accept(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
            raise ValueError
        return int(value)

    return Kind(expected or f"a whole number of at least {least}", accept)


def one_of(*names: str) -> Kind:
    """Return the kind of these names."""

    def accept(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError
        return value

    return Kind(f"one of {', '.join(names)}", accept, names)


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    import numpy as np

    if not isinstance(value, np.bool_):  # Python would take any word, "no" too, for true
        raise ValueError
    return bool(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError
    return value


def as_path(value: Any) -> Path:
    """Return a text or a path object as a path; raise ``ValueError`` for one that no file can have."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError
    os.fsencode(text)  # a ValueError where no file can be called so
    return Path(text)


def instance_of(types: Any, expected: str) -> Kind:
    """Return the kind of objects of a class, or of several classes."""

    def accept(value: Any) -> Any:
        if not isinstance(value, types):
            raise ValueError
        return value

    return Kind(expected, accept)


def several(kind: Kind, expected: str) -> Kind:
    """Return the kind of lists and tuples of values of a kind, which become tuples."""

    def accept(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise ValueError
        return tuple(map(kind.accept, value))

    return Kind(expected, accept)


Count = Annotated[int, integer(1)]
Natural = Annotated[int, integer(0, "a whole number >= 0")]
Seed = Annotated[int, integer(0, "a whole number from 0 to 2**63 - 1")]
Number = Annotated[float, number("a finite number")]
Positive = Annotated[float, number("a finite number > 0 that float32 holds", lambda value: value > 0)]
NonNegative = Annotated[float, number("a finite number >= 0", lambda value: value >= 0)]
Share = Annotated[float, number("a number from 0 to 1", lambda value: 0 <= value <= 1)]
InnerShare = Annotated[float, number("a number between 0 and 1", lambda value: 0 < value < 1)]
Flag = Annotated[bool, Kind("True or False", _flag)]
Text = Annotated[str, Kind("a text of printable characters", _text)]
Texts = Annotated[tuple[str, ...], several(Kind("a text", _text), "a list of texts")]
AnyPath = Annotated[Path, Kind("a path", as_path)]


def kind_of(annotation: Any) -> Kind | None:
    """Return the kind that an annotation declares, if any; ``Count | None`` accepts None as well."""
    if get_origin(annotation) is Annotated:
        return next((part for part in get_args(annotation)[1:] if isinstance(part, Kind)), None)
    members = get_args(annotation)
    kinds = [kind for member in members if (kind := kind_of(member)) is not None]
    if len(kinds) != 1:
        return None
    (kind,) = kinds
    if type(None) not in members:
        return kind
    return Kind(f"{kind.expected}, or None,", lambda value: None if value is None else kind.accept(value), kind.names)


def accepted(annotation: Any, argument: str, value: Any) -> Any:
    """Return a value of the kind that an annotation declares, as Python's own type.

    Raises:
        InputError: for a value of another kind.
    """
    kind = kind_of(annotation)
    assert kind is not None
    return kind.checked(argument, value)


@cache
def declared_of(owner: Any) -> dict[str, Kind]:
    """Return the kinds of a function's arguments, or of a class's attributes and those of its bases, by name.

    Raises:
        InputError: for an annotation with a name that the owner's module does not have.
    """
    try:
        hints = get_type_hints(owner, include_extras=True)
    except NameError as error:
        raise InputError(
            f"{owner.__qualname__} has an annotation that cannot be read ({error}); names of its module were expected"
        ) from error
    kinds = {name: kind for name, hint in hints.items() if (kind := kind_of(hint)) is not None}
    for hint in hints.values():
        if get_origin(hint) is Unpack:  # keyword arguments that a dictionary's class declares
            kinds |= declared_of(get_args(hint)[0])
    return kinds


def check_declared(instance: Any) -> None:
    """Check each declared attribute of an object, and convert it to Python's own type.

    Raises:
        InputError: for a value of another kind.
    """
    owner: Any = type(instance)
    for name, kind in declared_of(owner).items():
        if hasattr(instance, name):
            object.__setattr__(instance, name, kind.checked(name, getattr(instance, name)))  # also if it is frozen


class Declared:
    """Base class of dataclasses whose fields are checked by their declared kinds.

    Raises:
        InputError: for a value of another kind.
    """

    def __post_init__(self) -> None:
        check_declared(self)


def validated(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function check the arguments for which it declares a kind, before it runs.

    Raises:
        InputError: (the function) for a value of another kind.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = signature.bind(*args, **kwargs)
        kinds = declared_of(function)
        for name, value in bound.arguments.items():
            if name in kinds:
                bound.arguments[name] = kinds[name].checked(name, value)
        return function(*bound.args, **bound.kwargs)

    return checked


def option(default: Any = MISSING, description: str = "", **details: Any) -> Any:
    """Return a field of :class:`Options`.

    Args:
        default: the default; without one, a value is required.
        description: the sentence in ``--help``.
        details: further metadata, such as a short name for the command line.
    """
    return field(default=default, metadata={"description": description} | details)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(option,))
class Options(Declared):
    """Base class of frozen sets of options; each option is a field, ``name: Kind = option(default, "Description.")``.

    Raises:
        InputError: on construction, for a value of another kind.
    """

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the options with these values by name, and defaults for the others.

        Raises:
            InputError: for a value of another kind, an unknown option, and a missing value.
        """
        known = {declared.name: declared for declared in fields(cls)}  # type: ignore[arg-type]  # subclasses are dataclasses
        for name in values:
            if name not in known:
                raise InputError(f"{name} is no option of {cls.__name__}; one of {', '.join(known)} was expected")
        for name, declared in known.items():
            if declared.default is MISSING and name not in values:
                raise InputError(f"{name} is missing; a value was expected")
        return cls(**values)

    @classmethod
    def part_of(cls, options: Options) -> Self:
        """Return the options of this class from those of a larger class."""
        return cls(**{declared.name: getattr(options, declared.name) for declared in fields(cls)})  # type: ignore[arg-type]
