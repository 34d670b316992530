"""Bar charts of a run's headline figures, and of several runs."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.report.figures import drawing
from art_defenses_ext.evaluation.report.headlines import NOT_ESTABLISHED, compared_figure, headlines
from art_defenses_ext.evaluation.results.summary import Summary


def summary_bars(summary: Summary) -> Figure:
    """Return the headline figures as bars with their 95 % intervals, the robust accuracy on top.

    Args:
        summary: the figures of a run.
    """
    lines = [(line, line.value) for line in headlines(summary) if line.value is not None]
    figure = drawing.new_figure(8.0, 1.2 + 0.55 * len(lines))
    axes = figure.add_subplot()
    drawing.set_title(axes, summary)
    for row, (line, value) in enumerate(lines):
        colour = drawing.WORST if line.key == "robust" else drawing.OTHER
        _draw_bar(axes, row, value, colour, alpha=0.85)
        low, high = value.interval
        number = (
            f"{100 * value.rate:.1f} %" if line.established else f"{NOT_ESTABLISHED}\n(<= {100 * value.rate:.1f} %)"
        )
        # Right of the interval, or left of it if the words do not fit there.
        beside = line.established or high < 0.86 or 1.14 - high > low
        place = {"x": 100 * high + 1.5} if beside else {"x": 100 * low - 1.5, "ha": "right"}
        axes.text(y=row, s=number, va="center", color=drawing.INK, fontsize=11 if line.established else 10, **place)
    labels = [drawing.wrap(line.label, 21) for line, _ in lines]
    axes.set_yticks(range(len(lines)), labels, fontsize=10, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 114)  # room for the number beside a full bar
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(f"classified correctly{drawing.or_rejected(summary)}, in per cent, with 95 % intervals")
    drawing.finish_axes(axes, grid="x")
    return figure


def comparison_bars(runs: Sequence[tuple[str, Summary]]) -> Figure:
    """Return each run's accuracy under its attacks with its 95 % interval, under the paper's attacks, and clean.

    Args:
        runs: names and figures of the runs.
    """
    figure = drawing.new_figure(9.0, 1.6 + 0.6 * len(runs))
    axes = figure.add_subplot()
    for row, (_, summary) in enumerate(runs):
        worst = summary.worst_case
        bound = summary.standing != "established"
        _draw_bar(axes, row, worst, drawing.WORST, alpha=0.45 if bound else 0.85)
        for share, marker, colour in ((summary.paper, "D", drawing.OTHER), (summary.clean, "o", drawing.FAINT)):
            if share is not None:
                axes.plot([100 * share.rate], [row], marker, color=colour, markersize=8, clip_on=False)
    names = [drawing.wrap(f"{name}{_reservation(summary)}", 34) for name, summary in runs]
    axes.set_yticks(range(len(runs)), names, fontsize=10, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    compared = compared_figure([summary for _, summary in runs])
    axes.set_xlabel(
        f"in per cent: bar, {compared} with its 95 % interval; diamond, under the paper's attacks; dot, clean"
    )
    drawing.finish_axes(axes, grid="x")
    return figure


def _draw_bar(axes: Axes, row: int, share: Proportion, colour: str, alpha: float) -> None:
    axes.barh(row, 100 * share.rate, height=0.6, color=colour, alpha=alpha)
    ends = [100 * end for end in share.interval]
    axes.plot(ends, [row, row], color=drawing.INK, linewidth=1.6, marker="|", markersize=9)


def _reservation(summary: Summary) -> str:
    """Return the qualification of a run's bar, for its name."""
    if summary.standing == "not established":
        return ", an upper bound"
    return f", {summary.standing}" * (summary.robust_accuracy is None)
