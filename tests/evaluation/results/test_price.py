"""What an evaluation will cost: exact where the passes are the same for each image, and scaled as its parts are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from art_defenses_ext.cli.declared import click_options
from art_defenses_ext.cli.evaluate import EvaluateOptions
from art_defenses_ext.evaluation.config import EvaluationConfig
from art_defenses_ext.evaluation.evaluate import price
from art_defenses_ext.evaluation.records.costs import Cost
from art_defenses_ext.evaluation.records.description import Settings
from art_defenses_ext.evaluation.records.phases import BINARIZATION, GRADIENTS, PICTURES, PREDICTIONS
from art_defenses_ext.evaluation.records.sample import CostRecord
from art_defenses_ext.evaluation.results.price import Price, Trial, duration, in_words
from art_defenses_ext.evaluation.run.folder import read_costs, read_findings, read_manifest
from art_defenses_ext.evaluation.run.trial import spread
from art_defenses_ext.evaluation.suite.plan import AttackRun


def make_settings(samples: int, threat: Any, **options: int) -> Settings:
    return Settings.describing(threat, "standard", samples, EvaluationConfig(**options))


def test_a_trial_of_the_whole_evaluation_predicts_its_cost(
    finished_run: Any, tmp_path: Path, without_pictures: None
) -> None:
    """The identity of the estimate, in one block, with curve and checks."""
    data = finished_run.x[:4], finished_run.y[:4]
    finished_run.repeat(data=data, curve_samples=3, check_samples=2, out=tmp_path)
    manifest, costs = read_manifest(tmp_path), read_costs(tmp_path) + read_findings(tmp_path).costs
    settings = manifest.run.settings
    expected = Trial(manifest.plan, settings, 0, 4, costs).expected(settings, [0])
    total = sum((record.cost for record in costs), Cost())
    assert (expected.forward, expected.backward, expected.peak_memory) == (
        total.forward, total.backward, total.peak_memory,
    )  # fmt: skip
    assert expected.seconds == pytest.approx(total.seconds)


@pytest.fixture
def trial(finished_run: Any) -> Trial:
    """Ten images, on which each run cost ten passes an attacked image and a second."""
    spec, threat = finished_run.attacks[2], finished_run.threat
    paper = replace(finished_run.attacks[0], name="paper")
    runs = [
        (AttackRun(paper, "exact", threat), 10),
        (AttackRun(spec, "exact", threat), 5),
        (AttackRun(spec, "exact", threat.at(0.2), "curve"), 10),
        (AttackRun(spec, "exact", threat.at(0.5), "limit"), 10),
        (AttackRun(replace(spec, name="effort"), "exact", threat, "effort"), 4),
    ]
    costs = [CostRecord(0, run.key, count, Cost(10 * count, 5 * count, 1.0, 7)) for run, count in runs]
    phases = {GRADIENTS: 100, BINARIZATION: 20, PREDICTIONS: 39, PICTURES: 3}
    costs += [CostRecord(0, name, 0, Cost(passes, 0, 1.0, 9)) for name, passes in phases.items()]
    return Trial([run for run, _ in runs], make_settings(10, threat), 0, 10, costs)


def test_each_part_grows_with_its_number_of_images(trial: Trial, finished_run: Any) -> None:
    settings = make_settings(100, finished_run.threat, curve_samples=50, check_samples=20, block_size=40)
    images = {"paper": 100, "suite": 100 * 5 / 10, "curve": 50, "limit": 20, "effort": 20 * 4 / 10}
    attacks = sum(images.values())
    phases = 100 * 100 / 10 + 20 * 20 / 10 + 39 * attacks / 39 + 3
    expected = trial.expected(settings, [0, 40, 80])
    assert expected.forward == 10 * attacks + phases
    assert expected.backward == 5 * attacks
    assert expected.peak_memory == 9
    # A second for ten, five, ten, ten and four attacked images; seconds grow with the images.
    seconds = 100 / 10 + 50 / 5 + 50 / 10 + 20 / 10 + 8 / 4 + 100 / 10 + 20 / 10 + attacks / 39 + 1
    assert expected.seconds == pytest.approx(seconds)
    papers = trial.expected(settings, [0, 40, 80], papers_only=True)
    assert papers.forward == 10 * 100 + 39 * 100 / 39 + 3
    last = trial.expected(settings, [80])
    assert last.backward == 5 * (20 + 10)  # neither curve nor checks reach the last block


def test_a_step_on_a_larger_batch_costs_its_measured_time(trial: Trial, finished_run: Any) -> None:
    """Seconds that do not grow with the batch: each block costs what the trial did."""
    settings = make_settings(80, finished_run.threat, curve_samples=0, check_samples=0, block_size=40)
    constant = replace(trial, plan=trial.plan[:1], seconds_of_step=lambda images, backward: 3.0)
    for calls, seconds in ((10, 2 * 1.0), (100, 80 / 10)):  # of ten images each, of one image each
        cost = replace(trial.costs[0], cost=replace(trial.costs[0].cost, calls=calls))
        cost_of_paper = replace(constant, costs=[cost]).expected(settings, [0, 40])
        assert cost_of_paper.forward == 800
        assert cost_of_paper.seconds == pytest.approx(seconds)


def test_cheaper_options_are_named_with_their_price(trial: Trial, finished_run: Any) -> None:
    settings = make_settings(400, finished_run.threat, block_size=400)
    estimate = Price.of(trial, settings)
    expected = {
        "--samples 100": trial.expected(make_settings(100, finished_run.threat, block_size=400), [0]),
        "--curve-samples 0": trial.expected(replace(settings, curve_samples=0), [0]),
        "--check-samples 20": trial.expected(replace(settings, check_samples=20), [0]),
        "--attacks papers": trial.expected(settings, [0], papers_only=True),
    }
    assert estimate.cost == trial.expected(settings, [0])
    assert estimate.cheaper == {
        name: cost for name, cost in expected.items() if cost.seconds <= 0.9 * estimate.cost.seconds
    }
    seconds = [cost.seconds for cost in estimate.cheaper.values()]
    assert seconds == sorted(seconds, reverse=True)
    lines = list(estimate.lines())
    assert lines[0] == f"Expected: {in_words(estimate.cost)} (a trial of 10 images)."
    assert len(lines) == 1 + len(estimate.cheaper)


def test_an_undefended_model_adds_its_own_price(trial: Trial, finished_run: Any) -> None:
    estimate = Price.of(trial, make_settings(400, finished_run.threat, block_size=400))
    combined = estimate.beside(estimate)
    assert combined.cost == estimate.cost + estimate.cost
    assert combined.cheaper["--samples 100"] == estimate.cheaper["--samples 100"] + estimate.cheaper["--samples 100"]
    assert combined.cheaper["--attacks papers"] == estimate.cheaper["--attacks papers"]
    assert combined.cheaper["--undefended papers"] == estimate.cost
    option_names = {name for option in click_options(EvaluateOptions) for name in option.opts}
    assert {option.split()[0] for option in combined.cheaper} <= option_names


@pytest.mark.parametrize(("seconds", "words"), [(4.4, "4 s"), (99, "99 s"), (720, "12 min"), (12_240, "3.4 h")])
def test_a_duration_has_a_readable_unit(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_images_of_a_trial_are_spread_over_the_margins() -> None:
    margins = np.array([0.9, -0.8, 0.1, 0.5, -0.2, 0.7, 0.3, -0.5])
    softmax = np.stack([(1 + margins) / 2, (1 - margins) / 2], axis=1)
    labels = np.zeros(8, dtype=np.int64)
    ranked = np.argsort(margins)
    assert spread(softmax, labels, 4).tolist() == sorted(ranked[[1, 3, 5, 7]])
    assert spread(softmax, labels, 20).tolist() == list(range(8))


def test_attacks_with_equal_passes_for_each_image_are_priced_exactly(finished_run: Any) -> None:
    attacks = [replace(spec, samples="all", curve=False) for spec in finished_run.attacks[2:]]
    data = finished_run.x, finished_run.y
    options = {"curve_samples": 0, "check_samples": 0, "progress": False}
    arguments = (finished_run.classifier, data, finished_run.threat, attacks)
    expected = price(*arguments, **options)
    summary = finished_run.repeat(attacks=attacks, **(options | {"block_size": 256})).summary
    assert expected.trial == 23
    assert expected.cost.backward == pytest.approx(summary.total.backward, rel=0.01)
    assert expected.cost.forward == pytest.approx(summary.total.forward, rel=0.15)  # the trial prepares itself, too


def test_a_run_states_its_expected_cost_after_the_first_block(
    finished_run: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("art_defenses_ext.evaluation.task.LONG", 0.0)
    options = {"attacks": finished_run.attacks[:2], "curve_samples": 0, "check_samples": 0, "progress": True}
    finished_run.repeat(data=(finished_run.x[:6], finished_run.y[:6]), **options)
    output = capsys.readouterr().err
    assert output.count("Expected after the first block: ") == 1
    assert "passes forwards" in output
