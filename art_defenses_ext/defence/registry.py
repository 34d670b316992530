"""The defences that are installed, ours and others': entry points of the group ``art_defenses_ext.defences``."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

from art_defenses_ext.base import entry_points
from art_defenses_ext.base.errors import InputError

if TYPE_CHECKING:
    from art_defenses_ext.defence.face import DefenceFace


def installed() -> dict[str, EntryPoint]:
    """The entry points by name; nothing is imported."""
    return entry_points.installed("defence")


@cache
def load_face(name: str) -> type[DefenceFace]:
    """The class of an installed defence.

    Raises:
        InputError: for another name, and for a class that cannot be imported or is no ``DefenceFace`` of that name.
    """
    from art_defenses_ext.defence.face import DefenceFace

    face = entry_points.load_installed("defence", name)
    if not (isinstance(face, type) and issubclass(face, DefenceFace) and face.name == name):
        raise InputError(f"defence {name} is {installed()[name].value}; a DefenceFace of that name was expected")
    return face
