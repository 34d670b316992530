"""The report: sections made once from a run's figures and shown in every medium; robust accuracy only where known."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from art_defenses_ext.attack.ball import Linf
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.provenance import Training, Tuning
from art_defenses_ext.evaluation import report as report_folder
from art_defenses_ext.evaluation.checks.checks import CHECKS as ALL_CHECKS, OF_THE_ATTACKS, Check
from art_defenses_ext.evaluation.records.costs import Cost
from art_defenses_ext.evaluation.records.description import RunDescription, Settings
from art_defenses_ext.evaluation.records.examples import Example
from art_defenses_ext.evaluation.records.proportion import Mean, Proportion
from art_defenses_ext.evaluation.records.sample import CostRecord, Outcome, SampleRecord
from art_defenses_ext.evaluation.report.content import document
from art_defenses_ext.evaluation.report.described import class_name, describe_training
from art_defenses_ext.evaluation.report.figures.bars import summary_bars
from art_defenses_ext.evaluation.report.figures.curves import accuracy_curves
from art_defenses_ext.evaluation.report.figures.detector import margin_histograms, roc_curves
from art_defenses_ext.evaluation.report.figures.drawing import png
from art_defenses_ext.evaluation.report.figures.drawn import draw_figures
from art_defenses_ext.evaluation.report.figures.examples import examples_figure
from art_defenses_ext.evaluation.report.figures.training import losses, trade_off
from art_defenses_ext.evaluation.report.headlines import NOT_ESTABLISHED, headline_table, headlines, result_in_words
from art_defenses_ext.evaluation.report.page import TEMPLATE, render_page
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.report.sections import NO_BREAK, Figure, Folded, Part, Prose, Section, Table, Terms
from art_defenses_ext.evaluation.report.tables import detector_table, thresholds_table
from art_defenses_ext.evaluation.report.verdict import describe_randomness, verdict
from art_defenses_ext.evaluation.results.summary import Agreement, Randomness, Summary, summarise
from art_defenses_ext.evaluation.suite.plan import AttackRun
from art_defenses_ext.evaluation.suite.spec import AttackSpec

NB_SAMPLES = 20
THREAT = Linf(0.2)


def make_spec(name: str, **options: Any) -> AttackSpec:
    def build(*_: Any) -> Any:
        raise AssertionError("a report runs no attack")

    return AttackSpec(name, build, f"what {name} is for", **options)


PAPER = make_spec("IFGSM", source="paper", samples="all", bounded=False)
PGD = make_spec("PGD", kind="white-box", modes="all")
SQUARE = make_spec("Square")
TRANSFER = make_spec("transfer", crafted_on="undefended", samples="all")
CURVED = make_spec("PGD", kind="white-box", modes="all", curve=True)
ONE_PASSED = (Check("single step", "passed", "one step breaks 0 of 8 images"),)


def make_run(samples: int = NB_SAMPLES, **changes: Any) -> RunDescription:
    values: dict[str, Any] = {
        "settings": Settings(
            threat="linf",
            eps=THREAT.eps,
            attacks="standard",
            samples=samples,
            seed=7,
            curve_samples=10,
            check_samples=5,
        ),
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

    The undefended model is correct on ``undefended_correct`` images after the transfer; None: there is no such model.
    """
    correct = samples if correct is None else correct
    clean = None if undefended_correct is None else 0
    records = [SampleRecord(i, 0, int(i >= correct), clean) for i in range(samples)]
    plan, costs = [], []
    for spec, broken in attacks:
        run = AttackRun(spec, "exact", THREAT)
        plan.append(run)
        if broken is not None:
            costs.append(apply_attack(run, broken, records, undefended_correct))
    for eps, broken in ((0.1, 3), (0.2, 6), (0.4, 9)) if curve else ():
        run = AttackRun(CURVED, "exact", Linf(eps), "curve")
        plan.append(run)
        costs.append(apply_attack(run, broken, records[:10], None, success=False))
    return summarise(make_run(samples, **changes), plan, records, costs, list(checks))


def apply_attack(
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
        undefended_prediction = None
        if run.spec.crafted_on == "undefended" and undefended_correct is not None:
            undefended_prediction = int(record.index >= undefended_correct)
        record.attacks[run.key] = Outcome(
            int(hit), hit, 0.15, 1.5, hit and success, usable, undefended_prediction=undefended_prediction
        )
    backward = 0 if run.spec.name == "Square" else 3 * len(chosen)
    return CostRecord(0, run.key, len(chosen), Cost(2 * len(chosen), backward, 0.5, 10**6))


def make_example(shape: tuple[int, ...] = (1, 8, 8), name: str = "PGD [exact]") -> Example:
    clean = np.linspace(0.2, 0.8, math.prod(shape), dtype=np.float32).reshape(shape)
    sign = np.where(np.arange(clean.size).reshape(shape) % 3 == 0, 1, -1)
    return Example(4, 2, 7, name, clean, (clean + 0.1 * sign).astype(np.float32))


def make_full_report() -> Report:
    summary = summary_of([(PAPER, 2), (PGD, 15), (SQUARE, 15), (TRANSFER, 4)], curve=True)
    return Report(summary, [], [make_example(), make_example(name="transfer")])


def print_summary(summary: Summary, width: int) -> str:
    stream = io.StringIO()
    Report(summary, [], []).print(Console(file=stream, width=width))
    return stream.getvalue()


def make_page(summary: Summary, examples: Sequence[Example] = ()) -> str:
    return render_page(summary, examples, {})


def normalise_spaces(text: str) -> str:
    """The text without line ends, repeated and no-break spaces."""
    return " ".join(text.split())


# Runs


def make_detected_report(samples: int = NB_SAMPLES) -> Report:
    """A detector that flags one clean image of twenty; the paper's attack fools the network on the first ten, of which
    it flags eight, ours on the first twelve, of which it flags three."""
    records = [
        SampleRecord(i, 0, 0, 0, clean_rejected=i == 19, clean_detection_margin=0.5 if i == 19 else -0.1 - i / 100)
        for i in range(samples)
    ]
    gray = make_spec("PGD-40", source="paper", crafted_on="undefended", samples="all")
    aware = make_spec("selective PGD", kind="white-box", samples="all")
    plan = [AttackRun(spec, "exact", THREAT) for spec in (aware, gray)]
    for run, fooled, detected in zip(plan, (12, 10), (3, 8), strict=True):
        for record in records:
            hit, rejected = record.index < fooled, record.index < detected
            margin = 0.2 + record.index / 100 if rejected else -0.3 - record.index / 100
            record.attacks[run.key] = Outcome(
                int(hit),
                hit and not rejected,
                0.15,
                1.5,
                hit and not rejected,
                rejected=rejected,
                detection_margin=margin,
            )
    costs = [CostRecord(0, run.key, samples, Cost(2 * samples, 2 * samples, 0.5, 10**6)) for run in plan]
    trainings = [Training({"images": 700, "batch_size": 320, "seed": 3, "validation_split": 0.25}, [(0.5, None)] * 2)]
    description = make_run(
        samples, rejects=True, trainings=trainings, defences=[{"name": "explanation_reconstructor", "hidden": 64}]
    )
    return Report(summarise(description, plan, records, costs, list(ONE_PASSED)), records, [])


DETECTED = make_detected_report()

CHECKS = [
    Check("single step", "passed", "one step breaks 0 of 8 images on which the white-box attacks failed"),
    Check("more effort", "failed", "300 steps from 2 starts break 3 of 8 images on which all attacks failed"),
    Check("gradients", "failed", "fewer than 90 %, and no estimated gradient was tried"),
    Check("noise", "not run", "no such attack ran on a sample on which the white-box attacks failed"),
]
PASSED = [CHECKS[0], CHECKS[3]]


def make_checked_report(checks: Sequence[Check] = CHECKS, **changes: Any) -> Report:
    summary = summary_of([(PGD, 15), (SQUARE, 15), (TRANSFER, 4), (PAPER, 2)], curve=True, checks=checks, **changes)
    return Report(summary, [], [make_example()])


def make_ranked_summary() -> Summary:
    """The first attack's images in the ball are 18 of its 20."""
    summary = make_full_report().summary
    agreement = Agreement(Mean(0.4123, 0.25, 18, (0.3, 0.53)), Mean(0.5677, 0.3, 18, (0.43, 0.7)))
    rows = [replace(row, agreement=agreement if row.source == "paper" else None) for row in summary.rows]
    clean = Agreement(Mean(0.98, 0.1, 20, (0.936, 1.0)), Mean(0.99, 0.1, 20, (0.946, 1.0)))
    worst = Agreement(Mean(0.25, 0.2, 20, (0.162, 0.338)), Mean(0.4, 0.2, 20, (0.312, 0.488)))
    return replace(summary, rows=rows, clean_agreement=clean, worst_agreement=worst)


RANDOM = replace(
    summary_of([(PGD, 15)], votes=32, draws=16),
    randomness=Randomness(
        32,
        0.625,
        (0.5012, 0.7488),
        worst=Proportion(5, 20),
        worst_of=[0.625, 0.5],
        worst_of_more=[0.21, 0.2, 0.1],
        undecided=Proportion(1, 20),
    ),
)
SUMMARIES = {
    "checked": make_checked_report().summary,
    "detector": DETECTED.summary,
    "plain": make_full_report().summary,
    "random": RANDOM,
    "ranked": make_ranked_summary(),
    "the paper's attacks": summary_of([(PAPER, 2)]),
    "nothing ran": summary_of([(PAPER, 20), (PGD, None), (TRANSFER, None)], undefended_correct=None),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``make_full_report()``."""
    folder = tmp_path_factory.mktemp("report")
    make_full_report().save(folder)
    return folder


# The figures and their order


def test_the_robust_accuracy_comes_first_and_the_papers_number_second() -> None:
    lines = headlines(make_full_report().summary)
    assert [line.key for line in lines] == ["robust", "paper", "undefended_robust", "undefended_clean", "clean"]
    shares = [line.value for line in lines]
    assert shares == [Proportion(5, 20), Proportion(18, 20), Proportion(8, 20), Proportion(20, 20), Proportion(20, 20)]
    assert [row.cells[0] for row in headline_table(make_full_report().summary).rows][2] == f"65.0{NO_BREAK}points"


def test_the_json_file_reads_back_with_wilsons_intervals(saved: Path) -> None:
    text = (saved / "report.json").read_text(encoding="utf-8")
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert data == make_full_report().summary.as_dict()
    assert data["robust_accuracy"]["interval"] == list(Proportion(5, 20).interval)
    assert data["gap"] == pytest.approx(13 / 20)


# The verdict

GAP = ("25.0 %", "90.0 %", "65.0 points more (13 images)", "which are fewer, is 40.0 %")
VERDICTS = {
    "a gap": (summary_of([(PAPER, 2), (PGD, 15), (TRANSFER, 4)]), GAP),
    "the paper's attacks": (
        summary_of([(PAPER, 2)]),
        ("robust accuracy is unknown, since no adaptive attack ran", "90.0 %"),
    ),
    "only queries and transfer": (
        summary_of([(PAPER, 2), (SQUARE, 5), (TRANSFER, 4)]),
        (
            "follow no gradient",
            "75.0 %",
            "90.0 %",
            "15.0 points more (3 images)",
            "An adaptive attack may break far more",
            "40.0 %",
        ),
    ),
    "one of two modes": (
        summary_of([(PAPER, 2), (PGD, 15)], modes=["exact", "smooth"]),
        ("in mode smooth", "the attacks that ran is 25.0 %", "90.0 %", "65.0 points more (13 images)"),
    ),
    "a detector": (
        DETECTED.summary,
        (
            *("Robust accuracy 50.0 %", "rejected images counted as correct", "85.0 %", "35.0 points more (7 images)"),
            *(
                "flags 5.0 % of clean",
                "10.0 % for attacks with zero knowledge",
                "45.0 % for attacks with perfect knowledge",
                "0.0 %",
            ),
        ),
    ),
    "failed checks": (
        make_checked_report().summary,
        ("Robustness is not established: robust accuracy at most 25.0 %", "more effort, gradients", *GAP[1:]),
    ),
    "no checks": (make_checked_report([]).summary, ("unknown, since no checks were made", "adaptive attacks", *GAP)),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_the_verdict_follows_from_the_numbers(case: str) -> None:
    """Each number and each reservation is there, in this order, and no other number is."""
    summary, expected = VERDICTS[case]
    text = normalise_spaces(verdict(summary))
    assert str(Report(summary, [], [])) == text
    remainder, numbers = text, re.findall(r"\d[\d.]* (?:%|points|image)", " ".join(expected))
    for part in expected:
        assert part in remainder, (part, remainder)
        remainder = remainder[remainder.index(part) + len(part) :]
    assert re.findall(r"\d[\d.]* (?:%|points|image)", text) == numbers


# Each medium draws the sections


def texts(section: Section, folds: bool) -> Iterator[str]:
    """Every text of a section outside its figures."""
    yield section.title
    yield from texts_of(section.parts, folds)


def texts_of(parts: Sequence[Part], folds: bool) -> Iterator[str]:
    for part in parts:
        if isinstance(part, Prose):
            yield part.text
        elif isinstance(part, Terms):
            yield from (text for pair in part.meanings for text in pair)
        elif isinstance(part, Folded):
            yield from [part.title] if folds or part.command else []
            yield part.command
            yield from texts_of(part.parts, folds) if folds or not part.command else []
        elif isinstance(part, Table):
            yield from (column.header for column in part.columns if part.look == "plain")
            for row in part.rows:
                yield from (row.name, row.remark, *row.cells)
                yield from texts_of([row.folded], folds) if row.folded and folds else []


def is_drawn_in_a_terminal(section: Section) -> bool:
    return not section.is_reference and not all(isinstance(part, Figure) for part in section.parts)


@pytest.mark.parametrize("case", SUMMARIES)
def test_each_medium_shows_every_section_in_its_order(case: str) -> None:
    report = document(SUMMARIES[case])
    terminal, html = normalise_spaces(print_summary(SUMMARIES[case], 300)), read_html(make_page(SUMMARIES[case])).text
    for text, folds, sections in (
        (terminal, False, [section for section in report.sections if is_drawn_in_a_terminal(section)]),
        (
            html,
            True,
            [section for section in report.sections if not all(isinstance(part, Figure) for part in section.parts)],
        ),
    ):
        assert report.heading in text
        place = text.index(report.conclusion.text.replace(NO_BREAK, " "))
        text = text.replace("`", "")  # on the page that is code
        for section in sections:
            place = text.index(section.title, place)
            shown = without_rows(text)
            missing = [
                sentence
                for sentence in texts(section, folds)
                if normalise_spaces(sentence).replace("`", "") not in shown
            ]
            # A terminal sets the lines of a heading side by side with those of others.
            assert all("\n" in sentence for sentence in missing), missing


def without_rows(text: str) -> str:
    return re.sub(r"[─ ]+", " ", text)


def test_names_are_not_markup() -> None:
    text = print_summary(summary_of([(make_spec("[red]x[/red]", modes="all"), 3)]), 80)
    assert "[red]x[/red] [exact]" in text


def test_the_template_has_no_sentence_of_its_own() -> None:
    source = files(report_folder).joinpath(TEMPLATE).read_text(encoding="utf-8")
    own_text = re.sub(r"<style>.*?</style>|{%.*?%}|{{.*?}}|<[^<>]*>", " ", source, flags=re.DOTALL)
    assert not re.search(r"\w", own_text), own_text


# What each table holds


def test_zero_and_perfect_knowledge_stand_side_by_side() -> None:
    detection = DETECTED.summary.detection
    assert detection is not None
    knows = {row.name: normalise_spaces(row.cells[0]) for row in detector_table(detection).rows}
    assert knows["selective PGD"] == knows["all attacks"] == "perfect"
    assert knows["PGD-40"] == knows["all with zero knowledge"] == "zero"
    # Away from the detector's own threshold there is nothing of an attack that aimed at it.
    others = thresholds_table(detection)
    assert [row.name for row in others.rows] == ["PGD-40", "all with zero knowledge"]
    data = json.loads(json.dumps(DETECTED.summary.as_dict(), allow_nan=False))["detection"]
    assert (data["pools"][1]["success"], data["rows"][0]["success"], data["rows"][0]["auc"]) == ([], [], None)
    aimed = replace(detection, rows=detection.rows[:1], pools=detection.pools[1:])
    assert not thresholds_table(aimed).rows


def test_with_a_detector_the_remarks_say_what_counts_as_correct() -> None:
    lines = {line.key: line for line in headlines(DETECTED.summary)}
    assert lines["robust"].value == Proportion(10, 20)  # images 3 to 11, and the one rejected from the start
    assert (lines["robust"].remark, lines["clean"].remark) == ("correct or rejected", "correct and accepted")
    failed = replace(DETECTED.summary, checks=CHECKS)
    assert headlines(failed)[0].remark.startswith("correct or rejected; at most")
    for line in headlines(make_full_report().summary):
        assert "rejected" not in line.remark


def test_the_passes_of_a_random_defence_are_reported_beside_the_vote() -> None:
    text = normalise_spaces(describe_randomness(RANDOM))
    for figure in ("32 to 1024", "1 of 20 images", "62.5 % [50.1, 74.9]", "25.0 % [11.2, 46.9]", "10.0 % (N = 1000)"):
        assert figure in text
    assert describe_randomness(make_full_report().summary) == ""


def test_the_report_describes_the_run() -> None:
    text = read_html(make_page(make_full_report().summary)).text
    facts = ("jump_relu (jump 0.5)", "LeNetLike", "linf: each pixel value may change by at most 0.2", "seed 7")
    for fact in (*facts, "evaluate.py --eps 0.2", "1" * 64, "2" * 64, "3.11.9", "what PGD is for"):
        assert fact in text
    assert "width" not in text  # a setting that is None


# Whether the figure is a robust accuracy


NOT_ADAPTIVE: dict[str, tuple[Summary, str]] = {
    "the paper's attacks": (summary_of([(PAPER, 2)]), "the paper's attacks ran alone"),
    "no gradient": (
        summary_of([(SQUARE, 5), (make_spec("noise"), 0)]),
        "none of the suite's white-box attacks was run",
    ),
    "one of two modes": (
        summary_of([(PGD, 15)], modes=["exact", "smooth"]),
        "no white-box attack was made in mode smooth",
    ),
    "a paper's white-box attack": (
        summary_of([(make_spec("CW", kind="white-box", source="paper", samples="all"), 3)]),
        "the paper's attacks ran alone",
    ),
    "made on the undefended network": (
        summary_of([(make_spec("PGD", kind="white-box", crafted_on="undefended", samples="all"), 3)]),
        "none of the suite's white-box attacks was run",
    ),
    "naive": (
        summary_of([(PGD, 15)], settings=replace(make_run().settings, adaptive=False)),
        "the attacker was given the exact gradient alone",
    ),
}


@pytest.mark.parametrize("case", NOT_ADAPTIVE)
def test_without_an_adaptive_suite_nothing_is_called_robust_accuracy(case: str) -> None:
    """Even where each check passed: a check of such attacks says nothing of those who know the defence."""
    summary, reason = NOT_ADAPTIVE[case]
    report = Report(summary, [], [])
    assert (summary.standing, report.established, report.robust_accuracy) == ("no adaptive attack", None, None)
    assert summary.gap is None
    assert result_in_words(summary) == "robust accuracy unknown"
    lines = {line.key: line for line in headlines(summary)}
    assert (lines["robust"].value, lines["robust"].remark) == (None, f"unknown: no adaptive attack ran: {reason}")
    known = "paper" if "paper" in case else "after_attacks"
    assert lines[known].value == summary.worst_case
    assert not any("points" in cell for row in headline_table(summary).rows for cell in row.cells)
    data = summary.as_dict()
    assert (data["robust_accuracy"], data["standing"]) == (None, "no adaptive attack")
    labels = [label.get_text() for label in summary_bars(summary).axes[0].get_yticklabels()]
    assert not any("Robust" in label for label in labels)


def test_without_checks_there_is_no_robust_accuracy() -> None:
    """The figure keeps its digits and loses its name, on the screen, on the page, in the pictures and as data."""
    report = make_checked_report([])
    first, second, *_ = headlines(report.summary)
    assert (first.value, first.remark) == (None, "unknown: no checks were made")
    assert (second.key, second.value) == ("after_attacks", Proportion(5, 20))
    assert (report.established, report.robust_accuracy, report.accuracy_after_attacks) == (None, None, 0.25)
    data = report.summary.as_dict()
    assert (data["standing"], data["robust_accuracy"], data["after_attacks"]["rate"]) == ("no checks", None, 0.25)
    assert "worst_case" not in data
    assert result_in_words(report.summary) == "robust accuracy unknown"


def test_a_suite_is_adaptive_if_each_mode_is_tried_by_some_white_box_attack() -> None:
    """Two defences in a row offer four modes; "exact" alone stands for both of theirs."""
    modes = ["exact+exact", "exact+smooth", "identity+exact", "identity+smooth"]
    tried = [AttackRun(PGD, mode, THREAT) for mode in ("exact", *modes[1:])]
    record = SampleRecord(0, 0, 0)
    standings = [
        summarise(make_run(1, modes=modes), tried[:count], [record], [], list(ONE_PASSED)).standing for count in (4, 3)
    ]
    assert standings == ["established", "no adaptive attack"]


def test_checks_of_the_network_alone_establish_nothing() -> None:
    """That a network has gradients is no evidence of an attack that follows them, unless that broke every image."""
    of_the_network = [Check(name, "passed", "") for name in ALL_CHECKS if name not in OF_THE_ATTACKS]
    for name in OF_THE_ATTACKS:
        assert summary_of([(PGD, 15)], checks=[*of_the_network, Check(name, "passed", "")]).standing == "established"
    for broken, standing in ((15, "no checks"), (NB_SAMPLES, "established")):
        assert summary_of([(PGD, broken)], checks=of_the_network).standing == standing
    failed = [Check("gradients", "failed", "")]
    assert summary_of([(PGD, 15)], checks=failed).standing == "not established"


def test_a_robust_accuracy_whose_attacks_fail_their_checks_is_called_a_bound_everywhere() -> None:
    failed, passed = make_checked_report(), make_checked_report(PASSED)
    assert (failed.established, failed.robust_accuracy) == (False, 0.25)
    assert (passed.established, passed.robust_accuracy) == (True, 0.25)
    assert make_checked_report(CHECKS[3:]).established is None  # none was made
    worst, *others = headlines(failed.summary)
    assert not worst.established
    assert normalise_spaces(worst.remark) == "at most 25.0 % [11.2, 46.9]; failed checks: more effort, gradients"
    assert all(line.established for line in others)
    assert headline_table(failed.summary).rows[0].cells[0] == NOT_ESTABLISHED
    assert headlines(passed.summary)[0].remark == ""
    for report, result, qualified in ((failed, NOT_ESTABLISHED, True), (passed, "25.0 % robust accuracy", False)):
        assert read_html(make_page(report.summary)).text.startswith(f"{result}: jump_relu (jump 0.5) on LeNetLike")
        assert ("not established" in summary_bars(report.summary).axes[0].texts[0].get_text()) == qualified
        (legend,) = accuracy_curves(report.summary).legends
        assert ("not established" in legend.get_texts()[-1].get_text()) == qualified


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
        if not {"style", "script"} & {*self.stack}:
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


def test_the_page_needs_nothing_but_itself(saved: Path) -> None:
    source = (saved / "report.html").read_text(encoding="utf-8")
    tags = read_html(source).tags
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in tags}
    links = [value for _, attrs in tags for name, value in attrs.items() if name in ("src", "srcset")]
    assert len(links) == 3  # bars, curves, examples
    assert all(link is not None and link.startswith("data:image/png;base64,") for link in links)
    assert all(str(attrs.get("href", "#")).startswith("#") for _, attrs in tags)
    assert not re.search(r"https?://|@import|url\(", source)


def test_the_page_runs_no_script_but_its_own(saved: Path) -> None:
    source = (saved / "report.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", source, flags=re.DOTALL)
    sha256 = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (attrs["content"] for _, attrs in read_html(source).tags if "http-equiv" in attrs)
    allowed = "default-src 'none'; script-src 'sha256-{}'; style-src 'unsafe-inline'; img-src data:"
    assert policy == allowed.format(sha256)


def test_the_page_escapes_the_values_of_a_run() -> None:
    nasty = '<b>"bold"</b> & <script>alert(1)</script>'
    summary = summary_of(
        [(make_spec(nasty), 3)],
        model=nasty,
        command=nasty,
        device=nasty,
        defences=[{"name": nasty, "jump": nasty}],
        modes=[nasty],
        checks=[Check(nasty, "failed", nasty)],
    )
    source = render_page(summary, [make_example(name=nasty)], {"examples": b"png"})
    tags = read_html(source).tags
    assert [tag for tag, _ in tags if tag in ("b", "script")] == ["script"]
    assert read_html(source).text.count(nasty) >= 5
    assert any(nasty in str(attrs.get("alt")) for tag, attrs in tags if tag == "img")


# The figures


def test_infinite_margins_are_drawn_at_the_end() -> None:
    records = [replace(record, clean_detection_margin=None) for record in DETECTED.records]
    assert png(margin_histograms(DETECTED.summary, records))
    assert png(roc_curves(DETECTED.summary, records))


def read_picture(content: bytes) -> Any:
    return matplotlib.image.imread(io.BytesIO(content), format="png")


def test_the_pictures_open_and_show_something(saved: Path) -> None:
    for name in ("accuracy", "curves", "examples"):
        shown = read_picture((saved / "figures" / f"{name}.png").read_bytes())
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
        assert ("Training of the defence" in (tmp_path / "report.html").read_text()) == bool(trainings)
        written = json.loads((tmp_path / "report.json").read_text())["run"]["trainings"]
        assert [training["losses"] for training in written] == [
            [list(pair) for pair in training.losses] for training in trainings
        ]
    assert describe_training(first) == (
        "3 epoch(s) on 898 images: clean; pgd; eps 0.1, attacks made in mode exact, seed 0; "
        "loss 1 pixels (l2), 0.5 class"
    )
    axes = losses(summary_of([(PGD, 3)], trainings=[first])).axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[2, 1, 0.5], [3, 2.5, 2.75]]


def test_a_tuned_defence_shows_its_trade_off_and_an_untuned_one_none(tmp_path: Path) -> None:
    tuning = Tuning("jump", 0.5, [(0.0, 0.98), (0.5, 0.97), (1.0, 0.6)])
    for tunings in ([tuning], []):
        report = Report(summary_of([(PAPER, 2), (PGD, 3)], tunings=tunings), [], [])
        report.save(tmp_path)
        assert (tmp_path / "figures/trade_off.png").exists() == bool(tunings)
        assert ("against the strength" in (tmp_path / "report.html").read_text()) == bool(tunings)
        written = json.loads((tmp_path / "report.json").read_text())["run"]["tunings"]
        assert [entry["chosen"] for entry in written] == [entry.chosen for entry in tunings]
    axes = trade_off(summary_of([(PGD, 3)], tunings=[tuning])).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(0, 98), (0.5, 97), (1, 60)])
    assert list(axes.lines[1].get_xdata()) == [0.5, 0.5]


def test_equal_figures_are_equal_files() -> None:
    summary = make_full_report().summary
    assert png(accuracy_curves(summary)) == png(accuracy_curves(summary))


def test_names_in_pictures_are_neither_formulas_nor_hidden() -> None:
    odd = make_spec(r"_$\frac$", modes="all", samples="all", bounded=False)
    summary = summary_of([(PAPER, 2), (odd, 3)], curve=True, model="$x_$")
    content = png(accuracy_curves(summary))  # an unfinished formula would raise here
    assert read_picture(content).std() > 0
    assert any(r"_$\frac$" in text.get_text() for text in accuracy_curves(summary).legends[0].get_texts())
    assert png(examples_figure([make_example(name=r"$\frac$")]))


def test_the_bars_stand_in_the_order_of_the_headlines() -> None:
    summary = make_full_report().summary
    axes = summary_bars(summary).axes[0]
    assert axes.yaxis_inverted()
    assert [
        patch.get_extents().transformed(axes.transData.inverted()).width for patch in axes.patches
    ] == pytest.approx([25, 90, 40, 100, 100])
    ends = np.asarray(axes.lines[0].get_xdata()).tolist()
    assert ends == pytest.approx([100 * end for end in Proportion(5, 20).interval])


@pytest.mark.parametrize(
    ("dataset", "before", "after"), [("cifar10", "bird", "horse"), ("digits", "2", "7"), (None, "2", "7")]
)
def test_classes_have_their_names_where_these_are_known(dataset: str | None, before: str, after: str) -> None:
    """The example is of class 2 and becomes 7."""
    run = make_run(options={} if dataset is None else {"dataset": dataset})
    example = make_example()
    (title, *_) = (axes.get_title() for axes in examples_figure([example], None, partial(class_name, run)).axes)
    assert title == f"#4: {before} → {after}\nPGD [exact]"
    summary = replace(make_full_report().summary, run=run)
    source = render_page(summary, [example], {"examples": b"png"})
    assert f"Image 4, class {before}, became {after} by PGD [exact]." in source


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (8, 8), (4, 10, 6)])
def test_examples_of_any_image_shape_are_drawn(shape: tuple[int, ...]) -> None:
    figure = examples_figure([make_example(shape)])
    assert read_picture(png(figure)).std() > 0.03
    difference = figure.axes[2]
    assert difference.get_xlabel() == "full scale: ±0.1"
    shown = np.asarray(difference.images[0].get_array(), dtype=np.float64)
    if len(shape) == 2 or shape[0] in (1, 3):  # else channels were averaged
        assert shown.min() == pytest.approx(0, abs=1e-5)
        assert shown.max() == pytest.approx(1, abs=1e-5)


def test_the_views_of_a_defence_are_drawn_below_the_images() -> None:
    example = make_example()
    views = {"heat": (example.clean, example.adversarial), "shown": (example.adversarial, example.clean)}
    figure = examples_figure([replace(example, views=views)])
    assert len(figure.axes) == 7
    labels = [" ".join(axes.get_ylabel().split()) for axes in figure.axes[3:]]
    assert labels == ["heat (clean)", "heat (adversarial)", "shown (clean)", "shown (adversarial)"]
    for axes, image in zip(figure.axes[3:], [*views["heat"], *views["shown"]], strict=True):
        assert np.allclose(np.asarray(axes.images[0].get_array()), image[0], atol=1e-6)


def test_an_unchanged_example_is_drawn_as_no_difference() -> None:
    example = make_example()
    figure = examples_figure([Example(0, 0, 1, "x", example.clean, example.clean)])
    assert np.asarray(figure.axes[2].images[0].get_array()) == pytest.approx(0.5)


def test_figures_without_content_are_not_drawn() -> None:
    summary = summary_of([(PGD, 3)])
    drawn = draw_figures(summary, [], [make_example((20,))])
    assert [name for name, content in drawn.items() if content] == ["accuracy"]
    detection = DETECTED.summary.detection
    assert detection is not None
    aimed = replace(detection, rows=[row for row in detection.rows if row.knows == "perfect"])
    assert roc_curves(replace(DETECTED.summary, detection=aimed), DETECTED.records) is None


# Files


def list_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


ALWAYS = {"report.json", "report.html", "figures/accuracy.png"}
SOMETIMES = {"figures/curves.png", "figures/examples.png", "examples.npz"}


def test_save_writes_present_files_and_removes_stale_ones(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    assert list_files(folder) == ALWAYS | SOMETIMES
    Report(summary_of([(PGD, 3)]), [], []).save(str(folder))
    assert list_files(folder) == ALWAYS


def test_the_examples_read_back_without_pickle(saved: Path) -> None:
    report = make_full_report()
    with np.load(saved / "examples.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"clean", "adversarial", "index", "label", "prediction", "attack"}
        assert arrays["clean"].shape == (2, 1, 8, 8)
        np.testing.assert_array_equal(arrays["adversarial"][1], report.examples[1].adversarial)
        assert [*arrays["attack"]] == ["PGD [exact]", "transfer"]
        assert (arrays["index"][0], arrays["label"][0], arrays["prediction"][0]) == (4, 2, 7)


@pytest.mark.usefixtures("without_pictures")
def test_a_crash_leaves_no_half_file(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    before = {name: (tmp_path / name).read_bytes() for name in list_files(tmp_path)}
    write = Path.write_bytes

    def full_disk(path: Path, content: bytes) -> int:
        write(path, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        Report(summary_of([(PGD, 3)]), [], []).save(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in list_files(tmp_path)} == before


def test_a_file_in_place_of_the_folder_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=r"folder is .*taken, which cannot be written"):
        make_full_report().save(tmp_path / "taken")
