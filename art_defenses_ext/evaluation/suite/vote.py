"""Judging images by several passes of a network whose passes differ: which class is the likeliest, and is that shown?

A random classifier is judged as the vote of infinitely many of its passes: by the class of highest probability. A
majority of a few passes errs, and the more attacks there are, the more often one of them would be lucky on an image
near the boundary. So an attack succeeds only where fresh passes show that another class is at least as likely as the
label, by a test whose level is small enough for all attacks of a run together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from art.estimators.classification import PyTorchClassifier
from scipy.stats import binom

from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.logits import NO_CLASS
from art_defenses_ext.estimator.defend import as_module
from art_defenses_ext.evaluation.records.metrics import Scores
from art_defenses_ext.evaluation.suite.predictions import BoolArray, Prediction, nb_labels, predict
from art_defenses_ext.evaluation.suite.seeding import seeded

FALSE_SUCCESS = 0.01
"""How likely any attack of a run is taken for successful on an image of which no attack changed the likeliest class.
**Convention**."""

HOPELESS = 0.05
"""Level at which an image is taken for not broken before all passes are made: that can only spare passes."""

MOST_PASSES = 1024
"""Fresh passes an image at most. They are doubled until they decide. **Convention**."""


class _Counts(NamedTuple):
    """Counts of what the passes of some images say.

    The columns are the K classes, one for logits that are not finite, and one that no pass names.

    Attributes:
        accepted: that name each class and do not reject (n, K + 2).
        alone: that name each class, whether they reject or not (n, K + 2).
        rejected: that reject (n,).
    """

    accepted: IntArray
    alone: IntArray
    rejected: IntArray

    @classmethod
    def none(cls, count: int, nb_classes: int) -> _Counts:
        """Return the counts of no pass."""
        shape = (count, nb_classes + 2)
        return cls(np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64), np.zeros(count, dtype=np.int64))

    def add(self, rows: IntArray, prediction: Prediction) -> None:
        """Count a pass of the images ``rows``."""
        named = np.where(prediction.classes == NO_CLASS, self.alone.shape[1] - 2, prediction.classes)
        rejected = np.zeros(len(rows), dtype=np.bool_) if prediction.rejected is None else prediction.rejected
        self.alone[rows, named] += 1
        self.accepted[rows, named] += ~rejected
        self.rejected[rows] += rejected

    def misses(self, labels: IntArray) -> IntArray:
        """Return how many name another class than the label (n,) and do not reject (n,)."""
        missed: IntArray = self.accepted.sum(axis=1) - _of(self.accepted, labels)
        return missed


def judge(
    classifier: PyTorchClassifier,
    x: FloatArray,
    labels: IntArray,
    votes: int,
    seed: int,
    attacks: int | None = None,
) -> Prediction:
    """Return the likeliest class of images (n, ...), and whether they are rejected.

    With ``votes`` 1 that is what one pass says. Otherwise the first ``votes`` passes name a rival of each image's
    label, the class that is likeliest to have taken its place. As many fresh passes are counted, and doubled up to
    ``MOST_PASSES`` until an exact binomial test decides between label and rival, and between rival and rejection.

    Source: Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918), section 3.2.2, for a rival chosen by other passes than
    those that test it. **Convention**: a defence that is right half of the time has been broken.

    Args:
        classifier: what is judged.
        x: the images.
        labels: true classes (n,).
        votes: 1, or passes that are counted.
        seed: of their randomness.
        attacks: how many attacks of the run share ``FALSE_SUCCESS``; what they do not show is taken for the label, or
            for rejected. None for clean images: of them the class with more passes counts, where no test decides.
    """
    with seeded(seed):
        if votes == 1:
            return predict(classifier, x)
        return _Vote(classifier, x, labels, votes, attacks).judge()


class _Vote:
    """The passes of one call of :func:`judge`."""

    def __init__(
        self, classifier: PyTorchClassifier, x: FloatArray, labels: IntArray, votes: int, attacks: int | None
    ) -> None:
        self.classifier, self.x, self.labels, self.votes = classifier, x, labels, votes
        self.module = as_module(classifier)
        self.nb_classes = nb_labels(classifier)
        self.clean = attacks is None
        looks = 1 + max(int(np.ceil(np.log2(MOST_PASSES / votes))), 0)
        self.level = FALSE_SUCCESS / (attacks or 1) / looks

    def judge(self) -> Prediction:
        """Choose the rivals, count fresh passes, decide."""
        everything = np.arange(len(self.x))
        first, fresh = (_Counts.none(len(self.x), self.nb_classes) for _ in range(2))
        self._count(first, everything, self.votes)
        rivals = self._rivals(first.accepted), self._rivals(first.alone)
        softmax, margin = self._count(fresh, everything, self.votes)
        misses, rejections = fresh.misses(self.labels), fresh.rejected.copy()
        passes = np.full(len(self.x), self.votes)
        while len(rows := np.flatnonzero(~self._decided(fresh, *rivals) & (passes < MOST_PASSES))):
            again = min(int(passes[rows[0]]), MOST_PASSES - int(passes[rows[0]]))
            self._count(fresh, rows, again)
            passes[rows] += again
        classes, rejected = self._verdict(fresh, *rivals)
        return Prediction(
            classes=np.where(classes < self.nb_classes, classes, NO_CLASS),
            softmax=softmax,
            misses=misses,
            rejected=None if margin is None else rejected,
            detection_margin=margin,
            rejections=None if margin is None else rejections,
            first_misses=first.misses(self.labels),
            first_rejections=None if margin is None else first.rejected,
            passes=passes,
            undecided=~self._decided(fresh, *rivals),
        )

    def _count(self, counts: _Counts, rows: IntArray, passes: int) -> tuple[Scores, Scores | None]:
        """Count so many passes of some images: their mean probabilities (n, K) and mean margin (n,)."""
        x = self.x[rows]
        prediction = predict(self.classifier, x, module=self.module)
        softmax, margin = prediction.softmax / passes, prediction.detection_margin
        for number in range(passes):
            if number:
                prediction = predict(self.classifier, x, module=self.module)
                softmax = softmax + prediction.softmax / passes
                margin = (
                    None
                    if margin is None or prediction.detection_margin is None
                    else margin + prediction.detection_margin
                )
            counts.add(rows, prediction)
        return softmax, None if margin is None else margin / passes

    def _rivals(self, counts: IntArray) -> IntArray:
        """The class but the label that is named most often (n,); the one that no pass names where there is none."""
        others = counts.copy()
        others[np.arange(len(others)), self.labels] = 0
        return np.where(others.max(axis=1) > 0, others.argmax(axis=1), self.nb_classes + 1)

    def _decided(self, counts: _Counts, rival: IntArray, rival_alone: IntArray) -> BoolArray:
        """Return where more passes would hardly change the verdict (n,)."""
        own, rejected = _of(counts.accepted, self.labels), counts.rejected
        if self.clean:
            best = np.maximum(_of(counts.accepted, self._rivals(counts.accepted)), rejected)
            return np.minimum(_surprise(own, best), _surprise(best, own)) <= self.level
        other = _of(counts.accepted, rival)
        unbroken = np.minimum(_surprise(own, other), _surprise(rejected, other)) <= HOPELESS
        unfooled = _surprise(_of(counts.alone, self.labels), _of(counts.alone, rival_alone)) <= HOPELESS
        return (self._broken(counts, rival) | unbroken) & (self._fooled(counts, rival_alone) | unfooled)

    def _broken(self, counts: _Counts, rival: IntArray) -> BoolArray:
        """Return where it is shown that the rival is at least as likely as the label, and as being rejected (n,)."""
        own, other = _of(counts.accepted, self.labels), _of(counts.accepted, rival)
        best = np.maximum(own, counts.rejected)
        shown: BoolArray = _surprise(other, best) <= self.level
        return shown

    def _fooled(self, counts: _Counts, rival: IntArray) -> BoolArray:
        """Return where it is shown that the classifier alone names its rival at least as often as the label (n,)."""
        fooled: BoolArray = _surprise(_of(counts.alone, rival), _of(counts.alone, self.labels)) <= self.level
        return fooled

    def _verdict(self, counts: _Counts, rival: IntArray, rival_alone: IntArray) -> tuple[IntArray, BoolArray]:
        """Return the classes (n,), and which images are rejected (n,)."""
        own, rejected = _of(counts.accepted, self.labels), counts.rejected
        if self.clean:
            alone = self._likelier(counts.alone)
            accepted = self._likelier(counts.accepted)
            best = _of(counts.accepted, accepted)
            refused = (rejected > best) | ((accepted == self.labels) & (rejected == best))
            return np.where(refused, alone, accepted), refused
        broken, fooled = self._broken(counts, rival), self._fooled(counts, rival_alone)
        alone = np.where(fooled, rival_alone, self.labels)
        # What the classifier alone is shown to get wrong and what is not shown to be accepted is rejected.
        return np.where(broken, rival, alone), ~broken & (fooled | (rejected > own))

    def _likelier(self, counts: IntArray) -> IntArray:
        """Return the class that is named most often (n,); the label only if no other is named as often."""
        rival = self._rivals(counts)
        return np.where(_of(counts, self.labels) > _of(counts, rival), self.labels, rival)


def _of(counts: IntArray, classes: IntArray) -> IntArray:
    """Return the counts (n,) of one class of each image, out of those of all (n, K + 2)."""
    chosen: IntArray = counts[np.arange(len(counts)), classes]
    return chosen


def _surprise(more: IntArray, less: IntArray) -> npt.NDArray[np.float64]:
    """How likely so many of both (n,) are the former ones, were both equally likely."""
    surprise: npt.NDArray[np.float64] = binom.sf(more - 1, more + less, 0.5)
    return surprise
