"""Whether a record agrees with itself and with the run that it is of: what can be recomputed is."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from art_defenses_ext.base.logits import NO_CLASS
from art_defenses_ext.evaluation.records.description import RunDescription
from art_defenses_ext.evaluation.records.sample import Outcome, SampleRecord
from art_defenses_ext.evaluation.threat import Threat, named_threat

ROUNDING = 1e-6
"""By how much a recorded share may be off: records keep six decimal places."""


@dataclass(frozen=True)
class Rules:
    """What a run's records must agree with.

    Attributes:
        labels: number of classes.
        votes: passes that decide about an image; 1 for a network that is not random.
        rejects: whether a detector rejects images.
        threat: the ball that counts.
        keys: of the run's attacks.
        has_undefended: whether there is an undefended classifier.
    """

    labels: int
    votes: int
    rejects: bool
    threat: Threat
    keys: frozenset[str]
    has_undefended: bool

    @classmethod
    def of(cls, run: RunDescription, keys: Collection[str]) -> Rules:
        """From a run's description and the keys of its attacks."""
        threat = named_threat(run.settings.threat, run.settings.eps)
        undefended = run.undefended_sha256 is not None
        return cls(run.labels, run.votes if run.random else 1, run.rejects, threat, frozenset(keys), undefended)

    def contradiction(self, record: SampleRecord) -> str | None:
        """The first field of a record that cannot be what the others say, in words; None if there is none."""
        for text in self._of_clean(record):
            return text
        for key, outcome in record.attacks.items():
            if key not in self.keys:
                return f"attacks {key!r} is no attack of the run"
            for text in self._of_outcome(outcome, record.label):
                return f"attacks {key!r} {text}"
        return None

    def _of_clean(self, record: SampleRecord) -> Iterator[str]:
        if not 0 <= record.label < self.labels:
            yield f"label is {record.label}; 0 to {self.labels - 1} was expected"
        yield from self._class("clean", record.clean)
        yield from self._class("undefended_clean", record.undefended_clean)
        yield from _presence("undefended_clean", record.undefended_clean, self.has_undefended)
        yield from _presence("clean_rejected", record.clean_rejected, self.rejects)
        yield from self._count("clean_misses", record.clean_misses)
        yield from _share("clean_ndcg", record.clean_ndcg)
        yield from _share("clean_reciprocal_rank", record.clean_reciprocal_rank)
        yield from self._margin("clean_detection_margin", record.clean_detection_margin, record.clean_rejected)
        if record.image is not None and re.fullmatch("[0-9a-f]{16}", record.image) is None:
            yield f"image is {record.image!r}; 16 hexadecimal digits were expected"

    def _of_outcome(self, outcome: Outcome, label: int) -> Iterator[str]:
        yield from self._class("prediction", outcome.prediction)
        yield from self._class("undefended_prediction", outcome.undefended_prediction)
        yield from _presence("rejected", outcome.rejected, self.rejects)
        yield from self._count("misses", outcome.misses)
        yield from _share("ndcg", outcome.ndcg)
        yield from _share("reciprocal_rank", outcome.reciprocal_rank)
        yield from self._margin("detection_margin", outcome.detection_margin, outcome.rejected)
        yield from _sizes(outcome)
        misclassified = outcome.prediction != label and not outcome.rejected
        if outcome.misclassified != misclassified:
            yield f"misclassified is {outcome.misclassified}, and prediction, label and rejected say {misclassified}"
        yield from self._success(outcome)

    def _success(self, outcome: Outcome) -> Iterator[str]:
        """A success is misclassified, usable and inside the ball, which is judged by the size as it is recorded."""
        success = outcome.misclassified and outcome.usable and outcome.lies_in(self.threat)
        if outcome.success != success:
            yield f"success is {outcome.success}, and misclassified, usable and the size of the change say {success}"

    def _class(self, name: str, value: int | None) -> Iterator[str]:
        if value is not None and not NO_CLASS <= value < self.labels:
            yield f"{name} is {value}; a class up to {self.labels - 1} was expected"

    def _count(self, name: str, value: int | None) -> Iterator[str]:
        yield from _presence(name, value, self.votes > 1)
        if value is not None and not 0 <= value <= self.votes:
            yield f"{name} is {value}; 0 to {self.votes} was expected"

    def _margin(self, name: str, margin: float | None, rejected: bool | None) -> Iterator[str]:
        """The margin of a single pass is positive where the image is rejected; that of several passes is a mean."""
        if margin is not None and rejected is not None and self.votes == 1 and (margin > 0) != rejected:
            yield f"{name} is {margin}, and rejected {rejected}"


def _presence(name: str, value: object, expected: bool) -> Iterator[str]:
    if (value is not None) != expected:
        yield f"{name} is {value!r}; {'a value' if expected else 'none'} was expected in this run"


def _share(name: str, value: float | None) -> Iterator[str]:
    if value is not None and not 0 <= value <= 1 + ROUNDING:
        yield f"{name} is {value}; 0 to 1 was expected"


def _sizes(outcome: Outcome) -> Iterator[str]:
    for name, size in (("linf", outcome.linf), ("l2", outcome.l2), ("size", outcome.size or 0)):
        if size < 0:
            yield f"{name} is {size}; a size of at least 0 was expected"
        if not outcome.usable and size:
            yield f"{name} is {size}, and usable False; 0 was expected, that of the clean image which stands in"
    if outcome.linf > 1.02 * outcome.l2 + 1e-6:  # either may be cut to an eps that float32's rounding exceeds
        yield f"linf is {outcome.linf}, and l2 {outcome.l2}; at most as much was expected"
