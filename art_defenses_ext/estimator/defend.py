"""Add defences to a classifier, and convert the result to one network for any attack."""

from __future__ import annotations

import torch
from art.defences.detector.evasion import BinaryInputDetector
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext.base.errors import ClassifierError, InputError
from art_defenses_ext.base.validation import check_classifier, one_line
from art_defenses_ext.estimator.pipeline import (
    Pipeline,
    check_keeps_batch,
    check_torch_preprocessing,
    device_of,
    probes,
    runs,
    unmoved_generators,
)
from art_defenses_ext.estimator.rebuild import rebuild, record_undefended
from art_defenses_ext.estimator.rejecting import RejectingNetwork
from art_defenses_ext.gradients.modes import Defence
from art_defenses_ext.gradients.surrogate import Surrogate


def defend(classifier: PyTorchClassifier, *preprocessors: PreprocessorPyTorch) -> PyTorchClassifier:
    """Return a new classifier with ``preprocessors`` after those that ``classifier`` already has.

    The mean/std preprocessing runs last, as always in ART. The model is shared and every constructor argument is
    kept. ``classifier`` is recorded as the undefended classifier, unless it cannot take images of its
    ``input_shape`` alone, such as one behind a resize.

    Args:
        classifier: a classifier whose preprocessing runs in torch.
        *preprocessors: torch preprocessors in the order in which images meet them; at least one.

    Raises:
        InputError: for no preprocessor, or one that is not a ``PreprocessorPyTorch``, here or in ``classifier``: ART
            cannot combine numpy with torch preprocessing, which has no gradient; or for one that changes the number
            of images.

    >>> from art_defenses_ext import HeatAndBlur, defend
    >>> defended = defend(classifier, HeatAndBlur.for_classifier(classifier))
    >>> defended.model is classifier.model, len(defended.preprocessing_defences)
    (True, 1)
    """
    check_torch_preprocessing(check_classifier(classifier))
    if not preprocessors:
        raise ClassifierError("defend was given no preprocessor; at least one was expected")
    for preprocessor in preprocessors:
        if not isinstance(preprocessor, PreprocessorPyTorch):
            raise ClassifierError(
                f"preprocessor {type(preprocessor).__name__}: an ART PreprocessorPyTorch was expected"
            )
    earlier = classifier.preprocessing_defences or []
    defended = rebuild(classifier, preprocessing_defences=[*earlier, *preprocessors])
    resizes = _check_batches(defended)
    return defended if resizes and not runs(classifier) else record_undefended(defended, classifier)


def _check_batches(classifier: PyTorchClassifier) -> bool:
    """Run preprocessors from other packages on two images; refuse those that change the number of images.

    Returns:
        Whether one of them changes the images' shape.
    """
    images = x = torch.tensor(probes(classifier), device=device_of(classifier))
    for preprocessor in classifier.preprocessing_defences:
        name = f"preprocessor {type(preprocessor).__name__}"
        if not preprocessor.apply_predict or (
            isinstance(preprocessor, Defence) and not isinstance(preprocessor, Surrogate)
        ):
            continue  # our defences keep the images' shape, and may not be trained yet
        try:
            with unmoved_generators(), torch.no_grad():
                restored = preprocessor.forward(x)[0]
        except InputError:
            raise
        except Exception as error:  # it may raise any type
            raise ClassifierError(
                f"{name} cannot take images {tuple(x.shape)} ({one_line(error)}); one for images of the classifier's "
                "input_shape was expected"
            ) from error
        x = check_keeps_batch(restored, x, name)
    return x.shape != images.shape


def as_module(classifier: PyTorchClassifier, detector: BinaryInputDetector | None = None) -> nn.Module:
    """Return the classifier and its preprocessing as one differentiable network, for any other attack library.

    The result shares the model, is in evaluation mode, and has every defence among its ``modules()``, where
    ``gradient_mode`` finds it.

    Args:
        classifier: a classifier whose preprocessing runs in torch and that has no postprocessing.
        detector: a detector that rejects inputs, see :func:`.rejecting`.

    Returns:
        A module from images ``(N, *input_shape)`` in the clip range to logits (N, nb_classes); with a detector one
        additional logit, the last, which is the largest where an image is rejected.

    Raises:
        InputError: for numpy preprocessing or a postprocessor, which have no gradient.

    >>> import torch
    >>> from art_defenses_ext import HeatAndBlur, as_module, defend
    >>> network = as_module(defend(classifier, HeatAndBlur.for_classifier(classifier)))
    >>> network(torch.tensor(x)).shape
    torch.Size([8, 10])
    """
    return (Pipeline(classifier) if detector is None else RejectingNetwork(classifier, detector)).eval()
