"""The specification of an attack of an evaluation: how it is built, on which model and samples it runs, its purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.base.declared import Texts, accepted
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import check_choice, check_flag, check_text
from art_defenses_ext.evaluation.threat import Threat

Build = Callable[[PyTorchClassifier, Threat, int], EvasionAttack]
"""(classifier to attack, threat, seed) -> attack, whose ``generate`` takes images and one-hot true labels."""


def built(attack: Callable[..., EvasionAttack], **options: Any) -> Build:
    """Return the build function of an attack with these options, in the norm and radius of the threat."""
    return lambda classifier, threat, seed: attack(classifier, threat.norm, threat.eps, seed=seed, **options)


Kind = Literal["white-box", "single step", "transfer", "queries", "noise", "other"]
"""The kinds of attacks, which the checks compare."""

CraftedOn = Literal["defended", "undefended", "smoothed"]
"""The network that an attacker differentiates or queries."""

Samples = Literal["all", "unbroken", "few"]
"""The samples that an attack runs on: all, those that no earlier attack broke, or a few of these."""

FEW = 32
"""Maximum number of a block's samples for an attack on ``"few"``. **Convention**: gradient masking on more than a few
images shows on this number; the checks print the number."""

Modes = Literal["exact", "all", "annealable", "smoothest"]
"""The gradient modes that an attack runs under: one by name, or all of a kind."""


@dataclass(frozen=True)
class AttackSpec:
    """An attack of an evaluation, as data.

    Args:
        name: its name in records and reports, unique in its suite.
        build: a function that builds the attack.
        purpose: its purpose, on one line.
        source: ``"paper"`` for the attacks of the method's own paper, ``"suite"`` for those of the suite,
            ``"elsewhere"`` for added examples.
        kind: its kind. A list of attacks is an adaptive suite, whose figure may be called robust accuracy, if those of
            kind ``"white-box"`` and source ``"suite"`` on the ``"defended"`` network run under all its gradient modes.
        crafted_on: the network that the attack differentiates or queries; its images are always classified by the
            defended network. ``"smoothed"`` is the defended network with an estimated gradient, which is attacked only
            if no gradient mode is faithful.
        modes: the gradient modes to run it under: ``"exact"``, ``"all"``, ``"annealable"`` (those with a width), or
            ``"smoothest"`` (those with a width if there are any, else all).
        samples: ``"all"``, ``"unbroken"`` (the correctly classified samples that no earlier attack broke), or
            ``"few"`` (the first 32 of these in each block).
        curve: whether it also runs at several eps, for the curve of accuracy against eps.
        bounded: whether it stays in the threat's ball. False for minimum-norm attacks, which succeed on a sample if the
            perturbation lies in the ball.
        norms: the names of the norms that it has a form for, such as ``("linf", "l2")``; None for all. In balls of
            other norms it does not run.
        labels: the labels that it moves away from: the ``"true"`` ones, or those ``"predicted"`` by the attacked
            network.

    Raises:
        InputError: for another value, a ``build`` that cannot be called, or a name or purpose with unprintable
            characters.

    >>> from art.attacks.evasion import FastGradientMethod
    >>> from art_defenses_ext import AttackSpec, Linf, evaluate
    >>> def fgsm(classifier, threat, seed):
    ...     return FastGradientMethod(classifier, threat.norm, threat.eps)
    >>> spec = AttackSpec("FGSM", fgsm, "a single step", kind="single step")
    >>> report = evaluate(classifier, (x_test, y_test), Linf(0.1), [spec], check_samples=0, progress=False)
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
    samples: Samples = "unbroken"
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
        """Return the attack on a classifier, without progress bars, since the evaluation has its own.

        Args:
            classifier: the classifier to attack.
            threat: the ball.
            seed: seed of the attack.
        """
        attack = self.build(classifier, threat, seed)
        for part in (attack, *getattr(attack, "attacks", ())):  # an ensemble of ART's holds its attacks
            if "verbose" in getattr(part, "attack_params", ()) and part.verbose:
                part.set_params(verbose=False)
        return attack


def attacks_in(threat: Threat, specs: tuple[AttackSpec, ...]) -> tuple[AttackSpec, ...]:
    """Return the attacks that have a form for the norm of ``threat``.

    Raises:
        InputError: if there are none.
    """
    suited = tuple(spec for spec in specs if spec.norms is None or threat.norm_name in spec.norms)
    if specs and not suited:
        raise InputError(f"attacks holds none with a form for {threat.norm_name}; at least one was expected")
    return suited


CHOICES = {name: get_args(kind) for name, kind in get_type_hints(AttackSpec).items() if get_origin(kind) is Literal}
"""The possible values of each property of an attack."""
