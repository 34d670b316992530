"""The attacks of an evaluation, as data: what runs, made on which network, on which samples, and what for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import CarliniL2Method, CarliniLInfMethod, HopSkipJump
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
    ProjectedGradientDescentPyTorch,
)
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.attack.annealed_pgd import AnnealedPGD
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.deep_fool import DeepFoolLp
from art_defenses_ext.attack.iterative_fgsm import IterativeFGSM
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.attack.orthogonal_pgd import LagrangianPGD, OrthogonalPGD, SelectivePGD
from art_defenses_ext.attack.random_noise import RandomNoise
from art_defenses_ext.attack.square import Square
from art_defenses_ext.attribution.first_layer import normalisation_of
from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.layout import has_channels_behind, shape_with_channels_in_front
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import InputError, check_choice, check_flag, check_text
from art_defenses_ext.estimator.defend import as_module
from art_defenses_ext.estimator.pipeline import Pipeline
from art_defenses_ext.estimator.rebuild import rebuild, undefended
from art_defenses_ext.estimator.rejecting import rejects
from art_defenses_ext.evaluation.config import SETS
from art_defenses_ext.evaluation.suite.predictions import nb_labels
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.gradients.modes import find_defences

Build = Callable[[PyTorchClassifier, Threat, int], EvasionAttack]
"""(classifier to attack, threat, seed) -> attack, whose ``generate`` takes images and one-hot true labels."""

Kind = Literal["white-box", "single step", "transfer", "queries", "noise", "other"]
"""How an attack works; the checks compare the kinds."""

CraftedOn = Literal["defended", "undefended", "smoothed"]
"""The network that an attacker differentiates or queries."""


@dataclass(frozen=True)
class AttackSpec:
    """One attack of an evaluation.

    Args:
        name: unique in its set; stands in records and reports.
        build: makes the attack.
        purpose: what it is for, in a line.
        source: ``"paper"`` for what the method's own authors ran, ``"suite"`` for ours.
        kind: how it works. A list of attacks is an adaptive suite, whose figure may be called robust accuracy, if those
            of kind ``"white-box"`` and source ``"suite"`` made on the ``"defended"`` network run under all its modes.
        crafted_on: the network that the attacker differentiates or queries; what comes out is always judged on the
            defended one. ``"smoothed"`` is that with an estimated gradient, and is attacked only where the gradient
            of the defended one misleads.
        modes: the gradient modes to run it under: ``"exact"``, ``"all"``, ``"annealable"``, those that have a width,
            or ``"smoothest"``, these where there are any, else all.
        samples: ``"all"``, or ``"survivors"``: those correctly classified that nothing earlier broke.
        curve: also run at several eps, for the curve of accuracy against eps.
        bounded: keeps to the threat's ball. False for attacks that look for the smallest perturbation, whatever its
            size; they count as successes where that size is inside the ball.
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
    >>> report = evaluate(classifier, x_test, y_test, Linf(0.1), [mine], check_samples=0, progress=False)
    >>> [row.key for row in report.summary.rows]
    ['FGSM']
    """

    name: str
    build: Build
    purpose: str
    source: Literal["paper", "suite"] = "suite"
    kind: Kind = "other"
    crafted_on: CraftedOn = "defended"
    modes: Literal["exact", "all", "annealable", "smoothest"] = "exact"
    samples: Literal["all", "survivors"] = "survivors"
    curve: bool = False
    bounded: bool = True
    labels: Literal["true", "predicted"] = "true"

    def __post_init__(self) -> None:
        check_text("name", self.name)
        if not (isinstance(self.purpose, str) and self.purpose == ""):
            check_text("purpose", self.purpose)
        for argument, choices in CHOICES.items():
            check_choice(argument, getattr(self, argument), choices)
        for argument in ("curve", "bounded"):
            object.__setattr__(self, argument, check_flag(argument, getattr(self, argument)))
        if not callable(self.build):
            raise InputError(
                f"build is {shown(self.build)}; a function (classifier, threat, seed) -> attack was expected"
            )


CHOICES = {name: get_args(kind) for name, kind in get_type_hints(AttackSpec).items() if get_origin(kind) is Literal}
"""The words that each of an attack's properties may be."""


def _auto_pgd(loss: str, **options: Any) -> Build:
    return lambda classifier, threat, seed: AutoPGD(
        classifier, threat.norm, threat.eps, loss=loss, seed=seed, **options
    )


def _annealed(**options: Any) -> Build:
    return lambda classifier, threat, seed: AnnealedPGD(classifier, threat.norm, threat.eps, seed=seed, **options)


def _targeted(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    count = nb_labels(classifier)
    loss = "dlr_targeted" if count > 3 else "margin_targeted"  # the former needs four logits
    runs = min(9, count - 1)
    return AutoPGD(classifier, threat.norm, threat.eps, loss=loss, nb_runs=runs, seed=seed)


def _fgsm(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    return IterativeFGSM(classifier, threat.eps, 1, norm=threat.norm)


def _transfer(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    # Examples that stop at the boundary of one network seldom lie beyond that of another: dig on.
    return MarginPGD(classifier, threat.norm, threat.eps, max_iter=40, stop_when_broken=False, seed=seed)


def _square(queries: int) -> Build:
    return lambda classifier, threat, seed: Square(
        classifier, threat.norm, threat.eps, max_queries=queries, batch_size=512, seed=seed
    )


def _noise(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    return RandomNoise(classifier, threat.norm, threat.eps, nb_draws=100, seed=seed)


WHITE_BOX = AttackSpec(
    "APGD margin",
    _auto_pgd("margin"),
    "white-box: Auto-PGD on the logit margin, 100 steps",
    kind="white-box",
    modes="all",
    curve=True,
)
"""The first rung: the checks ask whether it works."""

STANDARD = (
    WHITE_BOX,
    AttackSpec(
        "APGD cross-entropy",
        _auto_pgd("cross_entropy"),
        "white-box: another loss finds other ways, 100 steps",
        kind="white-box",
        modes="all",
    ),
    AttackSpec(
        "APGD targeted",
        _targeted,
        "white-box: towards each of the nine nearest classes, 100 steps each",
        kind="white-box",
        modes="all",
    ),
    AttackSpec(
        "APGD annealed",
        _annealed(),
        "white-box: smooth surrogates that grow sharper, from run to run of 100 steps",
        kind="white-box",
        modes="annealable",
    ),
    AttackSpec(
        "APGD smoothed",
        _auto_pgd("margin", max_iter=50),
        "surrogate: the gradient of the network under noise, estimated; only where gradients mislead",
        kind="white-box",
        crafted_on="smoothed",
    ),
    AttackSpec(
        "transfer PGD-40",
        _transfer,
        "made on the undefended network: needs no gradient of the defence",
        kind="transfer",
        crafted_on="undefended",
        samples="all",
        curve=True,
    ),
    AttackSpec("FGSM", _fgsm, "a single step: must not find what many steps did not", kind="single step", modes="all"),
    AttackSpec("Square", _square(1000), "black-box: 1,000 queries, so no gradient can mislead it", kind="queries"),
    AttackSpec("noise", _noise, "a control: the best of 100 uniform draws", kind="noise"),
)
"""The ladder: every attacker that could break a defence."""


def _carlini(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    options: dict[str, Any] = {"max_iter": 50, "verbose": False}
    if threat.norm == np.inf:  # of other norms: which of ART's two it is
        return CarliniLInfMethod(classifier, learning_rate=0.01, batch_size=1, **options)
    return CarliniL2Method(classifier, binary_search_steps=9, learning_rate=0.01, batch_size=128, **options)


def _deep_fool(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    return DeepFoolLp(classifier, threat.norm, 100, scale=clip_width(classifier))


def _hop_skip_jump(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    # Under NumPy 2 it asks in float64, which a bare network refuses and the module casts.
    whole = rebuild(classifier, model=as_module(classifier), preprocessing_defences=None, preprocessing=(0.0, 1.0))
    return HopSkipJump(whole, norm=threat.norm, max_iter=10, max_eval=1000, init_eval=10, verbose=False)


FULL = (
    *STANDARD,
    AttackSpec(
        "APGD annealed, slower",
        _annealed(factors=(2.0, 1.0, 0.5, 0.25, 0.1, 0.05, 0.025), loss="cross_entropy", max_iter=300),
        "white-box: the same on another loss, with more and longer runs",
        kind="white-box",
        modes="annealable",
    ),
    AttackSpec(
        "APGD restarts",
        _auto_pgd("margin", nb_runs=10),
        "white-box: ten more random starts",
        kind="white-box",
        modes="all",
    ),
    AttackSpec("Square, 5,000 queries", _square(5000), "black-box: five times the queries", kind="queries"),
    AttackSpec("DeepFool", _deep_fool, "minimum norm: the nearest boundary, linearised", bounded=False, modes="all"),
    AttackSpec("C&W", _carlini, "minimum norm: Carlini and Wagner's, ART's form", bounded=False),
    AttackSpec("HopSkipJump", _hop_skip_jump, "minimum norm: from decisions alone", kind="queries", bounded=False),
)
"""The ladder and what takes longer."""


def _evading(attack: Callable[..., EvasionAttack]) -> Build:
    """A run that goes on lowering the detector's word where that is below the threshold already."""

    def build(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
        mode = "+".join(defence.gradient_mode for defence in find_defences(classifier)) or "exact"
        return attack(classifier, threat.norm, threat.eps, stop_below=-math.inf, gradient_mode=mode, seed=seed)

    return build


DETECTOR_LADDER = tuple(
    AttackSpec(name, _evading(attack), purpose, kind="white-box", modes="smoothest", samples="all")
    for name, attack, purpose in (
        ("selective PGD", SelectivePGD, "white-box, against classifier and detector in turn: 100 steps"),
        ("orthogonal PGD", OrthogonalPGD, "white-box: the same, each step orthogonal to the other's gradient"),
        ("Lagrangian PGD", LagrangianPGD, "white-box: a weighted sum of both, for several weights"),
    )
)
"""What the ladder tries besides where a detector rejects, on all samples: figures of the detector come from it."""

BLIND = ("C&W", "HopSkipJump")
"""ART's attacks in ``FULL``: to them "rejected" is a class like any other, and they would stop there."""


def _jump_relu_attacks() -> tuple[AttackSpec, ...]:
    """What the JumpReLU authors ran: gray-box (made on the plain network) and white-box (native derivative)."""

    def iterations(classifier: PyTorchClassifier) -> int:
        is_grey = shape_with_channels_in_front(classifier)[0] == 1
        return 40 if is_grey else 7  # the authors' figures for MNIST and CIFAR-10

    def ifgsm(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
        return IterativeFGSM(classifier, 0.01, iterations(classifier), scale=normalisation_scale(classifier))

    def deep_fool(norm: str) -> Build:
        return lambda classifier, threat, seed: DeepFoolLp(
            classifier, norm, iterations(classifier), scale=normalisation_scale(classifier)
        )

    attacks = {"IFGSM": ifgsm, "DeepFool linf": deep_fool("linf"), "DeepFool l2": deep_fool("l2")}
    boxes: tuple[tuple[str, CraftedOn], ...] = (("gray", "undefended"), ("white", "defended"))
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


def _pgd(**steps: Any) -> Build:
    """ART's PGD, its arguments for a threat of eps 1: what is measured in pixel values grows with eps."""

    def build(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
        options = steps | {"eps_step": steps["eps_step"] * threat.eps, "verbose": False}
        return ProjectedGradientDescentPyTorch(classifier, threat.norm, threat.eps, **options)

    return build


def _gray_box(attacks: dict[str, Build], labels: Literal["true", "predicted"] = "true") -> tuple[AttackSpec, ...]:
    """A paper's attacks made on the bare network, which does not know of the defence."""
    return tuple(
        AttackSpec(
            f"{name}, gray-box",
            build,
            "the paper's, made on the bare network",
            source="paper",
            crafted_on="undefended",
            samples="all",
            labels=labels,
        )
        for name, build in attacks.items()
    )


_PGD_10 = _pgd(max_iter=10, eps_step=0.25)
"""**Convention** for Heat and Blur, whose own steps could not be read; without a random start."""

_PGD_40 = _pgd(max_iter=40, eps_step=0.1, num_random_init=1)
"""**Convention** for feature losses, whose authors' code takes ART's PGD: forty steps, the usual number on MNIST."""

_TWO_STREAM_ATTACKS = {
    "FGSM": _fgsm,
    "FFGSM": _pgd(max_iter=1, eps_step=1.25, num_random_init=1),
    "BIM": _pgd(max_iter=10, eps_step=0.1),
    "PGD-40": _PGD_40,
    "MIM": _pgd(max_iter=10, eps_step=0.1, decay=1.0),
}
"""The kinds are the paper's; **Convention**: their steps could not be read, and are those of each attack's authors."""


def _pixel_steps(step: float, **options: Any) -> Build:
    """ART's PGD without a random start and with steps of a share of the clip range, whatever eps is.

    **Convention** for other norms, which the paper does not know: the same share of eps as at its eps of 0.1.
    """

    def build(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
        eps_step = step * clip_width(classifier) if threat.separable else step / 0.1 * threat.eps
        return ProjectedGradientDescentPyTorch(
            classifier, threat.norm, threat.eps, eps_step=eps_step, verbose=False, **options
        )

    return build


_EXPLANATION_ATTACKS = {
    "FGSM": _fgsm,
    "PGD-40": _pixel_steps(0.01, max_iter=40),
    "MIM": _pixel_steps(0.06, max_iter=10, decay=1.0),
}
"""Steps, and that they leave the predicted class: the authors' code."""

PAPERS: dict[str, tuple[AttackSpec, ...]] = {
    "jump_relu": _jump_relu_attacks(),
    "heat_and_blur": _gray_box({"FGSM": _fgsm, "PGD-10": _PGD_10}),
    "feature_autoencoder": _gray_box({"FGSM": _fgsm, "PGD-40": _PGD_40}),
    "two_stream_restoration": _gray_box(_TWO_STREAM_ATTACKS),
    "explanation_reconstructor": _gray_box(_EXPLANATION_ATTACKS, labels="predicted"),
}
"""What each method's own paper ran, by the defence's name."""

LADDERS: dict[str, tuple[AttackSpec, ...]] = {"standard": STANDARD, "full": FULL}


def attack_set(attacks: str | Sequence[AttackSpec], classifier: PyTorchClassifier) -> tuple[AttackSpec, ...]:
    """The attacks of a set for the defences that ``classifier`` has, in the order in which they run.

    The ladder comes first, so that the checks can tell what its white-box attacks find by themselves; the papers'
    attacks run on all samples in any case.

    Args:
        attacks: a name out of ``SETS``, or attacks of one's own.
        classifier: the defended classifier.

    Raises:
        InputError: for an unknown set, no attack at all, or two of one name.
    """
    if isinstance(attacks, str):
        if attacks not in SETS:
            raise InputError(
                f"attacks is {shown(attacks)}; one of {', '.join(SETS)}, or a list of AttackSpec, was expected"
            )
        papers = _of_papers(classifier)
        if attacks == "papers" and not papers:
            raise InputError(
                "attacks is 'papers', but the classifier has no defence that a paper attacks; use 'standard'"
            )
        ladder = LADDERS.get(attacks, ())
        return (_with_detector(ladder) if rejects(classifier) and ladder else ladder) + papers
    chosen: tuple[AttackSpec, ...] = tuple(attacks) if isinstance(attacks, list | tuple) else ()
    if not chosen or not all(isinstance(spec, AttackSpec) for spec in chosen):
        raise InputError(f"attacks is {shown(attacks)}; a set's name or a list of AttackSpec was expected")
    if len({spec.name for spec in chosen}) < len(chosen):
        raise InputError("attacks holds two of one name; distinct names were expected")
    return chosen


def _of_papers(classifier: PyTorchClassifier) -> tuple[AttackSpec, ...]:
    """What the papers of the defences ran; names that two of them use get the method's behind them."""
    methods = dict.fromkeys(defence.defence_name for defence in find_defences(classifier))
    found = [(method, spec) for method in methods for spec in PAPERS.get(method, ())]
    uses = Counter(spec.name for _, spec in found)
    return tuple(
        spec if uses[spec.name] == 1 else replace(spec, name=f"{spec.name}, {method}") for method, spec in found
    )


def _with_detector(ladder: tuple[AttackSpec, ...]) -> tuple[AttackSpec, ...]:
    """The ladder for a classifier that rejects: the detector's rungs follow the white-box ones."""
    seeing = [spec for spec in ladder if spec.name not in BLIND]
    white = max(place for place, spec in enumerate(seeing) if spec.kind == "white-box" and spec in STANDARD)
    return (*seeing[: white + 1], *DETECTOR_LADDER, *seeing[white + 1 :])


def normalisation_scale(classifier: PyTorchClassifier) -> Any:
    """Pixel values per unit of the network's normalised input: its standard deviation, shaped to fit an image.

    **Convention**: where nothing is divided by one, the width of the clip range.
    """
    inner = undefended(classifier)
    if rejects(classifier) and inner is not None:  # the whole normalises inside its network
        classifier = inner
    std = np.asarray(getattr(classifier.preprocessing, "std", 1.0), dtype=np.float32)
    inner = _inner_std(classifier)
    if inner is not None:
        std = std.reshape(-1) * inner
    if np.allclose(std, 1, rtol=1e-3):
        return clip_width(classifier)
    return std.reshape(-1, 1, 1) if std.ndim == 1 and not has_channels_behind(classifier) else std


def clip_width(classifier: PyTorchClassifier) -> float:
    """From the least pixel value to the largest; 1 without clip values."""
    if classifier.clip_values is None:
        return 1.0
    low, high = classifier.clip_values
    return float(np.max(np.asarray(high, dtype=np.float64) - low))


def _inner_std(classifier: PyTorchClassifier) -> FloatArray | None:
    """The deviation (C,) by which the network itself divides what it takes; None where it does not."""
    if len(classifier.input_shape) != 3 or classifier.clip_values is None:
        return None
    standardised = Pipeline(rebuild(classifier, preprocessing_defences=None, postprocessing_defences=None))
    shape, device = (1, *classifier.input_shape), classifier.device
    low, high = (
        standardised.before_model(torch.full(shape, float(limit(end)), device=device))[0]
        for limit, end in zip((np.min, np.max), classifier.clip_values, strict=True)
    )
    inner = normalisation_of(classifier.model, low, high, 2 if has_channels_behind(classifier) else 0)
    return None if inner is None else np.abs(inner.std.cpu().numpy())
