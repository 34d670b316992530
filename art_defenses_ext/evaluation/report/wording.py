"""The words of a report for inputs other than images: vectors have features, and series have values.

Reports are written for images. For other inputs this module replaces the words, in text and in parts of reports, but
not in what a run has recorded, such as its command: that must stay as it can be typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from art_defenses_ext.evaluation.report.sections import Row

T = TypeVar("T")

_PHRASES = {
    "can be turned grey": "can be changed into one and the same",
    "pixel values": "{}s",
    "pixel value": "{}",
    "pixels": "{}s",
    "pixel": "{}",
    "an image": "a sample",
    "images": "samples",
    "image": "sample",
}
"""Replacements, longer phrases first."""

_WORD = rf"\b(?P<word>{'|'.join(_PHRASES)})\b"

_QUOTED = r"`[^`]*`|https?://\S+"
"""Code, such as a command, and web addresses."""


def worded(text: T, input_shape: Sequence[int], recorded: Iterable[str] = ()) -> T:
    """Return text, or a part of a report, in words for inputs of a shape.

    Args:
        text: a string, or dataclasses and sequences of strings. Names of rows, such as an attack's, code between
            backticks and web addresses are not changed.
        input_shape: shape of one input: (C, H, W) for images, (D,) for vectors; empty, if unknown, counts as images.
        recorded: further texts that are not changed where they occur, such as the command of a run.
    """
    if len(input_shape) in (0, 3):
        return text
    result: T = _changed(text, "feature" if len(input_shape) == 1 else "value", _pattern(recorded))
    return result


def _pattern(recorded: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of the words, and before them of all that stays: longer texts first, and also if wrapped."""
    facts = {fact for fact in recorded if fact.lower() not in _PHRASES and re.search(_WORD, fact, re.IGNORECASE)}
    kept = [r"\s+".join(map(re.escape, fact.split())) for fact in sorted(facts, key=len, reverse=True)]
    return re.compile("|".join([*kept, _QUOTED, _WORD]), re.IGNORECASE)


def _changed(value: Any, unit: str, pattern: re.Pattern[str]) -> Any:
    def put(match: re.Match[str]) -> str:
        word = match["word"]
        return match[0] if word is None else _in_case(_PHRASES[word.lower()].format(unit), word)

    if isinstance(value, str):
        return pattern.sub(put, value)
    if isinstance(value, tuple | list):
        return type(value)(_changed(part, unit, pattern) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if not (isinstance(value, Row) and field.name == "name")]
        return replace(value, **{name: _changed(getattr(value, name), unit, pattern) for name in names})
    return value


def _in_case(text: str, like: str) -> str:
    return text[0].upper() + text[1:] if like[0].isupper() else text
