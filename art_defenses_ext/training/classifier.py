"""The training of a classifier on the cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import check_labels, check_outputs, explained_by_shape, into_clip_values
from art_defenses_ext.estimator.rebuild import evaluation_mode
from art_defenses_ext.training.loop import train
from art_defenses_ext.training.settings import Settings, SettingsOptions


def train_classifier(
    model: nn.Module,
    x: FloatArray,
    y: IntArray,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    progress: bool = True,
    **settings: Unpack[SettingsOptions],
) -> list[float]:
    """Train a classifier on the cross entropy and leave it in evaluation mode.

    Args:
        model: from normalised images (N, C, H, W) to logits (N, nb_classes); it stays on its device, and parameters
            that require no gradient do not change.
        x: images (N, C, H, W), float32, in [0, 1].
        y: class indices (N,) or one-hot rows (N, nb_classes).
        mean: mean of the normalisation, one number per channel.
        std: standard deviation of the normalisation, one number per channel, above 0.
        progress: show a transient bar with the loss on the standard error.
        **settings: of the training, see :class:`.Settings`; without mixed precision by default. On the CPU the same
            ``seed`` (with the same initial weights and number of threads) gives the same weights; the caller's random
            state is restored.

    Returns:
        The mean training loss of each epoch.

    Raises:
        InputError: for a model, images, labels or settings that cannot be used, before any training.
    """
    chosen = Settings.of({"mixed_precision": False, **settings})
    if not isinstance(model, nn.Module):
        raise InputError(f"model is {shown(model)}; an nn.Module was expected")
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != 4 or len(x) == 0:
        raise InputError(f"x is {shown(x)}; a numpy array of float32, (N, C, H, W) with N > 0, was expected")
    images = torch.from_numpy(np.ascontiguousarray(into_clip_values(x, (0.0, 1.0))))  # torch has no negative strides
    check_normalisation(mean, std, x.shape[1])

    def logits_of(images: Tensor) -> Tensor:
        normalised = (images - images.new_tensor(mean).view(-1, 1, 1)) / images.new_tensor(std).view(-1, 1, 1)
        logits: Tensor = model(normalised)
        return logits

    device = next((tensor.device for tensor in model.parameters()), None)
    with explained_by_shape(model, x.shape[1:]), evaluation_mode(model), torch.no_grad():
        logits = logits_of(images[:1].to(device))
    nb_classes = check_outputs(logits, 1, argument=f"model, a {type(model).__name__},").shape[1]
    labels = torch.from_numpy(check_labels(y, nb_classes, len(x)))

    def objective(images: Tensor, labels: Tensor, _: torch.Generator) -> dict[str, Tensor]:
        return {"cross-entropy": functional.cross_entropy(logits_of(images), labels)}

    history = train(model, (images, labels), objective, chosen, progress=progress)
    return [epoch.training["cross-entropy"] for epoch in history]


def check_normalisation(mean: Sequence[float], std: Sequence[float], nb_channels: int) -> None:
    """Refuse anything but a finite mean and a deviation above zero for each channel."""
    for argument, values, least in (("mean", mean, -np.inf), ("std", std, 0.0)):
        numbers = np.asarray(values)
        fits = numbers.shape == (nb_channels,) and numbers.dtype.kind in "iuf"
        if not (fits and np.isfinite(numbers).all() and (numbers > least).all()):
            above = " > 0" if argument == "std" else ""
            raise InputError(
                f"{argument} is {shown(values)}; {nb_channels} finite number(s){above}, one a channel, were expected"
            )
