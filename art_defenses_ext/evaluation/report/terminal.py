"""A report in a terminal of any width: tables where there is room, lists where there is none."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from art_defenses_ext.base.text import for_terminal, for_terminal_lines
from art_defenses_ext.evaluation.checks.checks import DOCS, Check
from art_defenses_ext.evaluation.records.description import RunDescription
from art_defenses_ext.evaluation.report.words import (
    DETECTION_COLUMNS,
    LEGEND,
    LEGEND_WITH_DETECTOR,
    NO_BREAK,
    NOT_ESTABLISHED,
    agreement_in_words,
    attacker_in_words,
    bare_percent,
    broke,
    capital,
    count_of,
    counted,
    defence_names,
    detection_in_words,
    detection_rows,
    given,
    grouped,
    headlines,
    interval,
    median_size,
    ndcg,
    not_finite_in_words,
    notes,
    passes,
    percent,
    phases_in_words,
    points,
    randomness_in_words,
    reciprocal_rank,
    row_in_words,
    seconds,
    shown_gap,
    size,
    threat_in_words,
    training_in_words,
    unbroken,
    verdict,
)
from art_defenses_ext.evaluation.results.detection import Detection
from art_defenses_ext.evaluation.results.summary import AttackRow, Summary

NARROWEST_CHECKS = 60  # columns under which the checks become a list
NARROWEST_NAME = 18  # columns that an attack's name gets, at least, before the tables give way to a list


def render(summary: Summary) -> RenderableType:
    """The report for a terminal of any width.

    Args:
        summary: the figures of a run.

    Returns:
        Something that ``rich`` prints: what was run, the headline figures, the verdict, the attacks, a legend.
    """
    parts: list[RenderableType] = [_heading(summary.run), _Headlines(summary), "", _Prose(verdict(summary)), ""]
    if not_finite_in_words(summary):
        parts += [_Prose(not_finite_in_words(summary), style="bold"), ""]
    if summary.randomness:
        parts += [_Prose(randomness_in_words(summary)), ""]
    if agreement_in_words(summary):
        parts += [_Prose(agreement_in_words(summary)), ""]
    if summary.checks:
        parts += [_Checks(summary.checks), ""]
    if summary.detection:
        parts += [_Detection(summary.detection), ""]
    parts += [_Attacks(summary), ""]
    if notes(summary.rows):
        parts += [*(_Prose(line, indent="  ") for line in notes(summary.rows)), ""]
    terms = (*LEGEND, *LEGEND_WITH_DETECTOR) if summary.detection else LEGEND
    parts += [_Prose(f"{term}: {meaning}", style="dim", indent="  ") for term, meaning in terms]
    besides = [_Prose(f"Besides the attacks: {phases_in_words(summary)}.")] if summary.phases else []
    return Group(*parts, "", *besides, _Prose(f"In all {_total(summary)}."))


def _total(summary: Summary) -> str:
    total = summary.total
    time = f"{seconds(total.seconds)}{NO_BREAK}s"
    return f"{total.forward} passes forwards, {total.backward} backwards, {time}, curves and checks included"


@dataclass(frozen=True)
class _Prose:
    """Text that is wrapped between words, and never between a number and its unit.

    rich itself breaks lines at no-break spaces; textwrap does not.
    """

    text: str
    style: str = ""
    indent: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = textwrap.wrap(for_terminal(self.text), max(options.max_width, 1), subsequent_indent=self.indent)
        yield Text("\n".join(lines).replace(NO_BREAK, " "), style=self.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest_word = max(map(len, textwrap.wrap(self.text, 1, break_long_words=False)), default=0)
        return Measurement(longest_word, len(self.text)).with_maximum(options.max_width)


def _text(text: str, style: str = "") -> Text:
    """Text as it stands: a name such as ``FGSM [exact]`` holds no markup, and none what a terminal would obey."""
    return Text(for_terminal(text).replace(NO_BREAK, " "), style=style)


def _heading(run: RunDescription) -> RenderableType:
    settings = run.settings
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    names = defence_names(run) or ["none: a plain network"]
    for number, name in enumerate(names):
        grid.add_row("" if number else ("Defences" if len(names) > 1 else "Defence"), _Prose(name))
    for number, training in enumerate(run.trainings):
        grid.add_row("" if number else "Trained", _Prose(training_in_words(training)))
    grid.add_row("Network", _Prose(run.model))
    grid.add_row("Threat", _Prose(threat_in_words(settings)))
    grid.add_row("Attacker", _Prose(attacker_in_words(run)))
    grid.add_row("Samples", _Prose(f"{settings.samples}, seed {settings.seed}"))
    # No wider than its text: a frame across a very wide terminal separates what belongs together.
    return Panel(grid, title=Text("Robustness evaluation"), title_align="left", expand=False)


class _Headlines:
    """The headline figures: side by side with their intervals, or below each other where that is too wide."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = self._table()
        fits = _width(table, console, options) <= options.max_width
        yield table if fits else Group(*self._lines())

    def _table(self) -> Table:
        table = Table(box=None, show_header=True, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("", no_wrap=True)
        for header in ("", "95 % interval", "images"):
            table.add_column(header, justify="right", no_wrap=True)
        for line in headlines(self.summary):
            style = "bold" if line.key == "worst_case" else ""
            if line.value is None:
                table.add_row(_text(line.label), "-")
            elif not line.established:
                table.add_row(_text(line.label, style), _text(NOT_ESTABLISHED, style))
            else:
                cells = (line.label, percent(line.value), interval(line.value), count_of(line.value))
                table.add_row(*[_text(cell, style) for cell in cells])
            if line.remark:
                table.add_row(_text(f"  {line.remark}", "dim"))
        gap = shown_gap(self.summary)
        if gap is not None:
            table.add_row("Gap between the first two, in points", f"{100 * gap:.1f}  ")
        return table

    def _lines(self) -> Iterator[RenderableType]:
        for line in headlines(self.summary):
            measured = [] if line.value is None else [f"{percent(line.value)} {interval(line.value)}"]
            measured = measured if line.established else [NOT_ESTABLISHED]
            value = ", ".join([*measured, line.remark] if line.remark else measured)
            yield _Prose(f"{line.label}: {value}", "bold" if line.key == "worst_case" else "", "  ")
        gap = shown_gap(self.summary)
        if gap is not None:
            yield _Prose(f"Gap between the first two: {points(gap)}", indent="  ")


class _Checks:
    """The checks: verdict, name and finding; wrapped findings stay in their column."""

    def __init__(self, checks: list[Check]) -> None:
        self.checks = checks

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _text("Did the attacks work?", "bold")
        if options.max_width < NARROWEST_CHECKS:
            for check in self.checks:
                yield _Prose(f"{check.verdict}: {check.name}: {unbroken(check.finding)}", _style(check), "  ")
            return
        table = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(3):
            table.add_column()
        for check in self.checks:
            cells = (_text(f"  {check.verdict}", _style(check)), _text(check.name), _Prose(unbroken(check.finding)))
            table.add_row(*cells)
        yield table
        yield _Prose(f"What each one means, and what to do where it fails: {DOCS}", "dim")


def _style(check: Check) -> str:
    return {"passed": "green", "failed": "bold red", "not run": "dim"}[check.verdict]


class _Detection:
    """What the detector tells and whom it lets past: one table, two where that is too wide, or a list."""

    def __init__(self, detection: Detection) -> None:
        self.detection = detection

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _text("The detector", "bold")
        yield _Prose(detection_in_words(self.detection))
        at_thresholds = range(4, len(DETECTION_COLUMNS) - 2)
        others = [number for number in range(len(DETECTION_COLUMNS)) if number not in at_thresholds]
        for parts in ([range(len(DETECTION_COLUMNS))], [others, at_thresholds]):
            tables = [self._table(part) for part in parts]
            if all(_width(table, console, options) <= options.max_width for table in tables):
                yield tables[0]
                for table in tables[1:]:
                    yield ""
                    yield table
                return
        for name, cells in detection_rows(self.detection):
            named = zip((header.replace("\n", " ") for header in DETECTION_COLUMNS), cells, strict=True)
            told = "; ".join(f"{header} {cell}" for header, cell in named if cell != "-")
            yield _Prose(f"  {name}: {told}", indent="    ")

    def _table(self, columns: Sequence[int]) -> Table:
        """The attacks with some of the columns."""
        table = Table(box=box.SIMPLE_HEAD, header_style="dim", show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("attack", no_wrap=True, vertical="bottom")
        for number in columns:
            justify: Literal["left", "right"] = "right" if number else "left"
            table.add_column(DETECTION_COLUMNS[number], justify=justify, no_wrap=True, vertical="bottom")
        for name, cells in detection_rows(self.detection):
            table.add_row(_text(name), *(_text(cells[number]) for number in columns))
        return table


@dataclass(frozen=True)
class _Column:
    """A column of the attack table: its heading, the text of a row in it, and where that stands."""

    header: str
    of: Callable[[AttackRow], str]
    justify: Literal["left", "right"] = "right"


def _results(norm: str) -> list[_Column]:
    return [
        _Column("made on", lambda row: row.crafted_on, "left"),
        _Column("given", given, "left"),
        _Column("broke\nk of m", broke),
        _Column("% in\nball", lambda row: bare_percent(row.robust)),
        _Column("% any\nsize", lambda row: bare_percent(row.accuracy)),
        _Column(f"median\n{norm}", lambda row: size(median_size(row, norm))),
    ]


def _agreements() -> list[_Column]:
    return [
        _Column("NDCG", lambda row: ndcg(row.agreement)),
        _Column("1/rank", lambda row: reciprocal_rank(row.agreement)),
        _Column("counted", counted),
    ]


def _costs() -> list[_Column]:
    return [
        _Column("passes", passes),
        _Column("s", lambda row: seconds(row.seconds) if row.attacked else "-"),
    ]


class _Attacks:
    """The attacks: one table, or one for accuracies and one for the rest, or a list where even that is too wide."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary
        self.longest_name = max((len(row.key) for row in summary.rows), default=0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        results, others = _results(self.summary.run.settings.threat), [*_agreements(), *_costs()]
        whole = self._table([*results, *others], self.longest_name)
        spare = options.max_width - _width(self._table(results, self.longest_name), console, options)
        if _width(whole, console, options) <= options.max_width:
            yield whole
        elif self.longest_name + spare >= NARROWEST_NAME:
            # The other table is the narrower one: it has room where this one has.
            name_width = min(self.longest_name, self.longest_name + spare)
            yield self._table(results, name_width)
            yield ""
            yield self._table(others, name_width)
        else:
            yield from self._lines()

    def _table(self, columns: list[_Column], name_width: int) -> Table:
        """The attacks with some of their columns; a name longer than ``name_width`` is wrapped."""
        table = Table(box=box.SIMPLE_HEAD, header_style="dim", show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        indent = 2
        table.add_column("attack", width=max(name_width, NARROWEST_NAME) + indent, vertical="bottom")
        for column in columns:
            table.add_column(
                Text(for_terminal_lines(column.header)), justify=column.justify, no_wrap=True, vertical="bottom"
            )
        for title, rows in grouped(self.summary.rows):
            table.add_row(_text(title, "bold"))
            for row in rows:
                style = "" if row.attacked else "dim"
                name = Padding(_text(row.key, style), (0, 0, 0, indent))
                table.add_row(name, *[_text(column.of(row), style) for column in columns])
        return table

    def _lines(self) -> Iterator[RenderableType]:
        for title, rows in grouped(self.summary.rows):
            yield _Prose(f"{capital(title)}:", "bold")
            for row in rows:
                yield _Prose(f"  {row.key}: {row_in_words(row)}", indent="    ")


def _width(table: Table, console: Console, options: ConsoleOptions) -> int:
    """The width at which nothing in the table is wrapped or cut."""
    return Measurement.get(console, options.update(width=10_000), table).maximum
