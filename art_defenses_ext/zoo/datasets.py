"""The data sets of the examples and measurements, as arrays: images in [0, 1], channels first, and class indices.

``digits`` ships with scikit-learn, and ``image_folder`` is a folder of the user's own. The others are the published
files as torchvision lays them out; what is missing is downloaded once, and a machine without network access is told
which files to put where.
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
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, MNIST, SVHN, FashionMNIST

from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.validation import DataError, check_choice, check_count, check_folder, last_line
from art_defenses_ext.zoo.image_folder import LabelledFiles, common_size, find_images, read_half

DATASETS: tuple[str, ...] = ("digits", "mnist", "fashion_mnist", "cifar10", "svhn", "image_folder")

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
        x: images (N, C, H, W), float32, in [0, 1]; test images of a large folder are read when they are asked for.
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
        nb_validation: how many images make up the validation part: the last training images.
        read_training: returns all images that are not for testing; raises InputError where there are none to train on.
        read_test: returns the test images.
        read_validation: returns the validation part where it does not come out of the training images.
        open_classes: the labels are places in a list of classes that may be longer than ``nb_classes``, so that a
            network may know more classes.

    **Convention**: the validation part comes out of the training images, so that whatever is tuned on it (a jump, a
    threshold) has not seen a test image. ``train`` and ``validation`` are views of one array.
    """

    name: str
    input_shape: tuple[int, int, int]
    nb_classes: int
    nb_validation: int
    read_training: Callable[[], Split] = field(repr=False)
    read_test: Callable[[], Split] = field(repr=False)
    read_validation: Callable[[], Split] | None = field(default=None, repr=False)
    open_classes: bool = False

    @cached_property
    def train(self) -> Split:
        """The images to train on."""
        return Split(self._training.x[: -self.nb_validation], self._training.y[: -self.nb_validation])

    @cached_property
    def validation(self) -> Split:
        """The images to tune on."""
        if self.read_validation is not None:
            return self.read_validation()
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
    """Where torchvision expects the files of a data set, below its root.

    Args:
        loader: reads a part, and downloads the files of both if asked to.
        call: how torchvision is asked to download them.
        folder: where they lie, below the root.
        files: their names.
        input_shape: shape of an image (C, H, W).
    """

    loader: Callable[..., Any]
    call: str
    folder: Path
    files: tuple[str, ...]
    input_shape: tuple[int, int, int]


def _idx_files(loader: Any) -> tuple[str, ...]:
    return tuple(Path(archive).stem for archive, _ in loader.resources)


def _batch_files(loader: Any) -> tuple[str, ...]:
    return (*(name for name, _ in loader.train_list + loader.test_list), loader.meta["filename"])


def _mat_files(loader: Any) -> tuple[str, ...]:
    return tuple(loader.split_list[split][1] for split in ("train", "test"))


def _svhn(root: str | Path, train: bool, download: bool) -> SimpleNamespace:
    """Return a part of torchvision's SVHN in the form of its other data sets, which download both parts at once."""
    if download:
        SVHN(root, "train", download=True)
    part = SVHN(root, "train" if train else "test", download=download)
    return SimpleNamespace(data=part.data.transpose(0, 2, 3, 1), targets=part.labels)


_PUBLISHED = {
    "mnist": _Published(MNIST, "MNIST(root, download=True)", Path("MNIST/raw"), _idx_files(MNIST), (1, 28, 28)),
    "fashion_mnist": _Published(
        FashionMNIST,
        "FashionMNIST(root, download=True)",
        Path("FashionMNIST/raw"),
        _idx_files(FashionMNIST),
        (1, 28, 28),
    ),
    "cifar10": _Published(
        CIFAR10, "CIFAR10(root, download=True)", Path(CIFAR10.base_folder), _batch_files(CIFAR10), (3, 32, 32)
    ),
    "svhn": _Published(_svhn, "SVHN(root, split, download=True)", Path(), _mat_files(SVHN), (3, 32, 32)),
}


def load_dataset(name: str, root: str | Path | None = None, *, size: int | None = None) -> Dataset:
    """Return a data set by its name; published files that are missing are downloaded.

    Args:
        name: one of ``DATASETS``.
        root: folder that holds the files as torchvision lays them out; for ``image_folder``, the folder of images
            itself, or one that holds it as ``nips2017``. By default the folder that the environment variable
            ``ART_DEFENSES_DATA`` names, else ``~/.cache/art-defenses-ext``, which is made when needed.
        size: for ``image_folder`` alone: the height and width, in pixels, of the images that are wanted. By default
            the size that all images share, else 224, which all must then reach.

    Returns:
        The data set. ``digits`` is split 997 / 300 / 500, each class in proportion; of the published files, the last
        5,000 training images are the validation part and the published test images the test part. ``image_folder``
        has no training images, and halves of which each image is in one (below).

    Raises:
        InputError: for an unknown name, a root that does not exist, or files that are missing and cannot be
            downloaded; for a folder of images without labels, with an image too few or too many of them, or with
            images of several sizes that do not reach 224; and, when a part is first asked for, for a file that cannot
            be read or is not the published one, or training images of ``image_folder``.

    *Source*: scikit-learn's ``load_digits``; torchvision's ``MNIST``, ``FashionMNIST``, ``CIFAR10`` and ``SVHN`` (the
    cropped digits, without the extra ones; class 0 is the digit 0); for ``image_folder``, torchvision's ``ImageFolder``
    and the evaluation that it publishes with its ImageNet weights.

    **Convention**: ``digits`` needs no files, so it ignores the environment variable; a ``root`` that was passed must
    exist even so.

    **Convention** (layout of ``image_folder``): JPEG and PNG files beside a ``labels.csv``, whose columns ``file`` (or
    ``image_id``; the ending may be missing) and ``label`` (or ``class_index``, from 0) give each image its class; or a
    folder of images for each class, numbered in the order of their names as torchvision does. Files whose names begin
    with a dot are overlooked. With a ``labels.csv``, ``nb_classes`` is the largest label + 1 and the network may know
    more: nothing in it says how long the list of classes is. Folders are all classes that there are.

    **Convention** (halves of ``image_folder``): in the order of the names (with the class folder's), the first, third,
    ... image is for testing and the second, fourth, ... for validation. Within each half the order is mixed once and
    for all, since the first so many images are often all that an attack can afford, and by name they would be of a few
    classes.

    **Convention** (size of ``image_folder``): an image of the size wanted is taken as it is. Any other is resized,
    bilinearly, until its shorter side is 256 / 224 of that size, and cropped in the middle. Colours are made RGB,
    transparency is ignored, and so is the orientation that a camera noted: all as torchvision does.
    """
    check_choice("name", name, DATASETS)
    if root is not None:
        check_folder("root", root)
    if size is not None:
        check_count("size", size)
        if name != "image_folder":
            raise DataError(f"size is {size}, but name is {name!r}; a size only with image_folder was expected")
    if name == "digits":
        return _digits()
    if name == "image_folder":
        return _image_folder(_find_root(root), size)
    return _published(name, _find_root(root))


def data_found(root: str | Path | None = None) -> dict[str, bool]:
    """Which published data sets lie below a folder, by name; nothing is downloaded.

    Args:
        root: as for :func:`load_dataset`.
    """
    if root is not None:
        check_folder("root", root)
    at = _find_root(root)
    return {name: all((at / one.folder / file).is_file() for file in one.files) for name, one in _PUBLISHED.items()}


def _find_root(root: str | Path | None) -> Path:
    if root is None and (variable := os.environ.get(ROOT_VARIABLE)):
        check_folder(f"the environment variable {ROOT_VARIABLE}", variable)
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
        raise DataError(
            f"name is {name!r}, but {', '.join(missing)} are missing and could not be downloaded "
            f"({last_line(error)}); the files that torchvision.datasets.{published.call} fetches on a machine "
            f"with network access were expected in {folder}"
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
        raise _damaged(name, root, last_line(error)) from error
    x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)  # (N, C, H, W)
    if x.shape[1:] != published.input_shape or y.shape != x.shape[:1]:
        raise _damaged(name, root, f"images of shape {x.shape} for {y.size} labels")
    if len(y) <= (NB_VALIDATION if train else 0) or y.min() < 0 or y.max() >= NB_CLASSES:
        raise _damaged(name, root, f"{len(y)} labels, or some outside 0 to {NB_CLASSES - 1}")
    scaled = np.ascontiguousarray(x, dtype=np.float32)
    scaled /= 255
    return Split(scaled, y)


def _damaged(name: str, root: Path, reason: str) -> DataError:
    published = _PUBLISHED[name]
    # The folder may be the root, which holds other data too: what to delete is named file by file.
    return DataError(
        f"name is {name!r}, but the files in {root / published.folder} cannot be used ({reason}); "
        f"the published ones were expected: delete {', '.join(published.files)} to have them downloaded again"
    )


def _image_folder(root: Path, size: int | None) -> Dataset:
    images = find_images(root)
    height, width = common_size(images) if size is None else (size, size)
    return Dataset(
        name="image_folder",
        input_shape=(3, height, width),
        nb_classes=images.nb_classes,
        nb_validation=len(images.files) // 2,
        read_training=_refuse_training,
        read_test=partial(_half, images, 0, height, width),
        read_validation=partial(_half, images, 1, height, width),
        open_classes=images.open_classes,
    )


def _half(images: LabelledFiles, first: int, height: int, width: int) -> Split:
    x, y = read_half(images, first, height, width)
    return Split(x, y)  # type: ignore[arg-type]  # stored images only where an evaluation reads them


def _refuse_training() -> Split:
    raise DataError(
        "the data set is image_folder, whose images serve validation and testing only; "
        "a data set with training images was expected"
    )
