"""Images whose logits are NaN or infinite, counted in the records."""

from __future__ import annotations

from dataclasses import dataclass

from art_defenses_ext.base.logits import NO_CLASS
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.records.sample import SampleRecord


@dataclass(frozen=True)
class NotFinite:
    """Images for which the network gives NaN or infinite logits: they name no class, so they are wrong.

    Attributes:
        clean: clean images.
        broken: of the samples that attacks broke, those that they broke by such logits alone; None if they broke none.
    """

    clean: Proportion
    broken: Proportion | None

    @classmethod
    def of(cls, records: list[SampleRecord]) -> NotFinite:
        """Counted in the records."""
        successes = [
            [outcome for outcome in record.attacks.values() if outcome.success] for record in records if record.correct
        ]
        broken = [all(outcome.prediction == NO_CLASS for outcome in outcomes) for outcomes in successes if outcomes]
        clean = Proportion.of(record.clean == NO_CLASS for record in records)
        return cls(clean, Proportion.of(broken) if broken else None)
