"""Seeds of an evaluation: one for each attack and block, independent of all others."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(seed: int, purpose: str, block: int) -> int:
    """A seed for one purpose, such as an attack, on one block."""
    digest = hashlib.sha256(f"{seed}|{purpose}|{block}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that ART's attacks and random defences draw from, and restore them on exit."""
    state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 (what ART uses)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # named, or torch warns of several
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 (it takes no more)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
        random.setstate(python_state)
