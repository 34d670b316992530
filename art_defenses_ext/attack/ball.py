"""Norms: sizes, balls, projections, steepest steps and random points.

A norm is a subclass of :class:`Ball`, and its objects are the balls of that norm. All that attacks, checks and records
need of a norm is in its class, so a new norm is one new class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.declared import Kind
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown

Sizes = npt.NDArray[np.float64]
ClipValues = tuple[Any, Any] | None
"""ART's clip values: numbers, or arrays that broadcast against an image; None for no clipping."""

PRECISION = 2.0**-22
"""Maximum change of a pixel value by rounding, in units of the largest one. **Convention**: two to four units in its
last place, since an attack that adds, clips and undoes a normalisation rounds more than once."""

TOLERANCE = 1e-5
"""Maximum excess of a size over eps, as a share of eps, since attacks add up squares in float32."""

STEP_DENSITY = 0.5
"""Number of pixel values that a step in a sparse norm changes, over the square root of their number, unless the attack
adapts it. **Convention**: chosen on validation images of two sizes (``tests/benchmarks/l1_step.py``, table in
docs/evaluation.md)."""

_TINY = 1e-12  # keeps a zero vector zero instead of NaN; shorter vectors are scaled up first


@dataclass(frozen=True, init=False)
class Ball(ABC):
    """The changes of an image whose norm is at most ``eps``, in pixel values.

    A norm needs ``norm_name`` and the four abstract methods; :func:`ball_type` then finds it by its name. The norm must
    not grow when the change of a pixel value shrinks.

    Args:
        eps: radius of the ball, > 0: a number, or text such as ``"8/255"``.

    Attributes:
        norm: the number by which ART knows the norm, p for an lp norm; the class itself if ART does not know it.
        norm_name: name of the norm in records and reports.
        rule: the rule for the attacker in words, followed by the radius.
        separable: whether each pixel value may change by eps independently of the others: the ball is a cube.
        sparse: whether the steepest step changes a single pixel value: the ball has its corners on the axes.
    """

    eps: float
    norm: ClassVar[Any]
    norm_name: ClassVar[str]
    rule: ClassVar[str] = "the change's size is at most"
    separable: ClassVar[bool] = False
    sparse: ClassVar[bool] = False

    def __init__(self, eps: float | str) -> None:
        object.__setattr__(self, "eps", parse_eps(eps))

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "norm" not in vars(cls):
            cls.norm = cls
        if "norm_name" in vars(cls):
            _BALLS[cls.norm_name] = cls

    def __str__(self) -> str:
        return f"{self.norm_name} {self.eps:g}"

    def at(self, eps: float) -> Ball:
        """Return the ball of the same norm with another radius."""
        return type(self)(eps)

    # The norm, for any radius.

    @classmethod
    @abstractmethod
    def size(cls, delta: Tensor) -> Tensor:
        """Return the norm (N,) of each sample of ``delta`` (N, ...)."""

    @classmethod
    @abstractmethod
    def dual_size(cls, gradient: Tensor) -> Tensor:
        """Return the dual norm (N,): the largest first-order gain of a step of size one, by ``gradient`` (N, ...)."""

    @classmethod
    @abstractmethod
    def steepest(cls, gradient: Tensor) -> Tensor:
        """Return the step of size one that raises a loss with this ``gradient`` (N, ...) most; zero if it is zero."""

    @classmethod
    def step(cls, gradient: Tensor, share: Tensor | None = None) -> Tensor:
        """Return the step of size one of an attack along ``gradient`` (N, ...).

        Args:
            gradient: gradient of a loss to raise.
            share: share of the pixel values that change (N,); None for ``STEP_DENSITY``. Only sparse norms use it.
        """
        return cls.steepest(gradient)

    @classmethod
    def exact_sizes(cls, delta: npt.NDArray[Any]) -> Sizes:
        """Return the norm (N,) of each sample of ``delta`` (N, ...) in float64."""
        sizes: Sizes = cls.size(torch.from_numpy(delta.astype(np.float64))).numpy()
        return sizes

    @classmethod
    def size_of(cls, values: Any, shape: tuple[int, ...]) -> float:
        """Return the size of a change of an image of ``shape`` by ``values``, which broadcast against it."""
        return float(cls.exact_sizes(np.broadcast_to(values, (1, *shape)))[0])

    # The ball.

    @abstractmethod
    def project(self, delta: Tensor) -> Tensor:
        """Return the Euclidean projection of each sample of ``delta`` (N, ...) to the ball."""

    def inside(self, points: Tensor, clean: Tensor, clip_values: ClipValues, growth: Tensor | None = None) -> Tensor:
        """Return points (n, ...) moved into the balls around images ``clean`` (n, ...) and into the clip range.

        Args:
            points: the points to move.
            clean: centres of the balls.
            clip_values: lowest and highest pixel value.
            growth: factor of the radius of each ball (n,); None for eps itself.
        """
        change = points - clean
        if growth is None:
            return into_range(clean + self.project(change), clip_values)
        factor = per_sample(growth, change)
        return into_range(clean + factor * self.project(change / factor), clip_values)

    def random_inside(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Return random changes from the ball, one for each sample of ``like`` (N, ...)."""
        # The share of the ball's volume within radius r grows as r^d.
        draw = torch.rand(len(like), generator=generator, device=like.device, dtype=like.dtype)
        return self.random_on_surface(like, generator) * per_sample(draw ** (1 / like[0].numel()), like)

    def random_on_surface(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Return changes of size eps in random directions, one for each sample of ``like`` (N, ...)."""
        draw = self._random_direction(like, generator)
        return self.eps * draw / per_sample(self.size(draw).clamp_min(_TINY), draw)

    def random_extreme(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Return random extreme points of the ball: corners of a cube, any point of another surface."""
        return self.random_on_surface(like, generator)

    @staticmethod
    def _random_direction(like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.empty_like(like).normal_(generator=generator)

    # Rounding to float32. A pixel value near m is a multiple of about m 2^-23, so x + eps is rounded by that much: 1e-7
    # in [0, 1], 2e-4 in the Hounsfield units of a CT image. Sizes are therefore compared without what rounding may have
    # added, in the units of the pixels.

    def allows(self, size: float) -> bool:
        """Return whether a change of this size, from :meth:`sizes`, is inside the ball."""
        return size <= self.eps * (1 + TOLERANCE)

    def sizes(self, clean: FloatArray, adversarial: FloatArray, clip_values: ClipValues = None) -> Sizes:
        """Return the size of each change (N,), or ``eps`` if it exceeds ``eps`` only by the rounding of float32.

        Args:
            clean: images (N, ...), float32.
            adversarial: the same images after an attack.
            clip_values: the classifier's clip values, which bound the pixel values; None for the given values.
        """
        delta = np.abs(adversarial.astype(np.float64) - clean)
        whole = self.exact_sizes(delta)
        if (whole <= self.eps).all():
            return whole
        values = np.maximum(np.abs(clean), np.abs(adversarial))
        least = self.exact_sizes(np.maximum(delta - allowance(values, clip_values), 0))
        return np.where(whole <= self.eps, whole, np.maximum(least, self.eps))

    def moved_inside(self, clean: FloatArray, adversarial: FloatArray, clip_values: ClipValues) -> FloatArray:
        """Return attacked images (N, ...), with those moved into the ball that leave it by rounding alone.

        Images inside the ball do not change. Neither do images further outside, which did not leave it by rounding.

        Args:
            clean, adversarial, clip_values: as for :meth:`sizes`.
        """
        outside = self.exact_sizes(adversarial.astype(np.float64) - clean) > self.eps
        rows = np.flatnonzero(outside & (self.sizes(clean, adversarial, clip_values) <= self.eps))
        if not len(rows):
            return adversarial
        start = clean[rows].astype(np.float64)
        result = adversarial.copy()
        result[rows] = _rounded_towards(clean[rows], start + self._shrunk(adversarial[rows] - start))
        return result

    def _shrunk(self, delta: Sizes) -> Sizes:
        """Return changes (n, ...) just outside the ball, moved inside."""
        shrink = self.eps / self.exact_sizes(delta) * (1 - 1e-12)
        return delta * shrink.reshape(-1, *[1] * (delta.ndim - 1))


_BALLS: dict[str, type[Ball]] = {}


class _Lp(Ball):
    """The lp norms, which numpy and torch compute by their order."""

    order: ClassVar[float]
    dual_order: ClassVar[float]

    @classmethod
    def size(cls, delta: Tensor) -> Tensor:
        sizes: Tensor = torch.linalg.vector_norm(delta.flatten(1), ord=cls.order, dim=1)
        return sizes

    @classmethod
    def dual_size(cls, gradient: Tensor) -> Tensor:
        sizes: Tensor = torch.linalg.vector_norm(gradient.flatten(1), ord=cls.dual_order, dim=1)
        return sizes

    @classmethod
    def exact_sizes(cls, delta: npt.NDArray[Any]) -> Sizes:
        flat = delta.reshape(len(delta), -1).astype(np.float64)
        sizes: Sizes = np.linalg.norm(flat, ord=cls.order, axis=1)
        return sizes


class Linf(_Lp):
    """Each pixel value may change by at most ``eps``.

    >>> from art_defenses_ext import Linf
    >>> str(Linf("8/255")), Linf(0.1).allows(0.2)
    ('linf 0.0313725', False)
    """

    norm, norm_name, rule, separable = np.inf, "linf", "each pixel value may change by at most", True
    order, dual_order = np.inf, 1

    @classmethod
    def steepest(cls, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, delta: Tensor) -> Tensor:
        return delta.clamp(-self.eps, self.eps)

    def random_inside(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.empty_like(like).uniform_(-self.eps, self.eps, generator=generator)

    def random_extreme(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return self.eps * self.random_on_surface(like, generator).sign()

    @staticmethod
    def _random_direction(like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.empty_like(like).uniform_(-1, 1, generator=generator)

    def _shrunk(self, delta: Sizes) -> Sizes:
        return delta.clip(-self.eps, self.eps)


class L2(_Lp):
    """The change's Euclidean length is at most ``eps``.

    >>> from art_defenses_ext import L2
    >>> str(L2(0.5)), L2(0.5).allows(0.2)
    ('l2 0.5', True)
    """

    norm, norm_name, rule = 2, "l2", "the change's Euclidean length is at most"
    order, dual_order = 2, 2

    @classmethod
    def steepest(cls, gradient: Tensor) -> Tensor:
        return unit(gradient, cls.size)

    def project(self, delta: Tensor) -> Tensor:
        factor = (self.eps / self.size(delta).clamp_min(torch.finfo(delta.dtype).tiny)).clamp_max(1)
        return delta * per_sample(factor, delta)

    def random_inside(self, like: Tensor, generator: torch.Generator) -> Tensor:
        direction = self.steepest(self._random_direction(like, generator))
        radius = torch.rand(len(like), generator=generator, device=like.device, dtype=like.dtype)
        return self.eps * direction * per_sample(radius ** (1 / like[0].numel()), like)


class L1(_Lp):
    """The changes of all pixel values add up to at most ``eps``.

    Source: Croce, Hein 2021, "Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers"
    (arXiv:2103.01208), section 3, for the projection to the ball and the clip range at once; section 3.2 for the step.

    >>> from art_defenses_ext import L1
    >>> str(L1(12)), L1(12).allows(12.5)
    ('l1 12', False)
    """

    norm, norm_name, rule, sparse = 1, "l1", "the changes of all pixel values add up to at most", True
    order, dual_order = 1, np.inf

    @classmethod
    def steepest(cls, gradient: Tensor) -> Tensor:
        flat = gradient.flatten(1)
        largest = flat.abs().argmax(dim=1, keepdim=True)
        return torch.zeros_like(flat).scatter_(1, largest, flat.gather(1, largest).sign()).reshape(gradient.shape)

    @classmethod
    def step(cls, gradient: Tensor, share: Tensor | None = None) -> Tensor:
        """Return the same change for each of the pixel values with the largest slopes, including ties for the last.

        **Departure** from the published code: their number is rounded down, not up, so that it can be one.
        """
        flat = gradient.flatten(1).abs()
        count = flat.shape[1]
        if share is None:
            share = torch.full((len(flat),), STEP_DENSITY * count**-0.5, device=flat.device)
        places = count - (share * count).long().clamp(1, count)
        least = flat.sort(dim=1)[0].gather(1, places[:, None])
        signs = gradient.sign() * (flat >= least).reshape(gradient.shape)
        return signs / per_sample(cls.size(signs).clamp_min(1), signs)

    def project(self, delta: Tensor) -> Tensor:
        return nearest_of_size(delta, torch.full_like(delta, torch.inf), self._sizes(delta))

    def inside(self, points: Tensor, clean: Tensor, clip_values: ClipValues, growth: Tensor | None = None) -> Tensor:
        """Return the nearest points in ball and clip range together; clipping a projection would leave size unused."""
        low, high = (-torch.inf, torch.inf) if clip_values is None else _ends(clip_values, clean)
        change = points - clean
        room = torch.where(change > 0, high - clean, clean - low).clamp_min(0)
        sizes = self._sizes(clean) * (1 if growth is None else growth)
        return into_range(clean + nearest_of_size(change, room, sizes), clip_values)

    def _sizes(self, like: Tensor) -> Tensor:
        return torch.full((len(like),), self.eps, device=like.device, dtype=like.dtype)

    @staticmethod
    def _random_direction(like: Tensor, generator: torch.Generator) -> Tensor:
        draw = torch.empty_like(like).exponential_(generator=generator)
        return torch.where(torch.empty_like(like).uniform_(-1, 1, generator=generator) < 0, -draw, draw)


def ball_type(norm: Any) -> type[Ball]:
    """Return the class of a norm, by its name (``linf``, ``inf``, ``l1``, ``1``), by ART's number, or by the class.

    Raises:
        InputError: for anything else.
    """
    if isinstance(norm, type) and issubclass(norm, Ball):
        return norm
    if isinstance(norm, str):
        for name, ball in _BALLS.items():
            if norm.lower() in (name, name.removeprefix("l")):
                return ball
    if isinstance(norm, Real) and not isinstance(norm, bool):
        for ball in _BALLS.values():
            if ball.norm == norm:
                return ball
    *others, last = _BALLS
    raise InputError(f"norm is {shown(norm)}; {', '.join(others)} or {last} was expected")


def norms_of_art() -> tuple[str, ...]:
    """Return the names of the norms that ART's attacks know."""
    return tuple(name for name, ball in _BALLS.items() if ball.norm is not ball)


NormName = Annotated[Any, Kind("the name of a norm, such as linf or l2,", lambda norm: ball_type(norm).norm)]
"""A norm in any spelling, stored as ART's number."""


def parse_eps(eps: Any) -> float:
    """Return a radius as a number, from a number or from text such as ``"0.1"`` or ``"8/255"``.

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


def _parsed(text: str) -> float:
    numerator, slash, denominator = text.partition("/")
    return float(numerator) / float(denominator) if slash else float(text)


def unit(vector: Tensor, size: Callable[[Tensor], Tensor]) -> Tensor:
    """Return each sample of ``vector`` (N, ...) scaled to ``size`` one, however short it is; zero stays zero."""
    length = size(vector)
    largest = vector.abs().flatten(1).amax(dim=1).clamp_min(torch.finfo(vector.dtype).tiny)
    # The squares of values below 1e-19 vanish in float32, and gradients may be that small in some units of pixels.
    short = length < _TINY
    vector = torch.where(per_sample(short, vector), vector / per_sample(largest, vector), vector)
    return vector / per_sample(torch.where(short, size(vector), length).clamp_min(_TINY), vector)


def nearest_of_size(delta: Tensor, room: Tensor, size: Tensor) -> Tensor:
    """Return the changes nearest to ``delta`` (n, ...) within ``room`` that add up to at most ``size`` (n,).

    Each is ``min(max(|delta| - shift, 0), room)`` with the sign of ``delta``. The shift of a sample is zero if these
    add up to at most ``size``; otherwise it makes them add up to ``size``. Their sum is piecewise linear in the shift,
    with a kink where a change begins to shrink or vanishes, so the kinks are sorted.

    Args:
        delta: changes (n, ...).
        room: maximum length of each change (n, ...), >= 0.
        size: l1 radius of the ball of each sample (n,).

    Source: Croce, Hein 2021 (arXiv:2103.01208), proposition 2.1 and its proof.
    """
    length, room = delta.abs().flatten(1), room.flatten(1)
    # The sum is that of (length - shift)+ less that of (length - room - shift)+.
    turns, order = torch.cat([length, (length - room).clamp_min(0)], dim=1).sort(dim=1, descending=True)
    weights = torch.where(order < length.shape[1], 1.0, -1.0).double()
    slopes = weights.cumsum(dim=1)
    totals = (weights * turns).cumsum(dim=1)
    below = (totals - slopes * turns < size[:, None]).sum(dim=1, keepdim=True)  # number of kinks beyond the shift
    last = (below - 1).clamp_min(0)
    shift = (totals.gather(1, last) - size[:, None]) / slopes.gather(1, last)
    shift = torch.where(below < turns.shape[1], shift, 0).clamp_min(0)
    kept = torch.minimum((length - shift).clamp_min(0).to(delta.dtype), room)  # shortened in float64
    return delta.sign() * kept.reshape(delta.shape)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Return values (N,) in the shape that multiplies ``like`` (N, ...) sample by sample."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def into_range(x: Tensor, clip_values: ClipValues) -> Tensor:
    """Return ``x`` (N, ...) clipped to ART's ``clip_values``: numbers, or arrays that broadcast against an image."""
    if clip_values is None:
        return x
    return x.clamp(*_ends(clip_values, x))


def _ends(clip_values: tuple[Any, Any], like: Tensor) -> Any:
    """Return both ends of the clip range: two numbers, which need no copy to the device, or two tensors."""
    low, high = clip_values
    if np.ndim(low) == 0:
        return float(low), float(high)
    return tuple(torch.as_tensor(end, dtype=like.dtype).to(like.device) for end in (low, high))


def allowance(values: Any, clip_values: ClipValues) -> Any:
    """Return the maximum change of pixel values by rounding: a number, or an array that broadcasts against them.

    Args:
        values: images (N, ...); used only without clip values.
        clip_values: ART's clip values, numbers or arrays that broadcast against an image; None for no clipping.
    """
    largest = np.abs(values) if clip_values is None else np.maximum(*(np.abs(np.float64(end)) for end in clip_values))
    return PRECISION * np.asarray(largest, dtype=np.float64)


def _rounded_towards(clean: FloatArray, points: Sizes) -> FloatArray:
    """Return float64 ``points`` (n, ...) in float32, rounded towards the images, so that no change grows."""
    rounded = points.astype(np.float32)
    further = np.abs(rounded.astype(np.float64) - clean) > np.abs(points - clean)
    nearer: FloatArray = np.where(further, np.nextafter(rounded, clean), rounded)
    return nearer
