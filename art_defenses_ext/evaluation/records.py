"""What happened to each sample: the evidence that every figure of a report is computed from."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from art_defenses_ext.evaluation.costs import Cost
from art_defenses_ext.evaluation.threats import Threat
from art_defenses_ext.validation import InputError


@dataclass(frozen=True)
class Outcome:
    """What one attack did to one sample.

    Attributes:
        prediction: the defended classifier's class for the adversarial image, by majority if it is random; of a
            rejected image the one that it would have.
        misclassified: whether that is not the label, and the image is not rejected.
        linf: largest change of a pixel value.
        l2: Euclidean length of the change.
        success: misclassified inside the threat's ball.
        usable: whether the attack returned finite values in the clip range; the clean image stands in if not.
        undefended_prediction: the undefended classifier's class for it, where the attack was made on that.
        misses: in how many passes a random defence missed the label and did not reject; None for one that is not
            random.
        ndcg: agreement of its softmax list with the sample's reference (``evaluation/metrics.py``), six decimal
            places; None where the image is unusable or outside the threat's ball, or a list is not finite.
        reciprocal_rank: likewise.
        rejected: whether the detector rejects it, by majority if it is random; None without a detector.
        excess: how far the detector's score is above its threshold, seven significant digits; None also where that is
            not finite.
    """

    prediction: int
    misclassified: bool
    linf: float
    l2: float
    success: bool
    usable: bool = True
    undefended_prediction: int | None = None
    misses: int | None = None
    ndcg: float | None = None
    reciprocal_rank: float | None = None
    rejected: bool | None = None
    excess: float | None = None

    def fooled(self, label: int, threat: Threat) -> bool:
        """Whether the classifier alone misses ``label`` in the threat's ball, be the image rejected or not."""
        return self.prediction != label and self.usable and threat.allows(getattr(self, threat.norm_name))


@dataclass
class SampleRecord:
    """One sample and all that was tried on it.

    Attributes:
        index: position in the data set.
        label: true class.
        clean: the defended classifier's class for the clean image; of a rejected image the one that it would have.
        undefended_clean: the undefended classifier's, where there is one.
        clean_misses: in how many passes a random defence missed the label of the clean image, or rejected it.
        clean_ndcg: agreement of the clean image's softmax list with the sample's reference: the undefended
            classifier's list for the clean image, where there is one, else this very list.
        clean_reciprocal_rank: likewise.
        clean_rejected: whether the detector rejects the clean image; None without a detector.
        clean_excess: how far the detector's score is above its threshold for it, as in ``Outcome``.
        attacks: outcomes by the attack's key; only of those that ran on this sample.
    """

    index: int
    label: int
    clean: int
    undefended_clean: int | None = None
    clean_misses: int | None = None
    clean_ndcg: float | None = None
    clean_reciprocal_rank: float | None = None
    clean_rejected: bool | None = None
    clean_excess: float | None = None
    attacks: dict[str, Outcome] = field(default_factory=dict)

    @property
    def correct(self) -> bool:
        """Whether the clean image is classified as labelled and not rejected.

        *Source* for the latter: Tramer 2022, "Detecting Adversarial Examples Is (Nearly) As Hard As Classifying Them"
        (arXiv:2107.11630).
        """
        return self.clean == self.label and not self.clean_rejected

    def robust(self, keys: Collection[str] | None = None) -> bool:
        """Whether the sample is classified correctly and no attack (of those with ``keys``) succeeded on it."""
        return self.correct and not any(
            outcome.success for key, outcome in self.attacks.items() if keys is None or key in keys
        )


@dataclass(frozen=True)
class CostRecord:
    """What one attack on one block of samples cost."""

    block: int
    attack: str
    samples: int
    cost: Cost


def check_out(path: str | Path, overwrite: bool = False) -> Path:
    """The folder of a run, if one can be written there; nothing is written yet.

    Raises:
        InputError: if it cannot be written, or holds an earlier run and ``overwrite`` is not set.
    """
    folder = Path(path)
    try:
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        usable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
        usable = usable and not any((folder / name).is_dir() for name in (RunDirectory.RECORDS, RunDirectory.COSTS))
    except OSError:  # such as a name too long
        usable = False
    if not usable:
        raise InputError(f"out is {path}, which cannot be written; a folder that can was expected")
    if (folder / RunDirectory.RECORDS).exists() and not overwrite:
        raise InputError(f"out is {path}, which holds an earlier run; another folder, or overwrite, was expected")
    return folder


class RunDirectory:
    """The folder of a run: records and costs are appended block by block as it goes.

    Args:
        path: folder to write to; made if need be.
        overwrite: replace the files of an earlier run there.

    Raises:
        InputError: as :func:`check_out`.
    """

    RECORDS, COSTS = "records.jsonl", "costs.jsonl"
    RESULTS = ("report.json", "report.html", "examples.npz")

    def __init__(self, path: str | Path, overwrite: bool = False) -> None:
        self.path = check_out(path, overwrite)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in self.RESULTS:  # or they would stand beside the records of another run
                (self.path / name).unlink(missing_ok=True)
            for name in (self.RECORDS, self.COSTS):
                (self.path / name).write_text("", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"out is {path}, which cannot be written ({error.strerror}); a folder was expected"
            ) from None

    def append(self, records: list[SampleRecord], costs: list[CostRecord]) -> None:
        """Add the lines of one finished block."""
        self._write(self.RECORDS, [asdict(record) for record in records])
        self._write(self.COSTS, [_flat(record) for record in costs])

    def _write(self, name: str, rows: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(lines)


def _flat(record: CostRecord) -> dict[str, Any]:
    row = asdict(record)
    cost: dict[str, Any] = row.pop("cost")
    return row | cost


def read_records(path: str | Path) -> list[SampleRecord]:
    """The sample records of a run's folder."""
    lines = (Path(path) / RunDirectory.RECORDS).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        SampleRecord(**(row | {"attacks": {key: Outcome(**outcome) for key, outcome in row["attacks"].items()}}))
        for row in rows
    ]
