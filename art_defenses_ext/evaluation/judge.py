"""What a classifier, and a detector beside it, say of an image: one pass, or a vote over several where it is random."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_defenses_ext.arrays import FloatArray, IntArray
from art_defenses_ext.estimator.defend import as_module
from art_defenses_ext.estimator.paired import paired
from art_defenses_ext.estimator.rejecting import parts_of, rejects
from art_defenses_ext.evaluation.metrics import Scores
from art_defenses_ext.evaluation.seeding import seeded

BoolArray = npt.NDArray[np.bool_]


class Judgement(NamedTuple):
    """The classifier's word on some images, and the detector's where there is one.

    Attributes:
        classes: the predicted ones (n,), by the majority of the passes; of a rejected image the one that the
            classifier itself names.
        softmax: the classifier's probabilities (n, K), float64, each the mean over the passes.
        misses: in how many passes another class than the label was predicted and not rejected (n,); None for a single
            pass.
        rejected: whether the detector rejects them (n,), by the same majority; None without a detector.
        excess: how far the detector's score is above its threshold (n,), float64, the mean over the passes; None
            likewise.
        rejections: in how many passes they were rejected (n,); None without a detector, and for a single pass.
    """

    classes: IntArray
    softmax: Scores
    misses: IntArray | None
    rejected: BoolArray | None = None
    excess: Scores | None = None
    rejections: IntArray | None = None

    def broken(self, labels: IntArray) -> BoolArray:
        """Whether another class than the label (n,) is predicted, and not rejected: what an attacker is after."""
        missed: BoolArray = self.classes != labels
        return missed if self.rejected is None else missed & ~self.rejected


class Prediction(NamedTuple):
    """What one pass says of some images.

    Attributes:
        classes: the classifier's likeliest ones (n,), whether it rejects or not.
        softmax: its probabilities (n, K), float64: in float32 those of unlikely classes would vanish, and with them
            their order.
        rejected: whether the detector rejects them (n,); None without a detector.
        excess: how far the detector's score is above its threshold (n,), float64; None likewise.
    """

    classes: IntArray
    softmax: Scores
    rejected: BoolArray | None = None
    excess: Scores | None = None


def nb_labels(classifier: PyTorchClassifier) -> int:
    """How many classes an image may belong to: "rejected" is none of them, and of many problems only one counts."""
    count: int = 2 if paired(classifier) else classifier.nb_classes - rejects(classifier)
    return count


def judge(classifier: PyTorchClassifier, x: FloatArray, labels: IntArray, votes: int, seed: int) -> Judgement:
    """Predict images (n, ...) with ``votes`` passes, whose randomness comes from ``seed``.

    "Rejected" is one of the classes that are voted for. Of classes with equally many votes the first counts, but the
    label only if no other has as many: a defence that is right half of the time has been broken.
    """
    with seeded(seed):
        passes = [predict(classifier, x) for _ in range(votes)]
    first = passes[0]
    if votes == 1:
        return Judgement(first.classes, first.softmax, None, first.rejected, first.excess)
    count = nb_labels(classifier)
    named = np.stack([one.classes for one in passes])  # (votes, n)
    softmax = np.mean([one.softmax for one in passes], axis=0)  # (n, K)
    if first.rejected is None:
        classes, own = _majority(named, labels, count)
        return Judgement(classes, softmax, votes - own)
    refused = np.stack([one.rejected for one in passes if one.rejected is not None])  # (votes, n)
    excess = np.mean([one.excess for one in passes if one.excess is not None], axis=0)  # (n,)
    words, own = _majority(np.where(refused, count, named), labels, count + 1)
    rejections = refused.sum(axis=0)
    rejected = words == count
    classes = np.where(rejected, _majority(named, labels, count)[0], words)
    return Judgement(classes, softmax, votes - own - rejections, rejected, excess, rejections)


def _majority(draws: IntArray, labels: IntArray, count: int) -> tuple[IntArray, IntArray]:
    """What most of the draws (votes, n) from ``count`` classes say (n,), and how many say the label (n,)."""
    rows = np.arange(len(labels))
    counts = np.stack([(draws == k).sum(axis=0) for k in range(count)], axis=1)  # (n, count)
    own = counts[rows, labels].copy()
    counts[rows, labels] = 0
    return np.where(own > counts.max(axis=1), labels, counts.argmax(axis=1)), own


def predict(classifier: PyTorchClassifier, x: FloatArray, batch_size: int = 256) -> Prediction:
    """Classes and probabilities of images (N, ...) in one pass, by the same path that attacks differentiate."""
    module = as_module(classifier)
    batches = torch.tensor(x).split(batch_size)
    with torch.no_grad():
        if not rejects(classifier):
            return Prediction(*_named(torch.cat([module(batch.to(classifier.device)).cpu() for batch in batches])))
        said = [parts_of(module, batch.to(classifier.device)) for batch in batches]
    logits, excesses = (torch.cat([one.cpu() for one in some]) for some in zip(*said, strict=True))
    excess = excesses.double().numpy()  # (N,)
    return Prediction(*_named(logits), rejected=~(excess <= 0), excess=excess)  # NaN is rejected, as an argmax has it


def _named(logits: Tensor) -> tuple[IntArray, Scores]:
    """Classes (N,) and probabilities (N, K) from logits (N, K)."""
    return logits.argmax(dim=1).numpy(), logits.double().softmax(dim=1).numpy()


def classes(classifier: PyTorchClassifier, x: FloatArray, batch_size: int = 256) -> IntArray:
    """Predicted classes (N,) of images (N, ...) in one pass."""
    return predict(classifier, x, batch_size).classes
