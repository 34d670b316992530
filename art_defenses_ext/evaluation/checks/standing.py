"""What a figure may be called: robust accuracy only where an adaptive attack suite ran and its checks were made.

An adaptive attack suite holds, of the suite's own attacks (``source="suite"``) that are made on the defended network,
white-box ones under every gradient mode that the defence offers. The papers' attacks are none of it: they are what the
defence's authors ran, each in one mode and without averages over randomness.

Source: Carlini et al. 2019, "On Evaluating Adversarial Robustness" (arXiv:1902.06705), sections 2.2 and 4: a claim of
robustness is one about attackers who know the defence. **Convention**: which runs count, as above.
"""

from __future__ import annotations

from typing import Literal

from art_defenses_ext.evaluation.records.description import RunDescription
from art_defenses_ext.evaluation.suite.plan import AttackRun

Standing = Literal["established", "not established", "no checks", "no adaptive attack"]
"""``"established"``: an adaptive suite ran and passed its checks. ``"not established"``: it failed one, so that the
figure is an upper bound. ``"no checks"``: none was made of what the attacks find. ``"no adaptive attack"``: no such
suite ran. In the last two cases there is no robust accuracy, only an accuracy under the attacks that ran."""


def untried_modes(run: RunDescription, plan: list[AttackRun]) -> list[str]:
    """Return the gradient modes of the defence under which no white-box attack of the suite is made on it.

    Args:
        run: what was run; it names the modes.
        plan: its attacks, with their kinds.
    """
    tried = {
        attack.mode
        for attack in plan
        if attack.role == "suite"
        and attack.spec.source == "suite"
        and attack.spec.kind == "white-box"
        and attack.spec.crafted_on == "defended"
    }
    tried |= set(run.modes[:1]) if "exact" in tried else set()  # "exact" alone stands for each defence's first mode
    return [mode for mode in run.modes if mode not in tried]


def lacking(run: RunDescription, plan: list[AttackRun]) -> str:
    """Return what keeps the attacks of a run from being an adaptive suite, in words; empty if they are one.

    Args:
        run: what was run.
        plan: its attacks.
    """
    if not run.settings.adaptive:
        return "the attacker was given the exact gradient alone"
    untried = untried_modes(run, plan)
    if len(untried) == len(run.modes):
        only = all(attack.spec.source == "paper" for attack in plan)
        return "the paper's attacks ran alone" if only else "none of the suite's white-box attacks was run"
    return f"no white-box attack was made in mode {', '.join(untried)}" if untried else ""
