"""Callbacks receive every step of a run, and change no record."""

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
    """Keeps the calls that it receives, and draws from the global generators."""

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
        self.calls = 0

    def attacked(self, step: Any) -> None:
        self.calls += 1
        raise ConnectionError("the tracker\ndoes not answer")


@pytest.fixture(scope="module")
def arguments(finished_run: Any) -> dict[str, Any]:
    """Arguments of an evaluation that takes a second."""
    options = {"curve_samples": 0, "check_samples": 0, "block_size": 4}
    return {"data": (finished_run.x[:6], finished_run.y[:6]), "attacks": finished_run.attacks[:2], **options}


def test_callbacks_receive_each_step_and_change_no_record(finished_run: Any, arguments: dict[str, Any]) -> None:
    listening, raising = Listening(), Raising()
    with pytest.warns(
        UserWarning, match="Raising raised ConnectionError: the tracker does not answer and is not called again"
    ):
        report = finished_run.repeat(**arguments, callbacks=[raising, listening])
    assert report.records == finished_run.repeat(**arguments).records
    assert raising.calls == 1
    (begin, run), *attacked, (end, ended_with) = listening.calls
    assert (begin, end) == ("begin", "end")
    assert run == report.summary.run
    assert ended_with is report
    broken = {record.index: "" for record in report.records if record.clean != record.label}
    expected = []
    for start in (0, 4):
        block = [record for record in report.records if start <= record.index < start + 4]
        for spec in arguments["attacks"]:
            outcomes = {record.index: record.attacks[spec.name] for record in block if spec.name in record.attacks}
            broken |= {index: spec.name for index, outcome in outcomes.items() if outcome.success}
            if outcomes:
                robust = sum(record.index not in broken for record in block)
                successes = sum(outcome.success for outcome in outcomes.values())
                expected.append((spec.name, start, len(block), len(outcomes), successes, robust))
    steps = [(step.attack, step.start, step.images, step.attacked, step.broken, step.robust) for _, step in attacked]
    assert steps == expected


def test_tensorboard_shows_the_figures_of_the_run(finished_run: Any, arguments: dict[str, Any], tmp_path: Path) -> None:
    listening = Listening()
    callbacks = [listening, TensorBoardCallback(tmp_path / "log")]
    report = finished_run.repeat(**arguments, callbacks=callbacks)
    log = EventAccumulator(str(tmp_path / "log")).Reload()
    scalars = {tag: [event.value for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
    steps = [step for name, step in listening.calls if name == "attacked"]
    assert scalars["robust"] == pytest.approx([step.robust / step.images for step in steps])
    for spec in arguments["attacks"]:
        steps_of_spec = [step for step in steps if step.attack == spec.name]
        broken = [step.broken / step.attacked for step in steps_of_spec]
        assert scalars[f"broken/{spec.name}"] == pytest.approx(broken)
        assert scalars[f"seconds/{spec.name}"] == pytest.approx([step.cost.seconds for step in steps_of_spec])
    assert scalars["clean accuracy"] == pytest.approx([report.summary.clean.rate])
    assert scalars["accuracy under the attacks that ran"] == pytest.approx([report.summary.worst_case.rate])
    assert not any(tag.startswith("robust accuracy") for tag in scalars)


def test_an_object_that_is_no_callback_is_refused(finished_run: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="callbacks holds 'tensorboard'; objects of subclasses of RunCallback"):
        finished_run.repeat(**arguments, callbacks=["tensorboard"])
