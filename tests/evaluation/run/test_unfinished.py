"""The unfinished block: a finished attack is not made again, and an attack that cannot be read is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from art_defenses_ext.evaluation.records.costs import Cost
from art_defenses_ext.evaluation.records.examples import Example, written
from art_defenses_ext.evaluation.records.lines import as_line, parsed
from art_defenses_ext.evaluation.records.sample import Attempt, CostRecord, Outcome
from art_defenses_ext.evaluation.run.unfinished import IMAGES, LINES, Unfinished

KEYS = ["APGD [exact] @ 0.1", "Square @ 0.1", "transfer @ 0.1"]


def make_attempt(key: str, block: int = 3, pictured: int | None = None) -> Attempt:
    outcomes = [
        Outcome(
            3, misclassified=True, linf=0.0999999, l2=0.25, success=True, ndcg=0.912345, detection_margin=-1.234567e-7
        ),
        Outcome(7, misclassified=False, linf=0.1, l2=1 / 3, success=False, usable=False, rejected=True, misses=2),
    ]
    return Attempt(CostRecord(block, key, 2, Cost(6, 3, 0.1234567890123, 1024)), [0, 2], outcomes, pictured)


def make_example(key: str, index: int = 5) -> Example:
    image = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 2, 2) * (index / 7)
    return Example(index, 7, 3, key, image, image + np.float32(0.1))


def note_attempts(folder: Path) -> Unfinished:
    """A block after three attacks, of which the second left an image."""
    block = Unfinished(folder)
    for key in KEYS:
        pictured = 5 if key == KEYS[1] else None
        block.add(make_attempt(key, pictured=pictured), None if pictured is None else make_example(key))
    return block


def test_an_attempt_survives_a_round_trip_through_a_line() -> None:
    assert parsed(Attempt, as_line(make_attempt("a", pictured=4))) == make_attempt("a", pictured=4)


@pytest.mark.parametrize("line", ["", "{}", "[1]", "3", '{"cost": 1, "outcomes": []}', '{"cost": {"block": 1}}'])
def test_a_malformed_line_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parsed(Attempt, line)


def test_noted_attempts_are_read_by_another_process(tmp_path: Path) -> None:
    note_attempts(tmp_path)
    attempts = Unfinished(tmp_path).attempts(3)
    assert [attempt for attempt, _ in attempts.values()] == [
        make_attempt(key, pictured=5 if key == KEYS[1] else None) for key in KEYS
    ]
    assert [key for key, (_, picture) in attempts.items() if picture is not None] == [KEYS[1]]
    picture = attempts[KEYS[1]][1]
    assert picture is not None
    assert np.array_equal(picture.adversarial, make_example(KEYS[1]).adversarial)
    assert Unfinished(tmp_path).attempts(0) == {}


def test_a_torn_line_is_dropped_and_the_next_one_is_complete(tmp_path: Path) -> None:
    note_attempts(tmp_path)
    content = (tmp_path / LINES).read_bytes()
    ends = [place + 1 for place, letter in enumerate(content) if letter == ord("\n")]
    for length in range(0, len(content) + 1, 17):
        (tmp_path / LINES).write_bytes(content[:length])
        (tmp_path / IMAGES).write_bytes(written([make_example(KEYS[1])]))
        complete = sum(end <= length for end in ends)
        block = Unfinished(tmp_path)
        block.mend(set())
        assert list(block.attempts(3)) == KEYS[:complete]
        block.add(make_attempt("next"), None)
        assert list(Unfinished(tmp_path).attempts(3)) == [*KEYS[:complete], "next"]


@pytest.mark.parametrize("images", [None, b"no archive"])
def test_an_attack_whose_image_is_lost_is_made_again(tmp_path: Path, images: bytes | None) -> None:
    note_attempts(tmp_path)
    if images is None:
        (tmp_path / IMAGES).unlink()
    else:
        (tmp_path / IMAGES).write_bytes(images)
    block = Unfinished(tmp_path)
    block.mend(set())
    keys = list(block.attempts(3))
    assert KEYS[1] not in keys
    block.add(make_attempt(KEYS[1], pictured=5), make_example(KEYS[1]))
    assert list(Unfinished(tmp_path).attempts(3)) == [*keys, KEYS[1]]


def test_an_image_without_its_line_is_not_shown(tmp_path: Path) -> None:
    """The images are written first."""
    note_attempts(tmp_path)
    (tmp_path / IMAGES).write_bytes(written([make_example(KEYS[1]), make_example(KEYS[2], 6)]))
    block = Unfinished(tmp_path)
    block.mend(set())
    assert [picture for _, picture in block.attempts(3).values()].count(None) == 2
    block.add(make_attempt("next", pictured=4), make_example("next", 4))
    assert [key for key, (_, picture) in Unfinished(tmp_path).attempts(3).items() if picture] == [KEYS[1], "next"]


def test_the_remains_of_a_finished_block_are_removed(tmp_path: Path) -> None:
    note_attempts(tmp_path)
    (tmp_path / f".{LINES}.123").write_text("half")
    Unfinished(tmp_path).mend({3})
    assert list(tmp_path.iterdir()) == []
    note_attempts(tmp_path).remove()
    assert list(tmp_path.iterdir()) == []
