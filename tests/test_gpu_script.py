"""What is to be measured on a GPU runs through on a CPU, at toy sizes, so that a rented hour is not spent on a typo."""

from __future__ import annotations

import importlib
import json
import subprocess
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu")


def run_steps(gpu: Any, monkeypatch: pytest.MonkeyPatch, *line: str) -> list[dict[str, Any]]:
    """What ``gpu.py steps`` writes on a CPU at toy sizes."""
    out = Path(line[line.index("--out") + 1])
    monkeypatch.setattr("sys.argv", ["gpu.py", "steps", "--trial", "--device", "cpu", *line])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 0
    return [json.loads(text) for text in (out / "steps.jsonl").read_text().splitlines()]


@pytest.fixture
def short_autoattack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the authors' AutoAttack the first attack alone: 5,000 queries an image take long."""
    if find_spec("pyautoattack") is not None:
        package = importlib.import_module("pyautoattack")
        first = partial(package.AutoAttack, version="custom", attacks=["apgd-ce"])
        monkeypatch.setattr(package, "AutoAttack", first)


@pytest.mark.usefixtures("short_suite", "short_autoattack")
def test_steps_run_and_their_table_is_printed(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images.npz"
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (300, 3, 32, 32), dtype=np.uint8), np.arange(300, dtype=np.uint8) % 10
    np.savez(images, x=x, y=y, x_test=x[:40], y_test=y[:40])
    steps = ["speed LeNet", "relevance", "defences", "train", "search in bfloat16", "autoattack"]
    lines = run_steps(gpu, monkeypatch, "--out", str(tmp_path), "--images", str(images), "--only", *steps)
    assert [line["step"] for line in lines] == steps
    assert all("result" in line for line in lines)
    monkeypatch.setattr("sys.argv", ["gpu.py", "table", str(tmp_path)])
    gpu.main()
    printed = capsys.readouterr().out
    assert all(f"| {step} |" in printed for step in steps)


def test_steps_without_time_left_are_reported(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = run_steps(gpu, monkeypatch, "--limit", "-1", "--out", str(tmp_path), "--half", "2")
    assert {line["not run"] for line in lines} == {"the limit is reached"}


def test_the_shell_script_is_sound() -> None:
    subprocess.run(["bash", "-n", str(BENCHMARKS / "gpu.sh")], check=True)
