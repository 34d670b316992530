"""The data sets of the examples and measurements, as arrays: images in [0, 1], channels first, and class indices.

``digits`` ships with scikit-learn. The others are the published files as torchvision lays them out; what is missing
is downloaded once, and a machine without network access is told which files to put where.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, MNIST, FashionMNIST

from art_defenses_ext.validation import FloatArray, InputError, IntArray

DATASETS: tuple[str, ...] = ("digits", "mnist", "fashion_mnist", "cifar10")

ROOT_VARIABLE = "ART_DEFENSES_DATA"
DEFAULT_ROOT = Path("~/.cache/art-defenses-ext")

NB_CLASSES = 10
NB_VALIDATION = 5_000

DIGITS_SEED = 0
DIGITS_VALIDATION = 300
DIGITS_TEST = 500


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set.

    Args:
        x: images (N, C, H, W), float32, in [0, 1].
        y: class indices (N,), int64.
    """

    x: FloatArray
    y: IntArray


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in three parts that share no image; each file is read when a part of it is first asked for.

    Args:
        name: one of ``DATASETS``.
        input_shape: shape of an image (C, H, W).
        nb_classes: number of classes.
        nb_validation: how many of the last training images make up the validation part.
        read_training: returns all images that are not for testing.
        read_test: returns the test images.

    **Convention**: the validation part comes out of the training images, so that whatever is tuned on it (a jump, a
    threshold) has not seen a test image. ``train`` and ``validation`` are views of one array.
    """

    name: str
    input_shape: tuple[int, int, int]
    nb_classes: int
    nb_validation: int
    read_training: Callable[[], Split] = field(repr=False)
    read_test: Callable[[], Split] = field(repr=False)

    @cached_property
    def train(self) -> Split:
        """The images to train on."""
        return Split(self._training.x[: -self.nb_validation], self._training.y[: -self.nb_validation])

    @cached_property
    def validation(self) -> Split:
        """The images to tune on."""
        return Split(self._training.x[-self.nb_validation :], self._training.y[-self.nb_validation :])

    @cached_property
    def test(self) -> Split:
        """The images to measure on."""
        return self.read_test()

    @cached_property
    def _training(self) -> Split:
        return self.read_training()


@dataclass(frozen=True)
class _Published:
    """Where torchvision expects the files of a data set, below its root."""

    loader: Callable[..., Any]
    folder: Path
    files: tuple[str, ...]
    input_shape: tuple[int, int, int]


def _idx_files(loader: Any) -> tuple[str, ...]:
    return tuple(Path(archive).stem for archive, _ in loader.resources)


def _batch_files(loader: Any) -> tuple[str, ...]:
    return (*(name for name, _ in loader.train_list + loader.test_list), loader.meta["filename"])


_PUBLISHED = {
    "mnist": _Published(MNIST, Path("MNIST/raw"), _idx_files(MNIST), (1, 28, 28)),
    "fashion_mnist": _Published(FashionMNIST, Path("FashionMNIST/raw"), _idx_files(FashionMNIST), (1, 28, 28)),
    "cifar10": _Published(CIFAR10, Path(CIFAR10.base_folder), _batch_files(CIFAR10), (3, 32, 32)),
}


def load_dataset(name: str, root: str | Path | None = None) -> Dataset:
    """Return a data set by its name; files that are missing are downloaded.

    Args:
        name: one of ``DATASETS``.
        root: folder that holds the files as torchvision lays them out. By default the folder that the environment
            variable ``ART_DEFENSES_DATA`` names, else ``~/.cache/art-defenses-ext``, which is made when needed.

    Returns:
        The data set. ``digits`` is split 997 / 300 / 500, each class in proportion; of the others, the last 5,000
        training images are the validation part and the published test images the test part.

    Raises:
        InputError: for an unknown name, a root that does not exist, or files that are missing and cannot be
            downloaded; and, when a part is first asked for, if its files are not the published ones.

    *Source*: scikit-learn's ``load_digits``; torchvision's ``MNIST``, ``FashionMNIST`` and ``CIFAR10``.

    **Convention**: ``digits`` needs no files, so it ignores the environment variable; a ``root`` that was passed must
    exist even so.
    """
    if name not in DATASETS:
        raise InputError(f"name is {name!r}; one of {', '.join(DATASETS)} was expected")
    if root is not None:
        _check_folder(root, "root")
    if name == "digits":
        return _digits()
    return _published(name, _find_root(root))


def _check_folder(root: str | Path, argument: str) -> None:
    # Path("") is the current directory, which nobody means by an empty name.
    if not isinstance(root, (str, Path)) or not str(root) or not Path(root).expanduser().is_dir():
        shown = str(root) if isinstance(root, Path) else root
        raise InputError(f"{argument} is {shown!r}; an existing folder was expected")


def _find_root(root: str | Path | None) -> Path:
    if root is None and (variable := os.environ.get(ROOT_VARIABLE)):
        _check_folder(variable, f"the environment variable {ROOT_VARIABLE}")
        root = variable
    # Absolute, since the files are read later, when the current directory may be another.
    return Path(root or DEFAULT_ROOT).expanduser().absolute()


def _digits() -> Dataset:
    first_test = len(_digits_order()) - DIGITS_TEST
    return Dataset(
        name="digits",
        input_shape=(1, 8, 8),
        nb_classes=NB_CLASSES,
        nb_validation=DIGITS_VALIDATION,
        read_training=partial(_read_digits, slice(None, first_test)),
        read_test=partial(_read_digits, slice(first_test, None)),
    )


def _read_digits(part: slice) -> Split:
    digits = load_digits()
    chosen = _digits_order()[part]
    x = digits.images[chosen, None] / 16  # (N, 1, 8, 8): the grey levels are 0 to 16
    return Split(x.astype(np.float32), digits.target[chosen].astype(np.int64))


def _digits_order() -> npt.NDArray[np.intp]:
    """Return an order of the digits in which any run of neighbours holds each class in proportion, to one image.

    Each class is shuffled and spread evenly over [0, 1]; sorting all by their place there interleaves the classes.
    """
    y = load_digits().target
    # RandomState's stream is frozen for good, where that of default_rng may change with a release of NumPy.
    random = np.random.RandomState(DIGITS_SEED)
    place = np.empty(len(y))
    for label in range(NB_CLASSES):
        members = random.permutation(np.flatnonzero(y == label))
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.argsort(place, kind="stable")


def _published(name: str, root: Path) -> Dataset:
    published = _PUBLISHED[name]
    _ensure_files(name, root)
    return Dataset(
        name=name,
        input_shape=published.input_shape,
        nb_classes=NB_CLASSES,
        nb_validation=NB_VALIDATION,
        read_training=partial(_read_published, name, root, train=True),
        read_test=partial(_read_published, name, root, train=False),
    )


def _ensure_files(name: str, root: Path) -> None:
    published = _PUBLISHED[name]
    folder = root / published.folder
    missing = [file for file in published.files if not (folder / file).is_file()]
    if not missing:
        return
    try:
        _download(published, folder, missing)
    except (OSError, RuntimeError, HTTPException) as error:
        raise InputError(
            f"name is {name!r}, but {', '.join(missing)} are missing and could not be downloaded "
            f"({_reason(error)}); the files that torchvision.datasets.{published.loader.__name__}(root, download=True) "
            f"fetches on a machine with network access were expected in {folder}"
        ) from error


def _download(published: _Published, folder: Path, missing: list[str]) -> None:
    """Download next to the folder and move the missing files in at the end, so that a failure leaves no trace."""
    # The nearest folder that exists lies on the same file system, so that moving is renaming.
    anchor = next(path for path in (folder, *folder.parents) if path.is_dir())
    with tempfile.TemporaryDirectory(dir=anchor, prefix=".art-defenses-download-") as scratch:
        with contextlib.redirect_stdout(sys.stderr):
            published.loader(scratch, train=False, download=True)
        folder.mkdir(parents=True, exist_ok=True)
        for file in missing:
            (Path(scratch) / published.folder / file).replace(folder / file)


def _read_published(name: str, root: Path, train: bool) -> Split:
    published = _PUBLISHED[name]
    try:
        data = published.loader(root, train=train, download=False)
        x, y = np.asarray(data.data), np.asarray(data.targets, dtype=np.int64)
    except Exception as error:  # torchvision's readers trip over a damaged file in many ways, by assertions too
        raise _damaged(name, root, _reason(error)) from error
    x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)  # (N, C, H, W)
    if x.shape[1:] != published.input_shape or len(x) != len(y):
        raise _damaged(name, root, f"images of shape {x.shape} for {len(y)} labels")
    if len(y) <= (NB_VALIDATION if train else 0) or y.min() < 0 or y.max() >= NB_CLASSES:
        raise _damaged(name, root, f"{len(y)} labels, or some outside 0 to {NB_CLASSES - 1}")
    scaled = np.ascontiguousarray(x, dtype=np.float32)
    scaled /= 255
    return Split(scaled, y)


def _damaged(name: str, root: Path, reason: str) -> InputError:
    folder = root / _PUBLISHED[name].folder
    return InputError(
        f"name is {name!r}, but the files in {folder} cannot be used ({reason}); "
        "the published ones were expected: delete the folder to have them downloaded again"
    )


def _reason(error: BaseException) -> str:
    """Return the type of an error and the last line of its text: torchvision lists what it tried, the cause last."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
