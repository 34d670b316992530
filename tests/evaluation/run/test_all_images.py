"""All adversarial images of a run: what its records say of them, after a kill, from shards, and added to a run."""

from __future__ import annotations

import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from art_defenses_ext import add_examples
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.evaluate import evaluate_shard
from art_defenses_ext.evaluation.merge import merge
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.run.all_images import ADVERSARIAL, WORST_CASE, file_names
from art_defenses_ext.evaluation.run.folder import RECORDS, RunDirectory
from art_defenses_ext.evaluation.run.shard import Shard

pytestmark = pytest.mark.usefixtures("without_pictures")

SAMPLES, BLOCK = 9, 4
ALL = {"save_examples": "all"}


@pytest.fixture(scope="module")
def brief(finished_run: Any) -> Any:
    """The finished run on its first images, with a curve and without checks."""
    options = finished_run.options | {"block_size": BLOCK, "curve_samples": 2, "check_samples": 0}
    return replace(finished_run, x=finished_run.x[:SAMPLES], y=finished_run.y[:SAMPLES], options=options)


@pytest.fixture(scope="module")
def kept(brief: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this run in one go, with all of its images."""
    folder: Path = tmp_path_factory.mktemp("kept") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("art_defenses_ext.evaluation.report.figures.drawn.draw_figures", lambda *_: {})
        brief.repeat(out=folder, **ALL)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """What lies in a run's folder of images, by its path there; folders, such as that of blocks, hold nothing."""
    images = folder / ADVERSARIAL
    paths = list(images.rglob("*"))
    return {path.relative_to(images).as_posix(): path.read_bytes() if path.is_file() else b"" for path in paths}


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The arrays of each file by the file's stem."""
    return {path.stem: dict(np.load(path)) for path in (folder / ADVERSARIAL).glob("*.npz")}


def test_each_attack_has_the_images_that_the_records_are_of(brief: Any, kept: Path) -> None:
    expected = defaultdict(list)
    for record in Report.load(kept).records:
        for key, outcome in record.attacks.items():
            expected[key].append((record, outcome))
    attacks = {str(arrays["attack"][0]): arrays for name, arrays in read(kept).items() if name != WORST_CASE}
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


def test_the_worst_case_is_the_image_of_the_first_attack_that_succeeded(brief: Any, kept: Path) -> None:
    report, arrays = Report.load(kept), read(kept)
    worst = arrays.pop(WORST_CASE)
    of_attack = {str(each["attack"][0]): dict(zip(each["index"], each["adv"], strict=True)) for each in arrays.values()}
    broken = [record for record in report.records if any(outcome.success for outcome in record.attacks.values())]
    assert worst["index"].tolist() == [record.index for record in broken]
    assert 0 < len(broken) < SAMPLES
    for record, attack, adv in zip(broken, worst["attack"], worst["adv"], strict=True):
        assert attack == next(key for key, outcome in record.attacks.items() if outcome.success)
        assert np.array_equal(adv, of_attack[str(attack)][record.index])
    assert (brief.classifier.predict(worst["adv"]).argmax(axis=1) != worst["label"]).all()
    assert np.abs(worst["adv"] - brief.x[worst["index"]]).max() <= brief.threat.eps + 1e-6


def test_the_records_do_not_depend_on_it_and_shards_give_the_same_files(brief: Any, kept: Path, tmp_path: Path) -> None:
    call = brief.call | brief.options
    parts = [evaluate_shard(**call, shard=Shard(1, 2), out=tmp_path / "run", **ALL)]
    bare = evaluate_shard(**call, shard=Shard(2, 2), out=tmp_path / "bare")
    merge([*parts, bare], tmp_path / "mixed")
    assert (tmp_path / "mixed" / RECORDS).read_bytes() == (kept / RECORDS).read_bytes()
    assert not files(tmp_path / "mixed")  # not all parts have them

    evaluate_shard(**call, shard=Shard(2, 2), out=tmp_path / "run", **ALL)
    merge([tmp_path / "run"], tmp_path / "run")
    merged = files(tmp_path / "run")
    assert merged == files(kept)
    with RunDirectory(tmp_path / "run", overwrite=True):
        assert not files(tmp_path / "run")


def test_a_killed_run_ends_with_the_same_files(
    brief: Any, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed inside a block, before and after its images are written, and while the files are joined."""
    note, join, kills = RunDirectory.note, RunDirectory.join_images, [2, 5, 9]
    noted: list[str] = []

    def dying(self: Any, attempt: Any, *arguments: Any) -> None:
        noted.append(attempt.cost.attack)
        if len(noted) in kills:
            self._images.keep(attempt, arguments[-1] * 0)  # it was writing; what counts comes after
            raise KeyboardInterrupt
        note(self, attempt, *arguments)

    def dying_at_the_end(self: Any, records: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            join(self, records)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "note", dying)
    monkeypatch.setattr(RunDirectory, "join_images", dying_at_the_end)
    for _ in range(len(kills) + 1):
        with pytest.raises(KeyboardInterrupt):
            brief.repeat(out=tmp_path, **ALL)
    monkeypatch.setattr(RunDirectory, "join_images", join)
    before = len(noted)
    brief.repeat(out=tmp_path, **ALL)
    assert len(noted) == before
    assert files(tmp_path) == files(kept)


def test_a_run_that_was_begun_without_goes_on_while_no_block_is_finished(
    brief: Any, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = RunDirectory.append

    def stopping(self: Any, *arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "append", stopping)
    with pytest.raises(KeyboardInterrupt):
        brief.repeat(out=tmp_path)
    monkeypatch.setattr(RunDirectory, "append", append)
    brief.repeat(out=tmp_path, **ALL)  # its attacks on the first block, which are known, are made again for the images
    assert files(tmp_path) == files(kept)
    assert (tmp_path / RECORDS).read_bytes() == (kept / RECORDS).read_bytes()
    shutil.rmtree(tmp_path / ADVERSARIAL)
    with pytest.raises(InputError, match=r"whose samples from 0 on were attacked without it; 'one', another folder"):
        brief.repeat(out=tmp_path, **ALL)


def test_the_images_of_one_run_are_added_to_a_weaker_one(brief: Any, kept: Path, tmp_path: Path) -> None:
    noise = [spec for spec in brief.attacks if spec.name == "Square"]
    weaker = brief.repeat(out=tmp_path, attacks=noise).records
    stronger = Report.load(kept).records
    union = [a.robust() and b.robust() for a, b in zip(weaker, stronger, strict=True)]
    assert sum(union) < sum(record.robust() for record in weaker)
    data = brief.x, brief.y
    worst = kept / ADVERSARIAL / f"{WORST_CASE}.npz"
    report = add_examples(tmp_path, worst, brief.classifier, data, name="the stronger run")
    assert report.summary.worst_case.count == sum(union)
    attack = next(path for path in (kept / ADVERSARIAL).iterdir() if path.name.startswith("APGD-exact"))
    again = add_examples(tmp_path, attack, brief.classifier, data, name="one of its attacks")
    assert again.summary.worst_case.count == sum(union)


def test_images_that_are_damaged_are_refused(brief: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Report, "load", lambda *_: pytest.fail("stopped before it is joined"))
    with pytest.raises(BaseException, match="stopped before"):
        brief.repeat(out=tmp_path, **ALL)
    monkeypatch.undo()
    block = tmp_path / ADVERSARIAL / "blocks" / "00000004" / "000.npz"
    content = block.read_bytes()
    other = (tmp_path / ADVERSARIAL / "blocks" / "00000000" / "000.npz").read_bytes()
    for damaged, words in ((content[:-50], "cannot be read"), (None, "cannot be read"), (other, "holds samples .0, 1")):
        block.unlink() if damaged is None else block.write_bytes(damaged)
        with pytest.raises(InputError, match=words):
            brief.repeat(out=tmp_path, **ALL)


def test_another_extent_and_no_folder_are_refused(brief: Any) -> None:
    with pytest.raises(InputError, match="save_examples is 'all', but out is missing"):
        brief.repeat(save_examples="all")
    with pytest.raises(InputError, match="save_examples is 'some'; one of one, all"):
        brief.repeat(save_examples="some")


def test_files_have_names_that_every_disk_takes() -> None:
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
