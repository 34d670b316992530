"""Which classifier a run is of: the code and the attributes of all that an image meets, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.estimator.rejecting import rejects
from art_defenses_ext.evaluation.run.behaviour import Behaviour, behaviour_of
from art_defenses_ext.evaluation.run.code_hash import Snapshot, code_hash
from art_defenses_ext.evaluation.suite.attacker import Attacker


@dataclass(frozen=True)
class Identity:
    """Which classifier a run is of, beside the hashes of its weights.

    Attributes:
        code: a hash for each part that an image meets (network, preprocessors, detector, loss, undefended classifier):
            its code, all its attributes, hooks, and the globals that it names.
        behaviour: its answers to the first images; None where they cannot be had twice.
    """

    code: dict[str, str] = field(default_factory=dict)
    behaviour: Behaviour | None = None

    def difference(self, other: Identity, *, same_place: bool, same_code: bool, random: bool) -> str | None:
        """The first thing in which two classifiers differ, in words; None if there is none.

        Args:
            other: of the other run.
            same_place: whether both ran on the same device, with the same threads and versions.
            same_code: whether both ran in the same versions, or their compiled code cannot be compared.
            random: whether the classifiers are random, so that other devices draw other numbers.
        """
        for name in [*self.code, *(name for name in other.code if name not in self.code)] if same_code else []:
            if self.code.get(name) != other.code.get(name):
                return f"the code or the attributes of the {name} differ"
        if self.behaviour is None or other.behaviour is None or (random and not same_place):
            return None
        difference = self.behaviour.difference(other.behaviour, same_place)
        return None if difference is None else f"{difference} differ"

    def key(self) -> dict[str, Any]:
        """Plain data for a hash, in which the answers are rounded coarsely."""
        return {"code": self.code, "behaviour": None if self.behaviour is None else self.behaviour.rounded()}


def identity_of(attacker: Attacker, undefended: PyTorchClassifier | None, x: FloatArray, seed: int) -> Identity:
    """Look at a classifier, and at what it answers to the first of some images.

    Attributes that each pass writes to (a counter, the activations that a hook keeps) are no part of it, nor are those
    that it wrote before: the code is looked at after the answers, and what two passes have changed is left out.

    Args:
        attacker: who has the classifier.
        undefended: the classifier without defences, if there is one.
        x: some images (n, ...).
        seed: of the passes of a random defence.
    """
    parts = parts_of_run(attacker.classifier, undefended)
    asked = attacker.classifier, attacker.attacked, undefended, attacker.modes
    behaviour = behaviour_of(*asked, x, seed, attacker.random)
    before = Snapshot(parts)
    behaviour_of(attacker.classifier, attacker.classifier, undefended, ("exact",), x[:2], seed, random=False)
    after = Snapshot(parts)
    changing = before.changes(after)
    return Identity({name: code_hash(part, changing) for name, part in parts.items()}, behaviour)


def parts_of_run(classifier: PyTorchClassifier, undefended: PyTorchClassifier | None) -> dict[str, Any]:
    """All that an image meets, by a name for messages."""
    model = classifier.model
    parts = {"network": model.pipeline, "detector": model.detection} if rejects(classifier) else {"network": model}
    for number, preprocessor in enumerate(classifier.preprocessing_operations, 1):
        parts[f"preprocessor {number} ({type(preprocessor).__name__})"] = preprocessor
    names = ("clip_values", "input_shape", "nb_classes", "channels_first")
    parts["loss"] = classifier.loss
    parts["classifier"] = [type(classifier), [getattr(classifier, name) for name in names]]
    return parts if undefended is None else parts | {"undefended classifier": undefended}
