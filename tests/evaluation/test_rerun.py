"""A run repeated from its manifest: the same bytes, or the records that differ."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from art_defenses_ext import JumpReLU, rerun
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.run.folder import RECORDS

from ..conftest import omit_pictures

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(scope="module")
def run(finished_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that takes a second."""
    changes = {"x": finished_run.x[:6], "y": finished_run.y[:6], "attacks": finished_run.attacks[:2]}
    changes |= {"options": {"block_size": 4, "curve_samples": 0, "check_samples": 0, "progress": False}}
    short_run = replace(finished_run, folder=tmp_path_factory.mktemp("rerun") / "run", **changes)
    with pytest.MonkeyPatch.context() as patch:
        omit_pictures(patch)
        short_run.repeat(out=short_run.folder)
    return short_run


def test_a_run_of_the_same_model_is_repeated_to_the_byte(run: Any, tmp_path: Path) -> None:
    repetition = rerun(run.folder, run.classifier, (run.x, run.y), run.attacks, out=tmp_path / "again", progress=False)
    assert (repetition.byte_equal, repetition.differences, repetition.elsewhere) == (True, [], [])
    assert list(repetition.lines()) == ["All 6 records are equal, byte for byte."]
    assert (tmp_path / "again" / RECORDS).read_bytes() == (run.folder / RECORDS).read_bytes()


def test_all_records_that_differ_under_another_model_are_named(
    run: Any, digits_classifier: Any, tmp_path: Path
) -> None:
    other = JumpReLU(digits_classifier, 0.2)()
    repetition = rerun(run.folder, other, (run.x, run.y), run.attacks, out=tmp_path / "again", progress=False)
    pairs = [
        [json.loads(line) for line in (folder / RECORDS).read_text().splitlines()]
        for folder in (run.folder, tmp_path / "again")
    ]
    differing = [left["index"] for left, right in zip(*pairs, strict=True) if left != right]
    verdicts = [
        left["index"]
        for left, right in zip(*pairs, strict=True)
        if left["clean"] != right["clean"]
        or left["attacks"].keys() != right["attacks"].keys()
        or any(left["attacks"][name]["success"] != right["attacks"][name]["success"] for name in left["attacks"])
    ]
    assert differing
    assert [difference.index for difference in repetition.differences] == differing
    assert [difference.index for difference in repetition.differences if difference.verdicts] == verdicts
    assert next(repetition.lines()) == f"{len(differing)} of 6 records differ, {len(verdicts)} of them in a verdict."
    assert any("jump" in words for words in repetition.elsewhere)
    assert not repetition.byte_equal


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": lambda run: (1 - run.x, run.y)}, "data is not that of the run"),
        ({"data": lambda run: (run.x, run.y[::-1].copy())}, "data is not that of the run"),
        ({"attacks": lambda run: None}, "was made with a list (PGD, undefended, Square)"),
        ({"out": lambda run: run.folder}, "the run itself"),
        ({"run": lambda run: run.folder / "figures"}, "manifest.json cannot be read"),
    ],
)
def test_arguments_of_another_run_are_refused_before_any_attack(
    run: Any, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr("art_defenses_ext.evaluation.run.block.Work.block", lambda *_: pytest.fail("attacked"))
    arguments = {"run": run.folder, "model": run.classifier, "data": (run.x, run.y), "attacks": run.attacks}
    arguments |= {name: value(run) for name, value in change.items()}
    with pytest.raises(InputError, match=re.escape(words)):
        rerun(**arguments, progress=False)
