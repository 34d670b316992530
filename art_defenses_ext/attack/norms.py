"""The geometry of a threat: size, projection, steepest step and random points of an lp ball, batched."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import InputError

Norm = float
"""2 or numpy's inf."""

_TINY = 1e-12  # keeps a zero vector zero instead of NaN; shorter vectors are scaled up before

NAMES: dict[str, Norm] = {"linf": np.inf, "inf": np.inf, "l2": 2, "2": 2}
"""Norms as users write them; as ART does, too."""


def check_norm(norm: Norm | str) -> Norm:
    """The norm as a number, 2 or inf, from that number or one of ``NAMES``.

    Raises:
        InputError: for anything else.
    """
    if isinstance(norm, str) and norm.lower() in NAMES:
        return NAMES[norm.lower()]
    if isinstance(norm, Real) and not isinstance(norm, bool) and norm in (2, np.inf):
        return 2 if norm == 2 else np.inf
    raise InputError(f"norm is {shown(norm)}; linf or l2 was expected")


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values (N,) shaped to multiply ``like`` (N, ...) sample by sample."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def size(delta: Tensor, norm: Norm) -> Tensor:
    """The norm of each sample of ``delta`` (N, ...) -> (N,)."""
    sizes: Tensor = torch.linalg.vector_norm(delta.flatten(1), ord=norm, dim=1)
    return sizes


def project(delta: Tensor, eps: float, norm: Norm) -> Tensor:
    """The nearest point of the ball of radius ``eps`` to each sample of ``delta`` (N, ...)."""
    if norm == np.inf:
        return delta.clamp(-eps, eps)
    factor = (eps / size(delta, 2).clamp_min(torch.finfo(delta.dtype).tiny)).clamp_max(1)
    return delta * per_sample(factor, delta)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The step of size one along which a loss with this ``gradient`` (N, ...) rises fastest."""
    return gradient.sign() if norm == np.inf else unit(gradient, 2)


def unit(vector: Tensor, norm: float) -> Tensor:
    """Each sample of ``vector`` (N, ...) brought to size one, however short it is; a zero one stays zero."""
    length = size(vector, norm)
    largest = vector.abs().flatten(1).amax(dim=1).clamp_min(torch.finfo(vector.dtype).tiny)
    # The squares of values below 1e-19 vanish in float32, and a pixel unit may make every gradient so small.
    short = length < _TINY
    vector = torch.where(per_sample(short, vector), vector / per_sample(largest, vector), vector)
    return vector / per_sample(torch.where(short, size(vector, norm), length).clamp_min(_TINY), vector)


def into_range(x: Tensor, clip_values: tuple[Any, Any] | None) -> Tensor:
    """``x`` (N, ...) moved into ART's ``clip_values``: numbers, or arrays that broadcast against an image."""
    if clip_values is None:
        return x
    low, high = clip_values
    if np.ndim(low) == 0:
        return x.clamp(float(low), float(high))
    return x.clamp(*(torch.as_tensor(limit, device=x.device, dtype=x.dtype) for limit in (low, high)))


def random_in_ball(like: Tensor, eps: float, norm: Norm, generator: torch.Generator) -> Tensor:
    """Points drawn uniformly from the ball of radius ``eps``, one for each sample of ``like`` (N, ...)."""
    if norm == np.inf:
        return torch.empty_like(like).uniform_(-eps, eps, generator=generator)
    direction = steepest(torch.empty_like(like).normal_(generator=generator), 2)
    # The share of the ball's volume within radius r grows as r^d.
    radius = torch.rand(len(like), generator=generator, device=like.device, dtype=like.dtype) ** (1 / like[0].numel())
    return eps * direction * per_sample(radius, like)


def random_on_sphere(like: Tensor, eps: float, norm: Norm, generator: torch.Generator) -> Tensor:
    """Points of size ``eps`` in random directions, one for each sample of ``like`` (N, ...)."""
    draw = torch.empty_like(like)
    draw = draw.uniform_(-1, 1, generator=generator) if norm == np.inf else draw.normal_(generator=generator)
    return eps * draw / per_sample(size(draw, norm).clamp_min(_TINY), draw)
