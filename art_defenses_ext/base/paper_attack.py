"""An attack that a defence's own authors ran, as data: the evaluation makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class PaperAttack:
    """One attack of a defence's paper.

    Attributes:
        name: in records and reports.
        attack: the attack's name in ``evaluation.suite.papers.ATTACKS``.
        parameters: its arguments.
        crafted_on: the network that it is made on.
        labels: what it moves away from: the ``"true"`` classes, or those that this network predicts.
        bounded: keeps to the threat's ball. False for attacks that stop by themselves, whatever the distance.
    """

    name: str
    attack: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    crafted_on: Literal["defended", "undefended"] = "undefended"
    labels: Literal["true", "predicted"] = "true"
    bounded: bool = True
