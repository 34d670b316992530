"""What a classifier says of an image: one pass, or a vote over several where it is random."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.estimator.defend import as_module
from art_defenses_ext.evaluation.metrics import Scores
from art_defenses_ext.evaluation.seeding import seeded
from art_defenses_ext.validation import FloatArray, IntArray


class Judgement(NamedTuple):
    """The classifier's word on some images.

    Attributes:
        classes: the predicted ones (n,), by the majority of the passes.
        softmax: the probabilities (n, K), float64, each the mean over the passes.
        misses: in how many passes the label was missed (n,); None for a single pass.
    """

    classes: IntArray
    softmax: Scores
    misses: IntArray | None


class Prediction(NamedTuple):
    """What one pass says of some images.

    Attributes:
        classes: the likeliest ones (n,).
        softmax: the probabilities (n, K), float64: in float32 those of unlikely classes would vanish, and with them
            their order.
    """

    classes: IntArray
    softmax: Scores


def judge(classifier: PyTorchClassifier, x: FloatArray, labels: IntArray, votes: int, seed: int) -> Judgement:
    """Predict images (n, ...) with ``votes`` passes, whose randomness comes from ``seed``.

    Of classes with equally many votes the first counts, but the label only if no other has as many: a defence that
    is right half of the time has been broken.
    """
    with seeded(seed):
        passes = [predict(classifier, x) for _ in range(votes)]
    if votes == 1:
        return Judgement(*passes[0], None)
    draws = np.stack([one.classes for one in passes])  # (votes, n)
    softmax = np.mean([one.softmax for one in passes], axis=0)  # (n, K)
    counts = np.stack([(draws == k).sum(axis=0) for k in range(classifier.nb_classes)], axis=1)  # (n, K)
    own = counts[np.arange(len(x)), labels].copy()
    counts[np.arange(len(x)), labels] = 0
    rival = counts.argmax(axis=1)
    return Judgement(np.where(own > counts.max(axis=1), labels, rival), softmax, votes - own)


def predict(classifier: PyTorchClassifier, x: FloatArray, batch_size: int = 256) -> Prediction:
    """Classes and probabilities of images (N, ...) in one pass, by the same path that attacks differentiate."""
    module = as_module(classifier)
    batches = torch.tensor(x).split(batch_size)
    with torch.no_grad():
        logits = torch.cat([module(batch.to(classifier.device)).cpu() for batch in batches])  # (N, K)
    return Prediction(logits.argmax(dim=1).numpy(), logits.double().softmax(dim=1).numpy())


def classes(classifier: PyTorchClassifier, x: FloatArray, batch_size: int = 256) -> IntArray:
    """Predicted classes (N,) of images (N, ...) in one pass."""
    return predict(classifier, x, batch_size).classes
