"""The folder of a run: written block by block, continued after a kill, never by two at once.

    manifest.json    settings, attacks and identity of the run (``manifest.py``); written before the first block
    records.jsonl    one line per sample, whole blocks in order; the same bytes however often the run was killed
    costs.jsonl      one line per attack and block; its seconds and memory differ from run to run
    examples/        attacked images for the report, one file per block that has some
    digests.jsonl    one line per block, with the digests that reveal changes of the other files (``lines.py``)
    findings.json    the binarization test, which is made once for all blocks
    added/           adversarial examples of its images from elsewhere (``added.py``)
    adversarial/     all adversarial images, on request (``all_images.py``)
    unfinished.*     the results of each attack on the current block (``unfinished.py``)
    lock             held while a process writes to the folder
    undefended/      the undefended model's run under the same suite, a folder like this one
    rounds/          rounds of more effort, each a folder like this one (``rounds.py``)

A block is finished when the line of its last record is complete. Anything after it is removed before a run continues.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import InputError, RunError
from art_defenses_ext.base.files import append, leftovers, reading, replace_file, writing
from art_defenses_ext.base.validation import check_path
from art_defenses_ext.evaluation.checks.binarization import Binarization
from art_defenses_ext.evaluation.records.description import Settings
from art_defenses_ext.evaluation.records.examples import Example, first_of_each, read_examples, written
from art_defenses_ext.evaluation.records.lines import (
    CHANGED,
    DIGESTS,
    BlockDigest,
    as_line,
    as_signed,
    digest_of,
    read_digests,
    read_lines,
    read_signed,
)
from art_defenses_ext.evaluation.records.sample import Attempt, CostRecord, SampleRecord
from art_defenses_ext.evaluation.run.all_images import AllImages, join_images, remove_blocks, remove_images
from art_defenses_ext.evaluation.run.manifest import Manifest
from art_defenses_ext.evaluation.run.unfinished import Attempts, Unfinished
from art_defenses_ext.evaluation.threat import named_threat

MANIFEST, RECORDS, COSTS = "manifest.json", "records.jsonl", "costs.jsonl"
EXAMPLES, FINDINGS, LOCK = "examples", "findings.json", "lock"
ADDED = "added"
UNDEFENDED = "undefended"
ROUNDS = "rounds"
RESULTS = ("report.json", "report.html", "examples.npz")

PATIENCE = 60.0
"""Seconds for which a process waits to note something in a folder that others use too."""

CONTINUES = "; the finished blocks are kept, and the same command continues the run"


@dataclass(frozen=True)
class Findings:
    """The results of the tests that are made once for all blocks.

    Attributes:
        binarization: the binarization test; None if it was not run.
        costs: costs of the tests.
    """

    binarization: Binarization | None = None
    costs: list[CostRecord] = field(default_factory=list)


class Block(NamedTuple):
    """A finished block in a file.

    Attributes:
        start: index of its first sample.
        lines: the lines of its records.
        records: the records of its samples.
    """

    start: int
    lines: list[bytes]
    records: list[SampleRecord]

    @classmethod
    def of(cls, records: list[SampleRecord]) -> Block:
        """Return the block with the given records.

        Raises:
            ValueError: for a number that JSON cannot hold.
        """
        return cls(records[0].index, [as_line(record) for record in records], records)


def check_out(path: str | Path) -> Path:
    """Return the folder of a run, after a test that it can be written; nothing is written yet.

    A run in the folder is compared when the folder is opened.

    Raises:
        InputError: if the folder cannot be written.
    """
    folder = check_path("out", path, "a folder")
    try:
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        usable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    except OSError:  # such as a name too long
        usable = False
    if not usable:
        raise RunError(f"out is {path}, which cannot be written; a writable folder was expected")
    return folder


def check_settings(path: str | Path, settings: Settings) -> None:
    """Refuse to continue a run of other settings, before any training or attack.

    Raises:
        InputError: that names the first difference; also for a manifest that cannot be read.
    """
    if (Path(path) / MANIFEST).exists():
        _refuse_another_run(path, read_manifest(Path(path)).other_settings(settings))


def check_continues(path: str | Path, held: Manifest, manifest: Manifest) -> None:
    """Refuse to continue the run in a folder, with the manifest ``held``, by another.

    Raises:
        InputError: that names the first difference.
    """
    difference = held.obstacle(manifest)
    if difference is None and held.shard != manifest.shard:
        difference = f"shard {held.shard}, not {manifest.shard}"
    _refuse_another_run(path, difference)


def note_effort(path: Path, manifest: Manifest) -> None:
    """Note in the manifest of a finished run the effort of a later call, unless that asks for fewer rounds.

    Raises:
        InputError: for another run.
    """
    held = read_manifest(path)
    if held.continued_by(manifest) is not held:
        with RunDirectory(path, wait=PATIENCE) as directory:
            directory.check_same(manifest)
            directory.begin(manifest)


def _refuse_another_run(path: str | Path, difference: str | None) -> None:
    if difference is not None:
        raise RunError(
            f"out is {path}, which holds another run: {difference}; "
            "the same settings, another folder, or overwrite, was expected"
        )


class RunDirectory:
    """The folder of a run, and the lock on it.

    Args:
        path: folder to write to; created if it does not exist.
        overwrite: remove the files of an earlier run there.
        keeps: whether a later run can continue this one; without, nothing is written for this purpose.
        save_examples: ``"one"`` adversarial image per attack for the report, or ``"all"`` of them as well.
        wait: seconds to wait for another process that is writing.

    Attributes:
        manifest: manifest of the run in the folder; None if no run has begun.
        done: indices of the first samples of the finished blocks, set by :meth:`begin`.

    Raises:
        InputError: as :func:`check_out`, and if another process is writing to the folder.
    """

    def __init__(
        self,
        path: str | Path,
        overwrite: bool = False,
        keeps: bool = True,
        save_examples: str = "one",
        wait: float = 0,
    ) -> None:
        self.path, self.keeps, self._save_examples = check_out(path), keeps, save_examples
        self.done: set[int] = set()
        self._images: AllImages | None = None
        self._unfinished = Unfinished(self.path)
        with self._writing(""):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / LOCK)
            try:
                self._lock.acquire(timeout=wait)
            except Timeout:
                raise RunError(
                    f"out is {path}, to which another process is writing; another folder, or its end, was expected"
                ) from None
        try:
            if overwrite:
                self._clear()
            self.manifest = read_manifest(self.path) if (self.path / MANIFEST).exists() else None
        except InputError:
            self._lock.release()
            raise

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def check_same(self, manifest: Manifest) -> None:
        """Refuse to continue another run.

        Raises:
            InputError: that names the first difference.
        """
        if self.manifest is not None:
            check_continues(self.path, self.manifest, manifest)

    def begin(self, manifest: Manifest) -> None:
        """Write the manifest; or find the finished blocks and remove the unfinished rest of a killed run.

        Raises:
            InputError: if the folder cannot be written, or its records were edited.
        """
        with self._writing(""):
            for name in RESULTS:  # or they would not agree with the records
                (self.path / name).unlink(missing_ok=True)
            begun = self.manifest is not None or (self.path / RECORDS).exists()
            continued = manifest if self.manifest is None else self.manifest.continued_by(manifest)
            if continued is not self.manifest:
                replace_file(self.path / MANIFEST, continued.as_json().encode(), wait=self.keeps)
                # Read back, since the hash of an attack's code may change while it runs, with a list that it fills.
                self.manifest = read_manifest(self.path)
            for name in (RECORDS, COSTS, DIGESTS):
                (self.path / name).touch()
            if begun:
                self._remove_unfinished(self.manifest)
        if self._save_examples == "all":
            self._images = AllImages(self.path, self.manifest)
            self._images.check_complete(self.done)

    def _remove_unfinished(self, manifest: Manifest) -> None:
        end = 0
        for block in finished_blocks(self.path, manifest):
            self.done.add(block.start)
            end += sum(map(len, block.lines))
        os.truncate(self.path / RECORDS, end)
        costs = [as_line(cost) for cost in read_costs(self.path) if cost.block in self.done]
        digests = [as_line(digest) for digest in read_digests(self.path).values() if digest.block in self.done]
        replace_file(self.path / COSTS, b"".join(costs))
        replace_file(self.path / DIGESTS, b"".join(digests))
        for path in _example_files(self.path):
            if int(path.stem) not in self.done:
                path.unlink()
        self._unfinished.mend(self.done)
        partial = [leftovers(self.path, name) for name in (MANIFEST, COSTS, DIGESTS, FINDINGS, *RESULTS)]
        for path in chain(*partial, leftovers(self.path / EXAMPLES, "*.npz")):
            path.unlink()

    def attempts(self, start: int) -> Attempts:
        """Return the results of attacks on the block that begins at ``start``, from before the run was killed.

        If all images are kept, attacks whose images are missing are left out, and run again.
        """
        attempts, images = self._unfinished.attempts(start), self._images
        return {key: result for key, result in attempts.items() if images is None or images.holds(result[0])}

    def note(self, attempt: Attempt, example: Example | None, adv: FloatArray) -> None:
        """Write the results of an attack on the current block, its image for the report, and on request all its images.

        Args:
            attempt: outcomes and costs of the attack.
            example: its image for the report; None if it has none.
            adv: all of its images (n, ...).

        Raises:
            InputError: if they cannot be written, such as on a full disk.
        """
        with self._writing():
            if self._images is not None:
                self._images.keep(attempt, adv)
            if self.keeps:
                self._unfinished.add(attempt, example)

    def append(self, block: Block, costs: Sequence[CostRecord], examples: Sequence[Example] = ()) -> None:
        """Add a finished block. Its records are written last, so a block with records has all its files.

        Raises:
            InputError: if it cannot be written, such as on a full disk.
        """
        assert self.manifest is not None
        binding, spent = self.manifest.binding, [as_line(cost) for cost in costs]
        pictures = written(examples) if examples else None
        digest = BlockDigest(
            block.start,
            digest_of(binding, block.lines),
            digest_of(binding, spent),
            None if pictures is None else digest_of(binding, pictures),
        )
        with self._writing():
            if pictures is not None:
                replace_file(self.path / EXAMPLES / f"{block.start:08d}.npz", pictures, wait=self.keeps)
            if self._images is not None:
                self._images.finish(block.start)
            for name, lines in ((COSTS, spent), (DIGESTS, [as_line(digest)]), (RECORDS, block.lines)):
                append(self.path / name, b"".join(lines), wait=self.keeps)
            if self.keeps:
                self._unfinished.remove()

    def finish(self, findings: Findings) -> None:
        """Write the results of the tests that are made once for all blocks."""
        assert self.manifest is not None
        with self._writing():
            replace_file(self.path / FINDINGS, as_signed(findings, self.manifest.binding), wait=self.keeps)

    def join_images(self, records: Sequence[SampleRecord]) -> None:
        """Join the adversarial images of the finished run to one file per attack, if they are kept.

        Raises:
            InputError: if the files cannot be written, or the images of a block are missing.
        """
        assert self.manifest is not None
        if self._images is None:
            return
        if not self._images.are_joined:
            settings = self.manifest.run.settings
            starts = self.manifest.shard.starts(settings.samples, settings.block_size)
            join_images(self.path, dict.fromkeys(starts, self.path), self.manifest, records)
        remove_blocks(self.path)

    @property
    def examples(self) -> list[Example]:
        """The images for the report so far."""
        return read_kept_examples(self.path)

    @property
    def has_findings(self) -> bool:
        """Whether :meth:`finish` has written the findings."""
        return (self.path / FINDINGS).exists()

    def _clear(self) -> None:
        with self._writing(""):
            for path in [self.path / name for name in (MANIFEST, RECORDS, COSTS, DIGESTS, FINDINGS, *RESULTS)]:
                path.unlink(missing_ok=True)
            for path in [*_example_files(self.path), *(self.path / ADDED).glob("*")]:
                path.unlink()
            self._unfinished.remove()
            remove_images(self.path)
        for manifest in (self.path / UNDEFENDED / MANIFEST, *(self.path / ROUNDS).glob(f"**/{MANIFEST}")):
            if manifest.exists():
                with RunDirectory(manifest.parent, overwrite=True):
                    pass

    def _writing(self, hint: str = CONTINUES) -> AbstractContextManager[None]:
        return writing("out", self.path, "a writable folder", hint)


# Reading


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of the run in a folder.

    Raises:
        InputError: for a folder without a run, or with a run of another version.
    """
    return Manifest.read(path / MANIFEST)


def is_finished(path: Path) -> bool:
    """Return whether a folder holds all blocks of its shard, and the findings if it is the first shard of a run.

    Raises:
        InputError: as :func:`finished_blocks`.
    """
    if not (path / MANIFEST).exists():
        return False
    manifest = read_manifest(path)
    settings, shard = manifest.run.settings, manifest.shard
    if shard.number == 1 and not manifest.is_round and not (path / FINDINGS).exists():
        return False
    blocks = finished_blocks(path, manifest) if (path / RECORDS).exists() else iter(())
    return sum(1 for _ in blocks) == len(shard.starts(settings.samples, settings.block_size))


def finished_blocks(path: Path, manifest: Manifest) -> Iterator[Block]:
    """Yield the finished blocks of a shard in order, up to the first gap.

    Raises:
        InputError: for lines of another shard, lines that contradict themselves, or differ from their digest.
    """
    run, file, digests = manifest.run, path / RECORDS, read_digests(path)
    settings, threat = run.settings, named_threat(run.settings.threat, run.settings.eps)
    keys, binding = {attack.key for attack in manifest.plan}, manifest.binding
    lines, last = read_lines(file, SampleRecord), 0
    for start in manifest.shard.starts(settings.samples, settings.block_size):
        size = min(settings.block_size, settings.samples - start)
        block = Block(start, [], [])
        for index, (line, record) in enumerate(islice(lines, size), start):
            last += 1
            if record.index != index:
                raise RunError(f"{file}, line {last}, holds sample {record.index}, but {index} was expected; {CHANGED}")
            wrong = record.contradiction(run.labels, threat, keys)
            if wrong is not None:
                raise RunError(f"{file}, line {last}, contradicts itself: {wrong}; {CHANGED}")
            block.lines.append(line)
            block.records.append(record)
        if len(block.lines) < size:
            return
        if start not in digests or digests[start].records != digest_of(binding, block.lines):
            raise RunError(f"{file}, lines {last + 1 - size} to {last}, differ from their digest; {CHANGED}")
        yield block
    if next(lines, None) is not None:
        raise RunError(f"{file} has lines after its last sample; {CHANGED}")


def read_records(path: str | Path) -> list[SampleRecord]:
    """Return the sample records of the finished blocks in a run's folder.

    Raises:
        InputError: as :func:`finished_blocks`.
    """
    folder = Path(path)
    return [record for block in finished_blocks(folder, read_manifest(folder)) for record in block.records]


def costs_by_block(path: Path) -> dict[int, list[CostRecord]]:
    """Return the costs of the finished blocks in a run's folder, by the index of a block's first sample.

    Raises:
        InputError: for a line that cannot be read, or lines that differ from their digest.
    """
    file, binding, lines = path / COSTS, read_manifest(path).binding, defaultdict[int, list[bytes]](list)
    costs = defaultdict[int, list[CostRecord]](list)
    for line, cost in read_lines(file, CostRecord):
        lines[cost.block].append(line)
        costs[cost.block].append(cost)
    digests = read_digests(path)
    for start, digest in digests.items():
        if digest.costs != digest_of(binding, lines[start]):
            raise RunError(
                f"{file}, the lines of the block from sample {start} on, differ from their digest; {CHANGED}"
            )
    return {start: costs[start] for start in digests}


def read_costs(path: str | Path) -> list[CostRecord]:
    """Return the costs of all finished blocks in a run's folder.

    Raises:
        InputError: as :func:`costs_by_block`.
    """
    return [cost for costs in costs_by_block(Path(path)).values() for cost in costs]


def read_findings(path: Path) -> Findings:
    """Return the results of the tests that the run in a folder made once for all blocks.

    Raises:
        InputError: if the file is missing, cannot be read, or differs from its digest.
    """
    problem = "is missing or broken; a finished run was expected"
    return read_signed(path / FINDINGS, Findings, read_manifest(path).binding, problem)


def read_kept_examples(path: Path) -> list[Example]:
    """Return the first example of each attack in a run's folder.

    Raises:
        InputError: for a file of a finished block that cannot be read, or differs from its digest.
    """
    return first_of_each(example for examples in examples_by_block(path).values() for example in examples)


def examples_by_block(path: Path) -> dict[int, list[Example]]:
    """Return the examples of the run in a folder, by the index of their block's first sample.

    Files may be missing: the images may be withheld when a run is passed on, and no figure depends on them.

    Raises:
        InputError: as :func:`read_kept_examples`.
    """
    files = _example_files(path)
    binding, digests = (read_manifest(path).binding, read_digests(path)) if files else ("", {})
    examples = {}
    for file in files:
        digest = digests.get(int(file.stem))
        if digest is None:  # the block is unfinished
            continue
        with reading(file, "the folder of a run was expected"):
            content = file.read_bytes()
        if digest.examples != digest_of(binding, content):
            raise RunError(f"{file} differs from its digest; {CHANGED}")
        examples[digest.block] = read_examples(file)
    return examples


def _example_files(path: Path) -> list[Path]:
    return sorted(file for file in (path / EXAMPLES).glob("*.npz") if file.stem.isascii() and file.stem.isdecimal())
