"""What rounds of more effort added to an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from art_defenses_ext.evaluation.records.sample import SampleRecord
from art_defenses_ext.evaluation.suite.plan import AttackRun

Round = Sequence[AttackRun]
"""The attacks of a round."""


@dataclass(frozen=True)
class RoundResult:
    """What a round added.

    Attributes:
        number: of the round, from 1.
        given: images that nothing had broken before it.
        broken: of these, how many it broke.
        late: images that it attacked although they were broken, since no white-box attack had broken them.
        found: of these, how many its white-box attacks broke.
    """

    number: int
    given: int
    broken: int
    late: int
    found: int

    @property
    def is_idle(self) -> bool:
        """Whether it added nothing."""
        return not self.broken and not self.found


def white_box(plan: Sequence[AttackRun]) -> set[str]:
    """Return the keys of the white-box attacks of a suite and of rounds."""
    return {run.key for run in plan if run.role in ("suite", "round") and run.spec.kind == "white-box"}


def round_results(
    plan: Sequence[AttackRun], rounds: Sequence[Round], records: Sequence[SampleRecord]
) -> list[RoundResult]:
    """Return what each round added to those before it.

    Args:
        plan: the attacks of the run; those of its rounds do not come before them, nor do examples made elsewhere.
        rounds: their attacks.
        records: what all of them did.
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
