"""The command: what it prints and writes, and one sentence for whatever a user got wrong."""

from __future__ import annotations

import json
import logging
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from PIL import Image
from safetensors.torch import save_file

from art_defenses_ext import ExplanationReconstructor, FeatureAutoencoder, HeatAndBlur, JumpReLU, Linf, evaluate
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.base import progress
from art_defenses_ext.base.entry_points import installed
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.cli.app import main
from art_defenses_ext.cli.defences import Wishes, check_wishes, defence_names
from art_defenses_ext.cli.evaluate import evaluate_command
from art_defenses_ext.defence.registry import load_face
from art_defenses_ext.evaluation.config import SETS, EvaluationConfig
from art_defenses_ext.evaluation.run.folder import RECORDS
from art_defenses_ext.evaluation.suite.papers import paper_specs
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.suite.suites import DETECTOR_SUITE, FULL, STANDARD
from art_defenses_ext.zoo.catalogue import MODELS
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import DATASETS, Dataset
from art_defenses_ext.zoo.models import build_model

OPTIONS = [name for option in evaluate_command.params for name in (*option.opts, *option.secondary_opts)]


@dataclass
class Result:
    """What a command left behind."""

    status: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs ``art-defenses`` in this process and in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "COLUMNS", "TERMINAL_WIDTH", "ART_DEFENSES_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress, "PERIOD", math.inf)  # on a busy machine lines of progress would come in between
    level, threads = logging.getLogger("art").level, torch.get_num_threads()

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["art-defenses", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return Result(int(left.value.code or 0), out, err)

    yield run
    logging.getLogger("art").setLevel(level)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(digits_classifier: PyTorchClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained network's weights, so that no test here has to train."""
    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    save_file(digits_classifier.model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def quick(weights: Path) -> list[str]:
    """An evaluation of a second."""
    options = {"--weights": weights, "-o": "jump=1", "--attacks": "papers", "--samples": 20}
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


def test_list_names_all_that_can_be_chosen(command: Command) -> None:
    """Each name whole on its line, in a terminal of the usual width."""
    lines, details = (
        [f"{line} " for line in command("list", *names).out.splitlines()]
        for names in ((), (*installed("defence"), "full"))
    )
    papers = (paper_specs(load_face(name)) for name in installed("defence"))
    attacks = [spec.name for specs in (*papers, FULL, DETECTOR_SUITE) for spec in specs]
    for name in (*defence_names(), *DATASETS, *MODELS, *SETS):
        assert any(f" {name} " in line for line in lines), name
    for name in attacks:
        assert any(f" {name} " in line for line in details), name
    assert all(load_face(name).title[:20] in " ".join(lines) for name in installed("defence"))
    assert max(map(len, lines)) <= 81


def test_list_says_which_set_an_attack_first_stands_in(command: Command) -> None:
    lines = [words(line) for line in command("list", *installed("defence"), "full").out.splitlines()]
    papers = [spec for specs in (paper_specs(load_face(name)) for name in installed("defence")) for spec in specs]
    sets = {"papers": papers, "standard": STANDARD, "full": FULL[len(STANDARD) :]}
    assert tuple(sets) == SETS
    for name, specs in sets.items():
        shown = [line for line in lines if line.startswith(f"attacks {name} ")]
        assert len(shown) == len(specs)
        assert all(line.startswith(f"attacks {name} {spec.name} ") for line, spec in zip(shown, specs, strict=True))


@pytest.mark.parametrize("columns", [None, 80, 200])
def test_help_mentions_every_option(columns: int | None, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    if columns is not None:
        monkeypatch.setenv("COLUMNS", str(columns))
    result = command("evaluate", "--help")
    assert (result.status, result.err) == (0, "")
    for option in OPTIONS:
        assert re.search(rf"(^|\s){option}[\s,]", result.out), option
    for name in (*MODELS, *DATASETS, *SETS):
        assert name in words(result.out), name


def test_help_mentions_every_command(command: Command) -> None:
    for arguments in (["--help"], []):
        out = command(*arguments).out
        assert "evaluate" in out
        assert "list" in out


# An evaluation


def test_evaluate_prints_and_writes_its_report(command: Command, quick: list[str], tmp_path: Path) -> None:
    result = command(*quick, "--out", tmp_path / "run")
    assert (result.status, result.err) == (0, "")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert f"{100 * report['after_attacks']['rate']:.1f}" in result.out
    assert str(tmp_path / "run" / "report.html") in result.out
    assert all(spec.name in result.out for spec in paper_specs(JumpReLU))
    assert len((tmp_path / "run" / RECORDS).read_text().splitlines()) == 20
    assert (tmp_path / "run" / "report.html").stat().st_size > 0
    assert report["run"]["command"].startswith("art-defenses evaluate --weights")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_it_is_the_evaluation_of_the_library(
    command: Command, quick: list[str], weights: Path, digits: Dataset, tmp_path: Path
) -> None:
    """The options reach ``evaluate``: both write the same bytes."""
    command(*quick, "--out", tmp_path / "a", "--eps", 0.08, "--seed", 3, "--block-size", 8)
    defended = JumpReLU(load_classifier(digits, weights=weights), 1.0)()
    x, y = digits.test.x[:20], digits.test.y[:20]
    evaluate(defended, x, y, Linf(0.08), "papers", seed=3, block_size=8, out=tmp_path / "b")
    files = [(tmp_path / name / RECORDS).read_bytes() for name in "ab"]
    assert files[0] == files[1]
    settings = [json.loads((tmp_path / name / "report.json").read_text())["run"]["settings"] for name in "ab"]
    assert settings[0] == settings[1]


def test_without_out_nothing_is_written(command: Command, quick: list[str], tmp_path: Path) -> None:
    result = command(*quick, "--samples", 2)
    assert result.status == 0
    assert "report.html" not in result.out
    assert tree(tmp_path) == {}


def test_the_standard_set_on_the_bare_classifier_in_the_other_norm(
    command: Command, weights: Path, tmp_path: Path
) -> None:
    arguments = ["evaluate", "--defence", "none", "--norm", "l2", "--eps", 5, "--allow-large-eps", "--samples", 4]
    arguments += ["--curve-samples", 2, "--check-samples", 1]
    torch.set_num_threads(2)
    result = command(*arguments, "--weights", weights, "--out", tmp_path / "run", "--threads", 1)
    assert (result.status, result.err) == (0, "")
    assert torch.get_num_threads() == 1
    run = json.loads((tmp_path / "run" / "report.json").read_text())["run"]
    settings = run["settings"]
    del settings["seed"], settings["block_size"]
    assert settings == {
        "threat": "l2",
        "eps": 5.0,
        "attacks": "standard",
        "samples": 4,
        "curve_samples": 2,
        "check_samples": 1,
        "adaptive": True,
    }
    assert (run["defences"], run["threads"]) == ([], 1)
    # A plain network has no surrogate to anneal.
    assert all(spec.name in result.out for spec in STANDARD if spec.modes != "annealable")
    assert "Did the attacks work?" in result.out


def test_a_naive_attackers_result_is_not_established(command: Command, weights: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "--weights", weights, "-o", "jump=1", "--eps", 0.5, "--samples", 2, "--curve-samples", 0]
    arguments += ["--check-samples", 1, "--naive", "--out", tmp_path / "run"]
    result = command(*arguments)
    assert (result.status, result.err) == (0, "")
    assert "not adaptive: gradient mode exact alone" in words(result.out)
    assert "not established" in result.out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["established"] is False
    assert report["run"]["settings"]["adaptive"] is False
    assert report["run"]["modes"] == ["exact"]
    (check,) = [one for one in report["checks"] if one["name"] == "gradient modes"]
    assert (check["verdict"], check["figures"]) == ("failed", {"withheld": ["relu", "smooth"]})


def test_checks_can_be_left_out(command: Command, weights: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "--weights", weights, "--defence", "none", "--samples", 1, "--curve-samples", 0]
    result = command(*arguments, "--check-samples", 0, "--out", tmp_path / "run")
    assert (result.status, result.err) == (0, "")
    assert "Did the attacks work?" not in result.out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["checks"], report["established"]) == ([], None)


def test_the_full_set_reaches_the_evaluation(command: Command, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all else that the options say; it takes too long to be run here."""
    given: dict[str, Any] = {}

    def listen(classifier: PyTorchClassifier, x: Any, y: Any, threat: Any, attacks: str, **options: Any) -> Any:
        given.update(options, attacks=attacks, threat=threat, count=len(x))
        raise InputError("that is all")

    monkeypatch.setattr("art_defenses_ext.evaluation.evaluate.evaluate", listen)
    arguments = ["evaluate", "--weights", weights, "-o", "jump=1", "--attacks", "full", "--eps", 0.2, "--samples", 7]
    assert command(*arguments, "--check-samples", 3, "--naive").status == 2
    assert (given["attacks"], given["threat"], given["count"]) == ("full", Linf(0.2), 7)
    assert given["config"] == EvaluationConfig(check_samples=3, adaptive=False)
    assert command(*arguments).status == 2
    assert given["config"] == EvaluationConfig()


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
    command: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def listen(classifier: PyTorchClassifier, x: Any, y: Any, *_: Any, **options: Any) -> Any:
        given.update(options, classes=classifier.nb_classes, x=x, y=y)
        raise InputError("that is all")

    monkeypatch.setattr("art_defenses_ext.evaluation.evaluate.evaluate", listen)
    torch.save(build_model("squeezenet1_1").state_dict(), tmp_path / "squeezenet.pt")
    arguments = ["evaluate", "--dataset", "image_folder", "--data", images, "--weights", tmp_path / "squeezenet.pt"]
    assert command(*arguments, "--defence", "none").err == "Error: that is all\n"
    assert (given["classes"], given["x"].shape, given["config"].block_size) == (1000, (2, 3, 224, 224), 32)
    assert sorted(given["y"]) == [0, 2]
    command(*arguments, "--defence", "none", "--samples", 1, "--block-size", 5)
    assert (len(given["x"]), given["config"].block_size) == (1, 5)


def test_a_network_of_ones_own_takes_images_of_their_own_size(command: Command, images: Path, tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (12, 8), (number, 0, 0)).save(images / f"{number}.png")
    (tmp_path / "own_for_images_for_test_cli.py").write_text(
        "from torch import nn\ndef build(): return nn.Sequential(nn.Flatten(), nn.Linear(288, 10), nn.ReLU())\n"
    )
    arguments = ["--dataset", "image_folder", "--data", images, "--model", "own_for_images_for_test_cli:build"]
    result = command("evaluate", *arguments, "-o", "jump=0.1", "--attacks", "papers")
    assert (result.status, result.err) == (0, "")


@pytest.mark.parametrize("drop", [0.0, 0.05])
def test_the_jump_is_tuned_on_validation_images(
    drop: float, command: Command, weights: Path, digits: Dataset, tmp_path: Path
) -> None:
    arguments = ["evaluate", "--weights", weights, "--attacks", "papers", "--samples", 1, "--out", tmp_path / "run"]
    assert command(*arguments, "-o", f"max_accuracy_drop={drop}").status == 0
    (defence,) = json.loads((tmp_path / "run" / "report.json").read_text())["run"]["defences"]
    plain = load_classifier(digits, weights=weights)
    x, y = digits.validation.x, digits.validation.y
    accuracies = [
        (one.predict(x).argmax(axis=1) == y).mean() for one in (plain, JumpReLU(plain, jump=defence["jump"])())
    ]
    assert accuracies[1] >= accuracies[0] - drop - 1e-9
    assert defence["jump"] > 0


def test_a_network_of_ones_own(command: Command, tmp_path: Path) -> None:
    (tmp_path / "own_for_test_cli.py").write_text(
        "from torch import nn\n"
        "def build(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))\n"
    )
    arguments = ["--model", "own_for_test_cli:build", "--mean", "0.5", "--std", "0.25", "-o", "jump=0.1"]
    result = command("evaluate", *arguments, "--attacks", "papers", "--samples", 4)
    assert (result.status, result.err) == (0, "")
    assert "Sequential" in result.out


def test_an_earlier_run_is_replaced_only_when_asked(command: Command, quick: list[str], tmp_path: Path) -> None:
    assert command(*quick, "--samples", 2, "--out", "run").status == 0
    before = tree(tmp_path)
    refused = command(*quick, "--samples", 3, "--out", "run")
    assert refused.status == 2
    assert "overwrite" in refused.err
    assert tree(tmp_path) == before
    assert command(*quick, "--samples", 3, "--out", "run", "--overwrite").status == 0
    assert len((tmp_path / "run" / RECORDS).read_text().splitlines()) == 3


# Shared, compared, published


def test_parts_are_merged_into_the_run_of_one_process(command: Command, quick: list[str], tmp_path: Path) -> None:
    cut = [*quick, "--samples", 7, "--block-size", 2]
    assert command(*cut, "--out", "whole").status == 0
    for number in (2, 1):
        part = command(*cut, "--out", "run", "--shard", f"{number}/2")
        assert (part.status, part.err) == (0, "")
        assert "art-defenses merge run" in part.out
    assert not (tmp_path / "run" / "report.json").exists()
    merged = command("merge", "run")
    assert (merged.status, merged.err) == (0, "")
    assert "run/report.html" in merged.out
    assert (tmp_path / "run" / RECORDS).read_bytes() == (tmp_path / "whole" / RECORDS).read_bytes()


def test_a_launcher_says_which_part_to_do(
    command: Command, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert command(*quick, "--samples", 4, "--block-size", 1, "--out", "run").status == 0
    assert len((tmp_path / "run" / "shards" / "2-of-3" / RECORDS).read_text().splitlines()) == 1
    assert command(*quick, "--samples", 4, "--out", "all", "--shard", "1/1").status == 0
    assert (tmp_path / "all" / "report.json").exists()
    refused = command(*quick, "--samples", 4)
    assert refused.status == 2
    assert "out is missing" in refused.err


def test_runs_are_compared_and_published(command: Command, weights: Path, digits: Dataset, tmp_path: Path) -> None:
    def pgd(classifier: PyTorchClassifier, threat: Linf, seed: int) -> MarginPGD:
        return MarginPGD(classifier, threat.norm, threat.eps, max_iter=3, seed=seed)

    attacks = [AttackSpec("PGD", pgd, "a few steps", kind="white-box", modes="all")]
    for name, jump in (("a", 1.0), ("b", 0.5)):
        defended = JumpReLU(load_classifier(digits, weights=weights), jump)()
        part = digits.test.x[:6], digits.test.y[:6]
        evaluate(defended, *part, Linf(0.1), attacks, out=tmp_path / name, curve_samples=0, check_samples=1)
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
    assert "not there" in plain.out
    (tmp_path / "own_for_doctor.py").write_text(
        "import torch\nfrom art.estimators.classification import PyTorchClassifier as C\n"
        "def build():\n    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))\n"
        "    return C(network, torch.nn.CrossEntropyLoss(), (1, 2, 2), 2)\n"
    )
    found = command("doctor", "--classifier", "own_for_doctor:build")
    assert found.status == 0
    assert "no clip values" in found.out
    assert "docs/traps.md" in found.out
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


def _earlier_run(folder: Path) -> Path:
    (folder / "earlier").mkdir()
    (folder / "earlier" / RECORDS).write_text("")
    return folder / "earlier"


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
    "unknown attacks": (["--attacks", "strong"], "attacks is 'strong'; one of papers"),
    "unknown norm": (["--norm", "1"], "norm is '1'; linf or l2"),
    "papers of no defence": (["--defence", "none", "--attacks", "papers"], "attacks is 'papers', but"),
    "eps 0": (["--eps", 0], "eps is '0'"),
    "negative eps": (["--eps", -0.1], "eps is '-0.1'"),
    "eps nan": (["--eps", "nan"], "eps is 'nan'"),
    "eps inf": (["--eps", "inf"], "eps is 'inf'"),
    "eps in words": (["--eps", "much"], "eps is 'much'; a finite number > 0, or a fraction such as '8/255'"),
    "eps over zero": (["--eps", "8/0"], "eps is '8/0'"),
    "eps of other units": (["--eps", 8], "eps is 8, beyond half the clip range (0.5 in linf)"),
    "eps of other units in l2": (["--norm", "l2", "--eps", 255], "eps is 255, beyond half the clip range (4 in l2)"),
    "no samples": (["--samples", 0], "samples is 0; a whole number of at least 1"),
    "negative samples": (["--samples", -1], "samples is -1"),
    "no images": (["--dataset", "image_folder", "--data", "."], "holds no images; .jpg"),
    "too many samples": (["--samples", 501], "samples is 501"),
    "no data folder": (["--data", "nowhere"], "data is 'nowhere'; an existing folder"),
    "data is a file": (["--data", _text_file], "data is "),
    "out is a file": (["--out", _text_file], "out is "),
    "out below a file": (["--out", lambda folder: _text_file(folder) / "run"], "out is "),
    "out too long": (["--out", "x" * 300], "out is "),
    "an earlier run": (["--out", _earlier_run], "out is "),
    "no part": (["--shard", "3/2"], "shard is "),
    "unknown network": (["--model", "alexnet"], "model is 'alexnet'"),
    "network for other images": (["--model", "resnet20"], "model resnet20 takes images (3, 32, 32)"),
    "no module": (["--model", "nowhere_at_all:build"], "model is 'nowhere_at_all:build'"),
    "a module that fails": (["--model", _broken_module], "model is 'broken_for_test_cli:build'"),
    "a network without a ReLU": (["--model", _without_relu], "calls no ReLU"),
    "no weights there": (["--weights", "none.pt"], "weights is 'none.pt'"),
    "weights that are none": (["--weights", _text_file], "weights is "),
    "weights that do not fit": (["--weights", _other_weights], "do not fit DigitsCNN"),
    "weights and epochs": (["--weights", _other_weights, "--epochs", 1], "weights and epochs were both given"),
    "mean of letters": (["--mean", "a,b"], "mean is 'a,b'; numbers with commas between"),
    "empty mean": (["--mean", ""], "mean is ''; numbers with commas between"),
    "mean with spaces": (["--mean", "0.1 0.2"], "mean is '0.1 0.2'"),
    "too many means": (["--mean", "0.1,0.2"], "mean is [0.1, 0.2]; 1 finite number"),
    "mean nan": (["--mean", "nan"], "mean is [nan]"),
    "std of letters": (["--std", "wide"], "std is 'wide'"),
    "std 0": (["--std", "0"], "std is [0.0]; numbers > 0"),
    "negative std": (["--std", "-1"], "std is [-1.0]; numbers > 0"),
    "epochs 0": (["--epochs", 0], "epochs is 0"),
    "negative epochs": (["--epochs", -1], "epochs is -1"),
    "negative jump": (["-o", "jump=-1"], "jump is -1; a finite number >= 0"),
    "jump nan": (["-o", "jump=NaN"], "jump is nan"),
    "a word for a jump": (["-o", "jump=high"], "jump is 'high'"),
    "drop of more than all": (["-o", "max_accuracy_drop=1.5"], "max_accuracy_drop is 1.5"),
    "negative drop": (["-o", "max_accuracy_drop=-0.1"], "max_accuracy_drop is -0.1"),
    "a jump and how to choose it": (["-o", "jump=1", "-o", "max_accuracy_drop=0.1"], "but jump is given, which a fit"),
    "unknown option": ([*HEAT, "--option", "strength=1"], "option is 'strength=1'; NAME=VALUE with one of chunk_size"),
    "option without value": ([*HEAT, "-o", "sigma"], "option is 'sigma'; NAME=VALUE"),
    "option out of range": ([*HEAT, "-o", "sigma=0"], "sigma is 0; a finite number > 0"),
    "option of letters": ([*HEAT, "-o", "sigma=wide"], "sigma is 'wide'; a finite number > 0"),
    "unknown reading": ([*HEAT, "-o", "mix=paint"], "mix is 'paint'; one of blend"),
    "option of none": (["--defence", "none", "-o", "sigma=1"], "option is 'sigma=1'; none, since none has no options"),
    "option of another defence": (["-o", "sigma=1"], "option is 'sigma=1'; NAME=VALUE with one of jump, width, copy"),
    "unknown input": ([*CODER, "-o", 'inputs=["rain"]'], "inputs is ['rain']; a list of clean, noise"),
    "no epoch": ([*CODER, "-o", "nb_epochs=0"], "nb_epochs is 0; a whole number of at least 1"),
    "unknown attack mode": ([*CODER, "-o", "attack_mode=best"], "attack_mode is 'best'; one of exact"),
    "adversarial by half": ([*CODER, "-o", "adversarial=0.5"], "adversarial is 0.5; True or False"),
    "unknown map": (["--defence", "two_stream_restoration", "-o", "map=sea"], "map is 'sea'; one of stacked"),
    "restorer of long training": (
        [*CODER, "--dataset", "cifar10"],
        "feature_autoencoder must be trained, which takes long on cifar10; --fitted FILE",
    ),
    "an attack mode of a detector": (
        [*WATCH, "-o", "eps=0.1"],
        "option is 'eps=0.1'; NAME=VALUE with one of explanation",
    ),
    "unknown explanation": ([*WATCH, "-o", "explanation=words"], "explanation is 'words'; one of input_gradient"),
    "no epoch of a detector": ([*WATCH, "-o", "nb_epochs=0"], "nb_epochs is 0; a whole number of at least 1"),
    "half a batch": ([*WATCH, "-o", "batch_size=0.5"], "batch_size is 0.5; a whole number"),
    "all held out": ([*WATCH, "-o", "validation_split=1"], "validation_split is 1; a number between 0 and 1"),
    "detector of long training": (
        [*WATCH, "--dataset", "image_folder"],
        "explanation_reconstructor must be trained, which takes long on image_folder; --fitted FILE",
    ),
    "one defence twice": ([*HEAT, *HEAT], "defence is 'heat_and_blur' twice"),
    "none beside another": ([*HEAT, "--defence", "none"], "'none' only alone"),
    "something after a detector": ([*WATCH, *HEAT], "the detector as the last"),
    "an option of nobody": (
        [*HEAT, *WATCH, "-o", "sigma=2"],
        "option is 'sigma=2'; DEFENCE.NAME=VALUE with one of heat",
    ),
    "an option of another": ([*HEAT, "-o", "jump_relu.sigma=2"], "option is 'jump_relu.sigma=2'; NAME=VALUE"),
    "a file of nobody": ([*CODER, *WATCH, "--fitted", "x"], "fitted is x; DEFENCE=FILE"),
    "a file of another": ([*CODER, "--fitted", "jump_relu=x"], "jump_relu is not among the defences"),
    "missing fitted file": ([*CODER, "--fitted", "nowhere"], "fitted is nowhere; an existing file"),
    "fitted file of a defence without training": ([*HEAT, "--fitted", "x"], "heat_and_blur is not fitted; no file"),
    "fitted file and option": ([*CODER, "--fitted", "x", "-o", "width=2"], "a file holds its own options"),
    "negative seed": (["--seed", -1], "seed is -1"),
    "seed beyond 64 bits": (["--seed", 2**64], f"seed is {2**64}"),
    "block size 0": (["--block-size", 0], "block_size is 0"),
    "negative block size": (["--block-size", -5], "block_size is -5"),
    "negative curve": (["--curve-samples", -1], "curve_samples is -1"),
    "negative checks": (["--check-samples", -1], "check_samples is -1; a whole number >= 0"),
    "unknown device": (["--device", "tpu"], "device is 'tpu'"),
    "no CUDA": (["--device", "cuda"], "device is 'cuda'"),
    "no thread": (["--threads", 0], "threads is 0; a whole number from 1 to 4096"),
    "negative threads": (["--threads", -2], "threads is -2; a whole number from 1 to 4096"),
}


def test_options_reach_the_defence(command: Command, weights: Path, tmp_path: Path) -> None:
    """Numbers as numbers, names as names; with the papers' attacks on the bare network, and every gradient mode."""
    options = ("-o", "sigma=0.5", "-o", "mix=soft_mask", "-o", "passes=2", "-o", "floor=0.25")
    run_options = ["--attacks", "papers", "--samples", 12, "--check-samples", 0]
    arguments: Arguments = ["--weights", weights, *run_options, "--out", tmp_path / "run"]
    result = command("evaluate", *HEAT, *options, *arguments)
    assert result.status == 0
    run = json.loads((tmp_path / "run" / "report.json").read_text())["run"]
    (defence,) = run["defences"]
    assert defence["name"] == "heat_and_blur"
    assert [defence[name] for name in ("sigma", "mix", "passes", "floor")] == [0.5, "soft_mask", 2, 0.25]
    assert run["modes"] == ["exact", "frozen", "smooth", "identity"]
    for attack in paper_specs(HeatAndBlur):
        assert attack.name in result.out


RESTORERS = {
    "feature_autoencoder": (["-o", "width=4"], {"width": 4}, ["exact", "smooth", "identity"]),
    "two_stream_restoration": (
        ["-o", "width=4", "-o", "map=sum", "-o", "blocks=1"],
        {"width": 4, "map": "sum", "blocks": 1},
        ["exact", "frozen", "smooth", "identity"],
    ),
}


@pytest.mark.parametrize("defence", RESTORERS)
def test_a_restorer_is_trained_against_the_threat_and_attacked_in_its_gradient_modes(
    defence: str, command: Command, weights: Path, tmp_path: Path
) -> None:
    options, wanted, modes = RESTORERS[defence]
    training: Arguments = ["-o", "nb_epochs=1", "-o", 'inputs=["clean", "fgsm"]', "-o", "adversarial=true"]
    run_options: Arguments = ["--attacks", "papers", "--samples", 12, "--check-samples", 0, "--eps", 0.05]
    result = command(
        "evaluate",
        "--defence",
        defence,
        "--weights",
        weights,
        *options,
        *training,
        *run_options,
        "--out",
        tmp_path / "run",
    )
    assert result.status == 0, result.err
    run = json.loads((tmp_path / "run" / "report.json").read_text())["run"]
    (described,) = run["defences"]
    assert {name: described[name] for name in wanted} == wanted
    assert run["modes"] == modes
    plain, adversarial = (training["settings"] for training in run["trainings"])
    assert (plain["eps"], plain["nb_epochs"], plain["inputs"]) == (0.05, 1, ["clean", "fgsm"])
    assert adversarial["loss"]["class_weight"] == 1
    assert (tmp_path / "run" / "figures" / "losses.png").is_file()
    assert adversarial["inputs"] == ["clean", "end_to_end"]
    assert "1 epoch(s) on 898 images: clean; fgsm; eps 0.05" in words(result.out)
    for attack in paper_specs(load_face(defence)):
        assert attack.name in result.out


def test_a_file_repeats_a_call_and_what_is_typed_wins(command: Command, quick: list[str], tmp_path: Path) -> None:
    typed: Arguments = [*quick, "--samples", 3, "--seed", 2, "--naive", "--mean", "0.3", "--out", "a b"]
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
        ("mean = [true]", "mean is [True]; numbers with commas between"),
        ("eps = [1]", "eps is [1]; a number, or a fraction such as '8/255', was expected"),
        ("[seed]", "seed is {}; a whole number"),
        ("seed 1", "config is 'run.toml', which is no TOML ("),
        (b"\xff", "config is 'run.toml', which is no TOML ("),
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


def test_several_defences_are_put_on_one_after_the_other(
    command: Command, weights: Path, digits: Dataset, tmp_path: Path
) -> None:
    """Each is fitted to what stands already; their options and files go by their names."""
    jumping = JumpReLU(load_classifier(digits, weights=weights), 0.5)()
    restorer = FeatureAutoencoder.for_classifier(jumping, width=4)
    restorer.fit(digits.train.x[:64], digits.train.y[:64], eps=0.1, nb_epochs=1, progress=False)
    restorer.save(tmp_path / "fitted")
    pair: Arguments = [
        "--weights",
        weights,
        "--defence",
        "jump_relu",
        "-o",
        "jump_relu.jump=0.5",
        "--defence",
        "feature_autoencoder",
    ]
    run: Arguments = ["--attacks", "papers", "--samples", 4, "--out", "run"]
    assert command("evaluate", *pair, "--fitted", f"feature_autoencoder={tmp_path / 'fitted'}", *run).status == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [one["name"] for one in report["run"]["defences"]] == ["feature_autoencoder", "jump_relu"]  # as images go
    assert report["run"]["modes"][0] == "exact+exact"
    assert report["undefended_clean"]["total"] == 4
    trained: Arguments = ["-o", "feature_autoencoder.width=4", "-o", "feature_autoencoder.nb_epochs=1"]
    assert command("evaluate", *pair, *trained, *run, "--overwrite").status == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["run"]["defences"][0]["width"] == 4


@pytest.mark.usefixtures("no_training")
def test_a_fitted_restorer_comes_from_its_file(
    command: Command, weights: Path, own_classifier: PyTorchClassifier, tmp_path: Path
) -> None:
    restorer = FeatureAutoencoder.for_classifier(own_classifier, width=4)
    restorer.load_state_dict(restorer.state_dict())
    restorer.save(tmp_path / "fitted")
    run_options: Arguments = ["--attacks", "papers", "--samples", 12, "--check-samples", 0, "--out", tmp_path / "run"]
    arguments: Arguments = ["--defence", "feature_autoencoder", "--weights", weights, "--fitted", tmp_path / "fitted"]
    assert command("evaluate", *arguments, *run_options).status == 0
    (described,) = json.loads((tmp_path / "run" / "report.json").read_text())["run"]["defences"]
    assert described["width"] == 4


def test_a_detector_is_fitted_on_the_training_images_or_comes_from_its_file(
    command: Command, weights: Path, digits: Dataset, tmp_path: Path
) -> None:
    options: Arguments = ["-o", "nb_epochs=3", "-o", "hidden=16", "-o", "score=l1", "--seed", 1]
    run_options: Arguments = ["--weights", weights, "--attacks", "papers", "--samples", 12, "--check-samples", 0]
    result = command("evaluate", *WATCH, *run_options, *options, "--out", tmp_path / "a")
    assert (result.status, result.err) == (0, "")
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    (described,) = report["run"]["defences"]
    assert (described["name"], described["hidden"], described["score"]) == ("explanation_reconstructor", 16, "l1")
    (training,) = report["run"]["trainings"]
    assert (training["settings"]["nb_epochs"], training["settings"]["seed"]) == (3, 1)
    assert 700 < training["settings"]["images"] < len(digits.train.x)  # a quarter sets the thresholds
    assert "At its own threshold the detector rejects" in words(result.out)
    for attack in paper_specs(ExplanationReconstructor):
        assert attack.name in result.out
    assert {row["knows"] for row in report["detection"]["rows"]} == {"zero"}

    classifier = load_classifier(digits, weights=weights)
    detector = ExplanationReconstructor(classifier, hidden=16, score="l1")
    detector.fit(digits.train.x, nb_epochs=3, validation_split=0.25, seed=1, progress=False)
    detector.save(tmp_path / "fitted")
    result = command("evaluate", *WATCH, *run_options, "--seed", 1, "--fitted", tmp_path / "fitted", "--out", "b")
    assert (result.status, result.err) == (0, "")
    records = [(tmp_path / name / RECORDS).read_bytes() for name in "ab"]
    assert records[0] == records[1]


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_it_is_one_sentence_status_2_and_nothing_is_written(
    arguments: Arguments, message: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of a module of the user's
    given = [word(tmp_path) if callable(word) else word for word in arguments]
    out = [] if "--out" in given else ["--out", tmp_path / "run"]
    before = tree(tmp_path)
    result = command("evaluate", *out, *given)
    assert_one_sentence(result)
    assert message in result.err
    assert tree(tmp_path) == before


def assert_one_sentence(result: Result) -> None:
    assert result.status == 2
    assert result.out == ""
    line, *page = result.err.splitlines()
    assert len(page) <= 1
    assert all(one.startswith("See docs/") for one in page)
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
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=300)
    return Result(done.returncode, done.stdout, done.stderr)


def test_the_process_says_nothing_but_its_progress_on_stderr(quick: list[str], tmp_path: Path) -> None:
    """And that on a busy machine alone: a line each half minute."""
    result = process(*quick, "--samples", 2, "--threads", 1, "--out", "run", cwd=tmp_path)
    assert result.status == 0
    assert all(re.match(r"(attacks|training) \d+ of \d+", line) for line in result.err.splitlines()), result.err
    assert "run/report.html" in result.out
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_process_fails_in_a_sentence(tmp_path: Path) -> None:
    result = process("evaluate", "--eps", 0, "--out", "run", cwd=tmp_path)
    assert_one_sentence(result)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("name", defence_names())
def test_a_defence_is_wished_for_without_options_wherever_its_training_takes_minutes(name: str) -> None:
    usual = () if name == "none" else load_face(name).usual_training
    for dataset in ("digits", *usual):
        check_wishes(name, Wishes(options={}, eps=0.1, seed=0), dataset)
