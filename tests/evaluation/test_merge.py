"""A run that was killed, or split over several processes, equals the run of a single process."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from art.estimators.classification import PyTorchClassifier
from safetensors.torch import save_file

from art_defenses_ext import JumpReLU, Linf
from art_defenses_ext.attack.random_noise import RandomNoise
from art_defenses_ext.base.arrays import FloatArray, StoredImages
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation import task as module
from art_defenses_ext.evaluation.evaluate import evaluate_shard
from art_defenses_ext.evaluation.merge import merge
from art_defenses_ext.evaluation.records.phases import PHASES
from art_defenses_ext.evaluation.records.sample import SampleRecord
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.run import describe
from art_defenses_ext.evaluation.run.folder import (
    EXAMPLES,
    FINDINGS,
    RECORDS,
    read_costs,
    read_manifest,
    read_records,
)
from art_defenses_ext.evaluation.run.shard import WHOLE, Shard
from art_defenses_ext.evaluation.suite.plan import AttackRun
from art_defenses_ext.evaluation.suite.spec import AttackSpec

from .run import test_identity

pytestmark = pytest.mark.usefixtures("without_pictures")

SAMPLES, BLOCK = 23, 4
"""Samples and block size of the finished run."""


@pytest.fixture
def complete_run(finished_run: Any) -> Path:
    """The folder of a run in one go."""
    folder: Path = finished_run.folder
    return folder


def make_parts(run: Any, out: Path, count: int, numbers: Sequence[int] = (), **changes: Any) -> list[Path]:
    """Do some parts of the run, by default all."""
    call = run.call | run.options | changes
    return [evaluate_shard(**call, shard=Shard(number, count), out=out) for number in numbers or range(1, count + 1)]


def without_curve(records: list[SampleRecord]) -> list[SampleRecord]:
    """Records as a run without a curve has them."""
    return [
        replace(record, attacks={key: outcome for key, outcome in record.attacks.items() if " @ " not in key})
        for record in records
    ]


def assert_same_run(a: Path, b: Path) -> None:
    """Compare two runs byte for byte, but for seconds and memory."""
    assert (a / RECORDS).read_bytes() == (b / RECORDS).read_bytes()
    names = [sorted(path.name for path in (folder / EXAMPLES).iterdir()) for folder in (a, b)]
    left, right = Report.load(a), Report.load(b)
    assert [(example.index, example.attack) for example in left.examples] == [
        (example.index, example.attack) for example in right.examples
    ]
    assert names[0] == names[1] or len(names[0]) < len(names[1])  # a part may keep one that another part had before
    for example, other_example in zip(left.examples, right.examples, strict=True):
        assert np.array_equal(example.adversarial, other_example.adversarial)
    assert left.records == right.records
    assert [replace(row, seconds=0) for row in left.summary.rows] == [
        replace(row, seconds=0) for row in right.summary.rows
    ]
    assert left.summary.checks == right.summary.checks
    assert left.summary.curves == right.summary.curves


# Parts


def test_the_run_is_not_trivial(complete_run: Path) -> None:
    report = Report.load(complete_run)
    assert 0 < report.summary.worst_case.count < report.summary.clean.count
    assert len(report.examples) >= 2
    assert len([row for row in report.summary.rows if row.broke]) >= 2


def test_parts_of_any_size_merge_to_the_same_bytes_also_after_a_kill(
    finished_run: Any, complete_run: Path, tmp_path: Path
) -> None:
    """The number of samples is odd, the order is arbitrary, and the seventh part of six blocks is empty."""
    folders = [*make_parts(finished_run, tmp_path / "a", 4, [4, 2]), *make_parts(finished_run, tmp_path / "b", 2, [1])]
    folders += make_parts(finished_run, tmp_path / "c", 7, [7])
    out = tmp_path / "out"
    report = merge(folders, out)
    assert_same_run(complete_run, out)
    assert report.accuracy_after_attacks == finished_run.report.accuracy_after_attacks
    assert (out / "report.html").stat().st_size > 0
    (out / RECORDS).write_bytes((out / RECORDS).read_bytes()[:-100])
    merge(folders, out)
    assert_same_run(complete_run, out)


def test_a_finished_run_is_merged_alone_and_not_overwritten_by_itself(complete_run: Path, tmp_path: Path) -> None:
    shutil.copytree(complete_run, tmp_path / "run")
    with pytest.raises(InputError, match="which is to be merged"):
        merge([tmp_path / "run"], tmp_path / "run", overwrite=True)
    assert_same_run(complete_run, tmp_path / "run")
    merge([tmp_path / "run"], tmp_path / "run")
    assert_same_run(complete_run, tmp_path / "run")


def test_the_command_of_a_merged_run_makes_the_whole(complete_run: Path) -> None:
    manifest = read_manifest(complete_run)
    run = replace(manifest.run, command="art-defenses evaluate --out a --shard 1/3", options={"dataset": "digits"})
    part = replace(manifest, run=run, shard=Shard(1, 3))
    assert part.whole([]).run.command == "art-defenses evaluate --out a"
    assert part.whole([]).binding == replace(part, shard=WHOLE).binding


def test_a_report_opens_in_another_folder(complete_run: Path, tmp_path: Path) -> None:
    """The report needs no data, no network and not the machine that wrote it."""
    shutil.copytree(complete_run, tmp_path / "elsewhere")
    report = Report.load(tmp_path / "elsewhere")
    assert report.summary.run == Report.load(complete_run).summary.run
    report.save(tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "report.json").read_bytes() == (complete_run / "report.json").read_bytes()
    assert str(complete_run) not in (complete_run / "report.html").read_text()


class Stored(StoredImages):
    """An array that says when it is read."""

    def __init__(self, x: FloatArray, read_sizes: list[int]) -> None:
        self.x, self.shape, self.read = x, x.shape, read_sizes

    def __getitem__(self, rows: slice) -> Stored:
        return Stored(self.x[rows], self.read)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> FloatArray:
        self.read.append(len(self.x))
        return self.x.copy()

    def fingerprint(self) -> str:
        return "stored"


def test_images_may_be_read_block_by_block(finished_run: Any) -> None:
    read_sizes: list[int] = []
    x, y = finished_run.x[: 2 * BLOCK], finished_run.y[: 2 * BLOCK]
    report = finished_run.repeat(data=(Stored(x, read_sizes), y), curve_samples=0)
    assert report.records == without_curve(finished_run.report.records[: 2 * BLOCK])
    # One image, and two that networks and attacks are tried on; a block for the randomness; all (at most a hundred) for
    # the gradients; five for the checks; then each block.
    assert sorted(read_sizes) == sorted([1, 2, BLOCK, 2 * BLOCK, 5, BLOCK, BLOCK])
    with pytest.raises(InputError, match=r"x has shape \(8, 1, 8, 7\); \(N, 1, 8, 8\) was expected"):
        finished_run.repeat(data=(Stored(x[..., :7], read_sizes), y))


# What does not fit


def assert_refused(folders: Sequence[Path], out: Path, words: str, **options: Any) -> None:
    with pytest.raises(InputError, match=words) as caught:
        merge(folders, out, **options)
    assert len(str(caught.value).splitlines()) == 1
    assert not out.exists()


@pytest.fixture
def brief(finished_run: Any) -> Any:
    """A run of moments, of which parts are made that do not fit together."""
    noise = AttackSpec("noise", lambda c, t, seed: RandomNoise(c, t.norm, t.eps, 2, seed=seed), "control", kind="noise")
    options = {"block_size": 2, "curve_samples": 0, "check_samples": 0, "progress": False}
    return replace(finished_run, x=finished_run.x[:6], y=finished_run.y[:6], attacks=[noise], options=options)


def test_gaps_are_refused(brief: Any, tmp_path: Path) -> None:
    folders = make_parts(brief, tmp_path / "parts", 2, [1])
    assert_refused(folders, tmp_path / "out", r"2 of 3 blocks .* from sample 2 on is missing: no folder .* only 1/2")
    other_parts = make_parts(brief, tmp_path / "parts", 2, [2])
    lines = (folders[0] / RECORDS).read_text().splitlines(keepends=True)
    (folders[0] / RECORDS).write_text("".join(lines[:2]))
    assert_refused(
        folders + other_parts, tmp_path / "out", r"2 of 3 blocks .* sample 4 on is missing: .*1-of-2 is not finished"
    )


def test_duplicates_are_refused(brief: Any, tmp_path: Path) -> None:
    folders = make_parts(brief, tmp_path / "parts", 2)
    assert_refused([*folders, folders[0]], tmp_path / "out", "both hold the samples from 0 on")
    make_parts(brief, tmp_path / "parts", 3, [2])
    assert_refused([tmp_path / "parts"], tmp_path / "out", "both hold the samples from 2 on")


def test_the_part_that_tries_the_attacks_must_be_finished(brief: Any, tmp_path: Path) -> None:
    folders = make_parts(brief, tmp_path / "parts", 2)
    (folders[0] / FINDINGS).unlink()
    assert_refused(folders, tmp_path / "out", "a finished run was expected")


def test_parts_of_another_run_are_refused(brief: Any, own_classifier: PyTorchClassifier, tmp_path: Path) -> None:
    first_part = make_parts(brief, tmp_path / "first", 2, [1])
    jump = JumpReLU(own_classifier, 0.5)()
    last_parameter = list(own_classifier.model.parameters())[-1]
    other_classifier = deepcopy(own_classifier)
    list(other_classifier.model.parameters())[-1].data = last_parameter.data + 0.1
    for name, changes, words in (
        ("seed", {"seed": 1}, "settings seed 0, not 1"),
        ("eps", {"threat": Linf(0.2)}, "settings eps 0.1, not 0.2"),
        ("attacks", {"attacks": [replace(brief.attacks[0], name="louder")]}, "settings attacks"),
        ("images", {"data": (brief.x * np.float32(0.5), brief.y)}, "data_sha256"),
        ("network", {"model": JumpReLU(other_classifier, 1.0)()}, "model_sha256"),
        ("defence", {"model": jump}, "defences 1 jump"),
    ):
        folders = first_part + make_parts(brief, tmp_path / name, 2, [2], **changes)
        assert_refused(folders, tmp_path / "out", f"different runs: .*{words}")


def test_parts_of_other_machines_are_merged_only_on_request(
    brief: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = make_parts(brief, tmp_path / "parts", 2, [1])
    monkeypatch.setattr(describe.torch, "get_num_threads", lambda: 4)
    folders += make_parts(brief, tmp_path / "parts", 2, [2])
    assert_refused(
        folders, tmp_path / "out", "different runs: threads 1, not 4; parts of one run, or mixed, were expected"
    )
    report = merge(folders, tmp_path / "out", mixed=True)
    assert [environment["threads"] for environment in report.summary.run.environments] == [4]
    assert len(report.records) == 6


def test_no_folder_and_a_folder_without_a_run_are_refused(tmp_path: Path) -> None:
    assert_refused([], tmp_path / "out", "a list of 1 or more folders was expected")
    assert_refused([tmp_path / "nothing"], tmp_path / "out", "cannot be read")
    assert_refused([tmp_path / ("x" * 5000)], tmp_path / "out", "cannot be read .File name too long")


def test_a_part_or_an_unfinished_run_is_no_report(brief: Any, complete_run: Path, tmp_path: Path) -> None:
    (folder,) = make_parts(brief, tmp_path, 2, [1])
    with pytest.raises(InputError, match="part 1/2 of a run; merge"):
        Report.load(folder)
    shutil.copytree(complete_run, tmp_path / "cut")
    lines = (tmp_path / "cut" / RECORDS).read_text().splitlines(keepends=True)
    (tmp_path / "cut" / RECORDS).write_text("".join(lines[:-1]))
    with pytest.raises(InputError, match="20 of 23 samples"):
        Report.load(tmp_path / "cut")


# Again


def test_the_same_call_continues_without_repeating_a_block_under_any_clock(
    finished_run: Any, complete_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, started_blocks, generator = module.Work.block, [], random.Random(0)
    monkeypatch.setattr(time, "time", lambda: generator.uniform(0, 4e9))
    monkeypatch.setattr(time, "time_ns", lambda: generator.randrange(4 * 10**18))

    def interrupt(self: Any, start: int, *arguments: Any) -> Any:
        started_blocks.append(start)
        if len(started_blocks) == 3:
            raise KeyboardInterrupt
        return block(self, start, *arguments)

    monkeypatch.setattr(module.Work, "block", interrupt)
    changes = {"data": (finished_run.x[:12], finished_run.y[:12]), "curve_samples": 0, "check_samples": 0}
    with pytest.raises(KeyboardInterrupt):
        finished_run.repeat(out=tmp_path, **changes)
    report = finished_run.repeat(out=tmp_path, **changes)
    assert started_blocks == [0, 4, 8, 8]
    assert all(0 <= row.seconds < 600 for row in report.summary.rows)
    finished_run.repeat(out=tmp_path, **changes)
    assert len(started_blocks) == 4  # nothing was left to do
    # A block's records do not depend on the blocks that follow.
    assert read_records(tmp_path) == without_curve(read_records(complete_run)[:12])


def test_the_same_call_continues_without_repeating_an_attack(
    finished_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block may take hours. The samples are one here, so that only finished attacks can be gone on from."""
    changes = {
        "data": (finished_run.x[:4], finished_run.y[:4]),
        "attacks": [*finished_run.attacks[:2], replace(finished_run.attacks[2], modes="exact")],
        "block_size": 4,
        "curve_samples": 2,
        "check_samples": 0,
    }
    finished_run.repeat(out=tmp_path / "whole", **changes)
    attack, made_attacks, kills = module.Work._attack, [], [1, 4, 7]

    def interrupt(self: Any, run: AttackRun, *arguments: Any) -> Any:
        if len(made_attacks) in kills:
            kills.remove(len(made_attacks))
            raise KeyboardInterrupt
        made_attacks.append(run.key)
        return attack(self, run, *arguments)

    monkeypatch.setattr(module.Work, "_attack", interrupt)
    while kills:
        with pytest.raises(KeyboardInterrupt):
            finished_run.repeat(out=tmp_path / "killed", **changes)
        assert (tmp_path / "killed" / RECORDS).read_bytes() == b""
    finished_run.repeat(out=tmp_path / "killed", **changes)
    costs = read_costs(tmp_path / "whole")
    assert made_attacks == [record.attack for record in costs if record.attack not in PHASES]  # each once
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("whole", "killed")]
    assert names[0] == names[1]


# Another process

OTHER_PROCESS = '''
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
TESTS, weights, out, RUNS = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
sys.path[:0] = [str(TESTS), str(TESTS / "evaluation" / "run")]
import test_identity
from art.estimators.classification import PyTorchClassifier
from conftest import FEW_STEPS
from safetensors.torch import load_file
from art_defenses_ext import JumpReLU, Linf
from art_defenses_ext.zoo.catalogue import MODELS
from art_defenses_ext.zoo.datasets import load_dataset
from art_defenses_ext.zoo.networks import DigitsCNN
from art_defenses_ext.evaluation.evaluate import evaluate_shard
from art_defenses_ext.evaluation.run.shard import WHOLE

digits, spec, network = load_dataset("digits"), MODELS["digits_cnn"], DigitsCNN()
network.load_state_dict(load_file(weights))
classifier = PyTorchClassifier(
    network, torch.nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu",
    preprocessing=(np.array(spec.mean), np.array(spec.std)),
)
defended = JumpReLU(classifier, 1.0)()
x, y = digits.test.x[:5], digits.test.y[:5]
options = {"shard": WHOLE, "block_size": 2, "curve_samples": 0, "check_samples": 0, "progress": False}

def child(folder):
    """Evaluate in a process of its own; its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        evaluate_shard(defended, (x, y), Linf(0.1), FEW_STEPS, out=folder, **options)
        status = 0
    finally:
        os._exit(status)

def finishes(pid, within):
    """Whether a process ends by itself in so many seconds; if not, it is killed."""
    deadline = time.perf_counter() + within
    while time.perf_counter() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, status
            return True
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return not os.WIFSIGNALED(os.waitpid(pid, 0)[1])

def kill_runs():
    """Run undisturbed, then RUNS times killed at random moments; how often each was killed."""
    began = time.perf_counter()
    assert finishes(child(out / "undisturbed"), 1e9)
    length = time.perf_counter() - began
    generator = random.Random(0)
    for number in range(RUNS):
        kills = 0
        while kills < 2:
            # At any moment of what it takes.
            if not finishes(child(out / str(number)), generator.uniform(0.02, 1.0) * length):
                kills += 1
            elif kills == 0:
                # The machine has become faster than at first: again, and sooner.
                shutil.rmtree(out / str(number))
                length *= 0.7
            else:
                break
        assert finishes(child(out / str(number)), 1e9)
        yield kills

kills = list(kill_runs()) if hasattr(os, "fork") else []
networks = None, test_identity.Plain()
keys = [test_identity.key(test_identity.classifier(network)) for network in networks]
'''

HASHED = """
from art.attacks.evasion import FastGradientMethod
from art_defenses_ext.evaluation.run.code_hash import code_hash

def build(classifier, threat, seed, chosen={"a", "b", "c"}, of=FastGradientMethod):
    return of(classifier, eps=threat.eps, options={"x": object, "y": build})

hashed = code_hash(build)
"""
"""The hash of a function. Sets and hashes of text differ between processes, addresses too."""

ANSWER = "print(json.dumps({'keys': keys, 'hashed': hashed, 'kills': kills}))"
RUNS = 2


@dataclass(frozen=True)
class OtherProcess:
    """What another process says, and the folder of its runs."""

    answer: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def other_process(digits_classifier: PyTorchClassifier, tmp_path_factory: pytest.TempPathFactory) -> OtherProcess:
    folder = tmp_path_factory.mktemp("other")
    save_file(digits_classifier.model.state_dict(), folder / "weights.safetensors")
    (folder / "process.py").write_text(OTHER_PROCESS + HASHED + ANSWER)
    arguments = [Path(__file__).parents[1], folder / "weights.safetensors", folder / "runs", RUNS]
    command = [sys.executable, *map(str, (folder / "process.py", *arguments))]
    process = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr[-2000:]
    return OtherProcess(json.loads(process.stdout), folder / "runs")


def test_another_process_computes_the_same_keys_and_code_hash(other_process: OtherProcess) -> None:
    keys = [test_identity.key(test_identity.classifier(network)) for network in (None, test_identity.Plain())]
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(HASHED, "<string>", "exec", dont_inherit=True), namespace)
    assert other_process.answer["keys"] == keys
    assert other_process.answer["hashed"] == namespace["hashed"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed processes are forks of one that has loaded everything")
def test_runs_killed_at_random_moments_end_in_the_same_bytes(other_process: OtherProcess, tmp_path: Path) -> None:
    kills = other_process.answer["kills"]
    assert len(kills) == RUNS
    assert min(kills) >= 1
    folders = [other_process.folder / name / WHOLE.folder for name in ("undisturbed", *map(str, range(RUNS)))]
    assert len({(folder / RECORDS).read_bytes() for folder in folders}) == 1
    pictures = {tuple(path.read_bytes() for path in sorted((folder / EXAMPLES).iterdir())) for folder in folders}
    assert len(pictures) == 1
    assert merge(folders[-1:], tmp_path / "out").summary.run.settings.samples == 5
