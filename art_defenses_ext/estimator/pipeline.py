"""A classifier with all its preprocessing as one differentiable network: what explanations, attacks and judges run.

It stands below the faces, since a detector explains a classifier as it is, defended or not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from art.preprocessing.standardisation_mean_std.utils import broadcastable_mean_std
from torch import Tensor, nn

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.layout import channels_to_back, has_channels_behind
from art_defenses_ext.base.validation import (
    ClassifierError,
    InputError,
    check_classifier,
    check_differentiable_tensors,
    check_outputs,
    one_line,
)
from art_defenses_ext.estimator.rebuild import as_model_input, evaluation_mode, gradients_enabled

PROBES = 2
"""Images that a classifier is tried on."""


def check_differentiable(classifier: Any, argument: str = "classifier") -> PyTorchClassifier:
    """Return ``classifier`` if gradients pass through all of it.

    Raises:
        InputError: for numpy preprocessing or a postprocessor, for tensors made under ``torch.inference_mode``, and as
            :func:`.check_classifier`.
    """
    check_classifier(classifier, argument)
    if classifier.postprocessing_defences:
        raise ClassifierError(f"{argument} has postprocessing defences, which work on numpy arrays; none were expected")
    check_torch_preprocessing(classifier, argument)
    for preprocessor in classifier.preprocessing_operations:
        if isinstance(preprocessor, nn.Module):
            check_differentiable_tensors(preprocessor, f"{argument}'s {type(preprocessor).__name__}")
    check_differentiable_tensors(classifier.model, argument)
    checked: PyTorchClassifier = classifier
    return checked


def check_torch_preprocessing(classifier: PyTorchClassifier, argument: str = "classifier") -> None:
    """Refuse numpy preprocessing, which no gradient passes and which ART cannot mix with torch's."""
    for preprocessor in classifier.preprocessing_operations:
        if not isinstance(preprocessor, PreprocessorPyTorch):
            raise ClassifierError(
                f"{argument} has the preprocessor {type(preprocessor).__name__}, which works on numpy arrays; "
                "a PreprocessorPyTorch was expected"
            )


def check_runs(classifier: PyTorchClassifier, argument: str = "classifier") -> None:
    """Refuse a classifier that does not give two images logits (2, nb_classes), before any work.

    The images are drawn from the clip range; neither the network's mode nor any global generator is moved.

    Args:
        classifier: with whatever preprocessing it has.
        argument: the name to blame.

    Raises:
        InputError: for other outputs, as :func:`.check_outputs`, for a preprocessor that does not keep the number of
            images, and for images that the network does not take.
    """
    x = probes(classifier)
    in_torch = all(isinstance(one, PreprocessorPyTorch) for one in classifier.preprocessing_operations)
    in_torch = in_torch and not classifier.postprocessing_defences
    try:
        with evaluation_mode(classifier.model), unmoved_generators(), torch.no_grad():
            if in_torch:
                outputs = _passed(classifier, torch.tensor(x), argument)
            else:
                outputs = torch.as_tensor(classifier.predict(x))
    except InputError:
        raise
    except Exception as error:  # a network may check its input in any way
        raise ClassifierError(
            f"{argument} cannot take {PROBES} images {tuple(classifier.input_shape)} ({one_line(error)}); a network "
            "for images of its input_shape was expected"
        ) from error
    check_outputs(outputs, PROBES, classifier.nb_classes, argument)


def device_of(classifier: PyTorchClassifier) -> torch.device:
    """The device of the network, which may have been moved since ART wrapped it; of one without weights, ART's."""
    device: torch.device = next((tensor.device for tensor in classifier.model.parameters()), classifier.device)
    return device


def runs(classifier: PyTorchClassifier) -> bool:
    """Whether a classifier gives two images logits, as :func:`check_runs` tries it."""
    try:
        check_runs(classifier)
    except InputError:
        return False
    return True


def network_input(classifier: PyTorchClassifier) -> Tensor:
    """What the network is shown for an image of zeros, (1, ...): of another size where a preprocessor resizes."""
    x = torch.zeros(1, *classifier.input_shape, device=device_of(classifier))
    operations = [one for one in classifier.preprocessing_operations if one.apply_predict]
    if all(isinstance(one, PreprocessorPyTorch) for one in operations):
        with unmoved_generators(), torch.no_grad():
            for one in operations:
                x = one.forward(x)[0]
    return x


def probes(classifier: PyTorchClassifier) -> FloatArray:
    """Two images (2, *input_shape) drawn from the clip range, the same each time."""
    x = np.random.default_rng(0).random((PROBES, *classifier.input_shape), dtype=np.float32)
    if classifier.clip_values is None:
        return x
    low, high = (np.asarray(end, dtype=np.float32) for end in classifier.clip_values)
    inside: FloatArray = low + x * (high - low)
    return inside


def check_keeps_batch(restored: Any, x: Tensor, argument: str) -> Tensor:
    """Return what a preprocessor made of images if it is as many of them.

    Raises:
        InputError: for another number, as ART's averages over transformations give, or anything but a tensor.
    """
    if not isinstance(restored, Tensor):
        raise ClassifierError(f"{argument} gives a {type(restored).__name__}; a tensor was expected")
    if restored.ndim == 0 or len(restored) != len(x):
        raise ClassifierError(
            f"{argument} makes {tuple(restored.shape)} of {tuple(x.shape)}; as many images as it was given were "
            "expected: it is to draw once, and evaluate averages over its draws by itself"
        )
    return restored


def _passed(classifier: PyTorchClassifier, x: Tensor, argument: str) -> Any:
    """What the network gives for images, each preprocessor of which keeps their number."""
    pipeline = Pipeline(classifier)
    x = x.to(device_of(classifier))
    for step in pipeline.steps:
        name = type(getattr(step, "preprocessor", step)).__name__
        x = check_keeps_batch(step(x), x, f"{argument} has the preprocessor {name}, which")
    return pipeline.model(as_model_input(x, pipeline.model))


@contextmanager
def unmoved_generators() -> Iterator[None]:
    """The global generators that networks and preprocessors draw from are afterwards as before."""
    state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 (what ART uses)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
        random.setstate(python_state)


class Pipeline(nn.Module):
    """Preprocessors in their order, then the model: images ``(N, *input_shape)`` in the clip range to logits (N, K).

    It shares the model, in the mode that this is in, and holds every defence among its ``modules()``. What it is given
    it leaves as it is, even where a preprocessor or the model writes into its own input (``x -= mean``).

    Args:
        classifier: a classifier whose preprocessing runs in torch and that has no postprocessing.
        channels_in_front: take images (N, C, H, W), also for a classifier whose images are (N, H, W, C).

    Attributes:
        turns: whether images are turned from the former to the latter on their way.
        clip_values: least and largest pixel value; 0 and 1 where the classifier names none.

    Raises:
        InputError: for numpy preprocessing or a postprocessor, which let no gradient pass.
    """

    def __init__(self, classifier: PyTorchClassifier, *, channels_in_front: bool = False) -> None:
        super().__init__()
        check_differentiable(classifier)
        operations = [p for p in classifier.preprocessing_operations if p.apply_predict]
        device = device_of(classifier)
        # The steps before the model: modules() then lists the defences in the order in which an image meets them.
        self.steps = nn.ModuleList(_as_step(operation, classifier.input_shape, device) for operation in operations)
        self.model = classifier.model
        self.turns = channels_in_front and has_channels_behind(classifier)
        clip = classifier.clip_values
        self.clip_values = (0.0, 1.0) if clip is None else (float(np.min(clip[0])), float(np.max(clip[1])))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(as_model_input(self.before_model(x), self.model))
        return logits

    def before_model(self, x: Tensor) -> Tensor:
        """What the model is given of images, before it is cast to its dtype: a new tensor, which it may write into."""
        x = (channels_to_back(x) if self.turns else x).clone()  # also since torch writes into no leaf with a gradient
        for step in self.steps:
            x = step(x)
        return x


class Step(nn.Module):
    """An ART preprocessor as a module; one that is a module itself stays reachable as a child."""

    def __init__(self, preprocessor: PreprocessorPyTorch) -> None:
        super().__init__()
        self.preprocessor = preprocessor

    def forward(self, x: Tensor) -> Tensor:
        restored: Tensor = self.preprocessor.forward(x)[0]
        return restored


class _Standardisation(nn.Module):
    """ART's (x - mean) / std, with buffers that follow the module to its device and dtype."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, preprocessor: StandardisationMeanStdPyTorch, input_shape: tuple[int, ...], device: torch.device
    ) -> None:
        super().__init__()
        mean, std = broadcastable_mean_std(torch.empty(1, *input_shape), preprocessor.mean, preprocessor.std)
        with gradients_enabled():
            self.register_buffer("mean", torch.as_tensor(mean, device=device), persistent=False)
            self.register_buffer("std", torch.as_tensor(std, device=device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean.to(x.device)) / self.std.to(x.device)  # of a classifier that ART has moved since


def _as_step(operation: PreprocessorPyTorch, input_shape: tuple[int, ...], device: torch.device) -> nn.Module:
    if type(operation) is StandardisationMeanStdPyTorch:
        return _Standardisation(operation, input_shape, device)
    return Step(operation)
