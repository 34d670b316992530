"""Add defences to a classifier, and convert the result to one network for any attack."""

from __future__ import annotations

import torch
from art.defences.detector.evasion import BinaryInputDetector
from art.defences.preprocessor.preprocessor import Preprocessor
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext.base.errors import ClassifierError
from art_defenses_ext.base.validation import check_classifier, is_compiled
from art_defenses_ext.estimator.bridged import bridge, bridged, differentiable
from art_defenses_ext.estimator.pipeline import Pipeline, device_of, own_name, probes, run_preprocessor, runs
from art_defenses_ext.estimator.rebuild import rebuild, record_undefended
from art_defenses_ext.estimator.rejecting import RejectingNetwork
from art_defenses_ext.gradients.modes import Defence
from art_defenses_ext.gradients.surrogate import Surrogate


def defend(classifier: PyTorchClassifier, *preprocessors: Preprocessor) -> PyTorchClassifier:
    """Return a new classifier with ``preprocessors`` after those that ``classifier`` already has.

    The mean/std preprocessing runs last, as always in ART. The model is shared and every constructor argument is
    kept. ``classifier`` is recorded as the undefended classifier, unless it cannot take images of its
    ``input_shape`` alone, such as one behind a resize.

    Numpy preprocessors are bridged (:class:`.NumpyBridge`), so that they can be combined with torch ones, which ART
    alone refuses.

    Args:
        classifier: a classifier with any preprocessing.
        *preprocessors: preprocessors in the order of application; at least one.

    Raises:
        InputError: without a preprocessor, for one that is not an ART ``Preprocessor``, here or in ``classifier``, and
            for one that needs labels or changes the number of images at prediction.

    >>> from art_defenses_ext import HeatAndBlur, defend
    >>> defended = defend(classifier, HeatAndBlur.for_classifier(classifier))
    >>> defended.model is classifier.model, len(defended.preprocessing_defences)
    (True, 1)
    """
    classifier = bridged(check_classifier(classifier))
    if not preprocessors:
        raise ClassifierError("defend was given no preprocessor; at least one was expected")
    for preprocessor in preprocessors:
        if not isinstance(preprocessor, Preprocessor):
            raise ClassifierError(f"preprocessor {type(preprocessor).__name__}: an ART Preprocessor was expected")
    images = x = torch.tensor(probes(classifier), device=device_of(classifier))
    in_torch = []
    for preprocessor in [*(classifier.preprocessing_defences or []), *preprocessors]:
        name = f"preprocessor {own_name(preprocessor)}"
        in_torch.append(bridge(preprocessor, x, classifier, name))
        ours = isinstance(preprocessor, Defence) and not isinstance(preprocessor, Surrogate)
        x = x if ours else run_preprocessor(in_torch[-1], x, name)  # ours keep the shape, and may not be trained yet
    defended = rebuild(classifier, preprocessing_defences=in_torch)
    resizes = x.shape != images.shape
    return defended if resizes and not runs(classifier) else record_undefended(defended, classifier)


def as_module(classifier: PyTorchClassifier, detector: BinaryInputDetector | None = None) -> nn.Module:
    """Return the classifier and its preprocessing as one differentiable network, for any other attack library.

    The result shares the model, is in evaluation mode, and has every defence among its ``modules()``, where
    ``gradient_mode`` finds it.

    A network that ``torch.compile`` compiled stays compiled. Torch's setting ``donated_buffer`` is turned off for it in
    this process; a network whose gradient was compiled before must be compiled again.

    Args:
        classifier: a classifier with any preprocessing. Numpy preprocessors are bridged (:class:`.NumpyBridge`); behind
            postprocessors, their output has the gradient of the logits.
        detector: a detector that rejects inputs, see :func:`.rejecting`.

    Returns:
        A module from images ``(N, *input_shape)`` in the clip range to logits (N, nb_classes); with a detector it has
        one additional logit, the last, which is the largest if an image is rejected.

    Raises:
        InputError: for a preprocessor that needs labels or changes the number of images at prediction, and for
            postprocessors beside a detector.

    >>> import torch
    >>> from art_defenses_ext import HeatAndBlur, as_module, defend
    >>> network = as_module(defend(classifier, HeatAndBlur.for_classifier(classifier)))
    >>> network(torch.tensor(x)).shape
    torch.Size([8, 10])
    """
    module = Pipeline(differentiable(classifier)) if detector is None else RejectingNetwork(classifier, detector)
    if any(map(is_compiled, module.modules())):
        allow_several_gradients()
    return module.eval()


def allow_several_gradients() -> None:
    """Let attacks take several gradients of each forward pass that is compiled from now on, at the cost of memory."""
    from torch._functorch import config

    config.donated_buffer = False
