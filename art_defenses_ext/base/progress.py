"""Progress bars for long phases, and the log that replaces them.

All loggers of the package are below ``art_defenses_ext``. At level ``INFO`` they log each attack and epoch, and no bar
is shown; at ``ERROR`` and above there is neither.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from art_defenses_ext.base.text import for_terminal
from art_defenses_ext.base.validation import check_flag

LOGGER = logging.getLogger("art_defenses_ext")

PERIOD = 30.0
"""Seconds between two lines of progress without a terminal."""


class _Lines(Progress):
    """Progress as occasional lines instead of a bar, for logs."""

    def __init__(self, console: Console) -> None:
        super().__init__(console=console, disable=True)
        self.last = time.monotonic()

    def update(self, task_id: TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        self._tell(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        now = time.monotonic()
        if now - self.last >= PERIOD:
            self.last, task = now, self._tasks[task_id]
            done = f"{task.completed:g} of {task.total:g}" if task.total else f"{task.completed:g}"
            line = f"{task.description} {done} {task.fields.get('note', '')}".rstrip()
            print(for_terminal(line), file=sys.stderr, flush=True)


class _Words(TextColumn):
    """A column of plain text, escaped, since names may contain markup or control characters."""

    def render(self, task: Task) -> Text:
        return Text(for_terminal(self.text_format.format(task=task)))


def progress_bar(show: bool = True) -> Progress:
    """Return a transient bar on the standard error; without a terminal or beside a log, a line each half minute.

    Each task has the fields ``description``, before the bar, and ``note``, behind it.
    """
    check_flag("progress", show)
    console = Console(stderr=True)
    show = show and LOGGER.getEffectiveLevel() < logging.ERROR
    if show and (LOGGER.isEnabledFor(logging.INFO) or not console.is_terminal):
        return _Lines(console)
    return Progress(
        _Words("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        _Words("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=not show,
    )
