"""The report as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from art_defenses_ext.base.text import for_terminal
from art_defenses_ext.evaluation.records.examples import Example
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.report import words
from art_defenses_ext.evaluation.results.summary import Summary

TEMPLATE = "report.html.j2"


def render_page(summary: Summary, examples: Sequence[Example], figures: Mapping[str, bytes]) -> str:
    """The report as HTML.

    Args:
        summary: the figures of a run.
        examples: the images that ``figures["examples"]`` shows, in words for those who cannot see them.
        figures: PNG files by name; of ``FIGURES`` (see the report) those that there are.

    Returns:
        The whole page. Everything that comes from a run, such as an attack's name, is escaped, and rid of characters
        that have no shape or reorder what is read.
    """
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, finalize=_printable
    )
    environment.filters |= {
        "percent": words.percent,
        "interval": _interval,
        "amount": words.amount,
        "seconds": words.seconds,
        "size": words.size,
        "ndcg": words.ndcg,
        "reciprocal_rank": words.reciprocal_rank,
        "short": _short,
    }
    source = files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        summary=summary,
        run=summary.run,
        settings=summary.run.settings,
        headlines=words.headlines(summary),
        verdict=words.verdict(summary),
        gap=words.shown_gap(summary),
        defences=words.defence_names(summary.run),
        trainings=[words.training_in_words(training) for training in summary.run.trainings],
        attacker=words.attacker_in_words(summary.run),
        not_finite=words.not_finite_in_words(summary),
        randomness=words.randomness_in_words(summary),
        agreement=words.agreement_in_words(summary),
        detection=words.detection_in_words(summary.detection),
        detection_columns=words.DETECTION_COLUMNS,
        detection_rows=words.detection_rows(summary.detection) if summary.detection else [],
        legend_with_detector=words.LEGEND_WITH_DETECTOR,
        not_established=words.NOT_ESTABLISHED,
        title=words.title(summary),
        threat=words.threat_in_words(summary.run.settings),
        groups=words.grouped(summary.rows),
        median_size=words.median_size,
        counted=words.counted,
        grid=_grid(summary),
        curve_rows=_curve_rows(summary),
        examples=examples,
        images={name: _data_uri(content) for name, content in figures.items()},
    )


def _printable(value: Any) -> Any:
    """What the template writes; markup of its own as it is."""
    return value if hasattr(value, "__html__") or not isinstance(value, str) else for_terminal(value)


def _interval(share: Proportion) -> str:
    low, high = share.interval
    return f"{100 * low:.1f} to {100 * high:.1f}{words.NO_BREAK}%"


def _short(value: float) -> str:
    return f"{value:.4g}"


def _grid(summary: Summary) -> list[str]:
    """Every eps at which some curve was measured."""
    return [_short(eps) for eps in sorted({eps for curve in summary.curves for eps, _ in curve.points})]


def _curve_rows(summary: Summary) -> list[tuple[str, int, list[str]]]:
    """Attack, number of images and the accuracy at each eps of the grid; a dash where it was not measured."""
    rows = []
    for curve in summary.curves:
        measured = {_short(eps): f"{100 * share.rate:.1f}" for eps, share in curve.points}
        rows.append((curve.attack, curve.points[0][1].total, [measured.get(eps, "-") for eps in _grid(summary)]))
    return rows


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
