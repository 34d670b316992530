"""Text that others have chosen, made harmless where it is shown: names, paths, commands and links.

A run's folder may come from another machine, and a class may be called anything. What a terminal, a Markdown reader or
a spreadsheet would act on is escaped here and nowhere else; HTML is escaped by its template.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any
from urllib.parse import quote, urlsplit

LONGEST = 200
"""Characters of a value in a message."""

FORMULA = ("=", "+", "-", "@")
"""What a spreadsheet takes for the beginning of a formula."""

_ACTIVE = re.compile(r"[\\`*\[\]~$&]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "|": "&#124;"}


def for_terminal(text: str) -> str:
    """``text`` on one line, without anything that a terminal obeys or that reorders what is read.

    Control characters (C0, C1), escape sequences, bidirectional overrides and other characters of no shape of their own
    are written as Python escapes, line ends and tabs as spaces.
    """
    if text.isprintable():
        return text
    return "".join(map(_shown_character, text))


def _shown_character(character: str) -> str:
    if character in "\n\r\t":
        return " "
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


def for_terminal_lines(text: str) -> str:
    """The same of each line of ``text``; where the line ends are not the product's own, clean first."""
    return "\n".join(map(for_terminal, text.split("\n")))


def for_markdown(text: str) -> str:
    """``text`` as it is to be read, in a line or a table's cell of Markdown: no link, code, HTML, formula or cell."""
    shown = for_terminal(text)
    escaped = "".join(_ENTITIES.get(character, character) for character in _ACTIVE.sub(r"\\\g<0>", shown))
    return f"'{escaped}" if shown.startswith(FORMULA) else escaped


def code_block(lines: list[str]) -> str:
    """Lines as a block of code in Markdown, which none of them can end."""
    shown = [for_terminal(line) for line in lines]
    longest = max((len(run) for line in shown for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence, *shown, fence])


def is_web_address(text: str) -> bool:
    """Whether a link leads to a page on the web, by http or https, and holds nothing but printable characters."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc) and text.isprintable() and " " not in text


def markdown_link(text: str, target: str) -> str:
    """A link to a web address or to a file beside the page."""
    if not is_web_address(target):
        return f"[{for_markdown(text)}]({quote(target, safe='/-._~')})"  # no colon: a name may look like a scheme
    return f"[{for_markdown(text)}]({quote(target, safe=':/?#@!$&*+,;=%~-._')})"


def for_picture(text: str) -> str:
    """``text`` for matplotlib, which takes what stands between dollar signs for a formula."""
    return for_terminal(text).replace("$", r"\$")


def shown(value: Any) -> str:
    """A value as a message shows it: whatever its ``repr`` does, and no longer than ``LONGEST``."""
    try:
        text = repr(value)
    except Exception:  # of a class of one's own, or of a number with more digits than Python writes
        text = f"a {type(value).__name__}"
    text = for_terminal(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
