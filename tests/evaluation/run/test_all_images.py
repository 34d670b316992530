"""All adversarial images of a run: compared with its records, after a kill, from shards, and added to a run."""

from __future__ import annotations

import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from art_defenses_ext import Linf, add_examples
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.evaluate import evaluate_shard
from art_defenses_ext.evaluation.merge import merge
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.run.all_images import ADVERSARIAL, WORST_CASE, file_names
from art_defenses_ext.evaluation.run.folder import RECORDS, ROUNDS, RunDirectory
from art_defenses_ext.evaluation.run.shard import Shard

from ...conftest import omit_pictures

pytestmark = pytest.mark.usefixtures("without_pictures")

SAMPLES, BLOCK = 5, 2
ALL = {"save_examples": "all"}


@pytest.fixture(scope="module")
def brief(finished_run: Any) -> Any:
    """The finished run on its first images, with a curve of its first attack and without checks."""
    options = finished_run.options | {"block_size": BLOCK, "curve_samples": 2, "check_samples": 0}
    attacks = [replace(spec, curve=number == 0) for number, spec in enumerate(finished_run.attacks)]
    x, y = finished_run.x[:SAMPLES], finished_run.y[:SAMPLES]
    return replace(finished_run, x=x, y=y, attacks=attacks, options=options)


@pytest.fixture(scope="module")
def complete_run(brief: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this run in one go, with all of its images."""
    folder: Path = tmp_path_factory.mktemp("kept") / "run"
    with pytest.MonkeyPatch.context() as patch:
        omit_pictures(patch)
        brief.repeat(out=folder, **ALL)
    return folder


def read_files(folder: Path) -> dict[str, bytes]:
    """What lies in a run's folder of images, by its path there; folders, such as that of blocks, hold nothing."""
    images = folder / ADVERSARIAL
    paths = list(images.rglob("*"))
    return {path.relative_to(images).as_posix(): path.read_bytes() if path.is_file() else b"" for path in paths}


def read_arrays(folder: Path) -> dict[str, dict[str, Any]]:
    """The arrays of each file by the file's stem."""
    return {path.stem: dict(np.load(path)) for path in (folder / ADVERSARIAL).glob("*.npz")}


def test_the_images_of_each_attack_agree_with_the_records(brief: Any, complete_run: Path) -> None:
    expected = defaultdict(list)
    for record in Report.load(complete_run).records:
        for key, outcome in record.attacks.items():
            expected[key].append((record, outcome))
    attacks = {
        str(arrays["attack"][0]): arrays for name, arrays in read_arrays(complete_run).items() if name != WORST_CASE
    }
    assert set(attacks) == set(expected)
    assert len(attacks) > len(brief.attacks)  # gradient modes, and the eps of the curve
    for key, pairs in expected.items():
        arrays = attacks[key]
        adv, x = arrays["adv"], brief.x[arrays["index"]]
        assert adv.dtype == np.float32
        assert set(arrays["attack"]) == {key}
        assert arrays["index"].tolist() == [record.index for record, _ in pairs]
        assert arrays["label"].tolist() == [record.label for record, _ in pairs]
        assert arrays["success"].tolist() == [outcome.success for _, outcome in pairs]
        predicted = brief.classifier.predict(adv).argmax(axis=1).tolist()
        assert predicted == arrays["prediction"].tolist() == [outcome.prediction for _, outcome in pairs]
        change = (adv.astype(np.float64) - x).reshape(len(x), -1)
        assert np.abs(change).max(axis=1) == pytest.approx([outcome.linf for _, outcome in pairs], abs=1e-7)
        assert np.linalg.norm(change, axis=1) == pytest.approx([outcome.l2 for _, outcome in pairs], abs=1e-7)


def test_the_worst_case_is_the_image_of_the_first_attack_that_succeeded(brief: Any, complete_run: Path) -> None:
    report, arrays = Report.load(complete_run), read_arrays(complete_run)
    worst = arrays.pop(WORST_CASE)
    images_of_attack = {
        str(attack_arrays["attack"][0]): dict(zip(attack_arrays["index"], attack_arrays["adv"], strict=True))
        for attack_arrays in arrays.values()
    }
    broken = [record for record in report.records if any(outcome.success for outcome in record.attacks.values())]
    assert worst["index"].tolist() == [record.index for record in broken]
    assert 0 < len(broken) < SAMPLES
    for record, attack, adv in zip(broken, worst["attack"], worst["adv"], strict=True):
        assert attack == next(key for key, outcome in record.attacks.items() if outcome.success)
        assert np.array_equal(adv, images_of_attack[str(attack)][record.index])
    assert (brief.classifier.predict(worst["adv"]).argmax(axis=1) != worst["label"]).all()
    assert np.abs(worst["adv"] - brief.x[worst["index"]]).max() <= brief.threat.eps + 1e-6


def test_saved_images_do_not_change_the_records_and_shards_give_the_same_files(
    brief: Any, complete_run: Path, tmp_path: Path
) -> None:
    call = brief.call | brief.options
    parts = [evaluate_shard(**call, shard=Shard(1, 2), out=tmp_path / "run", **ALL)]
    part_without_images = evaluate_shard(**call, shard=Shard(2, 2), out=tmp_path / "bare")
    merge([*parts, part_without_images], tmp_path / "mixed")
    assert (tmp_path / "mixed" / RECORDS).read_bytes() == (complete_run / RECORDS).read_bytes()
    assert not read_files(tmp_path / "mixed")  # not all parts have them

    evaluate_shard(**call, shard=Shard(2, 2), out=tmp_path / "run", **ALL)
    merge([tmp_path / "run"], tmp_path / "run")
    merged = read_files(tmp_path / "run")
    assert merged == read_files(complete_run)
    with RunDirectory(tmp_path / "run", overwrite=True):
        assert not read_files(tmp_path / "run")


def test_a_killed_run_ends_with_the_same_files(
    brief: Any, complete_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed inside a block, before and after its images are written, and while the files are joined."""
    note, join, kills = RunDirectory.note, RunDirectory.join_images, [2, 5, 9]
    noted_attacks: list[str] = []

    def die_while_noting(self: Any, attempt: Any, *arguments: Any) -> None:
        noted_attacks.append(attempt.cost.attack)
        if len(noted_attacks) in kills:
            self._images.keep(attempt, arguments[-1] * 0)  # it was writing; what counts comes after
            raise KeyboardInterrupt
        note(self, attempt, *arguments)

    def die_while_joining(self: Any, records: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            join(self, records)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "note", die_while_noting)
    monkeypatch.setattr(RunDirectory, "join_images", die_while_joining)
    for _ in range(len(kills) + 1):
        with pytest.raises(KeyboardInterrupt):
            brief.repeat(out=tmp_path, **ALL)
    monkeypatch.setattr(RunDirectory, "join_images", join)
    before = len(noted_attacks)
    brief.repeat(out=tmp_path, **ALL)
    assert len(noted_attacks) == before
    assert read_files(tmp_path) == read_files(complete_run)


def test_a_round_that_was_killed_before_its_images_were_joined_ends_with_the_same_files(
    finished_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = finished_run.options | {"curve_samples": 0, "check_samples": 2, "effort": "1"}
    run = replace(finished_run, x=finished_run.x[:4], y=finished_run.y[:4], threat=Linf(0.02), options=options)
    run.repeat(out=tmp_path / "whole", **ALL)
    join = RunDirectory.join_images

    def die_in_a_round(self: Any, records: Any) -> None:
        if self.path.parent.name == ROUNDS:
            raise KeyboardInterrupt
        join(self, records)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "join_images", die_in_a_round)
        with pytest.raises(KeyboardInterrupt):
            run.repeat(out=tmp_path / "killed", **ALL)
    run.repeat(out=tmp_path / "killed", **ALL)
    whole, killed = (read_files(tmp_path / name / ROUNDS / "1") for name in ("whole", "killed"))
    assert f"{WORST_CASE}.npz" in whole
    assert killed == whole


def test_a_run_begun_without_images_goes_on_while_no_block_is_finished(
    brief: Any, complete_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = RunDirectory.append

    def stop(self: Any, *arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        brief.repeat(out=tmp_path)
    monkeypatch.setattr(RunDirectory, "append", append)
    brief.repeat(out=tmp_path, **ALL)  # its attacks on the first block, which are known, are made again for the images
    assert read_files(tmp_path) == read_files(complete_run)
    assert (tmp_path / RECORDS).read_bytes() == (complete_run / RECORDS).read_bytes()
    shutil.rmtree(tmp_path / ADVERSARIAL)
    with pytest.raises(InputError, match=r"whose samples from 0 on were attacked without it; 'one', another folder"):
        brief.repeat(out=tmp_path, **ALL)


def test_the_images_of_one_run_are_added_to_a_weaker_one(brief: Any, complete_run: Path, tmp_path: Path) -> None:
    noise = [spec for spec in brief.attacks if spec.name == "Square"]
    weaker = brief.repeat(out=tmp_path, attacks=noise).records
    stronger = Report.load(complete_run).records
    union = [a.robust() and b.robust() for a, b in zip(weaker, stronger, strict=True)]
    assert sum(union) < sum(record.robust() for record in weaker)
    data = brief.x, brief.y
    worst = complete_run / ADVERSARIAL / f"{WORST_CASE}.npz"
    report = add_examples(tmp_path, worst, brief.classifier, data, name="the stronger run")
    assert report.summary.worst_case.count == sum(union)
    attack = next(path for path in (complete_run / ADVERSARIAL).iterdir() if path.name.startswith("APGD-exact"))
    again = add_examples(tmp_path, attack, brief.classifier, data, name="one of its attacks")
    assert again.summary.worst_case.count == sum(union)


def test_damaged_images_are_refused(brief: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Report, "load", lambda *_: pytest.fail("stopped before it is joined"))
    with pytest.raises(BaseException, match="stopped before"):
        brief.repeat(out=tmp_path, **ALL)
    monkeypatch.undo()
    block = tmp_path / ADVERSARIAL / "blocks" / "00000002" / "000.npz"
    content = block.read_bytes()
    other_content = (tmp_path / ADVERSARIAL / "blocks" / "00000000" / "000.npz").read_bytes()
    for damaged, words in (
        (content[:-50], "cannot be read"),
        (None, "cannot be read"),
        (other_content, "holds samples .0, 1"),
    ):
        block.unlink() if damaged is None else block.write_bytes(damaged)
        with pytest.raises(InputError, match=words):
            brief.repeat(out=tmp_path, **ALL)


def test_an_unknown_extent_and_a_missing_folder_are_refused(brief: Any) -> None:
    with pytest.raises(InputError, match="save_examples is 'all', but out is missing"):
        brief.repeat(save_examples="all")
    with pytest.raises(InputError, match="save_examples is 'some'; one of one, all"):
        brief.repeat(save_examples="some")


def test_files_have_portable_names() -> None:
    keys = [
        "PGD, undefended",
        "APGD [exact]",
        "APGD [exact] @ 0.05",
        "apgd exact",
        "../../x",
        "worst_case",
        "",
        "é" * 9,
    ]
    names = file_names([*keys, "a" * 300, "a" * 300 + "b"])
    assert list(names.values()) == [
        "PGD-undefended", "APGD-exact", "APGD-exact-0.05", "apgd-exact-2", "x", "worst_case-2", "attack", "attack-2",
        "a" * 100, "a" * 100 + "-2",
    ]  # fmt: skip
