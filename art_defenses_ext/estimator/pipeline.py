"""A classifier and its preprocessing as one differentiable network, for explanations, attacks and evaluation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from art.preprocessing.standardisation_mean_std.utils import broadcastable_mean_std
from torch import Tensor, nn

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import ClassifierError, InputError
from art_defenses_ext.base.layout import channels_to_back, has_channels_behind
from art_defenses_ext.base.validation import check_classifier, check_differentiable_tensors, check_outputs, one_line
from art_defenses_ext.estimator.rebuild import as_model_input, evaluation_mode, gradients_enabled

PROBES = 2
"""Number of images on which a classifier is tested."""


def check_differentiable(classifier: Any, argument: str = "classifier") -> PyTorchClassifier:
    """Return ``classifier`` if it is differentiable end to end; :func:`.differentiable` makes it so.

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
    """Refuse numpy preprocessing, which has no gradient and which ART cannot combine with torch preprocessing."""
    for preprocessor in classifier.preprocessing_operations:
        if not isinstance(preprocessor, PreprocessorPyTorch):
            raise ClassifierError(
                f"{argument} has the preprocessor {type(preprocessor).__name__}, which works on numpy arrays; "
                "a PreprocessorPyTorch was expected"
            )


def check_runs(classifier: PyTorchClassifier, argument: str = "classifier") -> None:
    """Refuse a classifier that does not return logits (2, nb_classes) for two images, before any work.

    The images are drawn from the clip range; the network's mode and the global generators do not change.

    Args:
        classifier: a classifier with any preprocessing.
        argument: its name in error messages.

    Raises:
        InputError: for other outputs, as :func:`.check_outputs`, for a preprocessor that changes the number of
            images, and for a network that does not accept the images.
    """
    x = probes(classifier)
    in_torch = all(isinstance(step, PreprocessorPyTorch) for step in classifier.preprocessing_operations)
    in_torch = in_torch and not classifier.postprocessing_defences
    try:
        with evaluation_mode(classifier.model), unmoved_generators(), torch.no_grad():
            if in_torch:
                outputs = _run_checked(classifier, torch.tensor(x), argument)
            else:
                outputs = torch.as_tensor(classifier.predict(x))
    except InputError:
        raise
    except Exception as error:  # a network may raise any type
        raise ClassifierError(
            f"{argument} cannot take {PROBES} images {tuple(classifier.input_shape)} ({one_line(error)}); a network "
            "for images of its input_shape was expected"
        ) from error
    check_outputs(outputs, PROBES, classifier.nb_classes, argument)


def device_of(classifier: PyTorchClassifier) -> torch.device:
    """Return the network's current device, which may differ from ART's; without weights, ART's."""
    device: torch.device = next((tensor.device for tensor in classifier.model.parameters()), classifier.device)
    return device


def runs(classifier: PyTorchClassifier) -> bool:
    """Return whether a classifier passes :func:`check_runs`."""
    try:
        check_runs(classifier)
    except InputError:
        return False
    return True


def network_input(classifier: PyTorchClassifier) -> Tensor:
    """Return the network's input (1, ...) for an image of zeros: of another size if a preprocessor resizes."""
    x = torch.zeros(1, *classifier.input_shape, device=device_of(classifier))
    operations = [step for step in classifier.preprocessing_operations if step.apply_predict]
    if all(isinstance(step, PreprocessorPyTorch) for step in operations):
        with unmoved_generators(), torch.no_grad():
            for step in operations:
                x = step.forward(x)[0]
    return x


def probes(classifier: PyTorchClassifier) -> FloatArray:
    """Return two images (2, *input_shape) drawn from the clip range, the same each time."""
    x = np.random.default_rng(0).random((PROBES, *classifier.input_shape), dtype=np.float32)
    if classifier.clip_values is None:
        return x
    low, high = (np.asarray(end, dtype=np.float32) for end in classifier.clip_values)
    inside: FloatArray = low + x * (high - low)
    return inside


def run_preprocessor(preprocessor: PreprocessorPyTorch, x: Tensor, argument: str) -> Tensor:
    """Return a preprocessor's output for images (n, ...) at prediction; the images if it acts in training alone.

    Args:
        preprocessor: a preprocessor in torch.
        x: a few of its input images.
        argument: its name in error messages.

    Raises:
        InputError: for a preprocessor that needs labels, returns another number of images (such as ART's expectation
            over transformation) or something other than a tensor, or cannot take the images.
    """
    if not preprocessor.apply_predict:
        return x
    with unmoved_generators(), torch.no_grad():
        try:
            restored = preprocessor.forward(x)[0]
        except InputError:
            raise
        except Exception as error:  # it may raise any type
            if _runs_with_labels(preprocessor, x):
                raise ClassifierError(
                    f"{argument} needs labels, which are unknown at prediction; apply_predict=False was expected"
                ) from error
            raise ClassifierError(
                f"{argument} cannot take images {tuple(x.shape)} ({one_line(error)}); one for images of the "
                "classifier's input_shape was expected"
            ) from error
    if not isinstance(restored, Tensor):
        raise ClassifierError(f"{argument} gives a {type(restored).__name__}; a tensor was expected")
    if restored.ndim == 0 or len(restored) != len(x):
        raise ClassifierError(
            f"{argument} makes {tuple(restored.shape)} of {tuple(x.shape)}; the same number of images was expected: "
            "evaluate averages over random draws by itself"
        )
    return restored


def _runs_with_labels(preprocessor: PreprocessorPyTorch, x: Tensor) -> bool:
    try:
        preprocessor.forward(x, torch.eye(len(x), device=x.device))
    except Exception:  # it may raise any type
        return False
    return True


def own_name(preprocessor: PreprocessorPyTorch) -> str:
    """Return the class name of a preprocessor; if it is bridged or wrapped, that of the inner one."""
    return type(getattr(preprocessor, "wrapped", preprocessor)).__name__


def _run_checked(classifier: PyTorchClassifier, x: Tensor, argument: str) -> Any:
    """Return the network's output; refuse preprocessors that change the number of images."""
    pipeline = Pipeline(classifier)
    x = x.to(device_of(classifier))
    for step in pipeline.steps:
        if isinstance(step, Step):
            name = own_name(step.preprocessor)
            x = run_preprocessor(step.preprocessor, x, f"{argument} has the preprocessor {name}, which")
        else:
            x = step(x)
    return pipeline.model(as_model_input(x, pipeline.model))


@cache
def cuda_devices() -> range:
    """Return the numbers of the CUDA devices, counted once: without any, torch searches for a driver at each call."""
    return range(torch.cuda.device_count())


@contextmanager
def unmoved_generators() -> Iterator[None]:
    """Restore the global generators of networks and preprocessors afterwards."""
    state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 (what ART uses)
    try:
        with torch.random.fork_rng(devices=cuda_devices()):
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
        random.setstate(python_state)


class Pipeline(nn.Module):
    """Preprocessors in their order, then the model: images ``(N, *input_shape)`` in the clip range to logits (N, K).

    It shares the model, in its current mode, and has every defence among its ``modules()``. It does not change its
    input, even if a preprocessor or the model writes into its own input (``x -= mean``).

    Args:
        classifier: a classifier whose preprocessing runs in torch and that has no postprocessing.
        channels_in_front: take images (N, C, H, W), also for a classifier whose images are (N, H, W, C).

    Attributes:
        permutes: whether images are permuted from (N, C, H, W) to (N, H, W, C).
        clip_values: minimum and maximum pixel value; 0 and 1 if the classifier has none.

    Raises:
        InputError: for numpy preprocessing or a postprocessor, which have no gradient.
    """

    def __init__(self, classifier: PyTorchClassifier, *, channels_in_front: bool = False) -> None:
        super().__init__()
        check_differentiable(classifier)
        operations = [p for p in classifier.preprocessing_operations if p.apply_predict]
        device = device_of(classifier)
        # The steps before the model: modules() then lists the defences in the order of application.
        self.steps = nn.ModuleList(_as_step(operation, classifier.input_shape, device) for operation in operations)
        self.model = classifier.model
        self.permutes = channels_in_front and has_channels_behind(classifier)
        clip = classifier.clip_values
        self.clip_values = (0.0, 1.0) if clip is None else (float(np.min(clip[0])), float(np.max(clip[1])))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(as_model_input(self.before_model(x), self.model))
        return logits

    def before_model(self, x: Tensor) -> Tensor:
        """Return the model's input for images, before the cast to its dtype: a new tensor, which it may overwrite."""
        x = (channels_to_back(x) if self.permutes else x).clone()  # torch must not write into a leaf with a gradient
        for step in self.steps:
            x = step(x)
        return x


class Step(nn.Module):
    """An ART preprocessor as a module; a preprocessor that is a module itself is a child."""

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
        return (x - self.mean.to(x.device)) / self.std.to(x.device)  # the classifier may have been moved


def _as_step(operation: PreprocessorPyTorch, input_shape: tuple[int, ...], device: torch.device) -> nn.Module:
    if type(operation) is StandardisationMeanStdPyTorch:
        return _Standardisation(operation, input_shape, device)
    return Step(operation)
