"""Losses of a defence's training, and clean accuracy against its strength."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from art_defenses_ext.base.text import for_picture
from art_defenses_ext.evaluation.report.described import describe_training
from art_defenses_ext.evaluation.report.figures import drawing
from art_defenses_ext.evaluation.results.summary import Summary


def trade_off(summary: Summary) -> Figure | None:
    """Return clean accuracy on validation images against the strength of each tuned defence, with the chosen value.

    Args:
        summary: the figures of a run.

    Returns:
        None if no defence was tuned.
    """
    tunings = summary.run.tunings
    if not tunings:
        return None
    figure = drawing.new_figure(6.4, 3.2 * len(tunings))
    for row, tuning in enumerate(tunings):
        axes = figure.add_subplot(len(tunings), 1, row + 1)
        values, accuracies = zip(*tuning.points, strict=True)
        axes.plot(values, [100 * accuracy for accuracy in accuracies], color=drawing.OTHER, marker="o", markersize=4)
        axes.axvline(tuning.chosen, color=drawing.WORST, linewidth=1.2, linestyle=":")
        axes.set_title(drawing.wrap(f"chosen {tuning.parameter}: {tuning.chosen:.4g}", 78), loc="left", **drawing.TITLE)
        axes.set_xlabel(for_picture(tuning.parameter))
        axes.set_ylabel("clean accuracy on\nvalidation images, per cent")
        drawing.finish_axes(axes)
    return figure


def losses(summary: Summary) -> Figure | None:
    """Return the losses of each training of a defence, epoch by epoch.

    Args:
        summary: the figures of a run.

    Returns:
        None if no defence was trained in epochs.
    """
    trainings = [training for training in summary.run.trainings if training.losses]
    if not trainings:
        return None
    figure = drawing.new_figure(6.4, 2.6 * len(trainings))
    for row, training in enumerate(trainings):
        axes = figure.add_subplot(len(trainings), 1, row + 1)
        for number, name in enumerate(("training", "validation")):
            values = np.array([both[number] for both in training.losses if both[number] is not None])
            if len(values):
                marker = drawing.MARKERS[number] if len(values) < 20 else ""
                axes.plot(range(1, len(values) + 1), values, f"-{marker}", color=drawing.PALETTE[number], label=name)
        axes.set_title(drawing.wrap(describe_training(training), 78), loc="left", **drawing.TITLE)
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=9)
        drawing.finish_axes(axes)
    return figure
