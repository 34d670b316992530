"""The standing of a figure: a robust accuracy only if an adaptive attack suite ran and its checks were made.

An adaptive attack suite includes white-box attacks of the suite (``source="suite"``) on the defended network, under
every gradient mode of the defence. The papers' attacks do not count: each runs in one mode and without averages over
randomness.

Source: Carlini et al. 2019, "On Evaluating Adversarial Robustness" (arXiv:1902.06705), sections 2.2 and 4: a claim of
robustness concerns attackers who know the defence. **Convention**: which attacks count, as above.
"""

from __future__ import annotations

from typing import Literal

from art_defenses_ext.evaluation.records.description import RunDescription
from art_defenses_ext.evaluation.suite.plan import AttackRun

Standing = Literal["established", "not established", "no checks", "no adaptive attack"]
"""``"established"``: an adaptive suite ran and passed its checks. ``"not established"``: it failed a check, so the
figure is an upper bound. ``"no checks"``: no check of the attacks' findings was made. ``"no adaptive attack"``: no
adaptive suite ran. In the last two cases the figure is an accuracy under the attacks, not a robust accuracy."""


def untried_modes(run: RunDescription, plan: list[AttackRun]) -> list[str]:
    """Return the gradient modes of the defence under which no white-box attack of the suite is made on it.

    An attack on a few images of each block does not count.

    Args:
        run: description of the run, with the modes.
        plan: the runs of its attacks.
    """
    tried = {
        attack.mode
        for attack in plan
        if attack.role == "suite"
        and attack.spec.source == "suite"
        and attack.spec.kind == "white-box"
        and attack.spec.crafted_on == "defended"
        and attack.spec.samples != "few"
    }
    tried |= set(run.modes[:1]) if "exact" in tried else set()  # "exact" alone stands for each defence's first mode
    return [mode for mode in run.modes if mode not in tried]


def lacking(run: RunDescription, plan: list[AttackRun]) -> str:
    """Return why the attacks of a run are not an adaptive suite, in words; empty if they are.

    Args:
        run: description of the run.
        plan: the runs of its attacks.
    """
    if not run.settings.adaptive:
        return "the attacker was given the exact gradient alone"
    untried = untried_modes(run, plan)
    if len(untried) == len(run.modes):
        only = all(attack.spec.source == "paper" for attack in plan)
        return "the paper's attacks ran alone" if only else "none of the suite's white-box attacks was run"
    return f"no white-box attack was made in mode {', '.join(untried)}" if untried else ""
