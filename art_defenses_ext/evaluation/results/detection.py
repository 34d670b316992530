"""A detector's true and false positive rates and the success rates of attacks on it, out of records.

Zero-knowledge attackers know the classifier alone, as those of most detectors' papers; with perfect knowledge they
follow the detector's gradient, too, at the detector's own threshold. What they would reach at another threshold is not
known from their images, so figures at other thresholds, and areas under ROC curves, are of attackers with zero
knowledge alone, who aim at none. For another threshold set the detector to it and evaluate again.
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
"""Shares of clean images that may be flagged, where it is asked how many attacked ones are."""

PASSING = (0.05, 0.50)
"""False positive rates at which the success rate of attacks with zero knowledge is given.

Source: Bryniarski et al. 2022 (arXiv:2106.15023)."""


@dataclass(frozen=True)
class At:
    """A share of images at the threshold that flags some share of clean ones.

    Attributes:
        false_positives: the share of clean images that may be flagged.
        share: of the images that are asked about.
    """

    false_positives: float
    share: Proportion


@dataclass(frozen=True)
class DetectionRow:
    """One attack, and what the detector does with its images.

    *Fooled* images are those inside the threat's ball that the classifier alone gets wrong.

    Attributes:
        key: the attack's name in the records.
        knows: ``"zero"`` if it was made on the undefended network, ``"perfect"`` if on the whole.
        fooled: of the samples.
        detected: of the fooled images, at the detector's own threshold; None without any.
        past: of the samples whose clean image the classifier gets right: fooled, and accepted at the detector's own
            threshold; None without any.
        mean_auc: mean of ``class_aucs``, as the explanation reconstructor's paper has it; None without any. This and
            all that follow only where ``knows`` is ``"zero"``.
        class_aucs: of each class c, between clean images of class c and fooled ones that are now taken for c; None
            where there are none of either.
        left_out: classes without.
        auc: between all clean images and all fooled ones; None without any.
        true_positives: of the fooled images, at thresholds of ``FALSE_POSITIVES``; none without any.
        success: of the samples whose clean image the classifier gets right: fooled and below thresholds of
            ``PASSING``; none without any. Not the worst case there.
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
    """Several attacks at once: for each image the one counts that serves the attacker best.

    Attributes:
        knows: ``"zero"``: those made on the undefended network; ``"perfect"``: all of them.
        mead: of the images that the classifier gets right and that at least one attack fooled, those that the detector
            rejects whatever attack fooled it; None if no attack fooled it on any. Source: Granese et al. 2022
            (arXiv:2206.15415).
        past: as in ``DetectionRow``, of the best attack of each image.
        success: as in ``DetectionRow``, of the best attack of each image; none of a random detector, where the best of
            several attacks would be the luckiest.
    """

    knows: Knowledge
    mead: Proportion | None
    past: Proportion | None
    success: list[At] = field(default_factory=list)


@dataclass(frozen=True)
class Detection:
    """The figures of a detector on the samples of a run.

    Attributes:
        false_positives: clean images that it rejects at its own threshold.
        thresholds: (share of clean images that may be flagged, the least margin at which no more are).
        rows: the attacks that ran on all samples.
        pools: all attacks, those that ran on a part of the samples and for curves and checks included.
    """

    false_positives: Proportion
    thresholds: list[tuple[float, float | None]]
    rows: list[DetectionRow]
    pools: list[Pool]


def detection(plan: list[AttackRun], records: list[SampleRecord], threat: Threat) -> Detection | None:
    """Every figure of the detector; None without one.

    Args:
        plan: the runs.
        records: of all samples.
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
    """The runs at the threat's own eps that attacked every sample, as they were to: others tell of no share of all."""
    return [
        run
        for run in plan
        if run.role == "suite" and run.spec.samples == "all" and all(run.key in record.attacks for record in records)
    ]


def clean_margins(records: list[SampleRecord]) -> Margins:
    """Return the detector's margin for the clean images (N,); what is not finite is infinite where it is rejected."""
    return np.array([_margin(record.clean_detection_margin, record.clean_rejected) for record in records])


def fooled_margins(key: str, records: list[SampleRecord], threat: Threat) -> Margins:
    """Return the detector's margin for what an attack fooled the classifier with (n,)."""
    return np.array([margin_of(outcome) for _, outcome in _fooled(key, records, threat)])


def margin_of(outcome: Outcome) -> float:
    """Return the detector's margin, infinite where it is not finite."""
    return _margin(outcome.detection_margin, outcome.rejected)


def threshold(clean: Margins, share: float) -> float:
    """Return the least margin of clean images (N,) above which at most ``share`` of them lie.

    **Convention**: over the clean images of the run itself, whatever their class, and flagged is what lies above.
    """
    allowed = int(share * len(clean) + 1e-9)  # so that 0.29 of 100 are 29
    ordered = np.sort(clean)[::-1]
    return float(ordered[allowed]) if allowed < len(ordered) else -math.inf


def auc(negatives: Margins, positives: Margins) -> float | None:
    """The chance that a positive (n,) lies above a negative (m,), ties counted half; None if either is missing."""
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
    """Shares of clean (N,) and of attacked images (n,) above each threshold, from above all to below all."""
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
    """Return the row with the figures that hold of an attack which aims at no threshold."""
    clean = clean_margins(records)
    fooled = _fooled(row.key, records, threat)
    margins = np.array([margin_of(outcome) for _, outcome in fooled])
    classes = 1 + max(max(record.label, record.clean, record.attacks[row.key].prediction) for record in records)
    aucs = class_aucs(
        [(record.label, margin) for record, margin in zip(records, clean, strict=True)],
        [(outcome.prediction, margin_of(outcome)) for _, outcome in fooled],
        classes,
    )
    known = [each for each in aucs if each is not None]
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
    """The attack success rate: of the samples that the classifier gets right, those with a fooling, accepted image."""
    right = [_outcomes(record, keys, threat) for record in records if record.clean == record.label]
    return Proportion.of(any(not outcome.rejected for outcome in outcomes) for outcomes in right) if right else None


def _known(zero: set[str], records: list[SampleRecord]) -> list[Knowledge]:
    """Return which attackers tried."""
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
    """What holds at the thresholds that flag some shares of clean images; nothing where nothing is asked about."""
    answers = [(share, verdicts(threshold(clean, share))) for share in shares]
    return [At(share, Proportion.of(verdict)) for share, verdict in answers if verdict]


def _fooled(key: str, records: list[SampleRecord], threat: Threat) -> list[tuple[SampleRecord, Outcome]]:
    """Return the samples that an attack fooled the classifier on, whatever it says of the clean image."""
    return [(record, outcome) for record in records for outcome in _outcomes(record, {key}, threat)]


def _outcomes(record: SampleRecord, keys: set[str], threat: Threat) -> list[Outcome]:
    return [outcome for key, outcome in record.attacks.items() if key in keys and outcome.fooled(record.label, threat)]


def _margin(margin: float | None, rejected: bool | None) -> float:
    if margin is None:
        return math.inf if rejected else -math.inf
    return margin


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
