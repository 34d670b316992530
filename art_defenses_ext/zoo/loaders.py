"""Trained networks of other people's collections, each with the preprocessing that belongs to its checkpoint.

A collection is a line of ``LOADERS``. Weights are read as safetensors, or by ``torch.load(weights_only=True)``; code of
a checkpoint is never run. Each loader is tested on small local checkpoints in the published format; downloads are not
tested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext.base.errors import DataError
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import one_line
from art_defenses_ext.estimator.wrap import AdaptedNetwork, as_classifier
from art_defenses_ext.training.classifier import check_normalisation
from art_defenses_ext.zoo.catalogue import COLLECTIONS
from art_defenses_ext.zoo.weights import load_weights

PROBES = np.array([[255, 255, 255], [0, 0, 0], [250, 130, 20], [10, 128, 200]], dtype=np.uint8)
"""White and black, of which an image processor makes its normalisation, and two colours that show whether it does more.
"""

TOLERANCE = 1e-4
"""Largest deviation from the normalisation, in shares of the range from black to white; a grey level is 4e-3."""


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
    colours = PROBES[:, np.arange(channels) % PROBES.shape[1]]
    processed = _processed(processor, colours, height, width)
    normalisation = _normalisation(processed, colours)
    if normalisation is None:
        raise DataError(f"its {type(processor).__name__} does more to the colours than a mean and a deviation can say")
    mean, std, reverses = normalisation
    adapted = (ReversedChannels if reverses else AdaptedNetwork)(network, "logits", None, "")
    _, *shape = processed.shape
    return Pretrained(adapted, (shape[0], shape[1], shape[2]), mean, std)


class ReversedChannels(AdaptedNetwork):
    """A network that takes the channels in reverse order, such as one trained on images in BGR."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(1))


def _processed(processor: Any, colours: Any, height: int, width: int) -> Tensor:
    """Return what a processor makes of images of one colour each, which no resizing changes: (N, C, H, W)."""
    images = [np.full((height, width, len(colour)), colour) for colour in colours]
    processed = processor(images=images, input_data_format="channels_last", return_tensors="pt").get("pixel_values")
    if not isinstance(processed, Tensor) or processed.ndim != 4 or tuple(processed.shape[:2]) != colours.shape:
        count, channels = colours.shape
        raise DataError(
            f"its {type(processor).__name__} makes no batch ({count}, {channels}, H, W) of {count} images "
            f"({channels}, {height}, {width})"
        )
    return processed.double()


def _normalisation(processed: Tensor, colours: Any) -> tuple[tuple[float, ...], tuple[float, ...], bool] | None:
    """Return the mean and deviation of each channel, and whether the channels are reversed; None if that is not all.

    Measured and not read, since the names of a processor's attributes do not say all that it does: some divide by the
    deviation twice, some do not divide by 255, and some return BGR.
    """
    height, width = processed.shape[2:]
    # In the middle, since a processor may pad at the sides.
    white, black = processed[:2, :, height // 2, width // 2]
    scale = white - black
    for reverses in (False, True):
        shares = torch.tensor(colours / 255)
        shares = shares.flip(1) if reverses else shares
        expected = (black + scale * shares)[..., None, None]
        deviation = (processed - expected).abs() / scale.abs()[:, None, None]
        if (deviation <= TOLERANCE).all():
            mean, std = (0 - black) / scale, 1 / scale
            mean, std = (mean.flip(0), std.flip(0)) if reverses else (mean, std)
            return tuple(mean.tolist()), tuple(std.tolist()), reverses
    return None


def _side(size: Any, side: str) -> int:
    """Return a side of the images, which are square if the checkpoint names only the shorter side."""
    sides = dict(size)
    value = sides.get(side)
    return int(sides["shortest_edge"] if value is None else value)


def _load_torchvision(name: str) -> Pretrained:
    from torchvision.models import get_model, get_model_weights

    published = get_model_weights(name).DEFAULT
    transforms = published.transforms()
    (side,) = transforms.crop_size
    state = published.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    network = get_model(name, weights=_already_read(published, state))
    return Pretrained(network, (3, side, side), tuple(transforms.mean), tuple(transforms.std))


def _already_read(published: Any, state: Mapping[str, Tensor]) -> Any:
    """Return a copy of published weights that gives torchvision's builder a state dict that was read here.

    Only the builder knows what else the weights imply, such as the size of a vision transformer's images or the
    transform of an Inception network's input; but its own reading of the file could run code of a checkpoint.
    """
    # Members of an enumeration are singletons: copy() returns the same one, and a change to it would stay.
    weights = object.__new__(type(published))
    vars(weights).update(vars(published), get_state_dict=lambda **_: state)
    return weights


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
