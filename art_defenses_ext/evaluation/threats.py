"""Threat models: which perturbations an attacker may add."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from art_defenses_ext.attack.norms import Norm
from art_defenses_ext.validation import check_positive


@dataclass(frozen=True)
class Threat:
    """Perturbations of an lp norm of at most ``eps``, in pixel values, that stay in the clip range.

    Args:
        eps: radius of the ball, > 0.
    """

    eps: float
    norm: ClassVar[Norm]
    norm_name: ClassVar[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", check_positive("eps", self.eps))

    def __str__(self) -> str:
        return f"{self.norm_name} {self.eps:g}"

    def at(self, eps: float) -> Threat:
        """The same norm with another radius."""
        return type(self)(eps)

    def allows(self, size: float) -> bool:
        """Whether a perturbation of this size is inside the ball, but for the rounding of float32."""
        return size <= self.eps * (1 + 1e-5) + 1e-6


class Linf(Threat):
    """Each pixel value may change by at most ``eps``.

    >>> from art_defenses_ext import Linf
    >>> str(Linf(8 / 255)), Linf(0.1).allows(0.2)
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


def named_threat(norm_name: str, eps: float) -> Threat:
    """The threat of that name, ``"linf"`` or ``"l2"``."""
    return {"linf": Linf, "l2": L2}[norm_name](eps)
