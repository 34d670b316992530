"""The predictions of a classifier and a detector in one pass; ``vote.py`` counts several passes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.logits import named_classes
from art_defenses_ext.base.validation import check_outputs
from art_defenses_ext.estimator.defend import as_module
from art_defenses_ext.estimator.paired import paired
from art_defenses_ext.estimator.rejecting import parts_of, rejects
from art_defenses_ext.evaluation.records.metrics import Scores

BoolArray = npt.NDArray[np.bool_]


class Prediction(NamedTuple):
    """The predictions of a classifier, and of a detector if there is one, for images, in one or several passes.

    Attributes:
        classes: the predicted classes (n,), for a random classifier the most probable ones by its passes (``vote.py``);
            for a rejected image the classifier's own class; -1 if its logits are not finite.
        softmax: the classifier's probabilities (n, K), the mean over the counted passes, in float64, since float32
            rounds small probabilities to zero.
        rejected: whether the detector rejects the images (n,), by the same passes; None without a detector.
        detection_margin: the detector's score minus its threshold (n,), float64, the mean over the counted passes; None
            without a detector.
        misses: number of counted passes with another class than the label that accept the image (n,); None for a single
            pass.
        rejections: number of counted passes that reject the image (n,); None without a detector, and for a single pass.
        first_misses: misses in as many passes before the counted ones (n,); None for a single pass.
        first_rejections: rejections in these (n,); None without a detector, and for a single pass.
        passes: number of passes after the first ones that decided (n,); None for a single pass.
        undecided: whether the largest number of passes did not decide (n,); None for a single pass.
    """

    classes: IntArray
    softmax: Scores
    rejected: BoolArray | None = None
    detection_margin: Scores | None = None
    misses: IntArray | None = None
    rejections: IntArray | None = None
    first_misses: IntArray | None = None
    first_rejections: IntArray | None = None
    passes: IntArray | None = None
    undecided: BoolArray | None = None

    def broken(self, labels: IntArray) -> BoolArray:
        """Return whether another class than the label (n,) is predicted and not rejected, the goal of an attack."""
        missed: BoolArray = self.classes != labels
        return missed if self.rejected is None else missed & ~self.rejected


def nb_labels(classifier: PyTorchClassifier) -> int:
    """Return the number of classes without "rejected"; two for a network of paired problems."""
    count: int = 2 if paired(classifier) else classifier.nb_classes - rejects(classifier)
    return count


def predict(
    classifier: PyTorchClassifier, x: FloatArray, batch_size: int = 256, module: nn.Module | None = None
) -> Prediction:
    """Return classes and probabilities of images (N, ...) in one pass of the network that attacks differentiate.

    ``module`` is the classifier :func:`.as_module`, for callers that make many passes.
    """
    module = as_module(classifier) if module is None else module
    batches = torch.tensor(x).split(batch_size)
    count = classifier.nb_classes  # checked in each batch, since a network may change during an evaluation
    with torch.no_grad():
        if not rejects(classifier):
            parts = [check_outputs(module(batch.to(classifier.device)), len(batch), count).cpu() for batch in batches]
            return Prediction(*_classify(torch.cat(parts)))
        outputs = [parts_of(module, batch.to(classifier.device)) for batch in batches]
    logits, margins = (torch.cat([batch.cpu() for batch in columns]) for columns in zip(*outputs, strict=True))
    margin = margins.double().numpy()  # (N,)
    rejected = ~(margin <= 0)  # NaN is rejected, as by an argmax
    return Prediction(*_classify(logits), rejected=rejected, detection_margin=margin)


def _classify(logits: Tensor) -> tuple[IntArray, Scores]:
    """Return classes (N,) and probabilities (N, K) from logits (N, K)."""
    return named_classes(logits).numpy(), logits.double().softmax(dim=1).numpy()
