"""Commands with declared options: typed values take precedence over a TOML file, and the file over the defaults."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import Field, fields
from inspect import get_annotations
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from art_defenses_ext.base.declared import Kind, Options, declared_of
from art_defenses_ext.base.errors import InputError

T = TypeVar("T", bound=Options)

TYPES: dict[Any, Any] = {int: click.INT, float: click.FLOAT, Path: click.Path(path_type=Path)}
"""The click type of each declared type; any other type stays text."""


def declared_command(name: str, options: type[T], run: Callable[[T], None]) -> click.Command:
    """Return a command that builds its options from typed values, ``--config`` and defaults, and runs with them.

    Args:
        name: the command's name.
        options: the declaration of the options.
        run: the function of the command; its docstring is the command's help.
    """
    extra = [
        click.Option(["--config"], type=TYPES[Path], help="TOML file of these options; typed options take precedence."),
        click.Option(["--print-config"], is_flag=True, help="Print the TOML file that repeats this call, and stop."),
    ]

    @click.pass_context
    def callback(context: click.Context, /, config: Path | None, print_config: bool, **values: Any) -> None:
        typed = {
            each: list(value) if isinstance(value, tuple) else value
            for each, value in values.items()
            if context.get_parameter_source(each) is not ParameterSource.DEFAULT
        }
        chosen = options.of((read_toml(config) if config is not None else {}) | typed)
        if print_config:
            click.echo(as_toml(chosen), nl=False)
        else:
            run(chosen)

    return click.Command(name, params=[*click_options(options), *extra], callback=callback, help=run.__doc__)


def click_options(options: type[Options]) -> list[click.Parameter]:
    """Return an option of the command for each declared one; those of the class itself before inherited ones."""
    own, hints, kinds = get_annotations(options), get_type_hints(options), declared_of(options)  # type: ignore[arg-type]
    declared = sorted(fields(options), key=lambda each: each.name not in own)  # type: ignore[arg-type]
    return [_click_option(each, hints[each.name], kinds[each.name]) for each in declared]


def _click_option(declared: Field[Any], hint: Any, kind: Kind) -> click.Option:
    details = dict(declared.metadata)
    switch = details.pop("switch", f"--{declared.name.replace('_', '-')}")
    names = [declared.name, f"{switch}/{details['off']}" if "off" in details else switch]
    names += [details["short"]] if "short" in details else []
    several = details.get("multiple", False)
    kind_of_value = {"is_flag": True} if hint is bool else {"type": _click_type(hint), "multiple": several}
    return click.Option(
        names,
        default=declared.default,
        show_default=not (declared.default is None or declared.default is False or several),
        help=details["description"],
        metavar=details.get("metavar"),
        shell_complete=lambda _context, _option, start: [name for name in kind.names if name.startswith(start)],
        **kind_of_value,
    )


def _click_type(hint: Any) -> Any:
    """Return the click type of a value; of an optional value, that of the value."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (each for each in get_args(hint) if each is not type(None))
    return TYPES.get(hint, click.STRING)


def read_toml(path: Path, argument: str = "config") -> dict[str, Any]:
    """Return the values of a TOML file by name.

    Args:
        path: the file.
        argument: name of the argument, for the message.

    Raises:
        InputError: for a file that cannot be read or is not TOML.
    """
    import tomllib

    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    except ValueError as error:
        reason = f"is not TOML ({error})"
    raise InputError(f"{argument} is '{path}', which {reason}; a TOML file was expected")


def as_toml(options: Options) -> str:
    """Return a TOML file that :func:`read_toml` reads as these options; those that are None are left out."""
    return "".join(f"{name} = {_as_toml_value(value)}\n" for name, value in as_plain(options).items())


def as_plain(options: Options) -> dict[str, Any]:
    """Return the options by name as numbers, truth values, texts and lists; those that are None are left out."""
    values = {each.name: getattr(options, each.name) for each in fields(options)}  # type: ignore[arg-type]
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value is not None
    }


def _as_toml_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_as_toml_value, value))}]"
    # JSON writes numbers, truth values and text as TOML does, but for the character that TOML wants escaped as well.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
