"""The documentation's pages, which are installed with the package, and the command that shows them.

In an installed package they are in its own folder (``setup.py`` copies them there), in a checkout in ``docs/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from art_defenses_ext.base.declared import one_of

_PACKAGE = Path(__file__).parents[1]
FOLDERS = (_PACKAGE / "docs", _PACKAGE.parent / "docs")
"""The folders of the pages: in an installed package, and in a checkout."""

HIDDEN = "index"
"""The page of the site that only lists the others."""

HEADING = re.compile(r"(#+) +(.*)")


def page_names() -> list[str]:
    """Return the names of all pages, such as ``checks`` and ``methods/jump_relu``."""
    names = (path.relative_to(_folder()).with_suffix("").as_posix() for path in _folder().rglob("*.md"))
    return sorted(name for name in names if name != HIDDEN)


def read_page(name: str) -> str:
    """Return a page in Markdown, or a section of it.

    Args:
        name: the page, optionally with a ``#`` and the section's heading in small letters with hyphens, as in
            ``checks#more-effort``.

    Raises:
        InputError: for a page or a section that does not exist.
    """
    page, _, anchor = name.partition("#")
    text = (_folder() / f"{one_of(*page_names()).checked('name', page)}.md").read_text(encoding="utf-8")
    return _section(text, page, anchor) if anchor else text


def title_of(text: str) -> str:
    """Return the first heading of a page."""
    return next((title for _, _, title in headings(text)), "")


def headings(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the line, the level and the text of each heading; a comment in a block of code is none."""
    in_code = False
    for number, line in enumerate(text.splitlines()):
        in_code ^= line.startswith("```")
        if not in_code and (heading := HEADING.fullmatch(line)):
            yield number, len(heading[1]), heading[2]


def _folder() -> Path:
    return next((folder for folder in FOLDERS if (folder / f"{HIDDEN}.md").is_file()), FOLDERS[0])


def _section(text: str, page: str, anchor: str) -> str:
    """Return the lines from a heading up to the next of its level or above."""
    places = [(number, level, anchor_of(title)) for number, level, title in headings(text)]
    known = [name for _, _, name in places]
    one_of(*known).checked(f"section of {page}", anchor)
    start, own_level, _ = places[known.index(anchor)]
    end = next((number for number, level, _ in places if number > start and level <= own_level), None)
    return "\n".join(text.splitlines()[start:end]).rstrip() + "\n"


def anchor_of(title: str) -> str:
    """Return the anchor of a heading on the site and the forges."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
