"""The networks of the papers, torchvision's for ImageNet and a small one for the digits, all with plain ReLUs.

Their inputs are normalised already.

A network that is not built in is named by the function that builds it: ``"package.module:function"``.
"""

from __future__ import annotations

import importlib
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model_weights, resnet18, squeezenet1_1, vgg11, vgg16, vgg19

from art_defenses_ext.base.checkpoint import check_kinds
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import DataError, check_file, one_line

_KEYS_SHOWN = 3


class DigitsCNN(nn.Module):
    """A small network for the 8x8 digits (1, 8, 8): two convolutions, a pool, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) of normalised images (N, 1, 8, 8)."""
        return self.head(self.features(x))  # type: ignore[no-any-return]


class LeNetLike(nn.Module):
    """The JumpReLU authors' network for 28x28 grey images.

    *Source*: the code of Erichson, Yao, Mahoney 2019 (arXiv:1904.03750); the keys are those of their published
    weights. The activation comes after the pool.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.fc1 = nn.Linear(20 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 90)
        self.fc3 = nn.Linear(90, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) of normalised images (N, 1, 28, 28)."""
        x = functional.relu(functional.max_pool2d(self.conv1(x), 2))  # (N, 10, 12, 12)
        x = functional.relu(functional.max_pool2d(self.conv2(x), 2))  # (N, 20, 4, 4)
        x = functional.dropout(x.flatten(1), p=0.5, training=self.training)
        x = functional.relu(self.fc1(x))
        x = functional.relu(self.fc2(x))
        return self.fc3(x)  # type: ignore[no-any-return]


class KoLim(nn.Sequential):
    """The network for 28x28 grey images that the explanation reconstructor's authors watched.

    *Source*: the code of Ko, Lim 2021 (arXiv:2107.10480), which trains it with Adam for ten epochs in batches of 32.
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, kernel_size=3),  # (N, 32, 26, 26)
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 26 * 26, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )


class WongKolter(nn.Sequential):
    """The small network for 28x28 grey images of the defence by the convex outer adversarial polytope.

    *Source*: Wong, Kolter 2018 (arXiv:1711.00851), the MNIST network of their code; the keys are those of the weights
    that Wong, Rice, Kolter 2020 (arXiv:2001.03994) trained by PGD and published.
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, kernel_size=4, stride=2, padding=1),  # (N, 16, 14, 14)
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=4, stride=2, padding=1),  # (N, 32, 7, 7)
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 100),
            nn.ReLU(),
            nn.Linear(100, 10),
        )


class AlexLike(nn.Module):
    """The JumpReLU authors' network without residuals for 32x32 colour images.

    *Source*: the code of Erichson, Yao, Mahoney 2019 (arXiv:1904.03750): unpadded convolutions, and dropout before the
    first linear layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=3)
        self.conv2 = nn.Conv2d(64, 64, kernel_size=3)
        self.conv3 = nn.Conv2d(64, 128, kernel_size=3)
        self.conv4 = nn.Conv2d(128, 128, kernel_size=3)
        self.fc1 = nn.Linear(128 * 5 * 5, 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc3 = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) of normalised images (N, 3, 32, 32)."""
        x = functional.relu(self.conv1(x))
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)  # (N, 64, 14, 14)
        x = functional.relu(self.conv3(x))
        x = functional.max_pool2d(functional.relu(self.conv4(x)), 2)  # (N, 128, 5, 5)
        x = functional.dropout(x.flatten(1), p=0.5, training=self.training)
        x = functional.relu(self.fc1(x))
        x = functional.relu(self.fc2(x))
        return self.fc3(x)  # type: ignore[no-any-return]


class _SubsampleAndPad(nn.Module):
    """The shortcut without parameters: every other pixel, and zero channels on both sides.

    *Source*: He et al. 2016 (arXiv:1512.03385), section 4.2, option A.
    """

    def __init__(self, nb_new_channels: int) -> None:
        super().__init__()
        self.nb_new_channels = nb_new_channels

    def forward(self, x: Tensor) -> Tensor:
        before = self.nb_new_channels // 2
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.nb_new_channels - before))


def _project(nb_in: int, nb_out: int) -> nn.Module:
    """The shortcut with parameters (option B): a 1x1 convolution of stride 2."""
    return nn.Sequential(nn.Conv2d(nb_in, nb_out, kernel_size=1, stride=2, bias=False), nn.BatchNorm2d(nb_out))


def _subsample(nb_in: int, nb_out: int) -> nn.Module:
    return _SubsampleAndPad(nb_out - nb_in)


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; one ReLU between them and one after the sum."""

    def __init__(self, nb_in: int, nb_out: int, stride: int, downsample: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(nb_in, nb_out, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(nb_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(nb_out, nb_out, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(nb_out)
        self.downsample = downsample
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu1(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return self.relu2(residual + self.downsample(x))  # type: ignore[no-any-return]


def _stage(nb_in: int, nb_out: int, shortcut: Callable[[int, int], nn.Module]) -> nn.Sequential:
    """Three blocks; the first halves the image where the number of channels grows."""
    grows = nb_in != nb_out
    first = _BasicBlock(nb_in, nb_out, 2 if grows else 1, shortcut(nb_in, nb_out) if grows else nn.Identity())
    return nn.Sequential(first, *(_BasicBlock(nb_out, nb_out, 1, nn.Identity()) for _ in range(2)))


class _ResNet20Body(nn.Module):
    """What both forms share: from images (N, 3, 32, 32) to features (N, 64).

    **Convention**: convolutions start from He's normal distribution over the fan-out, as in the JumpReLU authors' code.
    """

    def __init__(self, shortcut: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, shortcut)
        self.layer2 = _stage(16, 32, shortcut)
        self.layer3 = _stage(32, 64, shortcut)
        self.avgpool = nn.AvgPool2d(8)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))  # (N, 16, 32, 32)
        x = self.layer3(self.layer2(self.layer1(x)))  # (N, 64, 8, 8)
        return self.avgpool(x).flatten(1)  # type: ignore[no-any-return]


class ResNet20(_ResNet20Body):
    """The 20-layer residual network for 32x32 colour images with 1x1 convolutions as shortcuts.

    *Source*: He et al. 2016 (arXiv:1512.03385), section 4.2 with option B; the keys are those of the JumpReLU
    authors' published weights (Erichson, Yao, Mahoney 2019, arXiv:1904.03750).
    """

    def __init__(self) -> None:
        super().__init__(_project)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) of normalised images (N, 3, 32, 32)."""
        return self.fc(self.features(x))  # type: ignore[no-any-return]


class ResNet20A(_ResNet20Body):
    """The 20-layer residual network for 32x32 colour images with shortcuts that have no parameters.

    *Source*: He et al. 2016 (arXiv:1512.03385), section 4.2 with option A; the keys are those of Yerlan Idelbayev's
    published weights (github.com/akamaster/pytorch_resnet_cifar10).
    """

    def __init__(self) -> None:
        super().__init__(_subsample)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) of normalised images (N, 3, 32, 32)."""
        return self.linear(self.features(x))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ModelSpec:
    """A built-in network and what its inputs must look like.

    Args:
        name: its name in ``MODELS``.
        build: returns a new, untrained network.
        dataset: the data set that it is meant for, a name of ``zoo.datasets.DATASETS``.
        input_shape: shape of an image (C, H, W).
        nb_classes: number of logits.
        mean: what to subtract from images in [0, 1], per channel, before the network.
        std: what to divide by after that, per channel.
        published: whether torchvision publishes weights for it under the same name (see :func:`load_published`).

    **Convention**: the normalisation belongs to the network, not to the data: a network whose weights were published
    keeps the numbers that it was trained with, on whatever data it is used.
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
    """A network of torchvision's, whose functions return it untrained unless they are asked for weights."""
    return ModelSpec(name, build, "image_folder", (3, 224, 224), 1000, IMAGENET_MEAN, IMAGENET_STD, published=True)


_SPECS = (
    # Mean and standard deviation of the 997 training digits.
    ModelSpec("digits_cnn", DigitsCNN, "digits", (1, 8, 8), 10, (0.3048,), (0.3757,)),
    ModelSpec("lenet_like", LeNetLike, "mnist", (1, 28, 28), 10, (0.1307,), (0.3081,)),
    # Trained on images as they are, in [0, 1].
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
    # With MNIST's normalisation, which goes with the network (see ModelSpec).
    "fashion_mnist": "lenet_like",
    "cifar10": "resnet20",
    # With CIFAR-10's, likewise.
    "svhn": "resnet20",
    # The smallest of torchvision's without batch normalisation, and 5 MB of weights.
    "image_folder": "squeezenet1_1",
}


def build_model(model: str) -> nn.Module:
    """Return a new network by the name of a built-in one or by the function that builds it.

    Args:
        model: a name of ``MODELS``, or ``"package.module:function"``: the module is imported, from the current
            directory too, and the function (or class) is called without arguments.

    Returns:
        The network as it was built, in whatever mode.

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
    # A module written since the last import would else be overlooked.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(entry)


def call_factory(text: str, module: str, attribute: str, argument: str = "model") -> Any:
    """What a user's function returns, called without arguments.

    Args:
        text: what the user typed, to blame.
        module: imported, from the current directory too.
        attribute: the function's name in it.
        argument: what the text was given as.

    Raises:
        InputError: for a module that is missing or fails, and a function that is missing, is none, or fails.
    """
    with _current_directory_importable():
        return _called(f"{argument} is {text!r}", module, attribute)


def _called(said: str, module: str, attribute: str) -> Any:
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module runs any code at all, scripts that end by sys.exit included
        raise DataError(
            f"{said}, whose module cannot be imported ({one_line(error)}); an importable module was expected"
        ) from error
    try:
        factory = operator.attrgetter(attribute)(imported)
    except AttributeError as error:
        raise DataError(f"{said}, but {module} has no {attribute}; a function in it was expected") from error
    if not callable(factory):
        raise DataError(f"{said}, which is a {type(factory).__name__}; a function that builds a network was expected")
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise DataError(
            f"{said}, which failed ({one_line(error)}); a function that builds a network without arguments was expected"
        ) from error


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load weights into ``model``, all of them or none.

    Args:
        model: the network; it stays on its device and is unchanged if anything fails.
        path: a ``.safetensors`` file, or one that ``torch.load(weights_only=True)`` reads. The state dict may lie
            under ``"state_dict"``, and its keys may begin with ``"module."`` (from ``nn.DataParallel``). Numbers of
            another precision, such as half, are converted to the model's; those of another kind, such as integers, are
            refused.

    Raises:
        InputError: for a missing file, one that is neither, a pickle that holds more than plain data, or keys, shapes
            or values that do not fit.

    **Convention**: the counters ``num_batches_tracked`` of batch normalisation may be missing, since networks saved
    by old versions of PyTorch have none and they matter to no prediction.
    """
    if not isinstance(model, nn.Module):
        raise DataError(f"model is a {type(model).__name__}; an nn.Module was expected")
    state = _strip_prefix(_read_state(path), model)
    _check_fit(state, model, path)
    # Tensors that fit cannot fail to load, while strict loading by itself would load some and then raise.
    model.load_state_dict(state, strict=False)


def load_published(model: nn.Module, name: str, progress: bool = True) -> None:
    """Load the ImageNet weights that torchvision publishes; downloaded once, into the cache of ``torch.hub``.

    Args:
        model: the network; it stays on its device and is unchanged if anything fails.
        name: its name in ``MODELS``, of a network that is ``published``.
        progress: show a bar while downloading.

    Raises:
        InputError: for a network without published weights, and if they can neither be found nor be downloaded.

    *Source*: torchvision's ``weights="DEFAULT"`` of the function of that name.
    """
    if name not in MODELS or not MODELS[name].published:
        raise DataError(f"name is {name!r}, whose weights torchvision does not publish; another network was expected")
    published = get_model_weights(name).DEFAULT
    try:
        state = published.get_state_dict(progress=progress, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:  # the network, the disk and a damaged file in the cache fail in a dozen ways
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise DataError(
            f"model {name} was given no weights, and the published ones could not be downloaded or read "
            f"({one_line(error)}); a file of weights, or {published.url} saved in {folder}, was expected"
        ) from error
    _check_fit(state, model, published.url)
    model.load_state_dict(state, strict=False)


def _read_state(path: str | Path) -> dict[str, Any]:
    path = check_file("weights", path, "an existing file of weights")
    if path.suffix == ".safetensors":
        return dict(_attempt(path, load_file, "which is no safetensors file"))
    state = _attempt(path, _load_torch, "which is no file of PyTorch weights, or holds more than plain data")
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise DataError(f"weights is {str(path)!r}, which holds a {type(state).__name__}; a state dict was expected")
    return dict(state)


def _load_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _attempt(path: Path, load: Callable[[Path], Any], verdict: str) -> Any:
    try:
        return load(path)
    except Exception as error:  # both readers raise a dozen types on damaged files
        raise DataError(
            f"weights is {str(path)!r}, {verdict} ({type(error).__name__}); a state dict saved as .safetensors or by "
            "torch.save, which torch.load(weights_only=True) reads, was expected"
        ) from error


def _strip_prefix(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Drop what ``nn.DataParallel`` puts before each key, unless the model's own keys are like that."""
    prefix = "module."
    if all(key.startswith(prefix) for key in model.state_dict()):
        return state
    if not all(key.startswith(prefix) for key in state):
        return state
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _check_fit(state: dict[str, Any], model: nn.Module, path: str | Path) -> None:
    said = f"weights is {str(path)!r}, whose weights do not fit {type(model).__name__}"
    expected = model.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    if missing or unexpected:
        raise DataError(f"{said}: missing {_some(missing)}, unexpected {_some(unexpected)}; its own keys were expected")
    for key, value in state.items():
        shape = tuple(value.shape) if isinstance(value, Tensor) else None
        if shape is not None and shape != tuple(expected[key].shape):
            raise DataError(f"{said}: {key} has shape {shape}; {tuple(expected[key].shape)} was expected")
    check_kinds(said, state, expected)


def _some(keys: list[str]) -> str:
    if not keys:
        return "no keys"
    more = f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
    return ", ".join(keys[:_KEYS_SHOWN]) + more
