"""The command evaluate in several balls: a run for each, of one defended model, and their union."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.cli.app import app
from art_defenses_ext.cli.evaluate import EvaluateOptions
from art_defenses_ext.cli.sweep import Sweep
from art_defenses_ext.cli.union import evaluate_in_balls, runs_in_balls
from art_defenses_ext.evaluation.publish.compare import Comparison, Union
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.report.report import Report

QUICK = ("--defence", "jump_relu", "-o", "jump=1", "--attacks", "papers", "--samples", "6", "--threads", "1")
QUICK += ("--curve-samples", "0", "--check-samples", "0", "--weights", "weights.safetensors", "--out", "runs")


def test_an_image_is_robust_in_the_union_if_it_is_robust_in_every_ball(
    command_folder: Path,
) -> None:
    result = CliRunner().invoke(app, ["evaluate", "--norm", "l2,linf", "--eps", "0.5,24/255", *QUICK])
    assert result.exit_code == 0, result.output
    balls = [[record.robust() for record in Report.load(f"runs/{norm}").records] for norm in ("l2", "linf")]
    (union,) = json.loads(Path("runs/comparison/compare.json").read_text())["unions"]
    assert union["balls"] == ["l2 0.5", "linf 0.09412"]
    assert (union["robust"]["count"], union["robust"]["total"]) == (sum(map(all, zip(*balls, strict=True))), 6)
    assert "union of l2 0.5 and linf 0.09412: accuracy under" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eps": "0.1,0.5"}, "eps is '0.1,0.5'; a radius for each of linf, l2, l1, separated by commas, was expected"),
        ({"norm": "l1,l2", "eps": "1"}, "eps is '1'; a radius for each of l1, l2, separated by commas, was expected"),
        ({"out": None}, "out is missing, but norm is 'union'; a folder for all runs was expected"),
        ({"price": True}, "price is an option of a single run, but norm is 'union'; one norm was expected"),
        ({"shard": "1/2"}, "shard is an option of a single run, but norm is 'union'; one norm was expected"),
        ({"norm": "linf,l0.5", "eps": "0.1,1"}, "norm is 'l0.5'; linf, l2"),
        ({"norm": "l2,linf", "eps": "1,0.6"}, "run linf: eps is 0.6, beyond half the clip range (0.5 in linf)"),
        ({"norm": "l2,l2", "eps": "1,0.6"}, "norm is 'l2,l2'; each norm once was expected"),
        ({"norm": "linf,inf", "eps": "0.1,0.2"}, "norm is 'linf,inf'; each norm once was expected"),
    ],
)
def test_balls_that_make_no_union_are_refused_before_the_first_run(
    values: dict[str, object], message: str, few_digits: None, tmp_path: Path
) -> None:
    usual = {"norm": "union", "eps": "0.1,0.5,2", "out": tmp_path / "runs", "samples": 2}
    with pytest.raises(InputError) as error:
        evaluate_in_balls(EvaluateOptions.of(usual | values))
    assert str(error.value).startswith(message)
    assert not (tmp_path / "runs").exists()


def test_every_run_attacks_a_defence_that_was_trained_in_the_same_ball(tmp_path: Path) -> None:
    """By default training takes the radius of the attacked linf ball, and another one where the ball is not linf."""
    values = {"norm": "union", "eps": "8/255,0.5,2", "out": tmp_path, "defence": ["feature_autoencoder"]}
    runs = runs_in_balls(EvaluateOptions.of(values), ("linf", "l2", "l1")).runs
    assert [(run.norm, run.eps) for run in runs.values()] == [("linf", "8/255"), ("l2", "0.5"), ("l1", "2")]
    assert {run.options for run in runs.values()} == {(f"feature_autoencoder.eps={8 / 255}",)}
    typed = EvaluateOptions.of(values | {"options": ["eps=0.3"]})
    assert {run.options for run in runs_in_balls(typed, ("linf", "l2", "l1")).runs.values()} == {("eps=0.3",)}


@pytest.mark.parametrize("spelling", ["inf,2", "Linf,L2", "linf,l2"])
def test_every_spelling_of_a_norm_makes_the_same_runs(spelling: str, tmp_path: Path) -> None:
    values = {"norm": spelling, "eps": "0.2,1", "out": tmp_path, "defence": ["feature_autoencoder"]}
    runs = runs_in_balls(EvaluateOptions.of(values), tuple(spelling.split(","))).runs
    assert [(name, run.norm, run.out) for name, run in runs.items()] == [
        ("linf", "linf", tmp_path / "linf"),
        ("l2", "l2", tmp_path / "l2"),
    ]
    assert {run.options for run in runs.values()} == {("feature_autoencoder.eps=0.2",)}


@pytest.mark.parametrize(("joined", "is_said"), [([], True), ([2], True), ([3], False)])
def test_runs_without_a_union_of_all_balls_say_so(
    joined: list[int], is_said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a training that does not repeat; each number is that of the balls of one union."""
    unions = [Union("jump_relu", ["linf 0.1"] * balls, Proportion(1, 2), "robust accuracy", True) for balls in joined]
    monkeypatch.setattr(Sweep, "make", lambda *_: Comparison([], unions))
    evaluate_in_balls(EvaluateOptions.of({"norm": "union", "eps": "0.1,0.5,2", "out": "runs"}))
    assert ("no union of all balls" in capsys.readouterr().err) == is_said
