"""Trained networks of other people's collections, each with the preprocessing that belongs to its checkpoint.

A collection is a line of ``LOADERS``. Weights are read as safetensors, or by ``torch.load(weights_only=True)``; code of
a checkpoint is never run. Each loader is tested on small local checkpoints in the published format; downloads are not
tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext.base.errors import DataError
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import one_line
from art_defenses_ext.estimator.wrap import AdaptedNetwork, as_classifier
from art_defenses_ext.training.classifier import check_normalisation
from art_defenses_ext.zoo.catalogue import COLLECTIONS
from art_defenses_ext.zoo.weights import load_weights


@dataclass(frozen=True)
class Pretrained:
    """A trained network, and its checkpoint's size and normalisation of images.

    Attributes:
        network: from normalised images (N, C, H, W) to logits (N, K); in evaluation mode.
        input_shape: shape of an image (C, H, W).
        mean: per-channel mean that is subtracted from images in [0, 1].
        std: per-channel standard deviation by which the result is divided.
    """

    network: nn.Module
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Loader:
    """The loader of a collection.

    Attributes:
        load: returns the network of a name; it may raise any error.
        install: the command that installs its packages.
    """

    load: Callable[[str], Pretrained]
    install: str


def _load_timm(name: str) -> Pretrained:
    import timm

    network = timm.create_model(f"local-dir:{name}" if Path(name).is_dir() else name, pretrained=True)
    config = timm.data.resolve_model_data_config(network)
    return Pretrained(network, tuple(config["input_size"]), tuple(config["mean"]), tuple(config["std"]))


def _load_hf(name: str) -> Pretrained:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    # Otherwise weights that do not fit are drawn anew, and only a line in the log says so.
    network, mismatches = AutoModelForImageClassification.from_pretrained(
        name, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    wrong = [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in mismatches[kind]]
    if wrong:
        raise DataError(f"its weights do not fit its architecture, {type(network).__name__}: {shown(wrong[0])}")
    processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    channels = getattr(network.config, "num_channels", 3)
    size = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else processor.size
    height, width = (_side(size, side) for side in ("height", "width"))
    normalises = processor.do_normalize
    mean = tuple(processor.image_mean) if normalises else (0.0,) * channels
    std = tuple(processor.image_std) if normalises else (1.0,) * channels
    return Pretrained(AdaptedNetwork(network, "logits", None, ""), (channels, height, width), mean, std)


def _side(size: Any, side: str) -> int:
    """Return a side of the images, which are square if the checkpoint names only the shorter side."""
    sides = dict(size)
    value = sides.get(side)
    return int(sides["shortest_edge"] if value is None else value)


def _load_torchvision(name: str) -> Pretrained:
    from torchvision.models import get_model, get_model_weights

    network, published = get_model(name), get_model_weights(name).DEFAULT
    state = published.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    network.load_state_dict(state)
    transforms = published.transforms()
    (side,) = transforms.crop_size
    return Pretrained(network, (3, side, side), tuple(transforms.mean), tuple(transforms.std))


LOADERS: dict[str, Loader] = {
    "timm": Loader(_load_timm, 'pip install "art-defenses-ext[timm]"'),
    "hf": Loader(_load_hf, 'pip install "art-defenses-ext[hf]"'),
    "torchvision": Loader(_load_torchvision, "pip install torchvision"),
}
"""The collections by the word before the colon."""


def has_loader(name: str | None) -> bool:
    """Return whether a name is one of a collection's, such as ``"timm:resnet18"``."""
    return isinstance(name, str) and name.partition(":")[0] in COLLECTIONS and bool(name.partition(":")[2])


def load_pretrained(name: str) -> Pretrained:
    """Load a network of a collection.

    Args:
        name: ``"timm:NAME"``, ``"hf:REPO"`` or ``"torchvision:NAME"``; NAME and REPO may be folders of a checkpoint.

    Raises:
        InputError: for an unknown name, a package that is not installed, a checkpoint that cannot be downloaded or
            read, and weights of another architecture.
    """
    if not has_loader(name):
        raise DataError(
            f"name is {shown(name)}; one of {', '.join(f'{each}:NAME' for each in COLLECTIONS)} was expected"
        )
    collection, _, network = name.partition(":")
    try:
        pretrained = LOADERS[collection].load(network)
    except ImportError as error:
        raise DataError(
            f"model is {shown(name)}, and {collection} cannot be imported ({one_line(error)}); "
            f"`{LOADERS[collection].install}` was expected"
        ) from error
    except Exception as error:  # of other packages, the disk, the network
        raise DataError(
            f"model is {shown(name)}, which cannot be loaded ({one_line(error)}); a checkpoint that {collection} "
            "publishes, or a folder that holds one, was expected"
        ) from error
    pretrained.network.eval()
    return pretrained


def load_model(name: str, weights: str | Path | None = None, *, device: str = "cpu") -> PyTorchClassifier:
    """Return a trained classifier of a collection, for images in [0, 1], with its checkpoint's normalisation.

    Args:
        name: ``"timm:NAME"``, ``"hf:REPO"`` or ``"torchvision:NAME"``, as the collections name them; NAME and REPO may
            be folders that hold a checkpoint in the published format. For a network of your own use
            :func:`as_classifier`.
        weights: file of other weights for the same architecture, such as fine-tuned ones; None for the checkpoint's.
        device: device of the network, such as ``"cuda"``.

    Returns:
        ART's classifier; its ``input_shape`` is the size of the checkpoint's images.

    Raises:
        InputError: as :func:`.load_pretrained`, and for weights that do not fit.

    >>> from art_defenses_ext import load_model
    >>> load_model("timm:no_such_network")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    art_defenses_ext.base.errors.DataError: model is 'timm:no_such_network', which cannot be loaded ...
    """
    pretrained = load_pretrained(name)
    network = pretrained.network
    if weights is not None:
        load_weights(network, weights)
    shape = pretrained.input_shape
    check_normalisation(pretrained.mean, pretrained.std, shape[0])
    return as_classifier(
        network.to(device),
        torch.zeros(1, *shape),
        mean=pretrained.mean,
        std=pretrained.std,
        clip_values=(0.0, 1.0),
        channels_first=True,
        outputs="logits",
    )
