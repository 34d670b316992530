"""Whether a record agrees with itself and with its run: what follows from other fields is computed anew."""

from __future__ import annotations

from collections.abc import Collection

from art_defenses_ext.base.logits import NO_CLASS
from art_defenses_ext.evaluation.records.sample import SampleRecord
from art_defenses_ext.evaluation.threat import Threat


def contradiction(record: SampleRecord, nb_classes: int, threat: Threat, keys: Collection[str]) -> str | None:
    """Return the first field of a record that cannot be what the others say, in words; None if there is none.

    Args:
        record: of one sample.
        nb_classes: that the run's classifier tells apart.
        threat: the ball that counts.
        keys: of the run's attacks.
    """
    if not 0 <= record.label < nb_classes:
        return f"label is {record.label}; 0 to {nb_classes - 1} was expected"
    for key, outcome in record.attacks.items():
        if key not in keys:
            return f"attacks {key!r} is no attack of the run"
        if not NO_CLASS <= outcome.prediction < nb_classes:
            return f"attacks {key!r} prediction is {outcome.prediction}; a class up to {nb_classes - 1} was expected"
        misclassified = outcome.prediction != record.label and not outcome.rejected
        if outcome.misclassified != misclassified:
            fields = "prediction, label and rejected"
            return f"attacks {key!r} misclassified is {outcome.misclassified}, and {fields} say {misclassified}"
        success = misclassified and outcome.usable and outcome.lies_in(threat)
        if outcome.success != success:
            fields = "misclassified, usable and the size of the change"
            return f"attacks {key!r} success is {outcome.success}, and {fields} say {success}"
    return None
