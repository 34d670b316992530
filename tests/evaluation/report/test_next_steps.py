"""A report explains its checks by the documentation's own paragraphs, and names commands that there are."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click
import pytest

import art_defenses_ext
from art_defenses_ext.base.pages import read_page
from art_defenses_ext.cli.app import app
from art_defenses_ext.evaluation.checks.checks import CHECKS, ELSEWHERE, Check
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.report.explained import advice, explained
from art_defenses_ext.evaluation.report.next_steps import next_steps
from art_defenses_ext.evaluation.report.sections import Prose, Terms
from art_defenses_ext.evaluation.results.summary import Summary
from art_defenses_ext.evaluation.run.describe import command_of_process, command_of_whole

from ...conftest import FinishedRun

TYPED = "art-defenses evaluate --defence jump_relu --samples 60 --out run"


def texts_of(parts: Sequence[Prose | Terms]) -> Iterator[str]:
    for part in parts:
        yield from [part.text] if isinstance(part, Prose) else (text for pair in part.meanings for text in pair)


@pytest.mark.parametrize("section", [*(Check(name, "passed", "").section for name in [*CHECKS, ELSEWHERE])])
def test_a_check_is_explained_by_its_paragraph_word_for_word(section: str) -> None:
    folded = explained(section, "a line")
    assert folded is not None
    assert (folded.title, folded.command) == ("a line", f"art-defenses docs {section}")
    _heading, text = read_page(section).split("\n", 1)
    linked = re.sub(r"\[([^\]]*)\]\((\S+)\.md(\S*)\)", r"\1 art-defenses docs \2\3", text)
    shown = " ".join(texts_of(folded.parts))
    assert re.findall(r"\w+", shown) == re.findall(r"\w+", linked)
    assert "*" not in shown
    assert "](" not in shown
    names = {term for part in folded.parts if isinstance(part, Terms) for term, _ in part.meanings}
    assert names >= {"Fails if", "Why it matters", "What to do"}


def test_tables_of_the_documentation_are_terms() -> None:
    folded = explained("evaluation#gradient-modes", "")
    assert folded is not None
    (modes,) = (part.meanings for part in folded.parts if isinstance(part, Terms))
    assert modes[0] == ("`exact`", "autograd through everything; always the first")


def test_paragraphs_that_the_documentation_lacks_are_left_out() -> None:
    assert explained("checks#astrology", "") is None
    assert (advice("checks#astrology", "What to do"), advice("checks#noise", "What for")) == ("", "")


def with_settings(summary: Summary, **changes: object) -> Summary:
    return replace(summary, run=replace(summary.run, settings=replace(summary.run.settings, **changes)))


def with_command(summary: Summary) -> Summary:
    options = {"dataset": "digits"}
    return replace(summary, run=replace(summary.run, command=TYPED, options=options, undefended_sha256="0" * 64))


@pytest.fixture(scope="module")
def summary(finished_run: FinishedRun) -> Summary:
    """The summary of an adaptive suite that passed its checks on 1,000 images: nothing is left to establish."""
    summary, passed = finished_run.report.summary, [Check("more effort", "passed", "")]
    summary = replace(summary, checks=passed, worst_case=Proportion(500, 1000), lacking="")
    return with_settings(summary, attacks="standard")


STEPS = {
    "established": ({}, [], ["--attacks full --out NEW", "add RUN", "rerun RUN", "entry RUN --dataset digits"]),
    "few images": ({"worst_case": Proportion(20, 40)}, ["interval is 30 points wide"], ["--samples 400 --out NEW"]),
    "papers only": ({"lacking": "the paper's attacks ran alone"}, ["gradient mode"], ["--attacks standard --out NEW"]),
    "no checks": ({"checks": []}, ["must pass"], ["--check-samples 100 --out NEW"]),
    "not converged": (
        {"checks": [Check("more effort", "failed", "")]},
        ["images that are left"],
        ["--out run --effort auto", "docs checks#until-it-is-established"],
    ),
    "failed": ({"checks": [Check("noise", "failed", "")]}, ["labels, clip range, eps"], ["docs checks#noise"]),
    "no undefended": ({"against_undefended": None}, ["same suite"], ["--undefended same --out NEW"]),
}


@pytest.mark.parametrize("case", STEPS)
def test_the_next_steps_follow_from_the_result(case: str, summary: Summary) -> None:
    changes, sentences, commands = STEPS[case]
    steps = " ".join(meaning for _, meaning in next_steps(replace(with_command(summary), **changes)).meanings)
    shown = re.findall(r"`(art-defenses [^`]*)`", steps)
    assert all(any(command in line for line in shown) for command in commands), steps
    assert all(sentence in steps.replace("\N{NO-BREAK SPACE}", " ") for sentence in sentences), steps
    assert ("entry RUN" in steps) == ("established" in case or case in ("few images", "no undefended"))
    for line in shown:
        assert_is_a_command(line)


def assert_is_a_command(line: str) -> None:
    """Assert that a line has the options and arguments of a command, and that the page it shows exists."""
    _, name, *arguments = shlex.split(line)
    command = app.commands[name]
    context = command.make_context(name, arguments, resilient_parsing=False)
    assert isinstance(context, click.Context)
    if name == "docs":
        assert read_page(context.params["name"])


@pytest.mark.parametrize(("suite", "longer"), [("fast", "standard"), ("standard", "full"), ("full", None)])
def test_a_suite_is_followed_by_the_next_longer_one(suite: str, longer: str | None, summary: Summary) -> None:
    steps = " ".join(meaning for _, meaning in next_steps(with_command(with_settings(summary, attacks=suite))).meanings)
    assert re.findall(r"--attacks (\w+) --out NEW", steps) == ([longer] if longer else [])


@pytest.mark.parametrize("suffix", ["; rm -r run", "$(rm -r run)", "&& rm run", "| rm", "> run", "'"])
def test_a_command_from_elsewhere_cannot_add_another(suffix: str, summary: Summary) -> None:
    run = replace(with_command(summary).run, command=f"{TYPED} {suffix}")
    steps = " ".join(meaning for _, meaning in next_steps(replace(summary, run=run)).meanings)
    for line in re.findall(r"`(art-defenses evaluate .*?)`", steps):
        assert not {*shlex.shlex(line, punctuation_chars=True)} & {";", "&&", "|", ">", "$"}, line
    assert ("`art-defenses evaluate" in steps) == (suffix != "'")


def test_a_changed_option_appears_once(summary: Summary) -> None:
    command = "art-defenses evaluate --defence jump_relu"
    few_images = with_command(replace(summary, worst_case=Proportion(20, 40)))
    run = replace(few_images.run, command=f"{command} --overwrite --samples=40 --out run --attacks standard")
    steps = " ".join(meaning for _, meaning in next_steps(replace(few_images, run=run)).meanings)
    assert f"`{command} --attacks standard --samples 400 --out NEW`" in steps
    assert f"`{command} --samples=40 --attacks full --out NEW`" in steps


def test_without_a_command_the_steps_are_calls(summary: Summary) -> None:
    steps = " ".join(meaning for _, meaning in next_steps(replace(summary, worst_case=Proportion(20, 40))).meanings)
    assert "`evaluate(..., samples=400)`" in steps
    assert "`evaluate(..., attacks='full')`" in steps
    assert "art-defenses evaluate" not in steps


def test_the_next_step_of_a_naive_run_leaves_out_its_option(summary: Summary) -> None:
    naive = with_settings(replace(summary, lacking="the attacker was given the exact gradient alone"), adaptive=False)
    assert "without `adaptive=False`" in str(next_steps(naive))
    assert "without `--naive`" in str(next_steps(with_command(naive)))
    assert "entry" not in str(next_steps(with_command(naive)))


@pytest.mark.parametrize("count", [0, 3, 20, 37, 40])
def test_the_advised_number_of_images_gives_a_narrow_interval(count: int, summary: Summary) -> None:
    few = Proportion(count, 40)
    steps = " ".join(meaning for _, meaning in next_steps(with_command(replace(summary, worst_case=few))).meanings)
    advised = re.search(r"--samples (\d+) --out NEW", steps)
    assert (advised is None) == (few.interval[1] - few.interval[0] <= 0.1)
    if advised:
        total = int(advised[1])
        low, high = Proportion(round(few.rate * total), total).interval
        assert high - low <= 0.1


@pytest.mark.parametrize("shard", ["--shard 2/3", "--shard=2/3"])
@pytest.mark.parametrize("program", ["art-defenses", "__main__.py"])
def test_the_command_of_a_merged_run_makes_the_whole(program: str, shard: str, summary: Summary) -> None:
    run = replace(with_command(summary).run, command=f"{program} evaluate {shard} --defence jump_relu --out run")
    steps = str(next_steps(replace(summary, run=run)))
    assert "`art-defenses evaluate --defence jump_relu --attacks full --out NEW`" in steps
    assert command_of_whole(run) == "art-defenses evaluate --defence jump_relu --out run"


@pytest.mark.parametrize("command", [TYPED, "prepare '; art-defenses evaluate --shard 1/2", "run.py --shard 1/2"])
def test_any_other_command_stays_as_it_was_recorded(command: str, summary: Summary) -> None:
    assert command_of_whole(replace(with_command(summary).run, command=command)) == command
    in_python = replace(summary.run, command="art-defenses evaluate --shard 1/2", options={})
    assert command_of_whole(in_python) == in_python.command


@pytest.mark.parametrize(
    ("program", "recorded"),
    [
        (Path(art_defenses_ext.__file__).with_name("__main__.py"), "art-defenses evaluate"),
        ("/bin/art-defenses", "art-defenses evaluate"),
        ("own/__main__.py", "__main__.py evaluate"),
    ],
)
def test_a_command_is_recorded_as_it_can_be_typed_again(
    program: str, recorded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(program), "evaluate"])
    assert command_of_process() == recorded
