"""Records: what they say of a sample, and how they are written as lines and read back."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from art_defenses_ext.attack.ball import L2, Linf
from art_defenses_ext.evaluation.records.costs import Cost
from art_defenses_ext.evaluation.records.lines import as_line, parsed
from art_defenses_ext.evaluation.records.sample import CostRecord, Outcome, SampleRecord

BROKEN = Outcome(prediction=3, misclassified=True, linf=0.05, l2=0.25, success=True, undefended_prediction=5)
HELD = Outcome(prediction=7, misclassified=False, linf=0.1, l2=0.4, success=False, ndcg=0.912, reciprocal_rank=1.0)
FAR = Outcome(prediction=2, misclassified=True, linf=0.5, l2=2.0, success=False)
UNUSABLE = Outcome(prediction=7, misclassified=False, linf=0.0, l2=0.0, success=False, usable=False)

CAUGHT = Outcome(
    prediction=3, misclassified=False, linf=0.05, l2=0.25, success=False, rejected=True, detection_margin=1.5
)
RANDOM = Outcome(prediction=7, misclassified=False, linf=0.1, l2=0.4, success=False, misses=5)

RECORDS = [
    SampleRecord(0, 7, 7, 7, attacks={"FGSM [exact]": HELD, "Grüße": BROKEN}),
    SampleRecord(1, 7, 3, clean_ndcg=0.63093, clean_reciprocal_rank=0.333333),
    SampleRecord(2, 7, 7, 1, attacks={"FGSM [exact]": FAR, "PGD @ 0.1": UNUSABLE}),
    SampleRecord(3, 7, 7, clean_misses=2, attacks={"FGSM [exact]": RANDOM}),
    SampleRecord(4, 7, 7, clean_rejected=False, clean_detection_margin=-0.125, attacks={"FGSM [exact]": CAUGHT}),
]
COST = CostRecord(0, "FGSM [exact]", 3, Cost(forward=6, backward=3, seconds=0.125, peak_memory=1024))


# One sample


def test_a_sample_is_robust_if_correct_and_no_attack_succeeded() -> None:
    def sample(*outcomes: Outcome, clean: int = 7) -> SampleRecord:
        return SampleRecord(0, 7, clean, attacks={str(i): outcome for i, outcome in enumerate(outcomes)})

    assert sample().robust()
    assert sample(HELD, FAR, UNUSABLE).robust()
    assert not sample(HELD, BROKEN).robust()
    assert not sample(BROKEN, HELD).robust()
    assert not sample(HELD, clean=3).robust()


def test_robustness_can_be_asked_of_some_attacks_only() -> None:
    record = SampleRecord(0, 7, 7, attacks={"a": HELD, "b": BROKEN})
    assert record.robust({"a"})
    assert not record.robust({"b"})
    assert record.robust(set())
    assert record.robust({"never ran"})
    assert not SampleRecord(0, 7, 3, attacks={"a": HELD}).robust({"a"})


def test_a_rejected_clean_image_is_not_correct() -> None:
    assert SampleRecord(0, 7, 7, clean_rejected=False).correct
    assert not SampleRecord(0, 7, 7, clean_rejected=True).correct
    assert not SampleRecord(0, 7, 3, clean_rejected=False).correct
    assert SampleRecord(0, 7, 7, clean_rejected=False, attacks={"a": CAUGHT}).robust()
    assert not SampleRecord(0, 7, 7, clean_rejected=True, attacks={"a": CAUGHT}).robust()


def test_only_usable_images_inside_the_ball_fool_the_classifier() -> None:
    assert BROKEN.fooled(7, Linf(0.1))
    assert CAUGHT.fooled(7, Linf(0.1))  # rejected or not
    assert CAUGHT.fooled(7, Linf(0.05))
    assert not CAUGHT.fooled(7, Linf(0.04))
    assert not CAUGHT.fooled(7, L2(0.2))
    assert not CAUGHT.fooled(3, Linf(0.1))
    assert not replace(BROKEN, usable=False).fooled(7, Linf(0.1))


# Lines


def test_records_survive_a_round_trip_through_lines() -> None:
    for record in RECORDS:
        line = as_line(record)
        assert line.endswith(b"\n")
        assert len(line.splitlines()) == 1
        assert parsed(SampleRecord, line) == record
        assert as_line(parsed(SampleRecord, line)) == line
    assert parsed(CostRecord, as_line(COST)) == COST


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_outside_json_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        as_line(SampleRecord(1, 7, 7, attacks={"a": replace(HELD, l2=bad)}))


@pytest.mark.parametrize("line", ["", "{", "[]", "3", '{"index": 0}', '{"attacks": {}}', '{"attacks": {"a": 1}}'])
def test_a_malformed_record_is_refused(line: str) -> None:
    for kind in (SampleRecord, CostRecord):
        with pytest.raises(ValueError):
            parsed(kind, line)
