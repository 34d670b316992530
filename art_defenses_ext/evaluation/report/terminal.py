"""A report in a terminal of any width, with tables, or lists if it is too narrow for tables."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from art_defenses_ext.base.text import for_terminal
from art_defenses_ext.evaluation.report.content import document
from art_defenses_ext.evaluation.report.numbers import MISSING
from art_defenses_ext.evaluation.report.sections import (
    NO_BREAK,
    Column,
    Figure,
    Folded,
    Prose,
    Row,
    Section,
    Table,
    Terms,
)
from art_defenses_ext.evaluation.results.summary import Summary

NARROWEST_NAME = 18
"""Smallest width of the names of rows; a table that leaves less becomes a list."""
NARROWEST_PROSE = 30
"""Smallest width of a cell of prose, in characters."""
STYLES = {"": "", "main": "bold", "passed": "green", "failed": "bold red", "not run": "dim"}
WEIGHTS = {"plain": "", "strong": "", "soft": "dim"}


def render(summary: Summary) -> RenderableType:
    """Return the report for a terminal of any width.

    Args:
        summary: the figures of a run.

    Returns:
        An object that ``rich`` prints: all sections but those of figures, definitions and provenance.
    """
    report = document(summary)
    conclusion = _Wrapped(report.conclusion.text, f"bold {STYLES[report.conclusion.status]}")
    parts: list[RenderableType] = [_Wrapped(report.heading, "bold"), "", conclusion, ""]
    for section in report.sections:
        if not section.is_reference:
            parts += _drawn(section)
    return Group(*parts[:-1])


def _drawn(section: Section) -> list[RenderableType]:
    """Return the title, the parts and an empty line; nothing for a section of figures alone."""
    parts: list[RenderableType] = []
    for part in section.parts:
        if isinstance(part, Table):
            parts += [DrawnTable(part), ""]
        elif not isinstance(part, Figure):
            parts += _lines_of(part)
    return [_text(section.title, "bold underline"), *parts, *[""] * (parts[-1] != "")] if parts else []


def _lines_of(part: Prose | Terms | Folded) -> Iterator[RenderableType]:
    if isinstance(part, Prose):
        yield _Wrapped(part.text, WEIGHTS[part.weight])
    elif isinstance(part, Terms):
        for term, meaning in part.meanings:
            yield _Wrapped(f"{term}: {meaning}", "dim", "  ")
    elif part.command:
        yield _Wrapped(f"{part.title}: {part.command}", "dim", "  ")
    else:
        for inner in part.parts:
            yield from _lines_of(inner)


@dataclass(frozen=True)
class _Wrapped:
    """Text that is wrapped between words, and never between a number and its unit.

    rich itself breaks lines at no-break spaces; textwrap does not.
    """

    text: str
    style: str = ""
    indent: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = textwrap.wrap(for_terminal(self.text), max(options.max_width, 1), subsequent_indent=self.indent)
        yield _text("\n".join(lines), self.style)


def _text(text: str, style: str = "") -> Text:
    """Return text without markup, as in a name such as ``FGSM [exact]``, and without control sequences."""
    return Text("\n".join(map(for_terminal, text.split("\n"))).replace(NO_BREAK, " "), style=style)


@dataclass(frozen=True)
class DrawnTable:
    """A table that fits the terminal, with names and prose wrapped, or a list if there is too little room.

    Attributes:
        table: the table as data.
    """

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for gap in (2, 1):
            widths = self._widths(options.max_width, gap)
            if widths:
                yield self._drawn(widths, gap)
                return
        yield from self._lines()

    def _widths(self, room: int, gap: int) -> list[int] | None:
        """Return the columns' widths, such that only names and prose are wrapped; None if there is too little room."""
        columns, rows = self.table.columns, self.table.rows
        cells = [[row.name for row in rows], *zip(*(row.cells for row in rows if row.cells), strict=True)]
        cells += [()] * (len(columns) - len(cells))
        widths = [
            max((cell_len(line) for text in (column.header, *below) for line in text.split("\n")), default=0)
            for column, below in zip(columns, cells, strict=True)
        ]
        titles = [cell_len(title) for title, _ in self.table.groups]
        widths[0] = max(widths[0] + self._indent, *titles)
        narrowest = max(NARROWEST_NAME, *titles)
        least = [
            NARROWEST_PROSE if column.holds == "prose" else narrowest if number == 0 else width
            for number, (column, width) in enumerate(zip(columns, widths, strict=True))
        ]
        spare = room - gap * (len(columns) - 1) - sum(map(min, least, widths))
        if spare < 0:
            return None
        for number in [0, *(number for number, column in enumerate(columns) if column.holds == "prose")]:
            more = min(widths[number] - min(least[number], widths[number]), spare)
            widths[number] = min(least[number], widths[number]) + more
            spare -= more
        return widths

    @property
    def _indent(self) -> int:
        return 2 if any(title for title, _ in self.table.groups) else 0

    def _drawn(self, widths: list[int], gap: int) -> RichTable:
        has_head = any(column.header for column in self.table.columns)
        drawn = RichTable(
            box=box.SIMPLE_HEAD if has_head else None,
            show_header=has_head,
            header_style="dim",
            show_edge=False,
            pad_edge=False,
            padding=(0, gap - has_head, 0, 0),  # the box adds a column between two others
        )
        for column, width in zip(self.table.columns, widths, strict=True):
            justify: Literal["left", "right"] = "right" if column.holds == "numbers" else "left"
            drawn.add_column(_text(column.header), justify=justify, width=width, vertical="top")
        for title, rows in self.table.groups:
            if title:
                drawn.add_row(_text(title, "bold"))
            for row in rows:
                drawn.add_row(*self._cells(row))
        return drawn

    def _cells(self, row: Row) -> Iterator[RenderableType]:
        style = STYLES[row.status]
        name = Group(_Wrapped(row.name, style), *[_Wrapped(f"  {row.remark}", "dim", "  ")] * bool(row.remark))
        yield Padding(name, (0, 0, 0, self._indent))
        for column, cell in zip(self.table.columns[1:], row.cells, strict=False):
            yield _Wrapped(cell, style) if column.holds == "prose" else _text(cell, style)

    def _lines(self) -> Iterator[RenderableType]:
        """Yield a line for each row, with the names of its columns."""
        for title, rows in self.table.groups:
            if title:
                yield _Wrapped(f"{title}:", "bold")
            for row in rows:
                named = [_named(column, cell) for column, cell in zip(self.table.columns[1:], row.cells, strict=False)]
                text = "; ".join(part for part in (*named, row.remark) if part)
                yield _Wrapped(f"{' ' * self._indent}{row.name}: {text}", STYLES[row.status], "    ")


def _named(column: Column, cell: str) -> str:
    """Return a cell with its heading; empty if the cell is."""
    if cell in ("", MISSING):
        return ""
    if column.holds == "prose":
        return cell
    header = column.header.replace("\n", " ")
    return f"{header} {cell.replace(' ', NO_BREAK)}".strip()
