"""Rounds of more effort beside a run's own records.

    rounds/1/                  the first round, a folder like the run's: manifest, records, costs, digests
    rounds/1/shards/1-of-2/    a part of it, until all parts are merged

The records of a round cover all samples and hold the outcomes of its attacks. The run's own records do not change; a
report joins both. The next round is a function of the records alone (:func:`next_round`), so a run that was killed,
repeated, shared or merged has the same rounds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from art_defenses_ext.base.errors import RunError
from art_defenses_ext.evaluation.checks.checks import OF_EFFORT, Evidence
from art_defenses_ext.evaluation.config import AUTO, MOST_ROUNDS, most_rounds
from art_defenses_ext.evaluation.records.lines import CHANGED
from art_defenses_ext.evaluation.records.sample import SampleRecord
from art_defenses_ext.evaluation.run.folder import (
    MANIFEST,
    ROUNDS,
    UNDEFENDED,
    is_finished,
    read_findings,
    read_manifest,
    read_records,
)
from art_defenses_ext.evaluation.run.manifest import Manifest

IDLE = 2
"""The number of consecutive rounds without a gain after which no further round is made. **Convention**."""


def round_folder(path: Path, number: int) -> Path:
    """Return the folder of a round of the run in a folder."""
    return path / ROUNDS / str(number)


def round_folders(path: Path) -> list[Path]:
    """Return the folders of the rounds that have begun, in their order."""
    folders = (round_folder(path, number) for number in range(1, MOST_ROUNDS + 1))
    return [folder for folder in folders if (folder / MANIFEST).exists()]


def is_evaluated(path: Path) -> bool:
    """Return whether a folder holds a finished run or part, and that of its undefended model if it has one.

    Raises:
        InputError: for a run that cannot be read.
    """
    if not is_finished(path):
        return False
    manifest = read_manifest(path)
    return manifest.is_round or not manifest.run.pairs_undefended or is_finished(path / UNDEFENDED)


def is_merged(path: Path, part: Path) -> bool:
    """Return whether a folder holds the whole run of a part, whose own folder is ``part``.

    If that folder holds nothing, since the part lies elsewhere, any finished run counts. An unfinished part is merged
    nowhere.

    Raises:
        InputError: for a run that cannot be read.
    """
    if not is_evaluated(path) or not read_manifest(path).shard.is_whole:
        return False
    if not (part / MANIFEST).exists():
        return True
    return is_evaluated(part) and read_manifest(part).belongs_to(read_manifest(path))


def rounds_follow(path: Path) -> bool:
    """Return whether a round of more effort follows in a merged run, or in that of its undefended model.

    Raises:
        InputError: for a run that cannot be read.
    """
    runs = [folder for folder in (path, path / UNDEFENDED) if (folder / MANIFEST).exists()]
    return any(next_round(read_evidence(each, read_manifest(each), read_records(each))) is not None for each in runs)


def read_evidence(path: Path, manifest: Manifest, records: list[SampleRecord]) -> Evidence:
    """Return the evidence for the checks of a run: its records joined with those of its finished rounds.

    Args:
        path: folder of the run.
        manifest: manifest of the run.
        records: all records of the run itself; the outcomes of the rounds are added in place.

    Raises:
        InputError: for a round of another run.
    """
    evidence = Evidence(manifest.run, list(manifest.plan), records, manifest.health, read_findings(path).binarization)
    for folder in round_folders(path):
        of_round, added = read_manifest(folder), read_records(folder)
        whole = replace(of_round, plan=manifest.plan).binding == manifest.binding
        images = [record.image for record in added]
        if not whole or images != [record.image for record in records[: len(images)]]:
            raise RunError(f"{folder} is not a round of the run in {path}; {CHANGED}")
        if len(added) < len(records):
            return evidence
        for record, more in zip(records, added, strict=True):
            record.attacks |= more.attacks
        rounds = [*evidence.rounds, of_round.plan]
        evidence = replace(evidence, plan=[*evidence.plan, *of_round.plan], rounds=rounds)
    return evidence


def next_round(evidence: Evidence) -> int | None:
    """Return the number of the next round; None if no round follows.

    No round follows if none was requested, no image is robust, the last ``IDLE`` rounds broke no image, or the budget
    is spent. With :data:`.AUTO` none follows either if no check of :data:`.OF_EFFORT` fails.
    """
    settings, count = evidence.run.settings, len(evidence.rounds)
    allowed = count < most_rounds(settings.effort)
    possible = allowed and settings.adaptive and settings.check_samples > 0 and bool(evidence.keys("white-box"))
    if not possible or not any(record.robust() for record in evidence.records):
        return None
    if count >= IDLE and all(result.is_idle for result in evidence.results[-IDLE:]):
        return None
    if settings.effort == AUTO and not count and not set(OF_EFFORT) & set(evidence.failed):
        return None
    return count + 1


def gains(evidence: Evidence) -> Counter[str]:
    """Return the number of images that each white-box attack broke under each mode, in the suite and all rounds."""
    broken, of_rounds = Counter[str](), _names_in_rounds(evidence)
    for key in evidence.keys("white-box"):
        broken[of_rounds.get(key, key)] += _broken(key, evidence)
    return broken


def repeated(evidence: Evidence) -> set[str] | None:
    """Return the names of the attacks of earlier rounds that broke an image, which the next round repeats.

    None if the next round makes all attacks: if it is the first, or follows one that broke no image.
    """
    if not evidence.rounds or evidence.results[-1].is_idle:
        return None
    return {name for key, name in _names_in_rounds(evidence).items() if _broken(key, evidence)}


def _broken(key: str, evidence: Evidence) -> int:
    """Return the number of correctly classified images that an attack broke."""
    outcomes = (record.attacks.get(key) for record in evidence.records if record.correct)
    return sum(outcome is not None and outcome.success for outcome in outcomes)


def _names_in_rounds(evidence: Evidence) -> dict[str, str]:
    """Return the names of the attacks of all rounds without the prefix of a round, by their keys."""
    return {run.key: run.key.partition(": ")[2] for attacks in evidence.rounds for run in attacks}
