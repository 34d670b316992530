"""Threat models: which perturbations an attacker may add."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.attack.norms import Norm, check_norm
from art_defenses_ext.attack.rounding import ClipValues, Sizes, allowance, judged_sizes, sizes
from art_defenses_ext.base.arrays import FloatArray, Images
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import InputError, check_flag

TOLERANCE = 1e-5
"""Of eps: how much further a size may be and still be that of the ball, since attacks add up squares in float32."""

COARSEST = 0.01
"""The rounding of float32 that a ball may have, in units of eps. **Convention**: no ball is wider by more than this."""


@dataclass(frozen=True, init=False)
class Threat:
    """Perturbations of an lp norm of at most ``eps``, in pixel values, that stay in the clip range.

    Args:
        eps: radius of the ball, > 0: a number, or text such as ``"8/255"``.
    """

    eps: float
    norm: ClassVar[Norm]
    norm_name: ClassVar[str]

    def __init__(self, eps: float | str) -> None:
        object.__setattr__(self, "eps", parse_eps(eps))

    def __str__(self) -> str:
        return f"{self.norm_name} {self.eps:g}"

    def at(self, eps: float) -> Threat:
        """The same norm with another radius."""
        return type(self)(eps)

    def allows(self, size: float) -> bool:
        """Whether a perturbation of this size, from :meth:`sizes`, is inside the ball."""
        return size <= self.eps * (1 + TOLERANCE)

    def sizes(self, clean: FloatArray, adversarial: FloatArray, clip_values: ClipValues = None) -> Sizes:
        """The size of each perturbation (N,); where it exceeds ``eps`` by the rounding of float32 alone, ``eps``.

        Args:
            clean: images (N, ...), float32.
            adversarial: the same images attacked.
            clip_values: the classifier's, which say how large pixel values are; None for these values themselves.
        """
        return judged_sizes(clean, adversarial, self.norm, self.eps, clip_values)


class Linf(Threat):
    """Each pixel value may change by at most ``eps``.

    >>> from art_defenses_ext import Linf
    >>> str(Linf("8/255")), Linf(0.1).allows(0.2)
    ('linf 0.0313725', False)
    """

    norm, norm_name = np.inf, "linf"


class L2(Threat):
    """The perturbation's Euclidean length is at most ``eps``.

    >>> from art_defenses_ext import L2
    >>> str(L2(0.5)), L2(0.5).allows(0.2)
    ('l2 0.5', True)
    """

    norm, norm_name = 2, "l2"


def named_threat(norm: str | Norm, eps: float | str) -> Threat:
    """The threat of a norm, such as ``"linf"`` or ``"l2"``, see :func:`.check_norm`, and a radius."""
    return Linf(eps) if check_norm(norm) == np.inf else L2(eps)


def parse_eps(eps: Any) -> float:
    """A radius as a number, from a number or from text such as ``"0.1"`` or ``"8/255"``.

    Raises:
        InputError: for anything but a finite number above zero.
    """
    try:
        number = _parsed(eps) if isinstance(eps, str) else float(eps) if isinstance(eps, Real) else np.nan
    except (ValueError, OverflowError, ZeroDivisionError):
        number = np.nan
    if isinstance(eps, bool) or not 0 < number < np.inf:
        raise InputError(f"eps is {shown(eps)}; a finite number > 0, or a fraction such as '8/255', was expected")
    return number


def check_threat(threat: Any, classifier: PyTorchClassifier, x: Images, allow_large_eps: bool = False) -> Threat:
    """Return ``threat`` if its ball suits images ``x`` (N, ...) of ``classifier``.

    Args:
        threat: ``Linf(eps)`` or ``L2(eps)``.
        classifier: gives the clip values.
        x: the images; only looked at where there are no clip values.
        allow_large_eps: whether the ball may be so large that every image can be turned grey.

    Raises:
        InputError: for another object, an eps that float32 cannot tell from its own rounding at such pixel values, or
            one beyond half the clip range without ``allow_large_eps``.
    """
    if not isinstance(threat, Linf | L2):
        raise InputError(f"threat is {shown(threat)}; Linf(eps) or L2(eps) was expected")
    clip_values, shape = classifier.clip_values, tuple(classifier.input_shape)
    check_radius(threat, clip_values, shape, allow_large_eps)
    rounding = _over_an_image(allowance(_largest(x, shape) if clip_values is None else x, clip_values), shape, threat)
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
    """The radius from which a ball of this norm reaches the grey image from every other; None without clip values."""
    if clip_values is None:
        return None
    low, high = (np.asarray(end, dtype=np.float64) for end in clip_values)
    return _over_an_image(np.max(high - low) / 2, shape, threat)


def _over_an_image(values: Any, shape: tuple[int, ...], threat: Threat) -> float:
    """The size of a change by these ``values``, which broadcast against an image."""
    return float(sizes(np.broadcast_to(values, (1, *shape)), threat.norm)[0])


def _largest(x: Images, shape: tuple[int, ...], at_once: int = 256) -> Any:
    """The largest pixel values (...) in magnitude of images (N, ...), place by place."""
    largest = np.zeros(shape)
    for start in range(0, len(x), at_once):
        largest = np.maximum(largest, np.abs(np.asarray(x[start : start + at_once])).max(axis=0))
    return largest


def _parsed(text: str) -> float:
    numerator, slash, denominator = text.partition("/")
    return float(numerator) / float(denominator) if slash else float(text)
