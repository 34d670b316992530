"""Folders of a user's own images: files, labels and pixels."""

from __future__ import annotations

import csv
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from PIL import Image

from art_defenses_ext.base.arrays import FloatArray, Images, IntArray, StoredImages
from art_defenses_ext.base.errors import DataError
from art_defenses_ext.base.validation import last_line

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision's ``ImageFolder``."""

IMAGE_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WebP")
"""Their formats, which Pillow writes in capitals."""

LABELS_FILE = "labels.csv"
FILE_COLUMNS = ("file", "image_id")
LABEL_COLUMNS = ("label", "class_index")
NIPS2017_FOLDER = "nips2017"
IMAGENET_SIZE = 224
IMAGENET_RESIZE = 256
IMAGES_SEED = 0
MAX_PART_BYTES = 4 * 2**30
"""Validation images, and test images up to this size (7,133 of 224 x 224), are one array in memory. Larger test
parts are read during the evaluation."""


@dataclass(frozen=True)
class LabelledFiles:
    """The images of a folder in the order of their names.

    Args:
        folder: their folder.
        files: their paths.
        labels: their class indices.
        nb_classes: number of classes that the labels or folders imply.
        open_classes: whether there may be more classes.
    """

    folder: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    nb_classes: int
    open_classes: bool


def _no_use(folder: Path, problem: str) -> DataError:
    return DataError(f"name is 'image_folder', but {folder} {problem}")


def find_images(root: Path) -> LabelledFiles:
    """Find the images of ``root`` itself, else of ``nips2017`` in it, else of a folder in it for each class.

    Raises:
        InputError: for no folder, one that cannot be listed, fewer than two images, and labels that are missing, too
            many or none.
    """
    try:
        return _find(root)
    except OSError as error:
        raise _no_use(
            root, f"cannot be read ({last_line(error)}); folders that this user may list were expected"
        ) from error


def _find(root: Path) -> LabelledFiles:
    if not root.is_dir():
        raise _no_use(root, "is no folder; one with images and their labels was expected")
    candidates = [folder for folder in (root, root / NIPS2017_FOLDER) if folder.is_dir()]
    flat = [folder for folder in candidates if (folder / LABELS_FILE).is_file() or _images_in(folder)]
    images = _with_labels_file(flat[0]) if flat else _with_class_folders(root)
    if len(images.files) < 2:
        raise _no_use(images.folder, "holds a single image; two or more, to tune on one half, were expected")
    return images


def _images_in(folder: Path) -> list[Path]:
    return _by_name(path for path in folder.iterdir() if _is_image(path.name) and path.is_file())


def _images_below(folder: Path) -> list[Path]:
    """Return the images of a folder and of all folders in it, in the order in which torchvision lists them."""
    images: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        images += [Path(parent, name) for name in names if _is_image(name)]
    return sorted(images, key=lambda path: (path.parent.as_posix(), path.name))


def _raise(error: OSError) -> NoReturn:
    """Raise the error of a folder, which ``os.walk`` would else leave out."""
    raise error


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_ENDINGS


def _by_name(paths: Iterable[Path]) -> list[Path]:
    # Paths compare differently on Windows, where case is ignored.
    return sorted((path for path in paths if not path.name.startswith(".")), key=lambda path: path.name)


def _with_class_folders(root: Path) -> LabelledFiles:
    folders = _by_name(path for path in root.iterdir() if path.is_dir())
    inside = [_images_below(folder) for folder in folders]
    if len(folders) < 2 or not all(inside):
        empty = [folder.name for folder, files in zip(folders, inside, strict=True) if not files]
        held = f"the folder {empty[0]} without an image" if empty else f"{len(folders)} folder(s) of images"
        raise _no_use(
            root,
            f"holds {held}; {', '.join(IMAGE_ENDINGS)} files in a folder for each of two or more classes, or with a "
            f"{LABELS_FILE}, were expected",
        )
    labels = [label for label, files in enumerate(inside) for _ in files]
    return LabelledFiles(root, tuple(file for files in inside for file in files), tuple(labels), len(folders), False)


def _with_labels_file(folder: Path) -> LabelledFiles:
    files = _images_in(folder)
    labelled = (folder / LABELS_FILE).is_file()
    if not (files and labelled):
        raise _no_use(
            folder,
            f"holds {len(files)} images and {'a' if labelled else 'no'} {LABELS_FILE}; images, and one with the "
            f"columns {FILE_COLUMNS[0]} and {LABEL_COLUMNS[0]}, were expected",
        )
    labels = _match(_read_labels(folder / LABELS_FILE), files, folder)
    return LabelledFiles(folder, tuple(files), tuple(labels), max(labels) + 1, True)


def _read_labels(path: Path) -> list[tuple[str, int]]:
    """Return the names and class indices that a file of labels lists."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:  # spreadsheets put a mark before the first column
            reader = csv.DictReader(lines)
            columns = [_column(reader.fieldnames or (), known, path) for known in (FILE_COLUMNS, LABEL_COLUMNS)]
            # A line that is too short holds None.
            rows = [(reader.line_num, [(row[column] or "").strip() for column in columns]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _no_use(
            path, f"cannot be read ({last_line(error)}); a file of comma-separated values was expected"
        ) from error
    return [(name, _class_index(text, line, path)) for line, (name, text) in rows]


def _column(names: Sequence[str], known: Sequence[str], path: Path) -> str:
    matches = [name for name in names if name in known]
    if len(matches) != 1:
        raise _no_use(
            path, f"has the columns {', '.join(names) or 'of an empty file'}; one {' or '.join(known)} was expected"
        )
    return matches[0]


def _class_index(text: str, line: int, path: Path) -> int:
    # isdecimal takes the digits of all scripts; a number of ten places is no class either.
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise _no_use(path, f"says {text!r} in line {line}; a class index, a whole number from 0, was expected")
    return int(text)


def _match(listed: list[tuple[str, int]], files: list[Path], folder: Path) -> list[int]:
    """Return the label of each file; a name without its extension must match a single file."""
    by_name: dict[str, list[Path]] = {}
    for file in files:
        by_name.setdefault(file.name, []).append(file)
        by_name.setdefault(file.stem, []).append(file)
    labels: dict[Path, int] = {}
    for name, label in listed:
        matches = by_name.get(name, [])
        if len(matches) != 1:
            raise _no_use(folder, f"holds {len(matches)} images {name!r} of {LABELS_FILE}; exactly one was expected")
        if matches[0] in labels:
            raise _no_use(
                folder, f"has a {LABELS_FILE} that lists {matches[0].name} twice; one label each was expected"
            )
        labels[matches[0]] = label
    missing = [file.name for file in files if file not in labels]
    if missing:
        raise _no_use(
            folder,
            f"has a {LABELS_FILE} without {missing[0]} ({len(missing)} such); a label for each image was expected",
        )
    return [labels[file] for file in files]


def common_size(images: LabelledFiles) -> tuple[int, int]:
    """Return the height and width that all images share, else the size to which all can be cropped.

    Raises:
        InputError: for several sizes of which one is below 224, and a file that is no image.
    """
    sizes: dict[Path, tuple[int, int]] = {file: _open(file, _size) for file in images.files}
    if len(set(sizes.values())) == 1:
        return next(iter(sizes.values()))
    smallest = min(images.files, key=lambda file: min(sizes[file]))
    if min(sizes[smallest]) < IMAGENET_SIZE:
        height, width = sizes[smallest]
        raise _no_use(
            images.folder,
            f"holds images of several sizes, of which {smallest.name} has {height} x {width} pixels; one size, or at "
            f"least {IMAGENET_SIZE} x {IMAGENET_SIZE} to be cropped to, was expected",
        )
    return IMAGENET_SIZE, IMAGENET_SIZE


def read_half(images: LabelledFiles, first: int, height: int, width: int) -> tuple[Images, IntArray]:
    """Return every other image from ``first`` on and its label, in the shuffled order.

    Args:
        images: all images of the folder.
        first: 0 for the test half, 1 for the validation half.
        height, width: size of each image.

    Returns:
        Images (N, 3, H, W), float32, in [0, 1], read on demand if they do not fit into memory; class indices (N,),
        int64.

    Raises:
        InputError: for a validation half that does not fit into memory, and a file that is no image.
    """
    chosen = np.arange(first, len(images.files), 2)
    # RandomState's stream is frozen; that of default_rng may change with a release of NumPy.
    chosen = np.random.RandomState(IMAGES_SEED).permutation(chosen)
    stored = ImageFiles([images.files[index] for index in chosen], height, width)
    labels = np.array(images.labels, dtype=np.int64)[chosen]
    if 4 * math.prod(stored.shape) <= MAX_PART_BYTES:
        return np.asarray(stored), labels
    if first == 1:
        raise _no_use(
            images.folder,
            f"holds {len(images.files)} images, of which the {len(chosen)} for validation do not fit into memory at "
            f"{height} x {width} pixels; a defence that needs none, or fewer images, were expected",
        )
    return stored, labels


class ImageFiles(StoredImages):
    """Image files, decoded on demand.

    Args:
        files: their paths.
        height, width: size of each image; others are resized and cropped to it.
    """

    def __init__(self, files: Sequence[Path], height: int, width: int) -> None:
        self.files, self.shape = files, (len(files), 3, height, width)

    def __getitem__(self, rows: slice) -> ImageFiles:
        return ImageFiles(self.files[rows], *self.shape[2:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> FloatArray:
        x = np.empty(self.shape, dtype=np.float32)
        height, width = self.shape[2:]
        for place, file in enumerate(self.files):
            x[place] = _open(file, partial(_pixels, height=height, width=width))
        x /= 255
        return x

    def fingerprint(self) -> str:
        """Return a hash of the files' bytes, in their order, and of the size."""
        digest = hashlib.sha256(str(self.shape).encode())
        for file in self.files:
            digest.update(hashlib.sha256(_bytes(file)).digest())
        return digest.hexdigest()


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise _unusable(file, error) from error


def _open(file: Path, use: Callable[[Image.Image], Any]) -> Any:
    """Return ``use`` of an image; an error names a file that is not an image."""
    try:
        with Image.open(file, formats=[name.upper() for name in IMAGE_FORMATS]) as image:
            return use(image)
    except Exception as error:  # Pillow raises many types on damaged files, SyntaxError and struct.error too
        raise _unusable(file, error) from error


def _unusable(file: Path, error: Exception) -> DataError:
    *names, last = IMAGE_FORMATS
    return _no_use(file, f"cannot be used ({last_line(error)}); a {', '.join(names)} or {last} image was expected")


def _size(image: Image.Image) -> tuple[int, int]:
    return image.height, image.width


def _pixels(image: Image.Image, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return the image (3, height, width), cropped if it has another size."""
    if image.mode.startswith(("I", "F")):
        raise ValueError("pixels of more than 8 bits, whose white is not known")
    colours = image.convert("RGB")
    if _size(colours) != (height, width):
        shorter = round(min(height, width) * IMAGENET_RESIZE / IMAGENET_SIZE)
        from torchvision.transforms.functional import center_crop, resize

        colours = center_crop(resize(colours, shorter), [height, width])
    return np.asarray(colours).transpose(2, 0, 1)
