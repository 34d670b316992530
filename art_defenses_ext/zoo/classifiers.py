"""A trained classifier from a name: network, weights or training, normalisation, ART's wrapper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext.base.validation import DataError, check_seed
from art_defenses_ext.training.loop import train_classifier
from art_defenses_ext.zoo.datasets import Dataset
from art_defenses_ext.zoo.models import DEFAULT_MODEL, MODELS, build_model
from art_defenses_ext.zoo.weights import load_published, load_weights

EPOCHS = {"digits": 30, "mnist": 5, "fashion_mnist": 5}
"""Passes over the training images where no weights are given: seconds for digits, minutes for the others on a CPU."""

BATCH_SIZE = {"digits": 64}


def load_classifier(
    dataset: Dataset,
    model: str | None = None,
    weights: str | Path | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    epochs: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> PyTorchClassifier:
    """A classifier for images of ``dataset`` in [0, 1].

    Args:
        dataset: gives the image shape, and the training images where training is needed.
        model: a built-in name, or ``"package.module:function"``; None for the data set's usual network.
        weights: file to load into it. Without one, and unless ``epochs`` asks for training, a network of torchvision's
            takes the weights that torchvision publishes, any other built-in one is trained on the training part, and
            a network of one's own is taken as its function returns it.
        mean: of the network's normalisation, per channel; None for the built-in network's own, else 0.
        std: likewise; else 1.
        epochs: passes of training; None for the data set's usual number.
        device: ``"cpu"`` or ``"cuda"``.
        seed: of initial weights and training.
        progress: show a bar while training or downloading.

    Returns:
        ART's classifier. It has as many classes as the data set; where these are ``open_classes``, as the network.

    Raises:
        InputError: for an unknown network, weights that do not fit or cannot be downloaded, a network that does not
            take the images or knows too few classes, training without training images, or CIFAR-10 or SVHN
            without weights: training takes hours on a CPU, so it must be asked for by ``epochs``.
    """
    check_seed(seed)
    name = DEFAULT_MODEL[dataset.name] if model is None else model
    spec = MODELS.get(name)
    shape = dataset.input_shape
    if spec is not None and spec.input_shape != shape:
        raise DataError(f"model {name} takes images {spec.input_shape}; {dataset.name} has {shape}")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise DataError(f"device is {device!r}; cpu, or cuda where there is one, was expected")
    if weights is not None and epochs is not None:
        raise DataError("weights and epochs were both given; one of them was expected")
    channels = shape[0]
    mean = _per_channel("mean", mean, spec.mean if spec else (0.0,) * channels, channels)
    std = _per_channel("std", std, spec.std if spec else (1.0,) * channels, channels)
    if min(std) <= 0:
        raise DataError(f"std is {list(std)}; numbers > 0 were expected")

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # named, or torch warns of several
        torch.manual_seed(seed)
        network = build_model(name)
    if weights is not None:
        load_weights(network, weights)
    network = network.to(device).eval()
    nb_classes = _check_logits(network, name, dataset)
    if weights is None and epochs is None and spec is not None and spec.published:
        load_published(network, name, progress)
    elif weights is None and (spec is not None or epochs is not None):
        _train(network, name, dataset, mean, std, epochs, seed, progress)
    return PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        input_shape=shape,
        nb_classes=nb_classes,
        optimizer=torch.optim.Adam(network.parameters(), lr=1e-3),
        clip_values=(0.0, 1.0),
        preprocessing=(np.array(mean, dtype=np.float32), np.array(std, dtype=np.float32)),
        device_type="gpu" if device == "cuda" else "cpu",
    )


def _train(
    network: nn.Module,
    name: str,
    dataset: Dataset,
    mean: Sequence[float],
    std: Sequence[float],
    epochs: int | None,
    seed: int,
    progress: bool,
) -> None:
    epochs = EPOCHS.get(dataset.name) if epochs is None else epochs
    if epochs is None:
        raise DataError(f"model {name} has no weights; weights, or a number of epochs to train, was expected")
    train_classifier(
        network,
        dataset.train.x,
        dataset.train.y,
        nb_epochs=epochs,
        mean=mean,
        std=std,
        batch_size=BATCH_SIZE.get(dataset.name, 128),
        seed=seed,
        progress=progress,
    )


def _per_channel(argument: str, given: Sequence[float] | None, usual: Sequence[float], channels: int) -> list[float]:
    values = list(usual if given is None else given)
    if len(values) != channels or not np.isfinite(values).all():
        raise DataError(f"{argument} is {values}; {channels} finite number(s), one a channel, were expected")
    return values


def _check_logits(network: nn.Module, name: str, dataset: Dataset) -> int:
    """Return a network's number of classes; refuse one that does not turn the data set's images into their logits."""
    device = next((parameter.device for parameter in network.parameters()), None)
    try:
        with torch.no_grad():
            got = tuple(network(torch.zeros(2, *dataset.input_shape, device=device)).shape)
    except Exception as error:  # a network may fail on a wrong image in any way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"model {name} does not take images {dataset.input_shape} of {dataset.name}: {reason}"
        ) from None
    as_many = got == (2, dataset.nb_classes)
    more = len(got) == 2 and got[0] == 2 and got[1] > dataset.nb_classes
    if as_many or (more and dataset.open_classes):
        return int(got[1])
    or_more = " or more" if dataset.open_classes else ""
    raise DataError(f"model {name} returns shape {got} for two images; (2, {dataset.nb_classes}{or_more}) was expected")
