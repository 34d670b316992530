"""The pytest plugin: a suite that its user would write, run in a folder of its own."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from safetensors.torch import save_file

from art_defenses_ext import Linf, evaluate
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.suite.suites import STANDARD
from art_defenses_ext.testing.assertions import Suite
from art_defenses_ext.testing.plugin import NOTES
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import Dataset

from .conftest import add_breaking_examples

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.usefixtures("without_pictures")

ATTACKS = """
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.evaluation.suite.spec import AttackSpec

def pgd(classifier, threat, seed):
    return MarginPGD(classifier, threat.norm, threat.eps, max_iter=5, seed=seed)

PGD = [AttackSpec("PGD", pgd, "a", kind="white-box", modes="all")]
"""
"""A module of its own, since the code of an attack is part of what an attacker is."""

# What a run inside a test imports first is forgotten at its end, but not by the package, which names it.
importlib.import_module("art_defenses_ext.detector.explanation_reconstructor")

HEAD = """
import torch
from own_attacks import PGD, pgd
from art_defenses_ext import AttackSpec, ExplanationReconstructor, JumpReLU, Linf
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import load_dataset
from pathlib import Path

torch.set_num_threads(1)
digits = load_dataset("digits")
x, y = digits.test.x[:12], digits.test.y[:12]

def network():
    return load_classifier(digits, weights=Path("weights.safetensors"))

QUICK = {"attacks": PGD, "check_samples": 0, "established": False}
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, digits_classifier: PyTorchClassifier) -> pytest.Pytester:
    """A folder with the weights of the digits network and a quick attack alone."""
    pytester.makepyfile(own_attacks=ATTACKS)
    pytester.syspathinsert()
    save_file(digits_classifier.model.state_dict(), pytester.path / "weights.safetensors")
    return pytester


def run(suite: pytest.Pytester, tests: str, *options: str) -> pytest.RunResult:
    suite.makepyfile(test_suite=HEAD + tests)
    return suite.runpytest_inprocess("-p", "no:xdist", "-p", "no:randomly", *options)


ROBUST = """
def test_it_holds(assert_robust):
    report = assert_robust(network(), (x, y), threat=Linf(0.02), at_least=0.5, **QUICK)
    assert report.accuracy_after_attacks >= 0.5

def test_it_does_not(assert_robust):
    assert_robust(network(), (x, y), threat=Linf(0.4), at_least=0.5, **QUICK)
"""


def test_a_statement_holds_or_says_who_broke_what(suite: pytest.Pytester) -> None:
    result = run(suite, ROBUST)
    result.assert_outcomes(passed=1, failed=1)
    text = result.stdout.str()
    result.stdout.fnmatch_lines(
        [
            "*AssertionError: accuracy under the attacks that ran is * % * under linf 0.4; at least 50 % was wanted",
            "*broken by PGD*images 0*",
        ]
    )
    result.stdout.fnmatch_lines(["*report: *report.html, attacked images: *examples.npz"])
    result.stdout.fnmatch_lines(
        ["*= robustness =*", "*test_it_holds: accuracy under*", "*test_it_does_not: accuracy under*"]
    )
    assert (
        "is_robust" not in text.split("AssertionError")[0].split("def test_it_does_not")[-1]
    )  # the user's lines alone


def test_a_weaker_network_turns_the_suite_red(suite: pytest.Pytester) -> None:
    """The same file; only the weights are others."""
    tests = "\ndef test_it_holds(assert_robust):\n    assert_robust(network(), (x, y), Linf(0.02), 0.5, **QUICK)\n"
    run(suite, tests).assert_outcomes(passed=1)
    weights = {name: torch.randn_like(tensor) for name, tensor in _weights(suite).items()}
    save_file(weights, suite.path / "weights.safetensors")
    result = run(suite, tests)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*misclassified without an attack: *"])


def _weights(suite: pytest.Pytester) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(suite.path / "weights.safetensors")


CACHED = """
def test_it(assert_robust):
    defended = JumpReLU(network(), 1.0)()
    assert_robust(defended, (x[:2], y[:2]), Linf(0.05), 0, "papers", check_samples=0, seed=SEED, established=False)
"""


def test_an_unchanged_network_is_not_attacked_again(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not by `from ... import`: the modules that an inner run imports are forgotten afterwards.
    assertions = importlib.import_module("art_defenses_ext.testing.assertions")
    calls: list[int] = []
    monkeypatch.setattr(assertions, "evaluate", lambda *a, **k: calls.append(k["seed"]) or evaluate(*a, **k))
    for seed in (0, 0, 1):
        run(suite, CACHED.replace("SEED", str(seed))).assert_outcomes(passed=1)
    assert calls == [0, 1]
    run(suite, CACHED.replace("SEED", "0"), "--cache-clear").assert_outcomes(passed=1)
    assert calls == [0, 1, 0]


def test_options_override_what_tests_say(suite: pytest.Pytester) -> None:
    tests = """
def test_it(assert_robust):
    report = assert_robust(JumpReLU(network(), 1.0)(), (x, y), Linf(0.05), 0, check_samples=0, established=False)
    settings = report.summary.run.settings
    assert (settings.samples, settings.attacks) == (2, "papers")
    assert any("gray-box" in key for record in report.records for key in record.attacks)  # it is known
"""
    options = ["--robustness-attacks", "papers", "--robustness-samples", "2", "--robustness-report", "reports"]
    run(suite, tests, *options, "--robustness-device", "cpu").assert_outcomes(passed=1)
    (folder,) = (suite.path / "reports").iterdir()
    assert "test_it" in folder.name
    assert (folder / "report.html").stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--robustness-attacks", "all"],
            "--robustness-attacks is 'all'; one of papers, fast, standard, full, an installed attack",
        ),
        (["--robustness-samples", "0"], "--robustness-samples is 0; a whole number of at least 1 was expected"),
    ],
)
def test_options_of_no_use_are_refused(options: list[str], words: str, suite: pytest.Pytester) -> None:
    result = run(suite, ROBUST, *options)
    result.assert_outcomes(errors=2)
    assert words in result.stdout.str()


def test_checks_that_fail_are_masking_and_not_established(suite: pytest.Pytester) -> None:
    """An attacker without the smooth derivative: the report itself says that it was withheld."""
    tests = """
DEFENDED = JumpReLU(network(), 1.0)()
NAIVE = {"attacks": PGD, "check_samples": 1, "adaptive": False}

def test_masking(assert_no_masking):
    assert_no_masking(DEFENDED, (x, y), Linf(0.02), **NAIVE)

def test_not_established(assert_robust):
    assert_robust(DEFENDED, (x, y), Linf(0.02), 0.1, **NAIVE)

def test_whatever(assert_robust):
    assert_robust(DEFENDED, (x, y), Linf(0.02), 0.1, established=False, **NAIVE)
"""
    result = run(suite, tests)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        ["*AssertionError: the attacks fail checks of their own", "*gradient modes: *was not given the modes*"]
    )
    result.stdout.fnmatch_lines(
        ["*no adaptive attack ran: the attacker was given the exact gradient alone, so 10 % is not established*"]
    )
    result.stdout.fnmatch_lines(["*test_whatever: accuracy under the attacks that ran *(no adaptive attack ran: *"])


def test_what_no_adaptive_attack_stands_behind_fails_and_says_so(suite: pytest.Pytester) -> None:
    """Under a paper's attacks, and under a suite without checks: whatever is left, nothing is shown by it."""
    tests = """
import pytest
DEFENDED = JumpReLU(network(), 1.0)()
DETECTOR = ExplanationReconstructor(network(), false_positive_rate=0.1)
DETECTOR.fit(digits.train.x, nb_epochs=2, progress=False)
PAPERS = {"attacks": "papers"}
UNCHECKED = {"attacks": PGD, "check_samples": 0}
BOTH = pytest.mark.parametrize("how", [PAPERS, UNCHECKED], ids=["papers", "unchecked"])

@BOTH
def test_robust(assert_robust, how):
    assert_robust(DEFENDED, (x[:4], y[:4]), Linf(0.001), 0, **how)

@BOTH
def test_masking(assert_no_masking, how):
    assert_no_masking(DEFENDED, (x[:4], y[:4]), Linf(0.001), **how)

@BOTH
def test_detects(assert_detects, how):
    assert_detects(network(), DETECTOR, (x[:4], y[:4]), Linf(0.001), at_least=0, **how)

@BOTH
def test_opting_out(assert_robust, how):
    report = assert_robust(DEFENDED, (x[:4], y[:4]), Linf(0.001), 0, established=False, **how)
    assert report.robust_accuracy is None
"""
    result = run(suite, tests)
    result.assert_outcomes(passed=2, failed=6)
    lines = result.stdout.lines
    for reason, figure in (
        ("no adaptive attack ran: the paper's attacks ran alone", "accuracy under the paper's attacks"),
        ("no checks were made", "accuracy under the attacks that ran"),
    ):
        assert sum(line.startswith("E   ") and f"AssertionError: {reason}, so " in line for line in lines) == 3
        assert sum("test_opting_out" in line and figure in line and f"({reason})" in line for line in lines) == 1


def test_a_detector_is_tested_for_undetected_attacks_and_false_positives(suite: pytest.Pytester) -> None:
    tests = """
import numpy as np
DETECTOR = ExplanationReconstructor(network(), false_positive_rate=0.1)
DETECTOR.fit(digits.train.x, nb_epochs=2, progress=False)
ALL = [AttackSpec("PGD", pgd, "a", samples="all")]
HOW = {"attacks": ALL, "check_samples": 0, "established": False}

def test_nobody(assert_detects):
    assert_detects(network(), DETECTOR, (x, y), Linf(0.001), at_least=0.9, **HOW)

def test_most(assert_detects):
    assert_detects(network(), DETECTOR, (x, y), Linf(0.4), at_least=0.99, **HOW)

def test_false_positives(assert_detects):
    DETECTOR.set_params(false_positive_rate=0.9)
    assert_detects(network(), DETECTOR, (x, y), Linf(0.001), at_least=0.0, false_positives=0.1, **HOW)
"""
    result = run(suite, tests)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*the detector flags * of the clean images; at most 10 % was wanted*"])
    result.stdout.fnmatch_lines(
        ["*attack success rate against classifier and detector is * at a false positive rate of *"]
    )


BASELINE = """
def test_it(assert_not_worse_than):
    part = digits.test.x[:30], digits.test.y[:30]
    report = assert_not_worse_than("baseline", WHICH, part, attacks=PGD, established=False)
    settings = report.summary.run.settings
    assert (settings.adaptive, settings.block_size) == (False, 16)  # the same attacker as the baseline's
"""


def test_a_baseline_is_compared_image_by_image(
    suite: pytest.Pytester, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    pgd = importlib.import_module("own_attacks").PGD
    part = digits.test.x[:30], digits.test.y[:30]
    options = {"curve_samples": 0, "check_samples": 0, "adaptive": False, "block_size": 16, "progress": False}
    evaluate(digits_classifier, part, Linf(0.05), pgd, out=suite.path / "baseline", **options)
    run(suite, BASELINE.replace("WHICH", "network()")).assert_outcomes(passed=1)
    result = run(suite, BASELINE.replace("WHICH", "network()").replace("established=", "seed=1, established="))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*baseline is baseline, which has another attacker (seed 0, not 1)*"])
    weaker = "load_classifier(digits, epochs=1, progress=False)"
    result = run(suite, BASELINE.replace("WHICH", weaker))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*images were lost and * gained*"])
    result = run(suite, BASELINE.replace("WHICH", "network()").replace("[:30]", "[:31]"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*baseline is baseline, which has other images*"])


def test_the_marker_leaves_them_out(suite: pytest.Pytester) -> None:
    tests = ROBUST + "\ndef test_quick():\n    pass\n"
    run(suite, tests, "-m", "not robustness").assert_outcomes(passed=1, deselected=2)


def test_nothing_heavy_is_imported_before_a_fixture_is_used(tmp_path: Path) -> None:
    (tmp_path / "test_light.py").write_text(
        "import sys\ndef test_light():\n    assert not {'torch', 'art', 'matplotlib', 'scipy'} & set(sys.modules)\n"
    )
    arguments = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    process = subprocess.run([*arguments, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert process.returncode == 0, process.stdout


def test_what_statements_of_workers_found_is_reported_together(suite: pytest.Pytester) -> None:
    """Under pytest-xdist, whose workers are processes; notes alone, since to attack in each takes long."""
    suite.makepyfile(
        "import pytest\n"
        "@pytest.mark.parametrize('name', ['first', 'second'])\n"
        f"def test_it(name, record_property):\n    record_property({NOTES!r}, [name + ' statement'])\n"
    )
    result = suite.runpytest_subprocess("-n", "2")
    result.assert_outcomes(passed=2)
    lines = result.stdout.lines
    start = next(place for place, line in enumerate(lines) if line.startswith("=") and " robustness " in line)
    assert sorted(lines[start + 1 : start + 3]) == ["first statement", "second statement"]


def test_examples_added_to_a_baseline_do_not_count(
    digits_classifier: PyTorchClassifier, digits: Dataset, tmp_path: Path
) -> None:
    """A model that is worse stays worse, whatever others did to the baseline since."""
    data = digits.test.x[:30], digits.test.y[:30]
    noise = [spec for spec in STANDARD if spec.kind == "noise"]
    options = {"curve_samples": 0, "check_samples": 0, "undefended_suite": "papers", "progress": False}
    evaluate(digits_classifier, data, Linf(0.01), noise, out=tmp_path / "baseline", **options)
    suite = Suite(cache=tmp_path / "cache")
    worse = load_classifier(digits, epochs=1, progress=False)
    with torch.no_grad():
        for parameter in worse.model.parameters():
            parameter.mul_(-1)
    for _ in range(2):
        with pytest.raises(AssertionError, match="29 images were lost and 1 gained"):
            suite.is_not_worse_than("t", tmp_path / "baseline", worse, data, noise, established=False)
        add_breaking_examples(tmp_path / "baseline", "Doe et al.")
    assert Report.load(tmp_path / "baseline").summary.worst_case.count == 0


@pytest.mark.parametrize(("succeeded", "holds"), [(7, True), (8, False)])
def test_a_bound_on_detection_holds_if_it_is_met_exactly(
    succeeded: int, holds: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """7 of 100 leave 93 %, though 1 - .07 is less than .93 in floating point."""
    pool = SimpleNamespace(past=Proportion(succeeded, 100))
    detection = SimpleNamespace(pools=[pool], false_positives=Proportion(0, 100))
    report: Any = SimpleNamespace(
        summary=SimpleNamespace(detection=detection, unknown="", standing="established"), records=[]
    )
    monkeypatch.setattr(Suite, "evaluated", lambda *_, **__: (report, tmp_path))
    call: tuple[Any, ...] = ("t", None, None, None, Linf(0.1), 0.93)
    if holds:
        assert Suite(tmp_path).detects(*call) is report
    else:
        with pytest.raises(AssertionError, match="at most 7 % was wanted"):
            Suite(tmp_path).detects(*call)


def test_reports_of_long_names_are_kept_apart(
    digits_classifier: PyTorchClassifier, digits: Dataset, tmp_path: Path
) -> None:
    suite = Suite(cache=tmp_path / "cache", reports=tmp_path / "reports")
    data = digits.test.x[:1], digits.test.y[:1]
    noise = [spec for spec in STANDARD if spec.kind == "noise"]
    names = ["\u00fc" * 300, "\u00fc" * 300 + "b", "short"]
    folders = [suite.evaluated(name, digits_classifier, data, Linf(0.01), noise, check_samples=0)[1] for name in names]
    assert sorted(folders) == sorted((tmp_path / "reports").iterdir())
    assert [len(folder.name.encode()) <= 200 for folder in folders] == [True] * 3
    assert folders[2].name == "short"
    assert all((folder / "report.html").exists() for folder in folders)


def test_reports_that_cannot_be_kept_are_refused_before_an_evaluation(
    digits_classifier: PyTorchClassifier, digits: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "reports").write_text("a file")
    suite = Suite(cache=tmp_path / "cache", reports=tmp_path / "reports")
    with pytest.raises(
        InputError, match=r"reports .--robustness-report. is .*, which cannot be written \(.*a folder was"
    ):
        suite.evaluated("t", digits_classifier, (digits.test.x[:1], digits.test.y[:1]), Linf(0.01))
    assert list((tmp_path / "cache").iterdir()) == []
