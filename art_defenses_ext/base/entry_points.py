"""The installed defences and attacks, of this and other packages: entry points of a group ``art_defenses_ext.KINDs``.

A package registers its own in its ``pyproject.toml``::

    [project.entry-points."art_defenses_ext.defences"]
    grey_levels = "grey_levels:GreyLevels"

    [project.entry-points."art_defenses_ext.attacks"]
    simba = "simba:SIMBA"
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from art_defenses_ext.base.errors import InputError

Kind = Literal["defence", "attack"]


@cache
def installed(kind: Kind) -> dict[str, EntryPoint]:
    """Return the entry points of a kind by name, without importing them.

    Raises:
        InputError: for a name that two packages register.
    """
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"art_defenses_ext.{kind}s"):
        if points.setdefault(point.name, point).value != point.value:
            raise InputError(
                f"{kind} {point.name!r} is registered as {points[point.name].value} and as {point.value}; "
                "one of a name was expected"
            )
    return points


def load_installed(kind: Kind, name: str) -> Any:
    """Import the object that an entry point names.

    Raises:
        InputError: for an unknown name, and for an object that cannot be imported.
    """
    if name not in installed(kind):
        raise InputError(f"{kind} is {name!r}; one of {', '.join(installed(kind))} was expected")
    point = installed(kind)[name]
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"{kind} {name} is {point.value}, which cannot be imported ({error})") from error
