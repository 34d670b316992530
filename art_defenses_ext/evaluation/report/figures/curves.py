"""Curves of accuracy against eps."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.report.figures import drawing
from art_defenses_ext.evaluation.report.headlines import NOT_ESTABLISHED, figure_name
from art_defenses_ext.evaluation.report.tables import GROUPS
from art_defenses_ext.evaluation.results.summary import Curve, Summary


def accuracy_curves(summary: Summary) -> Figure | None:
    """Return accuracy against eps, a line for each attack, with 95 % bands and a mark at the threat's eps.

    The legend stands beside the axes, in the order in which the lines cross the threat's eps.

    Args:
        summary: the figures of a run.

    Returns:
        The figure; None if there is no curve.
    """
    if not summary.curves:
        return None
    eps = summary.run.settings.eps
    families = _families(summary)
    entries = sum(len(curves) for curves in families.values()) + 2 * len(families) + 2
    figure = drawing.new_figure(9.5, max(4.6, 0.27 * entries + 0.4))
    axes = figure.add_subplot()
    drawing.set_title(axes, summary, pad=22)
    axes.axvline(eps, color=drawing.FAINT, linewidth=1, linestyle=":")
    axes.text(eps, 102, f"eps {eps:.4g}", ha="center", va="bottom", color=drawing.INK, fontsize=9)
    legend: list[tuple[Line2D, str]] = []
    number = 0
    for (source, total), curves in families.items():
        which = "all images" if total == summary.clean.total else f"first {total} images"
        legend.append((drawing.invisible(), f"{GROUPS[source]}, {which}"))
        for curve in curves:
            entry = f"{100 * _at(curve, eps).rate:5.1f} %  {drawing.wrap(curve.attack, 30)}"
            legend.append((_draw(axes, curve, source, number), entry))
            number += 1  # across the groups: so that colours repeat as late as they can
    worst = summary.worst_case
    style: dict[str, Any] = {"color": drawing.INK, "markersize": 14, "markeredgecolor": "white"}
    (star,) = axes.plot([eps], [100 * worst.rate], "*", zorder=5, clip_on=False, **style)
    legend.append((drawing.invisible(), "All attacks, all images"))
    bound = summary.standing == "not established"
    meaning = f"at most: {NOT_ESTABLISHED}" if bound else figure_name(summary)
    legend.append((star, f"{100 * worst.rate:5.1f} %  {meaning}"))
    _finish(axes, summary)
    drawing.add_legend(figure, legend, "accuracy at the marked eps")
    return figure


def _families(summary: Summary) -> dict[tuple[str, int], list[Curve]]:
    """Return the curves by source and number of images, the suite's first; each group by falling accuracy at eps."""
    sources = {row.key: row.source for row in summary.rows}
    families: dict[tuple[str, int], list[Curve]] = defaultdict(list)
    for curve in summary.curves:
        families[sources.get(curve.attack, "suite"), curve.points[0][1].total].append(curve)
    eps = summary.run.settings.eps
    order = sorted(families, key=lambda key: (list(GROUPS).index(key[0]), key[1]))
    return {key: sorted(families[key], key=lambda curve: -_at(curve, eps).rate) for key in order}


def _at(curve: Curve, eps: float) -> Proportion:
    """Return the curve's point at the threat's eps, or next to it."""
    return min(curve.points, key=lambda point: abs(point[0] - eps))[1]


def _draw(axes: Axes, curve: Curve, source: str, number: int) -> Line2D:
    eps = [eps for eps, _ in curve.points]
    colour, marker = drawing.PALETTE[number % len(drawing.PALETTE)], drawing.MARKERS[number % len(drawing.MARKERS)]
    intervals = [share.interval for _, share in curve.points]
    axes.fill_between(
        eps, [100 * low for low, _ in intervals], [100 * high for _, high in intervals], color=colour, alpha=0.09, lw=0
    )
    (line,) = axes.plot(
        eps,
        [100 * share.rate for _, share in curve.points],
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.6,
        linestyle=drawing.LINES[source],
        # White inside marks the paper's attacks also where lines lie on each other.
        markerfacecolor="white" if source == "paper" else colour,
        clip_on=False,
    )
    return line


def _finish(axes: Axes, summary: Summary) -> None:
    axes.set_xlim(0, max(eps for curve in summary.curves for eps, _ in curve.points))
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel(f"eps, {summary.run.settings.threat} norm, in pixel values")
    axes.set_ylabel(f"classified correctly{drawing.or_rejected(summary)}, in per cent")
    drawing.finish_axes(axes)
