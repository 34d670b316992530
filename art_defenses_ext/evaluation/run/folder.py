"""The folder of a run: written block by block, continued after a kill, never by two at once.

    manifest.json    what the run is (``manifest.py``); written before the first block
    records.jsonl    a line a sample, whole blocks in their order; the same bytes however often the run was killed
    costs.jsonl      a line an attack and block; seconds and memory, which are never the same
    examples/        attacked images for the report, a file a block that has some
    digests.jsonl    a line a block, by which changes of the others are noticed (``digests.py``)
    findings.json    what was found out about the attacks once for all blocks
    unfinished.*     of the block at work, what each attack did (``unfinished.py``)
    lock             held while a process is at work

A block counts as done when its last record's line has ended; what stands after that is cut off before a run goes on.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from art_defenses_ext.base.errors import InputError, RunError
from art_defenses_ext.base.files import leftovers, replace_file
from art_defenses_ext.base.validation import check_flag, check_path
from art_defenses_ext.evaluation.checks.binarization import Binarization
from art_defenses_ext.evaluation.records.consistency import Rules
from art_defenses_ext.evaluation.records.description import Settings
from art_defenses_ext.evaluation.records.digests import (
    DIGESTS,
    BlockDigest,
    digest_line,
    digest_of,
    digest_of_plain,
    read_digests,
)
from art_defenses_ext.evaluation.records.examples import Example, first_of_each, read_examples, written
from art_defenses_ext.evaluation.records.lines import parse_json
from art_defenses_ext.evaluation.records.sample import Attempt, CostRecord, SampleRecord, as_line, cost_of, sample_of
from art_defenses_ext.evaluation.run.manifest import Manifest
from art_defenses_ext.evaluation.run.unfinished import Attempts, Unfinished

MANIFEST, RECORDS, COSTS = "manifest.json", "records.jsonl", "costs.jsonl"
EXAMPLES, FINDINGS, LOCK = "examples", "findings.json", "lock"
RESULTS = ("report.json", "report.html", "examples.npz")

CHANGED = "it was changed by another hand"

ONE_MORE_TIME = "; what was finished stays, and the same command goes on after it"


@dataclass(frozen=True)
class Findings:
    """What was found out about the attacks once for all blocks.

    Attributes:
        binarization: None if the test was not run.
        costs: of finding out.
    """

    binarization: Binarization | None = None
    costs: list[CostRecord] = field(default_factory=list)


class Block(NamedTuple):
    """A finished block as it stands in a file.

    Attributes:
        start: index of its first sample.
        lines: of its records.
        records: what these say.
    """

    start: int
    lines: list[bytes]
    records: list[SampleRecord]


def check_out(path: str | Path, overwrite: bool = False) -> Path:
    """The folder of a run, if one can be written there; nothing is written yet.

    Whether a run that lies there can be continued is seen when the folder is opened.

    Raises:
        InputError: if it cannot be written, or holds a run of an older version and ``overwrite`` is not set.
    """
    folder = check_path("out", path, "a folder")
    check_flag("overwrite", overwrite)
    try:
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        usable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
        usable = usable and not any(
            (folder / name).is_dir() for name in (MANIFEST, RECORDS, COSTS, DIGESTS, FINDINGS, LOCK)
        )
    except OSError:  # such as a name too long
        usable = False
    if not usable:
        raise RunError(f"out is {path}, which cannot be written; a folder that can was expected")
    if (folder / RECORDS).exists() and not (folder / MANIFEST).exists() and not overwrite:
        raise RunError(
            f"out is {path}, which holds a run of an older version, without a manifest; "
            "another folder, or overwrite, was expected"
        )
    return folder


def check_settings(path: str | Path, settings: Settings) -> None:
    """Refuse early, before anything is trained or attacked, to go on with a run of other settings.

    Raises:
        InputError: that names the first difference, or for a manifest that cannot be read.
    """
    if not (Path(path) / MANIFEST).exists():
        return
    difference = read_manifest(Path(path)).other_settings(settings)
    if difference is not None:
        raise RunError(_another_run(path, difference))


def _another_run(path: str | Path, difference: str) -> str:
    return (
        f"out is {path}, which holds another run: {difference}; "
        "the same settings, another folder, or overwrite, was expected"
    )


class RunDirectory:
    """The folder of a run, and the lock on it.

    Args:
        path: folder to write to; made if need be.
        overwrite: remove the files of an earlier run there.

    Attributes:
        manifest: of the run that lies there; None where none has begun.
        done: the indices of the first samples of the blocks that are finished, once :meth:`begin` was called.
        keeps: that a later run goes on with what this one did.

    Raises:
        InputError: as :func:`check_out`, and if another process is at work there.
    """

    keeps = True

    def __init__(self, path: str | Path, overwrite: bool = False) -> None:
        self.path = check_out(path, overwrite)
        self.done: set[int] = set()
        self._unfinished = Unfinished(self.path)
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / LOCK)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise RunError(
                    f"out is {path}, where another process is at work; another folder, or patience, was expected"
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
        """Refuse to go on with a run that is another one.

        Raises:
            InputError: that names the first difference.
        """
        if self.manifest is None:
            return
        difference = self.manifest.difference(manifest)
        if difference is None and self.manifest.shard != manifest.shard:
            difference = f"shard {self.manifest.shard}, not {manifest.shard}"
        if difference is not None:
            raise RunError(_another_run(self.path, difference))

    def begin(self, manifest: Manifest) -> None:
        """Write the manifest, or see what is done and cut off what a killed run has left unfinished.

        Raises:
            InputError: if the folder cannot be written, or records were changed by another hand.
        """
        with _writing(self.path):
            for name in RESULTS:  # or they would stand beside unfinished records
                (self.path / name).unlink(missing_ok=True)
            if self.manifest is None:  # it comes first: records without one are those of an older version
                replace_file(self.path / MANIFEST, manifest.as_json().encode())
                # As the file says: a hash of an attack's code may change while it runs, with a list that it fills.
                self.manifest = read_manifest(self.path)
            for name in (RECORDS, COSTS, DIGESTS):
                (self.path / name).touch()
            self._cut_off(self.manifest)

    def _cut_off(self, manifest: Manifest) -> None:
        end = 0
        for block in finished_blocks(self.path, manifest):
            self.done.add(block.start)
            end += sum(map(len, block.lines))
        os.truncate(self.path / RECORDS, end)
        kept = [as_line(one) for one in read_costs(self.path) if one.block in self.done]
        digests = [digest_line(one) for one in read_digests(self.path).values() if one.block in self.done]
        replace_file(self.path / COSTS, "".join(kept).encode())
        replace_file(self.path / DIGESTS, b"".join(digests))
        for path in _example_files(self.path):
            if _start_of(path) not in self.done:
                path.unlink()
        self._unfinished.mend(self.done)
        half = [leftovers(self.path, name) for name in (MANIFEST, COSTS, DIGESTS, FINDINGS, *RESULTS)]
        for path in chain(*half, leftovers(self.path / EXAMPLES, "*.npz")):
            path.unlink()

    def attempts(self, start: int) -> Attempts:
        """What attacks did to the block that begins at ``start`` before the run was killed."""
        return self._unfinished.attempts(start)

    def note(self, attempt: Attempt, example: Example | None = None) -> None:
        """Keep what an attack did to the block at work, and its image for the report.

        Raises:
            InputError: if it cannot be written, such as on a full disk.
        """
        with _writing(self.path, ONE_MORE_TIME):
            self._unfinished.add(attempt, example)

    def append(self, records: list[SampleRecord], costs: list[CostRecord], examples: Sequence[Example] = ()) -> None:
        """Add one finished block.

        Raises:
            InputError: if it cannot be written, such as on a full disk.
            ValueError: for a number that JSON has none for; nothing is written.
        """
        lines = [as_line(record).encode() for record in records]
        self.append_block(Block(records[0].index, lines, records), costs, examples)

    def append_block(self, block: Block, costs: list[CostRecord], examples: Sequence[Example] = ()) -> None:
        """The same for records that are lines already. They come last: a block that has them has everything."""
        assert self.manifest is not None
        binding, spent = self.manifest.digest(), [as_line(one).encode() for one in costs]
        pictures = written(examples) if examples else None
        digest = BlockDigest(
            block.start,
            digest_of(binding, block.lines),
            digest_of(binding, spent),
            None if pictures is None else digest_of(binding, pictures),
        )
        with _writing(self.path, ONE_MORE_TIME):
            if pictures is not None:
                replace_file(self.path / EXAMPLES / f"{block.start:08d}.npz", pictures)
            for name, lines in ((COSTS, spent), (DIGESTS, [digest_line(digest)]), (RECORDS, block.lines)):
                with (self.path / name).open("ab") as file:
                    file.write(b"".join(lines))
                    file.flush()
                    os.fsync(file.fileno())
            self._unfinished.remove()

    def finish(self, findings: Findings) -> None:
        """Note what was found out once for all blocks."""
        with _writing(self.path, ONE_MORE_TIME):
            assert self.manifest is not None
            plain = json.loads(json.dumps(asdict(findings), allow_nan=False))
            plain["digest"] = digest_of_plain(plain, self.manifest.digest())
            replace_file(self.path / FINDINGS, (json.dumps(plain, indent=1) + "\n").encode())

    @property
    def examples(self) -> list[Example]:
        """Images for the report so far."""
        return read_kept_examples(self.path)

    @property
    def has_findings(self) -> bool:
        """Whether that was noted before."""
        return (self.path / FINDINGS).exists()

    def _clear(self) -> None:
        with _writing(self.path):
            for name in (MANIFEST, RECORDS, COSTS, DIGESTS, FINDINGS, *RESULTS):
                (self.path / name).unlink(missing_ok=True)
            for path in _example_files(self.path):
                path.unlink()
            self._unfinished.remove()


class Memory:
    """The same in memory, for a run that writes nothing.

    Attributes:
        manifest: what the run is; None before it has begun.
        done: the indices of the first samples of the blocks that are finished.
        records, costs, examples, findings: what was found so far.
        has_findings: whether there are any of the latter.
        keeps: nothing.
    """

    keeps = False

    def __init__(self) -> None:
        self.manifest: Manifest | None = None
        self.done: set[int] = set()
        self.records: list[SampleRecord] = []
        self.costs: list[CostRecord] = []
        self.examples: list[Example] = []
        self.findings, self.has_findings = Findings(), False

    def check_same(self, manifest: Manifest) -> None:
        """Nothing to compare with."""

    def begin(self, manifest: Manifest) -> None:
        """Keep what the run is."""
        self.manifest = manifest

    def attempts(self, _start: int) -> Attempts:
        """Nothing: no block was begun before."""
        return {}

    def note(self, attempt: Attempt, example: Example | None = None) -> None:
        """Nothing to keep: the block comes whole, or not at all."""

    def append(self, records: list[SampleRecord], costs: list[CostRecord], examples: Sequence[Example] = ()) -> None:
        """Add one finished block."""
        self.done.add(records[0].index)
        self.records += records
        self.costs += costs
        self.examples += examples

    def finish(self, findings: Findings) -> None:
        """Keep what was found out once for all blocks."""
        self.findings, self.has_findings = findings, True


@contextmanager
def _writing(path: Path, hint: str = "") -> Iterator[None]:
    """Say in words what the system has against writing."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"out is {path}, which cannot be written ({error.strerror}); a folder that can was expected{hint}"
        ) from None


# Reading


def read_manifest(path: Path) -> Manifest:
    """What the run in a folder is.

    Raises:
        InputError: for a folder without a run, or with one of another version.
    """
    with _reading(path):
        old = (path / RECORDS).exists() and not (path / MANIFEST).exists()
    if old:
        raise RunError(f"{path} holds a run of an older version, without a manifest; evaluate again")
    return Manifest.read(path / MANIFEST)


def finished_blocks(path: Path, manifest: Manifest) -> Iterator[Block]:
    """The blocks of a part of a run that are done, in their order, as far as they go without a gap.

    Raises:
        InputError: where the lines are not those of the part, contradict themselves, or differ from their digest.
    """
    settings, file = manifest.run.settings, path / RECORDS
    rules, binding = Rules.of(manifest.run, [run.key for run in manifest.plan]), manifest.digest()
    number = 0
    with _reading(path), file.open("rb") as lines:
        digests = read_digests(path)
        for start in manifest.shard.starts(settings.samples, settings.block_size):
            block = Block(start, [], [])
            for index in range(start, min(start + settings.block_size, settings.samples)):
                line, number = lines.readline(), number + 1
                if not line.endswith(b"\n"):
                    return
                block.lines.append(line)
                block.records.append(_checked_record(line, index, rules, f"{file}, line {number}"))
            digest = digests.get(start)
            if digest is None or digest.records != digest_of(binding, block.lines):
                last = number + 1 - len(block.lines)
                raise RunError(f"{file}, lines {last} to {number}, differ from their digest; {CHANGED}")
            yield block
        if lines.readline():
            raise RunError(f"{file} goes on after its last sample; {CHANGED}")


def _checked_record(line: bytes, index: int, rules: Rules, place: str) -> SampleRecord:
    """The record of a line, if it can be that of the sample with an index."""
    try:
        record = sample_of(line)
    except ValueError as error:
        raise RunError(f"{place}, cannot be read ({error}); {CHANGED}") from None
    if record.index != index:
        raise RunError(f"{place}, holds sample {record.index} where {index} was expected; {CHANGED}")
    contradiction = rules.contradiction(record)
    if contradiction is not None:
        raise RunError(f"{place}, contradicts itself: {contradiction}; {CHANGED}")
    return record


def read_records(path: str | Path) -> list[SampleRecord]:
    """The sample records of the finished blocks in a run's folder.

    Raises:
        InputError: as :func:`finished_blocks`.
    """
    folder = Path(path)
    return [record for block in finished_blocks(folder, read_manifest(folder)) for record in block.records]


def read_costs(path: str | Path) -> list[CostRecord]:
    """The costs of the finished blocks in a run's folder.

    Raises:
        InputError: for a line that is none, or lines that differ from their digest.
    """
    folder, file = Path(path), Path(path) / COSTS
    found: dict[int, list[tuple[CostRecord, bytes]]] = defaultdict(list)
    with _reading(folder):
        lines = file.read_bytes().splitlines(keepends=True)
        binding, digests = read_manifest(folder).digest(), read_digests(folder)
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            break
        try:
            cost = cost_of(line)
        except ValueError as error:
            raise RunError(f"{file}, line {number}, cannot be read ({error}); a record was expected") from None
        found[cost.block].append((cost, line))
    for start, digest in digests.items():
        if digest.costs != digest_of(binding, [line for _, line in found[start]]):
            raise RunError(
                f"{file}, the lines of the block from sample {start} on, differ from their digest; {CHANGED}"
            )
    return [cost for start, pairs in found.items() if start in digests for cost, _ in pairs]


def read_findings(path: Path) -> Findings:
    """What was found out once for all blocks of the run in a folder.

    Raises:
        InputError: if that was not done yet, cannot be read, or differs from its digest.
    """
    file = path / FINDINGS
    try:
        plain = parse_json(file.read_bytes())
        digest = plain.pop("digest")
        findings = TypeAdapter(Findings).validate_python(plain)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise RunError(f"{file} is missing or broken; a run that came to its end was expected") from None
    if digest != digest_of_plain(plain, read_manifest(path).digest()):
        raise RunError(f"{file} differs from its digest; {CHANGED}")
    return findings


def read_kept_examples(path: Path) -> list[Example]:
    """The examples for the report of the run in a folder.

    Raises:
        InputError: for a file of a finished block that cannot be read, or differs from its digest.
    """
    return first_of_each(one for examples in examples_by_block(path).values() for one in examples)


def examples_by_block(path: Path) -> dict[int, list[Example]]:
    """The examples of the run in a folder, by the index of their block's first sample.

    Raises:
        InputError: as :func:`read_kept_examples`.

    Files may be missing: whoever hands a run on may keep the pictures back, and no figure is made of them.
    """
    files = _example_files(path)
    binding, digests = (read_manifest(path).digest(), read_digests(path)) if files else ("", {})
    found = {}
    for file in files:
        digest = digests.get(_start_of(file))
        if digest is None:  # of a block that a kill left unfinished
            continue
        with _reading(path):
            content = file.read_bytes()
        if digest.examples != digest_of(binding, content):
            raise RunError(f"{file} differs from its digest; {CHANGED}")
        found[digest.block] = read_examples(file)
    return found


def _example_files(path: Path) -> list[Path]:
    return sorted(file for file in (path / EXAMPLES).glob("*.npz") if file.stem.isascii() and file.stem.isdecimal())


def _start_of(file: Path) -> int:
    return int(file.stem)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}); the folder of a run was expected") from None
