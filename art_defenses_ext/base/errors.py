"""The errors of this package, each one sentence.

Nothing heavy is imported here, so that the command refuses wrong options before it imports torch.
"""

from __future__ import annotations

from typing import ClassVar

from art_defenses_ext.base.text import for_terminal


def shown_by(page: str) -> str:
    """Return the command that shows a page of the documentation, or a section of it, as ``checks#more-effort``."""
    return f"art-defenses docs {page}"


class InputError(ValueError):
    """An argument that cannot be used; the message names it, its value and what was expected.

    The message is one line without control sequences, whatever the value. If a page of the documentation helps with all
    errors of a class, a note below the message, which Python prints with it, names the page.
    """

    page: ClassVar[str | None] = None
    """The name of the page; None if there is none."""

    def __init__(self, message: str) -> None:
        super().__init__(for_terminal(message))
        if self.page is not None:
            self.add_note(f"See: {shown_by(self.page)}")


class ClassifierError(InputError):
    """A classifier that ART or an attack would not run as intended."""

    page = "traps"


class DataError(InputError):
    """A data set, a network or its weights that cannot be read."""

    page = "data"


class RunError(InputError):
    """A folder of a run, or an entry of one, that cannot be read, written, continued or compared."""

    page = "scale"


class CheckpointError(InputError):
    """A file of a fitted defence or of a training run that cannot be read, written or used here."""

    page = "restoration"


class AttributionError(InputError):
    """A network or an operation that an explanation does not cover."""

    page = "attribution"
