"""A run's folder that another hand, or a broken disk, has changed: refused in words, or read as it was."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext import Linf, evaluate
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.merge import merge
from art_defenses_ext.evaluation.publish.leaderboard import Entry
from art_defenses_ext.evaluation.records.lines import DIGESTS, digest_of, read_digests
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.run.folder import COSTS, EXAMPLES, FINDINGS, MANIFEST, RECORDS, read_manifest
from art_defenses_ext.evaluation.run.unfinished import IMAGES, LINES, Unfinished
from art_defenses_ext.evaluation.suite.spec import AttackSpec

pytestmark = pytest.mark.usefixtures("without_pictures")

EPS = 0.02
SPEC = AttackSpec("PGD", lambda c, t, s: MarginPGD(c, t.norm, t.eps, max_iter=4, seed=s), "a", kind="white-box")
OPTIONS: dict[str, Any] = {"block_size": 4, "curve_samples": 0, "check_samples": 3, "progress": False}


@pytest.fixture(scope="module")
def target() -> PyTorchClassifier:
    layer = nn.Linear(36, 3)
    weight = torch.randn(3, 36, generator=torch.Generator().manual_seed(0))
    layer.weight.data = weight - weight.mean(dim=1, keepdim=True)  # grey lies on every boundary
    layer.bias.data.zero_()
    return PyTorchClassifier(
        nn.Sequential(nn.Flatten(), layer), nn.CrossEntropyLoss(), (1, 6, 6), 3, clip_values=(0, 1), device_type="cpu"
    )


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.2, 0.8, (10, 1, 6, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def y(target: PyTorchClassifier, x: np.ndarray) -> np.ndarray:
    labels = target.predict(x).argmax(axis=1)
    labels[0] = (labels[0] + 1) % 3
    return labels


@pytest.fixture(scope="module")
def original(target: PyTorchClassifier, x: np.ndarray, y: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tampering") / "run"
    evaluate(target, (x, y), Linf(EPS), [SPEC], out=folder, **OPTIONS)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def read_figures(folder: Path) -> Any:
    """All that a report says, and its pictures."""
    report = Report.load(folder)
    data = json.loads(json.dumps(report.summary.as_dict()))
    return data, [
        (example.index, example.attack, example.clean.tobytes(), example.adversarial.tobytes())
        for example in report.examples
    ]


def edit_lines(file: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    change(rows)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sign(folder: Path) -> None:
    """Make the digests of the records anew, as a forger would."""
    binding, lines = read_manifest(folder).binding, (folder / RECORDS).read_bytes().splitlines(keepends=True)
    rows = []
    for start, digest in read_digests(folder).items():
        rows.append(vars(digest) | {"records": digest_of(binding, lines[start : start + OPTIONS["block_size"]])})
    (folder / DIGESTS).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_run_has_broken_and_unbroken_images(original: Path) -> None:
    report = Report.load(original)
    assert 0 < report.summary.worst_case.count < report.summary.clean.count
    assert report.examples


def test_successes_set_to_false_are_refused_wherever_records_are_read(
    folder: Path, target: PyTorchClassifier, x: np.ndarray, y: np.ndarray, tmp_path: Path
) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            for outcome in row["attacks"].values():
                outcome["success"] = False

    edit_lines(folder / RECORDS, change)
    words = r"records\.jsonl, line \d+, contradicts itself: attacks 'PGD' success is False, and .* say True"
    for signed in (False, True):
        if signed:
            sign(folder)
        with pytest.raises(InputError, match=words):
            Report.load(folder)
        with pytest.raises(InputError, match=words):
            merge([folder], tmp_path / "merged")
        with pytest.raises(InputError, match=words):
            evaluate(target, (x, y), Linf(EPS), [SPEC], out=folder, **OPTIONS)


def find_attacked(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    row = next(row for row in rows if any(outcome["success"] for outcome in row["attacks"].values()))
    return row, row["attacks"]["PGD"]


CONTRADICTIONS: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], Any], str]] = {
    "not misclassified": (lambda r, o: o.update(misclassified=False), "misclassified is False, and .* say True"),
    "the label's class": (lambda r, o: o.update(prediction=r["label"]), "misclassified is True, and .* say False"),
    "outside the ball": (lambda r, o: o.update(linf=0.05), "success is True, and .* say False"),
    "no class": (lambda r, o: o.update(prediction=3), "prediction is 3; a class up to 2"),
    "no label": (lambda r, o: r.update(label=999999999), "label is 999999999; 0 to 2"),
    "another attack": (lambda r, o: r["attacks"].update(Other=o), "attacks 'Other' is no attack of the run"),
    "a flag as a number": (lambda r, o: o.update(success=1), "success: .*valid boolean"),
    "a number as a flag": (lambda r, o: o.update(prediction=True), "prediction: .*valid integer"),
    "a number as text": (lambda r, o: o.update(linf="0.05"), "linf: .*valid number"),
    "a class with a fraction": (lambda r, o: o.update(prediction=1.0), "prediction: .*valid integer"),
    "not a number": (lambda r, o: o.update(linf=float("nan")), "linf: .*finite number|cannot be read"),
    "a field more": (lambda r, o: o.update(more=1), "more: Unexpected"),
    "no outcome": (lambda r, o: r["attacks"].update(PGD=None), "attacks PGD: "),
    "a field less": (lambda r, o: o.pop("success"), "success: .*equired"),
    "a number without end": (lambda r, o: o.update(prediction=10**400), "prediction"),
}


@pytest.mark.parametrize(("change", "words"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_record_that_contradicts_itself_is_refused_although_its_digest_fits(
    folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any], words: str
) -> None:
    edit_lines(folder / RECORDS, lambda rows: change(*find_attacked(rows)))
    sign(folder)
    with pytest.raises(InputError, match=rf"records\.jsonl, line \d+, .*({words})") as caught:
        Report.load(folder)
    assert len(str(caught.value).splitlines()) == 1


def change_class(rows: list[dict[str, Any]]) -> None:
    row, outcome = find_attacked(rows)
    outcome["prediction"] = next(k for k in range(3) if k not in (row["label"], outcome["prediction"]))


SILENT: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "another wrong class": change_class,
    "a smaller change": lambda rows: find_attacked(rows)[1].update(linf=0.005),
    "an attack less": lambda rows: find_attacked(rows)[0]["attacks"].clear(),
    "another agreement": lambda rows: find_attacked(rows)[1].update(ndcg=0.5),
}


@pytest.mark.parametrize("change", SILENT.values(), ids=SILENT)
def test_a_consistent_change_of_a_record_is_found_by_its_digest(
    folder: Path, change: Callable[[list[dict[str, Any]]], Any]
) -> None:
    edit_lines(folder / RECORDS, change)
    with pytest.raises(InputError, match=r"records\.jsonl, lines \d+ to \d+, differ from their digest"):
        Report.load(folder)


def test_costs_findings_manifest_and_pictures_have_digests(folder: Path, original: Path) -> None:
    def check_refusal(name: str, old: str, new: str, words: str) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))
        with pytest.raises(InputError, match=words):
            Report.load(folder)
        (folder / name).write_text(text)

    check_refusal(COSTS, '"forward": ', '"forward": 1', r"costs\.jsonl, .* differ from their digest")
    check_refusal(FINDINGS, '"seconds": ', '"seconds": 1', r"findings\.json differs from its digest")
    check_refusal(MANIFEST, '"eps": 0.02', '"eps": 0.2', r"manifest\.json differs from its digest")
    (picture,) = list((folder / EXAMPLES).iterdir())[:1]
    picture.write_bytes(picture.read_bytes() + b"x")
    with pytest.raises(InputError, match=r"\.npz differs from its digest"):
        Report.load(folder)
    picture.unlink()  # a run may be handed on without its images
    assert read_figures(folder)[0] == read_figures(original)[0]


def test_files_of_another_run_are_refused(
    folder: Path, target: PyTorchClassifier, x: np.ndarray, y: np.ndarray, tmp_path: Path
) -> None:
    evaluate(target, (x, y), Linf(EPS), [SPEC], out=tmp_path / "other", seed=1, **OPTIONS)
    for names in ([RECORDS], [RECORDS, DIGESTS], [RECORDS, DIGESTS, COSTS], [FINDINGS]):
        shutil.copytree(folder, tmp_path / "mixed", dirs_exist_ok=True)
        for name in names:
            shutil.copy(tmp_path / "other" / name, tmp_path / "mixed" / name)
        if (tmp_path / "other" / names[0]).read_bytes() != (folder / names[0]).read_bytes() or len(names) > 1:
            with pytest.raises(InputError, match="digest"):
                Report.load(tmp_path / "mixed")
        shutil.rmtree(tmp_path / "mixed")


# Any change at all


def truncate(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def flip_bit(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def drop_line(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    lines.pop(draw.randrange(len(lines)))
    return b"".join(lines)


def duplicate_line(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
    return b"".join(lines)


VALUES = [None, True, 0, -1, 3.5, 10**400, "", "a", [], {}, [[1]], {"a": {}}, "9" * 5000]


def list_entries(data: Any) -> list[tuple[Any, Any]]:
    """Every entry of nested plain data, as what holds it and its key."""
    keys: list[Any] = list(data) if isinstance(data, dict) else list(range(len(data)))
    nested = [entry for key in keys if isinstance(data[key], dict | list) for entry in list_entries(data[key])]
    return [(data, key) for key in keys] + nested


def change_field(content: bytes, draw: random.Random) -> bytes:
    """Another value in one field, none, or one that is nested deeper than any parser goes."""
    is_document = content.count(b"\n") > 40 or content.startswith(b"{\n")
    pieces = [content] if is_document else content.splitlines(keepends=True)
    number = draw.randrange(len(pieces))
    prefix, brace, text = pieces[number].partition(b"{")
    data = json.loads(brace + text)
    holder, key = draw.choice(list_entries(data))
    action = draw.random()
    if action < 0.2:
        holder.pop(key)
    elif action < 0.3:
        holder[key] = "DEEP"
    else:
        holder[key] = draw.choice(VALUES)
    deep = "[" * 100_000 + "]" * 100_000
    pieces[number] = prefix + json.dumps(data).replace('"DEEP"', deep).encode() + b"\n"
    return b"".join(pieces)


ANY = [truncate, flip_bit, flip_bit, drop_line, duplicate_line]
FILES: dict[str, list[Callable[[bytes, random.Random], bytes]]] = {
    name: [*ANY, change_field, change_field, change_field] for name in (MANIFEST, RECORDS, COSTS, DIGESTS, FINDINGS)
}


@pytest.mark.parametrize("name", [*FILES, EXAMPLES])
def test_any_change_of_a_file_is_refused_or_changes_no_figure(name: str, folder: Path, original: Path) -> None:
    draw = random.Random(name)
    file = next((folder / EXAMPLES).iterdir()) if name == EXAMPLES else folder / name
    content, expected = file.read_bytes(), read_figures(original)
    refused: list[str] = []
    for _ in range(40):
        changed = draw.choice(FILES.get(name, [truncate, flip_bit]))(content, draw)
        if changed == content:
            continue
        file.write_bytes(changed)
        try:
            assert read_figures(folder) == expected
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all(len(text.splitlines()) == 1 for text in refused)


@pytest.mark.parametrize("name", [LINES, IMAGES])
def test_no_change_of_the_unfinished_block_gives_another_outcome(
    name: str, target: PyTorchClassifier, x: np.ndarray, y: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unfinished, "remove", lambda self: None)  # as if killed before the block was finished
    evaluate(target, (x, y), Linf(EPS), [SPEC], out=tmp_path, **(OPTIONS | {"block_size": 10, "check_samples": 0}))
    (expected,) = Unfinished(tmp_path).attempts(0).values()
    draw, file = random.Random(name), tmp_path / name
    content, lost_attempts = file.read_bytes(), 0
    for _ in range(40):
        file.write_bytes(draw.choice([*ANY, change_field] if name == LINES else [truncate, flip_bit])(content, draw))
        attempts = Unfinished(tmp_path).attempts(0)
        lost_attempts += not attempts
        for attempt, _ in attempts.values():
            assert attempt == expected[0]
    assert lost_attempts > 6


def test_a_changed_entry_is_read_or_refused(original: Path, tmp_path: Path) -> None:
    """Entries have no digest: what authors report is written into them by hand."""
    file = tmp_path / "entry.json"
    Entry.of(Report.load(original), "random").save(file)
    content, draw, refused = file.read_bytes(), random.Random(0), list[str]()
    for _ in range(100):
        file.write_bytes(draw.choice([*ANY, change_field, change_field])(content, draw))
        try:
            Entry.read(file)
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 30
    assert all(len(text.splitlines()) == 1 for text in refused)
