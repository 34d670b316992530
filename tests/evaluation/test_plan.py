"""The plan: every attack, under each mode that it asks for, then the curve."""

from __future__ import annotations

import numpy as np
import pytest
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.evaluation.attacks import AttackSpec
from art_defenses_ext.evaluation.plan import CURVE_FACTORS, AttackRun, make_plan
from art_defenses_ext.evaluation.threats import L2, Linf, Threat
from art_defenses_ext.transformer.jump_relu import JumpReLU


def never(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    raise AssertionError("a plan builds no attack")


ONCE = AttackSpec("once", never, "")
IN_ALL_MODES = AttackSpec("in all modes", never, "", all_modes=True)
CURVED = AttackSpec("curved", never, "", curve=True)
BOTH = AttackSpec("both", never, "", all_modes=True, curve=True)

MODES = ("exact", "relu", "smooth")


@pytest.fixture(scope="module")
def defended(digits_classifier: PyTorchClassifier) -> PyTorchClassifier:
    return JumpReLU(digits_classifier, 1.0)()


def test_an_attack_for_all_modes_is_unrolled_in_place(defended: PyTorchClassifier) -> None:
    plan = make_plan((ONCE, IN_ALL_MODES, CURVED), defended, Linf(0.1), with_curve=False)
    expected = [(ONCE, "exact"), *((IN_ALL_MODES, mode) for mode in MODES), (CURVED, "exact")]
    assert [(run.spec, run.mode) for run in plan] == expected
    assert all(run.threat == Linf(0.1) and not run.curve for run in plan)


def test_without_a_defence_there_is_one_mode(digits_classifier: PyTorchClassifier) -> None:
    plan = make_plan((IN_ALL_MODES,), digits_classifier, Linf(0.1), with_curve=False)
    assert [run.mode for run in plan] == ["exact"]


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)])
def test_the_curve_comes_last_at_each_eps_and_mode(defended: PyTorchClassifier, threat: Threat) -> None:
    specs = (CURVED, BOTH, ONCE)
    plan = make_plan(specs, defended, threat, with_curve=True)
    runs = [run for run in plan if not run.curve]
    assert plan[: len(runs)] == runs == make_plan(specs, defended, threat, with_curve=False)
    curve = plan[len(runs) :]
    families = [("curved", "exact"), *(("both", mode) for mode in MODES)]
    expected = [(*family, factor) for family in families for factor in CURVE_FACTORS]
    assert [(run.spec.name, run.mode, pytest.approx(run.threat.eps / threat.eps)) for run in curve] == expected
    assert all(run.curve for run in curve)
    assert all(type(run.threat) is type(threat) for run in plan)


def test_the_curve_rises_through_the_threat_itself() -> None:
    assert list(CURVE_FACTORS) == sorted(set(CURVE_FACTORS))
    assert CURVE_FACTORS[0] > 0
    assert 1.0 in CURVE_FACTORS


def test_each_run_has_a_key_of_its_own(defended: PyTorchClassifier) -> None:
    plan = make_plan((ONCE, IN_ALL_MODES, CURVED, BOTH), defended, Linf(0.1), with_curve=True)
    assert len({run.key for run in plan}) == len(plan)


def test_a_key_names_the_attack_its_mode_and_on_a_curve_its_eps() -> None:
    assert AttackRun(ONCE, "exact", Linf(0.1)).key == "once"
    assert AttackRun(BOTH, "smooth", Linf(0.1)).key == "both [smooth]"
    assert AttackRun(BOTH, "smooth", Linf(0.05), curve=True).key == "both [smooth] @ 0.05"
    assert AttackRun(CURVED, "exact", L2(np.sqrt(0.25)), curve=True).key == "curved @ 0.5"


def test_a_family_is_what_the_points_of_one_curve_share(defended: PyTorchClassifier) -> None:
    curve = [run for run in make_plan((BOTH,), defended, Linf(0.1), with_curve=True) if run.curve]
    assert [run.family for run in curve] == [f"both [{mode}]" for mode in MODES for _ in CURVE_FACTORS]
