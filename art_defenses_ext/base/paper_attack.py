"""An attack of a defence's own paper, as data from which the evaluation builds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class PaperAttack:
    """One attack of a defence's paper.

    Attributes:
        name: its name in records and reports.
        attack: the attack's name in ``evaluation.suite.papers.ATTACKS``.
        parameters: its arguments.
        crafted_on: the network that it attacks.
        labels: the labels that it moves away from: the ``"true"`` ones, or those that this network predicts.
        bounded: whether it stays in the threat's ball. False for attacks that stop by themselves, at any distance.
    """

    name: str
    attack: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    crafted_on: Literal["defended", "undefended"] = "undefended"
    labels: Literal["true", "predicted"] = "true"
    bounded: bool = True
