"""Data sets as arrays: images in [0, 1], channels first, and class indices.

``digits`` ships with scikit-learn, and ``image_folder`` is a folder of the user's own. The others are the published
files as torchvision lays them out. Missing files are downloaded once; without network access the error names the files
and their folder.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from http.client import HTTPException
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.errors import DataError
from art_defenses_ext.base.validation import check_choice, check_count, check_folder, last_line
from art_defenses_ext.zoo.catalogue import DATASETS
from art_defenses_ext.zoo.image_folder import LabelledFiles, common_size, find_images, read_half

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
        x: images (N, C, H, W), float32, in [0, 1]; test images of a large folder are read on demand.
        y: class indices (N,), int64.
    """

    x: FloatArray
    y: IntArray


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in three disjoint parts; each file is read when a part of it is first used.

    Args:
        name: one of ``DATASETS``.
        input_shape: shape of an image (C, H, W).
        nb_classes: number of classes.
        nb_validation: size of the validation part: the last training images.
        read_training: returns all images but the test images; raises InputError if there are no training images.
        read_test: returns the test images.
        read_validation: returns the validation part if it is not a part of the training images.
        open_classes: whether there may be more classes than ``nb_classes``, so that a network may have more outputs.

    **Convention**: the validation part is taken from the training images, so that parameters tuned on it (a jump, a
    threshold) do not depend on test images. ``train`` and ``validation`` are views of one array.
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
        """The training images."""
        return Split(self._training.x[: -self.nb_validation], self._training.y[: -self.nb_validation])

    @cached_property
    def validation(self) -> Split:
        """The validation images, on which parameters are tuned."""
        if self.read_validation is not None:
            return self.read_validation()
        return Split(self._training.x[-self.nb_validation :], self._training.y[-self.nb_validation :])

    @cached_property
    def test(self) -> Split:
        """The test images."""
        return self.read_test()

    @cached_property
    def _training(self) -> Split:
        return self.read_training()


@dataclass(frozen=True)
class _Published:
    """The files that torchvision expects of a data set, relative to its root.

    Args:
        loader: reads a part, and downloads the files of both on request.
        folder: their folder, relative to the root.
        files: their names.
        input_shape: shape of an image (C, H, W).
    """

    loader: Callable[..., Any]
    folder: Path
    files: tuple[str, ...]
    input_shape: tuple[int, int, int]


def _idx_files(loader: Any) -> tuple[str, ...]:
    return tuple(Path(archive).stem for archive, _ in loader.resources)


def _svhn(root: str | Path, train: bool, download: bool) -> SimpleNamespace:
    """Return a part of torchvision's SVHN in the form of its other data sets, with both parts downloaded at once."""
    from torchvision.datasets import SVHN

    if download:
        SVHN(root, "train", download=True)
    part = SVHN(root, "train" if train else "test", download=download)
    return SimpleNamespace(data=part.data.transpose(0, 2, 3, 1), targets=part.labels)


@cache
def _published_sets() -> dict[str, _Published]:
    from torchvision.datasets import CIFAR10, MNIST, SVHN, FashionMNIST  # here, since it takes as long as torch

    batches = CIFAR10.train_list + CIFAR10.test_list
    cifar10 = (*(name for name, _ in batches), str(CIFAR10.meta["filename"]))
    svhn = tuple(SVHN.split_list[split][1] for split in ("train", "test"))
    return {
        "mnist": _Published(MNIST, Path("MNIST/raw"), _idx_files(MNIST), (1, 28, 28)),
        "fashion_mnist": _Published(FashionMNIST, Path("FashionMNIST/raw"), _idx_files(FashionMNIST), (1, 28, 28)),
        "cifar10": _Published(CIFAR10, Path(CIFAR10.base_folder), cifar10, (3, 32, 32)),
        "svhn": _Published(_svhn, Path(), svhn, (3, 32, 32)),
    }


def load_dataset(name: str, root: str | Path | None = None, *, size: int | None = None) -> Dataset:
    """Return a data set by its name; published files that are missing are downloaded.

    Args:
        name: one of ``DATASETS``.
        root: folder that holds the files as torchvision lays them out; for ``image_folder``, the folder of images
            itself, or one that contains it as ``nips2017``. The default is the folder in the environment variable
            ``ART_DEFENSES_DATA``, else ``~/.cache/art-defenses-ext``, which is created if needed.
        size: for ``image_folder`` only: the height and width of the images in pixels. The default is
            the size that all images share, else 224, which no image may then be below.

    Returns:
        The data set. ``digits`` is split 997 / 300 / 500, each class in proportion; of the published files, the last
        5,000 training images are the validation part and the published test images the test part. ``image_folder``
        has no training images; one half of it is for validation, the other for testing (below).

    Raises:
        InputError: for an unknown name, a root that does not exist or cannot be read, or files that are missing and
            cannot be downloaded; for a folder of images whose labels are missing or do not match the images, or with
            images of several sizes of which one is below 224; and, when a part is first used, for a file that cannot
            be read or is not the published one, or for training images of ``image_folder``.

    *Source*: scikit-learn's ``load_digits``; torchvision's ``MNIST``, ``FashionMNIST``, ``CIFAR10`` and ``SVHN`` (the
    cropped digits, without the extra ones; class 0 is the digit 0); for ``image_folder``, torchvision's ``ImageFolder``
    and the evaluation that it publishes with its ImageNet weights.

    **Convention**: ``digits`` needs no files, so it ignores the environment variable; a ``root`` that is passed must
    nevertheless exist.

    **Convention** (layout of ``image_folder``): images beside a ``labels.csv``, whose columns ``file`` (or
    ``image_id``; the extension may be missing) and ``label`` (or ``class_index``, from 0) give each image its class;
    or a folder for each class, numbered in the order of their names, with the images in it and in the folders in it,
    as in torchvision. Images are the files with the endings that torchvision takes. **Departure**: files and folders
    whose names begin with a dot are ignored, since programs keep their own there. With a ``labels.csv``,
    ``nb_classes`` is the largest label + 1 and the network may have more outputs, since the file does not state the
    number of classes. Folders are assumed to be all classes.

    **Convention** (halves of ``image_folder``): in the order of the names (with the folders'), the first, third, ...
    image is for testing and the second, fourth, ... for validation. Each half is shuffled in a fixed order, since
    evaluations often use the first images only, and in the order of names these would be of a few classes.

    **Convention** (size of ``image_folder``): an image of the requested size is not changed. Any other is resized,
    bilinearly, until its shorter side is 256 / 224 of that size, and centre-cropped. Colours are converted to RGB;
    transparency and the camera's orientation are ignored: all as in torchvision.
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
    """Return which published data sets a folder contains, by name; nothing is downloaded.

    Args:
        root: as for :func:`load_dataset`.

    Raises:
        InputError: for a root that does not exist or cannot be read.
    """
    if root is not None:
        check_folder("root", root)
    folder = _find_root(root)
    return {name: not _missing_files(spec, folder) for name, spec in _published_sets().items()}


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
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = _digits_order()[part]
    x = digits.images[chosen, None] / 16  # (N, 1, 8, 8): the grey levels are 0 to 16
    return Split(x.astype(np.float32), digits.target[chosen].astype(np.int64))


def _digits_order() -> npt.NDArray[np.intp]:
    """Return an order of the digits in which any run of neighbours holds each class in proportion, to one image.

    Each class is shuffled and spread evenly over [0, 1]; sorting all images by this position interleaves the classes.
    """
    from sklearn.datasets import load_digits

    y = load_digits().target
    # RandomState's stream is frozen; that of default_rng may change with a release of NumPy.
    random = np.random.RandomState(DIGITS_SEED)
    place = np.empty(len(y))
    for label in range(NB_CLASSES):
        members = random.permutation(np.flatnonzero(y == label))
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.argsort(place, kind="stable")


def _published(name: str, root: Path) -> Dataset:
    published = _published_sets()[name]
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
    published = _published_sets()[name]
    folder = root / published.folder
    missing = _missing_files(published, root)
    if not missing:
        return
    try:
        _download(published, folder, missing)
    except (OSError, RuntimeError, HTTPException) as error:
        raise DataError(
            f"name is {name!r}, but {', '.join(missing)} are missing and could not be downloaded "
            f"({last_line(error)}); the files that torchvision.datasets downloads on a machine with network access "
            f"were expected in {folder}"
        ) from error


def _missing_files(published: _Published, root: Path) -> list[str]:
    folder = root / published.folder
    try:
        return [file for file in published.files if not (folder / file).is_file()]
    except OSError as error:
        raise DataError(
            f"root is {str(root)!r}, of which {folder} cannot be read ({last_line(error)}); a folder whose files this "
            "user may read was expected"
        ) from error


def _download(published: _Published, folder: Path, missing: list[str]) -> None:
    """Download beside the folder and move the missing files in at the end, so that a failure changes nothing."""
    # The nearest existing folder is on the same file system, so that moving is renaming.
    anchor = next(path for path in (folder, *folder.parents) if path.is_dir())
    with tempfile.TemporaryDirectory(dir=anchor, prefix=".art-defenses-download-") as scratch:
        with contextlib.redirect_stdout(sys.stderr):
            published.loader(scratch, train=False, download=True)
        folder.mkdir(parents=True, exist_ok=True)
        for file in missing:
            (Path(scratch) / published.folder / file).replace(folder / file)


def _read_published(name: str, root: Path, train: bool) -> Split:
    published = _published_sets()[name]
    try:
        data = published.loader(root, train=train, download=False)
        x, y = np.asarray(data.data), np.asarray(data.targets, dtype=np.int64)
    except Exception as error:  # torchvision's readers raise many types on damaged files, AssertionError too
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
    published = _published_sets()[name]
    # The folder may be the root, which holds other data too, so the files to delete are listed.
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
    return Split(x, y)  # type: ignore[arg-type]  # stored images only for test parts


def _refuse_training() -> Split:
    raise DataError(
        "the data set is image_folder, whose images serve validation and testing only; "
        "a data set with training images was expected"
    )
