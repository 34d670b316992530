"""Trained classifiers by name: network, weights or training, normalisation, ART's wrapper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext.base.errors import DataError
from art_defenses_ext.base.validation import check_seed
from art_defenses_ext.estimator.pipeline import cuda_devices
from art_defenses_ext.training.classifier import check_normalisation, train_classifier
from art_defenses_ext.training.settings import SettingsOptions
from art_defenses_ext.zoo.catalogue import DEFAULT_MODEL, MODELS
from art_defenses_ext.zoo.datasets import Dataset
from art_defenses_ext.zoo.loaders import has_loader, load_pretrained
from art_defenses_ext.zoo.models import build_model
from art_defenses_ext.zoo.weights import load_published, load_weights

EPOCHS = {"digits": 30, "mnist": 5, "fashion_mnist": 5}
"""Training epochs if no weights are given: seconds for digits, minutes for the others on a CPU."""

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
    """Return a trained classifier for images of ``dataset`` in [0, 1].

    Args:
        dataset: data set with the image shape, and the training images if training is needed.
        model: a built-in name, ``"package.module:function"``, or a collection's as :func:`.load_model` takes it;
            None for the data set's default network.
        weights: file of weights to load. Without weights and ``epochs``, a network of torchvision's
            and of a collection loads the weights that are published, any other built-in network is trained on the
            training part,
            and your own network is used as its function returns it.
        mean: mean of the normalisation, per channel; None for the built-in network's own, else 0.
        std: standard deviation of the normalisation, per channel; None for the built-in network's own, else 1.
        epochs: training epochs; None for the data set's default.
        device: ``"cpu"`` or ``"cuda"``.
        seed: seed of initial weights and training.
        progress: show a bar while training or downloading.

    Returns:
        ART's classifier. It has as many classes as the data set; with ``open_classes``, as many as the network.

    Raises:
        InputError: for an unknown network, weights that do not fit or cannot be downloaded, a network that does not
            accept the images or has too few classes, training without training images, or CIFAR-10 or SVHN
            without weights and ``epochs``, since training takes hours on a CPU.
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
    pretrained = load_pretrained(name) if has_loader(name) else None
    if pretrained is not None and pretrained.input_shape != shape:
        raise DataError(f"model {name} takes images {pretrained.input_shape}; {dataset.name} has {shape}")
    normalisation = spec or pretrained
    if mean is None:
        mean = normalisation.mean if normalisation else (0.0,) * channels
    if std is None:
        std = normalisation.std if normalisation else (1.0,) * channels
    check_normalisation(mean, std, channels)

    with torch.random.fork_rng(devices=cuda_devices()):  # otherwise torch warns of several devices
        torch.manual_seed(seed)
        network = build_model(name) if pretrained is None else pretrained.network
    if weights is not None:
        load_weights(network, weights)
    network = network.to(device).eval()
    nb_classes = _check_logits(network, name, dataset)
    if weights is None and epochs is None and spec is not None and spec.published:
        load_published(network, name, progress)
    elif weights is None and (spec is not None or epochs is not None):
        epochs = EPOCHS.get(dataset.name) if epochs is None else epochs
        if epochs is None:
            raise DataError(f"model {name} has no weights; weights, or a number of epochs to train, was expected")
        options: SettingsOptions = {"nb_epochs": epochs, "batch_size": BATCH_SIZE.get(dataset.name, 128), "seed": seed}
        train_classifier(network, dataset.train.x, dataset.train.y, mean=mean, std=std, progress=progress, **options)
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


def _check_logits(network: nn.Module, name: str, dataset: Dataset) -> int:
    """Return a network's number of classes; refuse a network whose output does not fit the data set."""
    device = next((parameter.device for parameter in network.parameters()), None)
    try:
        with torch.no_grad():
            got = tuple(network(torch.zeros(2, *dataset.input_shape, device=device)).shape)
    except Exception as error:  # a network may raise any type on a wrong image
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"model {name} does not take images {dataset.input_shape} of {dataset.name}: {reason}"
        ) from None
    equal = got == (2, dataset.nb_classes)
    more = len(got) == 2 and got[0] == 2 and got[1] > dataset.nb_classes
    if equal or (more and dataset.open_classes):
        return int(got[1])
    or_more = " or more" if dataset.open_classes else ""
    raise DataError(f"model {name} returns shape {got} for two images; (2, {dataset.nb_classes}{or_more}) was expected")
