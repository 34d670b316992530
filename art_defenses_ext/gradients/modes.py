"""Gradient modes: the backward passes of a defence that an attacker may use, by name.

The forward pass is exact and the same in every mode. ``"exact"`` (autograd through everything) comes first; the other
modes are surrogates (backward-pass differentiable approximation), for defences that mask the exact gradient. Functions
of numpy arrays have surrogates only.

Source: Athalye, Carlini, Wagner 2018, "Obfuscated Gradients Give a False Sense of Security" (arXiv:1802.00420), section
4.1 (BPDA).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, ClassVar

from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.paper_attack import PaperAttack
from art_defenses_ext.base.provenance import Training, Tuning
from art_defenses_ext.base.text import shown


class Defence:
    """Mix-in for the object that runs a defence's forward pass, with its gradient modes and the current one.

    Attributes:
        name: the method's name in records, reports and on the command line, such as ``"jump_relu"``.
        gradient_modes: the backward passes that an attacker may use; ``"exact"`` comes first, if there is one.
        gradient_mode: the current mode; can be set.
        annealable_modes: those of ``gradient_modes`` whose surrogate has a width, which attacks may anneal.
        surrogate_width: factor on that width; 1 by default.
        tuning: how its strength was chosen, for the report; None if it was given.
        trainings: its trainings in order, for the report; empty without training.
    """

    name: ClassVar[str]
    gradient_modes: ClassVar[tuple[str, ...]] = ("exact",)
    annealable_modes: ClassVar[tuple[str, ...]] = ()
    surrogate_width: float = 1.0
    tuning: Tuning | None = None
    trainings: Sequence[Training] = ()
    _gradient_mode: str = "exact"

    @property
    def gradient_mode(self) -> str:
        """The current backward pass, one of ``gradient_modes``."""
        return self._gradient_mode

    @gradient_mode.setter
    def gradient_mode(self, mode: str) -> None:
        if mode not in self.gradient_modes:
            raise InputError(f"gradient mode {mode!r}: one of {', '.join(self.gradient_modes)} was expected")
        self._gradient_mode = mode

    @classmethod
    def paper_attacks(cls) -> tuple[PaperAttack, ...]:
        """Return the attacks of the method's own paper; none by default."""
        return ()

    def describe(self) -> dict[str, Any]:
        """Return the defence's settings, as plain data for a report."""
        return {}

    def undefended_network(self) -> nn.Module | None:
        """Return the undefended network of a defence that is a network itself, for gray-box attacks; else None."""
        return None

    def views(self, x: Tensor) -> dict[str, Tensor]:
        """Return the defence's intermediate images for images (N, ...), by name, for a report.

        They have shape (N, C, H, W), whatever the layout of the images, and values from 0 (black) to 1 (white),
        whatever the range of pixel values.
        """
        return {}


def find_defences(target: PyTorchClassifier | nn.Module) -> list[Defence]:
    """Return the defences of ``target`` in the order of application: preprocessors first, then the model."""
    if not isinstance(target, PyTorchClassifier | nn.Module):
        raise InputError(f"target is a {type(target).__name__}; a PyTorchClassifier or an nn.Module was expected")
    places: list[Any] = [target]
    if isinstance(target, PyTorchClassifier):
        places = [*(step for step in target.preprocessing_operations if step.apply_predict), target.model]
    defences: list[Defence] = []
    for place in places:
        for candidate in place.modules() if isinstance(place, nn.Module) else [place]:
            if isinstance(candidate, Defence) and candidate not in defences:
                defences.append(candidate)
    return defences


def gradient_modes(target: PyTorchClassifier | nn.Module) -> tuple[str, ...]:
    """Return the gradient modes of ``target``; ``("exact",)`` without a defence.

    With several defences these are all combinations, joined by a plus in the order of application, as in
    ``"identity+smooth"``.

    >>> from art_defenses_ext import HeatAndBlur, JumpReLU, defend, gradient_modes
    >>> gradient_modes(classifier), gradient_modes(JumpReLU(classifier)())
    (('exact',), ('exact', 'relu', 'smooth'))
    >>> both = defend(JumpReLU(classifier)(), HeatAndBlur.for_classifier(classifier))
    >>> len(gradient_modes(both)), gradient_modes(both)[1]
    (12, 'exact+relu')
    """
    per_defence = [defence.gradient_modes for defence in find_defences(target)]
    return tuple("+".join(combination) for combination in product(*per_defence)) if per_defence else ("exact",)


def annealable_modes(target: PyTorchClassifier | nn.Module) -> tuple[str, ...]:
    """Return those of ``gradient_modes(target)`` in which a defence's surrogate has a width."""
    defences = find_defences(target)
    return tuple(
        mode
        for mode in gradient_modes(target)
        if any(name in defence.annealable_modes for name, defence in zip(mode.split("+"), defences, strict=False))
    )


@contextmanager
def gradient_mode(target: PyTorchClassifier | nn.Module, mode: str) -> Iterator[None]:
    """Set the backward passes of ``target`` to ``mode`` inside the block, and restore the former ones on exit.

    Args:
        target: a classifier or module with any number of defences.
        mode: one of ``gradient_modes(target)``; ``"exact"`` alone means the first mode of each defence.

    Raises:
        InputError: for a mode that the defences do not offer.

    >>> import numpy as np
    >>> from art_defenses_ext import JumpReLU, gradient_mode
    >>> defended = JumpReLU(classifier)()
    >>> exact = defended.loss_gradient(x, np.eye(10)[y])
    >>> with gradient_mode(defended, "smooth"):
    ...     smooth = defended.loss_gradient(x, np.eye(10)[y])
    >>> bool((exact == smooth).all())
    False
    """
    defences = find_defences(target)
    if not isinstance(mode, str):
        raise InputError(f"gradient mode {shown(mode)}: one of {', '.join(gradient_modes(target))} was expected")
    chosen = [defence.gradient_modes[0] for defence in defences] if mode == "exact" else mode.split("+")
    if mode != "exact" and (
        len(chosen) != len(defences)
        or any(name not in defence.gradient_modes for name, defence in zip(chosen, defences, strict=True))
    ):
        raise InputError(f"gradient mode {mode!r}: one of {', '.join(gradient_modes(target))} was expected")
    before = [defence.gradient_mode for defence in defences]
    try:
        for defence, name in zip(defences, chosen, strict=True):
            defence.gradient_mode = name
        yield
    finally:
        for defence, name in zip(defences, before, strict=True):
            defence.gradient_mode = name


@contextmanager
def surrogate_width(target: PyTorchClassifier | nn.Module, factor: float) -> Iterator[None]:
    """Multiply the width of the smooth surrogates of every defence in ``target`` by ``factor`` inside the block."""
    defences = find_defences(target)
    before = [defence.surrogate_width for defence in defences]
    try:
        for defence, width in zip(defences, before, strict=True):
            defence.surrogate_width = width * factor
        yield
    finally:
        for defence, width in zip(defences, before, strict=True):
            defence.surrogate_width = width
