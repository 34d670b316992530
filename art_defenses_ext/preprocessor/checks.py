"""Checks of a restorer's images, clip values and normalisation, which bring them into one form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from torch import Tensor

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import ROUNDING, check_classifier, check_takes_images
from art_defenses_ext.estimator.pipeline import check_runs


def check_restorable(x: Any, clip_values: tuple[float, float], axes: str) -> Any:
    """Return images in the form that torch needs: native floating-point numbers without negative strides.

    Raises:
        InputError: for anything else, NaN, and values outside ``clip_values``.
    """
    if not isinstance(x, np.ndarray) or x.ndim != 4 or x.dtype.kind != "f" or x.dtype.itemsize > 8:
        what = f"{x.shape} of {x.dtype}" if isinstance(x, np.ndarray) else f"a {type(x).__name__}"
        raise InputError(f"x is {what}; images {axes} of floating-point values were expected")
    if x.size == 0:
        raise InputError("x is empty; at least one image was expected")
    check_pixels(x, clip_values)
    return np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("="))


def check_pixels(x: Any, clip_values: tuple[float, float]) -> None:
    """Refuse images, an array or a tensor, with NaN or with values outside ``clip_values`` by more than rounding."""
    low, high = clip_values
    slack = ROUNDING * max(abs(low), abs(high))
    try:
        least, most = float(x.min()), float(x.max())
    except RuntimeError:  # inside torch.func.vmap, where no value can be looked at
        return
    if not (low - slack <= least and most <= high + slack):  # written so that NaN fails too
        raise InputError(f"x ranges from {least:.9g} to {most:.9g}; values inside [{low:g}, {high:g}] were expected")


def channel_numbers(argument: str, value: Any) -> Tensor:
    """Return numbers, one for each channel, as (C, 1, 1), or one number as (1, 1, 1).

    Raises:
        InputError: for anything else.
    """
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
        numbers = array.astype(np.float64) if array.dtype.kind in "fiu" else np.empty(0)
    except (TypeError, ValueError, RuntimeError):  # such as a ragged list, or a tensor that numpy cannot read
        numbers = np.empty(0)
    one_an_axis = numbers.size == max(numbers.shape, default=1)  # not one a pixel
    if not (numbers.size and one_an_axis and np.isfinite(numbers).all()):
        raise InputError(f"{argument} is {shown(value)}; finite numbers, one or one a channel, were expected")
    return torch.tensor(numbers).reshape(-1, 1, 1)


def pixel_range(clip_values: Any) -> tuple[float, float]:
    """Return the least and the largest pixel value of ART's clip values, which may be arrays.

    Raises:
        InputError: for anything but a pair of which the first is smaller.
    """
    try:
        low, high = (float(end(values)) for end, values in zip((np.min, np.max), clip_values, strict=True))
    except (TypeError, ValueError):
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise InputError(f"clip_values is {shown(clip_values)}; (low, high) with low < high was expected")
    return low, high


def channel_ends(clip_values: Any, channels_first: bool) -> list[Tensor]:
    """Return the least and the largest pixel value of each channel, (C, 1, 1), or of all, (1, 1, 1).

    Args:
        clip_values: ART's clip values: numbers, or arrays that broadcast against an image.
        channels_first: whether images are (C, H, W); else (H, W, C).
    """
    ends = []
    for extreme, values in zip((np.min, np.max), clip_values, strict=True):
        array = np.atleast_1d(np.asarray(values, dtype=np.float64))
        if array.ndim == 3:
            array = extreme(array, axis=(1, 2) if channels_first else (0, 1))
        elif channels_first:  # they broadcast against rows of pixels
            array = extreme(array, keepdims=True)
        ends.append(torch.from_numpy(array).reshape(-1, 1, 1))
    return ends


def parts_of(classifier: PyTorchClassifier) -> dict[str, Any]:
    """Return model, clip values, layout, and the mean and deviation that ART applies after the defences, by name.

    Raises:
        InputError: for a classifier that a restorer cannot precede.
    """
    check_classifier(classifier)
    check_takes_images(classifier, "the defence")
    if classifier.clip_values is None:
        raise InputError("classifier has no clip_values; the range of its pixel values was expected")
    preprocessing = classifier.preprocessing
    if not (preprocessing is None or isinstance(preprocessing, StandardisationMeanStdPyTorch)):
        raise InputError(f"classifier has the preprocessing {type(preprocessing).__name__}; mean and std were expected")
    check_runs(classifier)
    mean, std = (0.0, 1.0) if preprocessing is None else (preprocessing.mean, preprocessing.std)
    return {
        "model": classifier.model,
        "mean": mean,
        "std": std,
        "clip_values": classifier.clip_values,
        "channels_first": classifier.channels_first,
    }
