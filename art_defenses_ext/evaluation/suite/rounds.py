"""A round of more effort: attacks on the unbroken images with more steps, starts and queries.

Each round is an attack suite, and stronger than the round before: steps and queries grow in proportion to its number,
and its starts are new. The gradient modes and losses that broke most images so far run first. Surrogates end narrower
than in the suite. Then attacks run that the suite does not have: starts from perturbations of other images and modes,
gradient estimation regardless of the gradients' health, and Square from the best points of a descent. After a round
that broke images, the next repeats only the attacks that broke one, beside a descent in each mode.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from art_defenses_ext.attack.annealed_pgd import AnnealedPGD
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.attack.orthogonal_pgd import LagrangianPGD, OrthogonalPGD, SelectivePGD
from art_defenses_ext.attack.warm_start import CrossedPGD, WarmSquare
from art_defenses_ext.estimator.rejecting import rejects
from art_defenses_ext.evaluation.suite.attacker import Attacker
from art_defenses_ext.evaluation.suite.plan import AttackRun
from art_defenses_ext.evaluation.suite.spec import AttackSpec, Build, CraftedOn, Kind, Modes, built
from art_defenses_ext.evaluation.suite.suites import targeted
from art_defenses_ext.evaluation.threat import Threat

MODES = 4
"""Maximum number of gradient modes in a round, those under which most images were broken. **Convention**."""

FACTORS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.05, 0.025)
"""Factors of the surrogates' width in the runs: they end narrower than in the suite. **Convention**."""

STARTS = 2
"""Number of starts of a descent. **Convention**: each round draws new ones."""

MARGIN = "APGD margin"
"""The name of the descent on the margin, which each round makes in each of its modes."""

TARGETED = "APGD targeted"
"""The name of the descent towards each of the nearest classes."""

LOSSES = {
    MARGIN: "margin",
    "APGD cross-entropy": "cross_entropy",
    TARGETED: "dlr_targeted",
    "APGD probability margin": "probability_margin",
}
"""The losses of descents, by the name of the attack."""

IN_SUITES = {MARGIN: (f"{MARGIN}, 30 steps",), TARGETED: ("APGD staged, long", "APGD staged")}
"""The attacks of the suites whose gains count for a descent besides those under its own name."""

ANNEALED = {"APGD annealed": "margin", "APGD annealed, cross-entropy": "cross_entropy"}
"""The losses of annealed attacks, by the name of the attack."""


def steps_of(number: int) -> int:
    """Return the number of steps of a descent in round ``number``: 300 in the first, three times that of the suite."""
    return 300 * number


def round_name(number: int, name: str) -> str:
    """Return the name of an attack in round ``number``."""
    return f"round {number}: {name}"


def round_plan(
    number: int, attacker: Attacker, threat: Threat, gains: Mapping[str, int], repeated: Collection[str] | None = None
) -> list[AttackRun]:
    """Return the attacks of a round in order.

    Args:
        number: number of the round, from 1.
        attacker: the attacker, with the gradient modes.
        threat: the ball.
        gains: number of images that each attack broke under each mode so far, in the suite and in earlier rounds, by
            :attr:`.AttackRun.family`.
        repeated: the attacks of earlier rounds to repeat, named like those of ``gains``, beside the descents on the
            margin; None for all attacks.
    """
    steps = steps_of(number)

    def gain_of(mode: str) -> int:
        return sum(count for family, count in gains.items() if family.endswith(f"[{mode}]"))

    modes = sorted(attacker.modes, key=lambda mode: -gain_of(mode))[:MODES]
    searches = {(name, mode): _descent(name, number) for name in LOSSES for mode in modes}
    for name, loss in ANNEALED.items():
        annealed = built(AnnealedPGD, loss=loss, factors=FACTORS, max_iter=steps)
        searches |= {(name, mode): annealed for mode in attacker.annealable}
    order = sorted(searches, key=lambda pair: -_gain(gains, *pair))
    runs = [_run(number, name, searches[name, mode], threat, mode) for name, mode in order]
    if rejects(attacker.classifier):
        for name, attack in (("selective", SelectivePGD), ("orthogonal", OrthogonalPGD), ("Lagrangian", LagrangianPGD)):
            runs.append(_run(number, f"{name} PGD", built(attack, max_iter=steps), threat))
    crossed = built(CrossedPGD, modes=tuple(modes), max_iter=steps)
    smoothed = built(AutoPGD, loss="margin", max_iter=50 * number)
    plan = [
        *runs,
        _run(number, "APGD crossed", crossed, threat),
        _run(number, "APGD smoothed", smoothed, threat, crafted_on="smoothed"),
        _run(number, "transfer PGD", _transfer(number), threat, kind="transfer", crafted_on="undefended"),
        _run(number, "Square", built(WarmSquare, max_queries=2000 * number), threat, modes[0], "queries"),
    ]
    return plan if repeated is None else [run for run in plan if _is_repeated(run, repeated)]


def _is_repeated(run: AttackRun, repeated: Collection[str]) -> bool:
    """Return whether an attack broke images in earlier rounds, or is the descent on the margin.

    Descents and annealed attacks are repeated in the modes in which they broke images. Others have the modes of their
    round.
    """
    family = run.family.partition(": ")[2]  # without the prefix of the round
    name = family.partition(" [")[0]
    if name in LOSSES or name in ANNEALED:
        return name == MARGIN or family in repeated
    return name in {each.partition(" [")[0] for each in repeated}


def _run(
    number: int,
    name: str,
    build: Build,
    threat: Threat,
    mode: str | None = None,
    kind: Kind = "white-box",
    crafted_on: CraftedOn = "defended",
) -> AttackRun:
    """Return a run of a round, under a gradient mode; None for an attack that sets its modes itself."""
    modes: Modes = "exact" if mode is None else "all"
    purpose = f"more effort: {steps_of(number)} steps" if kind == "white-box" else "more effort"
    spec = AttackSpec(round_name(number, name), build, purpose, kind=kind, crafted_on=crafted_on, modes=modes)
    return AttackRun(spec, mode or "exact", threat, "round")


def _descent(name: str, number: int) -> Build:
    """Return the build function of Auto-PGD on a loss: from new starts, or towards the nearest classes."""
    steps = steps_of(number)
    if name == TARGETED:
        return targeted(steps)
    return built(AutoPGD, loss=LOSSES[name], max_iter=steps, nb_runs=STARTS)


def _gain(gains: Mapping[str, int], name: str, mode: str) -> int:
    """Return how many images a descent, and its like in the suites, broke in a mode."""
    return sum(gains.get(f"{attack} [{mode}]", 0) for attack in (name, *IN_SUITES.get(name, ())))


def _transfer(number: int) -> Build:
    return built(MarginPGD, max_iter=80 * number, nb_starts=STARTS, stop_when_broken=False)
