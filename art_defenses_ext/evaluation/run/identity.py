"""The identity of a run's classifier: code and attributes of all that an image passes, and its first outputs.

A hash of code cannot ensure equal outputs: a network may read a file, call compiled code or depend on the time. The
manifest therefore also holds logits and gradients of the first images. They are compared with a tolerance, since
threads, kernels and the alignment of memory change the last digits.
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
"""The number of first images whose logits are kept, and the number of these whose gradients are kept."""

NUMBERS = 16
"""Numbers kept per image of its logits or gradient: all of them, or this many random combinations of more."""

SAME_PLACE, ELSEWHERE = {"logits": 1e-3, "gradient": 1e-2}, {"logits": 2e-2, "gradient": 1e-1}
"""Differences, as shares of the largest number, that count as noise: on one machine, and between devices, threads and
versions. **Convention**: float32 rounds to 1e-7 and TF32 to 5e-4; a few layers multiply this."""

STEPS = 64
"""Number of rounding steps of a key, from 0 to the power of two above the largest number."""

Rows = list[list[float | None]]
"""Numbers of each image; None for a number that is not finite."""

UNDEFENDED_PART = "undefended classifier"
"""The name of the undefended classifier among the parts of a run."""


@dataclass(frozen=True)
class Behaviour:
    """The outputs of a classifier for the first images.

    Attributes:
        logits: logits of the defended classifier, by image.
        undefended: logits of the undefended classifier, if there is one.
        gradients: gradients, by gradient mode, of a fixed random combination of the logits that the attacker sees; None
            if no gradient exists.
    """

    logits: Rows
    undefended: Rows | None
    gradients: dict[str, Rows | None]

    def difference(self, other: Behaviour, same_place: bool) -> str | None:
        """Return the first output in which two runs differ by more than noise, in words; None if there is none.

        Args:
            other: outputs in the other run.
            same_place: whether device, threads and versions are the same. If not, one image in four may differ without
                a limit, since noise decides on which side of an activation's jump an image lies.
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
        """Return the outputs rounded coarsely, for a hash. Near an edge of the rounding, noise may change the hash."""
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
    """Return logits and gradients of a classifier; None if they differ although the generators are seeded.

    Args:
        classifier: the defended classifier.
        attacked: the classifier that the attacker differentiates in its place.
        undefended: the classifier without defences, if there is one.
        modes: gradient modes of ``attacked``.
        x: images (n, ...), of which the first are used.
        seed: seed of the passes of a random defence.
        random: whether the classifier is random, so that its logits are computed twice.
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
        except RuntimeError:  # an operation has no derivative; the attacks report it
            return None
    return None if gradient is None else _kept(gradient.cpu())


def _drawn(size: int, count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((size, count))


def _kept(values: Tensor) -> Rows:
    """Return a few numbers of each row of ``values`` (n, ...), which change if the row changes."""
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
    """The identity of a run's classifier, apart from the hashes of its weights.

    Attributes:
        code: a hash for each part that an image passes (network, preprocessors, detector, loss, undefended classifier):
            its code, all its attributes, hooks, and the globals that it names.
        behaviour: its outputs for the first images; None if they cannot be repeated.
    """

    code: dict[str, str] = field(default_factory=dict)
    behaviour: Behaviour | None = None

    def difference(self, other: Identity, *, same_place: bool, same_code: bool, random: bool) -> str | None:
        """Return the first difference of two classifiers in words; None if there is none.

        Args:
            other: identity of the other run's classifier.
            same_place: whether both ran on the same device, with the same threads and versions.
            same_code: whether both ran in the same versions; if not, their compiled code cannot be compared.
            random: whether the classifiers are random; other devices then draw other numbers.
        """
        for name in [*self.code, *(name for name in other.code if name not in self.code)] if same_code else []:
            if self.code.get(name) != other.code.get(name):
                return f"the code or the attributes of the {name} differ"
        if self.behaviour is None or other.behaviour is None or (random and not same_place):
            return None
        difference = self.behaviour.difference(other.behaviour, same_place)
        return None if difference is None else f"{difference} differ"

    def key(self) -> dict[str, Any]:
        """Return the plain data of a hash, in which the outputs are rounded coarsely."""
        return {"code": self.code, "behaviour": None if self.behaviour is None else self.behaviour.rounded()}


def identity_of(attacker: Attacker, undefended: PyTorchClassifier | None, x: FloatArray, seed: int) -> Identity:
    """Return the identity of a classifier: its code, and its outputs for the first images.

    Attributes to which each pass writes (a counter, the activations that a hook keeps) are left out: two snapshots, one
    before and one after further passes, show them.

    Args:
        attacker: the attacker, who holds the classifier.
        undefended: the classifier without defences, if there is one.
        x: images (n, ...).
        seed: seed of the passes of a random defence.
    """
    parts = parts_of_run(attacker.classifier, undefended)
    classifiers = attacker.classifier, attacker.attacked, undefended
    behaviour = behaviour_of(*classifiers, attacker.modes, x, seed, attacker.random)
    before = Snapshot(parts)
    behaviour_of(attacker.classifier, attacker.classifier, undefended, ("exact",), x[:2], seed, random=False)
    after = Snapshot(parts)
    changing = before.changes(after)
    return Identity({name: code_hash(part, changing) for name, part in parts.items()}, behaviour)


def parts_of_run(classifier: PyTorchClassifier, undefended: PyTorchClassifier | None) -> dict[str, Any]:
    """Return all parts that an image passes, by their names in messages."""
    for defence in find_defences(classifier):  # the state after an annealed attack, whether one ran before or not
        defence.surrogate_width = defence.surrogate_width
    model = classifier.model
    parts = {"network": model.pipeline, "detector": model.detection} if rejects(classifier) else {"network": model}
    for number, preprocessor in enumerate(classifier.preprocessing_operations, 1):
        parts[f"preprocessor {number} ({type(preprocessor).__name__})"] = preprocessor
    names = ("clip_values", "input_shape", "nb_classes", "channels_first")
    parts["loss"] = classifier.loss
    parts["classifier"] = [type(classifier), [getattr(classifier, name) for name in names]]
    return parts if undefended is None else parts | {UNDEFENDED_PART: undefended}
