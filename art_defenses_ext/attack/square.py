"""Square: random search by queries that changes one square of an image at a time.

Source: Andriushchenko, Croce, Flammarion, Hein 2020, "Square Attack: a query-efficient black-box adversarial attack
via random search" (arXiv:1912.00049), algorithms 1 to 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor

from art_defenses_ext.attack.ball import Ball, ClipValues, into_range, per_sample
from art_defenses_ext.attack.base import BallAttack
from art_defenses_ext.attack.losses import Logits, margin
from art_defenses_ext.base.declared import Count, Flag, number
from art_defenses_ext.base.layout import channels_to_back, channels_to_front

HALVE_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries, of 10,000, at which the squares' area halves
SMALLEST_SCALE = 0.01  # smallest scale of an l2 bump, in units of eps


def square(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    generator: torch.Generator,
    max_queries: int = 5000,
    p_init: float = 0.8,
    targeted: bool = False,
    channels_first: bool = True,
    clip_values: ClipValues = None,
    start: Tensor | None = None,
) -> Tensor:
    """Return the points of lowest margin (N, ...) of a random search in the balls around images ``x`` (N, ...).

    Args:
        logits: the network under attack.
        x: clean images (N, ...).
        y: labels (N,).
        ball: the ball in which to search around each image.
        generator: source of the squares.
        max_queries: number of forward passes per image.
        p_init: share of the image that the first squares cover.
        targeted: whether ``y`` are classes to reach.
        channels_first: whether images of three dimensions are (C, H, W), not (H, W, C).
        clip_values: lowest and highest pixel value.
        start: start of the search (N, ...); None for stripes or tiles.
    """
    layout = _Layout(x, channels_first, ball, clip_values)

    @torch.no_grad()
    def margins_of(planes: Tensor, labels: Tensor) -> Tensor:
        margins = margin(logits(layout.images(planes), labels), labels)
        return -margins if targeted else margins

    result = x.clone()
    active = torch.arange(len(x), device=x.device)
    clean = layout.planes(x)
    first = clean + _first_perturbation(clean, ball, generator) if start is None else layout.planes(start)
    current = layout.inside(first, clean)
    lowest = margins_of(current, y)
    for query in range(1, max_queries):
        if query % 10 == 0:  # finding the broken images waits for the device
            result[active] = layout.images(current)
            unbroken = (lowest >= 0).nonzero().squeeze(1)
            active, clean, current, lowest = active[unbroken], clean[unbroken], current[unbroken], lowest[unbroken]
            if len(active) == 0:
                return result
        halvings = sum(query > limit * max_queries / 10_000 for limit in HALVE_AT)
        side = _sides(clean, p_init / 2**halvings)
        proposed = layout.inside(_propose(clean, current, side, layout, generator), clean)
        margins = margins_of(proposed, y[active])
        better = margins < lowest
        current = torch.where(per_sample(better, current), proposed, current)
        lowest = torch.where(better, margins, lowest)
    result[active] = layout.images(current)
    return result


@dataclass(eq=False, repr=False)
class Square(BallAttack):
    """Square attack with separate squares for each image, in which each query changes the image.

    Args:
        estimator, norm, eps: see :class:`BallAttack`.
        max_queries: number of forward passes per image.
        p_init: share of the image that the first squares cover.
        targeted: as in ART: ``y`` is the class to reach, not the class to leave.
        **options: see :class:`TensorAttack`; gradient modes have no effect.

    Raises:
        InputError: for a parameter that cannot be used, or an estimator that ART would misread.

    **Departure** from the published code: squares are drawn for each image, and can reach its last row and column. The
    schedule of their size is always stretched to ``max_queries``. Images need not be square, and may have one or two
    dimensions, or be volumes, in which a square is a cube. A square that would not change the image gets the opposite
    sign. In l2 a bump is added to the perturbation in the window, at a random scale from 1/100 of eps to eps, and every
    other proposal first clears a second window. The published rule replaces the whole window, which is too coarse near
    an optimum. In l1 the rule is that of l2, and the result is projected to ball and clip range together.
    """

    max_queries: Count = 5000
    p_init: Annotated[float, number("a share above 0 and up to 1", lambda share: 0 < share <= 1)] = 0.8
    targeted: Flag = False

    function = staticmethod(square)


@dataclass(frozen=True)
class _Layout:
    """Images like ``x`` (N, ...) as planes (n, C, ..., H, W), and their bounds."""

    x: Tensor
    channels_first: bool
    ball: Ball
    clip_values: ClipValues

    def planes(self, images: Tensor) -> Tensor:
        """Return images (n, ...) as (n, C, H, W), volumes as (n, C, D, H, W)."""
        if images.ndim == 4 and not self.channels_first:
            return channels_to_front(images)
        return images.reshape(len(images), *[1] * (4 - images.ndim), *images.shape[1:])

    def images(self, planes: Tensor) -> Tensor:
        """Return planes as images (n, ...), the inverse of :meth:`planes`."""
        if self.x.ndim == 4 and not self.channels_first:
            return channels_to_back(planes)
        return planes.reshape(-1, *self.x.shape[1:])

    def inside(self, planes: Tensor, clean: Tensor) -> Tensor:
        """Return planes (n, C, ..., H, W) moved into the clip range; in l1 into ball and range together."""
        if self.ball.sparse:
            return self.planes(self.ball.inside(self.images(planes), self.images(clean), self.clip_values))
        return self.planes(into_range(self.images(planes), self.clip_values))


def _sides(planes: Tensor, share: float) -> tuple[int, ...]:
    """Return the sides of windows that cover a share of the image: equal, unless the image is too narrow."""
    lengths = planes.shape[2:]
    volume = share * float(np.prod(lengths))
    sides: list[int] = []
    side = max(round(volume ** (1 / len(lengths))), 1)
    for axis, length in enumerate(lengths, 1):
        sides.append(min(side, length))
        if side > length and axis < len(lengths):  # the other sides become longer
            side = max(round((volume / float(np.prod(sides))) ** (1 / (len(lengths) - axis))), 1)
    return tuple(sides)


def _first_perturbation(planes: Tensor, ball: Ball, generator: torch.Generator) -> Tensor:
    """Return the perturbation (n, C, ..., H, W) at the start of the search: stripes or tiles."""
    count, channels, *lengths = planes.shape
    if ball.separable:  # vertical stripes
        stripes = _signs((count, channels, *[1] * (len(lengths) - 1), lengths[-1]), planes, generator)
        return ball.eps * stripes.expand(planes.shape)
    tiles = _signs((count, channels, *(-(-length // 5) for length in lengths)), planes, generator)
    for axis, length in enumerate(lengths, 2):
        tiles = tiles.repeat_interleave(5, axis).narrow(axis, 0, length)
    return ball.eps * tiles / per_sample(ball.size(tiles), tiles)


def _propose(
    clean: Tensor, current: Tensor, side: tuple[int, ...], layout: _Layout, generator: torch.Generator
) -> Tensor:
    """Return the next points to query (n, C, ..., H, W), not yet moved into the clip range."""
    ball = layout.ball
    window = _Window.draw(current, side, generator)
    signs = _signs((*current.shape[:2], *[1] * (current.ndim - 2)), current, generator)
    if not ball.separable:
        return _propose_bump(clean, current, window, signs, ball, generator)
    proposed = torch.where(window.mask, clean + ball.eps * signs, current)
    idle = (layout.inside(proposed, clean) == current).flatten(1).all(dim=1)
    flipped = torch.where(window.mask, clean - ball.eps * signs, current)
    return torch.where(per_sample(idle, current), flipped, proposed)


def _propose_bump(
    clean: Tensor, current: Tensor, window: _Window, signs: Tensor, ball: Ball, generator: torch.Generator
) -> Tensor:
    delta = current - clean
    draw = torch.rand(len(current), 2, generator=generator, device=current.device, dtype=current.dtype)
    other = _Window.draw(current, window.side, generator)
    clear = other.mask & per_sample(draw[:, 0] < 0.5, current).bool()
    scale = per_sample(ball.eps * SMALLEST_SCALE ** draw[:, 1], current)
    moved = torch.where(clear, 0, delta) + scale * signs * window.bump
    size = ball.size(moved).clamp_min(torch.finfo(moved.dtype).tiny)
    return clean + ball.eps * moved / per_sample(size, moved)


class _Window(NamedTuple):
    """A window in each image.

    Attributes:
        mask: true inside the window (n, 1, ..., H, W).
        bump: a pyramid of height one over the window (n, 1, ..., H, W), the smooth shape of algorithm 3.
        side: length of the window along each axis.
    """

    mask: Tensor
    bump: Tensor
    side: tuple[int, ...]

    @classmethod
    def draw(cls, like: Tensor, side: tuple[int, ...], generator: torch.Generator) -> _Window:
        """Draw windows of one size at uniform places in images (n, C, ..., H, W)."""
        bump = torch.ones((), device=like.device, dtype=like.dtype)
        for axis, length in enumerate(side, 2):
            profile = cls._profile(like, axis, length, generator)
            shape = [len(like), *[1] * (like.ndim - 1)]
            shape[axis] = like.shape[axis]
            bump = torch.minimum(bump, profile.reshape(shape))
        return cls(bump > 0, bump, side)

    @staticmethod
    def _profile(like: Tensor, axis: int, length: int, generator: torch.Generator) -> Tensor:
        """Return the profile (n, length of the axis) of a window along an axis: above zero inside the window."""
        places = torch.arange(like.shape[axis], device=like.device)
        start = torch.randint(0, like.shape[axis] - length + 1, (len(like), 1), generator=generator, device=like.device)
        middle = start + (length - 1) / 2
        return (1 - (places - middle).abs() / ((length + 1) / 2)).clamp_min(0).to(like.dtype)


def _signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator, device=like.device).to(like.dtype) * 2 - 1
