"""Threat models: the perturbations that an attacker may add."""

from __future__ import annotations

from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.attack.ball import Ball, ClipValues, allowance, ball_type
from art_defenses_ext.base.arrays import Images
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import check_flag

COARSEST = 0.01
"""The largest rounding of float32 in units of eps. **Convention**: no ball is wider by more than this."""


Threat = Ball
"""A threat model is a ball; besides, an attacked image stays in the clip range."""


def named_threat(norm: Any, eps: float | str) -> Threat:
    """Return the threat of a norm, such as ``"linf"`` or ``"l2"``, see :func:`.ball_type`, and a radius."""
    return ball_type(norm)(eps)


def check_threat(threat: Any, classifier: PyTorchClassifier, x: Images, allow_large_eps: bool = False) -> Threat:
    """Return ``threat`` if its ball suits images ``x`` (N, ...) of ``classifier``.

    Args:
        threat: a ball, such as ``Linf(eps)``.
        classifier: source of the clip values.
        x: the images; only needed without clip values.
        allow_large_eps: accept a ball in which every image can be turned grey.

    Raises:
        InputError: for another object, an eps of the size of float32's rounding at these pixel values, or one beyond
            half the clip range without ``allow_large_eps``.
    """
    if not isinstance(threat, Ball):
        raise InputError(f"threat is {shown(threat)}; a ball such as Linf(eps) was expected")
    clip_values, shape = classifier.clip_values, tuple(classifier.input_shape)
    check_radius(threat, clip_values, shape, allow_large_eps)
    rounding = threat.size_of(allowance(_largest(x, shape) if clip_values is None else x, clip_values), shape)
    if rounding > COARSEST * threat.eps:
        raise InputError(
            f"eps is {threat.eps:g}, and float32 rounds pixels of such values by up to {rounding:.2g} in "
            f"{threat.norm_name}; at least {rounding / COARSEST:.2g} was expected"
        )
    return threat


def check_radius(threat: Threat, clip_values: ClipValues, shape: tuple[int, ...], allow_large_eps: bool) -> None:
    """Refuse a ball in which every image of this shape can be turned grey, unless ``allow_large_eps``.

    Most often such an eps is in other units than the pixels: 8 where 8/255 was meant.
    """
    check_flag("allow_large_eps", allow_large_eps)
    grey = radius_to_grey(threat, clip_values, shape)
    if grey is not None and threat.eps > grey and not allow_large_eps:
        raise InputError(
            f"eps is {threat.eps:g}, beyond half the clip range ({grey:g} in {threat.norm_name}), where every image "
            "can be turned grey; a smaller eps in the units of the pixels, or allow_large_eps=True (--allow-large-eps) "
            "was expected"
        )


def radius_to_grey(threat: Threat, clip_values: ClipValues, shape: tuple[int, ...]) -> float | None:
    """Return the radius from which every image can be turned grey in this norm; None without clip values."""
    if clip_values is None:
        return None
    low, high = (np.asarray(end, dtype=np.float64) for end in clip_values)
    return threat.size_of(np.max(high - low) / 2, shape)


def _largest(x: Images, shape: tuple[int, ...], at_once: int = 256) -> Any:
    """Return the largest magnitude (...) at each pixel over images (N, ...)."""
    largest = np.zeros(shape)
    for start in range(0, len(x), at_once):
        largest = np.maximum(largest, np.abs(np.asarray(x[start : start + at_once])).max(axis=0))
    return largest
