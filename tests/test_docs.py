"""The documentation does what it says: its code runs, its commands parse, its papers are listed.

Each page, and each module whose docstrings hold examples, is one test. Its blocks run from top to bottom in one
namespace, in an empty folder. What a page speaks of without making it (`classifier`, `x_test`) comes from `names`. A
block marked `text` holds what the Python block before it prints: words must be the same, numbers near. A function
`test_...` in a page is run as pytest would run it. A block before figures in per cent runs all attacks of its suite,
any other a short suite; the checks' own attacks are short in both, but in the README. A comment such as
`<!-- skip: next if(missing("foolbox")) -->` leaves a block out where what it needs is not installed.
"""

from __future__ import annotations

import inspect
import io
import re
import runpy
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from fractions import Fraction
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from sybil import Document, Example, Sybil
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser
from torch.utils.data import DataLoader, TensorDataset

import art_defenses_ext
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.base.declared import declared_of
from art_defenses_ext.base.pages import page_names
from art_defenses_ext.cli.app import app
from art_defenses_ext.cli.defences import check_defences, options_of
from art_defenses_ext.cli.evaluate import EvaluateOptions
from art_defenses_ext.defence.registry import installed
from art_defenses_ext.estimator.defend import as_module
from art_defenses_ext.evaluation.config import SETS
from art_defenses_ext.evaluation.publish.leaderboard import Entry, leaderboard
from art_defenses_ext.evaluation.run import block
from art_defenses_ext.evaluation.suite import plan, suites
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.zoo.catalogue import MODELS
from art_defenses_ext.zoo.datasets import DATASETS, Dataset, load_dataset

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = sorted((ROOT / "art_defenses_ext").rglob("*.py"))
RESULTS = ROOT / "docs" / "results"
BIBLIOGRAPHY = ROOT / "docs" / "bibliography.md"
TRAINING = ("docs/restoration.md", "docs/methods/feature_autoencoder.md", "docs/methods/two_stream_restoration.md")
"""Pages that train for epochs, on few images."""
FLAGS = ELLIPSIS | NORMALIZE_WHITESPACE
NUMBER = re.compile(r"\d+(?:\.\d+)?")
NEAR = 0.3  # of the larger one


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# Code


@pytest.fixture
def names(digits: Dataset, own_classifier: PyTorchClassifier) -> dict[str, Any]:
    """What pages and docstrings may speak of: a trained digits classifier and a few images."""
    test = digits.test
    logits = own_classifier.predict(test.x)
    ranked = np.sort(logits, axis=1)
    margins = np.where(logits.argmax(axis=1) == test.y, ranked[:, -1] - ranked[:, -2], np.inf)
    order = np.argsort(margins)[: np.isfinite(margins).sum()]  # classified correctly, the nearest to a boundary first
    weak, sure = order[:4], order[-8:]  # soon broken, so that a page takes seconds; not broken by what pages allow
    return {
        "__name__": "documentation",
        "classifier": own_classifier,
        "model": own_classifier.model,
        "mean": MODELS["digits_cnn"].mean,
        "std": MODELS["digits_cnn"].std,
        "loader": DataLoader(TensorDataset(torch.tensor(test.x[weak[:2]]), torch.tensor(test.y[weak[:2]]))),
        "my_network": lambda: as_module(own_classifier),
        "low": 0.0,
        "high": 1.0,
        "x_train": np.tile(digits.train.x, (2, 1, 1, 1)),  # each class has enough for a detector's threshold
        "y_train": np.tile(digits.train.y, 2),
        "x_validation": digits.validation.x,
        "y_validation": digits.validation.y,
        "x_test": test.x[weak],
        "y_test": test.y[weak],
        "x": test.x[sure],
        "y": test.y[sure],
        "missing": lambda package: find_spec(package) is None,
    }


@contextmanager
def short_checks() -> Iterator[None]:
    """Within it the checks' own attacks are short: they say whether a figure is established, and change no figure."""
    effort = replace(plan.EFFORT, build=lambda c, t, seed: AutoPGD(c, t.norm, t.eps, max_iter=100, seed=seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "EFFORT", effort)
        patch.setattr(block, "BINARIZED", 3)
        yield


def shorter(spec: AttackSpec) -> AttackSpec:
    """An attack on a detector, with a tenth of its steps."""

    def build(*arguments: Any) -> Any:
        attack = spec.build(*arguments)
        attack.set_params(max_iter=attack.max_iter // 10)
        return attack

    return replace(spec, build=build)


class Runner:
    """Runs a page's blocks."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.request = request
        self.shortened_suite = request.getfixturevalue("shortened_suite")
        self.printed = ""
        self.tested: set[str] = set()
        self.sybil = Sybil(
            [
                PythonCodeBlockParser(doctest_optionflags=FLAGS),
                CodeBlockParser("text", self.compare),
                SkipParser(),
            ]
        )

    def run(self, document: Document) -> list[str]:
        """Run all blocks; the reasons of those that were left out."""
        skipped = []
        whole = nullcontext if Path(document.path) == ROOT / "README.md" else short_checks
        examples = list(document)
        for example, after in zip_longest(examples, examples[1:]):
            prints_figures = after is not None and "%" in str(after.parsed)
            try:
                surroundings = whole if prints_figures else self.shortened
                with surroundings(), redirect_stdout(io.StringIO()) as out:
                    example.evaluate()
                    self.run_tests(document.namespace)
                self.printed = out.getvalue()
            except SkipTest as reason:
                skipped.append(str(reason))
        return skipped

    @contextmanager
    def shortened(self) -> Iterator[None]:
        """Within it all suites are short, with the attacks on detectors."""
        with self.shortened_suite(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(suites, "DETECTOR_SUITE", tuple(map(shorter, suites.DETECTOR_SUITE)))
            yield

    def run_tests(self, namespace: dict[str, Any]) -> None:
        """Run the tests that a page has defined, with pytest's own fixtures."""
        for name in [name for name in namespace if name.startswith("test_") and name not in self.tested]:
            self.tested.add(name)
            wanted = inspect.signature(namespace[name]).parameters
            namespace[name](**{fixture: self.request.getfixturevalue(fixture) for fixture in wanted})

    def compare(self, example: Example) -> str | None:
        """A page shows what is printed: the same words; numbers differ a little between machines."""
        shown, printed = (text.split() for text in (example.parsed, self.printed))
        if [NUMBER.sub("#", word) for word in shown] != [NUMBER.sub("#", word) for word in printed]:
            return f"it prints:\n{self.printed}"
        pairs = zip(NUMBER.findall(example.parsed), NUMBER.findall(self.printed), strict=True)
        far = [(a, b) for a, b in pairs if abs(float(a) - float(b)) > NEAR * max(float(a), float(b))]
        return f"{far} (shown, printed) are too far apart; it prints:\n{self.printed}" if far else None


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages write files, and print as wide as a terminal is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text()], ids=short)
def test_the_code_of_a_page_runs(page: Path, request: pytest.FixtureRequest, names: dict[str, Any]) -> None:
    runner = Runner(request)
    document = runner.sybil.parse(page)
    document.namespace.update(names)
    document.namespace.update({name: names[name][:3] for name in ("x", "y", "x_test", "y_test")})
    if short(page) in TRAINING:
        document.namespace.update(x_train=names["x_train"][:200], y_train=names["y_train"][:200])
    skipped = runner.run(document)
    if skipped:
        pytest.skip(f"all but {len(skipped)} blocks ran: {'; '.join(skipped)}")


@pytest.mark.usefixtures("short_suite", "without_pictures")
@pytest.mark.parametrize("source", [source for source in SOURCES if ">>> " in source.read_text()], ids=short)
def test_the_examples_in_docstrings_run(source: Path, names: dict[str, Any]) -> None:
    document = Sybil([DocTestParser(FLAGS)]).parse(source)
    document.namespace.update(names)
    for example in document:
        example.evaluate()


@pytest.mark.parametrize("name", art_defenses_ext.__all__)
def test_what_users_import_has_an_example(name: str) -> None:
    assert ">>> " in (getattr(art_defenses_ext, name).__doc__ or "")


# What follows from declarations

GENERATED = runpy.run_path(str(ROOT / "docs" / "generated.py"))


@pytest.mark.parametrize("name", GENERATED["PAGES"])
def test_a_generated_page_is_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == GENERATED["PAGES"][name](), "run: python docs/generated.py"


def test_the_generated_pages_name_every_command_and_option() -> None:
    commands_page, configuration = ((ROOT / "docs" / name).read_text() for name in GENERATED["PAGES"])
    for command in app.commands.values():
        section = commands_page.split(f"\n## {command.name}\n")[1].split("\n## ")[0]
        switches = {switch for parameter in command.params for switch in parameter.opts if switch.startswith("--")}
        assert [switch for switch in switches if switch not in section] == []
    assert [name for name in declared_of(EvaluateOptions) if f"\n| `{name}` | " not in configuration] == []


def test_the_index_for_language_models_has_a_line_for_every_page() -> None:
    text = GENERATED["llms_txt"]()
    assert set(re.findall(r"\(_sources/(.*?)\.md\.txt\)", text)) == set(page_names())
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    assert [line for line in lines if not re.fullmatch(r"- \[[^]]+\]\([^)]+\): \S.+", line)] == []
    assert text.startswith("# art-defenses-ext\n\n> Defences")


def test_the_figure_of_the_tour_is_the_notebook_s() -> None:
    assert GENERATED["FIGURE"].read_bytes() == GENERATED["figure_of_tour"]()


# Commands

COMMAND = re.compile(r"art-defenses |-m art_defenses_ext |python (?:examples|tests)/")


def commands(page: Path) -> Iterator[list[str]]:
    """Each command that a page shows, in a block or in a line, as words; ``...`` stands for what is left out."""
    text = page.read_text().replace("\\\n", " ").replace('"..."', "TEXT")
    block = re.compile(r"^```(\S*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    lines = [line for kind, found in block.findall(text) if kind in ("", "bash") for line in found.splitlines()]
    lines += [
        " ".join(found.split())
        for found in re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    ]
    for line in lines:
        if COMMAND.search(line):
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
            lexer.whitespace_split = True
            yield from split([word for word in lexer if word != "..."])


def split(words: list[str]) -> Iterator[list[str]]:
    """Commands with ``;`` or ``&&`` between, without the words of a loop of the shell."""
    words = [word for word in words if word not in ("for", "step", "in", "do", "break", "done")]
    ends = [place for place, word in enumerate(words) if set(word) <= set(";&|")]
    for start, end in zip([-1, *ends], [*ends, len(words)], strict=True):
        if end > start + 1:
            yield words[start + 1 : end]


SHOWN = [
    pytest.param(words, id=f"{short(page)}: {' '.join(words)}") for page in PAGES for words in commands(page) if words
]


@pytest.mark.parametrize("words", SHOWN)
def test_a_command_is_understood(words: list[str]) -> None:
    for start in ("art-defenses", "art_defenses_ext"):
        if start in words:
            check_command(words[words.index(start) + 1 :])
            return
    script = (ROOT / next(word for word in words if word.endswith(".py"))).read_text()
    shared = [ROOT / "examples" / f"{name}.py" for name in re.findall(r"^from (\w+) import", script, re.MULTILINE)]
    text = "".join([script, *(path.read_text() for path in shared if path.is_file())])
    assert [word for word in words if word.startswith("--") and f'"{word}"' not in text] == []


def check_command(words: list[str]) -> None:
    """Let the command's own parser read the words, and look at the names among their values."""
    known = app.commands
    if not words or (len(words) == 1 and words[0] in known):
        return  # a mention
    name, *arguments = words
    found = known[name].make_context(name, arguments).params
    if name == "evaluate":
        defences = check_defences(found["defence"])
        options_of(defences, found["options"])
        assert found["dataset"] in (*DATASETS, "NAME")
        assert found["attacks"] in SETS
        assert found["model"] is None or found["model"] in MODELS or ":" in found["model"]


def test_a_misspelt_option_is_not_understood() -> None:
    with pytest.raises(Exception, match="No such option"):
        check_command(["evaluate", "--defense", "jump_relu"])
    with pytest.raises(Exception, match="sigma_"):
        check_command(["evaluate", "--defence", "heat_and_blur", "-o", "sigma_=2"])


# Papers

PAPER = re.compile(r"(?:arXiv:|arxiv\.org/abs/)(\d{4}\.\d{4,5})|doi(?:\.org/|:)(10\.\d+/[\w.()-]*\w)")


def cited(path: Path) -> set[str]:
    return {arxiv or doi for arxiv, doi in PAPER.findall(path.read_text())}


def test_the_bibliography_lists_what_is_cited_and_where() -> None:
    listed = {}
    for row in BIBLIOGRAPHY.read_text().splitlines():
        if row.startswith("| ") and PAPER.search(row):
            _, paper, places, _ = row.split("|")
            (number,) = {arxiv or doi for arxiv, doi in PAPER.findall(paper)}
            listed[number] = set(re.findall(r"`([^`]+)`", places))
    modules = {
        source: ".".join(source.relative_to(ROOT / "art_defenses_ext").with_suffix("").parts) for source in SOURCES
    }
    used: dict[str, set[str]] = {}
    for path in [*SOURCES, *PAGES]:
        for number in cited(path) if path != BIBLIOGRAPHY else ():
            used.setdefault(number, set())
            if path in modules:
                used[number].add(modules[path])
    assert listed == used


# Results


def entries() -> list[tuple[str, Entry]]:
    return [(path.parent.name, Entry.read(path)) for path in sorted(RESULTS.rglob("*.json"))]


def test_the_page_of_results_is_made_of_its_entries() -> None:
    assert (RESULTS / "README.md").read_text() == leaderboard(RESULTS)


@pytest.mark.parametrize("dataset", ["digits", "mnist", "fashion_mnist"])
def test_every_defence_has_a_result_on_enough_images(dataset: str) -> None:
    at_least = min(1000, len(load_dataset("digits").test.x)) if dataset == "digits" else 1000
    alone = {
        entry.defences[0]["name"]
        for folder, entry in entries()
        if folder == dataset
        and len(entry.defences) == 1
        and entry.samples >= at_least
        and str(entry.attacks).startswith("standard")
    }
    assert alone == set(installed())


def test_a_result_is_of_its_folder_and_repeated_by_its_command() -> None:
    for folder, entry in entries():
        assert entry.dataset == folder
        last = shlex.split(entry.command.split("; ")[-1])
        assert last[:4] == ["art-defenses", "evaluate", "--dataset", folder]
        assert last[last.index("--samples") + 1] == str(entry.samples)
        assert float(Fraction(last[last.index("--eps") + 1])) == entry.eps
