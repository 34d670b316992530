"""Which classifier a run is of: the code and the attributes of all that an image meets, and what it answers.

No hash of code vouches for the answers: a network may read a file, call compiled code or ask the clock. What it
computes is the same then by name and attribute, and not by its logits. They are kept in the manifest and compared with
a tolerance, since a machine's noise (threads, kernels, alignment of memory) moves the last digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.estimator.defend import as_module
from art_defenses_ext.estimator.rejecting import rejects
from art_defenses_ext.evaluation.run.code_hash import Snapshot, code_hash
from art_defenses_ext.evaluation.suite.attacker import Attacker
from art_defenses_ext.evaluation.suite.seeding import derived_seed, seeded
from art_defenses_ext.gradients.modes import find_defences, gradient_mode

IMAGES, DIFFERENTIATED = 8, 4
"""How many of the first images are classified, and of how many of them a gradient is taken."""

NUMBERS = 16
"""Numbers that are kept of an image's logits or gradient: itself, or as many random combinations of a longer one."""

SAME_PLACE, ELSEWHERE = {"logits": 1e-3, "gradient": 1e-2}, {"logits": 2e-2, "gradient": 1e-1}
"""Differences, in shares of the largest number, that count as noise: on one machine, and between devices, threads and
versions. **Convention**: float32 rounds to 1e-7 and TF32 to 5e-4, a few layers deep to some times that."""

STEPS = 64
"""The steps of the rounding for a key, from 0 to the power of two above the largest number."""

Rows = list[list[float | None]]
"""Some numbers of each image; None for what is not finite."""


@dataclass(frozen=True)
class Behaviour:
    """What a classifier answers to the first images.

    Attributes:
        logits: of the defended classifier, by image.
        undefended: of the undefended one, where there is one.
        gradients: by gradient mode, of a fixed random combination of the logits that the attacker sees; None where
            none passes.
    """

    logits: Rows
    undefended: Rows | None
    gradients: dict[str, Rows | None]

    def difference(self, other: Behaviour, same_place: bool) -> str | None:
        """Return the first answer in which two runs differ by more than noise, in words; None if there is none.

        Args:
            other: of the other run.
            same_place: whether device, threads and versions are the same. If not, one image in four may also differ
                without a limit: where an activation jumps, noise decides about images on its edge.
        """
        noise = SAME_PLACE if same_place else ELSEWHERE
        if _differ(self.logits, other.logits, noise["logits"], not same_place):
            return "the defended classifier's logits on the first images"
        if _differ(self.undefended, other.undefended, noise["logits"], not same_place):
            return "the undefended classifier's logits on the first images"
        for mode in [*self.gradients, *(mode for mode in other.gradients if mode not in self.gradients)]:
            rows = self.gradients.get(mode), other.gradients.get(mode)
            if _differ(*rows, noise["gradient"], not same_place):
                return f"the gradient in mode {mode!r} on the first images"
        return None

    def rounded(self) -> dict[str, Any]:
        """Return the answers rounded coarsely, for a hash. At an edge of the rounding noise may flip it."""
        rows = {"logits": self.logits, "undefended": self.undefended} | self.gradients
        return {name: None if numbers is None else _rounded(numbers) for name, numbers in rows.items()}


def behaviour_of(
    classifier: PyTorchClassifier,
    attacked: PyTorchClassifier,
    undefended: PyTorchClassifier | None,
    modes: Sequence[str],
    x: FloatArray,
    seed: int,
    random: bool,
) -> Behaviour | None:
    """Ask a classifier for logits and gradients; None if seeded generators do not settle them.

    Args:
        classifier: the defended classifier.
        attacked: what the attacker differentiates in its place.
        undefended: the classifier without defences, if there is one.
        modes: gradient modes of ``attacked``.
        x: some images (n, ...), of which the first are used.
        seed: of the passes of a random defence.
        random: whether the classifier is random; it is asked twice then.
    """
    images = torch.tensor(x[:IMAGES], device=classifier.device)
    own_seed = derived_seed(seed, "behaviour", 0)
    logits = _logits(classifier, images, own_seed)
    if random and not torch.allclose(logits, _logits(classifier, images, own_seed), rtol=1e-3, atol=1e-5):
        return None
    return Behaviour(
        _kept(logits),
        None if undefended is None else _kept(_logits(undefended, images.to(undefended.device), own_seed)),
        {mode: _gradient(attacked, mode, images[:DIFFERENTIATED], own_seed) for mode in modes},
    )


def _logits(classifier: PyTorchClassifier, images: Tensor, seed: int) -> Tensor:
    module = as_module(classifier)
    with seeded(seed), torch.no_grad():
        logits: Tensor = module(images)
    return logits.detach().cpu()


def _gradient(attacked: PyTorchClassifier, mode: str, images: Tensor, seed: int) -> Rows | None:
    module, x = as_module(attacked), images.clone().requires_grad_()
    with torch.enable_grad(), gradient_mode(attacked, mode), seeded(seed):
        logits = module(x)
        if not logits.requires_grad:
            return None
        weights = torch.tensor(_drawn(logits.shape[1], 1)[:, 0], dtype=logits.dtype, device=logits.device)
        try:
            (gradient,) = torch.autograd.grad((logits * weights).sum(), x, allow_unused=True)
        except RuntimeError:  # some operation has no derivative: the attacks will say so
            return None
    return None if gradient is None else _kept(gradient.cpu())


def _drawn(size: int, count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((size, count))


def _kept(values: Tensor) -> Rows:
    """A few numbers of each of ``values`` (n, ...), which any change of them changes."""
    flat = values.detach().flatten(1).double().numpy()
    if flat.shape[1] > NUMBERS:
        flat = flat @ _drawn(flat.shape[1], NUMBERS)
    return [[float(f"{number:.6g}") if np.isfinite(number) else None for number in row] for row in flat]


def _numbers(rows: Rows) -> np.ndarray:
    return np.array([[np.nan if number is None else number for number in row] for row in rows], dtype=np.float64)


def _differ(rows: Rows | None, others: Rows | None, noise: float, some_may: bool) -> bool:
    if rows is None or others is None:
        return (rows is None) != (others is None)
    a, b = _numbers(rows), _numbers(others)
    if a.shape != b.shape:
        return True
    scale = max((float(np.abs(numbers[np.isfinite(numbers)]).max(initial=0)) for numbers in (a, b)), default=0.0)
    equal = (np.abs(a - b) <= noise * scale) | (np.isnan(a) & np.isnan(b))
    return int((~equal.all(axis=1)).sum()) > (len(a) // 4 if some_may else 0)


def _rounded(rows: Rows) -> list[list[int | None]]:
    numbers = _numbers(rows)
    largest = float(np.abs(numbers[np.isfinite(numbers)]).max(initial=0))
    step = 2.0 ** np.ceil(np.log2(largest)) / STEPS if largest > 0 else 1.0
    return [[None if number is None else round(number / step) for number in row] for row in rows]


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
        """Return the first thing in which two classifiers differ, in words; None if there is none.

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
    """Return all that an image meets, by a name for messages."""
    for defence in find_defences(classifier):  # as after an attack that anneals, whether one ran before or not
        defence.surrogate_width = defence.surrogate_width
    model = classifier.model
    parts = {"network": model.pipeline, "detector": model.detection} if rejects(classifier) else {"network": model}
    for number, preprocessor in enumerate(classifier.preprocessing_operations, 1):
        parts[f"preprocessor {number} ({type(preprocessor).__name__})"] = preprocessor
    names = ("clip_values", "input_shape", "nb_classes", "channels_first")
    parts["loss"] = classifier.loss
    parts["classifier"] = [type(classifier), [getattr(classifier, name) for name in names]]
    return parts if undefended is None else parts | {"undefended classifier": undefended}
