"""The folder of a run: files are read back, a kill costs one attack at most, and files of another run are refused."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from art_defenses_ext.attack.ball import L2, Linf
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.files import replace_file
from art_defenses_ext.base.provenance import Training, Tuning
from art_defenses_ext.evaluation.checks.binarization import Binarization
from art_defenses_ext.evaluation.checks.gradient_health import GradientHealth
from art_defenses_ext.evaluation.records.costs import Cost
from art_defenses_ext.evaluation.records.description import RunDescription, Settings
from art_defenses_ext.evaluation.records.examples import Example
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.records.sample import Attempt, CostRecord, Outcome, SampleRecord
from art_defenses_ext.evaluation.run import folder as run_directory
from art_defenses_ext.evaluation.run.folder import (
    COSTS,
    DIGESTS,
    EXAMPLES,
    LOCK,
    MANIFEST,
    RECORDS,
    Block,
    Findings,
    RunDirectory,
    check_out,
    read_costs,
    read_findings,
    read_kept_examples,
    read_manifest,
    read_records,
)
from art_defenses_ext.evaluation.run.manifest import FORMAT, Manifest
from art_defenses_ext.evaluation.run.shard import WHOLE, Shard
from art_defenses_ext.evaluation.suite.plan import AttackRun
from art_defenses_ext.evaluation.suite.spec import AttackSpec

SAMPLES, BLOCK = 7, 3


def refuse_to_build(*_: Any) -> Any:
    raise AssertionError("no attack is to be made")


def make_manifest(shard: Shard = WHOLE, **changes: Any) -> Manifest:
    settings = Settings(
        threat="linf", eps=0.1, attacks="standard", samples=SAMPLES, block_size=BLOCK, curve_samples=2, check_samples=2
    )
    values: dict[str, Any] = {
        "settings": settings,
        "defences": [{"name": "jump_relu", "jump": [0.5, 1.0]}],
        "tunings": [Tuning("jump", 0.5, [(0.0, 0.99), (0.5, 0.98)])],
        "trainings": [Training({"nb_epochs": 2}, [(0.5, None), (0.25, 0.3)])],
        "modes": ["exact", "smooth"],
        "votes": 1,
        "draws": 1,
        "model": "ByHand",
        "model_sha256": "1" * 64,
        "pipeline_sha256": "2" * 64,
        "undefended_sha256": None,
        "foreign": ["JpegCompression(quality=50)"],
        "labels": 10,
        "clip_values": (0.0, 1.0),
        "random": False,
        "withheld": [],
        "data_sha256": "3" * 64,
        "device": "CPU x86_64",
        "threads": 1,
        "command": "art-defenses evaluate",
        "versions": {"python": "3.11.0", "torch": "2.8.0"},
    }
    plan = [
        AttackRun(AttackSpec("white", refuse_to_build, "a", kind="white-box", modes="all"), "smooth", Linf(0.1)),
        AttackRun(AttackSpec("curve", refuse_to_build, "b", source="paper", curve=True), "exact", L2(0.5), "curve"),
    ]
    health = [
        GradientHealth("exact", 2, not_finite=0, zero=1, no_graph=0, vanishing=0, faithful=1, useful=(True, False))
    ]
    return Manifest(RunDescription(**(values | changes)), plan, health, shard)


def make_records(start: int, count: int = BLOCK) -> list[SampleRecord]:
    outcome = Outcome(prediction=3, misclassified=True, linf=0.05, l2=0.25, success=True)
    return [SampleRecord(start + i, 7, 7, attacks={"white [smooth]": outcome}) for i in range(count)]


def make_costs(start: int, seconds: float = 0.125) -> list[CostRecord]:
    return [CostRecord(start, "white [smooth]", BLOCK, Cost(6, 3, seconds, 1024))]


def make_example(index: int, attack: str = "white [smooth]") -> Example:
    image = np.full((1, 2, 2), index / 8, np.float32)
    return Example(index, 7, 3, attack, image, image + 0.05, {"heat map": (image, image * 2)})


def read_contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with what is in it."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def begin_run(path: Path, done: int = 0, shard: Shard = WHOLE) -> RunDirectory:
    """A folder with so many finished blocks."""
    directory = RunDirectory(path)
    directory.begin(make_manifest(shard))
    for start in list(shard.starts(SAMPLES, BLOCK))[:done]:
        directory.append(
            Block.of(make_records(start, min(BLOCK, SAMPLES - start))), make_costs(start), [make_example(start)]
        )
    return directory


# Files are read back


def test_appended_blocks_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    with begin_run(path) as directory:
        assert read_records(path) == []
        directory.append(Block.of(make_records(0)), make_costs(0), [make_example(0)])
        assert read_records(path) == make_records(0)
        directory.append(Block.of(make_records(3)), make_costs(3))
    assert read_records(str(path)) == make_records(0) + make_records(3)
    assert read_costs(path) == make_costs(0) + make_costs(3)
    (example,) = read_kept_examples(path)
    expected = make_example(0)
    assert (example.index, example.label, example.prediction, example.attack) == (0, 7, 3, expected.attack)
    assert np.array_equal(example.adversarial, expected.adversarial)
    assert np.array_equal(example.views["heat map"], expected.views["heat map"])


def test_the_manifest_is_read_back(tmp_path: Path) -> None:
    begin_run(tmp_path)
    loaded, expected = read_manifest(tmp_path), make_manifest()
    assert loaded.run == expected.run
    assert loaded.health == expected.health
    assert loaded.shard == WHOLE
    assert [run.key for run in loaded.plan] == [run.key for run in expected.plan]
    assert [replace(run.spec, build=refuse_to_build) for run in loaded.plan] == [run.spec for run in expected.plan]
    assert [run.threat for run in loaded.plan] == [run.threat for run in expected.plan]
    assert loaded.difference(expected) is None
    with pytest.raises(InputError, match="but not its code"):
        loaded.plan[0].spec.build(None, Linf(0.1), 0)


@pytest.mark.parametrize("test", [None, Binarization(Proportion(4, 5), Proportion(0, 5), Proportion(5, 5))])
def test_findings_are_read_back(tmp_path: Path, test: Binarization | None) -> None:
    with begin_run(tmp_path) as directory:
        assert not directory.has_findings
        with pytest.raises(InputError, match="a finished run was expected"):
            read_findings(tmp_path)
        directory.finish(Findings(test, make_costs(0)))
        assert directory.has_findings
    assert read_findings(tmp_path) == Findings(test, make_costs(0))


def test_one_example_an_attack_is_kept_and_eight_in_all(tmp_path: Path) -> None:
    with begin_run(tmp_path) as directory:
        directory.append(Block.of(make_records(0)), make_costs(0), [make_example(0, "a"), make_example(1, "b")])
        directory.append(
            Block.of(make_records(3)),
            make_costs(3),
            [make_example(3, "b"), *(make_example(3, f"c{i}") for i in range(9))],
        )
    examples = [(example.index, example.attack) for example in read_kept_examples(tmp_path)]
    assert examples == [(0, "a"), (1, "b"), *((3, f"c{i}") for i in range(6))]


def test_values_outside_json_are_refused_and_earlier_blocks_stay(tmp_path: Path) -> None:
    with begin_run(tmp_path, done=1) as directory:
        before = read_contents(tmp_path)
        bad_records = make_records(3)
        bad_records[1].attacks["a"] = replace(bad_records[1].attacks["white [smooth]"], l2=math.nan)
        with pytest.raises(ValueError, match="JSON"):
            directory.append(Block.of(bad_records), make_costs(3))
        assert read_contents(tmp_path) == before


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    begin_run(tmp_path, done=1).__exit__()
    RunDirectory(tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


# After a kill


def resume(path: Path) -> set[int]:
    with RunDirectory(path) as directory:
        directory.check_same(make_manifest())
        directory.begin(make_manifest())
        return directory.done


@pytest.mark.parametrize("keep", [-1, -40, -200])
def test_a_partial_block_is_cut_off_after_a_kill(tmp_path: Path, keep: int) -> None:
    begin_run(tmp_path, done=1).__exit__()
    before = read_contents(tmp_path)
    run = RunDirectory(tmp_path)
    run.begin(make_manifest())
    run.append(Block.of(make_records(3)), make_costs(3), [make_example(3, "new")])
    run.__exit__()
    file = tmp_path / RECORDS
    file.write_bytes(file.read_bytes()[:keep])
    assert resume(tmp_path) == {0}
    assert read_contents(tmp_path) == before


def test_costs_and_examples_of_a_block_without_records_are_removed(tmp_path: Path) -> None:
    """Costs and examples are written first."""
    begin_run(tmp_path, done=1).__exit__()
    before = read_contents(tmp_path)
    with (tmp_path / COSTS).open("a") as file:
        file.write('{"block": 3, "attack": "a", "samples": 3, "forward": 1, "backward": 1, "seconds": 1, "pe')
    (tmp_path / EXAMPLES / "00000003.npz").write_bytes((tmp_path / EXAMPLES / "00000000.npz").read_bytes())
    assert resume(tmp_path) == {0}
    assert read_contents(tmp_path) == before


@pytest.mark.parametrize("name", [MANIFEST, "report.html", f"{EXAMPLES}/00000003.npz"])
def test_a_half_written_file_is_removed_after_a_kill(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_run(tmp_path, done=1).__exit__()
    (tmp_path / f".{MANIFEST}.old").write_text("mine")
    before = read_contents(tmp_path)
    monkeypatch.setattr(Path, "replace", lambda *_: None)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # as if killed before either
    replace_file(tmp_path / name, b"half")
    monkeypatch.undo()
    assert len(read_contents(tmp_path)) == len(before) + 1
    assert resume(tmp_path) == {0}
    assert read_contents(tmp_path) == before


@pytest.mark.parametrize("missing", [[DIGESTS], [COSTS, DIGESTS], [RECORDS, COSTS, DIGESTS]])
def test_a_kill_right_after_the_manifest_leaves_an_empty_run(tmp_path: Path, missing: list[str]) -> None:
    begin_run(tmp_path).__exit__()
    for name in missing:
        (tmp_path / name).unlink()
    assert resume(tmp_path) == set()
    assert read_records(tmp_path) == []


def test_a_run_that_nobody_continues_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("it waits for the disk"))
    with RunDirectory(tmp_path, keeps=False) as directory:
        directory.begin(make_manifest())
        attempt = Attempt(make_costs(0)[0], [], [])
        directory.note(attempt, None, np.zeros((1, 1, 2, 2), np.float32))
        assert not directory.attempts(0)
        directory.append(Block.of(make_records(0)), make_costs(0), [make_example(0)])
        directory.finish(Findings(None))
    assert read_records(tmp_path) == make_records(0)
    assert read_findings(tmp_path) == Findings(None)


# What another hand did


def test_records_whose_manifest_is_gone_are_refused(tmp_path: Path) -> None:
    begin_run(tmp_path, done=1).__exit__()
    (tmp_path / MANIFEST).unlink()
    with RunDirectory(tmp_path) as directory, pytest.raises(InputError, match="changed by another hand"):
        directory.begin(make_manifest(model_sha256="another"))


def _swap(lines: list[str]) -> list[str]:
    return [lines[1], lines[0], *lines[2:]]


CHANGES: dict[str, Callable[[list[str]], list[str]]] = {
    "swapped": _swap,
    "one lost": lambda lines: lines[1:],
    "no json": lambda lines: ["{\n", *lines[1:]],
    "too many": lambda lines: [*lines, '{"index": 7}\n'],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_records_are_refused_and_kept(tmp_path: Path, change: Callable[[list[str]], list[str]]) -> None:
    begin_run(tmp_path, done=3).__exit__()
    file = tmp_path / RECORDS
    file.write_text("".join(change(file.read_text().splitlines(keepends=True))))
    before = file.read_bytes()
    with pytest.raises(InputError, match="changed by another hand"):
        resume(tmp_path)
    assert file.read_bytes() == before


def test_a_malformed_cost_is_refused_with_its_line(tmp_path: Path) -> None:
    begin_run(tmp_path, done=2).__exit__()
    lines = (tmp_path / COSTS).read_text().splitlines(keepends=True)
    (tmp_path / COSTS).write_text(lines[0] + "{}\n" + lines[1])
    with pytest.raises(InputError, match=r"costs\.jsonl, line 2, cannot be read"):
        read_costs(tmp_path)


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "eps": ({"settings": replace(make_manifest().run.settings, eps=0.2)}, "settings eps 0.1, not 0.2"),
    "data": ({"data_sha256": "4" * 64}, r"data_sha256 33333333\.\.\., not 44444444"),
    "network": ({"pipeline_sha256": "4" * 64}, r"pipeline_sha256 22222222\.\.\., not 44444444"),
    "option": ({"defences": [{"name": "jump_relu", "jump": [0.5, 2.0]}]}, "defences 1 jump 2 1.0, not 2.0"),
    "threads": ({"threads": 2}, "threads 1, not 2"),
}


@pytest.mark.parametrize(("changes", "words"), DIFFERENT.values(), ids=DIFFERENT)
def test_another_run_is_refused_and_nothing_is_changed(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    begin_run(tmp_path, done=1).__exit__()
    before = read_contents(tmp_path)
    with RunDirectory(tmp_path) as directory, pytest.raises(InputError, match=rf"another run: {words}.*expected"):
        directory.check_same(make_manifest(**changes))
    assert read_contents(tmp_path) == before


def test_another_attack_or_another_part_is_refused(tmp_path: Path) -> None:
    begin_run(tmp_path).__exit__()
    other = make_manifest()
    other.plan[0] = replace(other.plan[0], spec=replace(other.plan[0].spec, kind="queries"))
    with RunDirectory(tmp_path) as directory:
        with pytest.raises(InputError, match="attack 1 spec kind 'white-box', not 'queries'"):
            directory.check_same(other)
        with pytest.raises(InputError, match="shard 1/1, not 2/3"):
            directory.check_same(make_manifest(Shard(2, 3)))


def test_tunings_trainings_and_the_command_may_differ(tmp_path: Path) -> None:
    begin_run(tmp_path).__exit__()
    with RunDirectory(tmp_path) as directory:
        directory.check_same(make_manifest(command="another", tunings=[], trainings=[]))


# Versions


@pytest.mark.parametrize("version", [FORMAT + 1, "1"])
def test_a_manifest_of_another_version_is_refused_in_words(tmp_path: Path, version: Any) -> None:
    begin_run(tmp_path).__exit__()
    fields = json.loads((tmp_path / MANIFEST).read_text()) | {"format": version}
    (tmp_path / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(InputError, match=f"format {version!r}; {FORMAT} was expected"):
        RunDirectory(tmp_path)
    RunDirectory(tmp_path, overwrite=True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "run": {}, "plan": 3}'])
def test_a_broken_manifest_is_refused_in_words(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(InputError, match=r"manifest.* expected") as caught:
        RunDirectory(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


# Two at once


def _hold(path: Path, held: Any, release: Any) -> None:
    with RunDirectory(path):
        held.set()
        release.wait(60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the other process is a fork of this one")
def test_two_processes_do_not_share_a_folder_and_a_killed_one_does_not_lock_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # a new interpreter would import torch first
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, held, release))
    other.start()
    try:
        assert held.wait(60)
        for overwrite in (False, True):
            with pytest.raises(InputError, match="another process is writing"):
                RunDirectory(tmp_path, overwrite)
    finally:
        other.kill()
        other.join(60)
    assert (tmp_path / LOCK).exists()
    RunDirectory(tmp_path)


def test_the_lock_is_released_after_a_refusal(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{")
    for _ in range(2):
        with pytest.raises(InputError, match="manifest"):
            RunDirectory(tmp_path)
    (tmp_path / MANIFEST).unlink()
    RunDirectory(tmp_path)


# A full disk


def test_a_full_disk_costs_the_current_attack_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cost,) = make_costs(3)
    outcomes = list(make_records(3)[0].attacks.values())
    directory = begin_run(tmp_path, done=1)
    adv = make_example(3).adversarial[None]
    directory.note(Attempt(cost, [0], outcomes, 3), make_example(3), adv)
    before = read_contents(tmp_path)

    def fail_without_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_directory.os, "fsync", fail_without_space)
    with pytest.raises(InputError, match=r"No space left on device.*the finished blocks are kept"):
        directory.note(Attempt(replace(cost, attack="another"), [0], outcomes, 4), make_example(4, "another"), adv)
    directory.__exit__()
    monkeypatch.undo()
    assert resume(tmp_path) == {0}
    assert read_contents(tmp_path) == before
    with RunDirectory(tmp_path, overwrite=True):
        assert sorted(read_contents(tmp_path)) == [EXAMPLES, LOCK]


@pytest.mark.parametrize("full", [COSTS, DIGESTS, RECORDS])
def test_a_full_disk_is_reported_and_costs_the_current_block(
    tmp_path: Path, full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = begin_run(tmp_path, done=1)
    before = read_contents(tmp_path)
    sync = os.fsync

    def fail_without_space(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink() if Path("/proc/self/fd").exists() else None
        if path is None or path.name == full:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - 10)  # part of it was written
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(run_directory.os, "fsync", fail_without_space)
    with pytest.raises(InputError, match=r"No space left on device.*the finished blocks are kept"):
        directory.append(Block.of(make_records(3)), make_costs(3), [make_example(3)])
    directory.__exit__()
    monkeypatch.undo()
    assert resume(tmp_path) == {0}
    assert read_contents(tmp_path) == before


# Where nothing can be written


def test_checking_writes_nothing(tmp_path: Path) -> None:
    assert check_out(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert check_out(str(tmp_path / "a")) == tmp_path / "a"
    assert read_contents(tmp_path) == {}


def _file(root: Path) -> Path:
    (root / "file").write_text("in the way")
    return root / "file"


def _below_a_file(root: Path) -> Path:
    return _file(root) / "run"


def _dangling_link(root: Path) -> Path:
    (root / "link").symlink_to(root / "nowhere")
    return root / "link"


def _name_too_long(root: Path) -> Path:
    return root / ("x" * 300)


def _where_nothing_can_be_made(root: Path) -> Path:
    return Path("/proc/self/run")


UNWRITABLE: list[Callable[[Path], Path]] = [
    _file,
    _below_a_file,
    _dangling_link,
    _name_too_long,
    pytest.param(
        _where_nothing_can_be_made, marks=pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="Linux only")
    ),
]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("make", UNWRITABLE)
def test_an_unwritable_folder_is_refused_and_left_as_it_was(
    tmp_path: Path, make: Callable[[Path], Path], overwrite: bool
) -> None:
    out = make(tmp_path)
    before = read_contents(tmp_path)
    with pytest.raises(InputError, match=r"out is .*expected") as caught:
        RunDirectory(out, overwrite)
    assert len(str(caught.value).splitlines()) == 1
    assert read_contents(tmp_path) == before


@pytest.mark.parametrize("below", ["", "run"])
def test_a_folder_without_permission_is_refused(tmp_path: Path, below: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions bind no superuser, so the answer of the system is given here."""

    def deny_writing(path: Any, mode: int) -> bool:
        assert Path(path) == tmp_path
        return not mode & os.W_OK

    monkeypatch.setattr(os, "access", deny_writing)
    with pytest.raises(InputError, match="which cannot be written; a writable folder was expected"):
        RunDirectory(tmp_path / below)
    assert read_contents(tmp_path) == {}
