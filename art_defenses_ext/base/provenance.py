"""How a defence was tuned and trained, for the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tuning:
    """How a defence's strength was chosen on validation images.

    Attributes:
        parameter: name of the tuned parameter, such as ``"jump"``.
        chosen: its chosen value.
        points: evaluated pairs (value, clean accuracy from 0 to 1), in ascending order.
    """

    parameter: str
    chosen: float
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Training:
    """A training run of a defence.

    Attributes:
        settings: training data and settings, as plain data.
        losses: losses of each epoch, over the training images and over the held-out ones; None without these.
    """

    settings: dict[str, Any]
    losses: list[tuple[float, float | None]]

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Training:
        """Return the training that ``vars`` gave as plain data, such as from a file."""
        return cls(plain["settings"], [(loss, held_out) for loss, held_out in plain["losses"]])
