"""New ART classifiers from the parts of existing ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext.base.errors import ClassifierError
from art_defenses_ext.gradients.modes import Defence
from art_defenses_ext.gradients.surrogate import Surrogate


def rebuild(classifier: PyTorchClassifier, **parts: Any) -> PyTorchClassifier:
    """Return a new classifier with the constructor arguments of ``classifier``, except the given ones.

    ART has no such method: assigning ``preprocessing_defences`` has no effect, and ``clone_for_refitting`` resets
    the weights. The device is kept, also if it is not torch's current one.

    Args:
        classifier: source of model, loss, shapes, optimizer, clip values, defences, preprocessing and device.
        **parts: constructor arguments of ``PyTorchClassifier`` that replace its own.

    Returns:
        A classifier that shares all parts that are not replaced.
    """
    on_cuda = classifier.device.type == "cuda"
    arguments = {
        "model": classifier.model,
        "loss": classifier.loss,
        "input_shape": classifier.input_shape,
        "nb_classes": classifier.nb_classes,
        "optimizer": classifier.optimizer,
        "use_amp": classifier.use_amp,
        "opt_level": classifier.opt_level,
        "loss_scale": classifier.loss_scale,
        "channels_first": classifier.channels_first,
        "clip_values": classifier.clip_values,
        "preprocessing_defences": classifier.preprocessing_defences,
        "postprocessing_defences": classifier.postprocessing_defences,
        "preprocessing": classifier.preprocessing,
        "device_type": "gpu" if on_cuda else "cpu",
    }
    with torch.cuda.device(classifier.device) if on_cuda else nullcontext():
        return PyTorchClassifier(**(arguments | parts))


class NoOptimizer:
    """An optimizer that refuses to train, with an error.

    Training mode, in which a network could refuse, is not always used: ART's FBF trainer steps the optimizer of a
    network in evaluation mode.

    Args:
        parameters: unused; passed when an optimizer is cloned.
        reason: the error message.
    """

    def __init__(self, parameters: Any = (), *, reason: str) -> None:
        self.defaults = {"reason": reason}

    def _refuse(self, *_: Any, **__: Any) -> Any:
        """Refuse to train.

        Raises:
            InputError: always.
        """
        raise ClassifierError(self.defaults["reason"])

    zero_grad = step = _refuse
    param_groups = property(_refuse)  # which setting a learning rate needs

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dictionary, since ART saves a classifier's optimizer beside its network."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignore ``state``."""


def without_training(classifier: PyTorchClassifier, reason: str) -> NoOptimizer | None:
    """Return an optimizer that refuses to train for ``reason``; None if ``classifier`` has no optimizer."""
    return None if classifier.optimizer is None else NoOptimizer(reason=reason)


def undefended(classifier: PyTorchClassifier) -> PyTorchClassifier | None:
    """Return the undefended classifier; None if it is neither recorded nor known from the defences.

    For a classifier built in ART's own way, ``preprocessing_defences=[HeatAndBlur(...)]``, it is the same classifier
    without the defences of this package. Preprocessors from other packages and a :class:`.Surrogate` around one stay,
    since they may not be defences: without a resize, for example, the network could not take the images.
    """
    recorded: PyTorchClassifier | None = getattr(classifier, "undefended", None)
    if recorded is not None:
        return recorded
    preprocessors = classifier.preprocessing_defences or []
    others = [step for step in preprocessors if not isinstance(step, Defence) or isinstance(step, Surrogate)]
    model = classifier.model
    network = model.undefended_network() if isinstance(model, Defence) else None
    if network is None and len(others) == len(preprocessors):
        return None
    return rebuild(classifier, model=model if network is None else network, preprocessing_defences=others or None)


def record_undefended(defended: PyTorchClassifier, classifier: PyTorchClassifier) -> PyTorchClassifier:
    """Record on ``defended`` the classifier before any defence (also before several defences in a row)."""
    defended.undefended = undefended(classifier) or classifier
    return defended


def model_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the dtype of the model's first floating-point parameter; None if it has none."""
    for parameter in model.parameters():  # a loop, since torch 2.8 cannot compile next() with a default
        if parameter.is_floating_point():
            return parameter.dtype
    return None


HALVES = (torch.float16, torch.bfloat16)
"""Dtypes whose precision is too low for sums of relevance and stabilisers."""


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Return ``x``, in float32 if its precision is lower."""
    return x.float() if x.dtype in HALVES else x


def as_model_input(x: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """Return ``x`` in the model's dtype: under NumPy 2 several ART attacks send float64, and ART does not cast."""
    dtype = model_dtype(model)
    return x if dtype is None else x.to(dtype)


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside the block, and restore the mode of each part afterwards."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def gradients_enabled() -> Iterator[None]:
    """Enable gradients inside the block, also under the caller's ``no_grad`` or ``inference_mode``."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
