"""Escaping of untrusted text for display: names, paths, commands and links.

A run's folder may come from another machine, and a class may have any name. Text that a terminal, a Markdown reader or
a spreadsheet would interpret is escaped in this module only; HTML is escaped by its template.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any
from urllib.parse import quote, urlsplit

LONGEST = 200
"""Maximum number of characters of a value in a message."""

FEW = 6
"""Maximum number of an array's numbers in a message."""

FORMULA = ("=", "+", "-", "@")
"""Characters that begin a formula in a spreadsheet."""

_ACTIVE = re.compile(r"[\\`*\[\]~$&]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "|": "&#124;"}


def for_terminal(text: str) -> str:
    """Return ``text`` on one line, without control characters and bidirectional overrides.

    Control characters (C0, C1), escape sequences, bidirectional overrides and other unprintable characters are written
    as Python escapes, line ends and tabs as spaces.
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


def for_markdown(text: str) -> str:
    """Return ``text`` escaped for a line or a table cell of Markdown: no link, code, HTML, formula or cell."""
    shown = for_terminal(text)
    escaped = "".join(_ENTITIES.get(character, character) for character in _ACTIVE.sub(r"\\\g<0>", shown))
    return f"'{escaped}" if shown.startswith(FORMULA) else escaped


def code_block(lines: list[str]) -> str:
    """Return lines as a code block in Markdown, with a fence that none of them contains."""
    shown = [for_terminal(line) for line in lines]
    longest = max((len(run) for line in shown for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence, *shown, fence])


def is_web_address(text: str) -> bool:
    """Return whether a link is an http or https address of printable characters."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc) and text.isprintable() and " " not in text


def markdown_link(text: str, target: str) -> str:
    """Return a Markdown link to a web address or to a file beside the page."""
    if not is_web_address(target):
        return f"[{for_markdown(text)}]({quote(target, safe='/-._~')})"  # no colon: a name may look like a scheme
    return f"[{for_markdown(text)}]({quote(target, safe=':/?#@!$&*+,;=%~-._')})"


def for_picture(text: str) -> str:
    """Return ``text`` for matplotlib, which parses text between dollar signs as a formula."""
    return for_terminal(text).replace("$", r"\$")


def shown(value: Any) -> str:
    """Return the ``repr`` of a value for a message, at most ``LONGEST`` characters; never raises.

    Of an array or a tensor with more than a few numbers it is their type and shape.
    """
    try:
        many = math.prod(getattr(value, "shape", ())) > FEW
        text = f"{value.dtype} of shape {tuple(value.shape)}" if many else repr(value)
    except Exception:  # the repr of a user's class, or of a number with too many digits
        text = f"a {type(value).__name__}"
    text = for_terminal(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
