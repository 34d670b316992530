"""The training of a detector's network: explain benign images, learn the explanations, set the thresholds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.provenance import Training
from art_defenses_ext.detector.network import DetectorNetwork
from art_defenses_ext.detector.reconstructors import ClassGaussians
from art_defenses_ext.detector.thresholds import hold_out
from art_defenses_ext.training.loop import train
from art_defenses_ext.training.settings import Settings
from art_defenses_ext.training.state import Epoch

AT_ONCE = 128
"""Number of images explained per batch."""


def fit_network(
    network: DetectorNetwork,
    x: FloatArray,
    rate: float,
    validation_split: float,
    settings: Settings,
    **loop: Any,
) -> Training:
    """Fit a network to the explanations of benign images, and set its thresholds on images held out.

    Args:
        network: the network, without weights.
        x: benign images ``(N, *input_shape)`` in the layout of the network.
        rate: share of benign images of each predicted class that may be flagged.
        validation_split: share of each predicted class's images that are used only for the thresholds.
        settings: settings of the training.
        **loop: ``checkpoint``, ``identity`` and ``progress`` of :func:`.training.loop.train`.

    Raises:
        InputError: for constant explanations or explanations that are not finite, and for a class with too few images.
    """
    raw, classes = explained(network, x)
    held_out = hold_out(classes, network.nb_classes, validation_split, rate, settings.seed)
    _check_maps(raw, network.explanations)
    network.calibrate(raw[~held_out])
    scaled = torch.cat([network.scaled(maps.to(network.device)).cpu() for maps in raw.split(AT_ONCE)])
    network.reconstructors = network.new_reconstructors(settings.seed).to(network.device)
    history = _learn(network, scaled[~held_out], classes[~held_out], settings, **loop)
    with torch.no_grad():
        errors = [
            network.score_of(maps.to(network.device), of.to(network.device))
            for maps, of in zip(scaled[held_out].split(AT_ONCE), classes[held_out].split(AT_ONCE), strict=True)
        ]
    network.keep(torch.cat(errors), classes[held_out], rate)
    plan = vars(settings) if history else {"seed": settings.seed}  # a Gaussian is not trained
    plan = plan | {"images": int((~held_out).sum()), "validation_split": validation_split}
    return Training(plan, [(sum(epoch.training.values()), None) for epoch in history])


def explained(network: DetectorNetwork, x: FloatArray) -> tuple[Tensor, Tensor]:
    """Return unscaled maps (N, M, H, W) and predicted classes (N,) of images, on the CPU."""
    maps, classes = [], []
    with torch.no_grad():
        for start in range(0, len(x), AT_ONCE):
            batch = torch.tensor(x[start : start + AT_ONCE], device=network.device)
            predicted = network.predicted(batch)
            maps.append(network.explained(batch, predicted).cpu())
            classes.append(predicted.cpu())
    return torch.cat(maps), torch.cat(classes)


def _learn(network: DetectorNetwork, scaled: Tensor, classes: Tensor, settings: Settings, **loop: Any) -> list[Epoch]:
    """Train autoencoders, or fit Gaussians, on scaled maps (N, M, H, W) of classes (N,)."""
    reconstructors = network.reconstructors
    if isinstance(reconstructors, ClassGaussians):
        reconstructors.fit(scaled.flatten(1), classes)
        return []

    def objective(batch: Tensor, classes: Tensor, _: torch.Generator) -> dict[str, Tensor]:
        return {"reconstruction": functional.mse_loss(reconstructors(batch.flatten(1), classes), batch.flatten(1))}

    return train(reconstructors, (scaled, classes), objective, settings, **loop)


def _check_maps(maps: Tensor, explanations: list[str]) -> None:
    """Refuse unscaled maps (N, M, H, W) that are not finite or constant."""
    for name, values in zip(explanations, maps.flatten(2).unbind(dim=1), strict=True):
        if not bool(values.isfinite().all()):
            raise InputError(f"x has {name} explanations that hold NaN or infinite values; finite ones were expected")
        if torch.equal(values.amax(dim=1), values.amin(dim=1)):
            raise InputError(
                f"x has {name} explanations of a single value each; explanations that vary over the image were expected"
            )
