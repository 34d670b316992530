"""Callbacks for the events of a run, such as the log of an experiment tracker."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import check_path, one_line
from art_defenses_ext.evaluation.records.description import RunDescription
from art_defenses_ext.evaluation.report.headlines import figure_name
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.run.block import Attacked

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunCallback:
    """Base class of callbacks; a subclass overrides the methods for the events that it needs.

    A callback does not change a run: an exception in a callback becomes a warning, and it is not called again.

    >>> from art_defenses_ext import JumpReLU, Linf, evaluate
    >>> class Names(RunCallback):
    ...     def attacked(self, step):
    ...         print(step.attack, step.images)
    >>> defended = JumpReLU(classifier, jump=1.0)()
    >>> report = evaluate(defended, (x_test, y_test), Linf(0.1), "papers", progress=False, callbacks=[Names()])
    IFGSM, gray-box 4...
    """

    def begin(self, run: RunDescription) -> None:
        """Called before the first attack of the process with the run's description, also when a run is continued."""

    def attacked(self, step: Attacked) -> None:
        """Called after each attack on a block of images."""

    def end(self, report: Report) -> None:
        """Called when the run is finished, with its report."""


class Listeners:
    """The callbacks of a run; a callback that raises is not called again.

    Raises:
        InputError: for an object that is not a callback.
    """

    def __init__(self, callbacks: Sequence[RunCallback] = ()) -> None:
        for callback in callbacks:
            if not isinstance(callback, RunCallback):
                raise InputError(
                    f"callbacks holds {shown(callback)}; objects of subclasses of RunCallback were expected"
                )
        self._callbacks = list(callbacks)

    def begin(self, run: RunDescription) -> None:
        """Call ``begin`` of all callbacks."""
        self._tell(lambda callback: callback.begin(run))

    def attacked(self, step: Attacked) -> None:
        """Call ``attacked`` of all callbacks."""
        self._tell(lambda callback: callback.attacked(step))

    def end(self, report: Report) -> None:
        """Call ``end`` of all callbacks."""
        self._tell(lambda callback: callback.end(report))

    def _tell(self, call: Callable[[RunCallback], None]) -> None:
        for callback in list(self._callbacks):
            try:
                call(callback)
            except Exception as error:  # of anybody's code, hours into a run
                self._callbacks.remove(callback)
                raised = f"{type(callback).__name__} raised {one_line(error)}"
                warnings.warn(f"the callback {raised} and is not called again", stacklevel=3)


class TensorBoardCallback(RunCallback):
    """Writes a run's figures for TensorBoard (the extra ``tensorboard``).

    The scalars, against the number of attacks, are ``robust`` (the share of the block's images that no attack has
    broken yet), and ``broken`` and ``seconds`` of each attack; at the end the clean accuracy, and the accuracy under
    attack by its name in the report. The texts are the settings and the result in words.

    Args:
        folder: the folder of the log.

    Raises:
        InputError: if TensorBoard is not installed, or for a path that is not a folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = check_path("folder", folder, "a folder")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                "TensorBoardCallback needs the package tensorboard, which is not installed; "
                "pip install 'art-defenses-ext[tensorboard]' was expected"
            ) from None
        self._open: Callable[[], SummaryWriter] = lambda: SummaryWriter(str(self.folder))
        self._writer: Any = None
        self._step = 0

    def begin(self, run: RunDescription) -> None:
        """Open the log, and write the run's settings."""
        self._writer = self._open()
        self._writer.add_text("settings", json.dumps(asdict(run.settings), indent=1))

    def attacked(self, step: Attacked) -> None:
        """Write the results of an attack."""
        self._step += 1
        scalars = {"robust": step.robust / step.images, f"broken/{step.attack}": step.broken / step.attacked}
        for name, value in (scalars | {f"seconds/{step.attack}": step.cost.seconds}).items():
            self._writer.add_scalar(name, value, self._step)

    def end(self, report: Report) -> None:
        """Write the figures of the report, and close the log."""
        summary = report.summary
        for name, share in (("clean accuracy", summary.clean), (figure_name(summary), summary.worst_case)):
            self._writer.add_scalar(name, share.rate, self._step)
        self._writer.add_text("verdict", str(report))
        self._writer.close()
