"""A classifier with ART's numpy preprocessing or postprocessing as one that attacks differentiate end to end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from art.defences.postprocessor.postprocessor import Postprocessor
from art.defences.preprocessor.preprocessor import Preprocessor, PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.numpy import StandardisationMeanStd
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from torch import Tensor

from art_defenses_ext.base.validation import check_classifier
from art_defenses_ext.estimator.pipeline import (
    Pipeline,
    check_differentiable,
    device_of,
    probes,
    run_preprocessor,
    unmoved_generators,
)
from art_defenses_ext.estimator.rebuild import evaluation_mode, rebuild, undefended
from art_defenses_ext.estimator.wrap import AdaptedNetwork, recognised
from art_defenses_ext.gradients.numpy_bridge import NumpyBridge, Postprocessed, is_numpy
from art_defenses_ext.gradients.surrogate import resized

SIGMA = 8 / 255
"""Deviation of the noise of gradient estimation, in shares of the clip range; **Convention**, as for a Surrogate."""


def differentiable(classifier: Any, argument: str = "classifier") -> PyTorchClassifier:
    """Return ``classifier`` with its numpy preprocessors bridged, and its postprocessors behind the network.

    Its predictions are unchanged. A classifier that is differentiable already is returned as it is.

    Args:
        classifier: an ART ``PyTorchClassifier`` with any preprocessing and postprocessing.
        argument: its name in error messages.

    Raises:
        InputError: for a preprocessor that needs labels or changes the number of images at prediction, for tensors made
            under ``torch.inference_mode``, and as :func:`.check_classifier`.
    """
    check_classifier(classifier, argument)
    in_torch = bridged(classifier, argument)
    steps = in_torch.postprocessing_defences or []
    if steps:
        plain = _rebuilt(in_torch, argument, postprocessing_defences=None)
        in_torch = _postprocessed(plain, steps) if any(step.apply_predict for step in steps) else plain
    return check_differentiable(in_torch, argument)


def bridged(classifier: PyTorchClassifier, argument: str = "classifier") -> PyTorchClassifier:
    """Return ``classifier`` with each numpy preprocessor bridged; itself if there is none.

    Raises:
        InputError: for a preprocessor that cannot run on two images of its ``input_shape``.
    """
    operations = classifier.preprocessing_operations
    if not any(map(is_numpy, operations)):
        return classifier
    x, in_torch = torch.tensor(probes(classifier), device=device_of(classifier)), []
    for operation in operations:
        name = f"{argument} has the preprocessor {type(operation).__name__}, which"
        in_torch.append(bridge(operation, x, classifier, name))
        x = run_preprocessor(in_torch[-1], x, name)
    count = len(classifier.preprocessing_defences or [])
    return _rebuilt(
        classifier,
        argument,
        preprocessing_defences=in_torch[:count] or None,
        preprocessing=in_torch[count] if len(in_torch) > count else None,
    )


def bridge(preprocessor: Preprocessor, x: Tensor, classifier: PyTorchClassifier, argument: str) -> PreprocessorPyTorch:
    """Return a preprocessor as one in torch, with suitable backward passes; itself if it is in torch already.

    Its modes are its own ``estimate_gradient``, if it has one, and the identity, if the shape allows it (heights and
    widths are resized); gradient estimation if it has neither. **Convention**: gradient estimation costs many passes,
    and the suite estimates the gradient of the whole network by itself if the other modes are not faithful.

    Args:
        preprocessor: any preprocessor of ART's.
        x: two of its input images.
        classifier: its classifier; the clip range scales the noise of gradient estimation.
        argument: its name in error messages.

    Raises:
        InputError: as :func:`.run_preprocessor`.
    """
    if not is_numpy(preprocessor):
        return preprocessor
    if type(preprocessor) is StandardisationMeanStd:
        return StandardisationMeanStdPyTorch(preprocessor.mean, preprocessor.std, device_type=classifier.device_type)
    if not preprocessor.apply_predict:
        return NumpyBridge(preprocessor)
    shape = run_preprocessor(NumpyBridge(preprocessor), x, argument).shape
    suitable = {
        "own": type(preprocessor).estimate_gradient is not Preprocessor.estimate_gradient,
        "identity": resized(x, shape).shape == shape,
    }
    modes = [mode for mode, suits in suitable.items() if suits] or ["estimated"]
    low, high = (0, 1) if classifier.clip_values is None else classifier.clip_values
    return NumpyBridge(preprocessor, modes, sigma=SIGMA * float(np.max(high) - np.min(low)))


def logits_behind(classifier: PyTorchClassifier) -> PyTorchClassifier:
    """Return the classifier without its postprocessors, which mask gradients and change few classes."""
    model = classifier.model
    return rebuild(classifier, model=model.logits) if isinstance(model, Postprocessed) else classifier


def _postprocessed(classifier: PyTorchClassifier, steps: Sequence[Postprocessor]) -> PyTorchClassifier:
    """Return a classifier with postprocessors behind its network; probabilities are attacked on their logarithm."""
    x = torch.tensor(probes(classifier), device=device_of(classifier))
    with evaluation_mode(classifier.model), unmoved_generators(), torch.no_grad():
        outputs = Pipeline(classifier)(x)
    network = classifier.model
    probabilities = isinstance(outputs, Tensor) and outputs.ndim == 2 and recognised(outputs) == "probabilities"
    logits = AdaptedNetwork(network, "probabilities", None, "") if probabilities else network
    return _rebuilt(classifier, "classifier", model=Postprocessed(network, logits, steps).eval())


def _rebuilt(classifier: PyTorchClassifier, argument: str, **parts: Any) -> PyTorchClassifier:
    """Return the classifier with other parts; its undefended classifier, if known, is made differentiable too."""
    rebuilt, plain = rebuild(classifier, **parts), undefended(classifier)
    if plain is not None:
        rebuilt.undefended = differentiable(plain, argument)
    return rebuilt
