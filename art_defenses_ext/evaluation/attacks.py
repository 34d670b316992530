"""The attacks of an evaluation, as data: what runs, made on which network, on which samples, and what for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import FastGradientMethod
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.attack.deep_fool import DeepFoolLp
from art_defenses_ext.attack.iterative_fgsm import IterativeFGSM
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.attack.random_noise import RandomNoise
from art_defenses_ext.attack.square import Square
from art_defenses_ext.evaluation.threats import Threat
from art_defenses_ext.gradient_mode import find_defences
from art_defenses_ext.validation import InputError

Build = Callable[[PyTorchClassifier, Threat, int], EvasionAttack]
"""(classifier to attack, threat, seed) -> attack, whose ``generate`` takes images and one-hot true labels."""


@dataclass(frozen=True)
class AttackSpec:
    """One attack of an evaluation.

    Args:
        name: unique in its set; stands in records and reports.
        build: makes the attack.
        purpose: what it is for, in a line.
        source: ``"paper"`` for what the method's own authors ran, ``"ladder"`` for ours.
        crafted_on: the network that the attacker differentiates or queries; what comes out is always judged on the
            defended one.
        all_modes: run under every gradient mode of the defences, not only ``"exact"``.
        samples: ``"all"``, or ``"survivors"``: those correctly classified that nothing earlier broke.
        curve: also run at several eps, for the curve of accuracy against eps.
        bounded: keeps to the threat's ball. False for attacks that look for the smallest perturbation, whatever its
            size; they count as successes where that size is inside the ball.
    """

    name: str
    build: Build
    purpose: str
    source: Literal["paper", "ladder"] = "ladder"
    crafted_on: Literal["defended", "undefended"] = "defended"
    all_modes: bool = False
    samples: Literal["all", "survivors"] = "survivors"
    curve: bool = False
    bounded: bool = True


def _fgsm(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    return FastGradientMethod(classifier, norm=threat.norm, eps=threat.eps, batch_size=256)


def _pgd(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    return MarginPGD(classifier, threat.norm, threat.eps, max_iter=40, nb_starts=2, seed=seed)


def _transfer(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    # Examples that stop at the boundary of one network seldom lie beyond that of another: dig on.
    return MarginPGD(classifier, threat.norm, threat.eps, max_iter=40, stop_when_broken=False, seed=seed)


def _square(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    return Square(classifier, threat.norm, threat.eps, max_queries=1000, seed=seed)


def _noise(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    return RandomNoise(classifier, threat.norm, threat.eps, nb_draws=100, seed=seed)


STANDARD = (
    AttackSpec("FGSM", _fgsm, "a single step: what iterations must beat", all_modes=True),
    AttackSpec("PGD-40", _pgd, "white-box: descent on the margin, two random starts", all_modes=True, curve=True),
    AttackSpec(
        "transfer PGD-40",
        _transfer,
        "made on the undefended network: needs no gradient of the defence",
        crafted_on="undefended",
        samples="all",
        curve=True,
    ),
    AttackSpec("Square", _square, "black-box: queries only, so no gradient can mislead it"),
    AttackSpec("noise", _noise, "a control: the best of 100 uniform draws"),
)
"""The ladder: every attacker that could break a defence, from the cheapest to the dearest."""


def _jump_relu_attacks() -> tuple[AttackSpec, ...]:
    """What the JumpReLU authors ran: gray-box (made on the plain network) and white-box (native derivative)."""

    def iterations(classifier: PyTorchClassifier) -> int:
        return 40 if classifier.input_shape[0] == 1 else 7  # the authors' figures for MNIST and CIFAR-10

    def ifgsm(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
        return IterativeFGSM(classifier, 0.01, iterations(classifier), scale=normalisation_scale(classifier))

    def deep_fool(norm: float) -> Build:
        return lambda classifier, threat, seed: DeepFoolLp(
            classifier, norm, iterations(classifier), scale=normalisation_scale(classifier)
        )

    attacks = {"IFGSM": ifgsm, "DeepFool linf": deep_fool(np.inf), "DeepFool l2": deep_fool(2)}
    boxes: tuple[tuple[str, Literal["defended", "undefended"]], ...] = (("gray", "undefended"), ("white", "defended"))
    return tuple(
        AttackSpec(
            f"{name}, {box}-box",
            build,
            f"the paper's {box}-box attack",
            source="paper",
            crafted_on=crafted_on,
            samples="all",
            bounded=False,
        )
        for box, crafted_on in boxes
        for name, build in attacks.items()
    )


PAPERS: dict[str, tuple[AttackSpec, ...]] = {"jump_relu": _jump_relu_attacks()}
"""What each method's own paper ran, by the defence's name."""

SETS = ("papers", "standard")
"""Names of attack sets: ``standard`` is the papers' attacks and the ladder."""


def attack_set(attacks: str | Sequence[AttackSpec], classifier: PyTorchClassifier) -> tuple[AttackSpec, ...]:
    """The attacks of a set for the defences that ``classifier`` has.

    Args:
        attacks: a name out of ``SETS``, or attacks of one's own.
        classifier: the defended classifier.

    Raises:
        InputError: for an unknown set, no attack at all, or two of one name.
    """
    if isinstance(attacks, str):
        if attacks not in SETS:
            raise InputError(f"attacks is {attacks!r}; one of {', '.join(SETS)}, or a list of AttackSpec, was expected")
        names = dict.fromkeys(defence.defence_name for defence in find_defences(classifier))
        papers = tuple(spec for name in names for spec in PAPERS.get(name, ()))
        if attacks == "papers" and not papers:
            raise InputError(
                "attacks is 'papers', but the classifier has no defence that a paper attacks; use 'standard'"
            )
        return papers if attacks == "papers" else papers + STANDARD
    chosen: tuple[AttackSpec, ...] = tuple(attacks) if isinstance(attacks, list | tuple) else ()
    if not chosen or not all(isinstance(spec, AttackSpec) for spec in chosen):
        raise InputError(f"attacks is {attacks!r}; a set's name or a list of AttackSpec was expected")
    if len({spec.name for spec in chosen}) < len(chosen):
        raise InputError("attacks holds two of one name; distinct names were expected")
    return chosen


def normalisation_scale(classifier: PyTorchClassifier) -> Any:
    """Pixel values per unit of the network's normalised input: its standard deviation, shaped to fit an image."""
    std = np.asarray(getattr(classifier.preprocessing, "std", 1.0), dtype=np.float32)
    return std.reshape(-1, 1, 1) if std.ndim == 1 else std
