"""Pictures of an evaluation: headline figures, accuracy against eps, what a detector tells, examples.

Made with matplotlib's ``Figure`` alone: no pyplot, no state, no window.
"""

from __future__ import annotations

import io
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.text import for_picture, for_terminal
from art_defenses_ext.base.validation import InputError
from art_defenses_ext.evaluation.records.examples import Example
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.records.sample import SampleRecord
from art_defenses_ext.evaluation.report.words import GROUPS, NOT_ESTABLISHED, figure_name, headlines, training_in_words
from art_defenses_ext.evaluation.results.detection import DetectionRow, clean_excesses, fooled_excesses, roc
from art_defenses_ext.evaluation.results.summary import Curve, Summary
from art_defenses_ext.evaluation.threat import Threat, named_threat

# Okabe and Ito's colours, which the colour-blind can tell apart, but for yellow: it is too faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
LINES = {"ladder": "-", "paper": "--"}
INK, FAINT = "#222222", "#8a8a8a"
WORST, OTHER = "#D55E00", "#0072B2"
KNOWLEDGE = {"zero": "knows the network alone", "perfect": "knows network and detector"}


def png(figure: Figure) -> bytes:
    """The figure as a PNG file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def summary_bars(summary: Summary) -> Figure:
    """The headline figures as bars with their 95 % intervals, the one that survives on top.

    Args:
        summary: the figures of a run.
    """
    lines = [(line, line.value) for line in headlines(summary) if line.value is not None]
    figure = _figure(8.0, 1.2 + 0.55 * len(lines))
    axes = figure.add_subplot()
    _title(axes, summary)
    for row, (line, value) in enumerate(lines):
        colour = WORST if line.key == "worst_case" else OTHER
        axes.barh(row, 100 * value.rate, height=0.6, color=colour, alpha=0.85)
        low, high = value.interval
        axes.plot([100 * low, 100 * high], [row, row], color=INK, linewidth=1.6, marker="|", markersize=9)
        number = (
            f"{100 * value.rate:.1f} %" if line.established else f"{NOT_ESTABLISHED}\n(<= {100 * value.rate:.1f} %)"
        )
        # Beside the interval, or where words have no room there, before it.
        beside = line.established or high < 0.86 or 1.14 - high > low
        place = {"x": 100 * high + 1.5} if beside else {"x": 100 * low - 1.5, "ha": "right"}
        axes.text(y=row, s=number, va="center", color=INK, fontsize=11 if line.established else 10, **place)
    labels = [_wrapped(line.label, 21) for line, _ in lines]
    axes.set_yticks(range(len(lines)), labels, fontsize=10, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 114)  # room for the number beside a full bar
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(f"classified correctly{_or_rejected(summary)}, in per cent, with 95 % intervals")
    _bare(axes)
    axes.grid(axis="x", color="#e4e4e4")
    return figure


def accuracy_curves(summary: Summary) -> Figure:
    """Accuracy against eps, a line for each attack, with light 95 % bands and the threat's eps marked.

    The legend stands beside the axes, in the order in which the lines cross the threat's eps.

    Args:
        summary: the figures of a run, which holds at least one curve.

    Raises:
        InputError: if it holds none.
    """
    if not summary.curves:
        raise InputError("summary holds no curve; a run with curve_samples > 0 was expected")
    eps = summary.run.settings.eps
    families = _families(summary)
    entries = sum(len(curves) for curves in families.values()) + 2 * len(families) + 2
    figure = _figure(9.5, max(4.6, 0.27 * entries + 0.4))
    axes = figure.add_subplot()
    _title(axes, summary, pad=22)
    axes.axvline(eps, color=FAINT, linewidth=1, linestyle=":")
    axes.text(eps, 102, f"eps {eps:.4g}", ha="center", va="bottom", color=INK, fontsize=9)
    legend: list[tuple[Line2D, str]] = []
    number = 0
    for (source, total), curves in families.items():
        place = _place(total, summary)
        legend.append((_invisible(), f"{GROUPS[source]}, {place}"))
        for curve in curves:
            legend.append((_draw(axes, curve, source, number), _entry(curve, eps)))
            number += 1  # across the groups: colours come back as late as can be
    worst = summary.worst_case
    (star,) = axes.plot(
        [eps], [100 * worst.rate], "*", color=INK, markersize=14, markeredgecolor="white", zorder=5, clip_on=False
    )
    legend.append((_invisible(), "over all attacks, all images"))
    bound = summary.standing == "not established"
    meaning = f"at most: {NOT_ESTABLISHED}" if bound else figure_name(summary)
    legend.append((star, f"{100 * worst.rate:5.1f} %  {meaning}"))
    _finish(axes, summary)
    _legend(figure, legend, "accuracy at the marked eps")
    return figure


def comparison_bars(runs: Sequence[tuple[str, Summary]]) -> Figure:
    """Each run's accuracy after its attacks with its 95 % interval, after the paper's attacks, and on clean images.

    Args:
        runs: their names and figures.
    """
    figure = _figure(9.0, 1.6 + 0.6 * len(runs))
    axes = figure.add_subplot()
    for row, (_, summary) in enumerate(runs):
        worst = summary.worst_case
        bound = summary.standing != "established"
        axes.barh(row, 100 * worst.rate, height=0.55, color=WORST, alpha=0.45 if bound else 0.85)
        low, high = worst.interval
        axes.plot([100 * low, 100 * high], [row, row], color=INK, linewidth=1.6, marker="|", markersize=9)
        if summary.paper is not None:
            axes.plot([100 * summary.paper.rate], [row], MARKERS[2], color=OTHER, markersize=8, clip_on=False)
        axes.plot([100 * summary.clean.rate], [row], MARKERS[0], color=FAINT, markersize=8, clip_on=False)
    names = [_wrapped(f"{name}{_reservation(summary)}", 34) for name, summary in runs]
    axes.set_yticks(range(len(runs)), names, fontsize=10, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(
        f"in per cent: bar, {_of_the_bars(runs)} with its 95 % interval; diamond, after the paper's attacks; dot, clean"
    )
    _bare(axes)
    axes.grid(axis="x", color="#e4e4e4")
    return figure


def _reservation(summary: Summary) -> str:
    """What to know with a run's bar, to be added to its name."""
    if summary.standing == "not established":
        return ", an upper bound"
    return f", {summary.standing}" * (summary.robust_accuracy is None)


def _of_the_bars(runs: Sequence[tuple[str, Summary]]) -> str:
    known = all(summary.robust_accuracy is not None for _, summary in runs)
    return "robust accuracy" if known else "accuracy after the attacks that ran"


def roc_curves(summary: Summary, records: list[SampleRecord]) -> Figure:
    """What share of an attack's images the detector tells against what share of clean ones it flags, for each attack.

    Of attacks with zero knowledge alone: the others aim at one threshold, and their curve is not that of an attacker
    who aims at each.

    Args:
        summary: the figures of a run with a detector.
        records: its samples.

    Raises:
        InputError: if no attack with zero knowledge that ran on all samples fooled the classifier.
    """
    rows = [row for row in _fooling(summary) if row.knows == "zero"]
    if not rows:
        raise InputError(
            "summary holds no attack with zero knowledge that fooled a classifier; at least one was expected"
        )
    figure = _figure(9.5, max(4.6, 0.3 * len(rows) + 0.8))
    axes = figure.add_subplot()
    _title(axes, summary)
    axes.plot([0, 100], [0, 100], color=FAINT, linewidth=1, linestyle=":")
    clean = clean_excesses(records)
    legend: list[tuple[Line2D, str]] = []
    legend.append((_invisible(), KNOWLEDGE["zero"]))
    for number, row in enumerate(rows):
        false, true = roc(clean, fooled_excesses(row.key, records, _threat(summary)))
        colour = PALETTE[number % len(PALETTE)]
        (line,) = axes.plot(100 * false, 100 * true, color=colour, linestyle="--", linewidth=1.6)
        legend.append((line, f"{row.auc:.4f}  {_wrapped(row.key, 30)}"))
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xlabel("clean images flagged, in per cent")
    axes.set_ylabel("attacked images flagged, in per cent")
    _bare(axes)
    axes.grid(color="#ececec")
    _legend(figure, legend, "area under the curve")
    return figure


def excess_histograms(summary: Summary, records: list[SampleRecord]) -> Figure:
    """The detector's excess for clean images, and for what each attack fooled the classifier with.

    Args:
        summary: the figures of a run with a detector.
        records: its samples.

    Raises:
        InputError: if no attack that ran on all samples fooled the classifier.
    """
    rows = _fooling(summary)
    figure = _figure(8.0, 1.5 + 1.15 * len(rows))
    figure.suptitle(_wrapped(_subject(summary), 90), fontsize=10, color=INK, parse_math=False)
    clean = clean_excesses(records)
    attacked = [fooled_excesses(row.key, records, _threat(summary)) for row in rows]
    everything = np.concatenate([clean, *attacked])
    known = everything[np.isfinite(everything)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (-1.0, 1.0)
    bins = np.linspace(min(low, 0.0), max(high, low + 1e-12, 0.0), 41)
    grid = figure.subplots(len(rows), 1, sharex=True, squeeze=False)
    for axes, row, excesses in zip(grid[:, 0], rows, attacked, strict=True):
        for values, colour, label in ((clean, OTHER, "clean"), (excesses, WORST, "attacked")):
            shown = values.clip(bins[0], bins[-1])  # what is infinite stands at the end
            share = np.full(len(shown), 100 / len(shown))
            axes.hist(shown, bins=bins, weights=share, color=colour, alpha=0.55, label=label)
        axes.axvline(0, color=INK, linewidth=1, linestyle=":")
        axes.set_title(
            f"{for_terminal(row.key)} ({KNOWLEDGE[row.knows]})", fontsize=9, color=INK, loc="left", parse_math=False
        )
        _bare(axes)
    grid[0, 0].legend(frameon=False, fontsize=9)
    grid[-1, 0].set_xlabel("score less threshold: what lies right of the dotted line is rejected")
    figure.supylabel("images, in per cent", fontsize=10)
    return figure


def _fooling(summary: Summary) -> list[DetectionRow]:
    """The attacks that there is something to show of."""
    rows = [row for row in summary.detection.rows if row.fooled.count] if summary.detection else []
    if not rows:
        raise InputError(
            "summary holds no attack that fooled a classifier beside a detector; at least one was expected"
        )
    return rows


def _threat(summary: Summary) -> Threat:
    return named_threat(summary.run.settings.threat, summary.run.settings.eps)


def trade_off(summary: Summary) -> Figure:
    """Clean accuracy on validation images against the strength of each defence that was tuned, the choice marked.

    Args:
        summary: the figures of a run, in which at least one defence was tuned.

    Raises:
        InputError: if none was.
    """
    tunings = summary.run.tunings
    if not tunings:
        raise InputError("summary holds no tuning; a run with a tuned defence was expected")
    figure = _figure(6.4, 3.2 * len(tunings))
    for row, tuning in enumerate(tunings):
        axes = figure.add_subplot(len(tunings), 1, row + 1)
        values, accuracies = zip(*tuning.points, strict=True)
        axes.plot(values, [100 * accuracy for accuracy in accuracies], color=OTHER, marker="o", markersize=4)
        axes.axvline(tuning.chosen, color=WORST, linewidth=1.2, linestyle=":")
        parameter = for_picture(tuning.parameter)
        axes.set_title(f"chosen {parameter}: {tuning.chosen:.4g}", fontsize=10, color=INK, loc="left")
        axes.set_xlabel(parameter)
        axes.set_ylabel("clean accuracy on\nvalidation images, per cent")
        _bare(axes)
        axes.grid(color="#e4e4e4")
    return figure


def losses(summary: Summary) -> Figure:
    """The losses of each training of a defence, epoch by epoch.

    Args:
        summary: the figures of a run.

    Raises:
        InputError: for a run without a defence that was trained.
    """
    trainings = [one for one in summary.run.trainings if one.losses]
    if not trainings:
        raise InputError("summary holds no training; a run with a defence that was trained in epochs was expected")
    figure = _figure(6.4, 2.6 * len(trainings))
    for row, training in enumerate(trainings):
        axes = figure.add_subplot(len(trainings), 1, row + 1)
        epochs = range(1, len(training.losses) + 1)
        for number, name in enumerate(("training", "validation")):
            values = [both[number] for both in training.losses if both[number] is not None]
            if values:
                marker = MARKERS[number] if len(values) < 20 else None
                axes.plot(
                    epochs,
                    np.array(values),
                    color=PALETTE[number],
                    marker=marker,
                    markersize=4,
                    label=for_picture(name),
                )
        axes.set_title(_wrapped(training_in_words(training), 78), fontsize=9, color=INK, loc="left", parse_math=False)
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=9)
        _bare(axes)
    return figure


def examples_figure(examples: Sequence[Example], clip_values: tuple[float, float] | None = None) -> Figure:
    """Clean images, what an attack made of them, the difference, and what the defences make of both.

    Args:
        examples: with images (C, H, W) or (H, W); see :func:`drawable`. Three channels are colours, any other number
            is averaged into grey.
        clip_values: the pixel values shown as black and white; None for what the images span, or [0, 1] if that holds
            them all.

    Raises:
        InputError: if there is none, or one that is no image.
    """
    if not examples or not drawable(examples):
        raise InputError(f"examples holds {len(examples)} examples; at least one, all of them images, was expected")
    views = list(examples[0].views)
    figure = _figure(1.0 + 1.75 * len(examples), 6.2 + 3.8 * len(views))
    grid = figure.subplots(3 + 2 * len(views), len(examples), squeeze=False)
    low, high = _value_range(examples) if clip_values is None else clip_values
    for column, example in enumerate(examples):
        clean, adversarial = _pixels(example.clean), _pixels(example.adversarial)
        change = adversarial - clean
        scale = float(np.abs(change).max()) or 1.0
        pictures = [(clean - low) / (high - low), (adversarial - low) / (high - low), 0.5 + change / (2 * scale)]
        for row, picture in enumerate(pictures):
            _show(grid[row, column], picture, diverging=row == 2)
        for row, (name, which) in enumerate(product(views, range(2)), start=3):
            _show(grid[row, column], _pixels(example.views[name][which]), diverging=False, hot=name == "heat")
        title = f"#{example.index}: {example.label} → {example.prediction}"
        grid[0, column].set_title(f"{title}\n{_wrapped(example.attack, 20)}", fontsize=9, parse_math=False)
        grid[2, column].set_xlabel(f"full scale: ±{scale:.2g}", fontsize=9)
    unchanged = "grey" if _pixels(examples[0].clean).ndim == 3 else "white"
    for row, label in enumerate(("clean", "adversarial", f"difference\n({unchanged}: unchanged)")):
        grid[row, 0].set_ylabel(label, fontsize=10)
    for row, (name, of) in enumerate(product(views, ("clean", "adversarial")), start=3):
        grid[row, 0].set_ylabel(f"{_wrapped(name, 18)}\n({of})", fontsize=10, parse_math=False)
    return figure


def drawable(examples: Sequence[Example]) -> bool:
    """Whether all of them are images: (C, H, W) or (H, W)."""
    return all(example.clean.ndim in (2, 3) for example in examples)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _title(axes: Axes, summary: Summary, pad: float = 8) -> None:
    """What was evaluated: the picture may travel without its report."""
    axes.set_title(_wrapped(_subject(summary), 90), loc="left", fontsize=10, color=INK, pad=pad, parse_math=False)


def _subject(summary: Summary) -> str:
    run = summary.run
    defences = " + ".join(str(defence["name"]) for defence in run.defences) or "no defence"
    return f"{defences} on {run.model}, {run.settings.threat} {run.settings.eps:.4g}, {run.settings.samples} images"


def _or_rejected(summary: Summary) -> str:
    return " or rejected" if summary.run.rejects else ""


def _bare(axes: Axes) -> None:
    """Leave out what carries no data."""
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3)


def _families(summary: Summary) -> dict[tuple[str, int], list[Curve]]:
    """Curves by source and number of images, the ladder's first; each group from most to least accurate at eps."""
    sources = {row.key: row.source for row in summary.rows}
    families: dict[tuple[str, int], list[Curve]] = defaultdict(list)
    for curve in summary.curves:
        families[sources.get(curve.attack, "ladder"), curve.points[0][1].total].append(curve)
    eps = summary.run.settings.eps
    return {key: sorted(families[key], key=lambda curve: -_at(curve, eps).rate) for key in sorted(families)}


def _at(curve: Curve, eps: float) -> Proportion:
    """The curve's point at the threat's eps, or next to it."""
    return min(curve.points, key=lambda point: abs(point[0] - eps))[1]


def _place(total: int, summary: Summary) -> str:
    return "all images" if total == summary.clean.total else f"first {total} images"


def _draw(axes: Axes, curve: Curve, source: str, number: int) -> Line2D:
    eps = [eps for eps, _ in curve.points]
    colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
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
        linestyle=LINES[source],
        # White inside marks the paper's attacks also where lines lie on each other.
        markerfacecolor="white" if source == "paper" else colour,
        clip_on=False,
    )
    return line


def _entry(curve: Curve, eps: float) -> str:
    return f"{100 * _at(curve, eps).rate:5.1f} %  {_wrapped(curve.attack, 30)}"


def _finish(axes: Axes, summary: Summary) -> None:
    axes.set_xlim(0, max(eps for curve in summary.curves for eps, _ in curve.points))
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel(f"eps, {summary.run.settings.threat} norm, in pixel values")
    axes.set_ylabel(f"classified correctly{_or_rejected(summary)}, in per cent")
    _bare(axes)
    axes.grid(color="#ececec")


def _legend(figure: Figure, entries: list[tuple[Line2D, str]], title: str) -> None:
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


def _invisible() -> Line2D:
    """The handle of a heading."""
    return Line2D([], [], linestyle="", visible=False)


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(for_terminal(text), width, break_on_hyphens=False)


def _value_range(examples: Sequence[Example]) -> tuple[float, float]:
    """The pixel values shown as black and white: 0 and 1 if all images lie there, else what they span."""
    low = min(float(min(one.clean.min(), one.adversarial.min())) for one in examples)
    high = max(float(max(one.clean.max(), one.adversarial.max())) for one in examples)
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high if high > low else low + 1)


def _pixels(image: FloatArray) -> Any:
    """The image as (H, W) or (H, W, 3)."""
    wide = image.astype(np.float64)
    if wide.ndim == 2:
        return wide
    return wide.transpose(1, 2, 0) if len(wide) == 3 else wide.mean(axis=0)


def _show(axes: Axes, picture: Any, diverging: bool, hot: bool = False) -> None:
    # Blue for darker and red for lighter stay apart for all eyes; a colour image's difference is one itself, on grey.
    colours = "RdBu_r" if diverging and picture.ndim == 2 else "inferno" if hot else "gray"
    margin = 0.16 if colours == "RdBu_r" else 0.0  # leaves out its ends: so dark that both look black
    axes.imshow(picture.clip(0, 1), cmap=colours, vmin=-margin, vmax=1 + margin, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
