"""The checks, on made-up records whose verdict is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from art.defences.detector.evasion import BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext import rejecting
from art_defenses_ext.attack.ball import Linf
from art_defenses_ext.base.pages import read_page
from art_defenses_ext.evaluation.checks.binarization import Binarization
from art_defenses_ext.evaluation.checks.checks import CHECKS, Check, Evidence, run_checks
from art_defenses_ext.evaluation.checks.gradient_health import GradientHealth
from art_defenses_ext.evaluation.checks.standing import lacking
from art_defenses_ext.evaluation.records.description import Settings
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.records.sample import Outcome, SampleRecord
from art_defenses_ext.evaluation.run.describe import describe_run
from art_defenses_ext.evaluation.suite.attacker import Attacker
from art_defenses_ext.evaluation.suite.plan import AttackRun, hopeless, make_plan
from art_defenses_ext.evaluation.suite.spec import FEW, AttackSpec
from art_defenses_ext.evaluation.suite.suites import STANDARD

THREAT, LIMIT = Linf(0.1), Linf(0.5)
SAMPLES = 100
HEALTHY = GradientHealth(
    "exact", 200, not_finite=0, zero=0, no_graph=0, vanishing=0, faithful=198, useful=(True,) * 200
)
SETTINGS = Settings(
    threat="linf", eps=0.1, attacks="standard", samples=SAMPLES, curve_samples=SAMPLES, check_samples=SAMPLES
)
LATE = {"single step": "FGSM [exact]", "transfer": "transfer PGD-40", "queries": "Square", "noise": "noise"}


@pytest.fixture
def attacker(digits_classifier: PyTorchClassifier) -> Attacker:
    return Attacker(
        digits_classifier, digits_classifier, digits_classifier, ("exact",), (), (), random=False, draws=1, votes=1
    )


def make_outcome(success: bool) -> Outcome:
    return Outcome(prediction=int(success), misclassified=success, linf=0.1, l2=0.5, success=success)


def make_evidence(attacker: Attacker, broken: dict[str, int] | None = None, **changes: Any) -> Evidence:
    """White-box attacks break the first 40 of 100 samples; ``broken`` holds how many others each attack breaks.

    At the limit every sample is broken; the curve falls by ten samples from eps to eps.
    """
    plan = make_plan(STANDARD, attacker, THREAT, with_curve=True, with_checks=True, limit=LIMIT)
    records = []
    for index in range(SAMPLES):
        record = SampleRecord(index, 0, 0, undefended_clean=0)
        for run in plan:
            if run.role == "limit":
                success = True
            elif run.role == "curve":
                success = index < 10 * (1 + int(8 * run.threat.eps / 0.2))
            elif run.spec.kind == "white-box" and run.role == "suite":
                success = index < 40
            elif index < 40:
                continue
            else:
                success = index - 40 < (broken or {}).get(run.key, 0)
            if run.spec.crafted_on != "smoothed":
                record.attacks[run.key] = make_outcome(success)
        records.append(record)
    test = Binarization(Proportion(49, 50), Proportion(0, 50), Proportion(50, 50))
    images = np.zeros((1, *attacker.classifier.input_shape), np.float32)
    description = describe_run(attacker, None, SETTINGS, images, np.zeros(1, np.int64))
    evidence = Evidence(description, plan, records, [HEALTHY], test)
    return replace(evidence, **changes)


def verdicts(evidence: Evidence) -> dict[str, str]:
    return {check.name: check.verdict for check in run_checks(evidence)}


def check_named(evidence: Evidence, name: str) -> Check:
    return next(check for check in run_checks(evidence) if check.name == name)


def test_every_check_passes_when_no_other_attack_breaks_more(attacker: Attacker) -> None:
    assert verdicts(make_evidence(attacker)) == dict.fromkeys(CHECKS, "passed")


@pytest.mark.parametrize(("name", "key"), LATE.items())
def test_late_successes_are_counted_on_images_unbroken_by_white_box_attacks(
    name: str, key: str, attacker: Attacker
) -> None:
    check = check_named(make_evidence(attacker, {key: 3}), name)
    assert check.verdict == "failed"  # Wilson's lower end of 3 of 60 is 1.7 %
    assert check.figures["late successes"] == Proportion(3, 60)
    assert "3 of 60" in check.finding
    assert check_named(make_evidence(attacker, {key: 1}), name).verdict == "passed"  # .3 %


def test_a_check_names_an_attack_that_ran_on_few_images(attacker: Attacker) -> None:
    evidence = make_evidence(attacker)
    few = replace(evidence, plan=[replace(run, spec=replace(run.spec, samples="few")) for run in evidence.plan])
    assert check_named(evidence, "queries").finding.endswith("images on which the white-box attacks failed")
    assert check_named(few, "queries").finding.endswith(f" (Square, on at most {FEW} of each block)")


@pytest.mark.parametrize(
    ("late_successes", "remaining", "verdict"), [(1, 3, "passed"), (2, 60, "passed"), (2, 50, "failed")]
)
def test_a_check_fails_by_the_lower_wilson_bound_and_never_by_a_single_sample(
    late_successes: int, remaining: int, verdict: str, attacker: Attacker
) -> None:
    evidence = make_evidence(attacker, {"Square": late_successes})
    assert check_named(replace(evidence, records=evidence.records[: 40 + remaining]), "queries").verdict == verdict


def test_the_check_fails_if_more_than_chance_is_left_at_the_limit(attacker: Attacker) -> None:
    evidence = make_evidence(attacker)
    key = next(run.key for run in evidence.plan if run.role == "limit")
    for record in evidence.records[:30]:  # ten classes, so 10 of 100 are chance and 30 are not
        record.attacks[key] = make_outcome(False)
    check = check_named(evidence, "larger eps")
    assert check.verdict == "failed"
    assert check.figures["left at the limit"] == Proportion(30, 100)


def test_accuracy_that_rises_with_eps_fails(attacker: Attacker) -> None:
    evidence = make_evidence(attacker)
    largest_eps_run = max(
        (run for run in evidence.plan if run.role == "curve" and run.spec.kind == "white-box"), key=_eps
    )
    for record in evidence.records:
        record.attacks[largest_eps_run.key] = make_outcome(record.index < 20)
    check = check_named(evidence, "larger eps")
    assert check.verdict == "failed"
    assert "between eps 0.15 and 0.2" in check.finding


def _eps(run: AttackRun) -> float:
    return run.threat.eps


def test_the_check_fails_if_more_effort_breaks_more_images(attacker: Attacker) -> None:
    key = next(run.key for run in make_evidence(attacker).plan if run.role == "effort")
    check = check_named(make_evidence(attacker, {key: 5}), "more effort")
    assert (check.verdict, check.figures["broken by more effort"]) == ("failed", Proportion(5, 60))


@pytest.mark.parametrize("flaw", ["zero", "vanishing", "not_finite"])
def test_points_without_a_useful_gradient_fail_unless_another_mode_has_one(flaw: str, attacker: Attacker) -> None:
    useless_health = replace(HEALTHY, useful=(False,) * 20 + (True,) * 180, **{flaw: 20})
    check = check_named(make_evidence(attacker, health=[useless_health]), "gradients")
    assert (check.verdict, check.figures["useless"]) == ("failed", Proportion(20, 200))
    assert check_named(make_evidence(attacker, health=[useless_health, HEALTHY]), "gradients").verdict == "passed"


def test_masked_gradients_fail_unless_estimated_gradients_were_attacked(attacker: Attacker) -> None:
    evidence = make_evidence(attacker, health=[replace(HEALTHY, faithful=120)])
    assert check_named(evidence, "gradients").verdict == "failed"
    for record in evidence.records[40:]:
        record.attacks["APGD smoothed"] = make_outcome(False)
    assert check_named(evidence, "gradients").verdict == "passed"


def test_masked_gradients_pass_when_every_image_is_broken(attacker: Attacker) -> None:
    evidence = make_evidence(attacker, health=[replace(HEALTHY, faithful=120)])
    assert check_named(replace(evidence, records=evidence.records[:40]), "gradients").verdict == "passed"


def test_a_random_defence_must_be_averaged(attacker: Attacker) -> None:
    random_attacker = replace(attacker, random=True, votes=11)
    assert check_named(make_evidence(random_attacker), "randomness").verdict == "failed"
    assert check_named(make_evidence(replace(random_attacker, draws=16)), "randomness").verdict == "passed"


def test_withheld_gradient_modes_fail(attacker: Attacker) -> None:
    check = check_named(make_evidence(replace(attacker, withheld=("relu", "smooth"))), "gradient modes")
    assert check.verdict == "failed"
    assert "relu, smooth" in check.finding


def test_images_that_the_exact_gradient_alone_does_not_break_are_counted(attacker: Attacker) -> None:
    evidence = make_evidence(replace(attacker, modes=("exact", "smooth")))
    for record in evidence.records[20:40]:
        for run in evidence.plan:
            if run.role == "suite" and run.mode == "exact" and run.spec.modes == "all":
                record.attacks[run.key] = make_outcome(False)
    check = check_named(evidence, "gradient modes")
    assert check.verdict == "passed"
    assert check.figures["hidden by the exact gradient"] == Proportion(20, 80)


@pytest.mark.parametrize(
    ("found_count", "by_chance", "verdict"),
    [(50, 0, "passed"), (45, 0, "passed"), (44, 0, "failed"), (50, 26, "not run"), (10, 25, "failed")],
)
def test_planted_examples_must_be_found_but_not_by_chance(
    found_count: int, by_chance: int, verdict: str, attacker: Attacker
) -> None:
    test = Binarization(Proportion(found_count, 50), Proportion(by_chance, 50), Proportion(50, 50))
    assert check_named(make_evidence(attacker, binarization=test), "binarization").verdict == verdict


def test_without_the_test_binarization_is_not_run(attacker: Attacker) -> None:
    assert check_named(make_evidence(attacker, binarization=None), "binarization").verdict == "not run"


def test_with_a_detector_findings_speak_of_rejection_and_binarization_is_not_run(
    attacker: Attacker, digits_classifier: PyTorchClassifier
) -> None:
    binary_classifier = PyTorchClassifier(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), nn.CrossEntropyLoss(), (1, 8, 8), 2, clip_values=(0, 1)
    )
    with_detector = replace(attacker, classifier=rejecting(digits_classifier, BinaryInputDetector(binary_classifier)))
    test = Binarization(Proportion(50, 50), Proportion(0, 50), Proportion(50, 50))
    check = check_named(make_evidence(with_detector, binarization=test), "binarization")
    assert check.verdict == "not run"
    assert "the detector was fitted to the original one" in check.finding
    assert "stay correct or rejected at" in check_named(make_evidence(with_detector), "larger eps").finding
    assert "turned grey" not in check_named(make_evidence(with_detector), "larger eps").finding


def test_without_white_box_attacks_nothing_is_checked(attacker: Attacker) -> None:
    noise = AttackSpec("noise", STANDARD[-1].build, "", kind="noise")
    record = SampleRecord(0, 0, 0, attacks={"noise": make_outcome(False)})
    evidence = make_evidence(attacker, plan=[AttackRun(noise, "exact", THREAT)], records=[record])
    assert set(verdicts(evidence).values()) == {"not run"}


def test_each_check_links_to_its_paragraph(attacker: Attacker) -> None:
    for check in run_checks(make_evidence(attacker)):
        section = read_page(check.link.removeprefix("art-defenses docs "))
        assert section.startswith(f"## {check.name}\n")


def test_at_the_limit_every_image_can_be_turned_grey(digits_classifier: PyTorchClassifier) -> None:
    assert hopeless(THREAT, digits_classifier) == Linf(0.5)


def test_gradients_that_were_not_examined_are_not_judged(attacker: Attacker) -> None:
    assert check_named(make_evidence(attacker, health=[]), "gradients").verdict == "not run"


def test_a_white_box_attack_on_a_few_images_is_no_adaptive_suite(attacker: Attacker) -> None:
    spec = replace(next(spec for spec in STANDARD if spec.kind == "white-box"), samples="few")
    evidence = make_evidence(attacker)
    few = make_plan((spec,), attacker, THREAT, with_curve=False)
    assert lacking(evidence.run, few) == "none of the suite's white-box attacks was run"
    whole = make_plan((replace(spec, samples="unbroken"),), attacker, THREAT, with_curve=False)
    assert not lacking(evidence.run, whole)
