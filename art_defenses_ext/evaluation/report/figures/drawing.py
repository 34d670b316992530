"""Colours, sizes, titles and PNG files of all figures.

The figures use matplotlib's ``Figure`` without pyplot, so there is no global state and no window.
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

# Okabe and Ito's colours for colour-blind readers, without yellow, which is too faint on white.
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
    """Return an empty figure of a size in inches."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def set_title(axes: Axes, summary: Summary, pad: float = 8) -> None:
    """Set the defended model as title, since a picture may be used without its report."""
    axes.set_title(wrap(subject(summary), 90), loc="left", pad=pad, **TITLE)


def subject(summary: Summary) -> str:
    """Return the defended model, the threat and the number of images on one line."""
    run = summary.run
    defences = " + ".join(str(defence["name"]) for defence in run.defences) or "no defence"
    return f"{defences} on {run.model}, {run.settings.threat} {run.settings.eps:.4g}, {run.settings.samples} images"


def or_rejected(summary: Summary) -> str:
    """Return the words that a detector adds to the label of an accuracy."""
    return " or rejected" if summary.run.rejects else ""


def finish_axes(axes: Axes, grid: Literal["both", "x"] = "both") -> None:
    """Add a light grid, and remove the other lines without data."""
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3)
    axes.grid(axis=grid, color="#e8e8e8")


def add_legend(figure: Figure, entries: list[tuple[Line2D, str]], title: str) -> None:
    """Add a legend beside the axes, with headings, which have no line, in bold."""
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
    """Return the invisible line of a heading in a legend."""
    return Line2D([], [], linestyle="", visible=False)


def wrap(text: str, width: int) -> str:
    """Return text in lines of at most this many characters."""
    return textwrap.fill(for_terminal(text), width, break_on_hyphens=False)
