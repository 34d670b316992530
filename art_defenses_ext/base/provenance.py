"""How a defence came to be as it is, for the report: what was tuned, what was trained and on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tuning:
    """How a defence's strength was chosen on validation images.

    Attributes:
        parameter: what was tuned, such as ``"jump"``.
        chosen: its value.
        points: (value, clean accuracy from 0 to 1) pairs that were looked at, in ascending order.
    """

    parameter: str
    chosen: float
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Training:
    """One training of a defence.

    Attributes:
        settings: what it was trained on and how, as plain data.
        losses: of each epoch, over the training images and over those held out; None where none were.
    """

    settings: dict[str, Any]
    losses: list[tuple[float, float | None]]
