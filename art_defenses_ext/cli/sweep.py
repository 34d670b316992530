"""``art-defenses sweep``: a matrix of evaluations from a file, each in a folder of its own, and their comparison."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.cli.declared import read_toml
from art_defenses_ext.cli.evaluate import EvaluateOptions, Prepared, checked, repeated
from art_defenses_ext.cli.show import resumable, say

if TYPE_CHECKING:
    from art_defenses_ext.evaluation.publish.compare import Comparison

COMPARISON = "comparison"
"""The folder of the comparison, beside those of the runs."""

OF_ONE_RUN = ("overwrite", "price", "processes", "shard")
"""Options that a sweep refuses, since they concern a single run."""

LISTS = ("defence", "options", "fitted")
"""Options that are lists; a single text counts as a list of one."""


@dataclass(frozen=True)
class Sweep:
    """The evaluations of a sweep.

    Attributes:
        out: the folder that holds the folders of the runs.
        runs: the options of each run by the name of its folder, in the order of the file.
    """

    out: Path
    runs: dict[str, EvaluateOptions]

    @classmethod
    def read(cls, path: Path) -> Sweep:
        """Read a sweep from its file: options of ``evaluate``, and lists of values under ``[matrix]``.

        Raises:
            InputError: for a file that cannot be read, or that holds an invalid option.
        """
        values = read_toml(path, "sweep")
        matrix, out = values.pop("matrix", None), values.pop("out", None)
        if not isinstance(matrix, dict) or not matrix:
            raise InputError("matrix is missing; a table [matrix] with lists of values was expected")
        if not isinstance(out, str) or not out:
            raise InputError("out is missing; the folder of all runs was expected")
        runs: dict[str, EvaluateOptions] = {}
        for cells in product(*(_axis(name, choices) for name, choices in matrix.items())):
            name = ",".join(label for label, _ in cells)
            if name in runs:
                raise InputError(f"matrix has the run {name!r} twice; another name = TEXT in one's table was expected")
            options = dict(values)
            for _, chosen in cells:
                options |= chosen
            with _naming(name):
                runs[name] = _options(options, Path(out) / name)
        return cls(Path(out), runs)

    def unfinished(self) -> list[str]:
        """Return the names of the runs that are not finished.

        Raises:
            InputError: for a folder that holds a run with other options.
        """
        return [name for name, options in self.runs.items() if not _is_finished(name, options)]

    def make(self, argument: str) -> Comparison | None:
        """Make the unfinished runs, and write and return the comparison of all; None for a single run.

        Args:
            argument: what the user gave, for the message of an error, such as ``"sweep is sweep.toml"``.

        Raises:
            InputError: for invalid options, before the first run; at the end, for runs that failed.
        """
        from art_defenses_ext.evaluation.publish.compare import compare

        unfinished = self.unfinished()
        self._check(unfinished)
        failed = [name for name in self.runs if not self._made(name, name in unfinished)]
        if failed:
            raise InputError(f"{argument}, of which {', '.join(failed)} failed; the same command tries again")
        if len(self.runs) == 1:
            return None
        comparison = compare([self.out / name for name in self.runs], different_attackers=True)
        comparison.save(self.out / COMPARISON)
        say(f"Comparison: {self.out / COMPARISON / 'compare.md'}")
        return comparison

    def _check(self, names: Iterable[str]) -> None:
        from art_defenses_ext.evaluation.run.folder import check_out
        from art_defenses_ext.evaluation.run.shard import WHOLE

        for name in names:
            with _naming(name):
                check_out(self.out / name)
                checked(self.runs[name], WHOLE)

    def _made(self, name: str, is_unfinished: bool) -> bool:
        """Make a run unless it is finished, and return whether there is one; the other runs do not depend on it."""
        if not is_unfinished:
            say(f"{name}: already finished")
            return True
        try:
            with resumable(self.out):
                _attack(name, self.runs[name])
        except InputError as error:
            say(f"{name}: failed: {error}", err=True, fg="red")
            return False
        return True


@contextmanager
def _naming(run: str) -> Iterator[None]:
    """Name the run of the sweep in the message of an error."""
    try:
        yield
    except InputError as error:
        raise InputError(f"run {run}: {error}") from error


def _axis(name: str, choices: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the values of one axis of the matrix: a label, and the options that it sets."""
    if not isinstance(choices, list) or not choices:
        raise InputError(f"matrix {name} is {choices!r}; a list of values was expected")
    cells = []
    for choice in choices:
        chosen = dict(choice) if isinstance(choice, dict) else {name: choice}
        label = chosen.pop("name", None) or " ".join(map(_in_words, chosen.values()))
        cells.append((f"{name}={re.sub(r'[^A-Za-z0-9._+=-]+', '-', str(label))}", chosen))
    return cells


def _in_words(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _options(values: dict[str, Any], out: Path) -> EvaluateOptions:
    for name in OF_ONE_RUN:
        if name in values:
            raise InputError(f"{name} is an option of a single run; a sweep without it was expected")
    lists = {name: [values[name]] for name in LISTS if isinstance(values.get(name), str)}
    return EvaluateOptions.of(values | lists | {"out": str(out)})


def _is_finished(name: str, options: EvaluateOptions) -> bool:
    from art_defenses_ext.evaluation.report.report import PAGE
    from art_defenses_ext.evaluation.run.folder import MANIFEST, read_manifest

    assert options.out is not None
    if not (options.out / MANIFEST).exists():
        return False
    earlier, current = read_manifest(options.out).run.options, repeated(options)
    for option in {**current, **earlier}:
        if earlier.get(option) != current.get(option):
            raise InputError(
                f"out is {options.out}, which holds another run: {option} {earlier.get(option)!r}, not "
                f"{current.get(option)!r}; the same options, or another folder, was expected"
            )
    return (options.out / PAGE).exists()


def _attack(name: str, options: EvaluateOptions) -> None:
    """Make a run, or continue it."""
    from art_defenses_ext.evaluation.evaluate import evaluate
    from art_defenses_ext.evaluation.report.headlines import figure_name, worst_case_in_words
    from art_defenses_ext.evaluation.run.shard import WHOLE

    task = Prepared.of(options, WHOLE)
    report = evaluate(*task.call, out=options.out, save_examples=options.save_examples, **task.arguments)
    say(f"{name}: {figure_name(report.summary)} {worst_case_in_words(report.summary)}")


@click.command("sweep")
@click.argument("sweep", type=click.Path(path_type=Path))
@click.option("--print", "only_print", is_flag=True, help="Print the runs and whether they are finished, and stop.")
def sweep_command(sweep: Path, only_print: bool) -> None:
    """Make a matrix of evaluations, each in its own folder, and compare them.

    SWEEP is a TOML file with options of evaluate, and lists of values under [matrix]. Finished runs are skipped and
    unfinished ones are continued, so the same command continues an interrupted sweep.
    """
    task = Sweep.read(sweep)
    if only_print:
        unfinished = task.unfinished()
        for name in task.runs:
            say(f"{name}: {'to do' if name in unfinished else 'finished'}")
        return
    comparison = task.make(f"sweep is {sweep}")
    if comparison is not None:
        comparison.print()
