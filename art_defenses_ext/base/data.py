"""The images and labels of an evaluation, from arrays, tensors, loaders and data sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from art_defenses_ext.base.arrays import StoredImages
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown

EXPECTED = "a pair (x, y) of images and labels, a DataLoader or a Dataset that yields both was expected"

IMAGES, LABELS = ("pixel_values", "image", "img", "x"), ("labels", "label", "target", "y")
"""Names of images and labels in a batch or an item that is a dictionary."""


def images_and_labels(data: Any) -> tuple[Any, Any]:
    """Return images (N, ...) and labels; a loader or a data set is read once.

    Args:
        data: a pair ``(x, y)`` of arrays or tensors; a ``DataLoader``, or another iterable of batches ``(x, y)``, such
            as a list of them; or a ``Dataset`` of items ``(image, label)``. Further elements of a batch or an item,
            such as the metadata of a MAITE data set, are ignored; a batch may be a dictionary, as those of Hugging Face
            are. Labels are class indices or one-hot.

    Returns:
        Images in float32, or :class:`.StoredImages` unchanged, and labels as integers if their values are. Pixels keep
        their range, such as 0 to 255.

    Raises:
        InputError: for data of another kind, without labels or in another order each pass.
    """
    if isinstance(data, tuple | list) and not _holds_batches(data):
        if len(data) != 2:
            raise InputError(f"data is {shown(data)}; {EXPECTED}")
        return as_pixels(data[0]), as_labels(data[1])
    if isinstance(data, str | bytes | np.ndarray | Tensor | StoredImages | Mapping):
        raise InputError(f"data is {shown(data)}; {EXPECTED}")
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        raise InputError(f"data is {shown(data)}; {EXPECTED}")
    batches = list(_batches(data))
    if not batches:
        raise InputError(f"data is {shown(data)}, which yields nothing; at least one image was expected")
    images, labels = zip(*batches, strict=True)
    return _joined("images", images), _joined("labels", labels)


def _holds_batches(data: tuple[Any, ...] | list[Any]) -> bool:
    """Return whether a list is one of batches or items; the images of a pair ``(x, y)`` are no such batch."""
    return bool(data) and all(
        isinstance(batch, Mapping)
        or (isinstance(batch, tuple | list) and len(batch) > 1 and isinstance(batch[0], np.ndarray | Tensor))
        for batch in data
    )


def as_pixels(x: Any) -> Any:
    """Return images as an array of float32, if they are numbers in an array or a tensor; anything else as it is."""
    if isinstance(x, Tensor):
        x = x.detach().float().cpu().numpy() if not x.is_complex() else x
    real = isinstance(x, np.ndarray) and x.dtype.kind in "fiub" and x.ndim > 0
    return x.astype(np.float32, copy=False) if real else x


def as_labels(y: Any) -> Any:
    """Return labels as an array; whole numbers, in a column too, as indices (N,)."""
    if isinstance(y, Tensor):
        y = y.detach().cpu()
        y = (y.float() if y.dtype == torch.bfloat16 else y).numpy()
    elif isinstance(y, list) and y and all(isinstance(label, int | np.integer) for label in y):
        y = np.array(y)
    if not isinstance(y, np.ndarray):
        return y
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim == 1 and (y.dtype.kind == "b" or (y.dtype.kind == "f" and bool((np.mod(y, 1) == 0).all()))):
        return y.astype(np.int64)  # as binary losses take them
    return y


def _batches(data: Any) -> Iterator[tuple[Any, Any]]:
    """Yield images (n, ...) and labels (n, ...), batch by batch, in one pass."""
    has_places = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if isinstance(data, DataLoader):
        _check_order(data)
    elif has_places and not isinstance(data, IterableDataset | tuple | list):
        yield from _items(data)
        return
    for batch in data:
        x, y = _pair(batch, "batches")
        if np.ndim(y) == 0:  # of an iterable data set, or a loader that makes no batches
            x, y = _item(x, y)
        yield as_pixels(x), as_labels(y)


def _items(data: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the items of a map-style data set as batches of one."""
    for row in range(len(data)):
        x, y = _item(*_pair(data[row], "items"))
        if row == 0 and not np.array_equal(x, _item(*_pair(data[row], "items"))[0], equal_nan=True):
            raise InputError(
                f"data is {shown(data)}, whose first item is another image each time; one without random transforms "
                "was expected"
            )
        yield x, y


def _item(x: Any, y: Any) -> tuple[Any, Any]:
    """Return an item as a batch of one."""
    x = as_pixels(x[None] if isinstance(x, Tensor) else np.asarray(x)[None])
    y = y[None] if isinstance(y, Tensor) else np.asarray(y)[None]
    return x, as_labels(y)


def _pair(batch: Any, what: str) -> tuple[Any, Any]:
    """Return images and labels of a batch or an item."""
    if isinstance(batch, Mapping):
        names = [next((name for name in names if name in batch), None) for names in (IMAGES, LABELS)]
        if None not in names:
            return batch[names[0]], batch[names[1]]
        raise InputError(
            f"data yields {what} with the keys {', '.join(map(repr, batch))}; images under one of {', '.join(IMAGES)} "
            f"and labels under one of {', '.join(LABELS)} were expected"
        )
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        kind = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, tuple | list) else type(batch).__name__
        raise InputError(f"data yields {what} of the kind {kind}; images and labels (x, y) were expected")
    return batch[0], batch[1]


def _check_order(loader: DataLoader[Any]) -> None:
    """Refuse a loader that draws its order: a run could not be continued or repeated."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    name = type(sampler).__name__
    if "Random" in name or getattr(sampler, "shuffle", False):
        raise InputError(
            f"data is a DataLoader with a {name}, which yields another order each pass; shuffle=False was expected"
        )


def _joined(what: str, parts: Iterable[Any]) -> Any:
    """Return batches as one array."""
    parts = list(parts)
    shapes = {getattr(part, "shape", (0,))[1:] for part in parts}
    if len(shapes) > 1 or not all(isinstance(part, np.ndarray) for part in parts):
        kinds = ", ".join(sorted({str(shape) for shape in shapes} | {type(part).__name__ for part in parts}))
        raise InputError(f"data yields {what} of several shapes or kinds ({kinds}); arrays of one shape were expected")
    return np.concatenate(parts)
