"""What float32 does to a ball: which sizes exceed it by rounding alone, and points moved back inside.

A pixel value near m is a multiple of about m 2^-23, so x + eps lies that much beside the point that was meant: 1e-7 in
[0, 1], 2e-4 in the Hounsfield units of a CT image. Sizes are therefore judged less what rounding may have added, in the
units of the pixels, whatever these are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from art_defenses_ext.attack.norms import Norm
from art_defenses_ext.base.arrays import FloatArray

PRECISION = 2.0**-22
"""How far rounding may move a pixel value, in units of the largest one. **Convention**: two to four units in its last
place, since an attack that adds, clips and undoes a normalisation rounds more than once."""

Sizes = npt.NDArray[np.float64]
ClipValues = tuple[Any, Any] | None


def allowance(values: Any, clip_values: ClipValues) -> Any:
    """How far rounding may have moved pixel values: a number, or an array that broadcasts against them.

    Args:
        values: images (N, ...); only looked at without clip values.
        clip_values: ART's, numbers or arrays that broadcast against an image; None for none.
    """
    largest = np.abs(values) if clip_values is None else np.maximum(*(np.abs(np.float64(end)) for end in clip_values))
    return PRECISION * np.asarray(largest, dtype=np.float64)


def sizes(delta: npt.NDArray[Any], norm: Norm) -> Sizes:
    """The norm of each sample of ``delta`` (N, ...), (N,)."""
    found: Sizes = np.linalg.norm(delta.reshape(len(delta), -1).astype(np.float64), ord=norm, axis=1)
    return found


def judged_sizes(clean: FloatArray, adversarial: FloatArray, norm: Norm, eps: float, clip_values: ClipValues) -> Sizes:
    """The size of each change (N,); where it exceeds ``eps`` by rounding alone, ``eps``.

    Args:
        clean: images (N, ...), float32.
        adversarial: the same images attacked.
        norm: 2 or inf.
        eps: radius of the ball.
        clip_values: ART's; None for none, where each pixel is as exact as its own value.
    """
    delta = np.abs(adversarial.astype(np.float64) - clean)
    whole = sizes(delta, norm)
    if (whole <= eps).all():
        return whole
    values = np.maximum(np.abs(clean), np.abs(adversarial))
    least = sizes(np.maximum(delta - allowance(values, clip_values), 0), norm)
    return np.where(whole <= eps, whole, np.maximum(least, eps))


def moved_inside(
    clean: FloatArray, adversarial: FloatArray, norm: Norm, eps: float, clip_values: ClipValues
) -> FloatArray:
    """Attacked images (N, ...) of which those that leave the ball by rounding alone are brought back.

    What lies inside stays as it is, and so does what lies further outside: that is no matter of rounding.

    Args:
        clean, adversarial, norm, eps, clip_values: as for :func:`judged_sizes`.
    """
    outside = sizes(adversarial.astype(np.float64) - clean, norm) > eps
    rows = np.flatnonzero(outside & (judged_sizes(clean, adversarial, norm, eps, clip_values) <= eps))
    if not len(rows):
        return adversarial
    start = clean[rows].astype(np.float64)
    delta = adversarial[rows] - start
    if norm == np.inf:
        delta = delta.clip(-eps, eps)
    else:
        shrink = eps / sizes(delta, norm) * (1 - 1e-12)
        delta = delta * shrink.reshape(-1, *[1] * (delta.ndim - 1))
    result = adversarial.copy()
    result[rows] = _rounded_towards(clean[rows], start + delta)
    return result


def _rounded_towards(clean: FloatArray, points: npt.NDArray[np.float64]) -> FloatArray:
    """float64 ``points`` (n, ...) in float32, rounded to the side of the images, so that no change grows."""
    rounded = points.astype(np.float32)
    further = np.abs(rounded.astype(np.float64) - clean) > np.abs(points - clean)
    nearer: FloatArray = np.where(further, np.nextafter(rounded, clean), rounded)
    return nearer
