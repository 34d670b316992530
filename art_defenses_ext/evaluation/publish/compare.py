"""The comparison of runs: the robust accuracy of each, paired differences, and the union of several balls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from art_defenses_ext.base.errors import RunError
from art_defenses_ext.base.files import write_files
from art_defenses_ext.base.text import for_markdown, for_terminal
from art_defenses_ext.base.validation import check_flag, check_paths
from art_defenses_ext.evaluation.records.paired import Paired
from art_defenses_ext.evaluation.records.proportion import Proportion, plain
from art_defenses_ext.evaluation.report.described import describe_defences
from art_defenses_ext.evaluation.report.headlines import (
    added_names,
    compared_figure,
    own_worst_case,
    worst_case_in_words,
)
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.results.summary import Summary
from art_defenses_ext.evaluation.run.folder import read_manifest
from art_defenses_ext.evaluation.run.manifest import MODEL, Manifest, attacker_differences


@dataclass(frozen=True)
class Compared:
    """A compared run.

    Attributes:
        name: the name of its folder.
        summary: its figures.
        against_first: the paired comparison with the first run, on the images that both attacked in the same ball, by
            the runs' own attacks; None for the first run, and if there are no such images.
        other_attacker: the differences between its attacker and that of the first run, in words; empty if there are
            none.
        code: the hashes of the code, attributes and weights of its model (:class:`.Identity`).
    """

    name: str
    summary: Summary
    against_first: Paired | None
    other_attacker: tuple[str, ...] = ()
    code: dict[str, str] = field(default_factory=dict)

    @property
    def defences(self) -> str:
        """The defences in words."""
        return describe_defences(self.summary.run)


@dataclass(frozen=True)
class Union:
    """One defended model against the union of several balls: an attacker may choose the ball for each image.

    Source: Tramer, Boneh 2019 (arXiv:1904.13000), section 2, the adversary of the largest loss over all balls.

    Attributes:
        defences: the defences in words.
        balls: the balls, such as ``"linf 0.1"``.
        robust: the images that no attack in any of the balls broke.
        figure: the name of this share: robust accuracy only if every run has one.
        established: whether the figures of all runs are established.
    """

    defences: str
    balls: list[str]
    robust: Proportion
    figure: str
    established: bool

    def __str__(self) -> str:
        bound = "" if self.established else "at most "
        note = "" if self.established else " (not all of them are established)"
        balls = " and ".join([", ".join(self.balls[:-1]), self.balls[-1]])
        return f"{self.defences}, union of {balls}: {self.figure} {bound}{self.robust}{note}."


@dataclass(frozen=True)
class Comparison:
    """Several runs beside each other.

    Attributes:
        runs: the runs; the others are compared with the first.
        unions: for each defended model that was attacked on the same images in several balls, all of them together.
    """

    runs: list[Compared]
    unions: list[Union] = field(default_factory=list)

    @property
    def figure(self) -> str:
        """The name of the compared figure: robust accuracy only if every run has one."""
        return compared_figure([run.summary for run in self.runs])

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads of the table's columns."""
        figures = (self.figure, "paper's attacks", "clean", "minus the first", "p")
        return ("run", "defences", "threat", "images", *figures)

    @property
    def note(self) -> str:
        """The meaning of the last columns."""
        return (
            f"Minus the first: {self.figure} minus that of the first run, in points, with its 95 % interval over the "
            "images that both runs attacked (Bonett, Price 2012); p of McNemar's exact test. The cells are empty if "
            "there are no such images, or the threats differ."
        )

    @property
    def warning(self) -> str:
        """The warning above the table if the runs have different attackers; else empty."""
        first = self.runs[0].name
        pairs = [f"{first} and {run.name}: {'; '.join(run.other_attacker)}" for run in self.runs if run.other_attacker]
        if not pairs:
            return ""
        return (
            "The runs have different attackers, so a difference may be due to the attacks and not to the models. "
            f"{'. '.join(pairs)}."
        )

    @property
    def additions(self) -> str:
        """The examples from elsewhere that were added to runs, and where they count; empty if there are none."""
        added = [_additions(run) for run in self.runs if added_names(run.summary)]
        if not added:
            return ""
        return (
            f"Examples from elsewhere were added to {' and '.join(added)}. They count in the {self.figure} and in "
            "unions; the differences, p and the spread over seeds are of the runs' own attacks."
        )

    @property
    def spread(self) -> list[str]:
        """A sentence on the figures of runs that differ in the seed alone, that of training and attacks."""
        groups: dict[str, list[Compared]] = {}
        for run in self.runs:
            groups.setdefault(_without_seed(run), []).append(run)
        seeded = [runs for runs in groups.values() if len({_seed(run) for run in runs}) > 1]
        return [_spread(runs, self.figure) for runs in seeded if _have_one_code(runs)]

    @property
    def _below(self) -> list[str]:
        """The sentences below the table and the meaning of its columns."""
        return [*[self.additions] * bool(self.additions), *map(str, self.unions), *self.spread]

    def rows(self) -> list[list[str]]:
        """Return a row for each run, with the columns of ``heads``."""
        return [_row(run, self.runs[0]) for run in self.runs]

    def print(self, console: Console | None = None) -> None:
        """Print the runs with numbers, and a table that refers to them by number."""
        console = Console() if console is None else console
        table = Table(box=None, padding=(0, 2, 0, 0))
        for head in ("", *self.heads[4:]):
            table.add_column(head)
        if self.warning:
            console.print(f"{for_terminal(self.warning)}\n", style="bold", highlight=False, markup=False)
        for number, (name, defences, threat, images, *figures) in enumerate(self.rows(), 1):
            line = for_terminal(f"{number}  {name}: {threat}, {images} images; {defences}")
            console.print(line, highlight=False, markup=False)
            table.add_row(str(number), *(cell.replace(" [", "\n[").replace(" (", "\n(") for cell in figures))
        console.print()
        console.print(table)
        for text in (self.note, *self._below):
            console.print(f"\n{for_terminal(text)}", highlight=False, markup=False)

    def as_markdown(self) -> str:
        """Return the table with the meaning of its last columns, below the differences between attackers."""
        lines = [self.heads, ["---"] * len(self.heads), *self.rows()]
        table = "\n".join(f"| {' | '.join(_cells(line))} |" for line in lines)
        below = [self.note, *map(for_markdown, self._below)]
        return "\n\n".join([*[for_markdown(self.warning)] * bool(self.warning), table, *below]) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as plain data for JSON."""
        shown = ("robust_accuracy", "standing", "established", "paper", "clean")
        runs = [
            {"name": run.name, "defences": run.defences, "settings": run.summary.run.settings}
            | {name: getattr(run.summary, name) for name in shown}
            | {"after_attacks": run.summary.worst_case, "own_worst_case": run.summary.own_worst_case}
            | {"added": added_names(run.summary)}
            | {"other_attacker": run.other_attacker, "against_first": run.against_first}
            for run in self.runs
        ]
        return {"runs": plain(runs), "unions": plain(self.unions)}

    def save(self, folder: str | Path) -> None:
        """Write ``compare.json``, ``compare.md`` and ``compare.png`` into a folder, created if needed.

        Raises:
            InputError: if it cannot be written to.
        """
        from art_defenses_ext.evaluation.report.figures.bars import comparison_bars  # matplotlib takes long to import
        from art_defenses_ext.evaluation.report.figures.drawing import png

        bars = comparison_bars([(f"{run.name}: {run.defences}", run.summary) for run in self.runs])
        contents = {
            "compare.json": (json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n").encode(),
            "compare.md": self.as_markdown().encode(),
            "compare.png": png(bars),
        }
        write_files(folder, contents)


def compare(folders: Sequence[str | Path], *, different_attackers: bool = False) -> Comparison:
    """Compare finished runs, image by image if they attacked the same images in the same ball.

    Args:
        folders: folders of the runs; the others are compared with the first.
        different_attackers: compare runs with different attackers too: another ball, suite, seed, or other checks
            (``evaluation/run/manifest.py``). The table then begins with the differences.

    Raises:
        InputError: for fewer than two folders, folders without a finished run, or, without ``different_attackers``,
            runs with different attackers.

    >>> from art_defenses_ext import JumpReLU, Linf, compare, evaluate
    >>> options = {"attacks": "papers", "check_samples": 0, "curve_samples": 0, "progress": False}
    >>> for name, jump in ("small", 0.2), ("large", 1.0):
    ...     report = evaluate(JumpReLU(classifier, jump)(), (x_test, y_test), Linf(0.1), out=name, **options)
    >>> [row[:2] for row in compare(["small", "large"]).rows()]
    [['small', 'jump_relu (jump 0.2, rectifiers 3)'], ['large', 'jump_relu (jump 1, rectifiers 3)']]
    """
    folders = check_paths("folders", folders, least=2)
    check_flag("different_attackers", different_attackers)
    reports = [Report.load(folder) for folder in folders]
    manifests = [read_manifest(Path(folder)) for folder in folders]
    names, first = _names(folders), reports[0]
    differences = [tuple(attacker_differences(manifests[0], other)) for other in manifests]
    for name, difference in zip(names, differences, strict=True):
        if difference and not different_attackers:
            raise RunError(
                f"folders holds {names[0]} and {name}, made by different attackers ({'; '.join(difference)}); runs "
                "of one attacker were expected, or different_attackers, which puts the differences above the table"
            )
    return Comparison(
        [
            Compared(
                name,
                report.summary,
                None if report is first else _paired(first, report),
                difference,
                manifest.identity.code,
            )
            for name, report, difference, manifest in zip(names, reports, differences, manifests, strict=True)
        ],
        _unions(reports, manifests),
    )


def _unions(reports: Sequence[Report], manifests: Sequence[Manifest]) -> list[Union]:
    """Return the union of balls for each defended model that was attacked on the same images in more than one."""
    groups: list[tuple[Manifest, list[Report]]] = []
    for report, manifest in zip(reports, manifests, strict=True):
        alike = (group for first, group in groups if first.attacks_the_model_of(manifest))
        group = next(alike, None)
        if group is None:
            groups.append((manifest, [report]))
        else:
            group.append(report)
    unions = []
    for _, group in groups:
        summaries = [report.summary for report in group]
        balls = list(dict.fromkeys(map(_ball, summaries)))
        if len(balls) > 1:
            # Of one model every example counts, also one that was added.
            verdicts = ([record.robust() for record in report.records] for report in group)
            robust = [all(of_image) for of_image in zip(*verdicts, strict=True)]
            unions.append(
                Union(
                    describe_defences(summaries[0].run),
                    balls,
                    Proportion.of(robust),
                    compared_figure(summaries),
                    all(summary.standing == "established" for summary in summaries),
                )
            )
    return unions


def _ball(summary: Summary) -> str:
    return f"{summary.run.settings.threat} {summary.run.settings.eps:.4g}"


def _paired(first: Report, second: Report) -> Paired | None:
    """Return the outcomes for the images that both attacked in the same ball, matched by hash and label.

    Examples that were added from elsewhere to one of the runs do not count: the other was not attacked with them.
    """
    this, other = first.summary.run, second.summary.run
    if (this.settings.threat, this.settings.eps) != (other.settings.threat, other.settings.eps):
        return None
    if this.data_sha256 == other.data_sha256:
        return Paired.of(first.own_verdicts, second.own_verdicts)
    first_robust, second_robust = (
        {
            (record.image, record.label): robust
            for record, robust in zip(report.records, report.own_verdicts, strict=True)
            if record.image is not None
        }
        for report in (first, second)
    )
    shared = [image for image in first_robust if image in second_robust]
    return (
        Paired.of(*([robust[image] for image in shared] for robust in (first_robust, second_robust)))
        if shared
        else None
    )


def _row(run: Compared, first: Compared) -> list[str]:
    summary, settings, pair = run.summary, run.summary.run.settings, run.against_first
    return [
        run.name,
        run.defences,
        _ball(summary),
        str(settings.samples),
        worst_case_in_words(summary),
        "" if summary.paper is None else str(summary.paper),
        str(summary.clean),
        _against(pair, run, first) if pair else "",
        f"{pair.p_value:.2g}" if pair else "",
    ]


def _against(pair: Paired, *runs: Compared) -> str:
    """Return the difference in words, with the number of images if it is not that of both runs."""
    is_complete = all(run.summary.run.settings.samples == pair.total for run in runs)
    return str(pair) if is_complete else f"{pair} ({pair.total} images)"


def _seed(run: Compared) -> int:
    return run.summary.run.settings.seed


def _additions(run: Compared) -> str:
    names = ", ".join(added_names(run.summary))
    return f"{run.name} ({names}; {own_worst_case(run.summary)} without them)"


def _without_seed(run: Compared) -> str:
    """Return a run's data, settings, options and model as a text, without its seed and the weights, which depend on it.

    A run made in Python has no options, so that its model is known by its description alone.
    """
    described = run.summary.run
    settings = asdict(replace(described.settings, seed=0))
    options = {name: value for name, value in described.options.items() if name not in ("seed", "threads")}
    left_out = ("pipeline_sha256", "defences") if options else ("pipeline_sha256",)
    model = [getattr(described, name) for name in MODEL if name not in left_out]
    return repr((described.data_sha256, settings, options, model))


def _have_one_code(runs: Sequence[Compared]) -> bool:
    """Return whether runs made in Python have equal code where their weights are equal; its hash covers the weights.

    The model of a run of the command is given by its options.
    """
    codes = {(run.summary.run.pipeline_sha256, repr(run.code)) for run in runs if not run.summary.run.options}
    return len(codes) == len({weights for weights, _ in codes})


def _spread(runs: Sequence[Compared], figure: str) -> str:
    """Return the figures of runs that differ in the seed alone, in a sentence."""
    rates = [100 * own_worst_case(run.summary).rate for run in runs]
    seeds = len({_seed(run) for run in runs})
    bound = "" if all(run.summary.standing == "established" for run in runs) else "; not all of them are established"
    extremes = f"{min(rates):.1f} to {max(rates):.1f} %"
    return f"{runs[0].defences}, {seeds} seeds: {figure} {fmean(rates):.1f} % on average, {extremes}{bound}."


def _names(folders: Sequence[str | Path]) -> list[str]:
    """Return the folders' names, or their paths if two have the same name."""
    last = [Path(folder).resolve().name for folder in folders]
    return last if len(set(last)) == len(last) else [str(folder) for folder in folders]


def _cells(line: Sequence[str]) -> list[str]:
    """Return a row of the table in Markdown; the first four cells are untrusted names."""
    return [*(cell if cell == "---" else for_markdown(cell) for cell in line[:4]), *line[4:]]
