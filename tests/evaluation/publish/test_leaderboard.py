"""Entries and their page: the figures of a run, and a refusal of anything else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.publish.leaderboard import FORMAT, Entry, leaderboard, save_leaderboard
from art_defenses_ext.evaluation.publish.picture import Point, accuracy_picture
from art_defenses_ext.evaluation.report.report import Report


@pytest.fixture
def report(finished_run: Any) -> Report:
    report: Report = finished_run.report
    return report


@pytest.fixture
def entry(report: Report) -> Entry:
    return Entry.of(report, "digits", command="art-defenses evaluate --dataset digits")


def test_an_entry_holds_the_figures_of_its_run(entry: Entry, report: Report) -> None:
    summary = report.summary
    assert summary.paper is not None
    assert entry.robust_acc == pytest.approx(100 * summary.worst_case.rate, abs=0.005)
    assert entry.paper_acc == pytest.approx(100 * summary.paper.rate, abs=0.005)
    assert entry.clean_acc == pytest.approx(100 * summary.clean.rate, abs=0.005)
    assert entry.robust_interval == pytest.approx([100 * end for end in summary.worst_case.interval], abs=0.005)
    assert entry.unreliable == (not summary.established)
    assert entry.failed_checks == summary.failed_checks
    assert entry.seconds == pytest.approx(summary.total.seconds / 23, abs=1e-4)
    assert (entry.dataset, entry.threat, entry.eps, entry.samples) == ("digits", "linf", 0.1, 23)
    assert "jump_relu (jump 1" in entry.name
    assert entry.pipeline_sha256 == summary.run.pipeline_sha256


def test_an_entry_survives_a_round_trip(entry: Entry, tmp_path: Path) -> None:
    entry.save(tmp_path / "deep" / "a.json")
    assert Entry.read(tmp_path / "deep" / "a.json") == entry
    assert {"clean_acc", "reported", "external", "unreliable"} <= set(
        json.loads((tmp_path / "deep" / "a.json").read_text())
    )


@pytest.mark.parametrize("bad", [{"reported": -1}, {"reported": 101.0}, {"external": float("nan")}])
def test_a_percentage_outside_0_to_100_is_refused(bad: dict[str, Any], report: Report) -> None:
    with pytest.raises(InputError, match="from 0 to 100 per cent"):
        Entry.of(report, "digits", **bad)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"checks": []}, "no checks were made"), ({"lacking": "the paper's attacks ran alone"}, "no adaptive attack ran")],
)
def test_a_run_without_a_robust_accuracy_makes_no_entry(change: dict[str, Any], words: str, report: Report) -> None:
    unknown = replace(report, summary=replace(report.summary, **change))
    with pytest.raises(InputError, match=f"report has no robust accuracy \\({words}.*was expected"):
        Entry.of(unknown, "digits")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other"}', json.dumps({"format": FORMAT, "name": 3})])
def test_a_malformed_entry_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json cannot be read .* expected") as caught:
        leaderboard(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_without_entries_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no entries"):
        leaderboard(tmp_path)


def test_the_page_ranks_by_the_lowest_known_accuracy_and_marks_bounds_and_pairs(entry: Entry, tmp_path: Path) -> None:
    established = replace(entry, unreliable=False, failed_checks=[])
    entries = {
        "low": replace(established, name="low", robust_acc=10.0),
        "shown": replace(established, name="shown", robust_acc=90.0, external=5.0, link="https://example.org"),
        "bound": replace(
            entry, name="bound", robust_acc=60.0, unreliable=True, failed_checks=["queries", "single step"]
        ),
        "pair": replace(established, name="pair", robust_acc=50.0, defences=entry.defences * 2),
        "mnist": replace(established, name="other data", dataset="mnist"),
    }
    for name, variant in entries.items():
        variant.save(tmp_path / variant.dataset / f"{name}.json")
    page = leaderboard(tmp_path)
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == ["## digits, linf, eps 0.1", "## mnist, linf, eps 0.1"]
    digits = page.split("## ")[1].splitlines()
    rows = [line for line in digits if line.startswith("|")][2:]
    assert ["bound" in rows[0], "pair: pair" in rows[1], "low" in rows[2], "shown" in rows[3]] == [True] * 4
    assert "at most **60.0**" in rows[0]
    assert "at most" not in rows[2]
    assert "[shown](https://example.org)" in rows[3]
    assert "elsewhere 5.0" in rows[3]
    assert page.count("art-defenses evaluate --dataset digits") == 5


def test_below_a_table_each_row_has_its_details_and_its_command(entry: Entry, tmp_path: Path) -> None:
    established = replace(
        entry, name="sound", unreliable=False, failed_checks=[], robust_acc=70.0, command="first; second"
    )
    bound = replace(entry, unreliable=True, failed_checks=["queries", "single step"], robust_acc=60.0)
    established.save(tmp_path / "digits" / "sound.json")
    bound.save(tmp_path / "digits" / "bound.json")
    _, _, first, first_command, second, second_command = leaderboard(tmp_path).split("\n## ")[1].split("\n\n")
    assert first.startswith("[sound](digits/sound.json): DigitsCNN; 3 attacks of its own, seed 0; checks passed; ")
    assert first_command == "```\nfirst\nsecond\n```"
    assert second.startswith("[bound](digits/bound.json): ")
    assert "checks failed queries, single step; " in second
    assert second_command == f"```\n{entry.command}\n```\n"


@pytest.mark.parametrize(("name", "head"), [("reported", "reported by the paper"), ("undefended_acc", "undefended")])
def test_a_figure_has_a_column_if_an_entry_has_it(entry: Entry, tmp_path: Path, name: str, head: str) -> None:
    replace(entry, undefended_acc=None).save(tmp_path / "a.json")
    assert f"| {head} |" not in leaderboard(tmp_path)
    replace(entry, **{"undefended_acc": None, name: 71.5}).save(tmp_path / "b.json")
    table = [line for line in leaderboard(tmp_path).splitlines() if line.startswith("|")]
    assert table[0].endswith(f"| {head} |")
    assert sorted(line.rsplit("|", 2)[1].strip() for line in table[2:]) == ["", "71.5"]


def test_the_picture_has_a_point_for_each_run_and_hollow_points_for_bounds() -> None:
    runs = [
        Point(("jump_relu",), clean=90.0, robust=40.0, interval=(30.0, 50.0), bound=False),
        Point((), clean=80.0, robust=20.0, interval=(10.0, 30.0), bound=True),
        Point(("jump_relu", "heat_and_blur"), clean=70.0, robust=10.0, interval=(5.0, 15.0), bound=False),
    ]
    figure = accuracy_picture({"digits, linf, eps 0.1": runs, "mnist": runs[:1]})
    digits, mnist = figure.axes
    points = [line for line in digits.lines if line.get_marker() != "None"]
    assert [tuple(line.get_xydata()[0]) for line in points] == [(90.0, 40.0), (80.0, 20.0), (70.0, 10.0)]
    assert [line.get_markerfacecolor() == "white" for line in points] == [False, True, False]
    assert len({line.get_color() for line in points}) == 3
    assert [90.0, 90.0] in [list(line.get_xdata()) for line in mnist.lines]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "undefended model", "jump relu", "several defences", "hollow: upper bound",
    ]  # fmt: skip


def test_the_page_lies_beside_its_picture(entry: Entry, tmp_path: Path) -> None:
    entry.save(tmp_path / "entries" / "a.json")
    save_leaderboard(tmp_path / "entries", tmp_path / "site" / "results.md")
    page = (tmp_path / "site" / "results.md").read_text()
    (picture,) = re.findall(r"!\[.*\]\((.*)\)", page)
    assert (tmp_path / "site" / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("page", ["entries/README.md", "site/deep/page.md", "page.md"])
def test_the_links_of_a_page_lead_to_its_entries(entry: Entry, tmp_path: Path, page: str) -> None:
    for name in ("a", "b c"):
        entry.save(tmp_path / "entries" / "digits" / f"{name}.json")
    save_leaderboard(tmp_path / "entries", tmp_path / page)
    text = (tmp_path / page).read_text()
    links = [unquote(link) for link in re.findall(r"\]\((.*\.json)\)", text)]
    assert {(tmp_path / page).parent.joinpath(link).resolve() for link in links} == {
        *(tmp_path / "entries" / "digits").iterdir()
    }
    assert ("the entries beside it," in text) == (text == leaderboard(tmp_path / "entries")) == ("README" in page)


def test_no_entry_is_lost_where_radii_are_printed_alike(entry: Entry, tmp_path: Path) -> None:
    for name, eps in {"a": 8 / 255, "b": 0.03137, "c": 0.0314}.items():
        replace(entry, name=f"model {name}", eps=eps).save(tmp_path / f"{name}.json")
    page = leaderboard(tmp_path)
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == ["## digits, linf, eps 0.03137", "## digits, linf, eps 0.0314"]
    assert [page.count(f"| model {name} |") for name in "abc"] == [1, 1, 1]


def test_the_command_of_an_entry_makes_the_whole_run(report: Report) -> None:
    run = replace(report.summary.run, command="art-defenses evaluate --shard 1/2", options={"dataset": "digits"})
    part = replace(report, summary=replace(report.summary, run=run))
    assert Entry.of(part, "digits").command == "art-defenses evaluate"
