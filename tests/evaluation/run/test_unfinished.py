"""The block at work: an attack that came to its end is not made again, and what cannot be read is."""

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


def attempt(key: str, block: int = 3, pictured: int | None = None) -> Attempt:
    outcomes = [
        Outcome(
            3, misclassified=True, linf=0.0999999, l2=0.25, success=True, ndcg=0.912345, detection_margin=-1.234567e-7
        ),
        Outcome(7, misclassified=False, linf=0.1, l2=1 / 3, success=False, usable=False, rejected=True, misses=2),
    ]
    return Attempt(CostRecord(block, key, 2, Cost(6, 3, 0.1234567890123, 1024)), [0, 2], outcomes, pictured)


def example(key: str, index: int = 5) -> Example:
    image = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 2, 2) * (index / 7)
    return Example(index, 7, 3, key, image, image + np.float32(0.1))


def noted(folder: Path) -> Unfinished:
    """A block after three attacks, of which the second left an image."""
    block = Unfinished(folder)
    for key in KEYS:
        pictured = 5 if key == KEYS[1] else None
        block.add(attempt(key, pictured=pictured), None if pictured is None else example(key))
    return block


def test_a_line_gives_the_attempt_back() -> None:
    assert parsed(Attempt, as_line(attempt("a", pictured=4))) == attempt("a", pictured=4)


@pytest.mark.parametrize("line", ["", "{}", "[1]", "3", '{"cost": 1, "outcomes": []}', '{"cost": {"block": 1}}'])
def test_a_line_that_is_none_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parsed(Attempt, line)


def test_what_was_noted_comes_back_to_another_process(tmp_path: Path) -> None:
    noted(tmp_path)
    found = Unfinished(tmp_path).attempts(3)
    assert [one for one, _ in found.values()] == [attempt(key, pictured=5 if key == KEYS[1] else None) for key in KEYS]
    assert [key for key, (_, picture) in found.items() if picture is not None] == [KEYS[1]]
    picture = found[KEYS[1]][1]
    assert picture is not None
    assert np.array_equal(picture.adversarial, example(KEYS[1]).adversarial)
    assert Unfinished(tmp_path).attempts(0) == {}


def test_of_a_torn_line_nothing_is_taken_and_the_next_one_stands_whole(tmp_path: Path) -> None:
    noted(tmp_path)
    whole = (tmp_path / LINES).read_bytes()
    ends = [place + 1 for place, letter in enumerate(whole) if letter == ord("\n")]
    for length in range(0, len(whole) + 1, 17):
        (tmp_path / LINES).write_bytes(whole[:length])
        (tmp_path / IMAGES).write_bytes(written([example(KEYS[1])]))
        complete = sum(end <= length for end in ends)
        block = Unfinished(tmp_path)
        block.mend(set())
        assert list(block.attempts(3)) == KEYS[:complete]
        block.add(attempt("next"), None)
        assert list(Unfinished(tmp_path).attempts(3)) == [*KEYS[:complete], "next"]


@pytest.mark.parametrize("images", [None, b"no archive"])
def test_an_attack_whose_image_is_lost_is_made_again(tmp_path: Path, images: bytes | None) -> None:
    noted(tmp_path)
    if images is None:
        (tmp_path / IMAGES).unlink()
    else:
        (tmp_path / IMAGES).write_bytes(images)
    block = Unfinished(tmp_path)
    block.mend(set())
    kept = list(block.attempts(3))
    assert KEYS[1] not in kept
    block.add(attempt(KEYS[1], pictured=5), example(KEYS[1]))
    assert list(Unfinished(tmp_path).attempts(3)) == [*kept, KEYS[1]]


def test_an_image_that_a_kill_left_without_its_line_is_not_shown(tmp_path: Path) -> None:
    """The images are written first."""
    noted(tmp_path)
    (tmp_path / IMAGES).write_bytes(written([example(KEYS[1]), example(KEYS[2], 6)]))
    block = Unfinished(tmp_path)
    block.mend(set())
    assert [picture for _, picture in block.attempts(3).values()].count(None) == 2
    block.add(attempt("next", pictured=4), example("next", 4))
    assert [key for key, (_, picture) in Unfinished(tmp_path).attempts(3).items() if picture] == [KEYS[1], "next"]


def test_what_is_left_of_a_finished_block_goes(tmp_path: Path) -> None:
    noted(tmp_path)
    (tmp_path / f".{LINES}.123").write_text("half")
    Unfinished(tmp_path).mend({3})
    assert list(tmp_path.iterdir()) == []
    noted(tmp_path).remove()
    assert list(tmp_path.iterdir()) == []
