"""Lines of JSON that are read strictly, and digests that detect accidents and manual edits.

A line must have exactly the declared fields. ``digests.jsonl`` has a line for each finished block: SHA-256 of its
records, its costs and its images for the report. All digests are bound to the run's manifest, so that files of another
run are refused too. They do not detect a forgery with recomputed digests.
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
    """Return the content of a JSON file.

    Raises:
        ValueError: for anything else, also for content that is nested too deeply or is not UTF-8.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Return the object that converts plain data to values of a kind, and checks them."""
    return TypeAdapter(kind)


def as_line(record: Any) -> bytes:
    """Return a dataclass as a line of JSON.

    Raises:
        ValueError: for a number that JSON cannot hold.
    """
    return (json.dumps(asdict(record), allow_nan=False) + "\n").encode()


def parsed(kind: type[Line], line: str | bytes) -> Line:
    """Return the value of a kind in a line.

    Raises:
        ValueError: names the first invalid field.
    """
    try:
        value: Line = adapter(kind).validate_json(line, strict=True)  # type: ignore[arg-type]  # classes are hashable
        return value
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = " ".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else str(first["msg"])) from None


def read_lines(file: Path, kind: type[Line]) -> Iterator[tuple[bytes, Line]]:
    """Yield the lines of a file and their values, without an incomplete last line.

    Raises:
        InputError: for a file that cannot be read, and a line without such a value.
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
    """The digests of one block's files.

    Attributes:
        block: index of the block's first sample.
        records: digest of the lines of its records.
        costs: digest of the lines of its costs.
        examples: digest of the file of its images; None if it has none.
    """

    __pydantic_config__ = STRICT

    block: int
    records: str
    costs: str
    examples: str | None


def digest_of(binding: str, content: bytes | Iterable[bytes]) -> str:
    """Return the digest of content, bound to the run whose manifest has the digest ``binding``."""
    digest = hashlib.sha256(binding.encode())
    for piece in [content] if isinstance(content, bytes) else content:
        digest.update(piece)
    return digest.hexdigest()


def digest_of_plain(plain: dict[str, Any], binding: str = "") -> str:
    """Return the digest of plain data without its entry ``"digest"``."""
    content = {name: value for name, value in plain.items() if name != "digest"}
    return digest_of(binding, json.dumps(content, sort_keys=True).encode())


def as_signed(value: Any, binding: str) -> bytes:
    """Return a dataclass as a JSON file with its digest, bound to the run whose manifest has the digest ``binding``."""
    plain = json.loads(json.dumps(asdict(value), allow_nan=False))
    plain["digest"] = digest_of_plain(plain, binding)
    return (json.dumps(plain, indent=1) + "\n").encode()


def read_signed(path: Path, kind: type[Line], binding: str, problem: str) -> Line:
    """Return the dataclass in a file of :func:`as_signed`.

    Raises:
        InputError: with the words ``problem`` for a file without such a value, and for a file that differs from its
            digest.
    """
    try:
        plain = parse_json(path.read_bytes())
        digest = plain.pop("digest")
        value = parsed(kind, json.dumps(plain))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise RunError(f"{path} {problem}") from None
    if digest != digest_of_plain(plain, binding):
        raise RunError(f"{path} differs from its digest; {CHANGED}")
    return value


def read_digests(folder: Path) -> dict[int, BlockDigest]:
    """Return the digests in a run's folder by the index of their block's first sample.

    Raises:
        InputError: for an invalid line.
    """
    return {digest.block: digest for _, digest in read_lines(folder / DIGESTS, BlockDigest)}
