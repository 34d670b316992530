"""The data sets and networks by name, as data without heavy imports, for the help of commands."""

from __future__ import annotations

from dataclasses import dataclass

COLLECTIONS: tuple[str, ...] = ("timm", "hf", "torchvision")
"""The collections of trained networks that have a loader (``loaders.py``)."""

DATASETS: tuple[str, ...] = ("digits", "mnist", "fashion_mnist", "cifar10", "svhn", "image_folder")

CLASSES: dict[str, tuple[str, ...]] = {
    "fashion_mnist": (
        *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}
"""The names of a data set's classes, in the order of their labels; those of digits are the labels themselves."""


@dataclass(frozen=True)
class ModelSpec:
    """A built-in network and the format of its inputs.

    Args:
        name: its name in ``MODELS``.
        dataset: its data set, a name of ``DATASETS``.
        input_shape: shape of an image (C, H, W).
        nb_classes: number of logits.
        mean: per-channel mean that is subtracted from images in [0, 1] before the network.
        std: per-channel standard deviation by which the result is divided.
        published: whether torchvision publishes weights for it under the same name (see :func:`.load_published`).

    **Convention**: the normalisation belongs to the network, not to the data: a network with published weights
    keeps the normalisation that it was trained with, on any data.
    """

    name: str
    dataset: str
    input_shape: tuple[int, int, int]
    nb_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    published: bool = False


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _imagenet(name: str) -> ModelSpec:
    """A network of torchvision's."""
    return ModelSpec(name, "image_folder", (3, 224, 224), 1000, IMAGENET_MEAN, IMAGENET_STD, published=True)


_SPECS = (
    # Mean and standard deviation of the 997 training digits.
    ModelSpec("digits_cnn", "digits", (1, 8, 8), 10, (0.3048,), (0.3757,)),
    ModelSpec("lenet_like", "mnist", (1, 28, 28), 10, (0.1307,), (0.3081,)),
    # Trained on images in [0, 1], without normalisation.
    ModelSpec("ko_lim", "mnist", (1, 28, 28), 10, (0.0,), (1.0,)),
    ModelSpec("wong_kolter", "mnist", (1, 28, 28), 10, (0.0,), (1.0,)),
    ModelSpec("alex_like", "cifar10", (3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ModelSpec("resnet20", "cifar10", (3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ModelSpec("resnet20_a", "cifar10", (3, 32, 32), 10, IMAGENET_MEAN, IMAGENET_STD),
    _imagenet("squeezenet1_1"),
    _imagenet("vgg11"),
    _imagenet("vgg16"),
    _imagenet("vgg19"),
    _imagenet("resnet18"),
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
