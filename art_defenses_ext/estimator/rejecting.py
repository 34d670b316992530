"""A classifier and a detector as one ordinary classifier with an additional class, "rejected".

ART's only estimator with a detector has no loss gradient, so ART's attacks cannot target both. Here both are one
network, and any attack runs on it.

Source: Carlini, Wagner 2017, "Adversarial Examples Are Not Easily Detected" (arXiv:1705.07263), the attack with
perfect knowledge of a detector.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from art.defences.detector.evasion import BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext.base.errors import ClassifierError
from art_defenses_ext.base.logits import undefined
from art_defenses_ext.base.validation import check_classifier
from art_defenses_ext.estimator.bridged import bridged, differentiable
from art_defenses_ext.estimator.pipeline import Pipeline
from art_defenses_ext.estimator.rebuild import as_model_input, rebuild, record_undefended, without_training

NOT_TRAINED = (
    "a classifier that rejects cannot be trained, since its detector was fitted for the network as it is; a trained "
    "classifier with a detector that was fitted afterwards was expected"
)


class RejectingNetwork(nn.Module):
    """Images ``(N, *input_shape)`` in the clip range to logits (N, K + 1), the last the largest for a rejected image.

    With the classifier's logits Z and the detector's margin D (score minus threshold, above zero for "adversarial"),
    the last logit is max Z + D (max Z - min Z + 1), and the next number above max Z if a small D > 0 would be rounded
    away.

    **Departure**: the source has (1 + D) max Z, which rejects the wrong inputs if max Z < 0. Shifting all logits by
    1 - min Z, which changes no prediction, keeps the largest above zero; here the others are shifted back.

    Args:
        classifier: a classifier without postprocessing.
        detector: an ART ``BinaryInputDetector`` over a two-output ``PyTorchClassifier``, such as
            :class:`.ExplanationReconstructor`.

    Raises:
        InputError: for a detector of another kind, of other images or another range, or without a gradient.
    """

    def __init__(self, classifier: PyTorchClassifier, detector: BinaryInputDetector) -> None:
        super().__init__()
        if check_classifier(
            classifier
        ).postprocessing_defences:  # an attack on both could not reach the logits behind them
            raise ClassifierError("classifier has postprocessing defences; none were expected beside a detector")
        self.pipeline = Pipeline(bridged(classifier))
        self.detection = Pipeline(check_detector(detector, classifier))

    def forward(self, x: Tensor) -> Tensor:
        logits, margin = self.parts(x)
        largest, smallest = logits.amax(dim=1), logits.amin(dim=1)
        rejected = largest + margin * (largest - smallest + 1)
        with torch.no_grad():
            above = torch.nextafter(largest, torch.full_like(largest, torch.inf))
            missing = torch.where(margin > 0, (above - rejected).clamp(min=0), 0.0)
        rejected = rejected + missing
        return torch.cat([logits, rejected[:, None]], dim=1)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the classifier's logits (N, K) and the detector's margin D (N,), above zero for rejected images."""
        logits: Tensor = self.pipeline(x)
        detection: Tensor = self.detection(x)  # (N, 2)
        return logits, (detection[:, 1] - detection[:, 0]).to(logits.dtype)


def rejecting(classifier: PyTorchClassifier, detector: BinaryInputDetector) -> PyTorchClassifier:
    """Return a classifier with an additional class, the last, for images that ``detector`` rejects.

    For the attacks of this package an image is broken only if it is misclassified and not rejected. Other attacks treat
    the last class like any other, and untargeted ones stop at it: run them targeted, or on :func:`rejected_as`, as
    :class:`.ByClass` does for ART's attacks.

    Args:
        classifier: a classifier without postprocessing, defended or not; it, or its recorded undefended
            classifier, is recorded as the undefended one.
        detector: an ART ``BinaryInputDetector`` over a two-output ``PyTorchClassifier``.

    Returns:
        A plain ``PyTorchClassifier`` with ``nb_classes`` + 1 outputs that shares the model; all preprocessing is
        inside its network. Its optimizer, if ``classifier`` has one, refuses to train, since the detector's thresholds
        belong to the network as it is.

    Raises:
        InputError: as :class:`RejectingNetwork`.

    >>> from art_defenses_ext import ExplanationReconstructor, rejecting
    >>> detector = ExplanationReconstructor(classifier)
    >>> detector.fit(x_train, nb_epochs=1, validation_split=0.25, progress=False)
    >>> rejecting(classifier, detector).predict(x).shape  # ten classes, and "rejected"
    (8, 11)
    """
    classifier = bridged(check_classifier(classifier))
    combined = rebuild(
        classifier,
        model=RejectingNetwork(classifier, detector).eval(),
        nb_classes=classifier.nb_classes + 1,
        optimizer=without_training(classifier, NOT_TRAINED),
        preprocessing_defences=None,
        preprocessing=(0.0, 1.0),
    )
    return record_undefended(combined, classifier)


def rejected_as(classifier: PyTorchClassifier, label: int) -> PyTorchClassifier:
    """Return a classifier in which "rejected" counts as class ``label``, for untargeted attacks on its images.

    Another class than ``label`` is predicted only if an image is misclassified and accepted. An untargeted attack of
    any library, with gradients or queries, therefore stops only at a real success. This holds for images of this class
    only; images of other classes need a classifier each.

    Args:
        classifier: a rejecting classifier, see :func:`rejecting`.
        label: the true class of the attacked images, from 0 on.

    Returns:
        A plain ``PyTorchClassifier`` without the output "rejected".

    Raises:
        InputError: for a classifier that does not reject, or a label that is none of its classes.

    >>> from art_defenses_ext import ExplanationReconstructor, rejecting
    >>> from art_defenses_ext.estimator.rejecting import rejected_as
    >>> detector = ExplanationReconstructor(classifier)
    >>> detector.fit(x_train, nb_epochs=1, validation_split=0.25, progress=False)
    >>> rejected_as(rejecting(classifier, detector), label=3).predict(x).shape
    (8, 10)
    """
    if not rejects(classifier):
        raise ClassifierError(f"classifier has a {type(classifier.model).__name__}; one made by rejecting was expected")
    last = classifier.nb_classes - 2
    if isinstance(label, bool) or not isinstance(label, int | np.integer) or not 0 <= label <= last:
        raise ClassifierError(f"label is {label!r}; a class from 0 to {last} was expected")
    model = _RejectedAs(classifier.model, int(label)).eval()
    return rebuild(classifier, model=model, nb_classes=classifier.nb_classes - 1)


class _RejectedAs(nn.Module):
    """Images to logits (N, K) of a network that rejects, with rejection merged into one class."""

    def __init__(self, network: nn.Module, label: int) -> None:
        super().__init__()
        self.network, self.label = network, label

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        classes, rejected = logits[:, :-1], logits[:, -1]
        with torch.no_grad():  # for an accepted image the last logit may tie with the largest, and must then not count
            largest = classes.amax(dim=1)
            below = torch.nextafter(largest, torch.full_like(largest, -torch.inf))
            tie = torch.where(rejected <= largest, (rejected - below).clamp(min=0), 0.0)
        lowered = torch.cat([classes, (rejected - tie)[:, None]], dim=1)
        return merge_rejection(lowered, torch.full((len(logits),), self.label, device=logits.device))


def merge_rejection(logits: Tensor, y: Tensor) -> Tensor:
    """Return logits (n, K) in which "rejected" counts as the label, from ``logits`` (n, K + 1), the last "rejected".

    The logit of class ``y`` (n,) becomes the maximum of its own and the last one. A loss of these logits indicates
    success only if the image is misclassified and not rejected.
    """
    named, rejected = logits[:, :-1], logits[:, -1]
    # A score of NaN rejects.
    above = 2 * named.amax(dim=1) - named.amin(dim=1) + 1
    rejected = torch.where(rejected.isnan() & ~undefined(named), above, rejected)
    return named.scatter(1, y[:, None], torch.maximum(logits.gather(1, y[:, None]), rejected[:, None]))


def rejects(classifier: PyTorchClassifier) -> bool:
    """Return whether the last class of ``classifier`` means "rejected"."""
    return isinstance(classifier.model, RejectingNetwork)


def parts_of(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classifier's logits (n, K) and the detector's margin (n,) for images (n, ...) in the clip range.

    Args:
        module: a rejecting classifier as a module (:func:`.as_module`): ART's preprocessing, then the network.
        x: the images.
    """
    assert isinstance(module, Pipeline)
    assert isinstance(module.model, RejectingNetwork)
    return module.model.parts(as_model_input(module.before_model(x), module.model))


def check_detector(detector: Any, classifier: PyTorchClassifier) -> PyTorchClassifier:
    """Return the two-output classifier of ``detector``, if it is differentiable and takes the same images.

    Raises:
        InputError: otherwise.
    """
    if not isinstance(detector, BinaryInputDetector):
        raise ClassifierError(f"detector is a {type(detector).__name__}; an ART BinaryInputDetector was expected")
    scorer = differentiable(detector.detector, "detector.detector")
    if scorer.nb_classes != 2:
        raise ClassifierError(f"detector.detector has {scorer.nb_classes} outputs; two were expected")
    if tuple(scorer.input_shape) != tuple(classifier.input_shape):
        raise ClassifierError(
            f"detector takes images {tuple(scorer.input_shape)} and classifier {tuple(classifier.input_shape)}; "
            "the same were expected"
        )
    clips = [target.clip_values for target in (scorer, classifier)]
    ranges = [None if clip is None else [*map(np.ravel, clip)] for clip in clips]
    if None not in ranges and not all(np.all(a == b) for a, b in zip(*ranges, strict=True)):
        raise ClassifierError(
            f"detector takes values in {_range(scorer)} and classifier in {_range(classifier)}; the same were expected"
        )
    return scorer


def _range(classifier: PyTorchClassifier) -> str:
    low, high = classifier.clip_values
    return f"[{np.min(low):g}, {np.max(high):g}]"
