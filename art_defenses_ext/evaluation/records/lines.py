"""Lines of JSON that are read strictly: no other type than the one declared, nothing missing, nothing more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from art_defenses_ext.base.errors import RunError

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Of dataclasses that are read so: their attribute ``__pydantic_config__``."""

CHANGED = "it was changed by another hand"

Line = TypeVar("Line")


def parse_json(text: str | bytes) -> Any:
    """What a file of JSON holds.

    Raises:
        ValueError: for anything else, also for what is nested too deep and for text that is no UTF-8.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """What makes values of a kind of plain data, and checks them."""
    return TypeAdapter(kind)


def as_line(record: Any) -> bytes:
    """A dataclass as a line of JSON.

    Raises:
        ValueError: for a number that JSON has none for.
    """
    return (json.dumps(asdict(record), allow_nan=False) + "\n").encode()


def parsed(kind: type[Line], line: str | bytes) -> Line:
    """The value of a kind that stands in a line.

    Raises:
        ValueError: that names the first field which is wrong.
    """
    try:
        value: Line = adapter(kind).validate_json(line, strict=True)  # type: ignore[arg-type]  # classes are hashable
        return value
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = " ".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else str(first["msg"])) from None


def read_lines(file: Path, kind: type[Line]) -> Iterator[tuple[bytes, Line]]:
    """The lines of a file as they stand, and their values; what a kill left of the last line is left out.

    Raises:
        InputError: for a file that cannot be read, and a line that holds no such value.
    """
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield line, parsed(kind, line)
                except ValueError as error:
                    raise RunError(f"{file}, line {number}, cannot be read ({error}); {CHANGED}") from None
    except OSError as error:
        raise RunError(f"{file} cannot be read ({error.strerror}); the folder of a run was expected") from None
