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
        given: number of images that no attack had broken before the round.
        broken: number of these images that the round broke.
        late: number of images that the round attacked because no white-box attack had broken them, though others had.
        found: number of these images that its white-box attacks broke.
    """

    number: int
    given: int
    broken: int
    late: int
    found: int

    @property
    def is_idle(self) -> bool:
        """Whether the round broke no image."""
        return not self.broken and not self.found


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
        given = [record for record in attacked if record.robust(known)]
        late = [record for record in attacked if not record.robust(known)]
        broken = sum(not record.robust(own) for record in given)
        found = sum(not record.robust(white_box(attacks)) for record in late)
        results.append(RoundResult(number, len(given), broken, len(late), found))
        before += attacks
    return results
