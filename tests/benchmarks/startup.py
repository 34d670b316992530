"""Processor time of what only says how the command is used, beside that of importing what it is written with.

python tests/benchmarks/startup.py
"""

from __future__ import annotations

import resource
import subprocess
import sys

YARDSTICK = ("-c", "import click, rich")
COMMANDS = ("--help", "evaluate --help", "compare --help", "--version", "evaluate --unknown", "list")
RUNS = 7


def cost(*arguments: str) -> float:
    """The least processor time of several runs, in seconds."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    once()  # from here on the files are in memory
    return min(once() for _ in range(RUNS))


def main() -> None:
    """Print a line for each command."""
    unit = cost(*YARDSTICK)
    print(f"{YARDSTICK[1]}: {unit:.3f} s")
    for command in COMMANDS:
        seconds = cost("-m", "art_defenses_ext", *command.split())
        print(f"art-defenses {command}: {seconds:.3f} s, {seconds / unit:.2f} times")


if __name__ == "__main__":
    main()
