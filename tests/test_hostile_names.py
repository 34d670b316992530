"""Names that others have chosen, through every output: nothing that a terminal, browser or spreadsheet would act on.

The judges are independent of the product: a parser of CommonMark, one of HTML, and a strict tokeniser of what a
terminal obeys.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from art.estimators.classification import PyTorchClassifier
from click.testing import CliRunner
from hypothesis import given, strategies as st
from markdown_it import MarkdownIt
from rich.console import Console
from torch import nn

from art_defenses_ext import AttackSpec, Linf, compare, evaluate
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.progress import progress_bar
from art_defenses_ext.base.text import code_block, for_markdown, for_terminal, is_web_address, markdown_link, shown
from art_defenses_ext.cli.app import app
from art_defenses_ext.evaluation import report as report_folder
from art_defenses_ext.evaluation.publish.compare import Compared, Comparison
from art_defenses_ext.evaluation.publish.leaderboard import Entry, leaderboard
from art_defenses_ext.evaluation.report.figures.drawn import draw_figures
from art_defenses_ext.evaluation.report.page import SCRIPT, render_page
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.report.terminal import render

HOSTILE = (
    "\x1b]0;owned\x07",
    "\x1b[2J\x1b[H",
    "\x9b31mC1\x85",
    "a\u202eb\u2066c\u200f",
    "a\rError: none\nb",
    "</td></table><script>alert(1)</script><img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](https://tracker.example/p.png)",
    "<javascript:alert(1)>",
    "```\n# not code\n<b>",
    "`code` *bold* _a_ ~~b~~ $x$",
    "a | b | c",
    "&#x1b;&lt;script&gt;",
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)",
    "\\",
    "[/bold][red]",
    "$\\frac{$ {{ 7*7 }} {% raw %}",
)

EVERYTHING = " ".join(HOSTILE)


def assert_harmless_in_a_terminal(text: str) -> None:
    """Line ends and printable characters alone; of the escape sequences only rich's own colours."""
    without_colours = re.sub(r"\x1b\[[0-9;]*m", "", text)
    for character in without_colours:
        assert character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"), repr(
            character
        )


class Page(HTMLParser):
    """What is active in a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_harmless_in_a_browser(page: str) -> Page:
    """No script, no handler, no foreign address, no link but to the web or to a file, no hidden character."""
    parser = Page()
    parser.feed(page)
    for tag, attributes in parser.tags:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base", "b"), tag
        assert not [name for name in attributes if name.startswith("on")], attributes
        for name in attributes.keys() & {"href", "src"}:
            address = attributes[name] or ""
            scheme = re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", address)
            assert scheme is None or scheme[0] in ("http:", "https:", "data:"), address
            assert name != "src" or address.startswith("data:image/png"), address
    assert_harmless_in_a_terminal(parser.text.replace("\xad", ""))
    return parser


def assert_harmless_in_markdown(text: str, links: int) -> list[list[str]]:
    """Rendered with HTML and tables switched on: nothing active, so many links; the cells of tables."""
    page = assert_harmless_in_a_browser(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))
    assert [tag for tag, _ in page.tags].count("a") == links
    assert not {tag for tag, _ in page.tags} & {"img", "s", "strong" if "**" not in text else "", "del"}
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    assert not [token for token in tokens if token.type == "html_block"]
    rows: list[list[str]] = []
    cell = False
    for token in tokens:
        cell = token.type in ("th_open", "td_open") or (cell and token.type == "inline")
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and cell:
            rows[-1].append("".join(child.content for child in token.children or ()))
    return rows


def as_written(text: str) -> str:
    """How a name is to be read: with escapes for what cannot be printed, as Python writes them."""
    return for_terminal(text)


# The functions


@given(st.text())
def test_what_is_cleaned_for_a_terminal_is_one_harmless_line(text: str) -> None:
    assert_harmless_in_a_terminal(for_terminal(text))
    assert "\n" not in for_terminal(text)
    assert for_terminal(for_terminal(text)) == for_terminal(text)


@given(st.text(alphabet=st.characters(categories=("L", "N", "P", "S")), min_size=1))
def test_what_can_be_printed_stays(text: str) -> None:
    assert for_terminal(text) == text


@given(st.text(min_size=1, alphabet=st.one_of(st.characters(), st.sampled_from("`*_[]()<>#|\\!~$&=+-@:/ \n"))))
def test_what_is_escaped_for_markdown_is_read_as_it_was_written(text: str) -> None:
    rows = assert_harmless_in_markdown(f"| name | other |\n| --- | --- |\n| {for_markdown(text)} | right |", 0)
    assert len(rows[1]) == 2
    assert rows[1][1] == "right"
    expected = as_written(text).strip()
    assert rows[1][0].strip().removeprefix("'").strip() == expected.removeprefix("'").strip()


@given(st.text(min_size=1))
def test_a_name_is_no_formula(text: str) -> None:
    assert not for_markdown(text).lstrip().startswith(("=", "+", "-", "@")) or text[0] == " "


@given(st.lists(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("`~\n"))), min_size=1))
def test_no_line_ends_a_block_of_code(lines: list[str]) -> None:
    tokens = MarkdownIt("commonmark").parse(code_block(lines) + "\n\nafter")
    assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
    assert_harmless_in_a_terminal(tokens[0].content)


@pytest.mark.parametrize(
    ("address", "is_one"),
    [
        ("https://arxiv.org/abs/1904.03750", True),
        ("http://example.org/a?b=c#d", True),
        ("javascript:alert(1)", False),
        ("JaVaScRiPt:alert(1)", False),
        ("data:text/html,<script>", False),
        ("file:///etc/passwd", False),
        ("//example.org", False),
        ("https:", False),
        ("https://a\nb", False),
        ("https://a b", False),
        ("https://[", False),
        ("", False),
    ],
)
def test_links_lead_to_the_web(address: str, is_one: bool) -> None:
    assert is_web_address(address) == is_one


@given(st.text(min_size=1), st.text(min_size=1, alphabet=st.one_of(st.characters(exclude_categories=["Cs"]))))
def test_a_link_is_one_link(text: str, target: str) -> None:
    assert_harmless_in_markdown(f"| a |\n| --- |\n| {markdown_link(text, target)} |", 1)


def test_values_in_messages_are_short_and_printable() -> None:
    assert all(
        shown(value).isprintable() and len(shown(value)) <= 200 for value in (*HOSTILE, EVERYTHING * 9, 10**5000)
    )


# The outputs


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of a small network, on which our own attack was checked."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    classifier = PyTorchClassifier(
        network, nn.CrossEntropyLoss(), (1, 4, 4), 3, clip_values=(0.0, 1.0), device_type="cpu"
    )
    x = np.random.default_rng(0).random((4, 1, 4, 4), dtype=np.float32)
    spec = AttackSpec("a", lambda c, t, seed: AutoPGD(c, t.norm, t.eps, max_iter=5, seed=seed), "b", kind="white-box")
    options: dict[str, Any] = {"check_samples": 2, "curve_samples": 2, "progress": False}
    return evaluate(classifier, (x, classifier.predict(x).argmax(axis=1)), Linf(0.3), [spec], **options)


@pytest.fixture(scope="module")
def hostile(report: Report) -> Report:
    """The same as another machine may have written it, with such a name wherever there is one."""
    summary = report.summary
    run = replace(
        summary.run, model=EVERYTHING, command=EVERYTHING, defences=[{"name": EVERYTHING, EVERYTHING: EVERYTHING}]
    )
    rows = [replace(row, key=f"{row.key} {EVERYTHING}") for row in summary.rows]
    examples = [replace(example, attack=EVERYTHING) for example in report.examples]
    return replace(report, summary=replace(summary, run=run, rows=rows), examples=examples)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_terminal(hostile: Report, width: int) -> None:
    console = Console(width=width, record=True, file=open_nowhere())
    console.print(render(hostile.summary))
    assert_harmless_in_a_terminal(console.export_text())


def open_nowhere() -> Any:
    import io

    return io.StringIO()


def test_the_page(hostile: Report) -> None:
    figures = draw_figures(hostile.summary, hostile.records, hostile.examples)
    source = render_page(hostile.summary, hostile.examples, figures)
    own_script = files(report_folder).joinpath(SCRIPT).read_text(encoding="utf-8")
    page = assert_harmless_in_a_browser(source.replace(f"<script>{own_script}</script>", "", 1))
    assert "<script>alert(1)</script>" in page.text  # as words


def test_comparisons(hostile: Report) -> None:
    runs = [Compared(EVERYTHING, hostile.summary, None), Compared("b", hostile.summary, None)]
    comparison = Comparison(runs)
    rows = assert_harmless_in_markdown(comparison.as_markdown(), 0)
    assert {len(row) for row in rows} == {len(rows[0])}
    console = Console(width=80, record=True, file=open_nowhere())
    comparison.print(console)
    assert_harmless_in_a_terminal(console.export_text())


def test_the_page_of_results(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    printed = 0
    for number, name in enumerate(HOSTILE):
        stem = re.sub(r"[/\0\ud800]", "", name)
        if not (name.isprintable() and name.strip()):
            with pytest.raises(InputError, match="a text of printable characters was expected"):
                entry(name)
            continue
        entry(name).save(folder / f"{number} {stem}.json")
        printed += 1
    assert printed > 2
    page = leaderboard(folder)
    own_picture = next(line for line in page.splitlines() if line.startswith("!["))
    rows = assert_harmless_in_markdown(page.replace(own_picture, "", 1), 2 * printed)
    assert {len(row) for row in rows} == {6}
    assert page.count("\n## ") == printed


def entry(name: str) -> Entry:
    """One that somebody else has sent."""
    plain: dict[str, Any] = dict.fromkeys(("clean_acc", "robust_acc", "eps", "forward", "backward", "seconds"), 50.0)
    plain |= dict.fromkeys(("reported", "paper_acc", "undefended_acc", "external"), None)
    plain |= dict.fromkeys(("data_sha256", "model_sha256", "pipeline_sha256"), "a")
    plain |= dict.fromkeys(("name", "dataset", "architecture", "threat", "device", "command", "attacks"), name)
    return Entry(
        **plain,
        format="art-defenses-ext entry 1",
        link="https://example.org/(a)",
        defences=[],
        robust_interval=(40.0, 60.0),
        unreliable=True,
        failed_checks=[name],
        samples=10,
        seed=0,
        threads=1,
        versions={},
    )


@pytest.mark.parametrize("link", ["javascript:alert(1)", "data:text/html,a", "https://a\x1b[2J", "ftp://a", ""])
def test_an_entry_with_another_link_is_refused(link: str, tmp_path: Path) -> None:
    entry("a").save(tmp_path / "a.json")
    sent = json.loads((tmp_path / "a.json").read_text()) | {"link": link}
    (tmp_path / "a.json").write_text(json.dumps(sent))
    with pytest.raises(InputError, match=r"link: an address that begins with http:// or https://.* was expected"):
        leaderboard(tmp_path)


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "\x9b", "a\u202e", "", " ", None, 3])
def test_an_attack_has_a_name_that_can_be_printed(name: Any) -> None:
    with pytest.raises(InputError, match=r"name is .*; a text of printable characters was expected"):
        AttackSpec(name, lambda *_: None, "a")  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("name", HOSTILE)
def test_errors_and_lines_of_progress(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError) as error:
        compare([name, name])
    assert str(error.value).isprintable()
    with progress_bar() as bar:
        bar.update(bar.add_task(name, total=1, note=name), advance=1)
    assert_harmless_in_a_terminal(capsys.readouterr().err)


@pytest.mark.parametrize("name", [name for name in HOSTILE if "/" not in name])
def test_what_the_command_says_of_a_folder(name: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["compare", str(tmp_path / name), str(tmp_path / name)])
    assert isinstance(result.exception, InputError)
    assert str(result.exception).isprintable()
