"""Lines of JSON that are read strictly, and digests by which changes by another hand or a broken disk are noticed.

A line is of the type that is declared: nothing missing, nothing more. ``digests.jsonl`` has a line a finished block:
SHA-256 of its records, its costs and its images for the report. All are bound to the run's manifest, so that files of
another run do not fit either. A digest guards against accidents and against edits by hand; whoever edits the records
and makes the digests anew is not found out by it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from art_defenses_ext.base.errors import RunError

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""The attribute ``__pydantic_config__`` of dataclasses that are read strictly."""

CHANGED = "it was changed by another hand"

Line = TypeVar("Line")


def parse_json(text: str | bytes) -> Any:
    """Return what a file of JSON holds.

    Raises:
        ValueError: for anything else, also for what is nested too deep and for text that is no UTF-8.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Return what makes values of a kind of plain data, and checks them."""
    return TypeAdapter(kind)


def as_line(record: Any) -> bytes:
    """A dataclass as a line of JSON.

    Raises:
        ValueError: for a number that JSON has none for.
    """
    return (json.dumps(asdict(record), allow_nan=False) + "\n").encode()


def parsed(kind: type[Line], line: str | bytes) -> Line:
    """Return the value of a kind that stands in a line.

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


DIGESTS = "digests.jsonl"


@dataclass(frozen=True)
class BlockDigest:
    """What belongs to one block, as digests.

    Attributes:
        block: index of its first sample.
        records: of the lines of its records.
        costs: of the lines of its costs.
        examples: of the file of its images; None if it has none.
    """

    __pydantic_config__ = STRICT

    block: int
    records: str
    costs: str
    examples: str | None


def digest_of(binding: str, content: bytes | Iterable[bytes]) -> str:
    """Return the digest of some content that belongs to the run whose manifest has the digest ``binding``."""
    digest = hashlib.sha256(binding.encode())
    for piece in [content] if isinstance(content, bytes) else content:
        digest.update(piece)
    return digest.hexdigest()


def digest_of_plain(plain: dict[str, Any], binding: str = "") -> str:
    """Return the digest of plain data, but for what stands under ``"digest"`` in it."""
    rest = {name: value for name, value in plain.items() if name != "digest"}
    return digest_of(binding, json.dumps(rest, sort_keys=True).encode())


def read_digests(folder: Path) -> dict[int, BlockDigest]:
    """Return the digests in a run's folder by the index of their block's first sample.

    Raises:
        InputError: for a line that is none.
    """
    return {digest.block: digest for _, digest in read_lines(folder / DIGESTS, BlockDigest)}
