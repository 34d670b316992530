"""Seeds of an evaluation: one for each attack and block, independent of all others."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from art_defenses_ext.estimator.pipeline import unmoved_generators


def derived_seed(seed: int, purpose: str, block: int) -> int:
    """Return the seed for a purpose, such as an attack, on a block."""
    digest = hashlib.sha256(f"{seed}|{purpose}|{block}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of ART's attacks and random defences inside the block, and restore them on exit."""
    with unmoved_generators():
        # Without a device torch.manual_seed stores the seed for one that may come, with a formatted stack, each time.
        (torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed)(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (it takes no more)
        random.seed(seed)
        yield
