"""The block at work in a run's folder: what an attack did is kept as soon as the attack has come to its end.

    unfinished.jsonl   a line an attack, after its digest
    unfinished.npz     the images for the report that these attacks left

Both go when the block is finished. What cannot be read of them is attacked again: they save time and decide nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.files import append, leftovers, replace_file
from art_defenses_ext.evaluation.records.examples import Example, read_examples, written
from art_defenses_ext.evaluation.records.lines import as_line, digest_of, parsed
from art_defenses_ext.evaluation.records.sample import Attempt

LINES, IMAGES = "unfinished.jsonl", "unfinished.npz"

Attempts = dict[str, tuple[Attempt, Example | None]]
"""What each attack did, and the image for the report that it left, by the attack's key."""


class Unfinished:
    """What attacks did to the block at work.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._lines, self._images = folder / LINES, folder / IMAGES
        self._examples: list[Example] = []

    def attempts(self, start: int) -> Attempts:
        """Return what they did to the block that begins at ``start``."""
        attempts = ((attempt, example) for attempt, example in self._read() if attempt.cost.block == start)
        return {attempt.cost.attack: (attempt, example) for attempt, example in attempts}

    def add(self, attempt: Attempt, example: Example | None) -> None:
        """Keep what one attack did. Its line comes last: an attack that has one has its image."""
        if example is not None:
            self._examples.append(example)
            replace_file(self._images, written(self._examples))
        append(self._lines, _line(attempt))

    def mend(self, done: Collection[int]) -> None:
        """Cut off what a kill has left of a line, and all of blocks that are ``done`` (their first samples)."""
        kept = [(attempt, example) for attempt, example in self._read() if attempt.cost.block not in done]
        for path in (path for name in (LINES, IMAGES) for path in leftovers(self._lines.parent, name)):
            path.unlink()
        if not kept:
            self.remove()
            return
        self._examples = [example for _, example in kept if example is not None]
        replace_file(self._lines, b"".join(_line(attempt) for attempt, _ in kept))

    def remove(self) -> None:
        """The block is finished."""
        self._examples = []
        for path in (self._lines, self._images):
            path.unlink(missing_ok=True)

    def _read(self) -> Iterator[tuple[Attempt, Example | None]]:
        """The attempts as far as they can be read."""
        try:
            examples = read_examples(self._images) if self._images.exists() else []
            lines = self._lines.read_bytes().splitlines(keepends=True)
        except (OSError, InputError):
            return
        by_attack = {example.attack: example for example in examples}
        for line in lines:
            digest, _, text = line.partition(b" ")
            try:
                attempt = parsed(Attempt, text)
            except ValueError:
                return
            example = None if attempt.pictured is None else by_attack.get(attempt.cost.attack)
            is_whole = line.endswith(b"\n") and (example is None) == (attempt.pictured is None)
            if not is_whole or digest.decode(errors="replace") != digest_of(LINES, text):
                return
            yield attempt, example


def _line(attempt: Attempt) -> bytes:
    text = as_line(attempt)
    return f"{digest_of(LINES, text)} ".encode() + text
