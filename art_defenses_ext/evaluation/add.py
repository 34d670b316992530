"""Adversarial examples from elsewhere, classified by a run's model and included in its worst case."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from safetensors.numpy import load_file

from art_defenses_ext.base.arrays import FloatArray, Images, IntArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import is_web_address, shown
from art_defenses_ext.base.validation import check_file, check_path, check_text, one_line, within_clip_values
from art_defenses_ext.estimator import rebuild
from art_defenses_ext.evaluation.config import EvaluationConfig
from art_defenses_ext.evaluation.records.sample import Outcome, image_hash
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.run.added import Addition, hash_of, read_additions, write_addition
from art_defenses_ext.evaluation.run.block import Work
from art_defenses_ext.evaluation.run.folder import RunDirectory, read_manifest
from art_defenses_ext.evaluation.run.manifest import ENVIRONMENT, Manifest
from art_defenses_ext.evaluation.suite.suites import STANDARD
from art_defenses_ext.evaluation.task import EvaluationArguments, Task
from art_defenses_ext.evaluation.threat import Threat, named_threat

ADVERSARIAL = ("adversarial", "adv", "x_adv", "adv_complete")
"""Names of the array of images in a file; the last is that in the files of AutoAttack's authors."""


@dataclass(frozen=True)
class Examples:
    """Adversarial examples from elsewhere, checked without the run.

    Attributes:
        adversarial: images (n, ...), float32.
        index: the samples of the run that they were made from (n,).
        clean: the clean images (n, ...); None if the file holds none.
    """

    adversarial: FloatArray
    index: IntArray
    clean: FloatArray | None

    @classmethod
    def of(cls, adversarial: Any, samples: int) -> Examples:
        """Read a file, or take an array of all samples.

        Raises:
            InputError: for anything else, or numbers that are not finite.
        """
        named = {"adversarial": adversarial} if isinstance(adversarial, np.ndarray) else _read(adversarial)
        images = next((named[name] for name in ADVERSARIAL if name in named), None)
        if images is None or images.dtype.kind != "f" or images.ndim < 2 or not len(images):
            expected = f"floating-point images under one of the names {', '.join(ADVERSARIAL)}"
            raise InputError(f"adversarial holds {_contents(named)}; {expected} were expected")
        if not np.isfinite(images).all():
            raise InputError("adversarial holds images with NaN or infinite values; finite ones were expected")
        clean = named.get("clean")
        if clean is not None and (clean.dtype.kind != "f" or clean.shape != images.shape):
            raise InputError(f"adversarial holds clean of shape {clean.shape}; {images.shape} was expected")
        index = _index(named.get("index"), len(images), samples)
        return cls(images.astype(np.float32), index, None if clean is None else clean.astype(np.float32))


def _contents(named: dict[str, Any]) -> str:
    return ", ".join(f"{shown(name)} {array.dtype}{array.shape}" for name, array in named.items()) or "nothing"


def _read(path: Any) -> dict[str, Any]:
    """Return the arrays of a file by name, without executing code in it."""
    file = check_file("adversarial", path, "an existing file of images")
    try:
        if file.suffix == ".safetensors":
            named: Any = load_file(file)
        elif file.suffix in (".npz", ".npy"):
            content = np.load(file, allow_pickle=False)
            named = {"adversarial": content} if isinstance(content, np.ndarray) else dict(content)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
            named = content if isinstance(content, dict) else {"adversarial": content}
            named = {name: value.numpy() for name, value in named.items() if isinstance(value, torch.Tensor)}
    except MemoryError:
        raise
    except Exception as error:  # the readers raise many types on damaged files
        raise InputError(
            f"adversarial is {str(file)!r}, which cannot be read ({one_line(error)}); a .npz, .npy or .safetensors "
            "file, or one that torch.load(weights_only=True) reads, was expected"
        ) from error
    return {str(name): np.asarray(array) for name, array in named.items()}


def _index(index: Any, count: int, samples: int) -> IntArray:
    """Return the samples of the images; by default all samples in their order."""
    if index is None:
        if count != samples:
            raise InputError(
                f"adversarial holds {count} images and no array index; {samples}, one for each sample, were expected"
            )
        return np.arange(samples)
    fits = index.dtype.kind in "iu" and index.shape == (count,)
    if not fits or len(np.unique(index)) < count or index.min() < 0 or index.max() >= samples:
        raise InputError(
            f"adversarial holds index {index.dtype}{index.shape} for {count} images; distinct samples from 0 to "
            f"{samples - 1} were expected"
        )
    positions: IntArray = index.astype(np.int64)
    return positions


@rebuild.gradients_enabled()
def add_examples(
    run: str | Path,
    adversarial: str | Path | FloatArray,
    model: Any,
    data: Any,
    *,
    name: str,
    link: str | None = None,
    **arguments: Unpack[EvaluationArguments],
) -> Report:
    """Add adversarial examples from elsewhere to a finished run: each sample counts by its worst case.

    The examples are checked (the run's images and model, shape, finite values, clip range, ball), classified by the
    model, and kept in the run's folder beside its own records, which do not change. The report there is written again.
    Adding the same examples again changes nothing. ``art-defenses add`` does the same for a run of the command.

    Args:
        run: folder of the run.
        adversarial: images ``(n, *input_shape)`` in the run's units: a ``.npz`` or ``.safetensors`` file with the array
            ``adversarial`` and, unless it has an image for each sample, ``index`` (n,), the samples' positions;
            ``clean`` (n, ...) is compared with the run's images if it is given. Also a ``.npy`` file, a file of
            ``torch.save``, or an array. Images outside the ball are refused.
        model, data: the model and the data of the run, as in :func:`evaluate`.
        name: the source of the examples, as the report names it.
        link: an http or https address of the source; None for none.
        arguments: ``undefended`` and ``detector`` as in :func:`evaluate`, if the run was made with them.

    Returns:
        The report with the examples.

    Raises:
        InputError: for a folder without a finished run, another model or other images than the run's, and examples
            that are not finite, have another shape, lie outside the clip range or the ball, or belong to other images.
            Nothing is written then.

    >>> import numpy as np
    >>> from art_defenses_ext import JumpReLU, Linf, add_examples, evaluate
    >>> defended = JumpReLU(classifier, jump=1.0)()
    >>> report = evaluate(defended, (x_test, y_test), Linf(0.1), "papers", out="run", progress=False)
    >>> brighter = np.clip(x_test + np.float32(0.05), 0, 1)
    >>> report = add_examples("run", brighter, defended, (x_test, y_test), name="brighter")
    >>> [(row.key, row.attacked) for row in report.summary.rows if row.source == "elsewhere"]
    [('brighter', 4)]
    """
    folder = check_path("run", run, "the folder of a finished run")
    before = Report.load(folder)
    manifest = read_manifest(folder)
    check_text("name", name)
    if link is not None and not (isinstance(link, str) and is_web_address(link)):
        raise InputError(f"link is {shown(link)}; an address that begins with http:// or https:// was expected")
    examples = Examples.of(adversarial, manifest.run.settings.samples)
    added = read_additions(folder, manifest)
    addition = Addition(name, link, hash_of(examples.adversarial, examples.index), {})
    if addition.stem not in {each.stem for each in added}:
        if name in {*(run.key for run in manifest.plan), *(row.key for row in before.summary.rows)}:
            raise InputError(f"name is {shown(name)}, which the run has already; another name was expected")
        outcomes = _outcomes_of(folder, manifest, before, examples, addition, model, data, arguments)
        with RunDirectory(folder):
            write_addition(folder, manifest, replace(addition, outcomes=outcomes), examples.adversarial, examples.index)
    report = Report.load(folder)
    report.save(folder)
    return report


def _outcomes_of(
    folder: Path,
    manifest: Manifest,
    before: Report,
    examples: Examples,
    addition: Addition,
    model: Any,
    data: Any,
    arguments: EvaluationArguments,
) -> dict[str, Outcome]:
    """Return the outcome of each example by its sample, in the blocks of the run.

    Raises:
        InputError: for another model or other images than the run's, and examples outside its ball.
    """
    settings = manifest.run.settings
    threat = named_threat(settings.threat, settings.eps)
    run = addition.run(threat, settings.samples)
    arguments |= {"allow_large_eps": True, "config": EvaluationConfig.part_of(settings)}
    # It checks the model; no attack is made.
    task = Task.of(model, data, threat, [STANDARD[-1]], progress=False, **arguments)
    _check_same(folder, manifest, task.manifest())
    examples = _checked(examples, before, task.x, threat, task.classifier.clip_values)
    plan = [*manifest.plan, run]
    work = Work(task.attacker, task.undefended, plan, threat, settings, misled=False)
    outcomes: dict[str, Outcome] = {}
    for start in range(0, settings.samples, settings.block_size):
        rows = slice(start, start + settings.block_size)
        chosen = np.flatnonzero((examples.index >= start) & (examples.index < start + settings.block_size))
        if len(chosen):
            places, adversarial = examples.index[chosen] - start, examples.adversarial[chosen]
            with task.evaluating():
                block, _ = work.clean(start, np.asarray(task.x[rows]), task.labels[rows])
                block_outcomes = work.outcomes(run, places, block, adversarial, np.ones(len(chosen), dtype=np.bool_))
            outcomes |= {str(start + place): outcome for place, outcome in zip(places, block_outcomes, strict=True)}
    return outcomes


def _check_same(folder: Path, manifest: Manifest, other: Manifest) -> None:
    """Refuse another model or other images than a run's."""
    if other.run.data_sha256 != manifest.run.data_sha256:
        raise InputError(f"data is not that of the run in {folder}; its images and labels were expected")
    other = replace(other, plan=manifest.plan, run=replace(other.run, settings=manifest.run.settings))
    difference = manifest.difference(other, ignored=ENVIRONMENT)
    if difference is not None:
        raise InputError(f"model is not that of the run in {folder} ({difference}); its model was expected")


def _checked(examples: Examples, report: Report, x: Images, threat: Threat, clip_values: Any) -> Examples:
    """Return the examples, clipped where they exceed the clip values by rounding only.

    Raises:
        InputError: for an example of another shape, outside the clip values or the ball, or of another image than the
            run's; it names the first.
    """
    adversarial = examples.adversarial
    shape = tuple(x.shape[1:])
    if adversarial.shape[1:] != shape:
        raise InputError(f"adversarial holds images of shape {adversarial.shape[1:]}; {shape} was expected")
    adversarial, usable = within_clip_values(adversarial, clip_values)
    for row, sample in enumerate(map(int, examples.index)):
        image, clean = adversarial[row : row + 1], np.asarray(x[sample : sample + 1])
        own = clean if examples.clean is None else examples.clean[row : row + 1]
        recorded = report.records[sample].image
        if recorded is not None and image_hash(own[0]) != recorded:
            raise InputError(f"adversarial was made of another image than sample {sample} of the run; its was expected")
        if not usable[row]:
            low, high = (
                (np.min(clip_values[0]), np.max(clip_values[1])) if clip_values is not None else (-np.inf, np.inf)
            )
            raise InputError(f"adversarial leaves the clip range at sample {sample}; {low:g} to {high:g} was expected")
        (size,) = threat.sizes(clean, image, clip_values)
        if not threat.allows(size):
            raise InputError(
                f"adversarial is {size:.4g} in {threat.norm_name} away from sample {sample} of the run; at most "
                f"{threat.eps:g} was expected: it is of another ball or of other images"
            )
    return replace(examples, adversarial=adversarial)
