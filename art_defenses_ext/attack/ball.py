"""What a norm is: how large a change is, the ball of all that are not larger, and the way uphill in it.

A norm is a subclass of :class:`Ball`, and its objects are the balls of that norm. Everything that attacks, checks and
records have to know of a norm stands in its class; whoever adds one writes that class.
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
"""ART's: numbers, or arrays that broadcast against an image; None for none."""

PRECISION = 2.0**-22
"""How far rounding may move a pixel value, in units of the largest one. **Convention**: two to four units in its last
place, since an attack that adds, clips and undoes a normalisation rounds more than once."""

TOLERANCE = 1e-5
"""Of eps: how much further a size may be and still be that of the ball, since attacks add up squares in float32."""

STEP_DENSITY = 0.5
"""How many pixel values a step in a sparse norm changes, over the square root of their number, unless the attack adapts
it. **Convention**: chosen on validation images of two sizes (``tests/benchmarks/l1_step.py``, table in
docs/evaluation.md)."""

_TINY = 1e-12  # keeps a zero vector zero instead of NaN; shorter vectors are scaled up before


@dataclass(frozen=True, init=False)
class Ball(ABC):
    """Changes of an image of a norm of at most ``eps``, in pixel values.

    A norm needs ``norm_name`` and the four abstract methods; a class with a name is known by it from then on, see
    :func:`ball_type`. The norm must not grow where a pixel value's change shrinks.

    Args:
        eps: radius of the ball, > 0: a number, or text such as ``"8/255"``.

    Attributes:
        norm: the norm as ART has it; the class itself where ART knows none.
        norm_name: as it stands in records and reports.
        rule: what the attacker may do, in words that go before the radius.
        separable: whether each pixel value may change by eps whatever the others do: the ball is a cube.
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
        """The same norm with another radius."""
        return type(self)(eps)

    # The norm, whatever the radius.

    @classmethod
    @abstractmethod
    def size(cls, delta: Tensor) -> Tensor:
        """The norm of each sample of ``delta`` (N, ...) -> (N,)."""

    @classmethod
    @abstractmethod
    def dual_size(cls, gradient: Tensor) -> Tensor:
        """What a step of size one along each ``gradient`` (N, ...) gains at most -> (N,): the dual norm."""

    @classmethod
    @abstractmethod
    def steepest(cls, gradient: Tensor) -> Tensor:
        """The step of size one along which a loss with this ``gradient`` (N, ...) rises fastest; zero where it is."""

    @classmethod
    def step(cls, gradient: Tensor, share: Tensor | None = None) -> Tensor:
        """The step of size one that an attack takes along ``gradient`` (N, ...).

        Args:
            gradient: of a loss to raise.
            share: of the pixel values, how many change (N,); None for ``STEP_DENSITY``. Only sparse norms look at it.
        """
        return cls.steepest(gradient)

    @classmethod
    def exact_sizes(cls, delta: npt.NDArray[Any]) -> Sizes:
        """The norm of each sample of ``delta`` (N, ...) in float64, (N,)."""
        sizes: Sizes = cls.size(torch.from_numpy(delta.astype(np.float64))).numpy()
        return sizes

    @classmethod
    def size_of(cls, values: Any, shape: tuple[int, ...]) -> float:
        """The size of a change of an image of ``shape`` by ``values``, which broadcast against it."""
        return float(cls.exact_sizes(np.broadcast_to(values, (1, *shape)))[0])

    # The ball.

    @abstractmethod
    def project(self, delta: Tensor) -> Tensor:
        """The point of the ball nearest to each sample of ``delta`` (N, ...) in the Euclidean sense."""

    def inside(self, points: Tensor, clean: Tensor, clip_values: ClipValues, growth: Tensor | None = None) -> Tensor:
        """Points (n, ...) moved into the balls around images ``clean`` (n, ...) and into the clip range.

        Args:
            points: to be moved.
            clean: the centres.
            clip_values: least and largest pixel value.
            growth: factor of the radius of each ball (n,); None for eps itself.
        """
        change = points - clean
        if growth is None:
            return into_range(clean + self.project(change), clip_values)
        factor = per_sample(growth, change)
        return into_range(clean + factor * self.project(change / factor), clip_values)

    def random_inside(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Random changes from the ball, one for each sample of ``like`` (N, ...)."""
        # The share of the ball's volume within radius r grows as r^d.
        draw = torch.rand(len(like), generator=generator, device=like.device, dtype=like.dtype)
        return self.random_on_surface(like, generator) * per_sample(draw ** (1 / like[0].numel()), like)

    def random_on_surface(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Changes of size eps in random directions, one for each sample of ``like`` (N, ...)."""
        draw = self._random_direction(like, generator)
        return self.eps * draw / per_sample(self.size(draw).clamp_min(_TINY), draw)

    def random_extreme(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Random changes of size eps that a plane parts from the rest: a cube's corners, any of another surface."""
        return self.random_on_surface(like, generator)

    @staticmethod
    def _random_direction(like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.empty_like(like).normal_(generator=generator)

    # What float32 does to it. A pixel value near m is a multiple of about m 2^-23, so x + eps lies that much beside
    # the point that was meant: 1e-7 in [0, 1], 2e-4 in the Hounsfield units of a CT image. Sizes are therefore judged
    # less what rounding may have added, in the units of the pixels, whatever these are.

    def allows(self, size: float) -> bool:
        """Whether a change of this size, from :meth:`sizes`, is inside the ball."""
        return size <= self.eps * (1 + TOLERANCE)

    def sizes(self, clean: FloatArray, adversarial: FloatArray, clip_values: ClipValues = None) -> Sizes:
        """The size of each change (N,); where it exceeds ``eps`` by the rounding of float32 alone, ``eps``.

        Args:
            clean: images (N, ...), float32.
            adversarial: the same images attacked.
            clip_values: the classifier's, which say how large pixel values are; None for these values themselves.
        """
        delta = np.abs(adversarial.astype(np.float64) - clean)
        whole = self.exact_sizes(delta)
        if (whole <= self.eps).all():
            return whole
        values = np.maximum(np.abs(clean), np.abs(adversarial))
        least = self.exact_sizes(np.maximum(delta - allowance(values, clip_values), 0))
        return np.where(whole <= self.eps, whole, np.maximum(least, self.eps))

    def moved_inside(self, clean: FloatArray, adversarial: FloatArray, clip_values: ClipValues) -> FloatArray:
        """Attacked images (N, ...) of which those that leave the ball by rounding alone are brought back.

        What lies inside stays as it is, and so does what lies further outside: that is no matter of rounding.

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
        """Changes (n, ...) just outside the ball, moved inside."""
        shrink = self.eps / self.exact_sizes(delta) * (1 - 1e-12)
        return delta * shrink.reshape(-1, *[1] * (delta.ndim - 1))


_BALLS: dict[str, type[Ball]] = {}


class _Lp(Ball):
    """The norms that numpy and torch know by their order."""

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
        """The same change of each of the pixel values with the largest slopes; all of those that tie for the last.

        **Departure** from the published code: their number is rounded down, not up, so that it can come down to one.
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
        """The nearest points in ball and clip range at once: to clip after a projection would leave size unused."""
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
    """The class of a norm, by its name (``linf``, ``inf``, ``l1``, ``1``), by ART's number, or the class itself.

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


NormName = Annotated[Any, Kind("the name of a norm, such as linf or l2,", lambda norm: ball_type(norm).norm)]
"""A norm in any spelling, kept as ART has it."""


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


def _parsed(text: str) -> float:
    numerator, slash, denominator = text.partition("/")
    return float(numerator) / float(denominator) if slash else float(text)


def unit(vector: Tensor, size: Callable[[Tensor], Tensor]) -> Tensor:
    """Each sample of ``vector`` (N, ...) brought to ``size`` one, however short it is; a zero one stays zero."""
    length = size(vector)
    largest = vector.abs().flatten(1).amax(dim=1).clamp_min(torch.finfo(vector.dtype).tiny)
    # The squares of values below 1e-19 vanish in float32, and a pixel unit may make every gradient so small.
    short = length < _TINY
    vector = torch.where(per_sample(short, vector), vector / per_sample(largest, vector), vector)
    return vector / per_sample(torch.where(short, size(vector), length).clamp_min(_TINY), vector)


def nearest_of_size(delta: Tensor, room: Tensor, size: Tensor) -> Tensor:
    """The changes nearest to ``delta`` (n, ...) that add up to at most ``size`` (n,), none of which exceeds its room.

    Each is ``min(max(|delta| - shift, 0), room)`` with the sign of ``delta``. The shift of a sample is zero where these
    add up to no more than ``size``; else it makes them add up to it. Their sum is linear in the shift between two
    of the values at which a change begins to shrink or vanishes, so these are sorted.

    Args:
        delta: changes.
        room: how far each may go into the direction of ``delta`` (n, ...), >= 0.
        size: of the ball of each sample, in l1.

    Source: Croce, Hein 2021 (arXiv:2103.01208), proposition 2.1 and its proof.
    """
    length, room = delta.abs().flatten(1), room.flatten(1)
    # The sum is that of (length - shift)+ less that of (length - room - shift)+.
    turns, order = torch.cat([length, (length - room).clamp_min(0)], dim=1).sort(dim=1, descending=True)
    weights = torch.where(order < length.shape[1], 1.0, -1.0).double()
    slopes = weights.cumsum(dim=1)
    totals = (weights * turns).cumsum(dim=1)
    below = (totals - slopes * turns < size[:, None]).sum(dim=1, keepdim=True)  # how many turns are too large a shift
    last = (below - 1).clamp_min(0)
    shift = (totals.gather(1, last) - size[:, None]) / slopes.gather(1, last)
    shift = torch.where(below < turns.shape[1], shift, 0).clamp_min(0)
    kept = torch.minimum((length - shift).clamp_min(0).to(delta.dtype), room)  # shortened in float64
    return delta.sign() * kept.reshape(delta.shape)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values (N,) shaped to multiply ``like`` (N, ...) sample by sample."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def into_range(x: Tensor, clip_values: ClipValues) -> Tensor:
    """``x`` (N, ...) moved into ART's ``clip_values``: numbers, or arrays that broadcast against an image."""
    if clip_values is None:
        return x
    return x.clamp(*_ends(clip_values, x))


def _ends(clip_values: tuple[Any, Any], like: Tensor) -> Any:
    """Both ends of the clip range: two numbers, which need no copy to the device, or two tensors."""
    low, high = clip_values
    if np.ndim(low) == 0:
        return float(low), float(high)
    return tuple(torch.as_tensor(end, dtype=like.dtype).to(like.device) for end in (low, high))


def allowance(values: Any, clip_values: ClipValues) -> Any:
    """How far rounding may have moved pixel values: a number, or an array that broadcasts against them.

    Args:
        values: images (N, ...); only looked at without clip values.
        clip_values: ART's, numbers or arrays that broadcast against an image; None for none.
    """
    largest = np.abs(values) if clip_values is None else np.maximum(*(np.abs(np.float64(end)) for end in clip_values))
    return PRECISION * np.asarray(largest, dtype=np.float64)


def _rounded_towards(clean: FloatArray, points: Sizes) -> FloatArray:
    """float64 ``points`` (n, ...) in float32, rounded to the side of the images, so that no change grows."""
    rounded = points.astype(np.float32)
    further = np.abs(rounded.astype(np.float64) - clean) > np.abs(points - clean)
    nearer: FloatArray = np.where(further, np.nextafter(rounded, clean), rounded)
    return nearer
