"""The images and labels of an evaluation, from what users keep them in."""

from __future__ import annotations

from typing import Any

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown


def images_and_labels(data: Any) -> tuple[Any, Any]:
    """Return images and labels as two arrays.

    Args:
        data: a pair ``(x, y)`` of images and labels.

    Raises:
        InputError: for anything else.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise InputError(f"data is {shown(data)}; a pair (x, y) of images and labels was expected")
    x, y = data
    return x, y
