"""All adversarial images of a run, on request: written attack by attack, and joined at the end of the run.

    adversarial/blocks/START/NUMBER.npz   the images of attack NUMBER of the plan on the block from sample START on
    adversarial/ATTACK.npz                all images of one attack
    adversarial/worst_case.npz            the image of the first successful attack on each sample that has one

The worst case is written last. The blocks of a whole run are removed after they are joined; those of a shard are kept
for :func:`.merge`. No record depends on these files. One block is held in memory at a time.
"""

from __future__ import annotations

import io
import re
import shutil
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import RunError
from art_defenses_ext.base.files import leftovers, reading, replace_file, replacing, writing
from art_defenses_ext.base.validation import check_choice
from art_defenses_ext.evaluation.records.sample import Attempt, SampleRecord
from art_defenses_ext.evaluation.run.manifest import Manifest

ADVERSARIAL, BLOCKS, WORST_CASE = "adversarial", "blocks", "worst_case"
EXTENT = ("one", "all")
"""The adversarial images that a run keeps: one per attack for the report, or all of them as well."""

NAME_LENGTH = 100  # maximum length of a file name in characters; an attack's name may be longer

Chosen = tuple[SampleRecord, str]
"""A sample, and the key of an attack, which together choose an image."""


def check_extent(save_examples: str, out: object) -> None:
    """Check which adversarial images a run keeps.

    Raises:
        InputError: for another value than ``"one"`` and ``"all"``, and for ``"all"`` without a folder.
    """
    check_choice("save_examples", save_examples, EXTENT)
    if save_examples == "all" and out is None:
        raise RunError("save_examples is 'all', but out is missing; a folder for the images was expected")


class AllImages:
    """All adversarial images of the run in a folder, block by block.

    Args:
        folder: folder of the run.
        manifest: manifest of the run.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder
        self._numbers = {run.key: number for number, run in enumerate(manifest.plan)}

    def check_complete(self, done: Collection[int]) -> None:
        """Refuse a run with finished blocks whose images were not kept.

        Args:
            done: indices of the first samples of the finished blocks.

        Raises:
            InputError: that names the first such block.
        """
        missing = [start for start in sorted(done) if not holds_block(self._folder, start)]
        if missing and not self.are_joined:
            raise RunError(
                f"save_examples is 'all', and out is {self._folder}, whose samples from {missing[0]} on were attacked "
                "without it; 'one', another folder, or overwrite, was expected"
            )

    @property
    def are_joined(self) -> bool:
        """Whether the run is finished and its images are joined."""
        return (self._folder / ADVERSARIAL / f"{WORST_CASE}.npz").exists()

    def holds(self, attempt: Attempt) -> bool:
        """Return whether the folder holds the images of an attack on a block."""
        return attempt.cost.attack in self._numbers and self._file(attempt).exists()

    def keep(self, attempt: Attempt, adv: FloatArray) -> None:
        """Write the images (n, ...) of an attack on a block, in place of those of an earlier attempt."""
        content = io.BytesIO()
        np.savez(content, index=attempt.cost.block + np.array(attempt.rows), adv=adv)
        replace_file(self._file(attempt), content.getvalue())

    def finish(self, start: int) -> None:
        """Mark a block as complete, also if no attack had an image to attack."""
        _block(self._folder, start).mkdir(parents=True, exist_ok=True)

    def _file(self, attempt: Attempt) -> Path:
        return _file(_block(self._folder, attempt.cost.block), self._numbers[attempt.cost.attack])


def holds_block(folder: Path, start: int) -> bool:
    """Return whether the run in a folder has the images of the block that begins at index ``start``."""
    return _block(folder, start).is_dir()


def join_images(out: Path, holders: Mapping[int, Path], manifest: Manifest, records: Sequence[SampleRecord]) -> None:
    """Write the images of each attack, and then those of the worst case, as files that :func:`.add_examples` reads.

    Args:
        out: folder of the run.
        holders: folder of the run or shard that holds a block, by the index of the block's first sample.
        manifest: manifest of the run.
        records: records of all samples, in order.

    Raises:
        InputError: for images of a block that are missing, cannot be read, or belong to other samples than the records;
            also if the files cannot be written.
    """
    folder = out / ADVERSARIAL
    keys = [run.key for run in manifest.plan]
    images = _Joined(holders, {key: number for number, key in enumerate(keys)}, manifest)
    contents = {
        name: [(record, key) for record in records if key in record.attacks] for key, name in file_names(keys).items()
    }
    succeeding = ((record, _first_success(record, keys)) for record in records)
    contents[WORST_CASE] = [(record, key) for record, key in succeeding if key is not None]
    with writing("out", out, "a writable folder"):
        for path in leftovers(folder, "*.npz"):
            path.unlink()
        for name, chosen in contents.items():
            if chosen or name == WORST_CASE:
                images.write(folder / f"{name}.npz", chosen)


def remove_blocks(folder: Path) -> None:
    """Remove the images of single blocks of the run in a folder."""
    shutil.rmtree(folder / ADVERSARIAL / BLOCKS, ignore_errors=True)


def remove_images(folder: Path) -> None:
    """Remove all adversarial images of the run in a folder, if a run wrote them."""
    joined = folder / ADVERSARIAL / f"{WORST_CASE}.npz"
    if joined.exists():
        for path in joined.parent.glob("*.npz"):
            path.unlink()
    remove_blocks(folder)


def file_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the name of each attack's file without its suffix: short, in ASCII, and distinct when case is ignored."""
    names: dict[str, str] = {}
    taken = {WORST_CASE}
    for key in keys:
        plain = re.sub(r"[^A-Za-z0-9._+=]+", "-", key).strip("-.")[:NAME_LENGTH] or "attack"
        name, number = plain, 1
        while name.lower() in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name.lower())
        names[key] = name
    return names


class _Joined:
    """Images of many blocks, written as one file."""

    def __init__(self, holders: Mapping[int, Path], numbers: dict[str, int], manifest: Manifest) -> None:
        self.holders, self.numbers = holders, numbers
        self.shape, self.block_size = tuple(manifest.run.input_shape), manifest.run.settings.block_size

    def write(self, path: Path, chosen: Sequence[Chosen]) -> None:
        """Write a ``.npz`` file in numpy's format; the images are copied block by block."""
        outcomes = [record.attacks[key] for record, key in chosen]
        arrays = {
            "index": np.array([record.index for record, _ in chosen], dtype=np.int64),
            "label": np.array([record.label for record, _ in chosen], dtype=np.int64),
            "prediction": np.array([outcome.prediction for outcome in outcomes], dtype=np.int64),
            "success": np.array([outcome.success for outcome in outcomes], dtype=np.bool_),
            "attack": np.array([key for _, key in chosen], dtype=np.str_),
        }
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(chosen), *self.shape)}
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
            with file.open("adv.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for images in self._images(chosen):
                    member.write(images.data)
            for name, array in arrays.items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    def _images(self, chosen: Sequence[Chosen]) -> Iterator[FloatArray]:
        """Yield the chosen images (n, ...) of one block after the other."""
        for start, group in groupby(chosen, lambda each: each[0].index // self.block_size * self.block_size):
            block = list(group)
            images = np.empty((len(block), *self.shape), dtype="<f4")
            for key in dict.fromkeys(key for _, key in block):
                places = [place for place, (_, attack) in enumerate(block) if attack == key]
                path = _file(_block(self.holders[start], start), self.numbers[key])
                images[places] = _read_images(path, [block[place][0].index for place in places], self.shape)
            yield images


def _read_images(path: Path, samples: list[int], shape: tuple[int, ...]) -> FloatArray:
    """Return the images of the given samples from the file of an attack on a block."""
    expected = "the images of the records were expected, as save_examples='all' keeps them"
    with reading(path, expected), np.load(path, allow_pickle=False) as file:
        index, adv = file["index"], file["adv"]
    rows = {int(sample): row for row, sample in enumerate(index)}
    if adv.shape != (len(index), *shape) or not set(samples) <= set(rows):
        raise RunError(f"{path} holds samples {sorted(rows)} of shape {adv.shape[1:]}; {expected}")
    images: FloatArray = adv[[rows[sample] for sample in samples]]
    return images


def _first_success(record: SampleRecord, keys: Sequence[str]) -> str | None:
    return next((key for key in keys if key in record.attacks and record.attacks[key].success), None)


def _block(folder: Path, start: int) -> Path:
    return folder / ADVERSARIAL / BLOCKS / f"{start:08d}"


def _file(block: Path, number: int) -> Path:
    return block / f"{number:03d}.npz"
