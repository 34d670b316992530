"""The report as one self-contained HTML page: no network, no other file, and no script but its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from art_defenses_ext.base.text import for_terminal
from art_defenses_ext.evaluation.records.examples import Example
from art_defenses_ext.evaluation.report.content import document
from art_defenses_ext.evaluation.report.numbers import MISSING
from art_defenses_ext.evaluation.report.sections import Figure, Section
from art_defenses_ext.evaluation.results.summary import Summary

TEMPLATE = "report.html.j2"
SCRIPT = "report.js"


def render_page(summary: Summary, examples: Sequence[Example], figures: Mapping[str, bytes | None]) -> str:
    """Return the report as HTML.

    Args:
        summary: the figures of a run.
        examples: the images in ``figures["examples"]``, which its alternative text describes.
        figures: PNG files by name (``figures/drawn.py``); None for a figure that does not exist.

    Returns:
        The page. Everything that comes from a run, such as an attack's name, is escaped, and rid of characters that are
        invisible or change the direction of the text.
    """
    report = document(summary, examples)
    images = {
        name: f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
        for name, content in figures.items()
        if content
    }
    sections = (_with_figures(section, images) for section in report.sections)
    script = _packaged(SCRIPT)
    return _template().render(
        report=report,
        sections=[section for section in sections if section.parts],
        images=images,
        missing=MISSING,
        script=script,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


@cache  # to compile it takes a tenth of the time of a report
def _template() -> Template:
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, finalize=_printable
    )
    environment.filters |= {"kind": lambda part: type(part).__name__, "zip": zip}
    return environment.from_string(_packaged(TEMPLATE))


def _packaged(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _with_figures(section: Section, images: Mapping[str, str]) -> Section:
    """Return the section without figures that do not exist."""
    parts = [part for part in section.parts if not isinstance(part, Figure) or part.name in images]
    return replace(section, parts=parts)


def _printable(value: Any) -> Any:
    """Return a value as the template prints it, with the template's own markup unchanged."""
    return value if hasattr(value, "__html__") or not isinstance(value, str) else for_terminal(value)
