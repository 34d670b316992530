"""The images that each round of more effort broke."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from art_defenses_ext.evaluation.records.sample import SampleRecord
from art_defenses_ext.evaluation.suite.plan import AttackRun

Round = Sequence[AttackRun]
"""The attacks of a round."""


@dataclass(frozen=True)
class RoundResult:
    """The result of a round.

    Attributes:
        number: number of the round, from 1.
        robust_before: number of images that no attack had broken before the round.
        broken: number of these images that the round broke.
        broken_otherwise: number of images that the round attacked because no white-box attack had broken them, though
            others had.
        white_box_broken: number of these images that its white-box attacks broke.
    """

    number: int
    robust_before: int
    broken: int
    broken_otherwise: int
    white_box_broken: int

    @property
    def is_idle(self) -> bool:
        """Whether the round broke no image."""
        return not self.broken and not self.white_box_broken


def white_box(plan: Sequence[AttackRun]) -> set[str]:
    """Return the keys of the white-box attacks of a suite and of rounds."""
    return {run.key for run in plan if run.role in ("suite", "round") and run.spec.kind == "white-box"}


def round_results(
    plan: Sequence[AttackRun], rounds: Sequence[Round], records: Sequence[SampleRecord]
) -> list[RoundResult]:
    """Return the result of each round.

    Args:
        plan: the runs of the attacks; those of rounds and examples from elsewhere do not count as before the rounds.
        rounds: the attacks of each round.
        records: records of the samples.
    """
    before = [run for run in plan if run.role != "round" and run.spec.source != "elsewhere"]
    results = []
    for number, attacks in enumerate(rounds, 1):
        known, own = {run.key for run in before}, {run.key for run in attacks}
        attacked = [record for record in records if own & record.attacks.keys()]
        robust = [record for record in attacked if record.robust(known)]
        otherwise = [record for record in attacked if not record.robust(known)]
        broken = sum(not record.robust(own) for record in robust)
        white_box_broken = sum(not record.robust(white_box(attacks)) for record in otherwise)
        results.append(RoundResult(number, len(robust), broken, len(otherwise), white_box_broken))
        before += attacks
    return results
