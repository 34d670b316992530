"""What a report consists of, as data: sections of prose, terms, tables and figures. A medium draws them as it can.

All text here is plain: whoever draws it escapes it for the medium. A no-break space keeps a number and its unit on one
line. What is typed or is a name in code stands between backticks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from art_defenses_ext.base.pages import anchor_of

NO_BREAK = "\N{NO-BREAK SPACE}"

Status = Literal["", "main", "passed", "failed", "not run"]
"""What stands out in a row: the figure to take away, a verdict, or that there is nothing to show."""


@dataclass(frozen=True)
class Prose:
    """A paragraph.

    Attributes:
        text: its sentences.
        weight: how much it matters.
        status: whether it is good news, bad news, or neither.
    """

    text: str
    weight: Literal["plain", "strong", "soft"] = "plain"
    status: Status = ""


@dataclass(frozen=True)
class Terms:
    """Terms and what they mean, a line each.

    Attributes:
        meanings: (term, meaning) pairs.
    """

    meanings: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        header: its heading, in lines that fit above narrow cells; empty where none is needed.
        meaning: its line in the legend; empty where the heading says enough.
        holds: ``"numbers"`` are set from the right, ``"words"`` from the left, and ``"prose"`` may be wrapped.
    """

    header: str
    meaning: str = ""
    holds: Literal["numbers", "words", "prose"] = "numbers"


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: stands in the first column.
        cells: stand in the others, one each; none where there is nothing to show.
        remark: stands below the name.
        detail: stands below the name too, where there is room.
        group: the heading above this row, and above those next to it that have the same.
        status: what stands out.
        folded: explains the row, where a medium can fold it away.
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
        columns: the first is that of the names.
        rows: from the top.
        look: ``"facts"`` have no headings; of ``"figures"`` each may stand by itself, large.
        is_sortable: whether a reader may want the rows in another order.
    """

    columns: Sequence[Column]
    rows: Sequence[Row]
    look: Literal["plain", "facts", "figures"] = "plain"
    is_sortable: bool = False

    @property
    def legend(self) -> Terms:
        """What the headings mean, of those that need it."""
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
        name: of its file (``figures/drawn.py``).
        alternative: what it shows, for those who cannot see it.
        caption: how to read it.
        is_small: whether it does not need all of the width.
    """

    name: str
    alternative: str
    caption: str = ""
    is_small: bool = False


@dataclass(frozen=True)
class Folded:
    """Parts that are looked up rather than read, under a line that unfolds them.

    Attributes:
        title: the line.
        parts: in their order.
        command: prints the same; a medium that cannot fold names it in place of the parts. Empty: it shows the parts.
    """

    title: str
    parts: Sequence[Prose | Terms]
    command: str = ""


Part = Prose | Terms | Table | Figure | Folded


@dataclass(frozen=True)
class Section:
    """Parts under a heading.

    Attributes:
        title: the heading; empty for none.
        parts: in their order.
        is_reference: whether it is looked up rather than read: definitions, hashes, versions. A page folds it, and a
            terminal leaves it out.
    """

    title: str
    parts: Sequence[Part]
    is_reference: bool = False

    @property
    def anchor(self) -> str:
        """What a link to it names."""
        return anchor_of(self.title)


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title: the result and what was evaluated, in a line.
        heading: what was evaluated.
        conclusion: the result in a sentence, good or bad.
        sections: in their order.
    """

    title: str
    heading: str
    conclusion: Prose
    sections: Sequence[Section]
