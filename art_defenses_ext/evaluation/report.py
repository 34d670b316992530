"""The result of an evaluation, on the screen and as files."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from art_defenses_ext.evaluation.page import render_page
from art_defenses_ext.evaluation.records import SampleRecord
from art_defenses_ext.evaluation.summary import Summary
from art_defenses_ext.evaluation.table import render, verdict
from art_defenses_ext.validation import FloatArray, InputError

FIGURES = ("accuracy", "curves", "examples", "excesses", "losses", "roc", "trade_off")
"""The pictures that a report may have."""


@dataclass(frozen=True)
class Example:
    """An image that was classified correctly until an attack moved it.

    Attributes:
        index: position in the data set.
        label: true class.
        prediction: class after the attack.
        attack: the attack's key.
        clean: image (C, H, W) in the clip range.
        adversarial: likewise.
        views: what the defences make of both, (of the clean image, of the attacked one) by name; images.
    """

    index: int
    label: int
    prediction: int
    attack: str
    clean: FloatArray
    adversarial: FloatArray
    views: dict[str, tuple[FloatArray, FloatArray]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Figures, records and example images of one evaluation.

    ``print(report)`` says the verdict in words, ``report.print()`` shows all figures.
    """

    summary: Summary
    records: list[SampleRecord] = field(repr=False)
    examples: list[Example] = field(repr=False)

    @property
    def robust_accuracy(self) -> float:
        """The mean over samples of the minimum over attacks, from 0 to 1; an upper bound if not ``established``."""
        return self.summary.worst_case.rate

    @property
    def established(self) -> bool | None:
        """Whether the attacks passed their own checks; None if none were made."""
        return self.summary.established

    def __str__(self) -> str:
        return verdict(self.summary).replace("\N{NO-BREAK SPACE}", " ")

    def print(self, console: Console | None = None) -> None:
        """Show the figures in the terminal, as wide as it is.

        Args:
            console: where to print; None for standard output.
        """
        (Console() if console is None else console).print(render(self.summary))

    def save(self, folder: str | Path) -> None:
        """Write the report into a folder, which is made if need be.

        Writes ``report.json``, ``report.html``, ``figures/accuracy.png``, and where there is something to show the
        other pictures of ``FIGURES`` and ``examples.npz`` (arrays ``clean``, ``adversarial``, ``index``, ``label``,
        ``prediction``, ``attack``). Those that a former report left there and this one has nothing for are removed.
        Each file appears whole or not at all.

        Args:
            folder: where to.

        Raises:
            InputError: if it cannot be written to.
        """
        figures = self._figures()
        contents: dict[str, bytes | None] = {
            "report.json": _json(self.summary),
            "report.html": render_page(self.summary, self.examples, figures).encode(),
            "examples.npz": _arrays(self.examples) if self.examples else None,
        } | {f"figures/{name}.png": figures.get(name) for name in FIGURES}
        try:
            for name, content in contents.items():
                _replace(Path(folder) / name, content)
        except OSError as error:
            raise InputError(
                f"folder is {folder}, which cannot be written ({error.strerror}); a folder was expected"
            ) from None

    def _figures(self) -> dict[str, bytes]:
        """The pictures that there is something to show in, as PNG files."""
        # Only here: matplotlib takes most of a second to import, and whoever saves no report needs none of it.
        from art_defenses_ext.evaluation.figures import (
            accuracy_curves,
            drawable,
            examples_figure,
            excess_histograms,
            losses,
            png,
            roc_curves,
            summary_bars,
            trade_off,
        )

        figures = {"accuracy": png(summary_bars(self.summary))}
        if self.summary.detection and any(row.fooled.count for row in self.summary.detection.rows):
            figures["roc"] = png(roc_curves(self.summary, self.records))
            figures["excesses"] = png(excess_histograms(self.summary, self.records))
        if self.summary.curves:
            figures["curves"] = png(accuracy_curves(self.summary))
        if self.examples and drawable(self.examples):
            figures["examples"] = png(examples_figure(self.examples))
        if self.summary.run.trainings:
            figures["losses"] = png(losses(self.summary))
        if self.summary.run.tunings:
            figures["trade_off"] = png(trade_off(self.summary))
        return figures


def _json(summary: Summary) -> bytes:
    return (json.dumps(summary.as_dict(), indent=1, allow_nan=False) + "\n").encode()


def _arrays(examples: Sequence[Example]) -> bytes:
    """The examples as a ``.npz`` file that numpy reads without pickle."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        clean=np.stack([one.clean for one in examples]),
        adversarial=np.stack([one.adversarial for one in examples]),
        index=np.array([one.index for one in examples]),
        label=np.array([one.label for one in examples]),
        prediction=np.array([one.prediction for one in examples]),
        attack=np.array([one.attack for one in examples]),
    )
    return buffer.getvalue()


def _replace(path: Path, content: bytes | None) -> None:
    """Put ``content`` at ``path`` in one step, so that a crash leaves the old file or the new; None removes it."""
    if content is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
