"""The report as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from art_defenses_ext.evaluation import table
from art_defenses_ext.evaluation.examples import Example
from art_defenses_ext.evaluation.proportion import Proportion
from art_defenses_ext.evaluation.summary import Summary

TEMPLATE = "report.html.j2"


def render_page(summary: Summary, examples: Sequence[Example], figures: Mapping[str, bytes]) -> str:
    """The report as HTML.

    Args:
        summary: the figures of a run.
        examples: the images that ``figures["examples"]`` shows, in words for those who cannot see them.
        figures: PNG files by name; of ``FIGURES`` (see the report) those that there are.

    Returns:
        The whole page. Everything that comes from a run, such as an attack's name, is escaped.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {
        "percent": table.percent,
        "interval": _interval,
        "amount": table.amount,
        "seconds": table.seconds,
        "size": table.size,
        "ndcg": table.ndcg,
        "reciprocal_rank": table.reciprocal_rank,
        "short": _short,
    }
    source = files("art_defenses_ext.evaluation").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        summary=summary,
        run=summary.run,
        settings=summary.run.settings,
        headlines=table.headlines(summary),
        verdict=table.verdict(summary),
        gap=table.shown_gap(summary),
        defences=table.defence_names(summary.run),
        trainings=[table.training_in_words(training) for training in summary.run.trainings],
        attacker=table.attacker_in_words(summary.run),
        randomness=table.randomness_in_words(summary),
        agreement=table.agreement_in_words(summary),
        detection=table.detection_in_words(summary.detection),
        detection_columns=table.DETECTION_COLUMNS,
        detection_rows=table.detection_rows(summary.detection) if summary.detection else [],
        legend_with_detector=table.LEGEND_WITH_DETECTOR,
        not_established=table.NOT_ESTABLISHED,
        title=table.title(summary),
        threat=table.threat_in_words(summary.run.settings),
        groups=table.grouped(summary.rows),
        median_size=table.median_size,
        counted=table.counted,
        grid=_grid(summary),
        curve_rows=_curve_rows(summary),
        examples=examples,
        images={name: _data_uri(content) for name, content in figures.items()},
    )


def _interval(share: Proportion) -> str:
    low, high = share.interval
    return f"{100 * low:.1f} to {100 * high:.1f}{table.NO_BREAK}%"


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
