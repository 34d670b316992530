"""What a command prints."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from art_defenses_ext.base.text import for_terminal

if TYPE_CHECKING:
    from art_defenses_ext.evaluation.report.report import Report


def say(line: str, *, fg: str | None = None, err: bool = False) -> None:
    """A line for whoever typed the command, with names as they are and nothing that a terminal would obey."""
    click.secho(for_terminal(line), fg=fg, err=err)


def noise_options() -> list[click.Option]:
    """Return the options of a command that works for long, by which it says less or more meanwhile."""
    switches = {
        "--quiet": "Show no progress: results and errors alone.",
        "--verbose": "Show a line for each attack and each epoch instead of a bar.",
    }
    return [
        click.Option([name], is_flag=True, expose_value=False, callback=_set_level, help=text)
        for name, text in switches.items()
    ]


def _set_level(_context: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        set_noise(logging.ERROR if option.name == "quiet" else logging.INFO)


def set_noise(level: int) -> None:
    """Have the package's logger print what is of a level and above on the standard error."""
    if level == logging.NOTSET:
        return
    lines = logging.StreamHandler()
    lines.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.getLogger("art_defenses_ext").setLevel(level)
    logging.getLogger("art_defenses_ext").handlers = [lines]


@contextmanager
def resumable(out: Path | None, overwrite: bool = False) -> Iterator[None]:
    """Say, where the work inside is interrupted, how it goes on: a run in a folder keeps what is finished."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        again = "the same command without --overwrite" if overwrite else "the same command"
        interrupt.add_note(
            "Nothing is kept without --out."
            if out is None
            else f"Finished attacks are kept in {out}; {again} goes on from there."
        )
        raise


def show_report(report: Report, out: Path | None) -> None:
    """Print a report, and where its page lies."""
    report.print()
    if out is not None:
        say(f"Report: {out / 'report.html'}")
