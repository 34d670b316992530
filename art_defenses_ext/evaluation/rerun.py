"""The repetition of a finished run from its manifest, and the comparison of the records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.validation import check_path
from art_defenses_ext.evaluation.config import EvaluationConfig
from art_defenses_ext.evaluation.evaluate import evaluate, manifest_of
from art_defenses_ext.evaluation.records.sample import SampleRecord
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.run.folder import RECORDS, read_manifest, read_records
from art_defenses_ext.evaluation.run.manifest import Manifest
from art_defenses_ext.evaluation.run.rounds import read_evidence, round_folders
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.task import EvaluationArguments
from art_defenses_ext.evaluation.threat import named_threat

SHOWN = 10
"""Maximum number of differing records that are printed."""


@dataclass(frozen=True)
class Difference:
    """A sample whose record differs in the repetition.

    Attributes:
        index: index of the sample.
        parts: the parts of the record that differ: attacks, and fields that belong to no attack.
        verdicts: those of the parts whose outcome differs: an attack that succeeds in one run only, or the class of the
            clean image.
    """

    index: int
    parts: tuple[str, ...]
    verdicts: tuple[str, ...]

    @classmethod
    def between(cls, first: SampleRecord, second: SampleRecord) -> Difference | None:
        """Return the difference of two records of a sample; None if they are equal."""
        if first == second:
            return None
        plain, other = asdict(first), asdict(second)
        fields = [name for name in plain if name != "attacks" and plain[name] != other[name]]
        names = dict.fromkeys([*first.attacks, *second.attacks])
        attacks = [name for name in names if first.attacks.get(name) != second.attacks.get(name)]
        classes = [name for name in fields if name in ("label", "clean")]
        succeeding = [name for name in attacks if _succeeds(first, name) != _succeeds(second, name)]
        return cls(first.index, (*fields, *attacks), (*classes, *succeeding))

    def __str__(self) -> str:
        another = f"; another verdict: {', '.join(self.verdicts)}" if self.verdicts else "; the same verdicts"
        return f"sample {self.index}: {', '.join(self.parts)}{another}"


def _succeeds(record: SampleRecord, attack: str) -> bool | None:
    outcome = record.attacks.get(attack)
    return None if outcome is None else outcome.success


@dataclass(frozen=True)
class Rerun:
    """A finished run and its repetition.

    Attributes:
        report: the report of the repetition.
        byte_equal: whether the records of both are equal byte for byte.
        differences: the samples whose records differ.
        elsewhere: other differences between the runs, such as the version of a package, in words.
    """

    report: Report
    byte_equal: bool
    differences: list[Difference]
    elsewhere: list[str]

    @classmethod
    def between(cls, folder: Path, again: Path) -> Rerun:
        """Compare the finished runs of two folders.

        Raises:
            InputError: for a folder without a finished run.
        """
        second = Report.load(again)
        own = read_evidence(folder, read_manifest(folder), read_records(folder)).records  # without what was added since
        pairs = zip(own, second.records, strict=True)
        differences = [each for pair in pairs if (each := Difference.between(*pair)) is not None]
        contents = [
            [(each / RECORDS).read_bytes() for each in (path, *round_folders(path))] for path in (folder, again)
        ]
        elsewhere = read_manifest(folder).differences(read_manifest(again))
        return cls(second, contents[0] == contents[1], differences, elsewhere)

    def lines(self) -> Iterator[str]:
        """Return the comparison in words, line by line."""
        total = len(self.report.records)
        if self.byte_equal:
            yield f"All {total} records are equal, byte for byte."
        else:
            verdicts = sum(bool(each.verdicts) for each in self.differences)
            yield f"{len(self.differences)} of {total} records differ, {verdicts} of them in a verdict."
        yield from map(str, self.differences[:SHOWN])
        if len(self.differences) > SHOWN:
            yield f"and {len(self.differences) - SHOWN} more"
        yield from (f"The runs differ in: {words}" for words in self.elsewhere)


def rerun(
    run: str | Path,
    model: PyTorchClassifier | nn.Module,
    data: Any,
    attacks: str | Sequence[AttackSpec] | None = None,
    *,
    out: str | Path | None = None,
    progress: bool = True,
    **arguments: Unpack[EvaluationArguments],
) -> Rerun:
    """Repeat a finished run with its settings, and return the records that differ.

    On one machine, with the same versions and threads, no record differs. ``art-defenses rerun`` does the same for a
    run of the command, and builds the model from the run's manifest.

    Args:
        run: folder of the run.
        model, data: the model and the data of the run, as in :func:`evaluate`.
        attacks: the list of attacks, for a run with such a list; by default the suite that the run names.
        out: folder of the repetition; None keeps nothing.
        progress: show a progress bar.
        arguments: ``undefended`` and ``detector`` as in :func:`evaluate`, if the run was made with them.

    Returns:
        The repetition and its differences.

    Raises:
        InputError: for a folder without a finished run, and for other images or labels, before any attack.

    >>> from art_defenses_ext import JumpReLU, Linf, evaluate, rerun
    >>> defended = JumpReLU(classifier, jump=1.0)()
    >>> report = evaluate(defended, (x_test, y_test), Linf(0.1), "papers", out="run", progress=False)
    >>> rerun("run", defended, (x_test, y_test), progress=False).byte_equal
    True
    """
    folder = check_path("run", run, "the folder of a finished run")
    Report.load(folder)
    manifest = read_manifest(folder)
    settings = manifest.run.settings
    attacks = _attacks(folder, manifest) if attacks is None else attacks
    call = (model, data, named_threat(settings.threat, settings.eps), attacks)
    arguments |= {"allow_large_eps": True, "config": EvaluationConfig.part_of(settings)}
    arguments.setdefault("command_options", manifest.run.options)
    if out is not None and Path(out).resolve() == folder.resolve():
        raise InputError(f"out is {out}, the run itself; another folder was expected")
    if manifest_of(*call, **arguments).run.data_sha256 != manifest.run.data_sha256:
        raise InputError(f"data is not that of the run in {folder}; its images and labels were expected")
    with TemporaryDirectory() if out is None else nullcontext(out) as target:
        evaluate(*call, out=target, progress=progress, **arguments)
        return Rerun.between(folder, Path(target))


def _attacks(folder: Path, manifest: Manifest) -> str:
    """Return the named attacks of a run."""
    attacks = manifest.run.settings.attacks
    if not isinstance(attacks, str):
        names = ", ".join(attacks)
        raise InputError(
            f"attacks is None, and the run in {folder} was made with a list ({names}); this list was expected"
        )
    return attacks
