"""The evaluation of a defended classifier: every attack of a suite, and the worst case of each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import check_flag, check_path
from art_defenses_ext.estimator import rebuild
from art_defenses_ext.evaluation.callbacks import Listeners, RunCallback
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.results.price import Price
from art_defenses_ext.evaluation.run.all_images import check_extent
from art_defenses_ext.evaluation.run.folder import (
    UNDEFENDED,
    RunDirectory,
    check_out,
    check_settings,
)
from art_defenses_ext.evaluation.run.manifest import Manifest
from art_defenses_ext.evaluation.run.rounds import (
    is_merged,
)
from art_defenses_ext.evaluation.run.shard import WHOLE, Shard
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.task import EvaluationArguments, Task
from art_defenses_ext.evaluation.threat import Threat


@rebuild.gradients_enabled()
def evaluate(
    model: PyTorchClassifier | nn.Module,
    data: Any,
    threat: Threat,
    attacks: str | Sequence[AttackSpec] = "standard",
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    save_examples: str = "one",
    progress: bool = True,
    callbacks: Sequence[RunCallback] = (),
    **arguments: Unpack[EvaluationArguments],
) -> Report:
    """Attack a classifier with every attack of a suite, and report the worst case of each sample.

    A paper's attacks run on all samples, the suite's on those that no earlier attack broke. Robust accuracy is the
    mean over samples of the minimum over attacks. A figure is called so only if an adaptive attack suite ran and its
    checks were made, and it is established only if they passed (docs/checks.md). With the paper's attacks alone,
    ``check_samples=0`` or ``adaptive=False``, ``report.robust_accuracy`` is None, and
    ``report.accuracy_after_attacks`` holds the accuracy under the attacks that ran. Preprocessors from other packages
    get a surrogate gradient. For a random defence the attacks average over its randomness, and its prediction is its
    most probable class (``evaluation/suite/vote.py``).

    With a detector, classifier and detector are attacked and evaluated as one network. A clean image is correct if it
    is classified correctly and accepted; an attack succeeds if its image is misclassified and accepted.

    The samples are attacked in blocks. The seed of each attack is derived from ``seed``, the attack's name and the
    block, so a block's records do not depend on the others. Two properties are measured beforehand for all blocks:
    whether the defence is random (on the first block) and, if an attack or a check needs it, whether its gradients are
    informative (on the first 100 images). Before that, two images pass through the networks, and through each attack
    with the least effort, so that anything that cannot run is refused at once.

    Args:
        model: the classifier to attack, defended, as :func:`defend` or :class:`JumpReLU` return it, or undefended; or a
            torch network, see :func:`.as_classifier`.
        data: images and true labels: a pair ``(x, y)`` of arrays or tensors, a ``DataLoader`` or a ``Dataset``, see
            :func:`.images_and_labels`. Images are ``(N, *input_shape)`` in the clip range, or :class:`.StoredImages`,
            which are read block by block; labels are indices (N,) or one-hot (N, nb_classes).
        threat: ``Linf(eps)``, ``L2(eps)``, ``L1(eps)`` or another :class:`.Ball`, with eps in the units of the pixels.
        attacks: ``"papers"``, ``"fast"`` (the papers' attacks and a short adaptive suite), ``"standard"`` (the papers'
            attacks and the adaptive suite) or ``"full"`` (slower attacks too), with installed attacks of other packages
            joined by ``+``, as in ``"standard+simba"``; or a list of :class:`AttackSpec`, which is an adaptive suite if
            its white-box attacks on the defended network (``kind="white-box"``) run under every gradient mode
            (``modes="all"``).
        out: folder for records, costs, ``report.json``, ``report.html`` and pictures; None keeps nothing. A run in it
            with the same settings, data and networks is continued, or read if it is finished.
        overwrite: replace any earlier run in ``out``.
        save_examples: adversarial images that ``out`` keeps: ``"one"`` of each of up to eight attacks, for the report,
            or ``"all"``, in ``out/adversarial`` (docs/evaluation.md). No figure depends on it.
        progress: show a progress bar.
        callbacks: objects that are called during the run, such as a :class:`.TensorBoardCallback`.
        arguments: those of :class:`.EvaluationArguments`, and options of an :class:`.EvaluationConfig` by name, such as
            ``seed=1`` or ``check_samples=0``, which take precedence over ``config``.

    Returns:
        The report: figures, per-sample records, costs.

    Raises:
        InputError: for an argument that cannot be used, before any work is done or any file is written.

    >>> from art_defenses_ext import JumpReLU, Linf, evaluate
    >>> defended = JumpReLU(classifier)()
    >>> report = evaluate(defended, (x_test, y_test), Linf(0.3), "papers", progress=False)
    >>> report.accuracy_after_attacks <= report.summary.clean.rate, len(report.records)
    (True, 4)
    >>> report.robust_accuracy, report.summary.unknown
    (None, "no adaptive attack ran: the paper's attacks ran alone")
    """
    listeners = Listeners(callbacks)
    check_extent(save_examples, out)
    task = partial(Task.of, model, data, threat, attacks, progress=progress, listeners=listeners, **arguments)
    with (
        TemporaryDirectory() if out is None else nullcontext(out) as folder,
        _evaluated(task, folder, WHOLE, overwrite, progress, save_examples, keeps=out is not None) as directory,
    ):
        report = Report.load(directory.path)
        if out is not None:
            directory.join_images(report.records)
            report.save(directory.path)
    listeners.end(report)
    return report


@contextmanager
def _evaluated(
    task_of: Callable[[], Task],
    out: str | Path,
    shard: Shard,
    overwrite: bool,
    progress: bool,
    save_examples: str,
    keeps: bool = True,
    makes_rounds: bool = True,
) -> Iterator[RunDirectory]:
    """Run a shard of an evaluation in a folder, which is locked inside the block."""
    check_flag("overwrite", overwrite)
    check_flag("progress", progress)
    check_out(out)
    task = task_of()
    if not overwrite:
        check_settings(out, task.settings)
    with RunDirectory(out, overwrite, keeps, save_examples) as directory:
        task.attack_blocks(directory, shard, progress)
        if makes_rounds:
            task.make_rounds(directory, progress, save_examples)
        counterpart = task.counterpart(progress)
        if counterpart is not None:
            with RunDirectory(directory.path / UNDEFENDED, overwrite, keeps) as beside:
                counterpart.attack_blocks(beside, shard, progress)
                if makes_rounds:
                    counterpart.make_rounds(beside, progress)
        yield directory


@rebuild.gradients_enabled()
def evaluate_shard(
    model: PyTorchClassifier | nn.Module,
    data: Any,
    threat: Threat,
    attacks: str | Sequence[AttackSpec] = "standard",
    *,
    shard: Shard,
    out: str | Path,
    overwrite: bool = False,
    save_examples: str = "one",
    progress: bool = True,
    **arguments: Unpack[EvaluationArguments],
) -> Path:
    """Evaluate one part of an evaluation that several processes share; :func:`.merge` joins the parts.

    The processes are independent, and may run at any time and on any machine. Each gets the same arguments except
    ``shard``. After the merge, the same call makes this part of the next round of more effort, if one follows; another
    merge joins its parts, and so on.

    Args:
        model, data, threat, attacks, overwrite, save_examples, progress: as in :func:`evaluate`; the data are all
            images, of which this part takes its own.
        shard: the part to evaluate.
        out: folder of the whole evaluation.
        arguments: the other arguments of :func:`evaluate`.

    Returns:
        The folder of this part, below ``out``; or ``out`` itself if it is merged and no round follows.

    Raises:
        InputError: as :func:`evaluate`.
    """
    if not isinstance(shard, Shard):
        raise InputError(f"shard is {shown(shard)}; a Shard(number, count) was expected")
    check_extent(save_examples, out)
    whole = check_path("out", out, "a folder")
    task = partial(Task.of, model, data, threat, attacks, progress=progress, **arguments)
    own = check_out(whole / shard.folder)
    if check_flag("overwrite", overwrite) or not is_merged(whole, own):
        with _evaluated(task, own, shard, overwrite, progress, save_examples, makes_rounds=False) as directory:
            return directory.path
    return task().share_rounds(whole, shard, check_flag("progress", progress), save_examples)


def run_key(
    model: PyTorchClassifier | nn.Module,
    data: Any,
    threat: Threat,
    attacks: str | Sequence[AttackSpec] = "standard",
    **arguments: Unpack[EvaluationArguments],
) -> str:
    """Return a hash of everything on which an evaluation's records depend: equal keys, equal records.

    Args:
        model, data, threat, attacks, arguments: as in :func:`evaluate`, except those of files and progress.

    Raises:
        InputError: as :func:`evaluate`.
    """
    return manifest_of(model, data, threat, attacks, **arguments).key()


@rebuild.gradients_enabled()
def manifest_of(
    model: PyTorchClassifier | nn.Module,
    data: Any,
    threat: Threat,
    attacks: str | Sequence[AttackSpec] = "standard",
    **arguments: Unpack[EvaluationArguments],
) -> Manifest:
    """Return the manifest of an evaluation, without the examination of gradients.

    Args:
        model, data, threat, attacks, arguments: as in :func:`evaluate`, except those of files and progress.

    Raises:
        InputError: as :func:`evaluate`.
    """
    return Task.of(model, data, threat, attacks, progress=False, **arguments).manifest()


@rebuild.gradients_enabled()
def price(
    model: PyTorchClassifier | nn.Module,
    data: Any,
    threat: Threat,
    attacks: str | Sequence[AttackSpec] = "standard",
    *,
    progress: bool = True,
    **arguments: Unpack[EvaluationArguments],
) -> Price:
    """Estimate the cost of an evaluation by a trial: the same evaluation on a few of its images.

    The images are spread evenly over the margins of the first block, from the smallest to the largest.

    Args:
        model, data, threat, attacks, progress, arguments: as in :func:`evaluate`.

    Raises:
        InputError: as :func:`evaluate`.

    >>> from art_defenses_ext import JumpReLU, Linf
    >>> defended = JumpReLU(classifier, jump=1.0)()
    >>> expected = price(defended, (x_test, y_test), Linf(0.1), "papers", progress=False)
    >>> expected.cost.backward > expected.cost.forward > 0
    True
    """
    task = Task.of(model, data, threat, attacks, progress=progress, **arguments)
    expected, counterpart = Price.of(task.trial(progress), task.settings), task.counterpart(progress)
    return (
        expected
        if counterpart is None
        else expected.beside(Price.of(counterpart.trial(progress), counterpart.settings))
    )
