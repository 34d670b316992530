"""The merging of an evaluation's parts, made by several processes, into one run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from art_defenses_ext.base.errors import RunError
from art_defenses_ext.base.validation import check_flag, check_path, check_paths
from art_defenses_ext.evaluation.config import MOST_ROUNDS
from art_defenses_ext.evaluation.records.examples import Example
from art_defenses_ext.evaluation.records.sample import CostRecord
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.run.all_images import AllImages, holds_block, join_images
from art_defenses_ext.evaluation.run.folder import (
    MANIFEST,
    UNDEFENDED,
    Block,
    RunDirectory,
    costs_by_block,
    examples_by_block,
    finished_blocks,
    is_finished,
    note_effort,
    read_findings,
    read_manifest,
    read_records,
)
from art_defenses_ext.evaluation.run.manifest import ENVIRONMENT, Manifest
from art_defenses_ext.evaluation.run.rounds import is_evaluated, round_folder
from art_defenses_ext.evaluation.run.shard import WHOLE


@dataclass(frozen=True)
class Part:
    """One process's part of an evaluation.

    Attributes:
        path: the folder of the part.
        manifest: the manifest of the evaluation.
    """

    path: Path
    manifest: Manifest

    @cached_property
    def costs(self) -> dict[int, list[CostRecord]]:
        """The costs, by the index of a block's first sample."""
        return costs_by_block(self.path)

    @cached_property
    def examples(self) -> dict[int, list[Example]]:
        """Attacked images, by the index of a block's first sample."""
        return examples_by_block(self.path)

    def blocks(self) -> Iterator[Block]:
        """The finished blocks in their order; one at a time is in memory."""
        return finished_blocks(self.path, self.manifest)


def merge(folders: Sequence[str | Path], out: str | Path, *, overwrite: bool = False, mixed: bool = False) -> Report:
    """Join the parts of an evaluation and write its report.

    Args:
        folders: folders of the parts, or folders that hold them, as passed to :func:`.evaluate_shard`. All adversarial
            images are joined too if every part kept them.
        out: folder of the merged run; may be the folder that holds the parts.
        overwrite: replace an earlier run in ``out``.
        mixed: join parts from different devices, versions or numbers of threads too. Their records may differ by
            rounding from those of a single process.

    Returns:
        The report, as :func:`.evaluate` returns it.

    Raises:
        InputError: for parts of different runs, samples that are missing or in two parts, and folders that cannot be
            read or written; nothing is written then. The parts of the run itself are joined, but there is no report, if
            those of a round of more effort do not fit together, or if a round is to follow: :func:`.evaluate` or
            :func:`.evaluate_shard` with ``out`` makes it.
    """
    whole = join_parts(folders, out, overwrite=overwrite, mixed=mixed)
    join_rounds(whole)
    return report_of(whole)


def report_of(folder: Path) -> Report:
    """Write the report of a finished run into its folder, and return it."""
    report = Report.load(folder)
    report.save(folder)
    return report


def join_parts(folders: Sequence[str | Path], out: str | Path, *, overwrite: bool = False, mixed: bool = False) -> Path:
    """Join the parts of an evaluation without a report, as :func:`merge` does, and return the folder of the whole."""
    check_flag("overwrite", overwrite)
    check_flag("mixed", mixed)
    out = check_path("out", out, "a folder")
    parts = [
        Part(path, read_manifest(path)) for folder in check_paths("folders", folders) for path in _parts_in(folder, out)
    ]
    if overwrite and any(part.path.resolve() == out.resolve() for part in parts):
        raise RunError(f"overwrite is set, and out is {out}, which is to be merged; another folder was expected")
    _check_same(parts, mixed)
    holders = _holders(parts)
    first = parts[holders[0]]
    findings = None if first.manifest.is_round else read_findings(first.path)
    with RunDirectory(out, overwrite) as directory:
        manifest = _merged_manifest(parts, first)
        if directory.manifest is not None:  # which a later call may have asked for more rounds
            manifest = manifest.continued_by(directory.manifest)
        directory.check_same(manifest)
        directory.begin(manifest)
        blocks = [part.blocks() for part in parts]
        for start, number in sorted(holders.items()):
            block, part = next(blocks[number]), parts[number]
            if start not in directory.done:
                directory.append(block, part.costs[start], part.examples.get(start, []))
        if findings is not None and not directory.has_findings:
            directory.finish(findings)
        beside = [part.path / UNDEFENDED for part in parts]
        if all((path / MANIFEST).exists() for path in beside):
            join_parts(beside, directory.path / UNDEFENDED, overwrite=overwrite, mixed=mixed)
        paths = {start: parts[number].path for start, number in holders.items()}
        keeps_all = all(holds_block(path, start) for start, path in paths.items())
        if keeps_all and not AllImages(out, manifest).are_joined:
            join_images(out, paths, manifest, read_records(out))
        return directory.path


def join_rounds(path: Path, count: int | None = None) -> None:
    """Join the parts of each round of more effort of a merged run, and of its undefended model's.

    Args:
        path: folder of the run.
        count: the number of shards of which the parts are joined; None for any, if there are several a complete one.

    Raises:
        InputError: as :func:`merge`.
    """
    for run in (path, path / UNDEFENDED):
        folders = [round_folder(run, number) for number in range(1, MOST_ROUNDS + 1)]
        for folder in folders:
            parts = _best_parts(folder, count)
            if parts and (_are_complete(parts) or not is_finished(folder)):
                join_parts(parts, folder)
        finished = [folder for folder in folders if is_finished(folder)]
        if finished:
            note_effort(run, replace(read_manifest(finished[-1]), plan=read_manifest(run).plan))


def _best_parts(folder: Path, count: int | None) -> list[Path]:
    """Return the parts of one number of shards below a folder: of those that are complete, else of the most parts."""
    groups = defaultdict[int, list[Path]](list)
    for part in _parts_below(folder):
        groups[read_manifest(part).shard.count].append(part)
    chosen = list(groups.values()) if count is None else [groups[count]]
    return max(chosen, key=lambda parts: (_are_complete(parts), len(parts)), default=[])


def _are_complete(parts: list[Path]) -> bool:
    """Return whether these are all parts of one number of shards, and each is finished."""
    counts = {read_manifest(part).shard.count for part in parts}
    return counts == {len(parts)} and all(map(is_evaluated, parts))


def _parts_in(folder: Path, out: Path) -> list[Path]:
    """Return the parts below a folder, or the folder itself."""
    try:
        parts = _parts_below(folder)
    except OSError as error:  # such as a name too long
        raise RunError(
            f"folder is {str(folder)!r}, which cannot be read ({error.strerror}); a run's was expected"
        ) from None
    if parts and folder.resolve() == out.resolve() and is_evaluated(folder) and not _are_complete(parts):
        run = read_manifest(folder)  # it is merged, and parts of another number of shards may lie beside it
        if run.shard.is_whole and all(read_manifest(part).belongs_to(run) for part in parts):
            return [folder]
    return parts or [folder]


def _parts_below(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"shards/*/{MANIFEST}"))


def _check_same(parts: list[Part], mixed: bool) -> None:
    first = parts[0]
    for part in parts[1:]:
        difference = first.manifest.difference(part.manifest, ignored=ENVIRONMENT if mixed else ())
        if difference is not None:
            hint = ", or mixed," if first.manifest.difference(part.manifest, ignored=ENVIRONMENT) is None else ""
            raise RunError(
                f"{first.path} and {part.path} are parts of different runs: {difference}; "
                f"parts of one run{hint} were expected"
            )


def _holders(parts: list[Part]) -> dict[int, int]:
    """Return the part that holds the block at each index; every block has one."""
    holders: dict[int, int] = {}
    for number, part in enumerate(parts):
        for block in part.blocks():
            if block.start in holders:
                raise RunError(
                    f"{parts[holders[block.start]].path} and {part.path} both hold the samples from {block.start} on; "
                    "each only once was expected"
                )
            holders[block.start] = number
    settings = parts[0].manifest.run.settings
    missing = [start for start in WHOLE.starts(settings.samples, settings.block_size) if start not in holders]
    if missing:
        raise RunError(
            f"folders hold {len(holders)} of {len(holders) + len(missing)} blocks of {settings.block_size} samples; "
            f"the one from sample {missing[0]} on is missing: {_absent(parts, missing[0])}"
        )
    return holders


def _absent(parts: list[Part], start: int) -> str:
    """Return the part to which a missing block belongs."""
    settings = parts[0].manifest.run.settings
    for part in parts:
        if start in part.manifest.shard.starts(settings.samples, settings.block_size):
            return f"{part.path} is not finished"
    return f"no folder of the part that does it was given, only {', '.join(str(part.manifest.shard) for part in parts)}"


def _merged_manifest(parts: list[Part], first: Part) -> Manifest:
    """Return the manifest of the merged run, which names the environments of all parts."""
    environments: list[dict[str, Any]] = list(first.manifest.run.environments)  # a round's are those of its run
    for part in parts:
        environment = part.manifest.environment
        if environment not in [first.manifest.environment, *environments]:
            environments.append(environment)
    return first.manifest.whole(environments)
