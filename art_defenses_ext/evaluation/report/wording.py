"""The words of a report for what was attacked: images have pixels, vectors have features, and series have values.

Reports are written of images. For other inputs the words are replaced here, in whatever is about to be shown.
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
"""The longer ones first."""

_WORD = re.compile(rf"\b({'|'.join(_PHRASES)})\b", re.IGNORECASE)


def worded(shown: T, input_shape: Sequence[int]) -> T:
    """Return text, or a part of a report, in words for inputs of a shape.

    Args:
        shown: a string, or dataclasses and sequences of them. Names of rows, such as an attack's, stay as they are.
        input_shape: of one input: (C, H, W) of images, (D,) of vectors; empty where it is not known, as of images.
    """
    if len(input_shape) in (0, 3):
        return shown
    result: T = _changed(shown, "feature" if len(input_shape) == 1 else "value")
    return result


def _changed(value: Any, unit: str) -> Any:
    if isinstance(value, str):
        return _WORD.sub(lambda match: _in_case(_PHRASES[match[0].lower()].format(unit), match[0]), value)
    if isinstance(value, tuple | list):
        return type(value)(_changed(each, unit) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        kept = ("name",) if isinstance(value, Row) else ()
        named = {each.name: getattr(value, each.name) for each in fields(value) if each.name not in kept}
        return replace(value, **{name: _changed(each, unit) for name, each in named.items()})
    return value


def _in_case(text: str, like: str) -> str:
    return text[0].upper() + text[1:] if like[0].isupper() else text
