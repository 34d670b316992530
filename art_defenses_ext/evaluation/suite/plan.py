"""The plan of an evaluation: its attacks unrolled over gradient modes, the eps of the curve, and the checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.estimator.rejecting import rejects
from art_defenses_ext.evaluation.suite.attacker import Attacker
from art_defenses_ext.evaluation.suite.spec import FEW, AttackSpec
from art_defenses_ext.evaluation.suite.suites import FIRSTS
from art_defenses_ext.evaluation.threat import Threat, radius_to_grey

CURVE_FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""The eps of the curve of accuracy against eps, in units of the threat's eps."""

Role = Literal["suite", "curve", "limit", "effort", "round"]
"""``"suite"``: the attack suite, on all samples. ``"curve"``: at several eps, on the curve's samples. ``"limit"`` and
``"effort"``: for the checks, on the checks' samples; at the largest eps, and with more steps and restarts on unbroken
samples. ``"round"``: in a round of more effort (``rounds.py``), on all unbroken samples."""

EFFORT = AttackSpec(
    "APGD margin, 300 steps, 2 starts",
    lambda classifier, threat, seed: AutoPGD(
        classifier, threat.norm, threat.eps, max_iter=300, loss="margin", nb_runs=2, seed=seed
    ),
    "a check: six times the effort of the suite's first attack, on the checks' samples",
    modes="all",
)


@dataclass(frozen=True)
class AttackRun:
    """One attack under one gradient mode at one eps.

    Attributes:
        spec: the attack.
        mode: the gradient mode.
        threat: the ball that it searches.
        role: purpose of the run; runs of curves and checks use the first samples of the data set only.
    """

    spec: AttackSpec
    mode: str
    threat: Threat
    role: Role = "suite"

    def most(self, samples: int) -> int:
        """Return the maximum number that it attacks of ``samples`` samples of a block."""
        return min(samples, FEW) if self.role == "suite" and self.spec.samples == "few" else samples

    @property
    def family(self) -> str:
        """The attack and its mode, without eps: one line of the report, one curve."""
        return self.spec.name if self.spec.modes == "exact" else f"{self.spec.name} [{self.mode}]"

    @property
    def key(self) -> str:
        """The run's name in records, unique in a plan."""
        at_eps = f"{self.family} @ {self.threat.eps:g}"
        # The limit may also be one of the curve's eps.
        return {"curve": at_eps, "limit": f"{at_eps}, limit"}.get(self.role, self.family)


def make_plan(
    specs: tuple[AttackSpec, ...],
    attacker: Attacker,
    threat: Threat,
    *,
    with_curve: bool,
    with_checks: bool = False,
    limit: Threat | None = None,
) -> list[AttackRun]:
    """Return all runs of an evaluation in order: the suite's white-box attacks, all others, curve and checks.

    Args:
        specs: the attacks.
        attacker: the attacker, with the gradient modes.
        threat: the ball.
        with_curve: whether to add runs at other eps for the curve.
        with_checks: whether to add the runs for the checks.
        limit: the ball of the checks in which no image can be robust; None if unknown.
    """
    runs = _unrolled(sorted(specs, key=_is_late), attacker, threat)
    plan = list(runs)
    first = [spec for spec in specs if spec in FIRSTS][:1]
    if with_checks and first:
        plan += [replace(run, role="effort") for run in _unrolled((EFFORT,), attacker, threat)]
        if limit is not None:
            plan += [replace(run, threat=limit, role="limit") for run in _unrolled(first, attacker, threat)]
    if with_curve:
        plan += [
            replace(run, threat=threat.at(float(f"{threat.eps * factor:.10g}")), role="curve")
            for run in runs
            if run.spec.curve
            for factor in CURVE_FACTORS
        ]
    return plan


def _is_late(spec: AttackSpec) -> bool:
    """Return whether an attack runs after the suite's white-box attacks, however the attacks are listed.

    A white-box attack does not run on images that others have broken, and did not fail on them either.
    """
    return spec.source != "suite" or spec.kind != "white-box"


def _unrolled(specs: Sequence[AttackSpec], attacker: Attacker, threat: Threat) -> list[AttackRun]:
    modes = {
        "exact": ("exact",),
        "all": attacker.modes,
        "annealable": attacker.annealable,
        "smoothest": attacker.annealable or attacker.modes,
    }
    return [AttackRun(spec, mode, threat) for spec in specs for mode in modes[spec.modes]]


def hopeless(threat: Threat, classifier: PyTorchClassifier) -> Threat | None:
    """Return the ball in which no image can be robust: each can be turned grey, so accuracy is at most chance.

    A detector may reject grey images. With a detector the ball therefore contains every image, including clean images
    of other classes. None without clip values, since no such ball is known then.

    Source: Carlini et al. 2019 (arXiv:1902.06705), section 4.3: at unbounded distortion accuracy must reach zero.
    """
    grey = radius_to_grey(threat, classifier.clip_values, tuple(classifier.input_shape))
    if grey is None:
        return None
    return threat.at(2 * grey if rejects(classifier) else grey)
