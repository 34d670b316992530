"""The defences that are installed, ours and others': entry points of the group ``art_defenses_ext.defences``.

A package registers its own in its ``pyproject.toml``::

    [project.entry-points."art_defenses_ext.defences"]
    grey_levels = "grey_levels:GreyLevels"
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from art_defenses_ext.base.errors import InputError

if TYPE_CHECKING:
    from art_defenses_ext.defence.face import DefenceFace

GROUP = "art_defenses_ext.defences"


@cache
def installed() -> dict[str, EntryPoint]:
    """The entry points by name; nothing is imported.

    Raises:
        InputError: for a name that two packages register.
    """
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if points.setdefault(point.name, point).value != point.value:
            raise InputError(
                f"defence {point.name!r} is registered as {points[point.name].value} and as {point.value}; "
                "one of a name was expected"
            )
    return points


@cache
def load_face(name: str) -> type[DefenceFace]:
    """The class of an installed defence.

    Raises:
        InputError: for another name, and for a class that cannot be imported or is no ``DefenceFace`` of that name.
    """
    from art_defenses_ext.defence.face import DefenceFace

    if name not in installed():
        raise InputError(f"defence is {name!r}; one of {', '.join(installed())} was expected")
    point = installed()[name]
    try:
        face = point.load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"defence {name} is {point.value}, which cannot be imported ({error})") from error
    if not (isinstance(face, type) and issubclass(face, DefenceFace) and face.name == name):
        raise InputError(f"defence {name} is {point.value}; a DefenceFace of that name was expected")
    return face
