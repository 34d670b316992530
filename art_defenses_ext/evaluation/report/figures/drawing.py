"""What all figures share: colours, sizes, titles, PNG files.

Made with matplotlib's ``Figure`` alone: no pyplot, no state, no window.
"""

from __future__ import annotations

import io
import textwrap
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from art_defenses_ext.base.text import for_terminal
from art_defenses_ext.evaluation.results.summary import Summary

# Okabe and Ito's colours, which the colour-blind can tell apart, but for yellow: it is too faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
LINES = {"suite": "-", "paper": "--", "elsewhere": ":"}
INK, FAINT = "#222222", "#8a8a8a"
TITLE: dict[str, Any] = {"fontsize": 10, "color": INK, "parse_math": False}
WORST, OTHER = "#D55E00", "#0072B2"


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def set_title(axes: Axes, summary: Summary, pad: float = 8) -> None:
    """What was evaluated: the picture may travel without its report."""
    axes.set_title(wrap(subject(summary), 90), loc="left", pad=pad, **TITLE)


def subject(summary: Summary) -> str:
    """Return what was evaluated, in a line."""
    run = summary.run
    defences = " + ".join(str(defence["name"]) for defence in run.defences) or "no defence"
    return f"{defences} on {run.model}, {run.settings.threat} {run.settings.eps:.4g}, {run.settings.samples} images"


def or_rejected(summary: Summary) -> str:
    """Return what counts as correct besides, where a detector rejects images."""
    return " or rejected" if summary.run.rejects else ""


def finish_axes(axes: Axes, grid: Literal["both", "x"] = "both") -> None:
    """A light grid, and nothing else that carries no data."""
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3)
    axes.grid(axis=grid, color="#e8e8e8")


def add_legend(figure: Figure, entries: list[tuple[Line2D, str]], title: str) -> None:
    """A legend beside the axes: lines by their entries, headings without a line in bold."""
    legend = figure.legend(
        [handle for handle, _ in entries],
        [label for _, label in entries],
        loc="outside right upper",
        title=title,
        alignment="left",
        frameon=False,
        fontsize=9,
        title_fontsize=9,
        handlelength=3.2,
    )
    for (handle, _), text in zip(entries, legend.get_texts(), strict=True):
        text.set_parse_math(False)
        if not handle.get_visible():
            text.set_fontweight("bold")


def invisible() -> Line2D:
    """Return the handle of a heading."""
    return Line2D([], [], linestyle="", visible=False)


def wrap(text: str, width: int) -> str:
    """Text in lines of so many characters."""
    return textwrap.fill(for_terminal(text), width, break_on_hyphens=False)
