"""A sweep: its matrix, what is skipped, and the page that is the same however often it was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from art.estimators.classification import PyTorchClassifier
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.cli import sweep
from art_defenses_ext.cli.app import app
from art_defenses_ext.cli.evaluate import EvaluateOptions
from art_defenses_ext.cli.sweep import Sweep
from art_defenses_ext.evaluation import evaluate as evaluation
from art_defenses_ext.evaluation.checks.checks import Check
from art_defenses_ext.evaluation.report.report import Report

from .conftest import FinishedRun

ATTACKS = 'attacks = "papers"\nsamples = 2\nthreads = 1\ncurve_samples = 0\ncheck_samples = 0\nout = "runs"\n'

MATRIX = """
[matrix]
defence = [{ name = "bare", defence = "none", attacks = "standard" }, { defence = "jump_relu", options = "jump=1" }]
threat = [{ norm = "linf", eps = "8/255" }, { norm = "l2", eps = 0.5 }]
seed = [0, 1]
"""


def write_sweep(folder: Path, text: str) -> Path:
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


def test_each_cell_of_the_matrix_is_a_run_with_the_options_of_its_row_and_column(tmp_path: Path) -> None:
    matrix = Sweep.read(write_sweep(tmp_path, ATTACKS + MATRIX))
    defences = {"bare": (("none",), (), "standard"), "jump_relu-jump=1": (("jump_relu",), ("jump=1",), "papers")}
    threats = {"linf-8-255": ("linf", "8/255"), "l2-0.5": ("l2", "0.5")}
    expected = {
        f"defence={defence},threat={threat},seed={seed}": (*defences[defence], *threats[threat], seed)
        for defence in defences
        for threat in threats
        for seed in (0, 1)
    }
    actual = {
        name: (run.defence, run.options, run.attacks, run.norm, run.eps, run.seed) for name, run in matrix.runs.items()
    }
    assert actual == expected
    assert list(actual) == list(expected)
    assert all((run.samples, run.out) == (2, Path("runs") / name) for name, run in matrix.runs.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out = [", "sweep is '.*', which is not TOML"),
        (ATTACKS, "matrix is missing"),
        ("[matrix]\nseed = [1]", "out is missing"),
        (f"{ATTACKS}[matrix]\nseed = 1", r"matrix seed is 1; a list"),
        (f"{ATTACKS}[matrix]\nseed = []", r"matrix seed is \[\]; a list"),
        (f"{ATTACKS}[matrix]\nseed = [1, 1]", "the run 'seed=1' twice"),
        (f"{ATTACKS}[matrix]\nseed = [1, 'a']", "run seed=a: seed is 'a'; a whole number"),
        (f"{ATTACKS}[matrix]\ncolour = [1]", "run colour=1: colour is no option"),
        (f"{ATTACKS}processes = 2\n[matrix]\nseed = [1]", "run seed=1: processes is an option of a single run"),
        (f"{ATTACKS}shard = '1/2'\n[matrix]\nseed = [1]", "run seed=1: shard is an option of a single run"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused_in_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sweep.read(write_sweep(tmp_path, text))


@pytest.fixture
def runner(command_folder: Path) -> Any:
    """Runs ``sweep``."""

    def run(text: str, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["sweep", str(write_sweep(command_folder, text)), *arguments])

    return run


def breaking_off(attack: Any, run: str) -> Any:
    """What a sweep does of a run, but that one run breaks off."""

    def attacking(name: str, options: EvaluateOptions) -> None:
        if name == run:
            raise InputError("the machine is out of memory")
        attack(name, options)

    return attacking


def test_what_is_finished_is_skipped_and_what_broke_off_is_named(
    runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ATTACKS.replace("samples = 2", "samples = 1", 1) + 'weights = "weights.safetensors"\n[matrix]\n'
    text += 'options = ["jump=1", "jump=0.5"]\n'
    (tmp_path / "runs").mkdir()
    in_the_way = tmp_path / "runs" / "options=jump=0.5"
    assert runner(text, "--print").stdout == "options=jump=1: to do\noptions=jump=0.5: to do\n"
    in_the_way.write_text("a file")
    refusal = runner(text)
    assert "run options=jump=0.5: out is" in str(refusal.exception)
    assert not (tmp_path / "runs" / "options=jump=1").exists()
    in_the_way.unlink()
    with monkeypatch.context() as broken:
        broken.setattr(sweep, "_attack", breaking_off(sweep._attack, "options=jump=1"))
        refusal = runner(text)
    assert str(refusal.exception).endswith("of which options=jump=1 failed; the same command tries again")
    assert runner(text, "--print").stdout == "options=jump=1: to do\noptions=jump=0.5: finished\n"
    result = runner(text)
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()[:2]
    assert first.startswith("options=jump=1: accuracy under the paper's attacks")
    assert second == "options=jump=0.5: already finished"
    page = json.loads((tmp_path / "runs" / "comparison" / "compare.json").read_text())
    assert [run["name"] for run in page["runs"]] == ["options=jump=1", "options=jump=0.5"]
    records = [Report.load(tmp_path / "runs" / run["name"]).records for run in page["runs"]]
    assert [run["after_attacks"]["rate"] for run in page["runs"]] == [float(run[0].robust()) for run in records]
    assert runner(text, "--print").stdout == "options=jump=1: finished\noptions=jump=0.5: finished\n"
    assert runner(text).stdout.startswith("options=jump=1: already finished\noptions=jump=0.5: already finished\n")
    assert "holds another run: eps '0.1', not '0.2'" in str(runner(f"eps = 0.2\n{text}").exception)


def test_the_line_of_a_run_that_is_not_established_is_a_bound(
    finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = finished_run.report
    summary = replace(report.summary, lacking="", checks=[Check("transfer", "failed", "")])
    prepared = SimpleNamespace(of=lambda *_: SimpleNamespace(call=(), arguments={}))
    monkeypatch.setattr(sweep, "Prepared", prepared)
    monkeypatch.setattr(evaluation, "evaluate", lambda **_: replace(report, summary=summary))
    sweep._attack("a", EvaluateOptions.of({}))
    assert capsys.readouterr().out == f"a: robust accuracy at most {summary.worst_case} (not established)\n"


KILLED = '''
import os, signal, sys
from art_defenses_ext.cli.app import main
from art_defenses_ext.evaluation.run.block import Work
from art_defenses_ext.evaluation.report.report import Report
import art_defenses_ext.evaluation.evaluate, art_defenses_ext.evaluation.publish.compare
import art_defenses_ext.evaluation.publish.picture
import art_defenses_ext.evaluation.report.figures.drawn as drawn
import art_defenses_ext.transformer.jump_relu
import art_defenses_ext.zoo.classifiers
import sklearn.datasets
import torch._dynamo  # which an optimiser imports

drawn.draw_figures = lambda *_: {}

def killing(owner, name, after):
    """The process is killed at the call of a method after so many."""
    method, calls = getattr(owner, name), []
    def call(*arguments, **options):
        calls.append(name)
        if len(calls) > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*arguments, **options)
    setattr(owner, name, call)

def swept(folder, *kill):
    """How a sweep in a process of its own ended."""
    pid = os.fork()
    if not pid:
        os.chdir(folder)
        if kill:
            killing(*kill)
        sys.argv = ["art-defenses", "sweep", "sweep.toml"]
        main()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

for folder, kills in (("undisturbed", ()), ("killed", ((Work, "_attack", 3), (Report, "save", 0)))):
    os.makedirs(folder)
    with open(os.path.join(folder, "sweep.toml"), "w") as file:
        file.write(sys.argv[1])
    for kill in kills:
        assert swept(folder, *kill) == -signal.SIGKILL
    assert swept(folder) == 0
'''


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed processes are forks of one that has loaded everything")
def test_a_sweep_killed_twice_ends_with_the_same_page(digits_classifier: PyTorchClassifier, tmp_path: Path) -> None:
    """In the midst of a run, and where a run is done and its report is not."""
    save_file(digits_classifier.model.state_dict(), tmp_path / "weights.safetensors")
    text = f'{ATTACKS}weights = "../weights.safetensors"\n[matrix]\noptions = ["jump=1", "jump=0.5"]\n'
    command = [sys.executable, "-c", KILLED, text]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    pages = [tmp_path / folder / "runs" for folder in ("undisturbed", "killed")]
    files = [sorted(path.relative_to(page) for path in page.rglob("*") if path.is_file()) for page in pages]
    assert files[0] == files[1]
    unchanged = [path for path in files[0] if path.parent.name == "comparison" or path.name == "records.jsonl"]
    assert len(unchanged) == 5
    for path in unchanged:
        assert (pages[0] / path).read_bytes() == (pages[1] / path).read_bytes(), path
