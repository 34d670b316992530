"""Which attack runs where: a set of attacks unrolled over gradient modes and the eps of the curve."""

from __future__ import annotations

from dataclasses import dataclass, replace

from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.evaluation.attacks import AttackSpec
from art_defenses_ext.evaluation.threats import Threat
from art_defenses_ext.gradient_mode import gradient_modes

CURVE_FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Where the curve of accuracy against eps is measured, in units of the threat's eps."""


@dataclass(frozen=True)
class AttackRun:
    """One attack under one gradient mode at one eps.

    Attributes:
        spec: the attack.
        mode: gradient mode that is in force meanwhile.
        threat: the ball that it searches.
        curve: part of the curve: runs on the first samples of the data set only, whatever became of them.
    """

    spec: AttackSpec
    mode: str
    threat: Threat
    curve: bool = False

    @property
    def family(self) -> str:
        """The attack and its mode, without eps: one line of the report, one curve."""
        return f"{self.spec.name} [{self.mode}]" if self.spec.all_modes else self.spec.name

    @property
    def key(self) -> str:
        """The run's name in records: unique in a plan."""
        return f"{self.family} @ {self.threat.eps:g}" if self.curve else self.family


def make_plan(
    specs: tuple[AttackSpec, ...], classifier: PyTorchClassifier, threat: Threat, with_curve: bool
) -> list[AttackRun]:
    """All runs of an evaluation in their order: the threat's own first, then the curve's."""
    runs = [
        AttackRun(spec, mode, threat)
        for spec in specs
        for mode in (gradient_modes(classifier) if spec.all_modes else ("exact",))
    ]
    curve = [
        replace(run, threat=threat.at(round(threat.eps * factor, 10)), curve=True)
        for run in runs
        if with_curve and run.spec.curve
        for factor in CURVE_FACTORS
    ]
    return runs + curve
