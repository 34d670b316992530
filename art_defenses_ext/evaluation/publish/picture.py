"""The picture of a page of results: clean against robust accuracy, a panel for each data set and threat."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from art_defenses_ext.evaluation.report.figures import drawing

UNDEFENDED, SEVERAL = "undefended model", "several defences"
COLUMNS = 2


@dataclass(frozen=True)
class Point:
    """A run in the picture; shares are in per cent.

    Attributes:
        defences: names of the defences.
        clean: accuracy on clean images.
        robust: robust accuracy.
        interval: its 95 % interval.
        bound: whether it is only an upper bound.
    """

    defences: tuple[str, ...]
    clean: float
    robust: float
    interval: tuple[float, float]
    bound: bool

    @property
    def kind(self) -> str:
        """The property that decides the colour."""
        if not self.defences:
            return UNDEFENDED
        return SEVERAL if len(self.defences) > 1 else self.defences[0].replace("_", " ")


def accuracy_picture(groups: Mapping[str, Sequence[Point]]) -> Figure:
    """Return each run as a point with the 95 % interval of its robust accuracy; hollow if that is an upper bound.

    Args:
        groups: runs by the title of their panel.
    """
    kinds = sorted({point.kind for points in groups.values() for point in points}, key=_undefended_first)
    looks: dict[str, dict[str, Any]] = {
        kind: {"color": drawing.PALETTE[i % len(drawing.PALETTE)], "marker": drawing.MARKERS[i % len(drawing.MARKERS)]}
        for i, kind in enumerate(kinds)
    }
    rows = math.ceil(len(groups) / COLUMNS)
    figure = drawing.new_figure(9.0, 0.6 + 2.9 * rows)
    for number, (title, points) in enumerate(groups.items(), 1):
        axes = figure.add_subplot(rows, COLUMNS, number)
        axes.set_title(drawing.wrap(title, 40), loc="left", **drawing.TITLE)
        for point in points:
            _draw_point(axes, point, looks[point.kind])
        _finish(axes, min(point.clean for point in points))
    handles = [(Line2D([], [], linestyle="", **looks[kind]), drawing.wrap(kind, 24)) for kind in kinds]
    hollow = Line2D([], [], linestyle="", marker="o", color=drawing.INK, markerfacecolor="white")
    drawing.add_legend(figure, [*handles, (hollow, "hollow: upper bound")], "")
    return figure


def _undefended_first(kind: str) -> tuple[bool, bool, str]:
    return kind != UNDEFENDED, kind == SEVERAL, kind


def _draw_point(axes: Axes, point: Point, look: Mapping[str, Any]) -> None:
    axes.plot([point.clean] * 2, point.interval, color=look["color"], linewidth=1, alpha=0.6)
    face = "white" if point.bound else look["color"]
    axes.plot([point.clean], [point.robust], linestyle="", markerfacecolor=face, **look)


def _finish(axes: Axes, least_clean: float) -> None:
    axes.plot([0, 100], [0, 100], color=drawing.FAINT, linewidth=0.8, linestyle=":")
    axes.set_xlim(10 * (max(least_clean - 1, 0) // 10), 101)
    axes.set_ylim(-2, 102)
    axes.set_xlabel("clean accuracy, %")
    axes.set_ylabel("robust accuracy, %")
    drawing.finish_axes(axes)
