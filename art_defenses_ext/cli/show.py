"""The output of the commands."""

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
    """Print a line, without the control sequences that names may contain."""
    click.secho(for_terminal(line), fg=fg, err=err)


def noise_options() -> list[click.Option]:
    """Return the options of a long command that set how much it prints."""
    switches = {
        "--quiet": "Print results and errors only, without progress.",
        "--verbose": "Print a line for each attack and each epoch instead of a bar.",
    }
    return [
        click.Option([name], is_flag=True, expose_value=False, callback=_set_level, help=text)
        for name, text in switches.items()
    ]


def _set_level(_context: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        set_noise(logging.ERROR if option.name == "quiet" else logging.INFO)


def set_noise(level: int) -> None:
    """Print messages of the package's logger from a level on to the standard error."""
    if level == logging.NOTSET:
        return
    lines = logging.StreamHandler()
    lines.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.getLogger("art_defenses_ext").setLevel(level)
    logging.getLogger("art_defenses_ext").handlers = [lines]


@contextmanager
def resumable(out: Path | None, overwrite: bool = False) -> Iterator[None]:
    """Add to an interruption how to continue: a run in a folder keeps its finished attacks."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        again = "the same command without --overwrite" if overwrite else "the same command"
        interrupt.add_note(
            "Nothing is kept without --out."
            if out is None
            else f"Finished attacks are kept in {out}; {again} continues from there."
        )
        raise


def show_report(report: Report, out: Path | None) -> None:
    """Print a report, and the path of its page."""
    report.print()
    if out is not None:
        say(f"Report: {out / 'report.html'}")
