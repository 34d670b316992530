"""Lines of JSON that are read strictly: no other type than the one declared, nothing missing, nothing more."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Of dataclasses that are read so: their attribute ``__pydantic_config__``."""


def parse_json(text: str | bytes) -> Any:
    """What a file of JSON holds.

    Raises:
        ValueError: for anything else, also for what is nested too deep and for text that is no UTF-8.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


Line = TypeVar("Line")


def parsed(kind: TypeAdapter[Line], line: str | bytes) -> Line:
    """What a line says.

    Raises:
        ValueError: that names the first field which is wrong.
    """
    try:
        return kind.validate_json(line, strict=True)
    except ValidationError as error:
        raise ValueError(reason_of(error)) from None


def reason_of(error: ValidationError) -> str:
    """The first thing that is wrong, in words."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = " ".join(str(one) for one in first["loc"])
    return f"{place}: {first['msg']}" if place else str(first["msg"])
