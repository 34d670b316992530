"""The words of a report for inputs other than images: vectors have features, and series have values.

Reports are written for images. For other inputs this module replaces the words, in text and in parts of reports.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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

_WORD = re.compile(rf"\b({'|'.join(_PHRASES)})\b", re.IGNORECASE)


def worded(text: T, input_shape: Sequence[int]) -> T:
    """Return text, or a part of a report, in words for inputs of a shape.

    Args:
        text: a string, or dataclasses and sequences of strings. Names of rows, such as an attack's, are not changed.
        input_shape: shape of one input: (C, H, W) for images, (D,) for vectors; empty, if unknown, counts as images.
    """
    if len(input_shape) in (0, 3):
        return text
    result: T = _changed(text, "feature" if len(input_shape) == 1 else "value")
    return result


def _changed(value: Any, unit: str) -> Any:
    if isinstance(value, str):
        return _WORD.sub(lambda match: _in_case(_PHRASES[match[0].lower()].format(unit), match[0]), value)
    if isinstance(value, tuple | list):
        return type(value)(_changed(part, unit) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if not (isinstance(value, Row) and field.name == "name")]
        return replace(value, **{name: _changed(getattr(value, name), unit) for name in names})
    return value


def _in_case(text: str, like: str) -> str:
    return text[0].upper() + text[1:] if like[0].isupper() else text
