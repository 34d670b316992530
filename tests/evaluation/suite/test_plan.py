"""The plan: every attack, under each mode that it asks for, then what the checks need, then the curve."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from art.attacks.attack import EvasionAttack
from art.defences.detector.evasion import BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext import rejecting
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.ball import L2, Linf
from art_defenses_ext.evaluation.suite.attacker import Attacker
from art_defenses_ext.evaluation.suite.plan import CURVE_FACTORS, EFFORT, AttackRun, hopeless, make_plan
from art_defenses_ext.evaluation.suite.spec import FEW, AttackSpec
from art_defenses_ext.evaluation.suite.suites import FAST, STANDARD, WHITE_BOX
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.transformer.jump_relu import JumpReLU
from art_defenses_ext.zoo.datasets import Dataset


def refuse_to_build(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    raise AssertionError("a plan builds no attack")


ONCE = AttackSpec("once", refuse_to_build, "")
IN_ALL_MODES = AttackSpec("in all modes", refuse_to_build, "", modes="all")
ANNEALED = AttackSpec("annealed", refuse_to_build, "", modes="annealable")
CURVED = AttackSpec("curved", refuse_to_build, "", curve=True)
BOTH = AttackSpec("both", refuse_to_build, "", modes="all", curve=True)

MODES = ("exact", "relu", "smooth")
LIMIT = Linf(0.5)


@pytest.fixture(scope="module")
def attacker(digits_classifier: PyTorchClassifier, digits: Dataset) -> Attacker:
    """The attacker of a network with a jump."""
    return Attacker.of(JumpReLU(digits_classifier, 1.0)(), digits.test.x[:4], Linf(0.1), adaptive=True, seed=0)


@pytest.fixture(scope="module")
def undefended_attacker(digits_classifier: PyTorchClassifier, digits: Dataset) -> Attacker:
    return Attacker.of(digits_classifier, digits.test.x[:4], Linf(0.1), adaptive=True, seed=0)


def test_an_attack_for_all_modes_is_unrolled_in_place(attacker: Attacker) -> None:
    plan = make_plan((ONCE, IN_ALL_MODES, CURVED), attacker, Linf(0.1), with_curve=False)
    expected = [(ONCE, "exact"), *((IN_ALL_MODES, mode) for mode in MODES), (CURVED, "exact")]
    assert [(run.spec, run.mode) for run in plan] == expected
    assert all(run.threat == Linf(0.1) and run.role == "suite" for run in plan)


def test_an_annealed_attack_runs_where_a_surrogate_has_a_width(
    attacker: Attacker, undefended_attacker: Attacker
) -> None:
    plan = make_plan((ONCE, ANNEALED), attacker, Linf(0.1), with_curve=False)
    assert [(run.spec, run.mode) for run in plan] == [(ONCE, "exact"), (ANNEALED, "smooth")]
    assert plan[1].key == "annealed [smooth]"
    undefended_plan = make_plan((ONCE, ANNEALED), undefended_attacker, Linf(0.1), with_curve=False)
    assert [run.spec for run in undefended_plan] == [ONCE]


def test_a_naive_attacker_gets_the_exact_gradient_alone(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    naive = Attacker.of(JumpReLU(digits_classifier, 1.0)(), digits.test.x[:4], Linf(0.1), adaptive=False, seed=0)
    plan = make_plan((ONCE, IN_ALL_MODES, ANNEALED), naive, Linf(0.1), with_curve=False)
    assert [(run.spec, run.mode) for run in plan] == [(ONCE, "exact"), (IN_ALL_MODES, "exact")]


# The curve


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)])
def test_the_curve_comes_last_at_each_eps_and_mode(attacker: Attacker, threat: Threat) -> None:
    specs = (CURVED, BOTH, ONCE)
    plan = make_plan(specs, attacker, threat, with_curve=True)
    runs = [run for run in plan if run.role == "suite"]
    assert plan[: len(runs)] == runs == make_plan(specs, attacker, threat, with_curve=False)
    curve = plan[len(runs) :]
    families = [("curved", "exact"), *(("both", mode) for mode in MODES)]
    expected = [(*family, factor) for family in families for factor in CURVE_FACTORS]
    assert [(run.spec.name, run.mode, pytest.approx(run.threat.eps / threat.eps)) for run in curve] == expected
    assert all(run.role == "curve" for run in curve)
    assert all(type(run.threat) is type(threat) for run in plan)


# What the checks need


def test_the_checks_runs_come_between_the_suite_and_the_curve(attacker: Attacker) -> None:
    """More steps on what is left at the threat's eps, then the first attack at the limit; in every mode."""
    specs = (WHITE_BOX, ONCE)
    plan = make_plan(specs, attacker, Linf(0.1), with_curve=True, with_checks=True, limit=LIMIT)
    suite = make_plan(specs, attacker, Linf(0.1), with_curve=False)
    curve = make_plan(specs, attacker, Linf(0.1), with_curve=True)[len(suite) :]
    assert plan[: len(suite)] == suite
    assert plan[-len(curve) :] == curve
    checks = [(run.role, run.spec, run.mode, run.threat) for run in plan[len(suite) : -len(curve)]]
    assert checks == [
        *(("effort", EFFORT, mode, Linf(0.1)) for mode in MODES),
        *(("limit", WHITE_BOX, mode, LIMIT) for mode in MODES),
    ]


def test_the_first_attack_of_each_suite_is_run_at_the_limit(attacker: Attacker) -> None:
    for suite in (FAST, STANDARD):
        plan = make_plan(suite, attacker, Linf(0.1), with_curve=False, with_checks=True, limit=LIMIT)
        assert [(run.spec, run.mode) for run in plan if run.role == "limit"] == [(suite[0], mode) for mode in MODES]


def test_the_limit_on_the_samples_of_a_block_holds_for_the_suite_alone() -> None:
    few = replace(ONCE, samples="few")
    assert [AttackRun(few, "exact", Linf(0.1)).most(samples) for samples in (2, FEW, 99)] == [2, FEW, FEW]
    assert AttackRun(few, "exact", Linf(0.1), "curve").most(99) == 99
    assert AttackRun(ONCE, "exact", Linf(0.1)).most(99) == 99


@pytest.mark.parametrize(("specs", "with_checks"), [((ONCE, BOTH), True), ((WHITE_BOX,), False)])
def test_checks_that_are_impossible_or_off_add_no_runs(
    specs: tuple[AttackSpec, ...], with_checks: bool, attacker: Attacker
) -> None:
    plan = make_plan(specs, attacker, Linf(0.1), with_curve=False, with_checks=with_checks, limit=LIMIT)
    assert {run.role for run in plan} == {"suite"}


@pytest.mark.parametrize("eps", [0.3, 1e-9, 1e5])
def test_the_curve_keeps_its_factors_whatever_the_unit(eps: float, undefended_attacker: Attacker) -> None:
    plan = make_plan((CURVED,), undefended_attacker, Linf(eps), with_curve=True)
    factors = [run.threat.eps / eps for run in plan if run.role == "curve"]
    assert factors == pytest.approx(list(CURVE_FACTORS), rel=1e-8)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)], ids=str)
def test_more_effort_is_six_times_that_of_the_first_attack(threat: Threat, attacker: Attacker) -> None:
    first, effort = (spec.build(attacker.attacked, threat, 3) for spec in (WHITE_BOX, EFFORT))
    assert isinstance(first, AutoPGD)
    assert isinstance(effort, AutoPGD)
    assert effort.max_iter * effort.nb_runs == 6 * first.max_iter * first.nb_runs
    for setting in ("norm", "eps", "loss", "seed"):
        assert getattr(effort, setting) == getattr(first, setting)


@pytest.mark.parametrize("clip_values", [(0.0, 1.0), (-1.0, 3.0)], ids=str)
def test_in_the_hopeless_ball_every_image_can_be_turned_grey(clip_values: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (3, 4, 4), 2, clip_values=clip_values)
    low, high = clip_values
    corners = np.random.default_rng(0).choice([low, high], size=(20, 48))  # no image is farther from grey
    distance = corners - (low + high) / 2
    for threat in (Linf(0.1), L2(0.5)):
        limit = hopeless(threat, classifier)
        assert limit is not None
        assert type(limit) is type(threat)
        assert np.linalg.norm(distance, ord=threat.norm, axis=1) == pytest.approx(limit.eps)


def test_where_a_detector_may_reject_grey_the_hopeless_ball_holds_every_image() -> None:
    def flat(nb_classes: int) -> PyTorchClassifier:
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, nb_classes))
        return PyTorchClassifier(model, nn.CrossEntropyLoss(), (3, 4, 4), nb_classes, clip_values=(-1.0, 3.0))

    rejecting_classifier = rejecting(flat(3), BinaryInputDetector(flat(2)))
    farthest_change = np.full(48, 4.0)  # no two images are farther from each other
    for threat in (Linf(0.1), L2(0.5)):
        limit = hopeless(threat, rejecting_classifier)
        assert limit is not None
        assert limit.eps == pytest.approx(np.linalg.norm(farthest_change, ord=threat.norm))


def test_the_smoothest_gradient_is_that_of_modes_with_a_width_or_else_of_all(
    attacker: Attacker, undefended_attacker: Attacker
) -> None:
    smoothest = AttackSpec("smoothest", refuse_to_build, "", modes="smoothest")
    for candidate, modes in ((attacker, ["smooth"]), (undefended_attacker, ["exact"])):
        assert [run.mode for run in make_plan((smoothest,), candidate, Linf(0.1), with_curve=False)] == modes


# Names


@pytest.mark.parametrize("specs", [(WHITE_BOX, ONCE, IN_ALL_MODES, CURVED, BOTH, ANNEALED), STANDARD, FAST])
def test_each_run_has_a_key_of_its_own(specs: tuple[AttackSpec, ...], attacker: Attacker) -> None:
    for threat in (Linf(0.1), Linf(LIMIT.eps / 2)):  # of the latter the curve passes through the limit
        plan = make_plan(specs, attacker, threat, with_curve=True, with_checks=True, limit=LIMIT)
        assert len({run.key for run in plan}) == len(plan)


def test_a_key_names_the_attack_its_mode_and_an_eps_that_is_not_the_threats() -> None:
    assert AttackRun(ONCE, "exact", Linf(0.1)).key == "once"
    assert AttackRun(BOTH, "smooth", Linf(0.1)).key == "both [smooth]"
    assert AttackRun(BOTH, "smooth", Linf(0.05), "curve").key == "both [smooth] @ 0.05"
    assert AttackRun(CURVED, "exact", L2(np.sqrt(0.25)), "curve").key == "curved @ 0.5"
    assert AttackRun(BOTH, "relu", Linf(0.5), "limit").key == "both [relu] @ 0.5, limit"
    assert AttackRun(BOTH, "relu", Linf(0.1), "effort").key == "both [relu]"


def test_white_box_attacks_of_the_suite_run_before_all_others_in_any_order(attacker: Attacker) -> None:
    def make(name: str, **kinds: Any) -> AttackSpec:
        return AttackSpec(name, refuse_to_build, "", **kinds)

    first, second = make("first", kind="white-box"), make("second", kind="white-box")
    step, paper = make("step", kind="single step"), make("paper", kind="white-box", source="paper")
    plan = make_plan((step, first, paper, second), attacker, Linf(0.1), with_curve=False)
    assert [run.spec.name for run in plan] == ["first", "second", "step", "paper"]
