"""What a run wrote, as digests, by which changes by another hand or by a broken disk are noticed.

``digests.jsonl`` has a line a finished block: SHA-256 of its records, its costs and its images for the report. All are
bound to the run's manifest, so that files of another run do not fit either. A digest guards against accidents and
against edits by hand; whoever edits the records and makes the digests anew is not found out by it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from art_defenses_ext.evaluation.records.lines import STRICT, read_lines

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
    """Of some content that belongs to the run whose manifest has the digest ``binding``."""
    digest = hashlib.sha256(binding.encode())
    for piece in [content] if isinstance(content, bytes) else content:
        digest.update(piece)
    return digest.hexdigest()


def digest_of_plain(plain: dict[str, Any], binding: str = "") -> str:
    """Of plain data, but for what stands under ``"digest"`` in it."""
    rest = {name: value for name, value in plain.items() if name != "digest"}
    return digest_of(binding, json.dumps(rest, sort_keys=True).encode())


def read_digests(folder: Path) -> dict[int, BlockDigest]:
    """The digests in a run's folder by the index of their block's first sample.

    Raises:
        InputError: for a line that is none.
    """
    return {digest.block: digest for _, digest in read_lines(folder / DIGESTS, BlockDigest)}
