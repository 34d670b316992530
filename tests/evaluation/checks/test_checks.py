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


def outcome(success: bool) -> Outcome:
    return Outcome(prediction=int(success), misclassified=success, linf=0.1, l2=0.5, success=success)


def evidence(attacker: Attacker, broken: dict[str, int] | None = None, **changes: Any) -> Evidence:
    """White-box attacks break the first 40 of 100 samples; each attack of ``broken`` so many of the rest.

    At the limit every sample is broken; the curve falls by ten samples from eps to eps.
    """
    plan = make_plan(STANDARD, attacker, THREAT, with_curve=True, with_checks=True, limit=LIMIT)
    records = []
    for index in range(SAMPLES):
        record = SampleRecord(index, 0, 0, undefended_clean=0)
        for run in plan:
            if run.role == "limit":
                hit = True
            elif run.role == "curve":
                hit = index < 10 * (1 + int(8 * run.threat.eps / 0.2))
            elif run.spec.kind == "white-box" and run.role == "suite":
                hit = index < 40
            elif index < 40:
                continue
            else:
                hit = index - 40 < (broken or {}).get(run.key, 0)
            if run.spec.crafted_on != "smoothed":
                record.attacks[run.key] = outcome(hit)
        records.append(record)
    test = Binarization(Proportion(49, 50), Proportion(0, 50), Proportion(50, 50))
    images = np.zeros((1, *attacker.classifier.input_shape), np.float32)
    run_as_it_was = describe_run(attacker, None, SETTINGS, images, np.zeros(1, np.int64))
    whole = Evidence(run_as_it_was, plan, records, [HEALTHY], test)
    return replace(whole, **changes)


def verdicts(found: Evidence) -> dict[str, str]:
    return {check.name: check.verdict for check in run_checks(found)}


def one(found: Evidence, name: str) -> Check:
    return next(check for check in run_checks(found) if check.name == name)


def test_an_attack_that_leaves_nothing_to_others_passes_every_check(attacker: Attacker) -> None:
    assert verdicts(evidence(attacker)) == dict.fromkeys(CHECKS, "passed")


@pytest.mark.parametrize(("name", "key"), LATE.items())
def test_a_late_success_is_counted_among_images_unbroken_by_white_boxes(
    name: str, key: str, attacker: Attacker
) -> None:
    check = one(evidence(attacker, {key: 3}), name)
    assert check.verdict == "failed"  # Wilson's lower end of 3 of 60 is 1.7 %
    assert check.figures["late successes"] == Proportion(3, 60)
    assert "3 of 60" in check.finding
    assert one(evidence(attacker, {key: 1}), name).verdict == "passed"  # .3 %


def test_a_check_of_an_attack_on_few_images_says_so(attacker: Attacker) -> None:
    found = evidence(attacker)
    few = replace(found, plan=[replace(run, spec=replace(run.spec, samples="few")) for run in found.plan])
    assert one(found, "queries").finding.endswith("images on which the white-box attacks failed")
    assert one(few, "queries").finding.endswith(f" (Square, on at most {FEW} of each block)")


@pytest.mark.parametrize(("late", "left", "verdict"), [(1, 3, "passed"), (2, 60, "passed"), (2, 50, "failed")])
def test_the_lower_end_of_the_interval_decides_and_never_a_single_sample(
    late: int, left: int, verdict: str, attacker: Attacker
) -> None:
    found = evidence(attacker, {"Square": late})
    assert one(replace(found, records=found.records[: 40 + left]), "queries").verdict == verdict


def test_what_breaks_at_the_limit_only_by_chance_fails(attacker: Attacker) -> None:
    found = evidence(attacker)
    key = next(run.key for run in found.plan if run.role == "limit")
    for record in found.records[:30]:  # ten classes, so 10 of 100 are chance and 30 are not
        record.attacks[key] = outcome(False)
    check = one(found, "larger eps")
    assert check.verdict == "failed"
    assert check.figures["left at the limit"] == Proportion(30, 100)


def test_accuracy_that_rises_with_eps_fails(attacker: Attacker) -> None:
    found = evidence(attacker)
    last = max((run for run in found.plan if run.role == "curve" and run.spec.kind == "white-box"), key=_eps)
    for record in found.records:
        record.attacks[last.key] = outcome(record.index < 20)
    check = one(found, "larger eps")
    assert check.verdict == "failed"
    assert "between eps 0.15 and 0.2" in check.finding


def _eps(run: AttackRun) -> float:
    return run.threat.eps


def test_more_effort_that_breaks_more_fails(attacker: Attacker) -> None:
    key = next(run.key for run in evidence(attacker).plan if run.role == "effort")
    check = one(evidence(attacker, {key: 5}), "more effort")
    assert (check.verdict, check.figures["broken by more effort"]) == ("failed", Proportion(5, 60))


@pytest.mark.parametrize("flaw", ["zero", "vanishing", "not_finite"])
def test_points_without_a_useful_gradient_fail_unless_another_mode_has_one(flaw: str, attacker: Attacker) -> None:
    useless = replace(HEALTHY, useful=(False,) * 20 + (True,) * 180, **{flaw: 20})
    check = one(evidence(attacker, health=[useless]), "gradients")
    assert (check.verdict, check.figures["useless"]) == ("failed", Proportion(20, 200))
    assert one(evidence(attacker, health=[useless, HEALTHY]), "gradients").verdict == "passed"


def test_gradients_that_mislead_fail_unless_the_smoothed_network_was_attacked(attacker: Attacker) -> None:
    misled = evidence(attacker, health=[replace(HEALTHY, faithful=120)])
    assert one(misled, "gradients").verdict == "failed"
    for record in misled.records[40:]:
        record.attacks["APGD smoothed"] = outcome(False)
    assert one(misled, "gradients").verdict == "passed"


def test_where_nothing_is_left_misleading_gradients_hide_nothing(attacker: Attacker) -> None:
    misled = evidence(attacker, health=[replace(HEALTHY, faithful=120)])
    assert one(replace(misled, records=misled.records[:40]), "gradients").verdict == "passed"


def test_a_random_defence_must_be_averaged(attacker: Attacker) -> None:
    single = replace(attacker, random=True, votes=11)
    assert one(evidence(single), "randomness").verdict == "failed"
    assert one(evidence(replace(single, draws=16)), "randomness").verdict == "passed"


def test_modes_that_were_withheld_fail(attacker: Attacker) -> None:
    check = one(evidence(replace(attacker, withheld=("relu", "smooth"))), "gradient modes")
    assert check.verdict == "failed"
    assert "relu, smooth" in check.finding


def test_what_the_exact_gradient_hides_is_said(attacker: Attacker) -> None:
    found = evidence(replace(attacker, modes=("exact", "smooth")))
    for record in found.records[20:40]:
        for run in found.plan:
            if run.role == "suite" and run.mode == "exact" and run.spec.modes == "all":
                record.attacks[run.key] = outcome(False)
    check = one(found, "gradient modes")
    assert check.verdict == "passed"
    assert check.figures["hidden by the exact gradient"] == Proportion(20, 80)


@pytest.mark.parametrize(
    ("found", "by_chance", "verdict"),
    [(50, 0, "passed"), (45, 0, "passed"), (44, 0, "failed"), (50, 26, "not run"), (10, 25, "failed")],
)
def test_planted_examples_must_be_found_but_not_by_chance(
    found: int, by_chance: int, verdict: str, attacker: Attacker
) -> None:
    test = Binarization(Proportion(found, 50), Proportion(by_chance, 50), Proportion(50, 50))
    assert one(evidence(attacker, binarization=test), "binarization").verdict == verdict


def test_without_the_test_binarization_is_not_run(attacker: Attacker) -> None:
    assert one(evidence(attacker, binarization=None), "binarization").verdict == "not run"


def test_beside_a_detector_the_words_are_others_and_binarization_is_not_run(
    attacker: Attacker, digits_classifier: PyTorchClassifier
) -> None:
    two = PyTorchClassifier(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), nn.CrossEntropyLoss(), (1, 8, 8), 2, clip_values=(0, 1)
    )
    joined = replace(attacker, classifier=rejecting(digits_classifier, BinaryInputDetector(two)))
    test = Binarization(Proportion(50, 50), Proportion(0, 50), Proportion(50, 50))
    found = one(evidence(joined, binarization=test), "binarization")
    assert found.verdict == "not run"
    assert "the detector was fitted to the original one" in found.finding
    assert "stay correct or rejected at" in one(evidence(joined), "larger eps").finding
    assert "turned grey" not in one(evidence(joined), "larger eps").finding


def test_without_white_box_attacks_nothing_is_checked(attacker: Attacker) -> None:
    noise = AttackSpec("noise", STANDARD[-1].build, "", kind="noise")
    record = SampleRecord(0, 0, 0, attacks={"noise": outcome(False)})
    found = evidence(attacker, plan=[AttackRun(noise, "exact", THREAT)], records=[record])
    assert set(verdicts(found).values()) == {"not run"}


def test_each_check_links_to_its_paragraph(attacker: Attacker) -> None:
    for check in run_checks(evidence(attacker)):
        section = read_page(check.link.removeprefix("art-defenses docs "))
        assert section.startswith(f"## {check.name}\n")


def test_at_the_limit_every_image_can_be_turned_grey(digits_classifier: PyTorchClassifier) -> None:
    assert hopeless(THREAT, digits_classifier) == Linf(0.5)
