"""The shards of a run, one for each process that takes part in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from art_defenses_ext.base.errors import RunError

RANKS = {"torchrun": ("RANK", "WORLD_SIZE"), "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")}
"""Environment variables with a process's number, from 0, and the number of processes, by the launcher that sets them.

SLURM's job arrays are not among them: their tasks often differ in their settings.
"""

LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID")
"""Environment variables with a process's number on its machine, from 0."""


@dataclass(frozen=True, order=True)
class Shard:
    """A shard of an evaluation: every ``count``-th block of samples.

    The first blocks hold the samples of the curve and the checks, so neighbouring blocks go to different shards.

    Args:
        number: number of the shard, from 1 to ``count``.
        count: number of shards.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in (self.number, self.count))
        if not whole or not 1 <= self.number <= self.count:
            raise RunError(f"shard is {self}; i/n with i from 1 to n was expected")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def is_whole(self) -> bool:
        """Whether this is the only shard."""
        return self.count == 1

    @property
    def folder(self) -> str:
        """Its folder below the folder of the run."""
        return f"shards/{self.number}-of-{self.count}"

    def starts(self, samples: int, block_size: int) -> range:
        """Return the indices of the first samples of its blocks."""
        return range((self.number - 1) * block_size, samples, self.count * block_size)

    @classmethod
    def named(cls, text: str) -> Shard:
        """Return the shard with the name ``"i/n"``."""
        number, slash, count = text.partition("/")
        if not slash or not all(part.isascii() and part.isdigit() for part in (number, count)):
            raise RunError(f"shard is {text!r}; i/n with i from 1 to n was expected")
        return cls(int(number), int(count))

    @classmethod
    def of_process(cls, environment: Mapping[str, str] = os.environ) -> Shard:
        """Return the shard of this process among those that torchrun, or srun inside a SLURM job, has started."""
        for launcher, (rank, size) in RANKS.items():
            if rank in environment and size in environment:
                number, count = environment[rank], environment[size]
                if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
                    raise RunError(
                        f"{rank} is {number!r} and {size} is {count!r}; values of {launcher}, or --shard, were expected"
                    )
                return cls(int(number) + 1, int(count))
        return WHOLE


WHOLE = Shard(1, 1)
"""The whole run as one shard."""


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of this process on its machine, from 0; 0 if it is the only one."""
    rank = next((environment[name] for name in LOCAL_RANKS if name in environment), "0")
    if not rank.isdigit():
        raise RunError(f"{' or '.join(LOCAL_RANKS)} is {rank!r}; a number from 0 was expected")
    return int(rank)
