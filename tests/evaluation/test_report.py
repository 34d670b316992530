"""The report: what survives comes first, the words follow the numbers, and every medium says the same."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from art_defenses_ext.attack.ball import Linf
from art_defenses_ext.base.provenance import Training, Tuning
from art_defenses_ext.base.validation import InputError
from art_defenses_ext.evaluation.checks.checks import CHECKS as ALL_CHECKS, Check
from art_defenses_ext.evaluation.records.costs import Cost
from art_defenses_ext.evaluation.records.description import RunDescription, Settings
from art_defenses_ext.evaluation.records.examples import Example
from art_defenses_ext.evaluation.records.proportion import Mean, Proportion
from art_defenses_ext.evaluation.records.sample import CostRecord, Outcome, SampleRecord
from art_defenses_ext.evaluation.report.figures import (
    accuracy_curves,
    examples_figure,
    excess_histograms,
    losses,
    png,
    roc_curves,
    summary_bars,
    trade_off,
)
from art_defenses_ext.evaluation.report.page import render_page
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.report.words import (
    DETECTION_COLUMNS,
    detection_rows,
    headlines,
    title,
    training_in_words,
    verdict,
)
from art_defenses_ext.evaluation.results.summary import Agreement, Randomness, Summary, summarise
from art_defenses_ext.evaluation.suite.plan import AttackRun
from art_defenses_ext.evaluation.suite.suites import AttackSpec

NB_SAMPLES = 20
WIDTHS = (30, 40, 60, 80, 100, 140)
THREAT = Linf(0.2)


def spec(name: str, **options: Any) -> AttackSpec:
    def build(*_: Any) -> Any:
        raise AssertionError("a report runs no attack")

    return AttackSpec(name, build, f"what {name} is for", **options)


PAPER = spec("IFGSM", source="paper", samples="all", bounded=False)
PGD = spec("PGD", kind="white-box", modes="all")
SQUARE = spec("Square")
TRANSFER = spec("transfer", crafted_on="undefended", samples="all")
CURVED = spec("PGD", kind="white-box", modes="all", curve=True)
ONE_PASSED = (Check("single step", "passed", "one step breaks 0 of 8 images"),)


def a_run(samples: int = NB_SAMPLES, **changes: Any) -> RunDescription:
    values: dict[str, Any] = {
        "settings": Settings("linf", THREAT.eps, "standard", samples, 7, 256, 10, 5, adaptive=True),
        "defences": [{"name": "jump_relu", "jump": 0.5, "width": None}],
        "tunings": [],
        "trainings": [],
        "modes": ["exact"],
        "votes": 1,
        "draws": 1,
        "model": "LeNetLike",
        "model_sha256": "1" * 64,
        "pipeline_sha256": "3" * 64,
        "undefended_sha256": None,
        "foreign": [],
        "labels": 10,
        "clip_values": (0.0, 1.0),
        "random": False,
        "withheld": [],
        "data_sha256": "2" * 64,
        "device": "CPU",
        "threads": 1,
        "command": "evaluate.py --eps 0.2",
        "versions": {"python": "3.11.9", "torch": "2.8.0"},
    }
    return RunDescription(**(values | changes))


def summary_of(
    attacks: Sequence[tuple[AttackSpec, int | None]],
    samples: int = NB_SAMPLES,
    correct: int | None = None,
    undefended_correct: int | None = 8,
    curve: bool = False,
    checks: Sequence[Check] = ONE_PASSED,
    **changes: Any,
) -> Summary:
    """Figures of a run in which each attack breaks the first so many images; None: it did not run.

    Of the undefended network's images ``undefended_correct`` survive the transfer; None: there is no such network.
    """
    correct = samples if correct is None else correct
    clean = None if undefended_correct is None else 0
    records = [SampleRecord(i, 0, int(i >= correct), clean) for i in range(samples)]
    plan, costs = [], []
    for one, broken in attacks:
        run = AttackRun(one, "exact", THREAT)
        plan.append(run)
        if broken is not None:
            costs.append(attack(run, broken, records, undefended_correct))
    for eps, broken in ((0.1, 3), (0.2, 6), (0.4, 9)) if curve else ():
        run = AttackRun(CURVED, "exact", Linf(eps), "curve")
        plan.append(run)
        costs.append(attack(run, broken, records[:10], None, success=False))
    return summarise(a_run(samples, **changes), plan, records, costs, list(checks))


def attack(
    run: AttackRun,
    broken: int,
    records: list[SampleRecord],
    undefended_correct: int | None,
    success: bool = True,
    usable: bool = True,
) -> CostRecord:
    everywhere = run.spec.samples == "all" or run.role == "curve"
    chosen = [record for record in records if everywhere or record.robust()]
    for record in chosen:
        hit = record.index < broken
        plain = None
        if run.spec.crafted_on == "undefended" and undefended_correct is not None:
            plain = int(record.index >= undefended_correct)
        record.attacks[run.key] = Outcome(
            int(hit), hit, 0.15, 1.5, hit and success, usable, undefended_prediction=plain
        )
    backward = 0 if run.spec.name == "Square" else 3 * len(chosen)
    return CostRecord(0, run.key, len(chosen), Cost(2 * len(chosen), backward, 0.5, 10**6))


def an_example(shape: tuple[int, ...] = (1, 8, 8), name: str = "PGD [exact]") -> Example:
    clean = np.linspace(0.2, 0.8, math.prod(shape), dtype=np.float32).reshape(shape)
    sign = np.where(np.arange(clean.size).reshape(shape) % 3 == 0, 1, -1)
    return Example(4, 2, 7, name, clean, (clean + 0.1 * sign).astype(np.float32))


def full_report() -> Report:
    summary = summary_of([(PAPER, 2), (PGD, 15), (SQUARE, 15), (TRANSFER, 4)], curve=True)
    return Report(summary, [], [an_example(), an_example(name="transfer")])


def printed(summary: Summary, width: int) -> str:
    stream = io.StringIO()
    Report(summary, [], []).print(Console(file=stream, width=width))
    return stream.getvalue()


def page(summary: Summary, examples: Sequence[Example] = ()) -> str:
    return render_page(summary, examples, {})


# The figures and their order


def test_what_survives_comes_first_and_the_papers_number_second() -> None:
    lines = headlines(full_report().summary)
    assert [line.key for line in lines] == ["worst_case", "paper", "undefended_robust", "undefended_clean", "clean"]
    shares = [line.value for line in lines]
    assert shares == [Proportion(5, 20), Proportion(18, 20), Proportion(8, 20), Proportion(20, 20), Proportion(20, 20)]


@pytest.mark.parametrize("medium", ["terminal", "page"])
def test_each_medium_shows_the_figures_in_that_order(medium: str) -> None:
    summary = full_report().summary
    text = printed(summary, 100) if medium == "terminal" else read_html(page(summary)).text
    places = [text.index(line.label) for line in headlines(summary)]
    assert places == sorted(places)


def wilson(count: int, total: int) -> tuple[float, float]:
    """Wilson 1927, as a solution of (p - p0)^2 = z^2 p0 (1 - p0) / n for p0."""
    z = 1.959963984540054
    a, b, c = 1 + z**2 / total, 2 * count / total + z**2 / total, (count / total) ** 2
    root = math.sqrt(b**2 - 4 * a * c)
    return (b - root) / (2 * a), (b + root) / (2 * a)


@pytest.mark.parametrize(("count", "total"), [(0, 1), (1, 1), (0, 20), (5, 20), (20, 20), (266, 300), (9_999, 10_000)])
def test_intervals_are_wilsons(count: int, total: int) -> None:
    assert Proportion(count, total).interval == pytest.approx(wilson(count, total), abs=1e-12)


def test_the_json_file_reads_back_with_wilsons_intervals(tmp_path: Path) -> None:
    report = full_report()
    report.save(tmp_path)
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read == report.summary.as_dict()
    assert read["robust_accuracy"]["interval"] == pytest.approx(wilson(5, 20))
    assert read["gap"] == pytest.approx(13 / 20)


# The verdict

SENTENCES = {
    "a gap": (
        summary_of([(PAPER, 2), (PGD, 15), (TRANSFER, 4)]),
        "An attacker who knows the defence leaves 25.0 % correct; the paper's own attacks, counted in the same ball, "
        "leave 90.0 %, which is 65.0 points more (13 images). "
        "The undefended network keeps 40.0 % under attacks made on it, which are fewer.",
    ),
    "a gap of one image": (
        summary_of([(PAPER, 2), (PGD, 3), (TRANSFER, 0)]),
        "An attacker who knows the defence leaves 85.0 % correct; the paper's own attacks, counted in the same ball, "
        "leave 90.0 %, which is 5.0 points more (1 image). "
        "The undefended network keeps 40.0 % under attacks made on it, which are fewer.",
    ),
    "no gap": (
        summary_of([(PAPER, 2), (PGD, 0)], undefended_correct=None),
        "An attacker who knows the defence leaves 90.0 % correct; the paper's own attacks, counted in the same ball, "
        "leave 90.0 % too: nothing else broke an image that they had left. "
        "No undefended network was there to compare with.",
    ),
    "no attack of a paper": (
        summary_of([(PGD, 15)]),
        "An attacker who knows the defence leaves 25.0 % correct. None of a paper's own attacks was run. "
        "The undefended network was not attacked.",
    ),
    "the paper's attacks alone": (
        summary_of([(PAPER, 2)]),
        "The paper's own attacks, counted in the same ball, leave 90.0 %. "
        "Nobody who knows the defence has attacked it yet: that number is still unknown. "
        "The undefended network was not attacked.",
    ),
    "only queries and transfer": (
        summary_of([(PAPER, 2), (SQUARE, 5), (TRANSFER, 4)]),
        "With attacks that follow no gradient of the defence, 75.0 % stay correct; the paper's own attacks, "
        "counted in the same ball, leave 90.0 %, which is 15.0 points more (3 images). "
        "An attacker who knows the defence was not tried and may leave far less. "
        "The undefended network keeps 40.0 % under attacks made on it.",
    ),
    "nothing left for the ladder": (
        summary_of([(PAPER, 20), (PGD, None)]),
        "The paper's own attacks, counted in the same ball, leave 0.0 %, and no correctly classified image was left "
        "to attack further. The undefended network was not attacked.",
    ),
    "nothing to attack": (
        summary_of([(PGD, None)], correct=0, undefended_correct=None),
        "No attack was run: that 0.0 % of the images are classified correctly says nothing about robustness. "
        "No undefended network was there to compare with.",
    ),
    "a network without a defence": (
        summary_of([(PGD, 15)], undefended_correct=None, defences=[]),
        "An attacker who knows the network leaves 25.0 % correct.",
    ),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_the_verdict_follows_from_the_numbers(case: str) -> None:
    summary, expected = SENTENCES[case]
    assert str(Report(summary, [], [])) == expected
    assert verdict(summary).replace("\N{NO-BREAK SPACE}", " ") == expected


@pytest.mark.parametrize("case", SENTENCES)
def test_every_medium_speaks_the_verdict(case: str) -> None:
    summary, expected = SENTENCES[case]
    assert expected in " ".join(printed(summary, 80).split())
    assert expected in read_html(page(summary)).text


def test_without_an_adaptive_attacker_no_gap_is_claimed() -> None:
    alone = SENTENCES["the paper's attacks alone"][0]
    assert "no adaptive attack ran" in printed(alone, 80)
    assert "Gap" not in printed(alone, 80)
    assert "Gap" not in page(alone)


# With a detector


def detected_report(samples: int = NB_SAMPLES) -> Report:
    """A detector that flags one clean image of twenty; the paper's attack fools the network on the first ten, of which
    it tells eight, ours on the first twelve, of which it tells three."""
    records = [
        SampleRecord(i, 0, 0, 0, clean_rejected=i == 19, clean_excess=0.5 if i == 19 else -0.1 - i / 100)
        for i in range(samples)
    ]
    gray = spec("PGD-40", source="paper", crafted_on="undefended", samples="all")
    aware = spec("selective PGD", kind="white-box", samples="all")
    plan = [AttackRun(one, "exact", THREAT) for one in (aware, gray)]
    for run, fooled, told in zip(plan, (12, 10), (3, 8), strict=True):
        for record in records:
            hit, rejected = record.index < fooled, record.index < told
            excess = 0.2 + record.index / 100 if rejected else -0.3 - record.index / 100
            record.attacks[run.key] = Outcome(
                int(hit), hit and not rejected, 0.15, 1.5, hit and not rejected, rejected=rejected, excess=excess
            )
    costs = [CostRecord(0, run.key, samples, Cost(2 * samples, 2 * samples, 0.5, 10**6)) for run in plan]
    trainings = [Training({"images": 700, "batch_size": 320, "seed": 3, "validation_split": 0.25}, [(0.5, None)] * 2)]
    described = a_run(
        samples, rejects=True, trainings=trainings, defences=[{"name": "explanation_reconstructor", "hidden": 64}]
    )
    return Report(summarise(described, plan, records, costs, list(ONE_PASSED)), records, [])


DETECTED = detected_report()
OF_A_DETECTOR = (
    "An attacker who knows the defence leaves 50.0 % correct or rejected; the paper's own attacks, counted in the same "
    "ball, leave 85.0 %, which is 35.0 points more (7 images). At its threshold the detector flags 5.0 % of clean "
    "images; an attacker who does not know the detector gets 10.0 % and one who does gets 45.0 % of the images past "
    "network and detector.",
    "At its own threshold the detector rejects 5.0 % [0.9, 23.6] of the clean images. Of the images on which an attack "
    "that does not know it fooled the network, it rejects 80.0 % [49.0, 94.3] whatever the attack. Of the images on "
    "which any attack fooled the network, it rejects 25.0 % [8.9, 53.2] whatever the attack.",
)


def test_with_a_detector_the_words_say_what_counts_as_right() -> None:
    found = {line.key: line for line in headlines(DETECTED.summary)}
    assert found["worst_case"].value == Proportion(10, 20)  # images 3 to 11, and the one rejected from the start
    assert (found["worst_case"].remark, found["clean"].remark) == ("correct or rejected", "correct and accepted")
    assert str(DETECTED).startswith(OF_A_DETECTOR[0])
    assert str(detected_with(established=False)).startswith("Robustness is not established")
    assert headlines(detected_with(established=False).summary)[0].remark.startswith("correct or rejected; at most")
    for line in headlines(full_report().summary):
        assert "rejected" not in line.remark


def detected_with(established: bool) -> Report:
    checks = ONE_PASSED if established else CHECKS
    return replace(DETECTED, summary=replace(DETECTED.summary, checks=list(checks)))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_terminal_shows_the_detector_at_any_width(width: int) -> None:
    text = printed(DETECTED.summary, width)
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    for sentence in OF_A_DETECTOR:
        assert sentence in words
    assert "selective PGD" in words
    assert "all that do not know it" in words
    assert "fooled: of m images" in words
    assert "The detector" not in printed(full_report().summary, width)


def test_the_page_shows_the_detector_with_its_pictures(tmp_path: Path) -> None:
    DETECTED.save(tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    read = read_html(text)
    for sentence in OF_A_DETECTOR:
        assert sentence in " ".join(read.text.split())
    sources = [attrs["src"] for tag, attrs in read.tags if tag == "img"]
    assert len(sources) == len(set(sources)) == 4  # bars, both of the detector, losses
    for name in ("roc", "excesses"):
        picture = matplotlib.image.imread(tmp_path / "figures" / f"{name}.png")
        assert picture.std() > 0.01
    full_report().save(tmp_path)  # of a run without a detector they are removed
    assert not (tmp_path / "figures" / "roc.png").exists()
    assert "The detector" not in read_html((tmp_path / "report.html").read_text(encoding="utf-8")).text


def test_zero_and_perfect_knowledge_stand_side_by_side() -> None:
    detection = DETECTED.summary.detection
    assert detection is not None
    rows = dict(detection_rows(detection))
    assert list(rows) == ["selective PGD", "PGD-40", "all that do not know it", "all attacks"]
    assert all(len(cells) == len(DETECTION_COLUMNS) for cells in rows.values())
    assert rows["PGD-40"][:2] == ["zero", "10 of 20"]
    assert rows["selective PGD"][:2] == ["perfect", "12 of 20"]
    assert [rows[name][-1] for name in rows] == ["25.0", "80.0", "80.0", "25.0"]
    data = json.loads(json.dumps(DETECTED.summary.as_dict(), allow_nan=False))["detection"]
    assert [row["knows"] for row in data["rows"]] == ["perfect", "zero"]
    assert data["pools"][0]["success"][0]["false_positives"] == 0.05
    assert [pool["past"]["count"] for pool in data["pools"]] == [2, 9]
    # Away from the detector's own threshold there is nothing of an attack that aimed at it.
    assert (data["pools"][1]["success"], data["rows"][0]["success"], data["rows"][0]["auc"]) == ([], [], None)
    assert rows["selective PGD"][2:-2] == ["-"] * (len(DETECTION_COLUMNS) - 4)


def test_a_detector_s_training_is_told_in_words() -> None:
    told = "2 epoch(s) on 700 benign images in batches of 320, seed 3; thresholds set on a share of 0.25 held out"
    assert training_in_words(DETECTED.summary.run.trainings[0]) == told
    assert told in " ".join(printed(DETECTED.summary, 140).replace("│", " ").split())


def test_a_detector_that_was_fitted_without_epochs_has_no_losses_to_draw(tmp_path: Path) -> None:
    fitted = Training({"seed": 3, "images": 700, "validation_split": 0.25}, [])
    run = replace(DETECTED.summary.run, trainings=[fitted])
    report = replace(DETECTED, summary=replace(DETECTED.summary, run=run))
    told = "fitted to 700 benign images, seed 3; thresholds set on a share of 0.25 held out"
    assert training_in_words(fitted) == told
    assert told in " ".join(printed(report.summary, 140).replace("│", " ").split())
    report.save(tmp_path)
    assert told in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "figures" / "losses.png").exists()


def test_pictures_of_a_detector_need_one_that_was_attacked() -> None:
    for draw in (roc_curves, excess_histograms):
        with pytest.raises(InputError, match="summary holds no attack that fooled"):
            draw(full_report().summary, [])
    detection = DETECTED.summary.detection
    assert detection is not None
    aimed = replace(detection, rows=[row for row in detection.rows if row.knows == "perfect"])
    with pytest.raises(InputError, match="no attack with zero knowledge"):
        roc_curves(replace(DETECTED.summary, detection=aimed), DETECTED.records)


def test_what_is_infinite_is_drawn_at_the_end() -> None:
    records = [replace(record, clean_excess=None) for record in DETECTED.records]
    assert png(excess_histograms(DETECTED.summary, records))
    assert png(roc_curves(DETECTED.summary, records))


# Whether the attacks worked


CHECKS = [
    Check("single step", "passed", "one step breaks 0 of 8 images that the white-box attacks leave"),
    Check("more effort", "failed", "300 steps from 2 starts break 3 of 8 images that all attacks leave"),
    Check("gradients", "failed", "fewer than 90 %, and no estimated gradient was tried"),
    Check("noise", "not run", "no such attack ran on a sample that the white-box attacks left"),
]
PASSED = [CHECKS[0], CHECKS[3]]
BOUND = "at most 25.0 % [11.2, 46.9]; failed checks: more effort, gradients"


def checked_report(checks: Sequence[Check] = CHECKS, **changes: Any) -> Report:
    summary = summary_of([(PGD, 15), (SQUARE, 15), (TRANSFER, 4), (PAPER, 2)], curve=True, checks=checks, **changes)
    return Report(summary, [], [an_example()])


@pytest.mark.parametrize("width", WIDTHS)
def test_the_terminal_shows_each_check_with_its_verdict_and_finding(width: int) -> None:
    text = " ".join(printed(checked_report().summary, width).split())
    assert "Did the attacks work?" in text
    places = [text.index("Did the attacks work?")]
    for check in CHECKS:
        found = re.search(rf"{check.verdict}:? {check.name}:? {check.finding}", text)
        assert found is not None, check.name
        places.append(found.start())
    assert places == sorted(places)


def test_the_page_shows_each_check_with_its_verdict_finding_and_link() -> None:
    read = read_html(page(checked_report().summary))
    for check in CHECKS:
        assert f"{check.name} {check.verdict} {check.finding}{check.link}" in read.text
    assert "docs/checks.md#more-effort" in read.text
    classes = [attrs.get("class") for tag, attrs in read.tags if tag == "tr"]
    assert [one for one in classes if one in ("passed", "failed", "not-run")] == [
        "passed",
        "failed",
        "failed",
        "not-run",
    ]


def test_without_checks_there_is_no_robust_accuracy() -> None:
    """The figure keeps its digits and loses its name, on the screen, on the page, in the pictures and as data."""
    report = checked_report([])
    summary = report.summary
    for text in (printed(summary, 100), read_html(page(summary)).text):
        assert "Did the attacks work?" not in text
        assert "failed checks" not in text
        assert "unknown: no checks were made" in text
        assert "Accuracy after the attacks that ran" in text
        assert "No checks of the attacks were made, so the robust accuracy is unknown." in " ".join(text.split())
        assert "Gap" not in text
    assert (report.established, report.robust_accuracy, report.accuracy_after_attacks) == (None, None, 0.25)
    data = summary.as_dict()
    assert (data["standing"], data["robust_accuracy"], data["after_attacks"]["rate"]) == ("no checks", None, 0.25)
    assert "worst_case" not in data
    assert title(summary) == "robustness unknown"


NOT_ADAPTIVE: dict[str, tuple[Summary, str]] = {
    "the paper's attacks": (summary_of([(PAPER, 2)]), "the paper's attacks ran alone"),
    "no gradient": (
        summary_of([(SQUARE, 5), (spec("noise"), 0)]),
        "none of the suite's white-box attacks was run",
    ),
    "one of two modes": (
        summary_of([(PGD, 15)], modes=["exact", "smooth"]),
        "no white-box attack was made in mode smooth",
    ),
    "a paper's white-box attack": (
        summary_of([(spec("CW", kind="white-box", source="paper", samples="all"), 3)]),
        "the paper's attacks ran alone",
    ),
    "made on the undefended network": (
        summary_of([(spec("PGD", kind="white-box", crafted_on="undefended", samples="all"), 3)]),
        "none of the suite's white-box attacks was run",
    ),
    "naive": (
        summary_of([(PGD, 15)], settings=replace(a_run().settings, adaptive=False)),
        "the attacker was given the exact gradient alone",
    ),
}


@pytest.mark.parametrize("case", NOT_ADAPTIVE)
def test_without_an_adaptive_suite_nothing_is_called_robust_accuracy(case: str, tmp_path: Path) -> None:
    """Even where each check passed: a check of such attacks says nothing of those who know the defence."""
    summary, reason = NOT_ADAPTIVE[case]
    report = Report(summary, [], [])
    assert (summary.standing, report.established, report.robust_accuracy) == ("no adaptive attack", None, None)
    assert summary.gap is None
    for text in (printed(summary, 140), read_html(page(summary)).text):
        assert f"unknown: no adaptive attack ran: {reason}" in " ".join(text.split())
        name = "Accuracy after the paper's attacks" if "paper" in case else "Accuracy after the attacks that ran"
        assert re.search(rf"{name}\s*{100 * summary.worst_case.rate:.1f}.%", text)
    report.save(tmp_path)
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (data["robust_accuracy"], data["standing"]) == (None, "no adaptive attack")
    labels = [label.get_text() for label in summary_bars(summary).axes[0].get_yticklabels()]
    assert not any("Robust" in label for label in labels)


def test_a_suite_is_adaptive_if_each_mode_is_tried_by_some_white_box_attack() -> None:
    """Two defences in a row offer four modes; "exact" alone stands for both of theirs."""
    modes = ["exact+exact", "exact+smooth", "identity+exact", "identity+smooth"]
    tried = [AttackRun(PGD, mode, THREAT) for mode in ("exact", *modes[1:])]
    record = SampleRecord(0, 0, 0)
    standings = [
        summarise(a_run(1, modes=modes), tried[:count], [record], [], list(ONE_PASSED)).standing for count in (4, 3)
    ]
    assert standings == ["established", "no adaptive attack"]


def test_checks_of_the_network_alone_establish_nothing() -> None:
    """That a network has gradients is no evidence of an attack that follows them, unless that broke every image."""
    names = ("gradients", "randomness", "batches", "gradient modes", "finite logits")
    of_the_network = [Check(name, "passed", "") for name in names]
    for name in ALL_CHECKS.keys() - names:  # each of the others asks what attacks find
        assert summary_of([(PGD, 15)], checks=[*of_the_network, Check(name, "passed", "")]).standing == "established"
    for broken, standing in ((15, "no checks"), (NB_SAMPLES, "established")):
        assert summary_of([(PGD, broken)], checks=of_the_network).standing == standing
    failed = [Check("gradients", "failed", "")]
    assert summary_of([(PGD, 15)], checks=failed).standing == "not established"


def test_a_robust_accuracy_whose_attacks_fail_their_checks_is_not_called_one() -> None:
    report = checked_report()
    assert report.established is False
    assert report.robust_accuracy == 0.25
    worst, *others = headlines(report.summary)
    assert not worst.established
    assert worst.remark.replace("\N{NO-BREAK SPACE}", " ") == BOUND
    assert all(line.established for line in others)
    for width in WIDTHS:
        text = " ".join(printed(report.summary, width).split())
        head = text[: text.index("Accuracy after the paper's attacks")]
        assert re.search(r"Robust accuracy over all attacks:? not established", head)
        assert BOUND in head
        assert head.count("25.0 %") == 1  # as an upper bound alone
    assert f"Robust accuracy over all attacks not established {BOUND}" in read_html(page(report.summary)).text


def test_the_verdict_begins_with_the_checks_that_failed() -> None:
    first = (
        "Robustness is not established: the attacks fail their own checks (more effort, gradients), "
        "so others may break more. "
    )
    failed, passed = (str(checked_report(checks)) for checks in (CHECKS, PASSED))
    assert failed == first + passed
    assert passed.startswith("An attacker who knows the defence leaves 25.0 % correct; ")


def test_the_title_knows_nothing_where_nobody_who_knows_the_defence_attacked() -> None:
    assert title(checked_report(PASSED).summary).replace("\xa0", " ") == "25.0 % robust"
    assert title(summary_of([(PAPER, 2)])) == "robustness unknown"


def test_pictures_and_the_title_call_nothing_robust_that_is_not_established(tmp_path: Path) -> None:
    for checks, said, bar, star, alternative in (
        (
            CHECKS,
            "not established",
            "not established\n(<= 25.0 %)",
            "at most: not established",
            "not established, at most ",
        ),
        (PASSED, "25.0 % robust", "25.0 %", "robust accuracy", ""),
    ):
        report = checked_report(checks)
        report.save(tmp_path)
        read = read_html((tmp_path / "report.html").read_text(encoding="utf-8"))
        assert read.text.startswith(f"{said}: jump_relu (jump 0.5) on LeNetLike, linf 0.2 ")
        words = next(attrs["alt"] for tag, attrs in read.tags if tag == "img")
        assert f"Bars: Robust accuracy over all attacks {alternative}25.0 %; Accuracy" in str(words).replace(
            "\xa0", " "
        )
        assert summary_bars(report.summary).axes[0].texts[0].get_text() == bar
        (legend,) = accuracy_curves(report.summary).legends
        assert legend.get_texts()[-1].get_text() == f" 25.0 %  {star}"


@pytest.mark.parametrize("samples", [2, 4, 20, 1000])
def test_what_stands_at_a_bar_covers_neither_its_interval_nor_its_label(samples: int) -> None:
    for left in range(0, samples + 1, max(samples // 10, 1)):
        figure = summary_bars(summary_of([(PGD, samples - left)], samples, checks=CHECKS))
        figure.canvas.draw()
        axes = figure.axes[0]
        for text, line in zip(axes.texts, axes.lines, strict=True):
            box = text.get_window_extent()
            low, high = line.get_transform().transform(np.asarray(line.get_xydata()))[:, 0]
            assert axes.bbox.x0 <= box.x0
            assert box.x1 <= figure.bbox.x1
            assert box.x1 < low or high < box.x0


def test_a_result_whose_checks_passed_is_shown_as_ever() -> None:
    report = checked_report(PASSED)
    assert report.established is True
    assert headlines(report.summary)[0].remark == ""
    assert "Did the attacks work?" in printed(report.summary, 80)
    assert "25.0 % [11.2, 46.9]" in printed(report.summary, 60)


def test_checks_of_which_none_was_made_establish_nothing_and_deny_nothing() -> None:
    report = checked_report(CHECKS[3:])
    assert report.established is None
    assert "not established" not in printed(report.summary, 80)
    assert "not run" in printed(report.summary, 80)


# The attacker


@pytest.mark.parametrize(
    ("changes", "adaptive", "expected"),
    [
        ({"modes": ["exact"]}, True, "gradient mode exact"),
        ({"modes": ["exact", "relu", "smooth"]}, True, "gradient modes exact, relu, smooth"),
        (
            {"modes": ["exact", "surrogate"], "draws": 16, "votes": 11},
            True,
            "gradient modes exact, surrogate, averaged over 16 passes",
        ),
        ({"modes": ["exact"]}, False, "naive: gradient mode exact alone"),
    ],
)
def test_the_report_says_what_the_attacker_was_given(changes: dict[str, Any], adaptive: bool, expected: str) -> None:
    settings = replace(a_run().settings, adaptive=adaptive)
    summary = summary_of([(PGD, 15)], settings=settings, **changes)
    lines = [" ".join(line.strip("│ ").split()) for line in printed(summary, 100).splitlines()]
    assert f"Attacker {expected}" in lines
    source = page(summary)
    assert f'<th scope="row">attacker</th><td>{expected}</td>' in source


def test_a_random_defences_passes_are_told_beside_the_vote() -> None:
    summary = summary_of([(PGD, 15)], votes=32, draws=16)
    found = Randomness(32, 0.625, (0.5012, 0.7488), worst=Proportion(5, 20), undecided=Proportion(1, 20))
    summary = replace(summary, randomness=found)
    expected = (
        "The defence is random and judged by the likeliest class of each image: an attack succeeds only where fresh "
        "passes, 32 to 1024, show that another class is at least as likely as the label. For 1 of 20 images they could "
        "not tell; these count as robust. Pass by pass, after the attack that seems the worst by earlier passes: "
        "62.5 % [50.1, 74.9] robust in the mean of 32 passes; in none of them wrong: 25.0 % [11.2, 46.9]."
    )
    for width in WIDTHS:
        assert expected in " ".join(printed(summary, width).split())
    assert expected in read_html(page(summary)).text
    for text in (printed(full_report().summary, 80), page(full_report().summary)):
        assert "random" not in text


# The terminal


@pytest.mark.parametrize("width", [*range(24, 101, 4), 140])
@pytest.mark.parametrize("report", [full_report(), checked_report()], ids=["plain", "with checks"])
def test_no_width_breaks_a_number_or_a_line(report: Report, width: int) -> None:
    text = printed(report.summary, width)
    assert max(map(len, text.splitlines())) <= width
    assert not re.search(r"^[ │]*(%|of \d|points|images\))", text, re.MULTILINE)
    assert "…" not in text
    assert "\N{NO-BREAK SPACE}" not in text
    broken = ("13 of 18", "2 of 20") if report.summary.established else ("15 of 20", "3 of 8", "90 %")
    for whole in ("25.0 %", "90.0 %", "[11.2, 46.9]", "65.0 points", *broken):
        assert whole in text


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_piped_has_no_escape_codes(width: int) -> None:
    assert "\x1b" not in printed(full_report().summary, width)


def test_long_runs_and_long_names_fit_80_columns() -> None:
    long = spec("an attack whose name says everything that there is to say about it", modes="all")
    text = printed(summary_of([(PAPER, 2), (long, 9_000), (TRANSFER, 4)], samples=10_000), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "8998 of 9998" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_names_are_not_markup(width: int) -> None:
    text = printed(summary_of([(spec("[red]x[/red]", modes="all"), 3)]), width)
    assert "[red]x[/red] [exact]" in text


def test_groups_stand_under_their_headings() -> None:
    lines = [line.split() for line in printed(full_report().summary, 100).splitlines()]
    starts = [" ".join(line[:3]) for line in lines if line]
    expected = (
        "the ladder",
        "PGD [exact] defended",
        "the paper's attacks",
        "IFGSM defended all",
        "curves and checks",
        "the curve's runs",
    )
    order = [starts.index(one) for one in expected]
    assert order == sorted(order)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_curves_runs_are_named_in_words(width: int) -> None:
    text = " ".join(printed(summary_of([(PGD, 5)], curve=True), width).split())
    assert "the curve's runs" in text
    assert "the both network" not in text
    if width < 80:  # a list
        assert "the curve's runs: made on both networks; broke 0 of 5" in text


# Attacks that did not run


def test_attacks_that_did_not_run_say_why() -> None:
    summary = summary_of([(PAPER, 20), (PGD, None), (TRANSFER, None)], undefended_correct=None)
    text = " ".join(printed(summary, 100).split())
    assert "not run: no sample was left: PGD [exact]" in text
    assert "not run: no undefended classifier is known; undefended= gives one: transfer" in text
    html = read_html(page(summary)).text
    assert "not run: no sample was left" in html
    assert "not run: no undefended classifier is known; undefended= gives one" in html


@pytest.mark.parametrize("width", WIDTHS)
def test_notes_on_attacks_that_ran_are_shown(width: int) -> None:
    records = [SampleRecord(i, 0, 0) for i in range(NB_SAMPLES)]
    run = AttackRun(PGD, "exact", THREAT)
    cost = attack(run, 0, records, None, usable=False)
    summary = summarise(a_run(), [run], records, [cost], [])
    assert "returned 20 unusable images: PGD [exact]" in " ".join(printed(summary, width).split())
    assert "returned 20 unusable images" in read_html(page(summary)).text


def test_an_attack_on_the_survivors_has_no_accuracy_of_its_own() -> None:
    line = next(line for line in printed(full_report().summary, 100).splitlines() if "PGD [exact]" in line)
    assert line.split() == ["PGD", "[exact]", "defended", "left", "13", "of", "18", "-", "-", "0.15"]
    line = next(line for line in printed(full_report().summary, 140).splitlines() if "PGD [exact]" in line)
    assert line.split()[6:] == ["18", "-", "-", "0.15", "-", "-", "-", "2/3", "0.5"]


# Rankings


def ranked_summary(reference: Literal["undefended", "own"] = "undefended") -> Summary:
    """The first attack's images in the ball are 18 of its 20."""
    summary = full_report().summary
    agreement = Agreement(Mean(0.4123, 0.25, 18, (0.3, 0.53)), Mean(0.5677, 0.3, 18, (0.43, 0.7)))
    rows = [replace(row, agreement=agreement if row.source == "paper" else None) for row in summary.rows]
    clean = Agreement(Mean(0.98, 0.1, 20, (0.936, 1.0)), Mean(0.99, 0.1, 20, (0.946, 1.0)))
    worst = Agreement(Mean(0.25, 0.2, 20, (0.162, 0.338)), Mean(0.4, 0.2, 20, (0.312, 0.488)))
    return replace(summary, rows=rows, reference=reference, clean_agreement=clean, worst_agreement=worst)


@pytest.mark.parametrize(("reference", "whose"), [("undefended", "the undefended network's"), ("own", "its own")])
def test_every_medium_tells_how_far_rankings_agree(reference: Literal["undefended", "own"], whose: str) -> None:
    summary = ranked_summary(reference)
    expected = (
        f"The network's ranking of all classes, compared with {whose} of the clean image (1 is the same): "
        "mean NDCG 0.980 [0.936, 1.000] on clean images, 0.250 [0.162, 0.338] in the worst case of each; "
        "mean reciprocal rank 0.990 [0.946, 1.000] and 0.400 [0.312, 0.488]."
    )
    for width in WIDTHS:
        assert expected in " ".join(printed(summary, width).split())
    assert expected in read_html(page(summary)).text


@pytest.mark.parametrize("width", [*range(24, 101, 4), 140])
def test_no_width_breaks_a_mean_or_a_line(width: int) -> None:
    text = printed(ranked_summary(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "\N{NO-BREAK SPACE}" not in text
    for whole in ("0.980 [0.936, 1.000]", "0.412", "0.568"):
        assert whole in text


def test_each_attacks_agreement_stands_beside_its_costs() -> None:
    lines = [line.split() for line in printed(ranked_summary(), 80).splitlines()]
    assert ["attack", "NDCG", "1/rank", "counted", "passes", "s"] in lines
    assert ["IFGSM", "0.412", "0.568", "18", "2/3", "0.5"] in lines
    assert ["Square", "-", "-", "-", "2/0", "0.5"] in lines
    assert "; NDCG 0.412, 1/rank 0.568;" in " ".join(printed(ranked_summary(), 40).split())
    cells = "<td>0.412</td>\n      <td>0.568</td>\n      <td>18</td>"
    assert cells in page(ranked_summary())
    assert page(ranked_summary()).count("<td>-</td>\n      <td>-</td>\n      <td>-</td>") == 4


def test_the_page_says_what_both_metrics_are() -> None:
    for reference, whose in (("undefended", "the undefended network's"), ("own", "the network's own")):
        text = read_html(page(ranked_summary(reference))).text
        assert f"All rankings are compared with {whose} of the clean image." in text


def test_of_rankings_that_were_not_recorded_nothing_is_said() -> None:
    for text in (printed(full_report().summary, 100), page(full_report().summary)):
        assert "ranking of all classes, compared" not in text


# The page


class Page(HTMLParser):
    """Reads a page, and insists that every tag is closed in its turn."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def read_html(source: str) -> Page:
    parser = Page()
    parser.feed(source)
    parser.close()
    assert parser.stack == []
    return parser


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    full_report().save(tmp_path)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    tags = read_html(source).tags
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in tags}
    links = [value for _, attrs in tags for name, value in attrs.items() if name in ("src", "href", "srcset")]
    assert len(links) == 3
    assert all(link is not None and link.startswith("data:image/png;base64,") for link in links)
    assert not re.search(r"https?://|@import|url\(", source)


def test_pictures_have_words_for_those_who_cannot_see_them(tmp_path: Path) -> None:
    full_report().save(tmp_path)
    tags = read_html((tmp_path / "report.html").read_text(encoding="utf-8")).tags
    texts = [attrs["alt"] for tag, attrs in tags if tag == "img"]
    assert len(texts) == 3
    assert "25.0" in str(texts[0])
    assert "Image 4, class 2, became 7 by PGD [exact]." in str(texts[2])


def test_the_page_escapes_what_comes_from_a_run() -> None:
    nasty = '<b>"bold"</b> & <script>alert(1)</script>'
    summary = summary_of(
        [(spec(nasty), 3)],
        model=nasty,
        command=nasty,
        device=nasty,
        defences=[{"name": nasty, "jump": nasty}],
        modes=[nasty],
        checks=[Check(nasty, "failed", nasty)],
    )
    source = render_page(summary, [an_example(name=nasty)], {"examples": b"png"})
    tags = read_html(source).tags
    assert not {"b", "script"} & {tag for tag, _ in tags}
    assert read_html(source).text.count(nasty) >= 5
    assert any(nasty in str(attrs.get("alt")) for tag, attrs in tags if tag == "img")


def test_the_page_tells_what_was_run() -> None:
    text = read_html(page(full_report().summary)).text
    for fact in (
        "jump_relu (jump 0.5)",
        "LeNetLike",
        "linf: each pixel value may change by at most 0.2",
        "evaluate.py --eps 0.2",
        "1" * 64,
        "2" * 64,
        "3.11.9",
        "what PGD is for",
        "seed 7",
    ):
        assert fact in text
    assert "width" not in text  # a setting that is None


# The figures


def picture(content: bytes) -> Any:
    return matplotlib.image.imread(io.BytesIO(content), format="png")


def test_the_pictures_open_and_show_something(tmp_path: Path) -> None:
    full_report().save(tmp_path)
    for name in ("accuracy", "curves", "examples"):
        shown = picture((tmp_path / "figures" / f"{name}.png").read_bytes())
        assert min(shown.shape[:2]) > 300, name
        assert shown[..., :3].std() > 0.03, name


def test_a_trained_defence_shows_its_losses_and_another_none(tmp_path: Path) -> None:
    settings = {"images": 898, "inputs": ["clean", "pgd"], "eps": 0.1, "seed": 0, "attack_mode": "exact"}
    weights = {"pixel_weight": 1.0, "feature_weight": 0.0, "class_weight": 0.5}
    settings["loss"] = {"pixel": "l2", "network": "classifier"} | weights
    first = Training(settings, [(2.0, 3.0), (1.0, 2.5), (0.5, 2.75)])
    for trainings in ([first, Training(settings, [(1.0, None)])], []):
        report = Report(summary_of([(PAPER, 2), (PGD, 3)], trainings=trainings), [], [])
        report.save(tmp_path)
        assert (tmp_path / "figures/losses.png").exists() == bool(trainings)
        page = (tmp_path / "report.html").read_text()
        assert ("How the defence was trained" in page) == bool(trainings)
        words = "3 epoch(s) on 898 images: clean; pgd; eps 0.1, attacks made in mode exact, seed 0; "
        words += "loss 1 pixels (l2), 0.5 class"
        assert (words in page) == (words in " ".join(printed(report.summary, 300).split())) == bool(trainings)
        written = json.loads((tmp_path / "report.json").read_text())["run"]["trainings"]
        assert [one["losses"] for one in written] == [[list(both) for both in one.losses] for one in trainings]
    axes = losses(summary_of([(PGD, 3)], trainings=[first])).axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[2, 1, 0.5], [3, 2.5, 2.75]]
    with pytest.raises(InputError, match="summary holds no training"):
        losses(summary_of([(PGD, 3)], trainings=[]))


def test_a_tuned_defence_shows_its_trade_off_and_an_untuned_one_none(tmp_path: Path) -> None:
    tuning = Tuning("jump", 0.5, [(0.0, 0.98), (0.5, 0.97), (1.0, 0.6)])
    for tunings in ([tuning], []):
        report = Report(summary_of([(PAPER, 2), (PGD, 3)], tunings=tunings), [], [])
        report.save(tmp_path)
        assert (tmp_path / "figures/trade_off.png").exists() == bool(tunings)
        assert ("What the defence costs" in (tmp_path / "report.html").read_text()) == bool(tunings)
        written = json.loads((tmp_path / "report.json").read_text())["run"]["tunings"]
        assert [one["chosen"] for one in written] == [one.chosen for one in tunings]
    axes = trade_off(summary_of([(PGD, 3)], tunings=[tuning])).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(0, 98), (0.5, 97), (1, 60)])
    assert list(axes.lines[1].get_xdata()) == [0.5, 0.5]


def test_equal_figures_are_equal_files() -> None:
    summary = full_report().summary
    assert png(accuracy_curves(summary)) == png(accuracy_curves(summary))


def test_the_curves_name_every_attack_and_mark_the_threat() -> None:
    summary = full_report().summary
    figure = accuracy_curves(summary)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [
        "the ladder, first 10 images",
        " 40.0 %  PGD [exact]",
        "the paper's attacks, all images",
        " 90.0 %  IFGSM",
        "over all attacks, all images",
        " 25.0 %  robust accuracy",
    ]
    lines = [np.asarray(line.get_xdata()).tolist() for line in figure.axes[0].lines]
    assert [THREAT.eps, THREAT.eps] in lines  # the upright one
    assert "eps 0.2" in [text.get_text() for text in figure.axes[0].texts]


def test_names_in_pictures_are_neither_formulas_nor_hidden() -> None:
    odd = spec(r"_$\frac$", modes="all", samples="all", bounded=False)
    summary = summary_of([(PAPER, 2), (odd, 3)], curve=True, model="$x_$")
    content = png(accuracy_curves(summary))  # an unfinished formula would raise here
    assert picture(content).std() > 0
    assert any(r"_$\frac$" in text.get_text() for text in accuracy_curves(summary).legends[0].get_texts())
    assert png(examples_figure([an_example(name=r"$\frac$")]))


def test_the_bars_stand_in_the_order_of_the_headlines() -> None:
    summary = full_report().summary
    axes = summary_bars(summary).axes[0]
    assert axes.yaxis_inverted()
    assert [
        patch.get_extents().transformed(axes.transData.inverted()).width for patch in axes.patches
    ] == pytest.approx([25, 90, 40, 100, 100])
    ends = np.asarray(axes.lines[0].get_xdata()).tolist()
    assert ends == pytest.approx([100 * end for end in wilson(5, 20)])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 224, 224), (8, 8), (4, 10, 6)])
def test_examples_of_any_image_shape_are_drawn(shape: tuple[int, ...]) -> None:
    figure = examples_figure([an_example(shape)])
    assert picture(png(figure)).std() > 0.03
    difference = figure.axes[2]
    assert difference.get_xlabel() == "full scale: ±0.1"
    shown = np.asarray(difference.images[0].get_array(), dtype=np.float64)
    if len(shape) == 2 or shape[0] in (1, 3):  # else channels were averaged
        assert shown.min() == pytest.approx(0, abs=1e-5)
        assert shown.max() == pytest.approx(1, abs=1e-5)


def test_what_a_defence_makes_of_both_images_is_drawn_below_them() -> None:
    one = an_example()
    views = {"heat": (one.clean, one.adversarial), "shown": (one.adversarial, one.clean)}
    figure = examples_figure([replace(one, views=views)])
    assert len(figure.axes) == 7
    labels = [" ".join(axes.get_ylabel().split()) for axes in figure.axes[3:]]
    assert labels == ["heat (clean)", "heat (adversarial)", "shown (clean)", "shown (adversarial)"]
    for axes, picture_of in zip(figure.axes[3:], [*views["heat"], *views["shown"]], strict=True):
        assert np.allclose(np.asarray(axes.images[0].get_array()), picture_of[0], atol=1e-6)


def test_an_unchanged_example_is_drawn_as_no_difference() -> None:
    same = an_example()
    figure = examples_figure([Example(0, 0, 1, "x", same.clean, same.clean)])
    assert np.asarray(figure.axes[2].images[0].get_array()) == pytest.approx(0.5)


def test_figures_refuse_what_they_cannot_show() -> None:
    with pytest.raises(InputError, match="holds no curve"):
        accuracy_curves(summary_of([(PGD, 3)]))
    with pytest.raises(InputError, match="holds no tuning"):
        trade_off(summary_of([(PGD, 3)]))
    with pytest.raises(InputError, match="holds 0 examples"):
        examples_figure([])
    with pytest.raises(InputError, match="all of them images"):
        examples_figure([an_example((20,))])


# Files


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


ALWAYS = {"report.json", "report.html", "figures/accuracy.png"}
SOMETIMES = {"figures/curves.png", "figures/examples.png", "examples.npz"}


def test_save_writes_what_there_is_and_removes_what_there_is_no_more(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    full_report().save(folder)
    assert names(folder) == ALWAYS | SOMETIMES
    Report(summary_of([(PGD, 3)]), [], []).save(str(folder))
    assert names(folder) == ALWAYS


def test_examples_that_are_no_images_are_saved_but_not_drawn(tmp_path: Path) -> None:
    Report(summary_of([(PGD, 3)]), [], [an_example((20,))]).save(tmp_path)
    assert names(tmp_path) == ALWAYS | {"examples.npz"}


def test_the_examples_read_back_without_pickle(tmp_path: Path) -> None:
    report = full_report()
    report.save(tmp_path)
    with np.load(tmp_path / "examples.npz", allow_pickle=False) as read:
        assert set(read) == {"clean", "adversarial", "index", "label", "prediction", "attack"}
        assert read["clean"].shape == (2, 1, 8, 8)
        np.testing.assert_array_equal(read["adversarial"][1], report.examples[1].adversarial)
        assert [*read["attack"]] == ["PGD [exact]", "transfer"]
        assert (read["index"][0], read["label"][0], read["prediction"][0]) == (4, 2, 7)


def test_a_crash_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_report().save(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    write = Path.write_bytes

    def full_disk(path: Path, content: bytes) -> int:
        write(path, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        Report(summary_of([(PGD, 3)]), [], []).save(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_a_file_in_place_of_the_folder_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=r"folder is .*taken, which cannot be written"):
        full_report().save(tmp_path / "taken")


def test_the_report_does_not_spill_its_records() -> None:
    assert "records" not in repr(full_report())
