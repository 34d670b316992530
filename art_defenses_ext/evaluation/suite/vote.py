"""The prediction of a random network: its most probable class, tested on several passes.

The prediction of a random classifier is the majority vote of infinitely many of its passes, its most probable class. A
majority of a few passes errs, and with many attacks one of them would often succeed by chance near the boundary. An
attack therefore succeeds only if fresh passes show that another class is at least as probable as the label, by a test
whose level is small enough for all attacks of a run together.
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
"""The probability that any attack of a run counts as successful on an image whose most probable class no attack
changed. **Convention**."""

HOPELESS = 0.05
"""The level at which an image counts as not broken before all passes are made, which saves passes."""

MOST_PASSES = 1024
"""Maximum number of fresh passes of an image. They are doubled until they decide. **Convention**."""


class _Counts(NamedTuple):
    """The counts of the predictions in the passes of images.

    The columns are the K classes, one for logits that are not finite, and one that is always empty.

    Attributes:
        accepted: number of passes with each class that accept the image (n, K + 2).
        alone: number of passes with each class, accepted or rejected (n, K + 2).
        rejected: number of passes that reject the image (n,).
    """

    accepted: IntArray
    alone: IntArray
    rejected: IntArray

    @classmethod
    def none(cls, count: int, nb_classes: int) -> _Counts:
        """Return counts of zero passes."""
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
        """Return the number of passes (n,) with another class than the label (n,) that accept the image."""
        missed: IntArray = self.accepted.sum(axis=1) - _of(self.accepted, labels)
        return missed


def predict_by_votes(
    classifier: PyTorchClassifier,
    x: FloatArray,
    labels: IntArray,
    votes: int,
    seed: int,
    attacks: int | None = None,
) -> Prediction:
    """Return the most probable class of images (n, ...), and whether they are rejected.

    With ``votes`` 1 this is the result of one pass. Otherwise the first ``votes`` passes select a rival of each image's
    label, the most probable other class. As many fresh passes are counted, and doubled up to ``MOST_PASSES`` until an
    exact binomial test decides between label and rival, and between rival and rejection.

    Source: Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918), section 3.2.2, where the rival is also selected by other
    passes than those of the test. **Convention**: an image that is correct in half of the passes is broken.

    Args:
        classifier: the classifier.
        x: the images.
        labels: true classes (n,).
        votes: 1, or the number of counted passes.
        seed: seed of the passes.
        attacks: number of attacks of the run that share ``FALSE_SUCCESS``; undecided images count as the label, or as
            rejected. None for clean images, which count as the class with more passes if no test decides.
    """
    with seeded(seed):
        if votes == 1:
            return predict(classifier, x)
        return _Vote(classifier, x, labels, votes, attacks).predict()


class _Vote:
    """The passes of one call of :func:`predict_by_votes`."""

    def __init__(
        self, classifier: PyTorchClassifier, x: FloatArray, labels: IntArray, votes: int, attacks: int | None
    ) -> None:
        self.classifier, self.x, self.labels, self.votes = classifier, x, labels, votes
        self.module = as_module(classifier)
        self.nb_classes = nb_labels(classifier)
        self.clean = attacks is None
        looks = 1 + max(int(np.ceil(np.log2(MOST_PASSES / votes))), 0)
        self.level = FALSE_SUCCESS / (attacks or 1) / looks

    def predict(self) -> Prediction:
        """Select the rivals, count fresh passes, and decide."""
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
        """Count a number of passes of images; return mean probabilities (n, K) and mean margin (n,)."""
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
        """Return the most frequent class other than the label (n,); the empty column if there is none."""
        others = counts.copy()
        others[np.arange(len(others)), self.labels] = 0
        return np.where(others.max(axis=1) > 0, others.argmax(axis=1), self.nb_classes + 1)

    def _decided(self, counts: _Counts, rival: IntArray, rival_alone: IntArray) -> BoolArray:
        """Return the images (n,) for which more passes would hardly change the result."""
        own, rejected = _of(counts.accepted, self.labels), counts.rejected
        if self.clean:
            best = np.maximum(_of(counts.accepted, self._rivals(counts.accepted)), rejected)
            return np.minimum(_surprise(own, best), _surprise(best, own)) <= self.level
        other = _of(counts.accepted, rival)
        unbroken = np.minimum(_surprise(own, other), _surprise(rejected, other)) <= HOPELESS
        unfooled = _surprise(_of(counts.alone, self.labels), _of(counts.alone, rival_alone)) <= HOPELESS
        return (self._broken(counts, rival) | unbroken) & (self._fooled(counts, rival_alone) | unfooled)

    def _broken(self, counts: _Counts, rival: IntArray) -> BoolArray:
        """Return the images (n,) whose rival is shown to be at least as probable as the label, and as rejection."""
        own, other = _of(counts.accepted, self.labels), _of(counts.accepted, rival)
        best = np.maximum(own, counts.rejected)
        shown: BoolArray = _surprise(other, best) <= self.level
        return shown

    def _fooled(self, counts: _Counts, rival: IntArray) -> BoolArray:
        """Return the images (n,) whose rival is shown to be as probable as the label for the classifier alone."""
        fooled: BoolArray = _surprise(_of(counts.alone, rival), _of(counts.alone, self.labels)) <= self.level
        return fooled

    def _verdict(self, counts: _Counts, rival: IntArray, rival_alone: IntArray) -> tuple[IntArray, BoolArray]:
        """Return the classes (n,), and whether each image is rejected (n,)."""
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
        """Return the most frequent class (n,); the label only if no other class is as frequent."""
        rival = self._rivals(counts)
        return np.where(_of(counts, self.labels) > _of(counts, rival), self.labels, rival)


def _of(counts: IntArray, classes: IntArray) -> IntArray:
    """Return the counts (n,) of one class of each image, out of those of all (n, K + 2)."""
    chosen: IntArray = counts[np.arange(len(counts)), classes]
    return chosen


def _surprise(more: IntArray, less: IntArray) -> npt.NDArray[np.float64]:
    """Return the probability of at least so many former outcomes (n,) among both, if both were equally probable."""
    surprise: npt.NDArray[np.float64] = binom.sf(more - 1, more + less, 0.5)
    return surprise
