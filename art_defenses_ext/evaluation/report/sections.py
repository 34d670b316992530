"""The parts of a report as data: sections of prose, terms, tables and figures, which each medium renders in its way.

All text here is plain: the renderer of a medium escapes it. A no-break space keeps a number and its unit on one line.
Commands and names in code are between backticks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from art_defenses_ext.base.pages import anchor_of

NO_BREAK = "\N{NO-BREAK SPACE}"

Status = Literal["", "main", "passed", "failed", "not run"]
"""The emphasis of a row: the main figure, the result of a check, or a missing result."""


@dataclass(frozen=True)
class Prose:
    """A paragraph.

    Attributes:
        text: the sentences.
        weight: the emphasis.
        status: whether it reports a good result, a bad one, or neither.
    """

    text: str
    weight: Literal["plain", "strong", "soft"] = "plain"
    status: Status = ""


@dataclass(frozen=True)
class Terms:
    """Terms and their meanings, a line each.

    Attributes:
        meanings: (term, meaning) pairs.
    """

    meanings: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        header: the heading, in lines that fit above narrow cells; may be empty.
        meaning: the line in the legend; empty if the heading needs no explanation.
        holds: ``"numbers"`` are aligned right, ``"words"`` left, and ``"prose"`` may be wrapped.
    """

    header: str
    meaning: str = ""
    holds: Literal["numbers", "words", "prose"] = "numbers"


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: the first cell.
        cells: the other cells; empty if there is nothing to show.
        remark: a line below the name.
        detail: a second line below the name, for media with room.
        group: the heading above this row and its neighbours of the same group.
        status: the emphasis.
        folded: an explanation of the row, for media that can fold it.
    """

    name: str
    cells: tuple[str, ...]
    remark: str = ""
    detail: str = ""
    group: str = ""
    status: Status = ""
    folded: Folded | None = None


@dataclass(frozen=True)
class Table:
    """Rows under headings.

    Attributes:
        columns: the columns; the first holds the names of the rows.
        rows: the rows from the top.
        look: ``"facts"`` have no headings; each row of ``"figures"`` may be shown by itself, large.
        is_sortable: whether readers can sort the rows.
    """

    columns: Sequence[Column]
    rows: Sequence[Row]
    look: Literal["plain", "facts", "figures"] = "plain"
    is_sortable: bool = False

    @property
    def legend(self) -> Terms:
        """The meanings of the headings that need an explanation."""
        return Terms([(column.header.replace("\n", " "), column.meaning) for column in self.columns if column.meaning])

    @property
    def groups(self) -> list[tuple[str, list[Row]]]:
        """The rows under the headings of their groups, in their order."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.group, []).append(row)
        return list(groups.items())


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        name: the name of its file (``figures/drawn.py``).
        alternative: a description, for those who cannot see it.
        caption: an explanation of how to read it.
        is_small: whether it needs only a part of the width.
    """

    name: str
    alternative: str
    caption: str = ""
    is_small: bool = False


@dataclass(frozen=True)
class Folded:
    """Parts for reference, folded under a title.

    Attributes:
        title: the title.
        parts: the parts in their order.
        command: a command that prints the same, which media that cannot fold show instead; if empty, they show the
            parts.
    """

    title: str
    parts: Sequence[Prose | Terms]
    command: str = ""


Part = Prose | Terms | Table | Figure | Folded


@dataclass(frozen=True)
class Section:
    """Parts under a heading.

    Attributes:
        title: the heading; may be empty.
        parts: the parts in their order.
        is_reference: whether it is for reference: definitions, hashes, versions. A page folds it, and a terminal leaves
            it out.
    """

    title: str
    parts: Sequence[Part]
    is_reference: bool = False

    @property
    def anchor(self) -> str:
        """The target of links to the section."""
        return anchor_of(self.title)


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title: the result and the defended model on one line.
        heading: the defended model.
        conclusion: the result in a sentence.
        sections: the sections in their order.
    """

    title: str
    heading: str
    conclusion: Prose
    sections: Sequence[Section]
