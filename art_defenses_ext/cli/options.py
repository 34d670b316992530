"""What a user types about defences, as values: names, options, files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.validation import check_choice
from art_defenses_ext.cli.defences import NONE, Wishes, defence_names, face_of, is_detector, option_names


def check_defences(names: Sequence[str]) -> list[str]:
    """The names of defences, if they can be put on one after the other.

    Raises:
        InputError: for an unknown one, one twice, ``none`` beside others, or something after a detector.
    """
    for name in names:
        check_choice("defence", name, defence_names())
        if names.count(name) > 1:
            raise InputError(f"defence is {name!r} twice; each only once was expected")
    if NONE in names and len(names) > 1:
        raise InputError(f"defence is {', '.join(names)}; 'none' only alone was expected")
    if any(map(is_detector, names[:-1])):
        raise InputError(f"defence is {', '.join(names)}; the detector as the last was expected: it watches all others")
    return list(names)


def options_of(names: Sequence[str], given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options of each defence, from ``NAME=VALUE``, or ``DEFENCE.NAME=VALUE`` where there are several.

    A value is a number, true, false, null or a list where it reads as one in JSON, else text.
    """
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for pair in given:
        path, equals, text = pair.partition("=")
        defence, dot, option = path.rpartition(".")
        owner = names[0] if len(names) == 1 and not dot else defence
        if not equals or owner not in names or option not in option_names(owner):
            raise InputError(f"option is {pair!r}; {_expected(names)} was expected")
        try:
            options[owner][option] = json.loads(text)
        except json.JSONDecodeError:
            options[owner][option] = text
    return options


def _expected(names: Sequence[str]) -> str:
    if len(names) > 1:
        known = [f"{name}.{option}" for name in names for option in option_names(name)]
        return f"DEFENCE.NAME=VALUE with one of {', '.join(known)}"
    known = option_names(names[0])
    return f"NAME=VALUE with one of {', '.join(known)}" if known else f"none, since {names[0]} has no options,"


def files_of(names: Sequence[str], given: Sequence[str]) -> dict[str, Path]:
    """The files of fitted defences, from ``FILE``, or ``DEFENCE=FILE`` where there are several."""
    files: dict[str, Path] = {}
    for text in given:
        defence, equals, path = text.partition("=")
        if not equals or defence not in defence_names():
            fitted = [name for name in names if _is_fitted(name)] or list(names)
            if len(fitted) > 1 or len(given) > 1:
                raise InputError(f"fitted is {text}; DEFENCE=FILE was expected")
            defence, path = fitted[0], text
        if defence not in names:
            raise InputError(f"fitted is {text}, but {defence} is not among the defences; one of them was expected")
        files[defence] = Path(path)
    return files


def check_file(name: str, wishes: Wishes) -> None:
    """Refuse a file that is missing or means nothing to the defence, and options beside it."""
    if wishes.fitted is None:
        return
    if not _is_fitted(name):
        raise InputError(f"fitted is {wishes.fitted}, but defence {name} is not fitted; no file was expected")
    if wishes.options:
        raise InputError(
            f"fitted is {wishes.fitted} and option is {next(iter(wishes.options))!r}; a file holds its own options"
        )
    if not wishes.fitted.is_file():
        raise InputError(f"fitted is {wishes.fitted}; an existing file was expected")


def _is_fitted(name: str) -> bool:
    face = face_of(name)
    return face is not None and face.fitted_on is not None
