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
    """Seed the global generators of ART's attacks and random defences inside the block, and restore them on exit.

    torch's gets a seed of its own: an attack's generator begins at ``seed`` itself, and a defence that drew the same
    numbers as the attack on it would not be random to it.
    """
    with unmoved_generators():
        own = derived_seed(seed, "the global generator of torch", 0)
        # Without a device torch.manual_seed stores the seed for one that may come, with a formatted stack, each time.
        (torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed)(own)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (it takes no more)
        random.seed(seed)
        yield
