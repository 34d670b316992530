"""Attacks that start from the results of other searches: perturbations of other images and modes, and best points.

A descent that is stuck at one image may progress from the perturbation of another image or of another gradient mode.

Source: Square may start at any point of the ball (Andriushchenko et al. 2020, arXiv:1912.00049); universal
perturbations (Moosavi-Dezfooli et al. 2017, arXiv:1610.08401) show that images share directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from art_defenses_ext.attack.auto_pgd import auto_pgd
from art_defenses_ext.attack.ball import Ball, ClipValues, per_sample
from art_defenses_ext.attack.base import BallAttack, BestPoints
from art_defenses_ext.attack.losses import Logits, margins_at
from art_defenses_ext.attack.square import square
from art_defenses_ext.base.declared import Count, Texts
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown
from art_defenses_ext.gradients.modes import gradient_mode, gradient_modes

Form = Callable[[], AbstractContextManager[None]]
"""A function that returns a context in which one gradient mode is set."""

FIRST = 4
"""The first searches take one of ``FIRST`` parts of the steps, since they only select starts. **Convention**."""


def crossed_pgd(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    forms: Sequence[Form],
    generator: torch.Generator,
    nb_donors: int = 64,
    max_iter: int = 100,
    clip_values: ClipValues = None,
    batch_size: int = 256,
    confirmations: int = 1,
) -> Tensor:
    """Return the points of lowest margin (N, ...) of Auto-PGD from perturbations of other images and modes.

    Short searches, each from the best points so far, give each image a perturbation. Each unbroken image then starts
    from the perturbation of another image that lowers its margin most.

    Args:
        logits: the network under attack.
        x: clean images (N, ...).
        y: labels (N,).
        ball: the ball in which to search around each image.
        forms: the gradient modes, in order.
        generator: source of the first starts, and of the choice of donors.
        nb_donors: maximum number of images whose perturbations are tried on each image.
        max_iter: number of gradients per run.
        clip_values: lowest and highest pixel value.
        batch_size: number of images per pass.
        confirmations: see :func:`.auto_pgd`.
    """
    shared: dict[str, Any] = {"clip_values": clip_values, "batch_size": batch_size, "generator": generator}
    search = partial(auto_pgd, logits, ball=ball, confirmations=confirmations, **shared)
    best = BestPoints(x)

    def improve(start: Tensor | None, steps: int, form: Form) -> None:
        rows = (best.margins >= 0).nonzero().squeeze(1)
        if len(rows):
            with form():
                points = search(x=x[rows], y=y[rows], max_iter=steps, start=None if start is None else start[rows])
            best.offer(points, margins_at(logits, points, y[rows], batch_size), rows)

    for number, form in enumerate(forms):
        improve(best.points if number else None, -(-max_iter // FIRST), form)
    donors = torch.randperm(len(x), generator=generator, device=x.device)[:nb_donors]
    start = _from_donors(partial(margins_at, logits, batch_size=batch_size), x, y, ball, best, donors, clip_values)
    for form in forms:
        improve(start, max_iter, form)
    return best.points


@torch.no_grad()
def _from_donors(
    margins_of: Callable[..., Tensor],
    x: Tensor,
    y: Tensor,
    ball: Ball,
    best: BestPoints,
    donors: Tensor,
    clip_values: ClipValues,
) -> Tensor:
    """Return for each image (N, ...) the point of lowest margin among those with the donors' perturbations."""
    rows = (best.margins >= 0).nonzero().squeeze(1)
    starts = BestPoints(best.points)
    for donor in donors:
        others = rows[rows != donor]
        if len(others):
            perturbed = x[others] + (best.points[donor] - x[donor])
            points = ball.inside(perturbed, x[others], clip_values)
            starts.offer(points, margins_of(points, y[others]), others)
    return starts.points


@dataclass(eq=False, repr=False)
class CrossedPGD(BallAttack):
    """Auto-PGD on the margin from perturbations of other images and other gradient modes.

    Args:
        estimator, norm, eps: see :class:`BallAttack`.
        modes: the gradient modes, in order.
        nb_donors: maximum number of images whose perturbations are tried on each image.
        max_iter: number of gradients per run.
        **options: see :class:`TensorAttack`.

    Raises:
        InputError: for a parameter that cannot be used, or an estimator that ART would misread.
    """

    modes: Texts = ("exact",)
    nb_donors: Count = 64
    max_iter: Count = 100

    function = staticmethod(crossed_pgd)

    def options(self, module: nn.Module, x: Tensor) -> dict[str, Any]:
        forms = [partial(gradient_mode, self.estimator, mode) for mode in self.modes]
        return super().options(module, x) | {"forms": forms}

    def _check_params(self) -> None:
        super()._check_params()
        known = gradient_modes(self.estimator)
        if not self.modes or not set(self.modes) <= {"exact", *known}:
            raise InputError(f"modes is {shown(self.modes)}; some of {', '.join(known)} were expected")


def warm_square(
    logits: Logits,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    generator: torch.Generator,
    max_iter: int = 100,
    max_queries: int = 5000,
    channels_first: bool = True,
    clip_values: ClipValues = None,
    batch_size: int = 256,
) -> Tensor:
    """Return the points of lowest margin (N, ...) that Square finds from the best points of Auto-PGD.

    An image that Auto-PGD breaks starts from the clean image, so that every success is due to queries.

    Args:
        logits: the network under attack.
        x: clean images (N, ...).
        y: labels (N,).
        ball: the ball in which to search around each image.
        generator: source of the first starts and of the squares.
        max_iter: number of gradients of Auto-PGD.
        max_queries, channels_first: see :func:`.square`.
        clip_values: lowest and highest pixel value.
        batch_size: number of images per pass.
    """
    shared: dict[str, Any] = {"clip_values": clip_values, "generator": generator}
    points = auto_pgd(logits, x, y, ball, max_iter=max_iter, batch_size=batch_size, **shared)
    broken = margins_at(logits, points, y, batch_size) < 0
    start = torch.where(per_sample(broken, x), x, points)
    parts = zip(*(tensor.split(batch_size) for tensor in (x, y, start)), strict=True)
    queries = partial(square, logits, ball=ball, max_queries=max_queries, channels_first=channels_first, **shared)
    return torch.cat([queries(x=images, y=labels, start=points) for images, labels, points in parts])


@dataclass(eq=False, repr=False)
class WarmSquare(BallAttack):
    """Square from the best points of Auto-PGD on the margin.

    Args:
        estimator, norm, eps: see :class:`BallAttack`.
        max_iter: number of gradients of Auto-PGD.
        max_queries: number of forward passes per image after these.
        **options: see :class:`TensorAttack`.

    Raises:
        InputError: for a parameter that cannot be used, or an estimator that ART would misread.
    """

    max_iter: Count = 100
    max_queries: Count = 5000

    function = staticmethod(warm_square)
