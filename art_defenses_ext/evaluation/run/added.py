"""Adversarial examples from elsewhere, beside a run's own records.

    added/NAME.json   their author, and the outcome of each on the run's model; with a digest
    added/NAME.npz    the images, as evidence: ``adversarial`` and ``index``

NAME is a hash of the images and their author, so adding the same examples twice changes nothing. The run's own records
do not change; a report joins both. The images may be missing, like a run's examples.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.errors import RunError
from art_defenses_ext.base.files import write_files
from art_defenses_ext.evaluation.checks.checks import Evidence
from art_defenses_ext.evaluation.records.lines import CHANGED, STRICT, as_signed, read_signed
from art_defenses_ext.evaluation.records.sample import Outcome
from art_defenses_ext.evaluation.run.folder import ADDED
from art_defenses_ext.evaluation.run.manifest import Manifest, ReadOnlyBuild
from art_defenses_ext.evaluation.suite.plan import AttackRun
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.threat import Threat, named_threat


@dataclass(frozen=True)
class Addition:
    """Examples from elsewhere, and their outcomes.

    Attributes:
        name: name of their author, used like an attack's name in records and reports.
        link: link to their source; None if unknown.
        images: SHA-256 of the images.
        outcomes: outcome by the sample's index, which is a string since JSON has no other keys.
    """

    __pydantic_config__ = STRICT

    name: str
    link: str | None
    images: str
    outcomes: dict[str, Outcome]

    @property
    def stem(self) -> str:
        """The name of its files."""
        return hashlib.sha256(json.dumps([self.name, self.link, self.images]).encode()).hexdigest()[:16]

    def run(self, threat: Threat, samples: int) -> AttackRun:
        """Return the examples as a run of a plan for ``samples`` samples."""
        covered: Literal["all", "unbroken"] = "all" if len(self.outcomes) == samples else "unbroken"
        source = "made elsewhere" if self.link is None else f"made elsewhere: {self.link}"
        spec = AttackSpec(self.name, ReadOnlyBuild(None), source, source="elsewhere", samples=covered)
        return AttackRun(spec, "exact", threat)


def hash_of(adversarial: FloatArray, index: IntArray) -> str:
    """Return the hash of images (n, ...) of the samples ``index`` (n,), which does not depend on their order."""
    order = np.argsort(index)
    digest = hashlib.sha256(np.ascontiguousarray(index[order], dtype=np.int64).tobytes())
    digest.update(np.ascontiguousarray(adversarial[order], dtype=np.float32).tobytes())
    return digest.hexdigest()


def write_addition(
    folder: Path, manifest: Manifest, addition: Addition, adversarial: FloatArray, index: IntArray
) -> None:
    """Write examples to a run's folder: first the images, then the outcomes.

    Raises:
        InputError: if they cannot be written.
    """
    images = io.BytesIO()
    np.savez(images, adversarial=adversarial, index=index)
    content = as_signed(addition, manifest.binding)
    write_files(folder / ADDED, {f"{addition.stem}.npz": images.getvalue(), f"{addition.stem}.json": content})


def read_additions(folder: Path, manifest: Manifest) -> list[Addition]:
    """Return the examples that were added to the run in a folder.

    Raises:
        InputError: for a file that cannot be read, or differs from its digest.
    """
    return [_read(path, manifest) for path in sorted((folder / ADDED).glob("*.json"))]


def _read(path: Path, manifest: Manifest) -> Addition:
    problem = "cannot be read; examples added to a run were expected"
    addition = read_signed(path, Addition, manifest.binding, problem)
    samples = manifest.run.settings.samples
    if not all(index.isdecimal() and int(index) < samples for index in addition.outcomes):
        raise RunError(f"{path} names samples that the run does not have; {CHANGED}")
    return addition


def join(manifest: Manifest, evidence: Evidence, additions: Sequence[Addition]) -> Evidence:
    """Return the evidence for the checks, joined with added examples; the records are changed in place.

    Raises:
        InputError: for two attacks with the same name, and outcomes that contradict themselves.
    """
    settings = manifest.run.settings
    threat = named_threat(settings.threat, settings.eps)
    plan = [*evidence.plan, *(addition.run(threat, settings.samples) for addition in additions)]
    keys = {run.key for run in plan}
    if len(keys) < len(plan):
        raise RunError(f"{ADDED}/ holds examples with the name of an attack of the run; {CHANGED}")
    for addition in additions:
        for index, outcome in addition.outcomes.items():
            record = evidence.records[int(index)]
            record.attacks[addition.name] = outcome
            contradiction = record.contradiction(manifest.run.labels, threat, keys)
            if contradiction is not None:
                raise RunError(f"{ADDED}/{addition.stem}.json contradicts itself: {contradiction}; {CHANGED}")
    return replace(evidence, plan=plan)
