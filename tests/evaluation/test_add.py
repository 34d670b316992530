"""External adversarial examples: joined as by hand, and refused where anything about them is wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyautoattack
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from safetensors.numpy import save_file
from torch import nn

from art_defenses_ext import JumpReLU, Linf, add_examples, as_module, evaluate, gradient_mode
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.rebuild import undefended
from art_defenses_ext.evaluation.publish.leaderboard import Entry
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.run.added import ADDED
from art_defenses_ext.evaluation.run.folder import RunDirectory
from art_defenses_ext.evaluation.suite.suites import STANDARD
from art_defenses_ext.zoo.datasets import Dataset

from ..conftest import omit_pictures

Images = npt.NDArray[np.float32]
SOURCE = {"name": "AutoAttack", "link": "https://arxiv.org/abs/2003.01690"}


@pytest.fixture(scope="module")
def external_images(finished_run: Any) -> Images:
    """What the authors' AutoAttack makes of the run's images, under one gradient mode, without its slow parts."""
    x, y = torch.tensor(finished_run.x), torch.tensor(finished_run.y)
    network = as_module(finished_run.classifier)
    with gradient_mode(network, "smooth"):
        attack = pyautoattack.AutoAttack(network, norm="Linf", eps=finished_run.threat.eps, seed=0)
        attack.attacks_to_run, attack.apgd.n_iter = ["apgd-ce"], 20
        adversarial: Images = attack.run_standard_evaluation(x, y, batch_size=len(x))[0].numpy()
    return adversarial


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are written without their pictures, which take a second to draw."""
    omit_pictures(monkeypatch)


@pytest.fixture
def own_run(finished_run: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run.folder, tmp_path / "run"))


def model_and_data(finished_run: Any) -> tuple[Any, Any]:
    return finished_run.classifier, (finished_run.x, finished_run.y)


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_figure_changes_as_computed_by_hand(finished_run: Any, own_run: Path, external_images: Images) -> None:
    before = finished_run.report
    broken = finished_run.classifier.predict(external_images).argmax(axis=1) != finished_run.y
    robust = np.array([record.robust() for record in before.records])
    assert 0 < (robust & broken).sum() < robust.sum()

    report = add_examples(own_run, external_images, *model_and_data(finished_run), **SOURCE)

    assert report.accuracy_after_attacks == (robust & ~broken).mean()
    assert report.summary.own_worst_case == before.summary.worst_case
    row = next(row for row in report.summary.rows if row.source == "elsewhere")
    correct = np.array([record.correct for record in before.records])
    assert (row.key, row.attacked, row.broke) == ("AutoAttack", len(external_images), (correct & broken).sum())
    check = next(check for check in report.summary.checks if check.name == "elsewhere")
    assert check.finding.startswith(f"examples made elsewhere break {(robust & broken).sum()} of {robust.sum()}")
    page = (own_run / "report.html").read_text()
    assert "Examples made elsewhere" in page
    assert SOURCE["link"] in page
    assert json.loads((own_run / "report.json").read_text())["after_attacks"]["count"] == (robust & ~broken).sum()
    assert Report.load(own_run).summary == report.summary


def test_the_runs_own_files_stay_and_adding_twice_changes_nothing(
    finished_run: Any, own_run: Path, external_images: Images
) -> None:
    before = read_files(own_run)
    add_examples(own_run, external_images, *model_and_data(finished_run), **SOURCE)
    files_once = read_files(own_run)
    results = ("report.", "figures/", ADDED)
    assert {name: files_once[name] for name in before if not name.startswith(results)} == {
        name: content for name, content in before.items() if not name.startswith(results)
    }
    add_examples(own_run, external_images, *model_and_data(finished_run), **SOURCE)
    files_twice = read_files(own_run)
    assert {name: files_twice[name] for name in files_twice if not name.startswith("figures/")} == {
        name: files_once[name] for name in files_once if not name.startswith("figures/")
    }


def test_a_repeated_run_keeps_the_added_examples(finished_run: Any, own_run: Path, external_images: Images) -> None:
    report = add_examples(own_run, external_images, *model_and_data(finished_run), **SOURCE)
    assert finished_run.repeat(out=own_run).summary == report.summary
    with RunDirectory(own_run, overwrite=True):
        assert not list((own_run / ADDED).iterdir())


WRITERS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "a.npz": lambda path, arrays: np.savez(path, **arrays),
    "a.safetensors": lambda path, arrays: save_file(arrays, path),
    "a.pt": lambda path, arrays: torch.save({name: torch.tensor(array) for name, array in arrays.items()}, path),
}


@pytest.mark.parametrize("file", WRITERS)
def test_each_format_is_read_and_a_part_of_the_images_is_enough(
    file: str, finished_run: Any, own_run: Path, external_images: Images, tmp_path: Path
) -> None:
    index = np.array([20, 3, 7])
    arrays = {"adversarial": external_images[index], "index": index, "clean": finished_run.x[index]}
    WRITERS[file](tmp_path / file, arrays)
    report = add_examples(own_run, tmp_path / file, *model_and_data(finished_run), **SOURCE)
    assert [record.index for record in report.records if "AutoAttack" in record.attacks] == [3, 7, 20]
    for record in report.records:
        if "AutoAttack" in record.attacks:
            predicted = finished_run.classifier.predict(external_images[[record.index]]).argmax()
            assert record.attacks["AutoAttack"].prediction == predicted


Change = Callable[[Images, Images], dict[str, Any]]


def _moved(adv: Images, x: Images) -> Images:
    adversarial = adv.copy()
    adversarial[5] = np.where(x[5] > 0.5, x[5] - 0.2, x[5] + 0.2)
    return adversarial


WRONG: dict[str, tuple[Change, str]] = {
    "another ball": (
        lambda adv, x: {"adversarial": _moved(adv, x)},
        r"is 0.2 in linf away from sample 5 of the run; at",
    ),
    "other images": (lambda adv, x: {"adversarial": adv[::-1]}, "in linf away from sample 0 of the run; at most 0.1"),
    "other clean images": (lambda adv, x: {"adversarial": adv, "clean": x[::-1]}, "another image than sample 0 of"),
    "beyond the clip range": (
        lambda adv, x: {"adversarial": adv - 0.05},
        "leaves the clip range at sample 0; 0 to 1 was",
    ),
    "not finite": (lambda adv, x: {"adversarial": adv * np.float32(np.nan)}, "NaN or infinite values"),
    "another shape": (lambda adv, x: {"adversarial": adv[:, :, :4]}, r"of shape \(1, 4, 8\); \(1, 8, 8\) was"),
    "too few": (lambda adv, x: {"adversarial": adv[:3]}, "holds 3 images and no array index; 23"),
    "one twice": (lambda adv, x: {"adversarial": adv[:2], "index": np.array([4, 4])}, "distinct samples from 0 to 22"),
    "no such sample": (lambda adv, x: {"adversarial": adv[:1], "index": np.array([23])}, "from 0 to 22 were expected"),
    "whole numbers": (lambda adv, x: {"adversarial": adv.astype(np.uint8)}, "floating-point images under one of"),
    "another name": (lambda adv, x: {"images": adv}, "floating-point images under one of the names adversarial"),
    "clean of another shape": (lambda adv, x: {"adversarial": adv, "clean": x[:3]}, "holds clean of shape"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_files_are_refused_before_anything_is_written(
    wrong: str, finished_run: Any, external_images: Images, tmp_path: Path
) -> None:
    change, words = WRONG[wrong]
    np.savez(tmp_path / "adv.npz", **change(external_images, finished_run.x))
    before = read_files(finished_run.folder)
    with pytest.raises(InputError, match=words):
        add_examples(finished_run.folder, tmp_path / "adv.npz", *model_and_data(finished_run), **SOURCE)
    assert read_files(finished_run.folder) == before


def test_damaged_and_hostile_files_are_refused(finished_run: Any, external_images: Images, tmp_path: Path) -> None:
    np.savez(tmp_path / "cut.npz", adversarial=external_images)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:-200])
    np.savez(tmp_path / "objects.npz", adversarial=np.array([print], dtype=object))
    torch.save(print, tmp_path / "code.pt")
    for file in ("cut.npz", "objects.npz", "code.pt"):
        with pytest.raises(InputError, match="which cannot be read"):
            add_examples(finished_run.folder, tmp_path / file, *model_and_data(finished_run), **SOURCE)
    with pytest.raises(InputError, match="an existing file of images"):
        add_examples(finished_run.folder, tmp_path / "none.npz", *model_and_data(finished_run), **SOURCE)


def test_another_model_other_images_and_a_name_in_use_are_refused(
    finished_run: Any, external_images: Images, digits: Dataset
) -> None:
    folder, (model, (x, y)) = finished_run.folder, model_and_data(finished_run)
    before = read_files(folder)
    other_model = JumpReLU(undefended(model), 0.5)()
    cases: list[tuple[Any, Any, dict[str, str], str]] = [
        (other_model, (x, y), SOURCE, "model is not that of the run in"),
        (model, (digits.test.x[1:24], y), SOURCE, "data is not that of the run in"),
        (model, (x, (y + 1) % 10), SOURCE, "data is not that of the run in"),
        (model, (x, y), {"name": "Square"}, "name is 'Square', which the run has already"),
        (model, (x, y), {"name": "them", "link": "javascript:alert(1)"}, "link is 'javascript"),
        (model, (x, y), {"name": ""}, "name is ''"),
    ]
    for classifier, data, source, words in cases:
        with pytest.raises(InputError, match=re.escape(words)):
            add_examples(folder, external_images, classifier, data, **source)
    assert read_files(folder) == before


def test_a_file_that_was_changed_afterwards_is_refused(
    finished_run: Any, own_run: Path, external_images: Images
) -> None:
    add_examples(own_run, external_images, *model_and_data(finished_run), **SOURCE)
    (file,) = (own_run / ADDED).glob("*.json")
    text = file.read_text()
    changes = [
        ('"success": true', '"success": false', "differs from its digest"),
        ('"name": "AutoAttack"', '"name": "Nobody"', "differs from its digest"),
        ('"name"', '"whose"', "cannot be read"),
    ]
    for old, new, words in changes:
        assert old in text
        file.write_text(text.replace(old, new, 1))
        with pytest.raises(InputError, match=words):
            Report.load(own_run)
    file.write_text(text)
    Report.load(own_run)


def test_a_leaderboard_entry_names_the_evidence_of_its_external_figure(
    finished_run: Any, own_run: Path, external_images: Images
) -> None:
    report = add_examples(own_run, external_images, *model_and_data(finished_run), **SOURCE)
    entry = Entry.of(report, "digits")
    assert entry.robust_acc == round(100 * finished_run.report.summary.worst_case.rate, 2)
    assert entry.external == round(100 * report.accuracy_after_attacks, 2) < entry.robust_acc
    assert entry.evidence == [f"AutoAttack, made elsewhere: {SOURCE['link']}"]
    assert Entry.of(finished_run.report, "digits").evidence == []
    assert Entry.of(report, "digits", external=1.0).external == 1.0


class Brightness(nn.Module):
    """Class 1 where the first channel's mean exceeds .52."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x[:, 0].mean(dim=(1, 2))
        return torch.stack([torch.full_like(mean, 0.52), mean], dim=1)


def test_each_channel_has_its_own_clip_range(tmp_path: Path) -> None:
    """The first channel ends at .5, so that no image is of class 1; one ulp above is a rounding, .58 is not."""
    low, high = np.zeros((3, 1, 1), np.float32), np.array([0.5, 1, 1], np.float32).reshape(3, 1, 1)
    classifier = PyTorchClassifier(
        Brightness(), nn.CrossEntropyLoss(), (3, 4, 4), 2, clip_values=(low, high), device_type="cpu"
    )
    x, y = np.full((4, 3, 4, 4), 0.49, np.float32), np.zeros(4, np.int64)
    evaluate(
        classifier, (x, y), Linf(0.1), [STANDARD[0]], out=tmp_path, progress=False, check_samples=0, curve_samples=0
    )
    adversarial = x.copy()
    adversarial[:, 0] = 0.58
    with pytest.raises(InputError, match="leaves the clip range at sample 0"):
        add_examples(tmp_path, adversarial, classifier, (x, y), **SOURCE)
    adversarial[:, 0] = np.nextafter(np.float32(0.5), np.float32(1))
    assert add_examples(tmp_path, adversarial, classifier, (x, y), **SOURCE).accuracy_after_attacks == 1.0
