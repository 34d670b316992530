"""What the benchmarks share: runs that take turns, and the name of the machine."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

Run = Callable[[], Any]


@dataclass
class Times:
    """Seconds of one variant, by two clocks."""

    processor: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def of(self, clock: str) -> list[float]:
        found: list[float] = getattr(self, clock)
        return found

    def median(self, clock: str) -> float:
        return median(self.of(clock))


def timed(run: Run, device: torch.device) -> tuple[float, float]:
    """Seconds of processor time and on the wall."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, processor = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() - processor, time.perf_counter() - wall


def take_turns(runs: dict[str, Run], device: torch.device, repeats: int) -> dict[str, Times]:
    """Each run so many times, in an order that turns from round to round: a busy machine slows all of them alike."""
    names, found = list(runs), {name: Times() for name in runs}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            processor, wall = timed(runs[name], device)
            found[name].processor.append(processor)
            found[name].wall.append(wall)
    return found


def clock_of(device: torch.device) -> str:
    """Processor time where the CPU does the work, which other processes disturb least; the wall's on a GPU."""
    return "wall" if device.type == "cuda" else "processor"


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
