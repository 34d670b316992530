"""The attack suites, as data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from art.attacks.attack import EvasionAttack
from art.attacks.evasion import CarliniL2Method, CarliniLInfMethod, HopSkipJump
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.attack.annealed_pgd import AnnealedPGD
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.deep_fool import DeepFoolLp
from art_defenses_ext.attack.diff_hammer import DiffHammer
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.attack.orthogonal_pgd import LagrangianPGD, OrthogonalPGD, SelectivePGD
from art_defenses_ext.attack.random_noise import RandomNoise
from art_defenses_ext.attack.square import Square
from art_defenses_ext.attack.staged_pgd import Stage, StagedPGD
from art_defenses_ext.base.declared import accepted
from art_defenses_ext.base.entry_points import load_installed
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown
from art_defenses_ext.estimator.averaged import one_pass
from art_defenses_ext.estimator.defend import as_module
from art_defenses_ext.estimator.rebuild import rebuild
from art_defenses_ext.estimator.rejecting import rejects
from art_defenses_ext.evaluation.config import NamedAttacks
from art_defenses_ext.evaluation.suite.papers import clip_width, fgsm, specs_of_papers
from art_defenses_ext.evaluation.suite.predictions import nb_labels
from art_defenses_ext.evaluation.suite.spec import AttackSpec, Build, Modes, built
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.gradients.modes import find_defences


def targeted(max_iter: int = 100) -> Build:
    """Return the build function of Auto-PGD towards each of at most nine nearest classes."""

    def build(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
        count = nb_labels(classifier)
        loss = "dlr_targeted" if count > 3 else "margin_targeted"  # the former needs four logits
        return built(AutoPGD, loss=loss, nb_runs=min(9, count - 1), max_iter=max_iter)(classifier, threat, seed)

    return build


def _transfer(steps: int) -> Build:
    # Examples that stop at the boundary of one network seldom lie beyond that of another: dig on.
    return built(MarginPGD, max_iter=steps, stop_when_broken=False)


def _square(queries: int) -> Build:
    return built(Square, max_queries=queries, batch_size=512)


def _white_box(name: str, build: Build, purpose: str, modes: Modes = "all", *, curve: bool = False) -> AttackSpec:
    return AttackSpec(name, build, f"white-box: {purpose}", kind="white-box", modes=modes, curve=curve)


NOISE = built(RandomNoise, nb_draws=100)

WHITE_BOX = _white_box(
    "APGD margin", built(AutoPGD, loss="margin"), "Auto-PGD on the logit margin, 100 steps", curve=True
)
"""The first attack of each suite: the checks ask whether it works."""

LONG_STAGES = (
    Stage("probability_margin", 30),
    Stage("dlr_targeted", 100, nb_runs=9, share=0.15, least=64, from_best=False, factor=0.5),
    Stage("probability_margin", 100, nb_runs=2, share=0.1, least=32, from_best=False, factor=0.25),
    Stage("cross_entropy", 100, nb_runs=2, share=0.1, least=32, from_best=False, factor=0.1),
)
"""The stages of the suite ``standard``. **Convention**: chosen on validation images, see docs/evaluation.md."""

STANDARD = (
    WHITE_BOX,
    _white_box("APGD cross-entropy", built(AutoPGD, loss="cross_entropy"), "another loss finds other ways, 100 steps"),
    _white_box(
        "APGD staged, long", built(StagedPGD, stages=LONG_STAGES), "nine targets and restarts near the boundary"
    ),
    _white_box(
        "APGD annealed",
        built(AnnealedPGD),
        "smooth surrogates that narrow from run to run of 100 steps",
        "annealable",
    ),
    AttackSpec(
        "APGD smoothed",
        built(AutoPGD, loss="margin", max_iter=50),
        "surrogate: the gradient of the network under noise, estimated; only where gradients mislead",
        kind="white-box",
        crafted_on="smoothed",
    ),
    AttackSpec(
        "transfer PGD-40",
        _transfer(40),
        "made on the undefended model: needs no gradient of the defence",
        kind="transfer",
        crafted_on="undefended",
        samples="all",
        curve=True,
    ),
    AttackSpec("FGSM", fgsm, "a single step: must not find what many steps did not", kind="single step", modes="all"),
    AttackSpec("Square", _square(500), "black-box: 500 queries, so no gradient can mislead it", kind="queries"),
    AttackSpec("noise", NOISE, "a control: the best of 100 uniform draws", kind="noise"),
)
"""The attack suite: one attack of each kind that could break a defence."""


FAST = (
    _white_box(
        "APGD margin, 30 steps", built(AutoPGD, loss="margin", max_iter=30), "Auto-PGD on the logit margin", curve=True
    ),
    _white_box("APGD staged", built(StagedPGD), "losses and targets in turn, the longer the nearer to the boundary"),
    AttackSpec(
        "APGD smoothed, 20 steps",
        built(AutoPGD, loss="margin", max_iter=20),
        "surrogate: the gradient of the network under noise, estimated; only where gradients mislead",
        kind="white-box",
        crafted_on="smoothed",
    ),
    AttackSpec(
        "transfer PGD-20",
        _transfer(20),
        "made on the undefended model: needs no gradient of the defence",
        kind="transfer",
        crafted_on="undefended",
        samples="all",
    ),
    AttackSpec("FGSM", fgsm, "a single step: must not find what many steps did not", kind="single step", modes="all"),
    AttackSpec(
        "Square, 250 queries", _square(250), "black-box: on few images, to see masking", kind="queries", samples="few"
    ),
    AttackSpec("noise", NOISE, "a control: the best of 100 uniform draws", kind="noise", samples="few"),
)
"""The suite for every day: an attack of each kind, most of the steps where an image is nearly broken."""

DIFF_HAMMER = _white_box(
    "DiffHammer",
    lambda classifier, threat, seed: built(DiffHammer, draws=20, max_iter=30)(one_pass(classifier), threat, seed),
    "for random defences: 30 steps along the gradient of the draws that one step can break together",
)
"""An attack on random defences, in no suite: ``[*STANDARD, DIFF_HAMMER]`` adds it."""

FIRSTS = (WHITE_BOX, FAST[0])
"""The attacks that the checks run at an eps without hope."""


CARLINI = {
    "linf": partial(CarliniLInfMethod, learning_rate=0.01, batch_size=1),
    "l2": partial(CarliniL2Method, binary_search_steps=9, learning_rate=0.01, batch_size=128),
}
"""ART's two forms of Carlini and Wagner's attack, by norm."""


def _carlini(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    return CARLINI[threat.norm_name](classifier, max_iter=50, verbose=False)


def _deep_fool(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    return DeepFoolLp(classifier, threat.norm, 100, scale=clip_width(classifier))


def _hop_skip_jump(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    # Under NumPy 2 it asks in float64, which the network alone refuses and the module casts.
    whole = rebuild(classifier, model=as_module(classifier), preprocessing_defences=None, preprocessing=(0.0, 1.0))
    return HopSkipJump(whole, norm=threat.norm, max_iter=10, max_eval=1000, init_eval=10, verbose=False)


LINF_AND_L2: dict[str, Any] = {"bounded": False, "norms": tuple(CARLINI)}
"""ART has no form of its two for l1, and a step of DeepFool would change one pixel value far beyond the clip range."""

FULL = (
    *STANDARD,
    _white_box("APGD targeted", targeted(), "towards each of the nine nearest classes, 100 steps each, on all images"),
    _white_box(
        "APGD annealed, slower",
        built(AnnealedPGD, factors=(2.0, 1.0, 0.5, 0.25, 0.1, 0.05, 0.025), loss="cross_entropy", max_iter=300),
        "the same on another loss, with more and longer runs",
        "annealable",
    ),
    _white_box("APGD restarts", built(AutoPGD, loss="margin", nb_runs=10), "ten more random starts"),
    AttackSpec("Square, 5,000 queries", _square(5000), "black-box: ten times the queries", kind="queries"),
    AttackSpec("DeepFool", _deep_fool, "minimum norm: the nearest boundary, linearised", modes="all", **LINF_AND_L2),
    AttackSpec("C&W", _carlini, "minimum norm: Carlini and Wagner's, ART's form", **LINF_AND_L2),
    AttackSpec("HopSkipJump", _hop_skip_jump, "minimum norm: from decisions alone", kind="queries", **LINF_AND_L2),
)
"""The standard attacks and those that take longer."""


def _evading(attack: Callable[..., EvasionAttack]) -> Build:
    """Make an attack that goes on lowering the detection score of images that are accepted already."""

    def build(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
        mode = "+".join(defence.gradient_mode for defence in find_defences(classifier)) or "exact"
        return attack(classifier, threat.norm, threat.eps, stop_below=-math.inf, gradient_mode=mode, seed=seed)

    return build


DETECTOR_SUITE = tuple(
    AttackSpec(name, _evading(attack), purpose, kind="white-box", modes="smoothest", samples="all")
    for name, attack, purpose in (
        ("selective PGD", SelectivePGD, "white-box, against classifier and detector in turn: 100 steps"),
        ("orthogonal PGD", OrthogonalPGD, "white-box: the same, each step orthogonal to the other's gradient"),
        ("Lagrangian PGD", LagrangianPGD, "white-box: a weighted sum of both, for several weights"),
    )
)
"""The attacks added where a detector rejects. They run on all samples, since the detector's figures come from them."""

BLIND = ("C&W", "HopSkipJump")
"""ART's attacks in ``FULL``: to them "rejected" is a class like any other, and they would stop there."""


SUITES: dict[str, tuple[AttackSpec, ...]] = {"fast": FAST, "standard": STANDARD, "full": FULL}


def attack_set(attacks: str | Sequence[AttackSpec], classifier: PyTorchClassifier) -> tuple[AttackSpec, ...]:
    """Return the attacks of a set for the defences that ``classifier`` has, in the order in which they run.

    Our attacks come first, so that the checks can tell what its white-box attacks find by themselves; the papers'
    attacks run on all samples in any case.

    Args:
        attacks: names as :data:`.NamedAttacks` declares them, or attacks of one's own.
        classifier: the defended classifier.

    Raises:
        InputError: for an unknown name, no attack at all, or two of one name.
    """
    if isinstance(attacks, str):
        chosen = _named(accepted(NamedAttacks, "attacks", attacks).split("+"), classifier)
    else:
        chosen = tuple(attacks) if isinstance(attacks, list | tuple) else ()
        if not chosen or not all(isinstance(spec, AttackSpec) for spec in chosen):
            raise InputError(f"attacks is {shown(attacks)}; a set's name or a list of AttackSpec was expected")
    if len({spec.name for spec in chosen}) < len(chosen):
        raise InputError("attacks holds two of one name; distinct names were expected")
    return chosen


def _named(names: list[str], classifier: PyTorchClassifier) -> tuple[AttackSpec, ...]:
    """The attacks of suites and packages; those of the papers come last."""
    chosen: tuple[AttackSpec, ...] = ()
    for name in names:
        if name in SUITES:
            chosen += _with_detector(SUITES[name]) if rejects(classifier) else SUITES[name]
        elif name != "papers":
            chosen += (load_attack(name),)
    papers = specs_of_papers(classifier) if {"papers", *SUITES} & set(names) else ()
    if not papers and "papers" in names:
        raise InputError("attacks is 'papers', but the classifier has no defence that a paper attacks; use 'standard'")
    return chosen + papers


@cache
def load_attack(name: str) -> AttackSpec:
    """The attack of another package, by its entry point of the group ``art_defenses_ext.attacks``.

    Raises:
        InputError: for another name, and for what cannot be imported or is no ``AttackSpec``.
    """
    spec = load_installed("attack", name)
    if not isinstance(spec, AttackSpec):
        raise InputError(f"attack {name} is {shown(spec)}; an AttackSpec was expected")
    return spec


def _with_detector(suite: tuple[AttackSpec, ...]) -> tuple[AttackSpec, ...]:
    """Return the suite for a classifier that rejects: the detector's attacks follow the white-box ones."""
    seeing = [spec for spec in suite if spec.name not in BLIND]
    white = max(place for place, spec in enumerate(seeing) if spec.kind == "white-box" and spec in (*STANDARD, *FAST))
    return (*seeing[: white + 1], *DETECTOR_SUITE, *seeing[white + 1 :])
