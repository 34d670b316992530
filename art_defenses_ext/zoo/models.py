"""Networks by name: the papers', torchvision's for ImageNet, a small one for the digits, and the user's own.

A network that is not built in is named by the function that builds it: ``"package.module:function"``.
"""

from __future__ import annotations

import importlib
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models import resnet18, squeezenet1_1, vgg11, vgg16, vgg19

from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import DataError, one_line
from art_defenses_ext.zoo.networks import AlexLike, DigitsCNN, KoLim, LeNetLike, ResNet20, ResNet20A, WongKolter


@dataclass(frozen=True)
class ModelSpec:
    """A built-in network and the format of its inputs.

    Args:
        name: its name in ``MODELS``.
        build: returns a new, untrained network.
        dataset: its data set, a name of ``zoo.datasets.DATASETS``.
        input_shape: shape of an image (C, H, W).
        nb_classes: number of logits.
        mean: per-channel mean that is subtracted from images in [0, 1] before the network.
        std: per-channel standard deviation by which the result is divided.
        published: whether torchvision publishes weights for it under the same name (see :func:`load_published`).

    **Convention**: the normalisation belongs to the network, not to the data: a network with published weights
    keeps the normalisation that it was trained with, on any data.
    """

    name: str
    build: Callable[[], nn.Module]
    dataset: str
    input_shape: tuple[int, int, int]
    nb_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    published: bool = False


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _imagenet(name: str, build: Callable[[], nn.Module]) -> ModelSpec:
    """A network of torchvision's; its functions return it untrained by default."""
    return ModelSpec(name, build, "image_folder", (3, 224, 224), 1000, IMAGENET_MEAN, IMAGENET_STD, published=True)


_SPECS = (
    # Mean and standard deviation of the 997 training digits.
    ModelSpec("digits_cnn", DigitsCNN, "digits", (1, 8, 8), 10, (0.3048,), (0.3757,)),
    ModelSpec("lenet_like", LeNetLike, "mnist", (1, 28, 28), 10, (0.1307,), (0.3081,)),
    # Trained on images in [0, 1], without normalisation.
    ModelSpec("ko_lim", KoLim, "mnist", (1, 28, 28), 10, (0.0,), (1.0,)),
    ModelSpec("wong_kolter", WongKolter, "mnist", (1, 28, 28), 10, (0.0,), (1.0,)),
    ModelSpec("alex_like", AlexLike, "cifar10", (3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ModelSpec("resnet20", ResNet20, "cifar10", (3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ModelSpec("resnet20_a", ResNet20A, "cifar10", (3, 32, 32), 10, IMAGENET_MEAN, IMAGENET_STD),
    _imagenet("squeezenet1_1", squeezenet1_1),
    _imagenet("vgg11", vgg11),
    _imagenet("vgg16", vgg16),
    _imagenet("vgg19", vgg19),
    _imagenet("resnet18", resnet18),
)
MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}

DEFAULT_MODEL: dict[str, str] = {
    "digits": "digits_cnn",
    "mnist": "lenet_like",
    # With MNIST's normalisation, which belongs to the network (see ModelSpec).
    "fashion_mnist": "lenet_like",
    "cifar10": "resnet20",
    # With CIFAR-10's normalisation, for the same reason.
    "svhn": "resnet20",
    # The smallest of torchvision's without batch normalisation, and 5 MB of weights.
    "image_folder": "squeezenet1_1",
}


def build_model(model: str) -> nn.Module:
    """Build a network by the name of a built-in one or by a function.

    Args:
        model: a name of ``MODELS``, or ``"package.module:function"``: the module is imported, from the current
            directory too, and the function (or class) is called without arguments.

    Returns:
        The network as built; its training mode is not changed.

    Raises:
        InputError: for an unknown name; a module that is missing or fails to import; an attribute that is missing,
            cannot be called, fails, or returns something other than an ``nn.Module``.
    """
    if isinstance(model, str) and model in MODELS:
        return MODELS[model].build()
    module, colon, attribute = (model if isinstance(model, str) else "").partition(":")
    if not (module and colon and attribute):
        raise DataError(
            f"model is {shown(model)}; one of {', '.join(MODELS)} or 'package.module:function' was expected"
        )
    built = call_factory(model, module, attribute)
    if not isinstance(built, nn.Module):
        raise DataError(f"model is {model!r}, which returns a {type(built).__name__}; an nn.Module was expected")
    return built


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    entry = str(Path.cwd())
    sys.path.insert(0, entry)
    # Otherwise a module written since the last import may not be found.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(entry)


def call_factory(text: str, module: str, attribute: str, argument: str = "model") -> Any:
    """Call a user's function without arguments and return its result.

    Args:
        text: the user's input, for error messages.
        module: its module, imported from the current directory too.
        attribute: the function's name in the module.
        argument: name of the argument that holds the text.

    Raises:
        InputError: for a module that is missing or fails, and an attribute that is missing, not callable, or fails.
    """
    with _current_directory_importable():
        return _import_and_call(f"{argument} is {text!r}", module, attribute)


def _import_and_call(subject: str, module: str, attribute: str) -> Any:
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module may run any code, including sys.exit
        raise DataError(
            f"{subject}, whose module cannot be imported ({one_line(error)}); an importable module was expected"
        ) from error
    try:
        factory = operator.attrgetter(attribute)(imported)
    except AttributeError as error:
        raise DataError(f"{subject}, but {module} has no {attribute}; a function in it was expected") from error
    if not callable(factory):
        raise DataError(
            f"{subject}, which is a {type(factory).__name__}; a function that builds a network was expected"
        )
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise DataError(
            f"{subject}, which failed ({one_line(error)}); a function that builds a network without arguments was "
            "expected"
        ) from error
