"""What sharing an evaluation among processes gains, and what memory more samples take.

    python tests/benchmarks/scale.py [--samples 480] [--repeats 3]

A JumpReLU on the digits network under the suite `standard`, without curve and checks, in processes of one thread
each. One process and two take turns; the clock of each runs from the first block's start to the last one's end, so
that loading torch, which a long run does not notice, is left out. Memory is the process's high-water mark at the end.
"""

from __future__ import annotations

import argparse
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from timing import device_name

from art_defenses_ext import JumpReLU, Linf
from art_defenses_ext.evaluation.evaluate import evaluate_shard
from art_defenses_ext.evaluation.run.folder import read_records
from art_defenses_ext.evaluation.run.shard import Shard
from art_defenses_ext.evaluation.suite.papers import paper_specs
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import load_dataset

BAR = 1.7
"""Two processes on two cores must be so many times as fast as one."""

BLOCK = 16
"""Samples a block, so that the parts are of about one length."""

MEMORY = (1_000, 10_000)
"""Numbers of samples that the memory is compared at."""


def work(weights: Path, out: Path, shard: Shard, samples: int, attacks: str) -> tuple[float, float, int]:
    """Do a part; when it began and ended, and the process's high-water mark in bytes."""
    torch.set_num_threads(1)
    digits = load_dataset("digits")
    defended = JumpReLU(load_classifier(digits, weights=weights), 1.0)()
    repeats = -(-samples // len(digits.test.x))
    x, y = (np.concatenate([one] * repeats)[:samples] for one in (digits.test.x, digits.test.y))
    chosen = "standard" if attacks == "standard" else [paper_specs(JumpReLU)[0]]
    options = {"block_size": BLOCK, "curve_samples": 0, "check_samples": 0, "progress": False}
    begun = time.time()
    evaluate_shard(defended, (x, y), Linf(0.1), chosen, shard=shard, out=out, **options)
    return begun, time.time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def started(weights: Path, out: Path, shard: Shard, samples: int, attacks: str) -> subprocess.Popen[str]:
    line = [sys.executable, __file__, "--work", str(weights), str(out), str(shard), str(samples), attacks]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True)


def finished(processes: list[subprocess.Popen[str]]) -> list[tuple[float, float, int]]:
    found = []
    for process in processes:
        out, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"a part failed with status {process.returncode}")
        begun, ended, peak = out.split()
        found.append((float(begun), float(ended), int(peak)))
    return found


def seconds(weights: Path, count: int, samples: int, folder: Path) -> float:
    """From the start of the first part to the end of the last."""
    parts = [Shard(number, count) for number in range(1, count + 1)]
    found = finished([started(weights, folder, part, samples, "standard") for part in parts])
    return max(ended for _, ended, _ in found) - min(begun for begun, _, _ in found)


def bytes_of_records(folder: Path, samples: int) -> float:
    """What a report holds of each sample, as the run of one process in ``folder`` left it."""
    tracemalloc.start()
    records = read_records(folder / Shard(1, 1).folder)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(records) == samples
    return held / samples


def peak(weights: Path, samples: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return finished([started(weights, Path(folder), Shard(1, 1), samples, "papers")])[0][2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=480)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        weights, out, shard, samples, attacks = options.work
        print(*work(Path(weights), Path(out), Shard.named(shard), int(samples), attacks))
        return
    print(f"torch {torch.__version__}, one thread a process, {device_name(torch.device('cpu'))}  ")
    print(f"`python {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}`\n")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        save_file(load_classifier(load_dataset("digits")).model.state_dict(), weights)
        assert load_file(weights)
        times: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(options.repeats):
            for count, taken in times.items():
                with tempfile.TemporaryDirectory() as out:
                    taken.append(seconds(weights, count, options.samples, Path(out)))
                    if count == 1:
                        of_records = bytes_of_records(Path(out), options.samples)
        one, two = (statistics.median(taken) for taken in times.values())
        print(f"| processes | seconds, median of {options.repeats} | times as fast | holds |\n|---|---|---|---|")
        print(f"| 1 | {one:.1f} | 1 | |")
        print(f"| 2 | {two:.1f} | {one / two:.2f} | {'yes' if one / two >= BAR else 'NO'} (>= {BAR:g}) |\n", flush=True)
        print("| samples | high-water mark, MiB |\n|---|---|")
        marks = [peak(weights, count) for count in MEMORY]
        for count, mark in zip(MEMORY, marks, strict=True):
            print(f"| {count:,} | {mark / 2**20:.0f} |")
        a_sample = (marks[1] - marks[0]) / (MEMORY[1] - MEMORY[0])
        print(f"\n{a_sample:.0f} bytes a sample, of which {8 * 8 * 4 + 8} are the image and its label.  ")
        print(f"A report holds {of_records:.0f} bytes of records a sample.")


if __name__ == "__main__":
    main()
