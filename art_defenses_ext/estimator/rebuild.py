"""ART's classifier taken apart and put together again with other parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext.base.validation import ClassifierError
from art_defenses_ext.gradients.modes import Defence
from art_defenses_ext.gradients.surrogate import Surrogate


def rebuild(classifier: PyTorchClassifier, **parts: Any) -> PyTorchClassifier:
    """A new classifier with every constructor argument of ``classifier``, but for the ones given.

    ART's own ways fall short: assigning ``preprocessing_defences`` has no effect, and ``clone_for_refitting`` resets
    the weights. The device is kept, also where it is not torch's current one.

    Args:
        classifier: whose model, loss, shapes, optimizer, clip values, defences, preprocessing and device to take.
        **parts: constructor arguments of ``PyTorchClassifier`` that replace its own.

    Returns:
        A classifier that shares with ``classifier`` all that is not replaced.
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
    """Stands where a classifier's optimizer would, and refuses to train in words.

    Not every way of training asks for training mode, where a network could refuse: ART's FBF trainer steps the
    optimizer of a network in evaluation mode.

    Args:
        parameters: unused; whoever clones an optimizer hands them over.
        reason: what is refused and what was expected.
    """

    def __init__(self, parameters: Any = (), *, reason: str) -> None:
        self.defaults = {"reason": reason}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Refuses.

        Raises:
            InputError: always.
        """
        raise ClassifierError(self.defaults["reason"])

    def step(self, closure: Any = None) -> None:
        """Refuses.

        Raises:
            InputError: always.
        """
        raise ClassifierError(self.defaults["reason"])

    @property
    def param_groups(self) -> Any:
        """Refuses, as those who set a learning rate ask for them.

        Raises:
            InputError: always.
        """
        raise ClassifierError(self.defaults["reason"])

    def state_dict(self) -> dict[str, Any]:
        """Nothing: ART saves a classifier's optimizer beside its network."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back nothing."""


def without_training(classifier: PyTorchClassifier, reason: str) -> NoOptimizer | None:
    """An optimizer that refuses for ``reason``, in place of that of ``classifier``; None where that has none."""
    return None if classifier.optimizer is None else NoOptimizer(reason=reason)


def undefended(classifier: PyTorchClassifier) -> PyTorchClassifier | None:
    """The classifier before our defences; None where they neither recorded it nor can be left out.

    Of a classifier that was built with them in ART's own way, ``preprocessing_defences=[HeatAndBlur(...)]``, it is the
    same without them; other people's preprocessors and a :class:`.Surrogate` around one stay, since these may be no
    defence: without a resize, say, the network could not take the images.
    """
    recorded: PyTorchClassifier | None = getattr(classifier, "undefended", None)
    if recorded is not None:
        return recorded
    preprocessors = classifier.preprocessing_defences or []
    others = [one for one in preprocessors if not isinstance(one, Defence) or isinstance(one, Surrogate)]
    model = classifier.model
    network = model.undefended_network() if isinstance(model, Defence) else None
    if network is None and len(others) == len(preprocessors):
        return None
    return rebuild(classifier, model=model if network is None else network, preprocessing_defences=others or None)


def record_undefended(defended: PyTorchClassifier, classifier: PyTorchClassifier) -> PyTorchClassifier:
    """Note on ``defended`` which classifier stood there before any defence (through several defences in a row)."""
    defended.undefended = undefended(classifier) or classifier
    return defended


def model_dtype(model: nn.Module) -> torch.dtype | None:
    """The dtype of the model's first floating-point parameter; None if it has none."""
    for parameter in model.parameters():  # a loop, since torch 2.8 cannot compile next() with a default
        if parameter.is_floating_point():
            return parameter.dtype
    return None


HALVES = (torch.float16, torch.bfloat16)
"""Of so few digits that a share of a sum, or a small constant added to it, is lost."""


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """``x``, in float32 if its dtype has fewer digits."""
    return x.float() if x.dtype in HALVES else x


def as_model_input(x: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """``x`` in the model's dtype: under NumPy 2 several ART attacks send float64, and ART does not cast."""
    dtype = model_dtype(model)
    return x if dtype is None else x.to(dtype)


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards each part is in its own former mode again."""
    former = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in former:
            part.training = training


@contextmanager
def gradients_enabled() -> Iterator[None]:
    """Gradients inside the block, even where the caller's own code runs under ``no_grad`` or ``inference_mode``."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
