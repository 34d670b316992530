"""One attack of an evaluation, as data: what runs, made on which network, on which samples, and what for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.base.declared import Texts, accepted
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import check_choice, check_flag, check_text
from art_defenses_ext.evaluation.threat import Threat

Build = Callable[[PyTorchClassifier, Threat, int], EvasionAttack]
"""(classifier to attack, threat, seed) -> attack, whose ``generate`` takes images and one-hot true labels."""

Kind = Literal["white-box", "single step", "transfer", "queries", "noise", "other"]
"""How an attack works; the checks compare the kinds."""

CraftedOn = Literal["defended", "undefended", "smoothed"]
"""The network that an attacker differentiates or queries."""

Samples = Literal["all", "survivors", "few"]
"""The samples that an attack runs on: all, those that nothing earlier broke, or a few of these."""

FEW = 16
"""Samples of a block that an attack on ``"few"`` takes at most. **Convention**: masking that concerns more than a few
images shows on so many; the checks say on how many they stand."""

Modes = Literal["exact", "all", "annealable", "smoothest"]
"""The gradient modes that an attack runs under: these by name, or all of a kind."""


@dataclass(frozen=True)
class AttackSpec:
    """One attack of an evaluation.

    Args:
        name: unique in its set; stands in records and reports.
        build: makes the attack.
        purpose: what it is for, in a line.
        source: ``"paper"`` for what the method's own authors ran, ``"suite"`` for ours, ``"elsewhere"`` for examples
            that somebody else made.
        kind: how it works. A list of attacks is an adaptive suite, whose figure may be called robust accuracy, if those
            of kind ``"white-box"`` and source ``"suite"`` made on the ``"defended"`` network run under all its modes.
        crafted_on: the network that the attacker differentiates or queries; what comes out is always judged on the
            defended one. ``"smoothed"`` is that with an estimated gradient, and is attacked only where the gradient
            of the defended one misleads.
        modes: the gradient modes to run it under: ``"exact"``, ``"all"``, ``"annealable"``, those that have a width,
            or ``"smoothest"``, these where there are any, else all.
        samples: ``"all"``, or ``"survivors"``: those correctly classified that nothing earlier broke; or
            ``"few"``: of these the first 16 of each block.
        curve: also run at several eps, for the curve of accuracy against eps.
        bounded: keeps to the threat's ball. False for attacks that look for the smallest perturbation, whatever its
            size; they count as successes where that size is inside the ball.
        norms: the names of the norms that it has a form for, such as ``("linf", "l2")``; None for all. In balls of
            other norms it does not run.
        labels: what the attack is told to move away from: the ``"true"`` classes, or those ``"predicted"`` by the
            network that it is made on.

    Raises:
        InputError: for another word than these, a ``build`` that cannot be called, or a name or purpose with characters
            that cannot be printed.

    >>> from art.attacks.evasion import FastGradientMethod
    >>> from art_defenses_ext import AttackSpec, Linf, evaluate
    >>> def fgsm(classifier, threat, seed):
    ...     return FastGradientMethod(classifier, threat.norm, threat.eps)
    >>> mine = AttackSpec("FGSM", fgsm, "a single step", kind="single step")
    >>> report = evaluate(classifier, (x_test, y_test), Linf(0.1), [mine], check_samples=0, progress=False)
    >>> [row.key for row in report.summary.rows]
    ['FGSM']
    """

    name: str
    build: Build
    purpose: str
    source: Literal["paper", "suite", "elsewhere"] = "suite"
    kind: Kind = "other"
    crafted_on: CraftedOn = "defended"
    modes: Modes = "exact"
    samples: Samples = "survivors"
    curve: bool = False
    bounded: bool = True
    labels: Literal["true", "predicted"] = "true"
    norms: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_text("name", self.name)
        if not (isinstance(self.purpose, str) and self.purpose == ""):
            check_text("purpose", self.purpose)
        for argument, choices in CHOICES.items():
            check_choice(argument, getattr(self, argument), choices)
        for argument in ("curve", "bounded"):
            object.__setattr__(self, argument, check_flag(argument, getattr(self, argument)))
        if self.norms is not None:
            object.__setattr__(self, "norms", accepted(Texts, "norms", self.norms))
        if not callable(self.build):
            raise InputError(
                f"build is {shown(self.build)}; a function (classifier, threat, seed) -> attack was expected"
            )

    def attack_on(self, classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
        """Return the attack on a classifier, without progress bars of its own: the evaluation shows one for all.

        Args:
            classifier: to attack.
            threat: the ball.
            seed: of what is random in the attack.
        """
        attack = self.build(classifier, threat, seed)
        for part in (attack, *getattr(attack, "attacks", ())):  # an ensemble of ART's holds its attacks
            if "verbose" in getattr(part, "attack_params", ()) and part.verbose:
                part.set_params(verbose=False)
        return attack


def attacks_in(threat: Threat, specs: tuple[AttackSpec, ...]) -> tuple[AttackSpec, ...]:
    """Those attacks that have a form for the norm of ``threat``.

    Raises:
        InputError: if none has.
    """
    suited = tuple(spec for spec in specs if spec.norms is None or threat.norm_name in spec.norms)
    if specs and not suited:
        raise InputError(f"attacks holds none with a form for {threat.norm_name}; at least one was expected")
    return suited


CHOICES = {name: get_args(kind) for name, kind in get_type_hints(AttackSpec).items() if get_origin(kind) is Literal}
"""The words that each of an attack's properties may be."""
