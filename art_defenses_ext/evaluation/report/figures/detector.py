"""ROC curves of a detector, and histograms of its margin."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from art_defenses_ext.evaluation.records.sample import SampleRecord
from art_defenses_ext.evaluation.report.figures import drawing
from art_defenses_ext.evaluation.results.detection import DetectionRow, clean_margins, fooled_margins, roc
from art_defenses_ext.evaluation.results.summary import Summary
from art_defenses_ext.evaluation.threat import Threat, named_threat

KNOWLEDGE = {"zero": "zero knowledge of the detector", "perfect": "perfect knowledge of the detector"}


def roc_curves(summary: Summary, records: list[SampleRecord]) -> Figure | None:
    """Return the ROC curve of each attack: true against false positive rate of the detector.

    Only attacks with zero knowledge have a curve: the others aim at one threshold, and would aim at any other.

    Args:
        summary: the figures of a run.
        records: its samples.

    Returns:
        None without a detector, or if no such attack fooled the classifier.
    """
    rows = [row for row in _fooling(summary) if row.knows == "zero"]
    if not rows:
        return None
    figure = drawing.new_figure(9.5, max(4.6, 0.3 * len(rows) + 0.8))
    axes = figure.add_subplot()
    drawing.set_title(axes, summary)
    axes.plot([0, 100], [0, 100], color=drawing.FAINT, linewidth=1, linestyle=":")
    clean = clean_margins(records)
    legend = [(drawing.invisible(), KNOWLEDGE["zero"])]
    for number, row in enumerate(rows):
        false, true = roc(clean, fooled_margins(row.key, records, _threat(summary)))
        colour = drawing.PALETTE[number % len(drawing.PALETTE)]
        (line,) = axes.plot(100 * false, 100 * true, color=colour, linestyle="--", linewidth=1.6)
        legend.append((line, f"{row.auc:.4f}  {drawing.wrap(row.key, 30)}"))
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xlabel("false positive rate: clean images flagged, in per cent")
    axes.set_ylabel("true positive rate: attacked images flagged, in per cent")
    drawing.finish_axes(axes)
    drawing.add_legend(figure, legend, "area under the curve")
    return figure


def margin_histograms(summary: Summary, records: list[SampleRecord]) -> Figure | None:
    """Return histograms of the detector's margin, for clean images and for those of each attack that fool the model.

    Args:
        summary: the figures of a run.
        records: its samples.

    Returns:
        None without a detector, or if no attack that ran on all samples fooled the classifier.
    """
    rows = _fooling(summary)
    if not rows:
        return None
    figure = drawing.new_figure(8.0, 1.5 + 1.15 * len(rows))
    figure.suptitle(drawing.wrap(drawing.subject(summary), 90), **drawing.TITLE)
    clean = clean_margins(records)
    attacked = [fooled_margins(row.key, records, _threat(summary)) for row in rows]
    everything = np.concatenate([clean, *attacked])
    known = everything[np.isfinite(everything)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (-1.0, 1.0)
    bins = np.linspace(min(low, 0.0), max(high, low + 1e-12, 0.0), 41)
    grid = figure.subplots(len(rows), 1, sharex=True, squeeze=False)
    for axes, row, margins in zip(grid[:, 0], rows, attacked, strict=True):
        for values, colour, label in ((clean, drawing.OTHER, "clean"), (margins, drawing.WORST, "attacked")):
            clipped = values.clip(bins[0], bins[-1])  # infinite margins count in the last bin
            share = np.full(len(clipped), 100 / len(clipped))
            axes.hist(clipped, bins=bins, weights=share, color=colour, alpha=0.55, label=label)
        axes.axvline(0, color=drawing.INK, linewidth=1, linestyle=":")
        axes.set_title(drawing.wrap(f"{row.key} ({KNOWLEDGE[row.knows]})", 90), loc="left", **drawing.TITLE)
        drawing.finish_axes(axes)
    grid[0, 0].legend(frameon=False, fontsize=9)
    grid[-1, 0].set_xlabel("margin: score minus threshold; right of the dotted line an image is rejected")
    figure.supylabel("images, in per cent", fontsize=10)
    return figure


def _fooling(summary: Summary) -> list[DetectionRow]:
    """Return the attacks that fooled the classifier on any image."""
    return [row for row in summary.detection.rows if row.fooled.count] if summary.detection else []


def _threat(summary: Summary) -> Threat:
    return named_threat(summary.run.settings.threat, summary.run.settings.eps)
