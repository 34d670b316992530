"""All figures of a report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.text import Text

from art_defenses_ext.evaluation.records.examples import Example
from art_defenses_ext.evaluation.records.sample import SampleRecord
from art_defenses_ext.evaluation.report.described import class_name, recorded_texts
from art_defenses_ext.evaluation.report.figures.bars import summary_bars
from art_defenses_ext.evaluation.report.figures.curves import accuracy_curves
from art_defenses_ext.evaluation.report.figures.detector import margin_histograms, roc_curves
from art_defenses_ext.evaluation.report.figures.drawing import png
from art_defenses_ext.evaluation.report.figures.examples import examples_figure
from art_defenses_ext.evaluation.report.figures.training import losses, trade_off
from art_defenses_ext.evaluation.report.wording import worded
from art_defenses_ext.evaluation.results.summary import Summary


def draw_figures(summary: Summary, records: list[SampleRecord], examples: Sequence[Example]) -> dict[str, bytes | None]:
    """Return every figure of a report by name as a PNG file; None for a figure without content.

    Args:
        summary: the figures of a run.
        records: the records of its samples.
        examples: attacked images.
    """
    figures = {
        "accuracy": summary_bars(summary),
        "curves": accuracy_curves(summary),
        "examples": examples_figure(examples, summary.run.clip_values, partial(class_name, summary.run)),
        "losses": losses(summary),
        "margins": margin_histograms(summary, records),
        "roc": roc_curves(summary, records),
        "trade_off": trade_off(summary),
    }
    recorded = recorded_texts(summary)
    for figure in filter(None, figures.values()):
        for text in figure.findobj(Text):
            reworded = worded(text.get_text(), summary.run.input_shape, recorded)
            if reworded != text.get_text():  # setting a text fixes the numbers at the axes
                text.set_text(reworded)
    return {name: png(figure) if figure else None for name, figure in figures.items()}
