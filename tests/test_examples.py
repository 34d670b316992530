"""The examples run as their docstrings say, and what they print holds."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import io
import logging
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from safetensors.torch import save_file

from art_defenses_ext import Linf, defend, evaluate
from art_defenses_ext.evaluation.checks.checks import CHECKS
from art_defenses_ext.evaluation.suite.suites import WHITE_BOX
from art_defenses_ext.zoo.datasets import Dataset

EXAMPLES = Path(__file__).parents[1] / "examples"
SHARED = {"restoration.py"}
"""What other examples import; it is no command."""
COMMANDS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name not in SHARED)

SHARE = r"(\d+\.\d) % \[\d+\.\d, \d+\.\d\]"
"""A rate with its interval, as printed."""


@contextlib.contextmanager
def as_in_a_process_of_its_own() -> Iterator[pytest.MonkeyPatch]:
    """What an example sets for its process, seeds, loggers and paths, is undone; importing torch anew takes longer."""
    level, state = logging.getLogger("art").level, np.random.get_state()  # noqa: NPY002 (ART draws from it)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.syspath_prepend(str(EXAMPLES))
        yield patch
    np.random.set_state(state)  # noqa: NPY002
    logging.getLogger("art").setLevel(level)


def run(example: str, *options: str) -> str:
    """What an example prints."""
    printed = io.StringIO()
    with as_in_a_process_of_its_own() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [example, *options])
        with contextlib.suppress(SystemExit):  # --help ends so
            runpy.run_path(str(EXAMPLES / example), run_name="__main__")
    return printed.getvalue()


def rows(text: str) -> list[dict[str, str]]:
    """The lines of the one table in ``text``, by heading."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    head, _, *body = lines
    return [dict(zip(head, cells, strict=True)) for cells in body]


def rate(text: str) -> float:
    """The first rate in ``text``, in percent."""
    match = re.search(SHARE, text)
    assert match, text
    return float(match[1])


def docstring(example: str) -> str:
    return ast.get_docstring(ast.parse((EXAMPLES / example).read_text())) or ""


# Every example


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """What each command says of its options."""
    return {name: run(name, "--help") for name in COMMANDS if takes_options(name)}


def takes_options(example: str) -> bool:
    return "--" in docstring(example)


@pytest.mark.parametrize("example", COMMANDS)
def test_the_commands_in_a_docstring_name_existing_options(example: str, helps: dict[str, str]) -> None:
    # A long command goes on in lines of further options.
    commands = re.findall(r"^ *(python .*(?:\n +[\[-].*)*)", docstring(example), re.MULTILINE)
    assert commands
    for command in commands:
        words = shlex.split(re.sub(r"[\[\]]", " ", command))
        assert words[1] == f"examples/{example}"
        for word in words[2:]:
            assert not word.startswith("--") or re.search(rf"{word}\b", helps[example]), (command, word)


@pytest.mark.parametrize("example", [name for name in COMMANDS if takes_options(name)])
def test_help_says_what_an_example_shows(example: str, helps: dict[str, str]) -> None:
    first = docstring(example).splitlines()[0]
    assert " ".join(first.split()) in " ".join(helps[example].split())


# One by one


def test_a_defence_of_ones_own_masks_its_gradient_from_naive_attacks_alone(
    digits: Dataset, digits_classifier: PyTorchClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "custom_defence"))
    grey_levels = importlib.import_module("grey_levels").GreyLevels
    defended = defend(digits_classifier, grey_levels.for_classifier(digits_classifier))
    x, y = digits.test.x[:30], digits.test.y[:30]
    naive, adaptive = (
        evaluate(
            defended,
            (x, y),
            Linf(0.1),
            [WHITE_BOX],
            adaptive=adaptive,
            curve_samples=0,
            check_samples=0,
            progress=False,
        )
        for adaptive in (False, True)
    )
    assert adaptive.accuracy_after_attacks < naive.accuracy_after_attacks - 0.2


def test_the_results_list_their_lines_and_print_their_commands(tmp_path: Path) -> None:
    names = run("results.py", "--list").split()
    assert len(names) == len(set(names))
    assert {"mnist/jump_relu", "digits/bare"} <= set(names)
    commands = run("results.py", "--dry", "--only", "mnist/feature_autoencoder", "--out", str(tmp_path))
    assert "--defence feature_autoencoder" in commands
    assert "python examples/restoration_mnist.py" in commands
    assert not any(tmp_path.iterdir())


def test_a_published_command_is_typed_here_with_this_machine_s_folders() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        here = runpy.run_path(str(EXAMPLES / "results.py"))["here"]
    folders = argparse.Namespace(data=Path("/a/OUT"), out=Path("/DIR/b"))
    typed = ["art-defenses", "evaluate", "--data", "DIR", "--fitted", "x=OUT/fit", "--out", "OUT/runs"]
    assert here(typed, folders)[3:] == [
        "evaluate",
        "--data",
        "/a/OUT",
        "--fitted",
        "x=/DIR/b/fit",
        "--out",
        "/DIR/b/runs",
    ]


@pytest.mark.usefixtures("few_digits", "short_suite")
def test_one_workflow_in_art_ends_in_one_table(tmp_path: Path) -> None:
    settings = ["--samples", "4", "--eps", "0.3", "--check-samples", "0", "--epochs", "9", "--hardening-epochs", "1"]
    table = rows(run("art_workflow.py", *settings, "--out", str(tmp_path)))
    assert [row["run"] for row in table] == [
        "undefended",
        "JumpReLU",
        "autoencoder",
        "autoencoder, adversarially trained",
        "ART's adversarial training",
    ]
    for row in table:
        assert rate(row["robust accuracy"]) <= rate(row["ART, all modes"]) <= rate(row["ART, exact gradient"])
        assert rate(row["ART, exact gradient"]) <= rate(row["clean"])
        assert (tmp_path / row["run"] / "report.html").is_file()
    first, *further_rows = table
    assert first["minus undefended"] == first["p"] == ""
    for row in further_rows:
        difference = float(row["minus undefended"].split()[0])
        assert difference == pytest.approx(rate(row["robust accuracy"]) - rate(first["robust accuracy"]), abs=0.05)
        assert 0 <= float(row["p"]) <= 1


def test_other_toolboxes_side_by_side(digits_classifier: PyTorchClassifier, tmp_path: Path) -> None:
    """In one test, since parallel runs would attack once a worker."""
    weights = tmp_path / "weights.safetensors"
    save_file(digits_classifier.model.state_dict(), weights)
    printed = run("other_toolboxes.py", "--samples", "40", "--steps", "10", "--weights", str(weights))
    find_more_under_another_gradient_mode(printed)
    for library in ("torchattacks", "foolbox"):
        is_compared_or_named_as_missing(printed, library)
    libraries_that_run_the_same_pgd_agree_on_every_image(printed)


def find_more_under_another_gradient_mode(toolboxes: str) -> None:
    table = rows(toolboxes)
    assert {"ART", "ours"} <= {row["library"] for row in table}
    for row in table:
        modes = [rate(row[mode]) for mode in ("exact", "relu", "smooth")]
        assert rate(row["all modes"]) <= min(modes)
    pgd = next(row for row in table if (row["attack"], row["library"]) == ("PGD", "ART"))
    assert rate(pgd["smooth"]) < rate(pgd["exact"])


def is_compared_or_named_as_missing(toolboxes: str, library: str) -> None:
    missing = f"{library} is missing and left out: pip install" in toolboxes
    assert missing != any(row["library"] == library for row in rows(toolboxes))


def libraries_that_run_the_same_pgd_agree_on_every_image(toolboxes: str) -> None:
    lines = [line for line in toolboxes.splitlines() if line.startswith("- PGD, ")]
    assert "- PGD, foolbox and ART: exact 0 of 40, relu 0 of 40, smooth 0 of 40" in lines


# The notebook


TOUR = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
SMALLER = {
    "imports": ("EPOCHS = 0.1, 50, 20, 15", "EPOCHS = 0.2, 12, 2, 2"),
    "evaluate": ('"APGD margin", "APGD annealed", "transfer PGD-40"', '"APGD margin, 30 steps", "transfer PGD-20"'),
    "restorer": ("nb_epochs=5", "nb_epochs=2"),
    "detector": ("transfer PGD-40", "transfer PGD-20"),
}
"""What makes the tour quick: a larger ball, fewer images and epochs, and a short suite."""


def run_tour(classifier: PyTorchClassifier) -> dict[str, str]:
    """What each cell prints, run from top to bottom on a trained network; a cell that fails raises."""
    outputs: dict[str, str] = {}
    namespace: dict[str, Any] = {"__name__": "tour"}
    matplotlib.use("Agg")
    with as_in_a_process_of_its_own() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")
        patch.chdir(EXAMPLES)
        patch.setattr("art_defenses_ext.zoo.classifiers.load_classifier", lambda data, progress: classifier)
        for cell in TOUR.cells:
            if cell.cell_type != "code":
                continue
            source = cell.source
            if cell.id in SMALLER:
                usual, smaller = SMALLER[cell.id]
                assert usual in source
                source = source.replace(usual, smaller)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(source, f"tour.ipynb, {cell.id}", "exec"), namespace)
            outputs[cell.id] = printed.getvalue() + "figure\n" * len(plt.get_fignums())
            plt.close("all")
    return outputs


def kept_outputs() -> dict[str, str]:
    """What each cell of the notebook shows, as it lies in the tree."""
    code = [cell for cell in TOUR.cells if cell.cell_type == "code"]
    return {cell.id: "".join(output.get("text", "figure\n") for output in cell.outputs) for cell in code}


def words_of(text: str) -> str:
    """Return a text with one space between words, and without its numbers, which differ between machines."""
    return re.sub(r"\d+(?:\.\d+)?", "#", " ".join(text.split()))


def test_the_tour_is_kept_with_its_outputs_and_nothing_else() -> None:
    nbformat.validate(TOUR)
    cells = [cell for cell in TOUR.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(not cell.metadata for cell in cells)
    assert {output.get("name", output.output_type) for cell in cells for output in cell.outputs} == {
        "stdout",
        "display_data",
    }
    assert [name for name, text in kept_outputs().items() if not text] == ["imports"]
    assert (EXAMPLES / "tour.ipynb").stat().st_size < 200_000
    links = re.findall(r"\]\(([^)]+)\)", "\n".join(cell.source for cell in TOUR.cells))
    assert links
    assert all((EXAMPLES / link).exists() for link in links)


def shows_what_is_kept(tour: dict[str, str]) -> None:
    """The words of every output; of the checks their names, since what they find depends on the images."""
    outputs = kept_outputs()
    names = [
        re.findall(r"^ *(?:passed|failed|not run) +(.+?):", text, re.MULTILINE)
        for text in (outputs.pop("checks"), tour["checks"])
    ]
    assert names[0] == names[1] != []
    assert {name: words_of(text) for name, text in outputs.items()} == {name: words_of(tour[name]) for name in outputs}


def shows_lower_accuracy_under_adaptive_attacks(tour: dict[str, str]) -> None:
    figures, _ = tour["evaluate"].split("\n\n")
    accuracies = dict(line.split(":", 1) for line in figures.splitlines())
    assert rate(accuracies["robust accuracy"]) < rate(accuracies["under the paper's attacks"])
    modes = {line.split(":")[0].strip(): rate(line) for line in tour["modes"].splitlines()}
    assert modes["smooth"] < modes["exact"]


def shows_the_checks_and_a_figure(tour: dict[str, str]) -> None:
    lines = tour["checks"].splitlines()
    assert len(lines) == len(CHECKS) + 1
    assert all(line.split()[0] in ("passed", "failed", "not") for line in lines[:-1])
    assert lines[-1] == "established: True"
    assert tour["heat"].count("figure") == 1


def shows_a_restorer_that_learns(tour: dict[str, str]) -> None:
    before, after = tour["restorer"].splitlines()
    for line in (before, after):
        assert rate(line.split("all attacks")[1]) <= rate(line.split("paper's attacks")[1])
    assert rate(after.split("all attacks")[1]) >= rate(before.split("all attacks")[1])


def shows_adaptive_attacks_on_the_detector(tour: dict[str, str]) -> None:
    lines = {line.split(":")[0].strip(): line for line in tour["detector"].splitlines()}
    flagged = {name: rate(line.split("flagged")[1]) for name, line in lines.items() if "PGD" in name}
    zero_knowledge = flagged.pop("transfer PGD-20")
    assert len(flagged) == 2
    assert max(flagged.values()) < zero_knowledge / 2


@pytest.mark.usefixtures("short_suite")
def test_the_tour_runs_and_shows_what_it_says(own_classifier: PyTorchClassifier) -> None:
    """In one test, since parallel runs would run the notebook once a worker."""
    tour = run_tour(own_classifier)
    shows_what_is_kept(tour)
    shows_lower_accuracy_under_adaptive_attacks(tour)
    shows_the_checks_and_a_figure(tour)
    shows_a_restorer_that_learns(tour)
    shows_adaptive_attacks_on_the_detector(tour)
