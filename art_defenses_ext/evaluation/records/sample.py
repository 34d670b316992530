"""The record of each sample, from which every figure of a report is computed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from sys import intern

from art_defenses_ext.attack.ball import L2, Linf
from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.logits import NO_CLASS
from art_defenses_ext.evaluation.records.costs import Cost
from art_defenses_ext.evaluation.records.lines import STRICT
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.threat import Threat

RECORDED: tuple[type[Threat], ...] = (Linf, L2)
"""Norms in which the size of every perturbation is recorded, for any threat."""


def image_hash(image: FloatArray) -> str:
    """Return the hash of a sample's image in its record."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one attack on one sample.

    Attributes:
        prediction: the defended classifier's class for the adversarial image; if it is random, the most probable class
            in its passes (``evaluation/suite/vote.py``); for a rejected image, its class without the detector; -1 if
            its logits are not finite.
        misclassified: whether the prediction is not the label, and the image is not rejected.
        linf: largest change of a pixel value; the ball's radius if it exceeds that by the rounding of float32 only.
            Nine significant digits.
        l2: Euclidean length of the change; in an l2 ball cut to its radius in the same way.
        success: whether the image is misclassified inside the threat's ball.
        usable: whether the attack returned finite values in the clip range; if not, the clean image replaces it.
        undefended_prediction: the undefended classifier's class for the image, if the attack was made on that.
        misses: number of the run's ``votes`` passes in which a random defence misclassified the image and did not
            reject it; None if it is not random.
        first_misses: the same number for as many earlier passes. They select a sample's worst attack, whose ``misses``
            are then independent of the selection.
        passes: number of passes after the first ones that decided about a random defence; None if it is not random.
        undecided: whether the largest number of passes did not show whether another class is as probable as the label;
            then the attack does not count as successful.
        ndcg: agreement of the image's softmax list with the sample's reference (``evaluation/records/metrics.py``), six
            decimal places; None if the image is unusable or outside the threat's ball, or a list is not finite.
        reciprocal_rank: reciprocal rank of that reference's first class; None as for ``ndcg``.
        rejected: whether the detector rejects the image, by the same passes if it is random; None without a detector.
        detection_margin: the detector's score minus its threshold, seven significant digits; None also if that is not
            finite.
        size: size of the change in the norm of the run if that is neither linf nor l2, else None; :meth:`size_in` reads
            the right one of the three.
    """

    __pydantic_config__ = STRICT

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
    detection_margin: float | None = None
    first_misses: int | None = None
    passes: int | None = None
    undecided: bool | None = None
    size: float | None = None

    def lies_in(self, threat: Threat) -> bool:
        """Return whether the perturbation lies in a ball of the run's norm."""
        return threat.allows(self.size_in(threat))

    def size_in(self, threat: Threat) -> float:
        """Return the size of the perturbation in the run's norm, which is that of ``threat``."""
        size = getattr(self, threat.norm_name) if type(threat) in RECORDED else self.size
        return math.nan if size is None else float(size)

    def fooled(self, label: int, threat: Threat) -> bool:
        """Return whether the classifier alone misclassifies the image in the threat's ball, rejected or not."""
        return self.prediction != label and self.usable and self.lies_in(threat)


@dataclass(slots=True)
class SampleRecord:
    """One sample with the outcomes of all attacks on it.

    Attributes:
        index: position in the data set.
        label: true class.
        clean: the defended classifier's class for the clean image; for a rejected image, its class without the
            detector; -1 if its logits are not finite.
        undefended_clean: the undefended classifier's class, if there is one.
        clean_misses: number of the run's ``votes`` passes in which a random defence misclassified or rejected the clean
            image.
        clean_first_misses: the same number for as many earlier passes.
        clean_ndcg: agreement of the clean image's softmax list with the sample's reference: the undefended classifier's
            list for the clean image, if there is one, else this list itself.
        clean_reciprocal_rank: reciprocal rank of that reference's first class.
        clean_rejected: whether the detector rejects the clean image; None without a detector.
        clean_detection_margin: the detector's score for it minus its threshold, as in ``Outcome``.
        image: the first sixteen hexadecimal digits of the SHA-256 of its pixels, by which runs find the samples that
            they share; None in runs of older versions.
        attacks: outcomes by the attack's key, of the attacks that ran on this sample.
    """

    __pydantic_config__ = STRICT

    index: int
    label: int
    clean: int
    undefended_clean: int | None = None
    clean_misses: int | None = None
    clean_ndcg: float | None = None
    clean_reciprocal_rank: float | None = None
    clean_rejected: bool | None = None
    clean_detection_margin: float | None = None
    image: str | None = None
    clean_first_misses: int | None = None
    attacks: dict[str, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.attacks = {intern(key): outcome for key, outcome in self.attacks.items()}  # many samples share few keys

    @property
    def correct(self) -> bool:
        """Whether the clean image is classified correctly and not rejected.

        *Source* for the latter: Tramer 2022, "Detecting Adversarial Examples Is (Nearly) As Hard As Classifying Them"
        (arXiv:2107.11630).
        """
        return self.clean == self.label and not self.clean_rejected

    def robust(self, keys: Collection[str] | None = None) -> bool:
        """Return whether the sample is classified correctly and no attack (of those with ``keys``) succeeded on it."""
        return self.correct and not any(
            outcome.success for key, outcome in self.attacks.items() if keys is None or key in keys
        )

    def contradiction(self, nb_classes: int, threat: Threat, keys: Collection[str]) -> str | None:
        """Return the first field that contradicts the others, in words; None if there is none.

        Args:
            nb_classes: number of classes of the run's classifier.
            threat: the ball of the run.
            keys: the keys of the run's attacks.
        """
        if not 0 <= self.label < nb_classes:
            return f"label is {self.label}; 0 to {nb_classes - 1} was expected"
        for key, outcome in self.attacks.items():
            if key not in keys:
                return f"attacks {key!r} is no attack of the run"
            if not NO_CLASS <= outcome.prediction < nb_classes:
                return (
                    f"attacks {key!r} prediction is {outcome.prediction}; a class up to {nb_classes - 1} was expected"
                )
            misclassified = outcome.prediction != self.label and not outcome.rejected
            if outcome.misclassified != misclassified:
                fields = "prediction, label and rejected"
                return f"attacks {key!r} misclassified is {outcome.misclassified}, and {fields} say {misclassified}"
            success = misclassified and outcome.usable and outcome.lies_in(threat)
            if outcome.success != success:
                fields = "misclassified, usable and the size of the change"
                return f"attacks {key!r} success is {outcome.success}, and {fields} say {success}"
        return None


@dataclass(frozen=True)
class CostRecord:
    """The cost of one attack on one block of samples.

    Attributes:
        block: index of the block's first sample.
        attack: the attack's key.
        samples: number of samples that it attacked.
        cost: passes, seconds, memory.
    """

    __pydantic_config__ = STRICT

    block: int
    attack: str
    samples: int
    cost: Cost


@dataclass(frozen=True)
class Attempt:
    """The outcomes of one attack on the samples of one block.

    Attributes:
        cost: the cost of the attack, with its attack and block.
        rows: the samples' places in the block.
        outcomes: the outcome for each of them.
        pictured: index of the sample whose image the attack left for the report; None if there is none.
        predictions: the cost of the predictions of its images.
    """

    __pydantic_config__ = STRICT

    cost: CostRecord
    rows: list[int]
    outcomes: list[Outcome]
    pictured: int | None = None
    predictions: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class NotFinite:
    """Images with NaN or infinite logits, which count as misclassified.

    Attributes:
        clean: the clean images.
        broken: of the samples that attacks broke, those broken by such logits alone; None if no sample was broken.
    """

    clean: Proportion
    broken: Proportion | None

    @classmethod
    def of(cls, records: list[SampleRecord]) -> NotFinite:
        """Count these images in the records."""
        successes = [
            [outcome for outcome in record.attacks.values() if outcome.success] for record in records if record.correct
        ]
        broken = [all(outcome.prediction == NO_CLASS for outcome in outcomes) for outcomes in successes if outcomes]
        clean = Proportion.of(record.clean == NO_CLASS for record in records)
        return cls(clean, Proportion.of(broken) if broken else None)
