"""What a command prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from art_defenses_ext.base.text import for_terminal

if TYPE_CHECKING:
    from art_defenses_ext.evaluation.report.report import Report


def say(line: str, *, fg: str | None = None, err: bool = False) -> None:
    """A line for whoever typed the command, with names as they are and nothing that a terminal would obey."""
    click.secho(for_terminal(line), fg=fg, err=err)


def show_report(report: Report, out: Path | None) -> None:
    """Print a report, and where its page lies."""
    report.print()
    if out is not None:
        say(f"Report: {out / 'report.html'}")
