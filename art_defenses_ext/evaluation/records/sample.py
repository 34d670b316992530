"""What happened to each sample: the evidence that every figure of a report is computed from."""

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
"""Norms in which the size of every change is recorded, whatever the threat."""


def image_hash(image: FloatArray) -> str:
    """What a record keeps of a sample's image."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one attack did to one sample.

    Attributes:
        prediction: the defended classifier's class for the adversarial image, if it is random the likeliest as far as
            its passes show (``evaluation/suite/vote.py``); of a rejected image the one that it would have; -1 where its
            logits are not finite.
        misclassified: whether that is not the label, and the image is not rejected.
        linf: largest change of a pixel value; of an attack in a linf ball that this exceeds by the rounding of float32
            alone, the ball's radius. Nine significant digits.
        l2: Euclidean length of the change, in an l2 ball cut to its radius in the same way.
        success: misclassified inside the threat's ball.
        usable: whether the attack returned finite values in the clip range; the clean image stands in if not.
        undefended_prediction: the undefended classifier's class for it, where the attack was made on that.
        misses: in how many of the run's ``votes`` passes a random defence missed the label and did not reject; None for
            one that is not random.
        first_misses: in how many of as many passes before these; of a sample's attacks it chooses the worst, whose
            ``misses`` are then those of passes that did not choose it.
        passes: how many passes after the first ones decided about a random defence; None for one that is not random.
        undecided: whether the most passes that are made could not show whether another class is as likely as the label:
            then the attack is not taken for successful.
        ndcg: agreement of its softmax list with the sample's reference (``evaluation/records/metrics.py``), six decimal
            places; None where the image is unusable or outside the threat's ball, or a list is not finite.
        reciprocal_rank: of the class that leads that reference; None as ``ndcg``.
        rejected: whether the detector rejects it, judged as the class is if it is random; None without a detector.
        detection_margin: the detector's score minus its threshold, seven significant digits; None also where that is
            not finite.
        size: of the change in the norm of the run, where that is neither of these two.
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
        """Return whether the change lies in a ball of the run's norm."""
        return threat.allows(self.size_in(threat))

    def size_in(self, threat: Threat) -> float:
        """Return the size of the change in the run's norm, which is that of ``threat``."""
        size = getattr(self, threat.norm_name) if type(threat) in RECORDED else self.size
        return math.nan if size is None else float(size)

    def fooled(self, label: int, threat: Threat) -> bool:
        """Return whether the classifier alone misses ``label`` in the threat's ball, be the image rejected or not."""
        return self.prediction != label and self.usable and self.lies_in(threat)


@dataclass(slots=True)
class SampleRecord:
    """One sample and all that was tried on it.

    Attributes:
        index: position in the data set.
        label: true class.
        clean: the defended classifier's class for the clean image; of a rejected image the one that it would have; -1
            where its logits are not finite.
        undefended_clean: the undefended classifier's, where there is one.
        clean_misses: in how many of the run's ``votes`` passes a random defence missed the label of the clean image, or
            rejected it.
        clean_first_misses: in how many of as many passes before these.
        clean_ndcg: agreement of the clean image's softmax list with the sample's reference: the undefended
            classifier's list for the clean image, where there is one, else this very list.
        clean_reciprocal_rank: of the class that leads that reference.
        clean_rejected: whether the detector rejects the clean image; None without a detector.
        clean_detection_margin: the detector's score for it minus its threshold, as in ``Outcome``.
        image: the first sixteen hexadecimal digits of the SHA-256 of its pixels, by which runs of other samples find
            those that they share; None in runs of older versions.
        attacks: outcomes by the attack's key; only of those that ran on this sample.
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
        """Whether the clean image is classified as labelled and not rejected.

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
        """Return the first field that cannot be what the others say, in words; None if there is none.

        Args:
            nb_classes: that the run's classifier tells apart.
            threat: the ball that counts.
            keys: of the run's attacks.
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
    """What one attack on one block of samples cost.

    Attributes:
        block: index of the block's first sample.
        attack: the attack's key.
        samples: how many it attacked.
        cost: passes, seconds, memory.
    """

    __pydantic_config__ = STRICT

    block: int
    attack: str
    samples: int
    cost: Cost


@dataclass(frozen=True)
class Attempt:
    """What one attack did to samples of one block, all that it ran on.

    Attributes:
        cost: of the attack; it names attack and block.
        rows: the samples' places in the block.
        outcomes: of each of them.
        pictured: index of the sample of which the attack left an image for the report; None if it left none.
        judging: what the passes cost that judged its images.
    """

    __pydantic_config__ = STRICT

    cost: CostRecord
    rows: list[int]
    outcomes: list[Outcome]
    pictured: int | None = None
    judging: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class NotFinite:
    """Images for which the network gives NaN or infinite logits: they name no class, so they are wrong.

    Attributes:
        clean: clean images.
        broken: of the samples that attacks broke, those that they broke by such logits alone; None if they broke none.
    """

    clean: Proportion
    broken: Proportion | None

    @classmethod
    def of(cls, records: list[SampleRecord]) -> NotFinite:
        """Counted in the records."""
        successes = [
            [outcome for outcome in record.attacks.values() if outcome.success] for record in records if record.correct
        ]
        broken = [all(outcome.prediction == NO_CLASS for outcome in outcomes) for outcomes in successes if outcomes]
        clean = Proportion.of(record.clean == NO_CLASS for record in records)
        return cls(clean, Proportion.of(broken) if broken else None)
