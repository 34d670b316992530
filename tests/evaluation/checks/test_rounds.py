"""What rounds of more effort add, when one follows, and how finely a figure is established: on made-up records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.attack.ball import Linf
from art_defenses_ext.evaluation.checks.checks import OF_EFFORT, Check, Evidence, run_checks
from art_defenses_ext.evaluation.checks.gradient_health import GradientHealth
from art_defenses_ext.evaluation.checks.resolution import most_that_pass, resolution
from art_defenses_ext.evaluation.checks.rounds import RoundResult
from art_defenses_ext.evaluation.config import MOST_ROUNDS
from art_defenses_ext.evaluation.records.description import RunDescription, Settings
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.records.sample import Outcome, SampleRecord
from art_defenses_ext.evaluation.run.rounds import gains, next_round, repeated
from art_defenses_ext.evaluation.suite.plan import AttackRun
from art_defenses_ext.evaluation.suite.spec import AttackSpec, Kind
from art_defenses_ext.evaluation.threat import Threat

THREAT = Linf(0.1)


def refuse_to_build(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    raise AssertionError("checks build no attack")


def make_run(name: str, kind: Kind, role: Any = "suite") -> AttackRun:
    return AttackRun(AttackSpec(name, refuse_to_build, "by hand", kind=kind), "exact", THREAT, role)


HEALTHY = GradientHealth("exact", 2, not_finite=0, zero=0, no_graph=0, vanishing=0, faithful=2, useful=(True, True))
SUITE = [make_run("gradients", "white-box"), make_run("Square", "queries")]


def make_outcome(success: bool) -> Outcome:
    return Outcome(int(success), success, 0.1, 0.5, success=success)


def make_evidence(
    rounds: list[tuple[set[int], set[int]]],
    late_successes: int = 3,
    left: int = 40,
    samples: int = 100,
    **settings: Any,
) -> Evidence:
    """White-box attacks leave the first ``left`` and ``late_successes`` samples, of which queries break the latter.

    Of the samples that no white-box attack has broken each of ``rounds`` breaks some with gradients, some by queries.
    """
    records = [SampleRecord(index, 0, 0) for index in range(samples)]
    for record in records:
        record.attacks["gradients"] = make_outcome(record.index >= left + late_successes)
        if record.index < left + late_successes:
            record.attacks["Square"] = make_outcome(record.index >= left)
    plans = []
    for number, broken in enumerate(rounds, 1):
        plan = [make_run(f"round {number}: {run.spec.name}", run.spec.kind, "round") for run in SUITE]
        white_box_keys = {run.key for runs in [SUITE, *plans] for run in runs if run.spec.kind == "white-box"}
        unbroken = [record for record in records if record.robust(white_box_keys)]
        for run, hits in zip(plan, broken, strict=True):
            for record in unbroken:
                if run.spec.kind == "white-box" or record.robust():
                    record.attacks[run.key] = make_outcome(record.index in hits)
        plans.append(plan)
    description = RunDescription(
        Settings(threat="linf", eps=0.1, attacks="standard", samples=samples, **settings),
        *([], [], [], ["exact"], 1, 1, "ByHand", "", "", None, [], 10, (0.0, 1.0), False, [], "", "", 1, "", {}),
    )
    return Evidence(description, [*SUITE, *(run for plan in plans for run in plan)], records, [HEALTHY], None, plans)


def find_verdict(name: str, evidence: Evidence) -> str:
    return next(check.verdict for check in run_checks(evidence) if check.name == name)


def test_a_round_counts_new_successes_apart_from_new_white_box_successes() -> None:
    """The first round breaks samples 3 and 4, and by gradients 41, one of those that others had broken; then none."""
    evidence = make_evidence([({3, 41}, {4}), (set(), set())])
    assert evidence.results == [
        RoundResult(1, robust_before=40, broken=2, broken_otherwise=3, white_box_broken=1),
        RoundResult(2, robust_before=38, broken=0, broken_otherwise=3, white_box_broken=0),  # queries alone broke 4
    ]
    assert [result.is_idle for result in evidence.results] == [False, True]


def test_examples_from_elsewhere_do_not_change_the_results_of_rounds() -> None:
    evidence = make_evidence([({3}, set())])
    external_run = AttackRun(AttackSpec("theirs", refuse_to_build, "", source="elsewhere"), "exact", THREAT)
    before = evidence.results
    for record in evidence.records[:10]:
        record.attacks["theirs"] = make_outcome(True)
    assert replace(evidence, plan=[*evidence.plan, external_run]).results == before


@pytest.mark.parametrize(("found", "verdict"), [(set(), "failed"), ({40}, "failed"), ({40, 41}, "passed")])
def test_the_queries_check_passes_once_gradients_break_the_same_images(found: set[int], verdict: str) -> None:
    evidence = make_evidence([(found, set())])
    assert find_verdict("queries", evidence) == verdict


@pytest.mark.parametrize(("broken", "verdict"), [(0, "passed"), (1, "passed"), (2, "failed")])
def test_the_last_round_decides_the_check_of_more_effort(broken: int, verdict: str) -> None:
    """The check counts the 36 images that the first round leaves."""
    evidence = make_evidence([({0, 1, 2, 3}, set()), (set(range(10, 10 + broken)), set())])
    (check,) = [check for check in run_checks(evidence) if check.name == "more effort"]
    assert (check.verdict, check.figures["broken by more effort"]) == (verdict, Proportion(broken, 36))


IDLE, BUSY = (set[int](), set[int]()), ({0}, set[int]())


@pytest.mark.parametrize(
    ("effort", "late_successes", "rounds", "number"),
    [
        ("0", 3, [], None),
        ("1", 0, [], 1),  # asked for, whatever the checks say
        ("1", 0, [BUSY], None),
        ("auto", 0, [], None),  # every check passes
        ("auto", 3, [], 1),
        ("auto", 3, [IDLE], 2),
        ("auto", 3, [IDLE, IDLE], None),  # two in a row add nothing
        ("auto", 3, [IDLE, BUSY], 3),
        ("auto", 3, [({40}, set())], 2),  # what was broken before counts, if gradients break it now
        ("auto", 3, [IDLE, ({40}, set())], 3),
        ("auto", 3, [({number}, set()) for number in range(MOST_ROUNDS)], None),
    ],
)
def test_the_requested_effort_and_earlier_gains_decide_whether_a_round_follows(
    effort: str, late_successes: int, rounds: Any, number: int | None
) -> None:
    assert next_round(make_evidence(rounds, late_successes, effort=effort)) == number


def test_no_round_follows_without_checks_an_adaptive_attacker_or_unbroken_images() -> None:
    for changes in ({"check_samples": 0}, {"adaptive": False}, {"left": 0}):
        assert next_round(make_evidence([], effort="2", **changes)) is None


def test_gains_count_the_suite_and_all_rounds() -> None:
    assert gains(make_evidence([({3, 5, 41}, {4}), ({6}, set())])) == {"gradients": 57 + 3 + 1}


@pytest.mark.parametrize(
    ("rounds", "names"),
    [
        ([], None),
        ([({3}, set())], {"gradients"}),
        ([({3}, {4}), ({5}, set())], {"gradients", "Square"}),
        ([({41}, set())], {"gradients"}),  # of the images that others had broken
        ([({3}, set()), IDLE], None),
        ([IDLE, (set(), {4})], {"Square"}),
    ],
)
def test_a_round_repeats_what_broke_images_in_rounds_and_all_attacks_after_an_idle_one(
    rounds: Any, names: set[str] | None
) -> None:
    assert repeated(make_evidence(rounds)) == names


@pytest.mark.parametrize("total", [*range(1, 40), 86, 100, 250, 900, 10_000])
def test_most_that_pass_agrees_with_an_enumeration(total: int) -> None:
    """The check fails at the first count whose lower Wilson bound exceeds one per cent."""
    passing = 0
    while passing < total and not (passing + 1 > 1 and Proportion(passing + 1, total).interval[0] > 0.01):
        passing += 1
    assert most_that_pass(total) == passing


@pytest.mark.parametrize("left", [1, 20, 40, 90])
def test_the_resolution_is_the_largest_overestimate_that_passes_the_checks(left: int) -> None:
    """An enumeration of how many of the images left a stronger attack may break until a check fails."""
    unnoticed = 0
    for broken in range(left + 1):
        evidence = make_evidence([(set(range(broken)), set())], late_successes=0, left=left, effort="1")
        if find_verdict("more effort", evidence) == "failed":
            break
        unnoticed = broken
    evidence = make_evidence([(set(), set())], late_successes=0, left=left, effort="1")
    checks = run_checks(evidence)
    assert resolution(checks, Proportion(left, 100)) == pytest.approx(unnoticed / 100)


def test_the_coarsest_check_of_effort_sets_the_resolution() -> None:
    robust = Proportion(90, 100)
    fine, coarse, other = (
        Check(name, "passed", "", {"broken": Proportion(0, total)})
        for name, total in (("queries", 900), ("more effort", 100), ("noise", 3))
    )
    assert resolution([fine, coarse, other], robust) == pytest.approx(0.9 * 2 / 100)
    assert resolution([fine, other], robust) == pytest.approx(0.9 * 14 / 900)
    assert resolution([other], robust) is None
    assert resolution([fine, coarse], robust, undecided=0.3) == 0.3
    assert {"queries", "more effort"} < set(OF_EFFORT)
