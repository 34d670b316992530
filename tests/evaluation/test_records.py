"""Records: what goes into a run's folder comes out again, and nothing goes into a folder that is refused."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from art_defenses_ext.evaluation.costs import Cost
from art_defenses_ext.evaluation.records import (
    CostRecord,
    Outcome,
    RunDirectory,
    SampleRecord,
    check_out,
    read_records,
)
from art_defenses_ext.evaluation.threats import L2, Linf
from art_defenses_ext.validation import InputError

BROKEN = Outcome(prediction=3, misclassified=True, linf=0.05, l2=0.25, success=True, undefended_prediction=5)
HELD = Outcome(prediction=7, misclassified=False, linf=0.1, l2=0.4, success=False, ndcg=0.912, reciprocal_rank=1.0)
FAR = Outcome(prediction=2, misclassified=True, linf=0.5, l2=2.0, success=False)
UNUSABLE = Outcome(prediction=7, misclassified=False, linf=0.0, l2=0.0, success=False, usable=False)

CAUGHT = Outcome(prediction=3, misclassified=False, linf=0.05, l2=0.25, success=False, rejected=True, excess=1.5)
RANDOM = Outcome(prediction=7, misclassified=False, linf=0.1, l2=0.4, success=False, misses=5)

RECORDS = [
    SampleRecord(0, 7, 7, 7, attacks={"FGSM [exact]": HELD, "Grüße": BROKEN}),
    SampleRecord(1, 7, 3, clean_ndcg=0.63093, clean_reciprocal_rank=0.333333),
    SampleRecord(2, 7, 7, 1, attacks={"FGSM [exact]": FAR, "PGD @ 0.1": UNUSABLE}),
    SampleRecord(3, 7, 7, clean_misses=2, attacks={"FGSM [exact]": RANDOM}),
    SampleRecord(4, 7, 7, clean_rejected=False, clean_excess=-0.125, attacks={"FGSM [exact]": CAUGHT}),
]
COSTS = [CostRecord(0, "FGSM [exact]", 3, Cost(forward=6, backward=3, seconds=0.125, peak_memory=1024))]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with what is in it."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# One sample


def test_a_sample_is_robust_if_correct_and_nothing_succeeded() -> None:
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


def test_a_clean_image_that_is_rejected_is_not_right() -> None:
    assert SampleRecord(0, 7, 7, clean_rejected=False).correct
    assert not SampleRecord(0, 7, 7, clean_rejected=True).correct
    assert not SampleRecord(0, 7, 3, clean_rejected=False).correct
    assert SampleRecord(0, 7, 7, clean_rejected=False, attacks={"a": CAUGHT}).robust()
    assert not SampleRecord(0, 7, 7, clean_rejected=True, attacks={"a": CAUGHT}).robust()


def test_the_classifier_alone_is_fooled_by_what_is_inside_the_ball_and_usable() -> None:
    assert BROKEN.fooled(7, Linf(0.1))
    assert CAUGHT.fooled(7, Linf(0.1))  # rejected or not
    assert CAUGHT.fooled(7, Linf(0.05))
    assert not CAUGHT.fooled(7, Linf(0.04))
    assert not CAUGHT.fooled(7, L2(0.2))
    assert not CAUGHT.fooled(3, Linf(0.1))
    assert not replace(BROKEN, usable=False).fooled(7, Linf(0.1))


# A folder


def test_what_is_appended_comes_back(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "deep" / "run")
    assert read_records(directory.path) == []
    directory.append(RECORDS[:2], COSTS)
    assert read_records(directory.path) == RECORDS[:2]
    directory.append(RECORDS[2:], [])
    assert read_records(str(directory.path)) == RECORDS


def test_there_is_a_line_of_json_for_each_sample_and_cost(tmp_path: Path) -> None:
    RunDirectory(tmp_path).append(RECORDS, COSTS)
    lines = (tmp_path / RunDirectory.RECORDS).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 1, 2, 3, 4]
    (line,) = (tmp_path / RunDirectory.COSTS).read_text(encoding="utf-8").splitlines()
    cost = {"forward": 6, "backward": 3, "seconds": 0.125, "peak_memory": 1024}
    assert json.loads(line) == {"block": 0, "attack": "FGSM [exact]", "samples": 3, **cost}


def test_records_from_before_defences_were_judged_by_votes_still_read(tmp_path: Path) -> None:
    RunDirectory(tmp_path).append(RECORDS[:3], [])
    path = tmp_path / RunDirectory.RECORDS
    path.write_text(path.read_text().replace('"clean_misses": null, ', "").replace(', "misses": null', ""))
    assert "misses" not in path.read_text()
    assert read_records(tmp_path) == RECORDS[:3]


def test_records_from_before_softmax_lists_were_compared_still_read(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.append(RECORDS[2:], [])
    path = tmp_path / RunDirectory.RECORDS
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        for entry, names in [(line, ("clean_ndcg", "clean_reciprocal_rank"))] + [
            (outcome, ("ndcg", "reciprocal_rank")) for outcome in line["attacks"].values()
        ]:
            assert [entry.pop(name) for name in names] in ([None, None], [0.912, 1.0])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    forgotten = {"FGSM [exact]": FAR, "PGD @ 0.1": UNUSABLE}
    assert read_records(tmp_path)[0] == replace(RECORDS[2], attacks=forgotten)


def test_seconds_stay_out_of_the_records(tmp_path: Path) -> None:
    """The records are the part of a run that must come out the same byte for byte."""
    slower = [replace(COSTS[0], cost=Cost(forward=6, backward=3, seconds=9.0))]
    for name, costs in (("a", COSTS), ("b", slower)):
        RunDirectory(tmp_path / name).append(RECORDS, costs)
    files = [(tmp_path / name / RunDirectory.RECORDS).read_bytes() for name in "ab"]
    assert files[0] == files[1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_json_is_refused_and_leaves_the_former_blocks(tmp_path: Path, bad: float) -> None:
    directory = RunDirectory(tmp_path)
    directory.append(RECORDS[:1], COSTS)
    before = contents(tmp_path)
    broken = SampleRecord(1, 7, 7, attacks={"a": replace(HELD, l2=bad)})
    with pytest.raises(ValueError, match="JSON"):
        directory.append([RECORDS[1], broken], COSTS)
    assert contents(tmp_path) == before


def test_an_earlier_run_is_kept_unless_asked(tmp_path: Path) -> None:
    RunDirectory(tmp_path).append(RECORDS, COSTS)
    before = contents(tmp_path)
    for refused in (check_out, RunDirectory):
        with pytest.raises(InputError, match="holds an earlier run; another folder, or overwrite, was expected"):
            refused(tmp_path)
    assert contents(tmp_path) == before
    assert check_out(tmp_path, overwrite=True) == tmp_path
    assert contents(tmp_path) == before
    RunDirectory(tmp_path, overwrite=True).append(RECORDS[:1], [])
    assert read_records(tmp_path) == RECORDS[:1]
    assert (tmp_path / RunDirectory.COSTS).read_bytes() == b""


def test_what_else_lies_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    RunDirectory(tmp_path)
    RunDirectory(tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_checking_writes_nothing(tmp_path: Path) -> None:
    assert check_out(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert check_out(str(tmp_path / "a")) == tmp_path / "a"
    assert contents(tmp_path) == {}


def test_a_relative_folder_is_taken_from_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    RunDirectory("run")
    assert sorted(contents(tmp_path)) == ["run", f"run/{RunDirectory.COSTS}", f"run/{RunDirectory.RECORDS}"]


def _file(root: Path) -> Path:
    (root / "file").write_text("in the way")
    return root / "file"


def _below_a_file(root: Path) -> Path:
    return _file(root) / "run"


def _dangling_link(root: Path) -> Path:
    (root / "link").symlink_to(root / "nowhere")
    return root / "link"


def _circular_link(root: Path) -> Path:
    (root / "circle").symlink_to(root / "circle")
    return root / "circle"


def _name_too_long(root: Path) -> Path:
    return root / ("x" * 300)


def _below_a_name_too_long(root: Path) -> Path:
    return _name_too_long(root) / "run"


def _folder_for_records(root: Path) -> Path:
    (root / RunDirectory.RECORDS).mkdir()
    return root


def _folder_for_costs(root: Path) -> Path:
    (root / RunDirectory.COSTS).mkdir()
    return root


def _where_nothing_can_be_made(root: Path) -> Path:
    return Path("/proc/self/run")


UNWRITABLE: list[Callable[[Path], Path]] = [
    _file,
    _below_a_file,
    _dangling_link,
    _circular_link,
    _name_too_long,
    _below_a_name_too_long,
    _folder_for_records,
    _folder_for_costs,
    pytest.param(
        _where_nothing_can_be_made, marks=pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="Linux only")
    ),
]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("make", UNWRITABLE)
def test_what_cannot_be_written_is_refused_and_left_as_it_was(
    tmp_path: Path, make: Callable[[Path], Path], overwrite: bool
) -> None:
    out = make(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"out is .*expected") as caught:
        RunDirectory(out, overwrite)
    assert len(str(caught.value).splitlines()) == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize("below", ["", "run"])
def test_a_folder_without_permission_is_refused(tmp_path: Path, below: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions bind no superuser, so the answer of the system is given here."""

    def denied(path: Any, mode: int) -> bool:
        assert Path(path) == tmp_path
        return not mode & os.W_OK

    monkeypatch.setattr(os, "access", denied)
    with pytest.raises(InputError, match="which cannot be written; a folder that can was expected"):
        RunDirectory(tmp_path / below)
    assert contents(tmp_path) == {}
