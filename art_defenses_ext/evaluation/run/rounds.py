"""Rounds of more effort beside a run's own records.

    rounds/1/    of the first round, a folder like the run's: manifest, records, costs, digests

A round's records are of all samples, and hold what its attacks did; the run's own stay as they are, and both are joined
when a report is made. Which round follows is a function of the records alone (:func:`next_round`), so a run that was
killed, repeated or merged makes the same ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from art_defenses_ext.base.errors import RunError
from art_defenses_ext.evaluation.checks.checks import OF_EFFORT, Evidence
from art_defenses_ext.evaluation.config import AUTO, MOST_ROUNDS
from art_defenses_ext.evaluation.records.lines import CHANGED
from art_defenses_ext.evaluation.records.sample import SampleRecord
from art_defenses_ext.evaluation.run.folder import MANIFEST, ROUNDS, read_findings, read_manifest, read_records
from art_defenses_ext.evaluation.run.manifest import Manifest

IDLE = 2
"""Rounds in a row that add nothing, after which none follows. **Convention**."""


def round_folder(path: Path, number: int) -> Path:
    """Return where a round of the run in a folder lies."""
    return path / ROUNDS / str(number)


def round_folders(path: Path) -> list[Path]:
    """Return the folders of the rounds that were begun, in their order."""
    folders = (round_folder(path, number) for number in range(1, MOST_ROUNDS + 1))
    return [folder for folder in folders if (folder / MANIFEST).exists()]


def read_evidence(path: Path, manifest: Manifest, records: list[SampleRecord]) -> Evidence:
    """Return what the checks of a run look at: its records, to which those of its finished rounds are joined.

    Args:
        path: folder of the run.
        manifest: of the run.
        records: its own, all of them; they are changed in place.

    Raises:
        InputError: for a round of another run.
    """
    evidence = Evidence(manifest.run, list(manifest.plan), records, manifest.health, read_findings(path).binarization)
    for folder in round_folders(path):
        of_round, added = read_manifest(folder), read_records(folder)
        whole = replace(of_round, plan=manifest.plan).digest() == manifest.digest()
        images = [record.image for record in added]
        if not whole or images != [record.image for record in records[: len(images)]]:
            raise RunError(f"{folder} is no round of the run in {path}; {CHANGED}")
        if len(added) < len(records):
            return evidence
        for record, more in zip(records, added, strict=True):
            record.attacks |= more.attacks
        rounds = [*evidence.rounds, of_round.plan]
        evidence = replace(evidence, plan=[*evidence.plan, *of_round.plan], rounds=rounds)
    return evidence


def next_round(evidence: Evidence) -> int | None:
    """Return the number of the round that is to follow; None where none is.

    None follows where none was asked for, nothing is left, ``IDLE`` rounds in a row have added nothing, or the budget
    is spent; and, with :data:`.AUTO`, where no check of :data:`.OF_EFFORT` fails.
    """
    settings, made = evidence.run.settings, len(evidence.rounds)
    budget = MOST_ROUNDS if settings.effort == AUTO else int(settings.effort)
    asked = made < budget and settings.adaptive and settings.check_samples > 0 and bool(evidence.keys("white-box"))
    if not asked or not any(record.robust() for record in evidence.records):
        return None
    if made >= IDLE and all(result.is_idle for result in evidence.results[-IDLE:]):
        return None
    if settings.effort == AUTO and not made and not set(OF_EFFORT) & set(evidence.failed):
        return None
    return made + 1


def gains(evidence: Evidence) -> Counter[str]:
    """Return how many images each white-box attack under each mode has broken, in the suite and in rounds together."""
    broken = Counter[str]()
    for run, name in _named(evidence):
        outcomes = (record.attacks.get(run) for record in evidence.records if record.correct)
        broken[name] += sum(outcome is not None and outcome.success for outcome in outcomes)
    return broken


def _named(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """The keys of white-box attacks, and their names without a round's."""
    rounds = {run.key: run.key.partition(": ")[2] for attacks in evidence.rounds for run in attacks}
    return ((key, rounds.get(key, key)) for key in evidence.keys("white-box"))
