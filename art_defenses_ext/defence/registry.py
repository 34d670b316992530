"""The installed defences of this and other packages: entry points of the group ``art_defenses_ext.defences``."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

from art_defenses_ext.base import entry_points
from art_defenses_ext.base.errors import InputError

if TYPE_CHECKING:
    from art_defenses_ext.defence.face import DefenceFace


def installed() -> dict[str, EntryPoint]:
    """Return the entry points of all defences by name, without importing them."""
    return entry_points.installed("defence")


@cache
def load_face(name: str) -> type[DefenceFace]:
    """Import the class of an installed defence.

    Raises:
        InputError: for an unknown name, and for a class that cannot be imported or is not a ``DefenceFace`` of that
            name.
    """
    from art_defenses_ext.defence.face import DefenceFace

    face = entry_points.load_installed("defence", name)
    if not (isinstance(face, type) and issubclass(face, DefenceFace) and face.name == name):
        raise InputError(f"defence {name} is {installed()[name].value}; a DefenceFace of that name was expected")
    return face
