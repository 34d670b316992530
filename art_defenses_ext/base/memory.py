"""Available memory, so that allocations that cannot fit are refused with an error."""

from __future__ import annotations

from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")

CGROUP = Path("/sys/fs/cgroup")


def available_memory(device: torch.device) -> int | None:
    """Return the available bytes of ``device``; None if unknown, as outside Linux.

    For the CPU it is the minimum of the system's estimate of memory available without swapping and the remaining limit
    of the process's control group.
    """
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    limits = [bytes_left for bytes_left in (_of_system(), _of_group()) if bytes_left is not None]
    return min(limits, default=None)


def _of_system() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _of_group() -> int | None:
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return int(limit) - int(used) + int(cached["inactive_file"])
    except (OSError, KeyError, ValueError):  # no such group, or "max": no limit
        return None


def in_words(count: int) -> str:
    """Return a number of bytes with a unit, such as 24.1 GiB."""
    size, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
