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
from art_defenses_ext.evaluation.run.rounds import gains, next_round
from art_defenses_ext.evaluation.suite.plan import AttackRun
from art_defenses_ext.evaluation.suite.spec import AttackSpec, Kind
from art_defenses_ext.evaluation.threat import Threat

THREAT = Linf(0.1)


def never(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    raise AssertionError("checks build no attack")


def a_run(name: str, kind: Kind, role: Any = "suite") -> AttackRun:
    return AttackRun(AttackSpec(name, never, "by hand", kind=kind), "exact", THREAT, role)


HEALTHY = GradientHealth("exact", 2, not_finite=0, zero=0, no_graph=0, vanishing=0, faithful=2, useful=(True, True))
SUITE = [a_run("gradients", "white-box"), a_run("Square", "queries")]


def outcome(success: bool) -> Outcome:
    return Outcome(int(success), success, 0.1, 0.5, success=success)


def evidence(
    rounds: list[tuple[set[int], set[int]]], late: int = 3, left: int = 40, samples: int = 100, **settings: Any
) -> Evidence:
    """White-box attacks leave the first ``left`` and ``late`` samples, of which queries break the latter.

    Of the samples that no white-box attack has broken each of ``rounds`` breaks some with gradients, some by queries.
    """
    records = [SampleRecord(index, 0, 0) for index in range(samples)]
    for record in records:
        record.attacks["gradients"] = outcome(record.index >= left + late)
        if record.index < left + late:
            record.attacks["Square"] = outcome(record.index >= left)
    plans = []
    for number, broken in enumerate(rounds, 1):
        plan = [a_run(f"round {number}: {run.spec.name}", run.spec.kind, "round") for run in SUITE]
        whites = {run.key for each in [SUITE, *plans] for run in each if run.spec.kind == "white-box"}
        chosen = [record for record in records if record.robust(whites)]
        for run, hits in zip(plan, broken, strict=True):
            for record in chosen:
                if run.spec.kind == "white-box" or record.robust():
                    record.attacks[run.key] = outcome(record.index in hits)
        plans.append(plan)
    described = RunDescription(
        Settings(threat="linf", eps=0.1, attacks="standard", samples=samples, **settings),
        *([], [], [], ["exact"], 1, 1, "ByHand", "", "", None, [], 10, (0.0, 1.0), False, [], "", "", 1, "", {}),
    )
    return Evidence(described, [*SUITE, *(run for plan in plans for run in plan)], records, [HEALTHY], None, plans)


def verdict_of(name: str, made: Evidence) -> str:
    return next(check.verdict for check in run_checks(made) if check.name == name)


def test_a_round_counts_what_nothing_had_broken_apart_from_what_no_gradient_had() -> None:
    """The first round breaks samples 3 and 4, and by gradients 41, one of those that others had broken; then none."""
    made = evidence([({3, 41}, {4}), (set(), set())])
    assert made.results == [
        RoundResult(1, robust_before=40, broken=2, broken_otherwise=3, white_box_broken=1),
        RoundResult(2, robust_before=38, broken=0, broken_otherwise=3, white_box_broken=0),  # queries alone broke 4
    ]
    assert [result.is_idle for result in made.results] == [False, True]


def test_examples_made_elsewhere_change_nothing_about_rounds() -> None:
    made = evidence([({3}, set())])
    added = AttackRun(AttackSpec("theirs", never, "", source="elsewhere"), "exact", THREAT)
    before = made.results
    for record in made.records[:10]:
        record.attacks["theirs"] = outcome(True)
    assert replace(made, plan=[*made.plan, added]).results == before


@pytest.mark.parametrize(("found", "queries"), [(set(), "failed"), ({40}, "failed"), ({40, 41}, "passed")])
def test_queries_pass_once_the_gradients_of_rounds_find_what_they_found(found: set[int], queries: str) -> None:
    made = evidence([(found, set())])
    assert verdict_of("queries", made) == queries


@pytest.mark.parametrize(("broken", "verdict"), [(0, "passed"), (1, "passed"), (2, "failed")])
def test_the_last_round_asks_for_more_effort_again(broken: int, verdict: str) -> None:
    """Of the forty that the first round leaves; what that one broke is no question any more."""
    made = evidence([({0, 1, 2, 3}, set()), (set(range(10, 10 + broken)), set())])
    (check,) = [each for each in run_checks(made) if each.name == "more effort"]
    assert (check.verdict, check.figures["broken by more effort"]) == (verdict, Proportion(broken, 36))


IDLE, BUSY = (set[int](), set[int]()), ({0}, set[int]())


@pytest.mark.parametrize(
    ("effort", "late", "rounds", "number"),
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
def test_a_round_follows_where_it_is_asked_for_and_the_ones_before_added_something(
    effort: str, late: int, rounds: Any, number: int | None
) -> None:
    assert next_round(evidence(rounds, late, effort=effort)) == number


def test_no_round_follows_without_checks_an_adaptive_attacker_or_an_image_that_is_left() -> None:
    for changes in ({"check_samples": 0}, {"adaptive": False}, {"left": 0}):
        assert next_round(evidence([], effort="2", **changes)) is None


def test_what_gained_most_counts_the_suite_and_all_rounds() -> None:
    assert gains(evidence([({3, 5, 41}, {4}), ({6}, set())])) == {"gradients": 57 + 3 + 1}


@pytest.mark.parametrize("total", [*range(1, 40), 86, 100, 250, 900, 10_000])
def test_the_most_images_that_a_check_lets_pass_by_enumeration(total: int) -> None:
    """Of ever more images the first that the rule of the checks refuses: Wilson's lower end above one per cent."""
    passing = 0
    while passing < total and not (passing + 1 > 1 and Proportion(passing + 1, total).interval[0] > 0.01):
        passing += 1
    assert most_that_pass(total) == passing


@pytest.mark.parametrize("left", [1, 20, 40, 90])
def test_a_figure_is_established_to_the_largest_overestimate_that_the_checks_let_pass(left: int) -> None:
    """An enumeration of what a stronger attack might break of the images left, until a check notices."""
    unnoticed = 0
    for broken in range(left + 1):
        made = evidence([(set(range(broken)), set())], late=0, left=left, effort="1")
        if verdict_of("more effort", made) == "failed":
            break
        unnoticed = broken
    made = evidence([(set(), set())], late=0, left=left, effort="1")
    checks = run_checks(made)
    assert resolution(checks, Proportion(left, 100)) == pytest.approx(unnoticed / 100)


def test_the_coarsest_check_counts_and_others_than_those_of_effort_do_not() -> None:
    robust = Proportion(90, 100)
    fine, coarse, other = (
        Check(name, "passed", "", {"broken": Proportion(0, total)})
        for name, total in (("queries", 900), ("more effort", 100), ("noise", 3))
    )
    assert resolution([fine, coarse, other], robust) == pytest.approx(0.9 * 2 / 100)
    assert resolution([fine, other], robust) == pytest.approx(0.9 * 14 / 900)
    assert resolution([other], robust) is None
    assert {"queries", "more effort"} < set(OF_EFFORT)
