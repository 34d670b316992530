"""Every public option: what is a word, a flag or a number is checked to be one, and numpy's scalars are numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext import (
    L2,
    AttackSpec,
    ExplanationReconstructor,
    FeatureAutoencoder,
    HeatAndBlur,
    JumpReLU,
    Linf,
    RestorationLoss,
    Surrogate,
    evaluate,
)
from art_defenses_ext.attack.annealed_pgd import AnnealedPGD
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.deep_fool import DeepFoolLp
from art_defenses_ext.attack.iterative_fgsm import IterativeFGSM
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.attack.random_noise import RandomNoise
from art_defenses_ext.attack.square import Square
from art_defenses_ext.attribution.relevance import TopK
from art_defenses_ext.attribution.rules import AlphaBeta, Epsilon, Gamma
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.suite.suites import STANDARD
from art_defenses_ext.training.inputs import GaussianNoise, SignedGradient
from art_defenses_ext.training.settings import Settings

NO_FLAGS = ["no", "false", "", None, 0, 1, np.array([True]), np.array(3)]
NO_NUMBERS = ["2", "a", None, True, [0.1], np.array([0.1, 0.2]), np.array(0.1), float("nan"), 1j, torch.tensor(0.1)]
NO_COUNTS = ["2", None, True, 0, -1, 2.5, 2.0, [2], np.array([2]), float("inf"), 10**400]
NO_WORDS = [None, 0, True, ["margin"], np.array(["a", "b"]), np.array([1.0, 2.0]), b"margin", object()]


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 4))


@cache
def classifier() -> PyTorchClassifier:
    return PyTorchClassifier(network(), nn.CrossEntropyLoss(), (1, 8, 8), 4, clip_values=(0.0, 1.0), device_type="cpu")


X = np.random.default_rng(0).random((4, 1, 8, 8), dtype=np.float32)
Y = np.arange(4)


def evaluated(**options: Any) -> Any:
    brief = AttackSpec("noise", lambda c, t, seed: RandomNoise(c, t.norm, t.eps, 1, seed=seed), "", kind="noise")
    settings: dict[str, Any] = {"curve_samples": 0, "check_samples": 0, "progress": False} | options
    return evaluate(classifier(), (X, Y), Linf(0.1), [brief], **settings)


def spec(**options: Any) -> AttackSpec:
    return AttackSpec("noise", lambda c, t, seed: RandomNoise(c, t.norm, t.eps, 1, seed=seed), "", **options)


def attack(kind: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **options: kind(classifier(), **options)


def restorer(**options: Any) -> None:
    FeatureAutoencoder.for_classifier(classifier(), width=2).fit(X, Y, nb_epochs=1, progress=False, **options)


Make = Callable[..., Any]
FLAGS: list[tuple[Make, str]] = [
    (evaluated, "adaptive"),
    (spec, "curve"),
    (spec, "bounded"),
    (attack(AutoPGD), "targeted"),
    (attack(AutoPGD), "verbose"),
    (attack(Square), "targeted"),
    (attack(MarginPGD), "stop_when_broken"),
    (lambda **options: JumpReLU(classifier(), **options), "copy"),
    (lambda **options: HeatAndBlur.for_classifier(classifier(), **options), "apply_predict"),
    (lambda **options: SignedGradient(0.1, 0.1, **options), "random_start"),
    (restorer, "adversarial"),
]
NUMBERS: list[tuple[Make, str]] = [
    (Linf, "eps"),
    (L2, "eps"),
    *((attack(kind), "eps") for kind in (AutoPGD, AnnealedPGD, MarginPGD, Square, RandomNoise)),
    (attack(Square), "p_init"),
    (attack(DeepFoolLp), "overshoot"),
    (attack(IterativeFGSM), "eps_step"),
    (AlphaBeta, "alpha"),
    (lambda **options: AlphaBeta(1.0, **options), "beta"),
    (Epsilon, "epsilon"),
    (Gamma, "gamma"),
    (lambda **options: JumpReLU(classifier(), **options), "jump"),
    (lambda **options: HeatAndBlur.for_classifier(classifier(), **options), "heat_sigma"),
    (lambda **options: HeatAndBlur.for_classifier(classifier(), **options), "floor"),
    (lambda **options: Surrogate(nn.Identity(), **options), "sigma"),
    (lambda **options: Settings(nb_epochs=1, **options), "learning_rate"),
    (lambda **options: Settings(nb_epochs=1, **options), "weight_decay"),
    (GaussianNoise, "sigma"),
    (RestorationLoss, "pixel_weight"),
    (lambda **options: FeatureAutoencoder.for_classifier(classifier(), **options), "leak"),
    (lambda **options: ExplanationReconstructor(classifier(), **options), "false_positive_rate"),
]
COUNTS: list[tuple[Make, str]] = [
    (evaluated, "block_size"),
    (attack(AutoPGD), "max_iter"),
    (attack(AutoPGD), "batch_size"),
    (attack(Square), "max_queries"),
    (attack(RandomNoise), "nb_draws"),
    (attack(DeepFoolLp), "nb_grads"),
    (TopK, "k"),
    (lambda **options: HeatAndBlur.for_classifier(classifier(), **options), "passes"),
    (Settings, "nb_epochs"),
    (lambda **options: Settings(nb_epochs=1, **options), "patience"),
    (lambda **options: ExplanationReconstructor(classifier(), **options), "hidden"),
]
WORDS: list[tuple[Make, str]] = [
    (spec, "kind"),
    (spec, "modes"),
    (attack(AutoPGD), "loss"),
    (attack(AutoPGD), "norm"),
    (attack(AutoPGD), "gradient_mode"),
    (lambda **options: HeatAndBlur.for_classifier(classifier(), **options), "mix"),
    (lambda **options: FeatureAutoencoder.for_classifier(classifier(), **options), "architecture"),
    (lambda **options: SignedGradient(0.1, 0.1, **options), "through"),
    (RestorationLoss, "pixel"),
    (RestorationLoss, "network"),
    (lambda **options: Surrogate(nn.Identity(), **options), "backward"),
    (lambda **options: ExplanationReconstructor(classifier(), **options), "score"),
]
# A value that such an option may have.
FINE = {"jump": [[0.1], (0.1,)], "patience": [None], "gradient_mode": [None], "norm": [], "pixel_weight": []}


def senseless(make: Make, name: str, values: list[Any]) -> list[Any]:
    """Those of the values that such an option may not have."""
    return [
        value
        for value in values
        if not any(type(value) is type(fine) and repr(value) == repr(fine) for fine in FINE.get(name, []))
        and not (make in (Linf, L2) and isinstance(value, str) and value == "2")  # understood, as "8/255" is
    ]


KINDS = ((FLAGS, NO_FLAGS), (NUMBERS, NO_NUMBERS), (COUNTS, NO_COUNTS), (WORDS, NO_WORDS))


@pytest.mark.parametrize(
    ("make", "name", "values"),
    [
        pytest.param(make, name, senseless(make, name, values), id=f"{place}-{name}")
        for options, values in KINDS
        for place, (make, name) in enumerate(options)
    ],
)
def test_what_is_no_such_value_is_refused_in_one_sentence(make: Make, name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InputError, match=name.replace("_", "[_ ]")) as error:
            make(**{name: value})
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (evaluated, "adaptive", np.True_),
        (evaluated, "block_size", np.int64(2)),
        (evaluated, "seed", np.uint8(3)),
        (spec, "curve", np.False_),
        (attack(AutoPGD), "targeted", np.False_),
        (attack(AutoPGD), "eps", np.float32(0.1)),
        (attack(AutoPGD), "max_iter", np.int32(2)),
        (attack(AutoPGD), "loss", np.str_("margin")),
        (attack(Square), "p_init", np.float64(0.5)),
        (attack(DeepFoolLp), "nb_grads", np.int16(3)),
        (Linf, "eps", np.float16(0.5)),
        (AlphaBeta, "alpha", np.float32(2.0)),
        (Settings, "nb_epochs", np.int64(2)),
        (lambda **options: JumpReLU(classifier(), **options), "jump", np.float32(0.5)),
        (lambda **options: HeatAndBlur.for_classifier(classifier(), **options), "passes", np.int64(2)),
        (lambda **options: ExplanationReconstructor(classifier(), **options), "hidden", np.int64(8)),
    ],
)
def test_numpys_scalars_are_taken_everywhere(make: Make, name: str, value: Any) -> None:
    make(**{name: value})


def test_an_attack_with_numpys_scalars_gives_the_same_images() -> None:
    plain = AutoPGD(classifier(), np.inf, 0.5, max_iter=3, seed=4, batch_size=2).generate(X, Y)
    attack = AutoPGD(
        classifier(), np.float64(np.inf), np.float64(0.5), max_iter=np.int64(3), seed=np.int64(4), batch_size=np.int8(2)
    )
    np.testing.assert_array_equal(attack.generate(X, Y), plain)


def test_a_run_with_numpys_scalars_is_the_same_run() -> None:
    """Its settings become JSON."""
    plain = evaluated(block_size=2, seed=3)
    with_scalars = evaluated(block_size=np.int64(2), seed=np.int64(3), curve_samples=np.int32(0), adaptive=np.True_)
    assert with_scalars.records == plain.records
    assert with_scalars.summary.run.settings == plain.summary.run.settings
    assert type(with_scalars.summary.run.settings.block_size) is int


def test_no_standard_attack_was_given_a_word_of_another_kind() -> None:
    assert all(type(spec.curve) is bool and type(spec.bounded) is bool for spec in STANDARD)
