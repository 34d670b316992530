"""Square: random search that changes one square of an image at a time, by queries alone.

Source: Andriushchenko, Croce, Flammarion, Hein 2020, "Square Attack: a query-efficient black-box adversarial attack
via random search" (arXiv:1912.00049), algorithms 1 to 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from art_defenses_ext.attack.ball import NormName, per_sample
from art_defenses_ext.attack.base import TensorAttack
from art_defenses_ext.attack.losses import margin
from art_defenses_ext.base.declared import Count, Flag, Positive, number
from art_defenses_ext.base.layout import channels_to_back, channels_to_front

HALVE_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries: where the squares' area halves
SMALLEST_SCALE = 0.01  # of an l2 bump, in units of eps


@dataclass(eq=False, repr=False)
class Square(TensorAttack):
    """Square attack: each image has squares of its own, and no query repeats the one before.

    Args:
        estimator: the classifier under attack.
        norm: ``"linf"`` or ``"l2"``, or as ART has it, inf or 2.
        eps: radius of the ball, in pixel values.
        max_queries: forward passes an image.
        p_init: share of the image that a square covers at the start.
        targeted: as ART has it: ``y`` is the class to reach, not the one to leave.
        **options: see :class:`TensorAttack`; gradient modes make no difference here.

    Raises:
        InputError: for a parameter that cannot be used, or an estimator that ART would misread.

    **Departure** from the published code: squares are drawn for each image, and can reach its last row and column;
    the schedule of their size is always stretched to ``max_queries``; images need not be square, and may have one or
    two dimensions, or be volumes, in which a square is a cube; a square that would change nothing gets the opposite
    sign. For l2, a bump is added to what the window holds, at a random scale from 1/100 of eps to eps, and every other
    proposal clears a second window first: the published rule replaces the whole window, too coarse a move to come near
    an optimum.
    """

    norm: NormName = "linf"
    eps: Positive = 0.3
    max_queries: Count = 5000
    p_init: Annotated[float, number("a share above 0 and up to 1", lambda share: 0 < share <= 1)] = 0.8
    targeted: Flag = False

    def perturb(self, module: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        found = x.clone()
        active = torch.arange(len(x), device=x.device)
        clean = self._planes(x)
        current = self._clipped(clean + self._first(clean, generator), x)
        lowest = self._judge(module, current, x, y)
        for query in range(1, self.max_queries):
            if query % 10 == 0:  # finding the broken ones costs a wait for the device
                found[active] = self._images(current, x)
                left = (lowest >= 0).nonzero().squeeze(1)
                active, clean, current, lowest = active[left], clean[left], current[left], lowest[left]
                if len(active) == 0:
                    return found
            proposed = self._clipped(self._propose(clean, current, x, self._side(query, clean), generator), x)
            margins = self._judge(module, proposed, x, y[active])
            better = margins < lowest
            current = torch.where(per_sample(better, current), proposed, current)
            lowest = torch.where(better, margins, lowest)
        found[active] = self._images(current, x)
        return found

    def _judge(self, module: nn.Module, planes: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The margin (n,) that the search lowers: below zero where the attack succeeded."""
        with torch.no_grad():
            margins = margin(self.logits(module, self._images(planes, x), y), y)
        return -margins if self.targeted else margins

    def _side(self, query: int, planes: Tensor) -> tuple[int, ...]:
        """The sides of the windows at a query: equal, unless the image is too narrow for that."""
        halvings = sum(query > limit * self.max_queries / 10_000 for limit in HALVE_AT)
        lengths = planes.shape[2:]
        volume = self.p_init / 2**halvings * float(np.prod(lengths))
        sides: list[int] = []
        side = max(round(volume ** (1 / len(lengths))), 1)
        for axis, length in enumerate(lengths, 1):
            sides.append(min(side, length))
            if side > length and axis < len(lengths):  # the other sides make up for it
                side = max(round((volume / float(np.prod(sides))) ** (1 / (len(lengths) - axis))), 1)
        return tuple(sides)

    def _first(self, planes: Tensor, generator: torch.Generator) -> Tensor:
        """The perturbation (n, C, ..., H, W) that the search starts from."""
        count, channels, *lengths = planes.shape
        if self.geometry.separable:  # vertical stripes
            stripes = _signs((count, channels, *[1] * (len(lengths) - 1), lengths[-1]), planes, generator)
            return self.eps * stripes.expand(planes.shape)
        tiles = _signs((count, channels, *(-(-length // 5) for length in lengths)), planes, generator)
        for axis, length in enumerate(lengths, 2):
            tiles = tiles.repeat_interleave(5, axis).narrow(axis, 0, length)
        return self.eps * tiles / per_sample(self.geometry.size(tiles), tiles)

    def _propose(
        self, clean: Tensor, current: Tensor, x: Tensor, side: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """The next points to query (n, C, ..., H, W), not yet in the clip range."""
        window = _Window.draw(current, side, generator)
        signs = _signs((*current.shape[:2], *[1] * (current.ndim - 2)), current, generator)
        if not self.geometry.separable:
            return self._propose_bump(clean, current, window, signs, generator)
        proposed = torch.where(window.mask, clean + self.eps * signs, current)
        idle = (self._clipped(proposed, x) == current).flatten(1).all(dim=1)
        flipped = torch.where(window.mask, clean - self.eps * signs, current)
        return torch.where(per_sample(idle, current), flipped, proposed)

    def _propose_bump(
        self, clean: Tensor, current: Tensor, window: _Window, signs: Tensor, generator: torch.Generator
    ) -> Tensor:
        delta = current - clean
        draw = torch.rand(len(current), 2, generator=generator, device=current.device, dtype=current.dtype)
        other = _Window.draw(current, window.side, generator)
        clear = other.mask & per_sample(draw[:, 0] < 0.5, current).bool()
        scale = per_sample(self.eps * SMALLEST_SCALE ** draw[:, 1], current)
        moved = torch.where(clear, 0, delta) + scale * signs * window.bump
        return clean + self.eps * moved / per_sample(
            self.geometry.size(moved).clamp_min(torch.finfo(moved.dtype).tiny), moved
        )

    def _planes(self, x: Tensor) -> Tensor:
        """Images (n, ...) as (n, C, H, W), volumes as (n, C, D, H, W)."""
        if x.ndim == 4 and not self.estimator.channels_first:
            return channels_to_front(x)
        return x.reshape(len(x), *[1] * (4 - x.ndim), *x.shape[1:])

    def _images(self, planes: Tensor, x: Tensor) -> Tensor:
        """The way back, to images like ``x``."""
        if x.ndim == 4 and not self.estimator.channels_first:
            return channels_to_back(planes)
        return planes.reshape(-1, *x.shape[1:])

    def _clipped(self, planes: Tensor, x: Tensor) -> Tensor:
        """Planes (n, C, H, W) moved into the clip range of images like ``x``."""
        return self._planes(self.clip(self._images(planes, x)))


class _Window(NamedTuple):
    """A window in each image.

    Attributes:
        mask: true inside (n, 1, ..., H, W).
        bump: a pyramid of height one over the window (n, 1, ..., H, W), the smooth shape of algorithm 3.
        side: its length along each axis.
    """

    mask: Tensor
    bump: Tensor
    side: tuple[int, ...]

    @classmethod
    def draw(cls, like: Tensor, side: tuple[int, ...], generator: torch.Generator) -> _Window:
        """Windows of one size at uniform places in images (n, C, ..., H, W)."""
        bump = torch.ones((), device=like.device, dtype=like.dtype)
        for axis, length in enumerate(side, 2):
            profile = cls._profile(like, axis, length, generator)
            shape = [len(like), *[1] * (like.ndim - 1)]
            shape[axis] = like.shape[axis]
            bump = torch.minimum(bump, profile.reshape(shape))
        return cls(bump > 0, bump, side)

    @staticmethod
    def _profile(like: Tensor, axis: int, length: int, generator: torch.Generator) -> Tensor:
        """Along one axis of each image: above zero inside its window, one at the middle (n, length of the axis)."""
        places = torch.arange(like.shape[axis], device=like.device)
        start = torch.randint(0, like.shape[axis] - length + 1, (len(like), 1), generator=generator, device=like.device)
        middle = start + (length - 1) / 2
        return (1 - (places - middle).abs() / ((length + 1) / 2)).clamp_min(0).to(like.dtype)


def _signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator, device=like.device).to(like.dtype) * 2 - 1
