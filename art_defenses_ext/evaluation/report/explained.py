"""Sections of the documentation as parts of a report, so that a page explains itself without repeating text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from art_defenses_ext.base.errors import InputError, shown_by
from art_defenses_ext.base.pages import read_page
from art_defenses_ext.evaluation.report.sections import Folded, Prose, Terms

TERM = re.compile(r"\*{1,2}([^*]+)\*{1,2}: ")
EMPHASIS = re.compile(r"\*{1,2}([^*]+)\*{1,2}")
LINK = re.compile(r"\[([^\]]*)\]\(([\w/]+)\.md(#[\w-]+)?\)")


def explained(section: str, title: str) -> Folded | None:
    """Return a section of the documentation, folded under a title; None if there is no such section.

    Args:
        section: page and heading, as in ``checks#more-effort``.
        title: the title of the folded part.
    """
    try:
        text = read_page(section)
    except InputError:  # a report is read with later versions too, whose pages may lack the section
        return None
    _heading, *paragraphs = text.strip().split("\n\n")
    parts = [part for paragraph in paragraphs for part in _parts(paragraph)]
    return Folded(title, parts, shown_by(section))


def advice(section: str, term: str) -> str:
    """Return the text of a term in a section of the documentation, as in ``*What to do*: ...``; empty if missing."""
    folded = explained(section, "")
    meanings = [part.meanings for part in folded.parts if isinstance(part, Terms)] if folded else []
    return next((meaning for pairs in meanings for name, meaning in pairs if name == term), "")


def _parts(paragraph: str) -> Iterator[Prose | Terms]:
    """Yield a paragraph's sentences and the terms that it explains; each row of a table is a term."""
    if paragraph.startswith("|"):
        _head, _rule, *rows = (line.strip("| ").split(" | ") for line in paragraph.splitlines())
        yield Terms([(_plain(name), _plain(" ".join(cells))) for name, *cells in rows])
        return
    before, *pieces = TERM.split(" ".join(paragraph.split()))
    if before.strip():
        yield Prose(_plain(before))
    if pieces:
        yield Terms([(_plain(term), _plain(text)) for term, text in zip(pieces[::2], pieces[1::2], strict=True)])


def _plain(text: str) -> str:
    """Return a piece of Markdown without emphasis; links name the command that shows their page."""
    linked = LINK.sub(lambda link: f"{link[1]} (`{shown_by(link[2] + (link[3] or ''))}`)", text)
    return EMPHASIS.sub(r"\1", linked).strip()
