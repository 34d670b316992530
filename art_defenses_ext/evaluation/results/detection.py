"""A detector's true and false positive rates, and the success rates of attacks on it, from records.

Attacks with zero knowledge use the classifier alone, as in most papers on detectors. Attacks with perfect knowledge
also follow the detector's gradient, at the detector's own threshold. Their success at another threshold cannot be read
off their images, so figures at other thresholds, and areas under ROC curves, are given for zero knowledge alone. For
another threshold set the detector to it and evaluate again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import mannwhitneyu

from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.records.sample import Outcome, SampleRecord
from art_defenses_ext.evaluation.suite.plan import AttackRun
from art_defenses_ext.evaluation.threat import Threat

Margins = npt.NDArray[np.float64]
Knowledge = Literal["zero", "perfect"]

FALSE_POSITIVES = (0.01, 0.05, 0.10)
"""False positive rates at which the true positive rate is given."""

PASSING = (0.05, 0.50)
"""False positive rates at which the success rate of attacks with zero knowledge is given.

Source: Bryniarski et al. 2022 (arXiv:2106.15023)."""


@dataclass(frozen=True)
class At:
    """A share of images at the threshold of a false positive rate.

    Attributes:
        false_positives: the false positive rate.
        share: the share of images at its threshold.
    """

    false_positives: float
    share: Proportion


@dataclass(frozen=True)
class DetectionRow:
    """The detector's figures for the images of one attack.

    *Fooled* images are those inside the threat's ball that the classifier alone misclassifies.

    Attributes:
        key: the attack's name in the records.
        knows: ``"zero"`` if it was made on the undefended network, ``"perfect"`` if on network and detector.
        fooled: share of fooled samples.
        detected: share of the fooled images that are rejected at the detector's own threshold; None without any.
        past: attack success rate: of the samples whose clean image is classified correctly, those fooled and accepted
            at the detector's own threshold; None without any.
        mean_auc: mean of ``class_aucs``, as in the explanation reconstructor's paper; None without any. This and the
            following figures are given only if ``knows`` is ``"zero"``.
        class_aucs: for each class c, the AUC between clean images of class c and fooled ones classified as c; None if
            either is missing.
        left_out: number of classes without an AUC.
        auc: AUC between all clean images and all fooled ones; None without any.
        true_positives: share of the fooled images flagged at the thresholds of ``FALSE_POSITIVES``; empty without any.
        success: of the samples whose clean image is classified correctly, those fooled and below the thresholds of
            ``PASSING``; empty without any. This is not a worst case.
    """

    key: str
    knows: Knowledge
    fooled: Proportion
    detected: Proportion | None
    past: Proportion | None
    mean_auc: float | None = None
    class_aucs: list[float | None] = field(default_factory=list)
    left_out: int = 0
    auc: float | None = None
    true_positives: list[At] = field(default_factory=list)
    success: list[At] = field(default_factory=list)


@dataclass(frozen=True)
class Pool:
    """Several attacks together: for each image the attack counts that is best for the attacker.

    Attributes:
        knows: ``"zero"`` for the attacks on the undefended network, ``"perfect"`` for all attacks.
        mead: of the images that the classifier classifies correctly and that at least one attack fooled, those that the
            detector rejects under every attack that fooled it; None if there are none. Source: Granese et al. 2022
            (arXiv:2206.15415).
        past: as in ``DetectionRow``, for the best attack on each image.
        success: as in ``DetectionRow``, for the best attack on each image; empty for a random detector, where the best
            of several attacks would be biased.
    """

    knows: Knowledge
    mead: Proportion | None
    past: Proportion | None
    success: list[At] = field(default_factory=list)


@dataclass(frozen=True)
class Detection:
    """The figures of a detector on the samples of a run.

    Attributes:
        false_positives: false positive rate at its own threshold.
        thresholds: pairs of a false positive rate and the least margin that does not exceed it.
        rows: the attacks that ran on all samples.
        pools: all attacks, including those on a part of the samples and those of curves and checks.
    """

    false_positives: Proportion
    thresholds: list[tuple[float, float | None]]
    rows: list[DetectionRow]
    pools: list[Pool]


def detection(plan: list[AttackRun], records: list[SampleRecord], threat: Threat) -> Detection | None:
    """Return every figure of the detector; None without a detector.

    Args:
        plan: the runs of the attacks.
        records: the records of all samples.
        threat: the ball in which an attacked image counts.
    """
    if records[0].clean_rejected is None:
        return None
    clean = clean_margins(records)
    zero = {run.key for run in plan if run.spec.crafted_on == "undefended"}
    shares = sorted({*FALSE_POSITIVES, *PASSING})
    return Detection(
        false_positives=Proportion.of(bool(record.clean_rejected) for record in records),
        thresholds=[(share, _finite(threshold(clean, share))) for share in shares],
        rows=[_row(run, records, threat) for run in runs_on_all(plan, records)],
        pools=[_pool(knows, zero, records, threat) for knows in _known(zero, records)],
    )


def runs_on_all(plan: list[AttackRun], records: list[SampleRecord]) -> list[AttackRun]:
    """Return the runs at the threat's own eps that attacked every sample, as only these give shares of all samples."""
    return [
        run
        for run in plan
        if run.role == "suite" and run.spec.samples == "all" and all(run.key in record.attacks for record in records)
    ]


def clean_margins(records: list[SampleRecord]) -> Margins:
    """Return the detector's margin for the clean images (N,), infinite if it is not finite."""
    return np.array([_margin(record.clean_detection_margin, record.clean_rejected) for record in records])


def fooled_margins(key: str, records: list[SampleRecord], threat: Threat) -> Margins:
    """Return the detector's margin for the fooled images of an attack (n,)."""
    return np.array([margin_of(outcome) for _, outcome in _fooled(key, records, threat)])


def margin_of(outcome: Outcome) -> float:
    """Return the detector's margin: infinite, with the sign of its decision, if it is not finite."""
    return _margin(outcome.detection_margin, outcome.rejected)


def threshold(clean: Margins, share: float) -> float:
    """Return the least margin of clean images (N,) above which at most ``share`` of them lie.

    **Convention**: it is computed over the clean images of the run itself, of all classes; images above it are flagged.
    """
    allowed = int(share * len(clean) + 1e-9)  # so that 0.29 of 100 are 29
    ordered = np.sort(clean)[::-1]
    return float(ordered[allowed]) if allowed < len(ordered) else -math.inf


def auc(negatives: Margins, positives: Margins) -> float | None:
    """Return the probability that a positive (n,) is above a negative (m,), ties half; None if either is missing."""
    if len(negatives) == 0 or len(positives) == 0:
        return None
    below = mannwhitneyu(positives, negatives, method="asymptotic").statistic
    return float(below / (len(positives) * len(negatives)))


def class_aucs(clean: list[tuple[int, float]], fooled: list[tuple[int, float]], nb_classes: int) -> list[float | None]:
    """Return the AUC of each class, as in Ko and Lim 2021 (arXiv:2107.10480).

    Args:
        clean: true class and margin of each clean image: the negatives of their class.
        fooled: predicted class, not the true one, and margin of attacked images: the positives of the former.
        nb_classes: K.
    """
    return [
        auc(*(np.array([margin for label, margin in images if label == number]) for images in (clean, fooled)))
        for number in range(nb_classes)
    ]


def roc(clean: Margins, fooled: Margins) -> tuple[Margins, Margins]:
    """Return the shares of clean (N,) and of attacked images (n,) above each threshold, by falling threshold."""
    at = np.unique(np.concatenate([clean, fooled]))[::-1]
    above = (1 - np.searchsorted(np.sort(margins), at, side="right") / len(margins) for margins in (clean, fooled))
    false, true = (np.concatenate([margins, [1.0]]) for margins in above)  # the last threshold is below all
    return false, true


def _row(run: AttackRun, records: list[SampleRecord], threat: Threat) -> DetectionRow:
    fooled = _fooled(run.key, records, threat)
    row = DetectionRow(
        key=run.key,
        knows="zero" if run.spec.crafted_on == "undefended" else "perfect",
        fooled=Proportion(len(fooled), len(records)),
        detected=Proportion.of(bool(outcome.rejected) for _, outcome in fooled) if fooled else None,
        past=_past({run.key}, records, threat),
    )
    return _at_all_thresholds(row, records, threat) if row.knows == "zero" else row


def _at_all_thresholds(row: DetectionRow, records: list[SampleRecord], threat: Threat) -> DetectionRow:
    """Return the row with the figures at all thresholds, for an attack that does not aim at a threshold."""
    clean = clean_margins(records)
    fooled = _fooled(row.key, records, threat)
    margins = np.array([margin_of(outcome) for _, outcome in fooled])
    classes = 1 + max(max(record.label, record.clean, record.attacks[row.key].prediction) for record in records)
    aucs = class_aucs(
        [(record.label, margin) for record, margin in zip(records, clean, strict=True)],
        [(outcome.prediction, margin_of(outcome)) for _, outcome in fooled],
        classes,
    )
    known = [auc for auc in aucs if auc is not None]
    return replace(
        row,
        mean_auc=float(np.mean(known)) if known else None,
        class_aucs=aucs,
        left_out=len(aucs) - len(known),
        auc=auc(clean, margins),
        true_positives=_at(FALSE_POSITIVES, clean, lambda limit: [bool(each > limit) for each in margins]),
        success=_success({row.key}, records, threat),
    )


def _pool(knows: Knowledge, zero: set[str], records: list[SampleRecord], threat: Threat) -> Pool:
    keys = {key for record in records for key in record.attacks}
    keys = keys & zero if knows == "zero" else keys
    fooled = [_outcomes(record, keys, threat) for record in records if record.clean == record.label]
    random = records[0].clean_misses is not None
    return Pool(
        knows=knows,
        mead=Proportion.of(all(bool(outcome.rejected) for outcome in outcomes) for outcomes in fooled if outcomes)
        if any(fooled)
        else None,
        past=_past(keys, records, threat),
        success=[] if random or knows == "perfect" else _success(keys, records, threat),
    )


def _past(keys: set[str], records: list[SampleRecord], threat: Threat) -> Proportion | None:
    """Return the attack success rate: of the correctly classified samples, those with a fooled and accepted image."""
    right = [_outcomes(record, keys, threat) for record in records if record.clean == record.label]
    return Proportion.of(any(not outcome.rejected for outcome in outcomes) for outcomes in right) if right else None


def _known(zero: set[str], records: list[SampleRecord]) -> list[Knowledge]:
    """Return the kinds of knowledge that any attack has."""
    keys = {key for record in records for key in record.attacks}
    known: list[Knowledge] = ["zero"] if keys & zero else []
    return [*known, "perfect"] if keys - zero else known


def _success(keys: set[str], records: list[SampleRecord], threat: Threat) -> list[At]:
    """Return the attack success rates at other thresholds than the detector's own."""
    right = [_outcomes(record, keys, threat) for record in records if record.clean == record.label]
    return _at(
        PASSING,
        clean_margins(records),
        lambda limit: [any(margin_of(outcome) <= limit for outcome in outcomes) for outcomes in right],
    )


def _at(shares: Iterable[float], clean: Margins, verdicts: Callable[[float], list[bool]]) -> list[At]:
    """Return the shares of images at the thresholds of the false positive rates; empty without images."""
    answers = [(share, verdicts(threshold(clean, share))) for share in shares]
    return [At(share, Proportion.of(verdict)) for share, verdict in answers if verdict]


def _fooled(key: str, records: list[SampleRecord], threat: Threat) -> list[tuple[SampleRecord, Outcome]]:
    """Return the samples on which an attack fooled the classifier, correctly classified before or not."""
    return [(record, outcome) for record in records for outcome in _outcomes(record, {key}, threat)]


def _outcomes(record: SampleRecord, keys: set[str], threat: Threat) -> list[Outcome]:
    return [outcome for key, outcome in record.attacks.items() if key in keys and outcome.fooled(record.label, threat)]


def _margin(margin: float | None, rejected: bool | None) -> float:
    if margin is None:
        return math.inf if rejected else -math.inf
    return margin


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
