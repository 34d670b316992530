"""What is to be measured on a GPU runs through on a CPU, at toy sizes, so that a rented hour is not spent on a typo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "tests" / "benchmarks"


def test_steps_run_and_their_table_is_printed(tmp_path: Path) -> None:
    images = tmp_path / "images.npz"
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (300, 3, 32, 32), dtype=np.uint8), np.arange(300, dtype=np.uint8) % 10
    np.savez(images, x=x, y=y, x_test=x[:40], y_test=y[:40])
    steps = ["speed LeNet", "relevance", "defences", "train", "search in bfloat16", "autoattack"]
    script = [sys.executable, str(BENCHMARKS / "gpu.py")]
    settings = ["--trial", "--device", "cpu", "--out", str(tmp_path), "--images", str(images)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*script, "steps", *settings, "--only", *steps], check=True, env=environment, capture_output=True)
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == steps
    assert all("result" in line for line in lines)
    printed = subprocess.run([*script, "table", str(tmp_path)], check=True, env=environment, capture_output=True)
    for step in steps:
        assert f"| {step} |" in printed.stdout.decode()


def test_what_no_time_is_left_for_is_said(tmp_path: Path) -> None:
    line = [sys.executable, str(BENCHMARKS / "gpu.py"), "steps", "--trial", "--device", "cpu", "--limit", "-1"]
    subprocess.run([*line, "--out", str(tmp_path), "--half", "2"], check=True, capture_output=True)
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert {line["not run"] for line in lines} == {"the limit is reached"}


def test_the_shell_script_is_sound() -> None:
    subprocess.run(["bash", "-n", str(BENCHMARKS / "gpu.sh")], check=True)
