"""A classifier with all its preprocessing as one differentiable network: what explanations, attacks and judges run.

It stands below the faces, since a detector explains a classifier as it is, defended or not.
"""

from __future__ import annotations

from typing import Any

import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from art.preprocessing.standardisation_mean_std.utils import broadcastable_mean_std
from torch import Tensor, nn

from art_defenses_ext.layout import channels_to_back, has_channels_behind
from art_defenses_ext.rebuild import as_model_input, gradients_enabled
from art_defenses_ext.validation import InputError, check_classifier, check_differentiable_tensors


def check_differentiable(classifier: Any, argument: str = "classifier") -> PyTorchClassifier:
    """Return ``classifier`` if gradients pass through all of it.

    Raises:
        InputError: for numpy preprocessing or a postprocessor, for tensors made under ``torch.inference_mode``, and as
            :func:`.check_classifier`.
    """
    check_classifier(classifier, argument)
    if classifier.postprocessing_defences:
        raise InputError(f"{argument} has postprocessing defences, which work on numpy arrays; none were expected")
    for preprocessor in classifier.preprocessing_operations:
        if not isinstance(preprocessor, PreprocessorPyTorch):
            raise InputError(
                f"{argument} has the preprocessor {type(preprocessor).__name__}, which works on numpy arrays; "
                "a PreprocessorPyTorch was expected"
            )
        if isinstance(preprocessor, nn.Module):
            check_differentiable_tensors(preprocessor, f"{argument}'s {type(preprocessor).__name__}")
    check_differentiable_tensors(classifier.model, argument)
    checked: PyTorchClassifier = classifier
    return checked


class Pipeline(nn.Module):
    """Preprocessors in their order, then the model: images ``(N, *input_shape)`` in the clip range to logits (N, K).

    It shares the model, in the mode that this is in, and holds every defence among its ``modules()``. What it is given
    it leaves as it is, even where a preprocessor or the model writes into its own input (``x -= mean``).

    Args:
        classifier: a classifier whose preprocessing runs in torch and that has no postprocessing.
        channels_in_front: take images (N, C, H, W), also for a classifier whose images are (N, H, W, C).

    Attributes:
        turns: whether images are turned from the former to the latter on their way.

    Raises:
        InputError: for numpy preprocessing or a postprocessor, which let no gradient pass.
    """

    def __init__(self, classifier: PyTorchClassifier, *, channels_in_front: bool = False) -> None:
        super().__init__()
        check_differentiable(classifier)
        operations = [p for p in classifier.preprocessing_operations if p.apply_predict]
        device = next((tensor.device for tensor in classifier.model.parameters()), classifier.device)
        # The steps before the model: modules() then lists the defences in the order in which an image meets them.
        self.steps = nn.ModuleList(_as_step(operation, classifier.input_shape, device) for operation in operations)
        self.model = classifier.model
        self.turns = channels_in_front and has_channels_behind(classifier)

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
