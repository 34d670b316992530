"""The report of an evaluation, for the terminal and as files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from art_defenses_ext.base.errors import RunError
from art_defenses_ext.base.files import write_files
from art_defenses_ext.base.validation import check_path
from art_defenses_ext.evaluation.checks.checks import run_checks
from art_defenses_ext.evaluation.records.description import RunDescription
from art_defenses_ext.evaluation.records.examples import Example, written
from art_defenses_ext.evaluation.records.sample import SampleRecord
from art_defenses_ext.evaluation.report.headlines import added_names
from art_defenses_ext.evaluation.report.page import render_page
from art_defenses_ext.evaluation.report.sections import NO_BREAK
from art_defenses_ext.evaluation.report.terminal import render
from art_defenses_ext.evaluation.report.verdict import verdict
from art_defenses_ext.evaluation.results.summary import AgainstUndefended, Summary, summarise
from art_defenses_ext.evaluation.run.added import join, read_additions
from art_defenses_ext.evaluation.run.folder import (
    MANIFEST,
    UNDEFENDED,
    read_costs,
    read_findings,
    read_kept_examples,
    read_manifest,
    read_records,
)
from art_defenses_ext.evaluation.run.rounds import next_round, read_evidence, round_folders

PAGE = "report.html"
"""The file of a report that is written last: if it exists, the report is complete."""

SHARED = ("threat", "eps", "samples", "seed", "block_size", "adaptive")
"""The settings that the evaluation of the undefended model shares."""


@dataclass(frozen=True)
class Report:
    """Figures, records and example images of one evaluation.

    ``print(report)`` prints the result in sentences, and ``report.print()`` all figures.
    """

    summary: Summary
    records: list[SampleRecord] = field(repr=False)
    examples: list[Example] = field(repr=False)

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """Return the report of a finished run, computed from its folder, which may come from another machine.

        Raises:
            InputError: for a folder without a run, or with an unfinished run, a part of a run or another version.
        """
        path = check_path("folder", folder, "the folder of a finished run")
        manifest = read_manifest(path)
        run = manifest.run
        if not manifest.shard.is_whole:
            raise RunError(f"folder is {folder}, which holds the part {manifest.shard} of a run; merge all of them")
        own = read_records(path)
        if len(own) < run.settings.samples:
            raise RunError(
                f"folder is {folder}, which holds {len(own)} of {run.settings.samples} samples; "
                "a finished run was expected: the command that began it continues it"
            )
        evidence = read_evidence(path, manifest, own)
        if (number := next_round(evidence)) is not None:
            raise RunError(
                f"folder is {folder}, where round {number} of more effort is not finished; a finished run was "
                "expected: the command that began it goes on with it, whole or in parts (--shard)"
            )
        # Compared first, since joining adds the examples from elsewhere to the records in place.
        paired = run.pairs_undefended and (path / UNDEFENDED / MANIFEST).exists()
        against = _against_undefended(path / UNDEFENDED, run, own) if paired else None
        evidence = join(manifest, evidence, read_additions(path, manifest))
        checks = run_checks(evidence) if run.settings.check_samples else []
        rounds = round_folders(path)
        costs = [cost for each in (path, *rounds) for cost in read_costs(each)] + read_findings(path).costs
        summary = summarise(run, evidence.plan, evidence.records, costs, checks, evidence.rounds)
        if against is not None:
            summary = replace(summary, against_undefended=against)
        examples = [example for each in (path, *rounds) for example in read_kept_examples(each)]
        return cls(summary, own, examples)

    @property
    def robust_accuracy(self) -> float | None:
        """The mean over samples of the minimum over an adaptive suite's attacks, from 0 to 1.

        It is an upper bound if not ``established``, and None if it is unknown, since no adaptive attack ran or no
        checks were made; ``accuracy_after_attacks`` is known in every case.
        """
        share = self.summary.robust_accuracy
        return None if share is None else share.rate

    @property
    def accuracy_after_attacks(self) -> float:
        """The mean over samples of the minimum over all attacks that ran, from 0 to 1."""
        return self.summary.worst_case.rate

    @property
    def established(self) -> bool | None:
        """Whether an adaptive suite passed its own checks; None without one, or without checks."""
        return self.summary.established

    @property
    def own_verdicts(self) -> list[bool]:
        """Whether each sample is robust to the run's own attacks; examples added from elsewhere do not count.

        Two runs are compared by these: what somebody added to one of them is no difference between their models.
        """
        added = set(added_names(self.summary))
        return [record.robust(record.attacks.keys() - added) for record in self.records]

    def __str__(self) -> str:
        return verdict(self.summary).replace(NO_BREAK, " ")

    def print(self, console: Console | None = None) -> None:
        """Print all figures to a terminal of any width.

        Args:
            console: where to print; None for standard output.
        """
        (Console() if console is None else console).print(render(self.summary))

    def save(self, folder: str | Path) -> None:
        """Write the report into a folder, which is created if it does not exist.

        The files are ``report.json``, ``report.html``, ``figures/accuracy.png``, and if there is something to show the
        other figures (``report/figures/drawn.py``) and ``examples.npz`` (``evaluation/records/examples.py``). Files of
        an earlier report that this one does not have are removed. Each file is written completely or not at all.

        Args:
            folder: the folder.

        Raises:
            InputError: if it cannot be written to.
        """
        # Imported here, since matplotlib takes most of a second and only saved reports need it.
        from art_defenses_ext.evaluation.report.figures.drawn import draw_figures

        figures = draw_figures(self.summary, self.records, self.examples)
        contents: dict[str, bytes | None] = {
            "report.json": (json.dumps(self.summary.as_dict(), indent=1, allow_nan=False) + "\n").encode(),
            "examples.npz": written(self.examples) if self.examples else None,
        } | {f"figures/{name}.png": content for name, content in figures.items()}
        contents[PAGE] = render_page(self.summary, self.examples, figures).encode()  # last: it marks a complete report
        write_files(folder, contents)


def _against_undefended(folder: Path, run: RunDescription, records: list[SampleRecord]) -> AgainstUndefended:
    """Return the paired comparison of a run with that of its undefended model, under the run's own attacks.

    Raises:
        InputError: for a run of another model, other images or another attacker.
    """
    undefended = Report.load(folder)
    other = undefended.summary.run
    theirs = other.data_sha256, other.pipeline_sha256, other.settings.attacks
    same = theirs == (run.data_sha256, run.undefended_sha256, run.settings.undefended_attacks)
    if not same or any(getattr(other.settings, name) != getattr(run.settings, name) for name in SHARED):
        raise RunError(
            f"{folder} does not belong to the run that contains it; the run of its undefended model was expected"
        )
    return AgainstUndefended.of(records, undefended.records, undefended.summary)
