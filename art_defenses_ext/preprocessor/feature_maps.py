"""Feature maps of a network at named layers, for feature losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.rebuild import evaluation_mode
from art_defenses_ext.zoo.catalogue import IMAGENET_MEAN, IMAGENET_STD
from art_defenses_ext.zoo.models import build_model
from art_defenses_ext.zoo.weights import load_published

VGG16_TAPS = ("features.20", "features.23", "features.27")
"""relu4_2, pool4 and relu5_2 of torchvision's VGG16, as in the code of the authors of feature losses."""


def feature_maps(network: nn.Module, x: Tensor, layers: Sequence[str]) -> tuple[list[Tensor], Any]:
    """Return the outputs of named layers in a forward pass in evaluation mode, and the network's output.

    Args:
        network: any network.
        x: its input (n, ...).
        layers: names of modules, as in ``named_modules()``; a module that runs several times counts with its last run.

    Returns:
        Feature maps in the order of ``layers``, and the network's own output.

    Raises:
        InputError: for a name that the network does not have, or a layer that did not run or returned no tensor.
    """
    modules = dict(network.named_modules())
    outputs: dict[str, Tensor] = {}
    hooks = []
    try:
        for name in layers:
            if name not in modules:
                raise InputError(
                    f"taps names {name!r}, which {type(network).__name__} does not have: {_expected_names(modules)}"
                )
            hooks.append(modules[name].register_forward_hook(_keep(outputs, name)))
        with evaluation_mode(network):
            output = network(x)
    finally:
        for hook in hooks:
            hook.remove()
    for name in layers:
        if not isinstance(outputs.get(name), Tensor):
            raise InputError(f"taps names {name!r}, which gave no tensor in a forward pass; another layer was expected")
    return [outputs[name] for name in layers], output


def _keep(outputs: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        # A clone, since the next layer may work in place.
        outputs[name] = output.clone() if isinstance(output, Tensor) else output

    return hook


def _expected_names(modules: dict[str, nn.Module]) -> str:
    return f"one of {', '.join(name for name in modules if name)} was expected"


def usual_taps(network: nn.Module) -> tuple[str, ...]:
    """Return the names of three convolutions: the last one of each third of the network.

    **Convention**: three, as the authors of feature losses use, from edges to objects; all of them if there are fewer.

    Raises:
        InputError: for a network without convolution.
    """
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    if not names:
        raise InputError(f"taps is None and {type(network).__name__} has no convolution; names of layers were expected")
    thirds = [names[len(names) * third // 3 - 1] for third in (1, 2, 3) if len(names) * third // 3]
    return tuple(dict.fromkeys(thirds))


class VGG16Features(nn.Module):
    """torchvision's VGG16 with the weights that torchvision publishes, for images in [0, 1] of one or three channels.

    **Convention**: a grey image is repeated in all three channels. Layers after relu5_2 are omitted, so images may have
    any size from 16 pixels on.

    Raises:
        InputError: if the weights cannot be downloaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, progress: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # building it draws random weights
            network: Any = build_model("vgg16")
        load_published(network, "vgg16", progress)
        self.features = network.features[:28].eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.features((x.expand(-1, 3, -1, -1) - self.mean) / self.std)  # type: ignore[no-any-return]
