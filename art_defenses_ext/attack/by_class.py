"""Untargeted attacks of other packages on a classifier that rejects, run class by class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from art.estimators.classification.classifier import ClassifierMixin
from art.estimators.estimator import BaseEstimator

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.validation import check_images, check_labels
from art_defenses_ext.estimator.rejecting import rejected_as, rejects


class ByClass(EvasionAttack):
    """An untargeted attack without support for detectors, on a classifier that rejects.

    It runs on the images of each class separately, on a classifier in which "rejected" counts as that class
    (:func:`.rejected_as`), so that it does not stop at a rejected image. The attacks of this package do not need it.

    Args:
        estimator: a classifier that rejects, see :func:`.rejecting`.
        build: function from a classifier to the attack, such as
            ``lambda view: AutoProjectedGradientDescent(view, eps=0.1)``.

    Raises:
        InputError: for a classifier that does not reject, or a ``build`` that cannot be called.

    >>> from art.attacks.evasion import ProjectedGradientDescent
    >>> from art_defenses_ext import ExplanationReconstructor, rejecting
    >>> from art_defenses_ext.attack.by_class import ByClass
    >>> detector = ExplanationReconstructor(classifier)
    >>> detector.fit(x_train, nb_epochs=1, validation_split=0.25, progress=False)
    >>> both = rejecting(classifier, detector)
    >>> attack = ByClass(both, lambda view: ProjectedGradientDescent(view, eps=0.1, max_iter=2, verbose=False))
    >>> attack.generate(x, y).shape == x.shape
    True
    """

    _estimator_requirements = (BaseEstimator, ClassifierMixin)

    def __init__(self, estimator: PyTorchClassifier, build: Callable[[PyTorchClassifier], EvasionAttack]) -> None:
        if not callable(build):
            raise InputError(f"build is {build!r}; a function classifier -> attack was expected")
        super().__init__(estimator=estimator)
        if not rejects(estimator):
            raise InputError(
                "estimator does not reject; a classifier from rejecting(classifier, detector) was expected"
            )
        self.build = build

    def generate(self, x: FloatArray, y: Any = None, **kwargs: Any) -> FloatArray:
        """Return adversarial examples for ``x``.

        Args:
            x: images ``(N, *input_shape)``, float32, in the classifier's clip range.
            y: true labels, indices (N,) or one-hot; None for the predicted classes. The predicted class of a rejected
                image is the most probable one besides "rejected".
            kwargs: arguments of the attack's ``generate``.

        Returns:
            The attack's examples for the images of each class, in the order of ``x``.

        Raises:
            InputError: for images or labels that do not fit the estimator.
        """
        x = check_images(x, self.estimator)
        nb_labels = self.estimator.nb_classes - 1
        labels = self.estimator.predict(x)[:, :nb_labels].argmax(axis=1) if y is None else self._labels(y, len(x))
        adversarial = x.copy()
        for label in np.unique(labels):
            rows = labels == label
            one_hot = np.eye(nb_labels, dtype=np.float32)[labels[rows]]
            attack = self.build(rejected_as(self.estimator, int(label)))
            adversarial[rows] = attack.generate(x[rows], one_hot, **kwargs)
        return adversarial

    def _labels(self, y: Any, nb_samples: int) -> Any:
        labels = check_labels(y, self.estimator.nb_classes, nb_samples)
        if (labels == self.estimator.nb_classes - 1).any():
            raise InputError(f"y holds the label {labels.max()}, which means rejected; a class was expected")
        return labels
