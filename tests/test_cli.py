"""The command: what it prints and writes, and one sentence for whatever a user got wrong."""

from __future__ import annotations

import json
import logging
import math
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from art_defenses_ext import ExplanationReconstructor, FeatureAutoencoder, JumpReLU, Linf, evaluate
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.base import progress
from art_defenses_ext.base.entry_points import installed
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.cli import processes
from art_defenses_ext.cli.app import main
from art_defenses_ext.cli.defences import DefenceSpec, check_spec, defence_names, option_names
from art_defenses_ext.cli.union import evaluate_command
from art_defenses_ext.defence.registry import load_face
from art_defenses_ext.evaluation.config import SETS, EvaluationConfig
from art_defenses_ext.evaluation.report.headlines import figure_name
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.run.block import Work
from art_defenses_ext.evaluation.run.folder import RECORDS
from art_defenses_ext.evaluation.suite.papers import paper_specs
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.suite.suites import DETECTOR_SUITE, FAST, FULL, STANDARD
from art_defenses_ext.gradients.modes import find_defences, gradient_modes
from art_defenses_ext.zoo.catalogue import MODELS
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import DATASETS, Dataset
from art_defenses_ext.zoo.models import build_model

from .evaluation.test_rounds import few_steps

OPTIONS = [name for option in evaluate_command.params for name in (*option.opts, *option.secondary_opts)]


@dataclass
class Result:
    """What a command left behind."""

    status: int
    out: str
    err: str


Command = Callable[..., Result]


pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs ``art-defenses`` in this process and in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "COLUMNS", "TERMINAL_WIDTH", "ART_DEFENSES_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress, "PERIOD", math.inf)  # on a busy machine lines of progress would come in between
    logger, level, threads = progress.LOGGER, logging.getLogger("art").level, torch.get_num_threads()

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["art-defenses", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_error:
            main()
        out, err = capsys.readouterr()
        return Result(int(exit_error.value.code or 0), out, err)

    yield run
    logger.setLevel(logging.NOTSET)
    logger.handlers = []
    logging.getLogger("art").setLevel(level)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(digits_classifier: PyTorchClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained network's weights, so that no test here has to train."""
    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    save_file(digits_classifier.model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def quick_arguments(weights: Path) -> list[str]:
    """An evaluation of a second."""
    options = {"--weights": weights, "-o": "jump=1", "--attacks": "papers", "--samples": 8}
    return ["evaluate", *(str(word) for option in options.items() for word in option)]


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has to be refused is refused before a network is trained, which may take minutes."""

    def begin(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("training began")

    monkeypatch.setattr(torch.optim.lr_scheduler, "CosineAnnealingLR", begin)


def tree(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def words(text: str) -> str:
    return " ".join(text.split())


# What there is


def test_list_names_all_that_can_be_chosen_and_which_set_an_attack_first_stands_in(command: Command) -> None:
    result = command("list")
    assert (result.status, result.err) == (0, "")
    lines = [f"{words(line)} " for line in result.out.splitlines()]
    for name in (*defence_names(), *DATASETS, *MODELS, *SETS):
        assert any(f" {name} " in line for line in lines), name
    details = command("list", *installed("defence"), "fast", "full")
    assert (details.status, details.err) == (0, "")
    lines = [f"{words(line)} " for line in details.out.splitlines()]
    papers = [spec for name in installed("defence") for spec in paper_specs(load_face(name))]
    sets = {"papers": papers, "fast": FAST, "standard": STANDARD, "full": FULL[len(STANDARD) :]}
    assert tuple(sets) == tuple(SETS)
    for name, specs in sets.items():
        shown = [line for line in lines if line.startswith(f"attacks {name} ")]
        assert len(shown) == len(specs)
        assert all(line.startswith(f"attacks {name} {spec.name} ") for line, spec in zip(shown, specs, strict=True))
    assert all(any(f" {spec.name} " in line for line in lines) for spec in DETECTOR_SUITE)


def test_help_mentions_every_option_and_what_it_may_be(command: Command) -> None:
    result = command("evaluate", "--help")
    assert (result.status, result.err) == (0, "")
    for option in OPTIONS:
        assert re.search(rf"(^|\s){option}[\s,]", result.out), option
    for name in (*MODELS, *DATASETS, *SETS):
        assert name in words(result.out), name


# An evaluation


def test_evaluate_prints_and_writes_the_evaluation_of_the_library(
    command: Command, quick_arguments: list[str], weights: Path, digits: Dataset, tmp_path: Path
) -> None:
    """The options reach ``evaluate``: both find the same."""
    result = command(*quick_arguments, "--out", tmp_path / "run", "--eps", 0.08, "--seed", 3, "--block-size", 4)
    assert (result.status, result.err) == (0, "")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert f"{100 * report['after_attacks']['rate']:.1f}" in result.out
    assert str(tmp_path / "run" / "report.html") in result.out
    assert all(spec.name in result.out for spec in paper_specs(JumpReLU))
    assert (tmp_path / "run" / "report.html").stat().st_size > 0
    assert report["run"]["command"].startswith("art-defenses evaluate --weights")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]

    defended = JumpReLU(load_classifier(digits, weights=weights), 1.0)()
    x, y = digits.test.x[:8], digits.test.y[:8]
    expected = evaluate(defended, (x, y), Linf(0.08), "papers", seed=3, block_size=4)
    actual = Report.load(tmp_path / "run")
    assert actual.records == expected.records
    assert actual.summary.run.settings == expected.summary.run.settings


def test_without_out_nothing_is_written(command: Command, quick_arguments: list[str], tmp_path: Path) -> None:
    result = command(*quick_arguments, "--samples", 2)
    assert result.status == 0
    assert "report.html" not in result.out
    assert tree(tmp_path) == {}


def test_the_standard_set_on_the_undefended_model_in_the_other_norm(
    command: Command, weights: Path, tmp_path: Path
) -> None:
    arguments = ["evaluate", "--defence", "none", "--norm", "l2", "--eps", 5, "--allow-large-eps", "--samples", 2]
    arguments += ["--curve-samples", 1, "--check-samples", 1]
    torch.set_num_threads(2)
    result = command(*arguments, "--weights", weights, "--out", tmp_path / "run", "--threads", 1)
    assert (result.status, result.err) == (0, "")
    assert torch.get_num_threads() == 1
    run = json.loads((tmp_path / "run" / "report.json").read_text())["run"]
    assert (run["settings"]["threat"], run["settings"]["eps"], run["settings"]["attacks"]) == ("l2", 5.0, "standard")
    assert (run["defences"], run["threads"]) == ([], 1)
    # An undefended model has no surrogate to anneal.
    assert all(spec.name in result.out for spec in STANDARD if spec.modes != "annealable")
    assert "Did the attacks work?" in result.out


@pytest.fixture
def evaluate_call(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asks of ``evaluate``, which ends it here instead of attacking."""
    call: dict[str, Any] = {}

    def listen(model: PyTorchClassifier, data: Any, threat: Any, attacks: str, **options: Any) -> Any:
        call.update(options, classifier=model, x=data[0], y=data[1], threat=threat, attacks=attacks)
        raise InputError("that is all")

    monkeypatch.setattr("art_defenses_ext.cli.processes.evaluate", listen)
    return call


def described(classifier: PyTorchClassifier) -> list[dict[str, Any]]:
    """The defences of a classifier, as a report names them."""
    return [{"name": defence.name} | defence.describe() for defence in find_defences(classifier)]


def test_all_that_the_options_say_reaches_the_evaluation(
    command: Command, weights: Path, evaluate_call: dict[str, Any]
) -> None:
    arguments = ["evaluate", "--weights", weights, "-o", "jump=1", "--attacks", "full", "--eps", 0.2, "--samples", 7]
    assert command(*arguments, "--check-samples", 3, "--naive").err == "Error: that is all\n"
    assert (evaluate_call["attacks"], evaluate_call["threat"], len(evaluate_call["x"])) == ("full", Linf(0.2), 7)
    assert evaluate_call["config"] == EvaluationConfig(check_samples=3, adaptive=False)
    assert described(evaluate_call["classifier"])[0]["jump"] == 1
    command(*arguments)
    assert evaluate_call["config"] == EvaluationConfig()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images that share no size, and their labels."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (40 + number, 50), (number, 0, 0)).save(folder / f"{number}.png")
    (folder / "labels.csv").write_text("file,label\n" + "".join(f"{number},{number}\n" for number in range(4)))
    return folder


def test_a_folder_of_images_is_cropped_to_the_network_and_attacked_in_small_blocks(
    command: Command, images: Path, evaluate_call: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(build_model("squeezenet1_1").state_dict(), tmp_path / "squeezenet.pt")
    arguments = ["evaluate", "--dataset", "image_folder", "--data", images, "--weights", tmp_path / "squeezenet.pt"]
    command(*arguments, "--defence", "none")
    assert (evaluate_call["classifier"].nb_classes, evaluate_call["x"].shape) == (1000, (2, 3, 224, 224))
    assert evaluate_call["config"].block_size == 32
    assert sorted(evaluate_call["y"]) == [0, 2]
    command(*arguments, "--defence", "none", "--samples", 1, "--block-size", 5)
    assert (len(evaluate_call["x"]), evaluate_call["config"].block_size) == (1, 5)


def test_a_network_of_ones_own_takes_images_of_their_own_size(command: Command, images: Path, tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (12, 8), (number, 0, 0)).save(images / f"{number}.png")
    (tmp_path / "own_for_images_for_test_cli.py").write_text(
        "from torch import nn\ndef build(): return nn.Sequential(nn.Flatten(), nn.Linear(288, 10), nn.ReLU())\n"
    )
    arguments = ["--dataset", "image_folder", "--data", images, "--model", "own_for_images_for_test_cli:build"]
    result = command("evaluate", *arguments, "-o", "jump=0.1", "--attacks", "papers")
    assert (result.status, result.err) == (0, "")
    assert "Sequential" in result.out


def test_the_jump_is_tuned_on_validation_images(
    command: Command, weights: Path, digits: Dataset, evaluate_call: dict[str, Any]
) -> None:
    command("evaluate", "--weights", weights, "-o", "max_accuracy_drop=0.05")
    plain, x, y = load_classifier(digits, weights=weights), digits.validation.x, digits.validation.y
    accuracies = [
        (classifier.predict(x).argmax(axis=1) == y).mean() for classifier in (plain, evaluate_call["classifier"])
    ]
    assert accuracies[0] > accuracies[1] >= accuracies[0] - 0.05 - 1e-9


def test_a_network_of_ones_own_is_normalised_as_its_options_say(
    command: Command, evaluate_call: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "own_for_test_cli.py").write_text(
        "from torch import nn\n"
        "def build(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))\n"
    )
    arguments = ["--model", "own_for_test_cli:build", "--mean", "0.5", "--std", "0.25", "-o", "jump=0.1"]
    command("evaluate", *arguments, "--samples", 4)
    normalisation = evaluate_call["classifier"].preprocessing_operations[-1]
    assert (normalisation.mean.item(), normalisation.std.item()) == (0.5, 0.25)


def test_an_earlier_run_is_replaced_only_when_asked(
    command: Command, quick_arguments: list[str], tmp_path: Path
) -> None:
    assert command(*quick_arguments, "--samples", 2, "--out", "run").status == 0
    before = tree(tmp_path)
    refusal = command(*quick_arguments, "--samples", 3, "--out", "run")
    assert refusal.status == 2
    assert "overwrite" in refusal.err
    assert tree(tmp_path) == before
    assert command(*quick_arguments, "--samples", 3, "--out", "run", "--overwrite").status == 0
    assert len((tmp_path / "run" / RECORDS).read_text().splitlines()) == 3


# Shared, compared, published


def test_parts_are_merged_into_one_run(
    command: Command, quick_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either the command says which part to do, or a launcher."""
    cut, images = [*quick_arguments, "--samples", 5, "--block-size", 2], ["--save-examples", "all"]
    part = command(*cut, "--out", "run", "--shard", "2/2", *images)
    assert (part.status, part.err) == (0, "")
    assert "art-defenses merge run" in part.out
    with monkeypatch.context() as launcher:
        launcher.setenv("RANK", "0")
        launcher.setenv("WORLD_SIZE", "2")
        assert command(*cut, "--out", "run", *images).status == 0
        refusal = command(*cut)
        assert refusal.status == 2
        assert "out is missing" in refusal.err
    assert not (tmp_path / "run" / "report.json").exists()
    merged = command("merge", "run")
    assert (merged.status, merged.err) == (0, "")
    assert "run/report.html" in merged.out
    records = (tmp_path / "run" / RECORDS).read_bytes()
    assert len(records.splitlines()) == 5
    assert "nothing is left to do" in command(*cut, "--out", "run", "--shard", "2/2", *images).out
    at_once = command(*cut, "--out", "at_once", "--processes", 2, "--threads", 1, *images)
    assert (at_once.status, at_once.err) == (0, "")
    assert "at_once/report.html" in at_once.out
    assert (tmp_path / "at_once" / RECORDS).read_bytes() == records
    worst_cases = [tmp_path / run / "adversarial" / "worst_case.npz" for run in ("run", "at_once")]
    assert worst_cases[0].read_bytes() == worst_cases[1].read_bytes()
    assert "save_examples is 'all', but out is missing" in command(*cut, *images).err
    assert "processes is 2, but out is missing" in command(*cut, "--processes", 2).err


class InThisProcess:
    """In place of a pool of processes, so that a test can shorten what they run."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.map = map

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_processes_share_rounds_of_more_effort_and_load_the_network_once(
    command: Command, quick_arguments: list[str], short_suite: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("art_defenses_ext.evaluation.task.round_plan", few_steps)
    monkeypatch.setattr("art_defenses_ext.cli.processes.ProcessPoolExecutor", InThisProcess)
    load, loaded = processes.Prepared.of, []

    def noted(*arguments: Any) -> Any:
        loaded.append(arguments)
        return load(*arguments)

    cut = [*quick_arguments, "--attacks", "standard", "--samples", 6, "--block-size", 2, "--check-samples", 2]
    cut += ["--curve-samples", 0, "--undefended", "papers"]
    alone = command(*cut, "--out", "alone", "--effort", 2, "--threads", 1)
    assert (alone.status, alone.err) == (0, "")
    monkeypatch.setattr(processes.Prepared, "of", noted)
    processes._prepared.cache_clear()
    shared = command(*cut, "--out", "shared", "--effort", 0, "--processes", 3, "--threads", 1)
    assert (shared.status, shared.err) == (0, "")
    for count in (3, 2):  # a finished run is continued with the threads of its manifest
        shared = command(*cut, "--out", "shared", "--effort", 2, "--processes", count)
        assert (shared.status, shared.err) == (0, "")
        assert "shared/report.html" in shared.out
    assert len(loaded) == 2  # once for each choice of options, not for each part and round
    for name in (RECORDS, f"rounds/1/{RECORDS}", f"rounds/2/{RECORDS}"):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert len(list((tmp_path / "shared" / "rounds").glob("*/shards/*-of-3"))) == 2 * 3
    refusal = command(*cut, "--out", "shared", "--processes", 3)
    assert refusal.status == 2
    assert "which holds another run: settings effort '2', not '0'" in refusal.err


def test_an_interrupted_process_of_several_ends_in_silence() -> None:
    code = "import os, signal; from art_defenses_ext.cli.processes import _begin_process; _begin_process(30); "
    done = subprocess.run([sys.executable, "-c", code + "os.kill(os.getpid(), signal.SIGINT)"], capture_output=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


EXAMPLE = Path(__file__).parents[1] / "examples" / "run"


def test_the_example_run_is_repeated_from_its_manifest_to_the_byte(command: Command, tmp_path: Path) -> None:
    """Another processor may train another network: the committed run's verdicts, and the bytes of this machine."""
    torch.set_num_threads(2)
    first = command("rerun", EXAMPLE, "--out", "first")
    assert "Error" not in first.err
    assert torch.get_num_threads() == 1  # as the run was made
    records = [Report.load(folder).records for folder in (EXAMPLE, tmp_path / "first")]
    assert [record.robust() for record in records[0]] == [record.robust() for record in records[1]]
    repeated = command("rerun", "first", "--out", "second")
    assert (repeated.status, repeated.out) == (0, "All 12 records are equal, byte for byte.\n")
    assert (tmp_path / "first" / RECORDS).read_bytes() == (tmp_path / "second" / RECORDS).read_bytes()


def test_a_run_that_cannot_be_repeated_to_the_byte_says_why(
    command: Command, quick_arguments: list[str], weights: Path, finished_run: Any, tmp_path: Path
) -> None:
    weights_file = tmp_path / "own.safetensors"
    weights_file.write_bytes(weights.read_bytes())
    assert command(*quick_arguments, "--weights", weights_file, "--samples", 3, "--out", "run").status == 0
    with safe_open(weights_file, "pt") as file:
        save_file({name: 0.5 * file.get_tensor(name) for name in file.keys()}, weights_file)  # noqa: SIM118
    repeated = command("rerun", "run")
    assert repeated.status == 1
    assert repeated.out.startswith("3 of 3 records differ")
    assert "The runs differ in: model_sha256" in repeated.out
    weights_file.unlink()
    for run, message in (("run", "weights is"), (finished_run.folder, "made in Python"), ("none", "cannot be read")):
        refusal = command("rerun", run)
        assert (refusal.status, refusal.out) == (2, "")
        assert message in refusal.err
    assert command("rerun", "run", "--out", weights_file.parent / "run").status == 2


def test_examples_made_elsewhere_are_added_to_a_run_of_the_command(
    command: Command, quick_arguments: list[str], digits: Dataset, finished_run: Any, tmp_path: Path
) -> None:
    assert command(*quick_arguments, "--samples", 3, "--out", "run").status == 0
    adversarial = np.clip(digits.test.x[:3] + np.float32(0.01), 0, 1)
    np.savez(tmp_path / "adv.npz", adversarial=adversarial)
    np.savez(tmp_path / "far.npz", adversarial=1 - adversarial)
    added = command("add", "run", "adv.npz", "--from", "Doe et al., https://example.org/attack")
    assert (added.status, added.err) == (0, "")
    assert "Doe et al." in added.out
    assert "https://example.org/attack" in (tmp_path / "run" / "report.html").read_text()
    refusals = (("run", "far.npz", "away from sample 0"), (finished_run.folder, "adv.npz", "made in Python"))
    for run, file, message in refusals:
        refusal = command("add", run, file, "--from", "Doe again")
        assert (refusal.status, refusal.out) == (2, "")
        assert message in refusal.err


def test_a_run_is_exported_and_what_failed_is_the_exit_status(command: Command, finished_run: Any) -> None:
    rate = finished_run.report.summary.worst_case.rate
    failed = command("export", finished_run.folder, "--format", "junit", "--out", "all.xml", "--at-least", rate + 0.01)
    assert (failed.status, failed.out) == (1, "")
    assert f"robust accuracy: {figure_name(finished_run.report.summary)} is" in failed.err
    assert "<testsuites" in Path("all.xml").read_text()
    passed = command("export", finished_run.folder, "--format", "sarif", "--out", "checks.sarif")
    assert passed.status == int(bool(finished_run.report.summary.failed_checks))
    assert json.loads(Path("checks.sarif").read_text())["version"] == "2.1.0"


def test_runs_are_compared_and_published(command: Command, weights: Path, digits: Dataset, tmp_path: Path) -> None:
    def pgd(classifier: PyTorchClassifier, threat: Linf, seed: int) -> MarginPGD:
        return MarginPGD(classifier, threat.norm, threat.eps, max_iter=3, seed=seed)

    attacks = [AttackSpec("PGD", pgd, "a few steps", kind="white-box", modes="all")]
    for name, jump in (("a", 1.0), ("b", 0.5)):
        defended = JumpReLU(load_classifier(digits, weights=weights), jump)()
        part = digits.test.x[:6], digits.test.y[:6]
        evaluate(defended, part, Linf(0.1), attacks, out=tmp_path / name, curve_samples=0, check_samples=1)
    compared = command("compare", "a", "b", "--out", "both")
    assert (compared.status, compared.err) == (0, "")
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"compare.json", "compare.md", "compare.png"}
    for name in "ab":
        entry = command("entry", name, "--out", f"results/{name}.json", "--dataset", "digits", "--command", "make it")
        assert (entry.status, entry.err) == (0, "")
    assert command("leaderboard", "results").status == 0
    page = (tmp_path / "results" / "README.md").read_text()
    assert "## digits, linf, eps 0.1" in page
    assert page.count("make it") == 2


def test_the_doctor_says_what_is_here_and_examines_a_classifier(command: Command, tmp_path: Path) -> None:
    plain = command("doctor", "--data", tmp_path)
    assert (plain.status, plain.err) == (0, "")
    assert torch.__version__.partition("+")[0] in plain.out
    assert "mnist" in plain.out
    assert "not found" in plain.out
    (tmp_path / "own_for_doctor.py").write_text(
        "import torch\nfrom art.estimators.classification import PyTorchClassifier as C\n"
        "def build():\n    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))\n"
        "    return C(network, torch.nn.CrossEntropyLoss(), (1, 2, 2), 2)\n"
    )
    examined = command("doctor", "--classifier", "own_for_doctor:build")
    assert examined.status == 0
    assert "no clip values" in examined.out
    assert "art-defenses docs traps" in examined.out
    for bad in ("nothing", "own_for_doctor:absent", "own_for_doctor:torch.Generator"):
        assert_one_sentence(command("doctor", "--classifier", bad))


# What a user gets wrong


def _text_file(folder: Path) -> Path:
    path = folder / "notes.txt"
    path.write_text("no weights")
    return path


def _other_weights(folder: Path) -> Path:
    path = folder / "lenet.safetensors"
    save_file(build_model("lenet_like").state_dict(), path)
    return path


def _without_relu(folder: Path) -> str:
    (folder / "linear_for_test_cli.py").write_text(
        "from torch import nn\ndef build(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    return "linear_for_test_cli:build"


def _broken_module(folder: Path) -> str:
    (folder / "broken_for_test_cli.py").write_text("import a_module_that_nobody_has\n")
    return "broken_for_test_cli:build"


Arguments = list[Any]
HEAT = ("--defence", "heat_and_blur")
CODER = ("--defence", "feature_autoencoder")
WATCH = ("--defence", "explanation_reconstructor")
BAD: dict[str, tuple[Arguments, str]] = {
    "unknown data set": (["--dataset", "stl10"], "dataset is 'stl10'; one of digits"),
    "unknown defence": (["--defence", "magic"], "defence is 'magic'; one of explanation_reconstructor"),
    "unknown norm": (["--norm", "0.5"], "norm is '0.5'; linf, l2"),
    "papers of no defence": (["--defence", "none", "--attacks", "papers"], "attacks is 'papers', but"),
    "eps 0": (["--eps", 0], "eps is '0'"),
    "eps in words": (["--eps", "much"], "eps is 'much'; a finite number > 0, or a fraction such as '8/255'"),
    "eps over zero": (["--eps", "8/0"], "eps is '8/0'"),
    "eps of other units": (["--eps", 8], "eps is 8, beyond half the clip range (0.5 in linf)"),
    "no images": (["--dataset", "image_folder", "--data", "."], "holds 0 folder(s) of images; .jpg"),
    "too many samples": (["--samples", 501], "samples is 501"),
    "no data folder": (["--data", "nowhere"], "data is 'nowhere'; an existing folder"),
    "data is a file": (["--data", _text_file], "data is "),
    "out is a file": (["--out", _text_file], "out is "),
    "out below a file": (["--out", lambda folder: _text_file(folder) / "run"], "out is "),
    "out too long": (["--out", "x" * 300], "out is "),
    "no part": (["--shard", "3/2"], "shard is "),
    "unknown network": (["--model", "alexnet"], "model is 'alexnet'"),
    "network for other images": (["--model", "resnet20"], "model resnet20 takes images (3, 32, 32)"),
    "no module": (["--model", "nowhere_at_all:build"], "model is 'nowhere_at_all:build'"),
    "a module that fails": (["--model", _broken_module], "model is 'broken_for_test_cli:build'"),
    "a network without a ReLU": (["--model", _without_relu], "calls no rectifier"),
    "no weights there": (["--weights", "none.pt"], "weights is 'none.pt'"),
    "weights that are none": (["--weights", _text_file], "weights is "),
    "weights that do not fit": (["--weights", _other_weights], "do not fit DigitsCNN"),
    "weights and epochs": (["--weights", _other_weights, "--epochs", 1], "weights and epochs were both given"),
    "mean of letters": (["--mean", "a,b"], "mean is 'a,b'; finite numbers separated by commas"),
    "mean that is no number": (["--mean", "nan,inf"], "mean is 'nan,inf'; finite numbers separated by commas"),
    "too many means": (["--mean", "0.1,0.2"], "mean is (0.1, 0.2); 1 finite number"),
    "std 0": (["--std", "0"], "std is (0.0,); 1 finite number(s) > 0"),
    "negative jump": (["-o", "jump=-1"], "jump is -1; a finite number >= 0"),
    "a jump and how to choose it": (["-o", "jump=1", "-o", "max_accuracy_drop=0.1"], "but jump is given, which a fit"),
    "unknown option": ([*HEAT, "--option", "strength=1"], "option is 'strength=1'; NAME=VALUE with one of chunk_size"),
    "option without value": ([*HEAT, "-o", "sigma"], "option is 'sigma'; NAME=VALUE"),
    "option of none": (["--defence", "none", "-o", "sigma=1"], "option is 'sigma=1'; none, since none has no options"),
    "option of another defence": (["-o", "sigma=1"], "option is 'sigma=1'; NAME=VALUE with one of jump, width, copy"),
    "restorer of long training": (
        [*CODER, "--dataset", "cifar10"],
        "feature_autoencoder must be trained, which takes long on cifar10; --fitted FILE",
    ),
    "an attack mode of a detector": (
        [*WATCH, "-o", "eps=0.1"],
        "option is 'eps=0.1'; NAME=VALUE with one of explanation",
    ),
    "detector of long training": (
        [*WATCH, "--dataset", "image_folder"],
        "explanation_reconstructor must be trained, which takes long on image_folder; --fitted FILE",
    ),
    "one defence twice": ([*HEAT, *HEAT], "defence is 'heat_and_blur' twice"),
    "none beside another": ([*HEAT, "--defence", "none"], "'none' alone"),
    "something after a detector": ([*WATCH, *HEAT], "the detector in the last place"),
    "an option of nobody": (
        [*HEAT, *WATCH, "-o", "sigma=2"],
        "option is 'sigma=2'; DEFENCE.NAME=VALUE with one of heat",
    ),
    "an option of another": ([*HEAT, "-o", "jump_relu.sigma=2"], "option is 'jump_relu.sigma=2'; NAME=VALUE"),
    "two files of one": (
        [*CODER, "--fitted", "feature_autoencoder=a", "--fitted", "feature_autoencoder=b"],
        "fitted is a and b for feature_autoencoder; one file",
    ),
    "a file of nobody": ([*CODER, *WATCH, "--fitted", "x"], "fitted is x; DEFENCE=FILE"),
    "a file of another": ([*CODER, "--fitted", "jump_relu=x"], "jump_relu is not among the defences"),
    "missing fitted file": ([*CODER, "--fitted", "nowhere"], "fitted is nowhere; an existing file"),
    "fitted file of a defence without training": ([*HEAT, "--fitted", "x"], "heat_and_blur is not fitted; no file"),
    "fitted file and option": ([*CODER, "--fitted", "x", "-o", "width=2"], "a file holds its own options"),
    "unknown device": (["--device", "tpu"], "device is 'tpu'"),
    "no CUDA": (["--device", "cuda"], "device is 'cuda'"),
}


def test_options_reach_the_defence(command: Command, weights: Path, evaluate_call: dict[str, Any]) -> None:
    """Numbers as numbers, names as names."""
    options = ("-o", "sigma=0.5", "-o", "mix=soft_mask", "-o", "passes=2", "-o", "floor=0.25")
    command("evaluate", *HEAT, *options, "--weights", weights)
    (defence,) = described(evaluate_call["classifier"])
    assert defence["name"] == "heat_and_blur"
    assert [defence[name] for name in ("sigma", "mix", "passes", "floor")] == [0.5, "soft_mask", 2, 0.25]
    assert gradient_modes(evaluate_call["classifier"]) == ("exact", "frozen", "smooth", "identity")


RESTORERS = {
    "feature_autoencoder": (["-o", "width=2"], {"width": 2}),
    "two_stream_restoration": (
        ["-o", "width=2", "-o", "map=sum", "-o", "blocks=1"],
        {"width": 2, "map": "sum", "blocks": 1},
    ),
}


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("defence", RESTORERS)
def test_a_restorer_is_trained_against_the_threat(
    defence: str, command: Command, weights: Path, evaluate_call: dict[str, Any]
) -> None:
    options, wanted = RESTORERS[defence]
    training = ("-o", "nb_epochs=1", "-o", 'inputs=["clean", "fgsm"]', "-o", "adversarial=true")
    command("evaluate", "--defence", defence, "--weights", weights, "--eps", 0.05, *options, *training)
    (restorer,) = find_defences(evaluate_call["classifier"])
    assert {name: getattr(restorer, name) for name in wanted} == wanted
    plain, adversarial = (training.settings for training in restorer.trainings)
    assert (plain["eps"], plain["nb_epochs"], plain["inputs"]) == (0.05, 1, ["clean", "fgsm"])
    assert adversarial["loss"]["class_weight"] == 1
    assert adversarial["inputs"] == ["clean", "end_to_end"]


def test_a_file_repeats_a_call_and_what_is_typed_wins(
    command: Command, quick_arguments: list[str], tmp_path: Path
) -> None:
    typed: Arguments = [*quick_arguments, "--samples", 3, "--seed", 2, "--naive", "--mean", "0.3", "--out", "a b"]
    printed = command(*typed, "--print-config")
    assert (printed.status, printed.err) == (0, "")
    assert not (tmp_path / "a b").exists()
    Path("run.toml").write_text(printed.out)
    assert command("evaluate", "--config", "run.toml", "--print-config").out == printed.out
    changed = command("evaluate", "--print-config", "--config", "run.toml", "--seed", 4, "--adaptive").out
    lines = set(changed.splitlines()) - set(printed.out.splitlines())
    assert lines == {"seed = 4", "adaptive = true"}
    assert command("evaluate", "--config", "run.toml").status == 0
    settings = json.loads(Path("a b/report.json").read_text())["run"]["settings"]
    assert (settings["samples"], settings["seed"], settings["adaptive"]) == (3, 2, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", None),
        ('adaptive = "no"', "adaptive is 'no'; True or False was expected"),
        ("seed = 1.0", "seed is 1.0; a whole number"),
        ("seed = true", "seed is True; a whole number"),
        ("sede = 1", "sede is no option of EvaluateOptions; one of seed"),
        ('fitted = "a"', "fitted is 'a'; a list of texts"),
        ("mean = [true]", "mean is [True]; finite numbers separated by commas"),
        ("mean = [nan]", "mean is [nan]; finite numbers separated by commas"),
        ("std = [0.5, inf]", "std is [0.5, inf]; finite numbers separated by commas"),
        ("eps = [1]", "eps is [1]; a number, or a fraction such as '8/255', was expected"),
        ("[seed]", "seed is {}; a whole number"),
        ("seed 1", "config is 'run.toml', which is not TOML ("),
        (b"\xff", "config is 'run.toml', which is not TOML ("),
        (None, "config is 'run.toml', which cannot be read (No such file or directory); a TOML file was expected"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_sentence(
    text: str | bytes | None, message: str | None, command: Command
) -> None:
    if text is not None:
        Path("run.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    result = command("evaluate", "--print-config", "--config", "run.toml")
    if message is None:
        assert result.out == command("evaluate", "--print-config").out
        return
    assert_one_sentence(result)
    assert message in result.err


@pytest.mark.usefixtures("few_digits")
def test_several_defences_are_put_on_one_after_the_other(
    command: Command, weights: Path, digits: Dataset, evaluate_call: dict[str, Any], tmp_path: Path
) -> None:
    """Each is fitted to what stands already, or comes from its file; options and files go by the defences' names."""
    jumping = JumpReLU(load_classifier(digits, weights=weights), 0.5)()
    restorer = FeatureAutoencoder.for_classifier(jumping, width=4)
    restorer.load_state_dict(restorer.state_dict())
    restorer.save(tmp_path / "fitted")
    pair = ["--weights", weights, "--defence", "jump_relu", "-o", "jump_relu.jump=0.5"]
    pair += ["--defence", "feature_autoencoder"]
    for options in (
        ["--fitted", f"feature_autoencoder={tmp_path / 'fitted'}"],
        ["-o", "feature_autoencoder.width=4", "-o", "feature_autoencoder.nb_epochs=1"],
    ):
        evaluate_call.clear()
        command("evaluate", *pair, *options)
        first, second = described(evaluate_call["classifier"])  # as images go
        assert (first["name"], first["width"]) == ("feature_autoencoder", 4)
        assert (second["name"], second["jump"]) == ("jump_relu", 0.5)


def test_a_detector_is_fitted_on_the_training_images_or_comes_from_its_file(
    command: Command, weights: Path, digits: Dataset, evaluate_call: dict[str, Any], tmp_path: Path
) -> None:
    detector = ExplanationReconstructor(load_classifier(digits, weights=weights), hidden=16, score="l1")
    detector.fit(digits.train.x, nb_epochs=2, validation_split=0.25, seed=1, progress=False)
    detector.save(tmp_path / "fitted")
    expected = detector.network.state_dict()
    options = ["-o", "nb_epochs=2", "-o", "hidden=16", "-o", "score=l1", "--seed", 1]
    for detector_options in (options, ["--fitted", tmp_path / "fitted"]):
        evaluate_call.clear()
        command("evaluate", *WATCH, "--weights", weights, *detector_options)
        (defence,) = find_defences(evaluate_call["classifier"])
        assert defence.name == "explanation_reconstructor"
        assert (defence.describe()["hidden"], defence.describe()["score"]) == (16, "l1")
        (training,) = defence.trainings
        assert (training.settings["nb_epochs"], training.settings["seed"]) == (2, 1)
        for name, tensor in defence.state_dict().items():
            torch.testing.assert_close(tensor, expected[name])


@pytest.mark.usefixtures("no_training")
def test_each_option_that_is_a_whole_number_refuses_a_negative_one(command: Command) -> None:
    options = [option for option in evaluate_command.params if isinstance(option.type, click.types.IntParamType)]
    assert len(options) > 5
    for option in options:
        result = command("evaluate", option.opts[-1], -2)
        assert_one_sentence(result)
        assert f"{option.name} is -2" in result.err


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("defence", installed("defence"))
def test_each_option_of_a_defence_refuses_what_it_cannot_be(defence: str, command: Command) -> None:
    assert option_names(defence)
    for option in option_names(defence):
        result = command("evaluate", "--defence", defence, "-o", f"{option}={{}}")
        assert_one_sentence(result)
        assert f"{option} is {{}}" in result.err


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_an_error_is_one_sentence_with_status_2_and_nothing_is_written(
    arguments: Arguments, message: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of a module of the user's
    line = [word(tmp_path) if callable(word) else word for word in arguments]
    out = [] if "--out" in line else ["--out", tmp_path / "run"]
    before = tree(tmp_path)
    result = command("evaluate", *out, *line)
    assert_one_sentence(result)
    assert message in result.err
    assert tree(tmp_path) == before


def assert_one_sentence(result: Result) -> None:
    assert result.status == 2
    assert result.out == ""
    line, *page = result.err.splitlines()
    assert len(page) <= 1
    assert all(page_line.startswith("See: art-defenses docs ") for page_line in page)
    assert line.startswith("Error: ")
    assert "Traceback" not in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "--samples", "1.5"],
        ["evaluate", "--unknown"],
        ["evaluate", "--eps"],
        ["evaluate", "digits"],
        ["attack"],
    ],
    ids=" ".join,
)
def test_usage_errors_name_the_usage(arguments: list[str], command: Command, tmp_path: Path) -> None:
    result = command(*arguments)
    assert result.status == 2
    assert result.out == ""
    assert any(line.startswith("Error: ") for line in result.err.splitlines())
    assert "Traceback" not in result.err
    assert tree(tmp_path) == {}


# As a process: what importing says counts too


def process(*arguments: object, cwd: Path) -> Result:
    line = [sys.executable, "-m", "art_defenses_ext", *map(str, arguments)]
    completed = subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=300)
    return Result(completed.returncode, completed.stdout, completed.stderr)


def test_the_process_says_nothing_but_its_progress_on_stderr(quick_arguments: list[str], tmp_path: Path) -> None:
    """And that on a busy machine alone: a line each half minute."""
    result = process(*quick_arguments, "--samples", 2, "--threads", 1, "--out", "run", cwd=tmp_path)
    assert result.status == 0
    assert all(re.match(r"(attacks|training) \d+ of \d+", line) for line in result.err.splitlines()), result.err
    assert "run/report.html" in result.out
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("name", defence_names())
def test_a_defence_is_wished_for_without_options_wherever_its_training_takes_minutes(name: str) -> None:
    usual = () if name == "none" else load_face(name).usual_training
    for dataset in ("digits", *usual):
        check_spec(name, DefenceSpec(options={}, eps=0.1, seed=0), dataset)


def test_a_jump_for_each_rectifier_is_wished_for_whatever_the_network() -> None:
    check_spec("jump_relu", DefenceSpec(options={"jump": [0.1, 0.2, 0.3]}, eps=0.1, seed=0), "digits")
    with pytest.raises(InputError, match="jump"):
        check_spec("jump_relu", DefenceSpec(options={"jump": [0.1, -0.2]}, eps=0.1, seed=0), "digits")


# Noise


def test_quiet_is_silent_and_verbose_tells_of_each_attack(
    command: Command, quick_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PERIOD", -1.0)  # a line of progress at each step
    usual = command(*quick_arguments)
    assert "paper's attacks" in usual.out
    assert "attacks" in usual.err
    quiet = command(*quick_arguments, "--quiet")
    assert quiet.err == ""
    assert quiet.out.partition("Costs")[0] == usual.out.partition("Costs")[0]  # seconds differ
    monkeypatch.setattr(progress, "PERIOD", math.inf)
    verbose = command(*quick_arguments, "--verbose", "--out", tmp_path / "run")
    successes = re.findall(
        r"^\d\d:\d\d:\d\d images from 0 on: (.*) succeeds on (\d) of 8, in", verbose.err, re.MULTILINE
    )
    outcomes = [record.attacks for record in Report.load(tmp_path / "run").records]
    assert dict(successes) == {key: str(sum(outcome[key].success for outcome in outcomes)) for key in outcomes[0]}
    assert len(successes) == len(verbose.err.splitlines())


def test_an_interrupted_evaluation_says_how_it_goes_on_and_does(
    command: Command, quick_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack, begun = Work._attack, []

    def interrupted(self: Work, run: Any, *arguments: Any) -> Any:
        begun.append(run.key)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return attack(self, run, *arguments)

    monkeypatch.setattr(Work, "_attack", interrupted)
    line = [*quick_arguments, "--out", tmp_path / "run"]
    stopped = command(*line)
    assert (stopped.status, stopped.out) == (130, "")
    message = f"Finished attacks are kept in {tmp_path / 'run'}; the same command continues from there."
    assert stopped.err.splitlines() == ["", "Interrupted.", message]
    assert command(*line).status == 0
    assert begun[1] == begun[2]
    assert len(begun) == len(set(begun)) + 1  # none but the interrupted one is begun twice


@pytest.mark.parametrize(
    ("options", "message"),
    [([], "Nothing is kept without --out."), (["--out", "run", "--overwrite"], "same command without --overwrite")],
)
def test_an_interruption_says_what_is_kept(
    options: list[str], message: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("art_defenses_ext.cli.evaluate.Prepared.of", interrupted)
    stopped = command("evaluate", *options)
    assert stopped.status == 130
    assert message in stopped.err
