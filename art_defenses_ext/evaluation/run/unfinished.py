"""The results of the current block in a run's folder, written as soon as an attack ends.

    unfinished.jsonl   one line per attack, after its digest
    unfinished.npz     the images of these attacks for the report

Both files are removed when the block is finished. An attack whose line cannot be read runs again: the files only save
time.
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
"""The outcomes of each attack, and its image for the report, by the attack's key."""


class Unfinished:
    """The results of the attacks on the current block.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._lines, self._images = folder / LINES, folder / IMAGES
        self._examples: list[Example] = []

    def attempts(self, start: int) -> Attempts:
        """Return the results of the block that begins at ``start``."""
        attempts = ((attempt, example) for attempt, example in self._read() if attempt.cost.block == start)
        return {attempt.cost.attack: (attempt, example) for attempt, example in attempts}

    def add(self, attempt: Attempt, example: Example | None) -> None:
        """Write the results of an attack; its line follows its image, so an attack with a line has its image."""
        if example is not None:
            self._examples.append(example)
            replace_file(self._images, written(self._examples))
        append(self._lines, _line(attempt))

    def mend(self, done: Collection[int]) -> None:
        """Remove a line that a kill has cut, and the results of finished blocks.

        Args:
            done: indices of the first samples of the finished blocks.
        """
        kept = [(attempt, example) for attempt, example in self._read() if attempt.cost.block not in done]
        for path in (path for name in (LINES, IMAGES) for path in leftovers(self._lines.parent, name)):
            path.unlink()
        if not kept:
            self.remove()
            return
        self._examples = [example for _, example in kept if example is not None]
        replace_file(self._lines, b"".join(_line(attempt) for attempt, _ in kept))

    def remove(self) -> None:
        """Remove the files, since the block is finished."""
        self._examples = []
        for path in (self._lines, self._images):
            path.unlink(missing_ok=True)

    def _read(self) -> Iterator[tuple[Attempt, Example | None]]:
        """Return the results up to the first line that cannot be read."""
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
