"""Callbacks are told what happened, and change nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.callbacks import RunCallback, TensorBoardCallback


class Listening(RunCallback):
    """Keeps what it is told, and draws from the global generators."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def _note(self, name: str, value: Any) -> None:
        self.calls.append((name, value))
        torch.rand(3)
        np.random.rand(3)  # noqa: NPY002
        torch.manual_seed(0)

    def begin(self, run: Any) -> None:
        self._note("begin", run)

    def attacked(self, step: Any) -> None:
        self._note("attacked", step)

    def end(self, report: Any) -> None:
        self._note("end", report)


class Raising(RunCallback):
    """Raises at the first attack."""

    def __init__(self) -> None:
        self.told = 0

    def attacked(self, step: Any) -> None:
        self.told += 1
        raise ConnectionError("the tracker\ndoes not answer")


@pytest.fixture(scope="module")
def call(finished_run: Any) -> dict[str, Any]:
    """What makes an evaluation of a second."""
    options = {"curve_samples": 0, "check_samples": 0, "block_size": 4}
    return {"data": (finished_run.x[:6], finished_run.y[:6]), "attacks": finished_run.attacks[:2], **options}


def test_a_run_is_told_step_by_step_and_no_callback_changes_a_record(finished_run: Any, call: dict[str, Any]) -> None:
    listening, raising = Listening(), Raising()
    with pytest.warns(
        UserWarning, match="Raising raised ConnectionError: the tracker does not answer and is not called again"
    ):
        report = finished_run.repeat(**call, callbacks=[raising, listening])
    assert report.records == finished_run.repeat(**call).records
    assert raising.told == 1
    (begin, run), *attacked, (end, ended) = listening.calls
    assert (begin, end) == ("begin", "end")
    assert run == report.summary.run
    assert ended is report
    broken = {record.index: "" for record in report.records if record.clean != record.label}
    expected = []
    for start in (0, 4):
        block = [record for record in report.records if start <= record.index < start + 4]
        for spec in call["attacks"]:
            outcomes = {record.index: record.attacks[spec.name] for record in block if spec.name in record.attacks}
            broken |= {index: spec.name for index, outcome in outcomes.items() if outcome.success}
            if outcomes:
                robust = sum(record.index not in broken for record in block)
                successes = sum(outcome.success for outcome in outcomes.values())
                expected.append((spec.name, start, len(block), len(outcomes), successes, robust))
    told = [(each.attack, each.start, each.images, each.attacked, each.broken, each.robust) for _, each in attacked]
    assert told == expected


def test_tensorboard_shows_the_figures_of_the_run(finished_run: Any, call: dict[str, Any], tmp_path: Path) -> None:
    listening = Listening()
    callbacks = [listening, TensorBoardCallback(tmp_path / "log")]
    report = finished_run.repeat(**call, callbacks=callbacks)
    log = EventAccumulator(str(tmp_path / "log")).Reload()
    scalars = {tag: [event.value for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
    steps = [step for name, step in listening.calls if name == "attacked"]
    assert scalars["robust"] == pytest.approx([step.robust / step.images for step in steps])
    for spec in call["attacks"]:
        own = [step for step in steps if step.attack == spec.name]
        broken = [step.broken / step.attacked for step in own]
        assert scalars[f"broken/{spec.name}"] == pytest.approx(broken)
        assert scalars[f"seconds/{spec.name}"] == pytest.approx([step.cost.seconds for step in own])
    assert scalars["clean accuracy"] == pytest.approx([report.summary.clean.rate])
    assert scalars["accuracy under the attacks that ran"] == pytest.approx([report.summary.worst_case.rate])
    assert not any(tag.startswith("robust accuracy") for tag in scalars)


def test_what_is_no_callback_is_refused(finished_run: Any, call: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="callbacks holds 'tensorboard'; objects of subclasses of RunCallback"):
        finished_run.repeat(**call, callbacks=["tensorboard"])
