"""The evaluation of a defended classifier: every attack of a suite, and the worst case of each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

import numpy as np
from art.defences.detector.evasion import BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from rich.progress import Progress
from torch import nn

from art_defenses_ext.base.arrays import FloatArray, Images, IntArray
from art_defenses_ext.base.data import images_and_labels
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.logits import NO_CLASS
from art_defenses_ext.base.progress import progress_bar
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import check_evaluated, check_flag, check_labels, check_path
from art_defenses_ext.estimator import rebuild
from art_defenses_ext.estimator.bridged import differentiable, logits_behind
from art_defenses_ext.estimator.pipeline import PROBES, check_runs
from art_defenses_ext.estimator.rejecting import rejecting, rejects
from art_defenses_ext.estimator.wrap import as_classifier
from art_defenses_ext.evaluation.callbacks import Listeners, RunCallback
from art_defenses_ext.evaluation.checks.gradient_health import GradientHealth, examine_gradients, nb_batches
from art_defenses_ext.evaluation.config import EvaluationConfig, EvaluationOptions, config_of
from art_defenses_ext.evaluation.records.costs import Cost
from art_defenses_ext.evaluation.records.description import Settings
from art_defenses_ext.evaluation.records.examples import Example
from art_defenses_ext.evaluation.records.phases import BINARIZATION, GRADIENTS, PREPARATION, Phases
from art_defenses_ext.evaluation.records.sample import CostRecord
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.results.price import Price, Trial, in_words
from art_defenses_ext.evaluation.run.all_images import check_extent
from art_defenses_ext.evaluation.run.block import Work
from art_defenses_ext.evaluation.run.describe import describe_run
from art_defenses_ext.evaluation.run.folder import (
    UNDEFENDED,
    RunDirectory,
    check_continues,
    check_out,
    check_settings,
    read_costs,
    read_findings,
    read_kept_examples,
    read_manifest,
    read_records,
)
from art_defenses_ext.evaluation.run.identity import identity_of
from art_defenses_ext.evaluation.run.manifest import Manifest
from art_defenses_ext.evaluation.run.rounds import (
    gains,
    is_merged,
    next_round,
    read_evidence,
    repeated,
    round_folder,
    round_folders,
)
from art_defenses_ext.evaluation.run.shard import WHOLE, Shard
from art_defenses_ext.evaluation.run.trial import TRIAL, spread, timed
from art_defenses_ext.evaluation.suite.attacker import Attacker
from art_defenses_ext.evaluation.suite.plan import AttackRun, hopeless, make_plan
from art_defenses_ext.evaluation.suite.predictions import nb_labels, predict
from art_defenses_ext.evaluation.suite.probe import check_graph, probe_attacks
from art_defenses_ext.evaluation.suite.rounds import round_plan
from art_defenses_ext.evaluation.suite.seeding import seeded
from art_defenses_ext.evaluation.suite.spec import AttackSpec, attacks_in
from art_defenses_ext.evaluation.suite.suites import attack_set
from art_defenses_ext.evaluation.threat import Threat, check_threat

LONG = 30.0
"""Expected seconds of the remaining blocks from which on a run prints this estimate after its first block."""


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
        arguments: those of :class:`EvaluationArguments`, and options of an :class:`.EvaluationConfig` by name, such as
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
    task = partial(_Task.of, model, data, threat, attacks, progress=progress, listeners=listeners, **arguments)
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
    task_of: Callable[[], _Task],
    out: str | Path,
    shard: Shard,
    overwrite: bool,
    progress: bool,
    save_examples: str,
    keeps: bool = True,
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
        if shard.is_whole:
            task.make_rounds(directory, progress, save_examples)
        counterpart = task.counterpart(progress)
        if counterpart is not None:
            with RunDirectory(directory.path / UNDEFENDED, overwrite, keeps) as beside:
                counterpart.attack_blocks(beside, shard, progress)
                if shard.is_whole:
                    counterpart.make_rounds(beside, progress)
        yield directory


DECLARED = ("mean", "std", "clip_values", "outputs")
"""Arguments for a torch network; a classifier has its own."""


class AttackArguments(EvaluationOptions, total=False):
    """The arguments of :func:`evaluate` on how a network is attacked.

    Attributes:
        undefended: the classifier without defences, for transfer attacks; None for the one that the defences of this
            package recorded. Without either, attacks that need it do not run. With a detector its default is ``model``,
            or the undefended classifier of ``model``.
        allow_large_eps: accept an eps at which every image can be turned grey (in linf, more than half the clip range);
            most often such an eps is in other units than the pixels.
        config: the options as an :class:`.EvaluationConfig`; None for the defaults.
        mean, std, clip_values, outputs: for a torch network, as in :func:`.as_classifier`; a classifier has its own.
    """

    undefended: PyTorchClassifier | nn.Module | None
    allow_large_eps: bool
    config: EvaluationConfig | None
    mean: Any
    std: Any
    clip_values: tuple[Any, Any] | None
    outputs: str


class EvaluationArguments(AttackArguments, total=False):
    """The arguments of :func:`evaluate` on the detector and the command, and those of :class:`AttackArguments`.

    Attributes:
        detector: a detector that rejects images, such as :class:`.ExplanationReconstructor`, see :func:`.rejecting`;
            None for none, or if ``model`` rejects by itself.
        command_options: the options of the command that makes this run, by name, with which ``art-defenses rerun``
            repeats it.
    """

    detector: BinaryInputDetector | None
    command_options: dict[str, Any]


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
    task = partial(_Task.of, model, data, threat, attacks, progress=progress, **arguments)
    if check_flag("overwrite", overwrite) or not is_merged(whole):
        with _evaluated(task, whole / shard.folder, shard, overwrite, progress, save_examples) as directory:
            return directory.path
    check_out(whole)
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
    return task_of(model, data, threat, attacks, **arguments).manifest()


def task_of(
    model: Any,
    data: Any,
    threat: Threat,
    attacks: str | Sequence[AttackSpec],
    **arguments: Unpack[EvaluationArguments],
) -> _Task:
    """Return an evaluation with checked arguments, for other uses of a run's model than attacking it.

    Args:
        model, data, threat, attacks, arguments: as in :func:`evaluate`, except those of files and progress.

    Raises:
        InputError: as :func:`evaluate`.
    """
    return _Task.of(model, data, threat, attacks, progress=False, **arguments)


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
    task = _Task.of(model, data, threat, attacks, progress=progress, **arguments)
    expected, counterpart = Price.of(task.trial(progress), task.settings), task.counterpart(progress)
    return (
        expected
        if counterpart is None
        else expected.beside(Price.of(counterpart.trial(progress), counterpart.settings))
    )


@dataclass(frozen=True)
class _Task:
    """An evaluation with checked arguments."""

    classifier: PyTorchClassifier
    undefended: PyTorchClassifier | None
    x: Images
    labels: IntArray
    threat: Threat
    specs: tuple[AttackSpec, ...]
    settings: Settings
    command_options: dict[str, Any]
    listeners: Listeners
    spent: dict[str, Cost] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: PyTorchClassifier | nn.Module,
        data: Any,
        threat: Threat,
        attacks: str | Sequence[AttackSpec],
        *,
        progress: bool,
        listeners: Listeners | None = None,
        **arguments: Unpack[EvaluationArguments],
    ) -> _Task:
        """Check the arguments of :func:`evaluate`."""
        undefended, detector = arguments.pop("undefended", None), arguments.pop("detector", None)
        allow_large_eps, config = arguments.pop("allow_large_eps", False), arguments.pop("config", None)
        command_options = arguments.pop("command_options", {})
        x, y = images_and_labels(data)
        declared = {name: arguments.pop(name) for name in DECLARED if name in arguments}  # type: ignore[misc]
        classifier = differentiable(classifier_of(model, (x, y), declared))
        classifier = classifier if detector is None else _join_detector(classifier, detector)
        x = check_evaluated(x, classifier)
        labels = check_labels(y, nb_labels(classifier), len(x))
        check_threat(threat, classifier, x, allow_large_eps)
        if isinstance(undefended, nn.Module):
            undefended = as_classifier(undefended, (x, y), **declared)
        undefended = rebuild.undefended(classifier) if undefended is None else _check_undefended(undefended, classifier)
        specs = attacks_in(threat, attack_set(attacks, logits_behind(classifier)))
        named = attacks if isinstance(attacks, str) else [spec.name for spec in specs]
        settings = Settings.describing(threat, named, len(x), config_of(config, arguments))
        task = cls(
            classifier, undefended, x, labels, threat, specs, settings, command_options, listeners or Listeners()
        )
        task._probe(check_flag("progress", progress))
        return task

    def _probe(self, progress: bool) -> None:
        """Run networks and attacks on two images, to refuse early what cannot run, such as an unfitted detector."""
        x, labels = np.asarray(self.x[:PROBES]), self.labels[:PROBES]
        with self.evaluating(), seeded(self.settings.seed), progress_bar(progress) as bar:
            phases = Phases(bar, self.spent)
            with phases.phase(PREPARATION, self.classifier, steps=len(self.specs)) as announce:
                check_runs(self.classifier)
                _check_finite(self.classifier, self.x, self.settings.block_size)
                check_graph(self.specs, self.attacker.attacked, self.attacker.modes, x)
                suite = [run for run in self.plan if run.role == "suite"]
                probe_attacks(suite, self._work(None).target, x, labels, announce)
            if self.undefended is not None:
                with phases.phase(PREPARATION, self.undefended) as announce:
                    check_runs(self.undefended, "undefended")
                    suite = [run for run in suite if run.spec.crafted_on == "undefended"]
                    probe_attacks(suite, self._work(self.undefended).target, x, labels, announce)
            self.spent.update({PREPARATION: phases.taken(0)[0].cost})

    def _work(self, undefended: PyTorchClassifier | None, misled: bool = True, shown: Sequence[Example] = ()) -> Work:
        attacks = {example.attack for example in shown}
        return Work(
            self.attacker, undefended, self.plan, self.threat, self.settings, misled, attacks, self.listeners.attacked
        )

    def attack_blocks(self, store: RunDirectory, shard: Shard, progress: bool) -> None:
        """Attack the blocks of a shard that the store does not hold yet."""
        settings, x = self.settings, self.x
        with self.evaluating(), progress_bar(progress) as bar:
            phases = Phases(bar, self.spent)
            manifest = self._begin(store, shard, phases)
            self.listeners.begin(manifest.run)
            misled = bool(manifest.health) and not any(health.is_faithful for health in manifest.health)
            work = self._work(self.undefended, misled and settings.adaptive, store.examples)
            starts = shard.starts(settings.samples, settings.block_size)
            fresh = [start for start in starts if start not in store.done]
            for start, costs in self._attacked(work, "attacks", starts, store, phases):
                if progress and start == fresh[0]:
                    size = len(x[start : start + settings.block_size])
                    self._announce(Trial(manifest.plan, settings, start, size, costs), fresh[1:], bar)
            if shard.number == 1 and not store.has_findings:
                with phases.phase(BINARIZATION, self.classifier, steps=2 * work.nb_binarized) as announce:
                    findings = work.run_binarization(x, announce)
                store.finish(replace(findings, costs=phases.taken(0)))

    def _attacked(
        self, work: Work, title: str, starts: Sequence[int], store: RunDirectory, phases: Phases
    ) -> Iterator[tuple[int, list[CostRecord]]]:
        """Attack the blocks that begin at ``starts`` and that the store does not hold yet, and yield their costs."""
        task = phases.bar.add_task(title, total=len(work.plan) * len(starts), note="")
        for start in starts:
            if start in store.done:
                phases.bar.update(task, advance=len(work.plan))
                continue
            rows = slice(start, start + self.settings.block_size)
            step = partial(phases.bar.update, task, advance=1)
            yield start, work.block(start, np.asarray(self.x[rows]), self.labels[rows], step, store, phases)

    def make_rounds(self, store: RunDirectory, progress: bool, save_examples: str = "one") -> None:
        """Make the rounds of more effort after all blocks of a whole run."""
        manifest = store.manifest
        assert manifest is not None
        if save_examples == "all":
            self._join_rounds(store)
        while self._make_round(store.path, manifest, WHOLE, progress, save_examples, store.keeps):
            pass

    def share_rounds(self, path: Path, shard: Shard, progress: bool, save_examples: str) -> Path:
        """Make a shard of the next round of a merged run, and of that of its undefended model.

        Returns:
            The folder of the shard; ``path`` if no round follows.
        """
        folder = self._share_round(path, shard, progress, save_examples)
        counterpart = self.counterpart(progress)
        beside = counterpart and counterpart._share_round(path / UNDEFENDED, shard, progress, "one")
        return folder or beside or path

    def _share_round(self, path: Path, shard: Shard, progress: bool, save_examples: str) -> Path | None:
        held, manifest = read_manifest(path), self.manifest()
        check_continues(path, held, manifest)
        return self._make_round(path, held.continued_by(manifest), shard, progress, save_examples)

    def _make_round(
        self, path: Path, manifest: Manifest, shard: Shard, progress: bool, save_examples: str, keeps: bool = True
    ) -> Path | None:
        """Make a shard of the next round of more effort of the run in a folder.

        Returns:
            The folder of the shard; None if no round follows.
        """
        evidence = read_evidence(path, manifest, read_records(path))
        number = next_round(evidence)
        if number is None:
            return None
        plan = round_plan(number, self.attacker, self.threat, gains(evidence), repeated(evidence))
        of_round, folder = replace(manifest, plan=plan, shard=shard), round_folder(path, number)
        folder = folder if shard.is_whole else folder / shard.folder
        shown = [example for each in (path, *round_folders(path)) for example in read_kept_examples(each)]
        with (
            self.evaluating(),
            progress_bar(progress) as bar,
            RunDirectory(folder, keeps=keeps, save_examples=save_examples) as directory,
        ):
            directory.check_same(of_round)
            directory.begin(of_round)
            work = self._work(self.undefended, True, [*shown, *directory.examples])
            work.plan, work.before = plan, evidence
            starts = shard.starts(self.settings.samples, self.settings.block_size)
            for _ in self._attacked(work, f"round {number}", starts, directory, Phases(bar)):
                pass
            if shard.is_whole:
                directory.join_images(read_records(folder))
        return folder

    def _join_rounds(self, store: RunDirectory) -> None:
        """Join the images of finished rounds, of which an interruption may have left the last one's in blocks."""
        for folder in round_folders(store.path):
            records = read_records(folder)
            if len(records) == self.settings.samples:
                with RunDirectory(folder, keeps=store.keeps, save_examples="all") as directory:
                    directory.begin(read_manifest(folder))
                    directory.join_images(records)

    def counterpart(self, progress: bool) -> _Task | None:
        """Return the evaluation of the undefended model under the same named suite; None if it is not made.

        It has no paper's attacks and no curve.
        """
        attacks = self.settings.undefended_attacks
        if self.undefended is None or not attacks:
            return None
        config = replace(EvaluationConfig.part_of(self.settings), curve_samples=0, undefended_suite="papers")
        data = self.x, self.labels
        return _Task.of(
            self.undefended, data, self.threat, attacks, progress=progress, config=config, allow_large_eps=True
        )

    def _announce(self, trial: Trial, starts: Sequence[int], bar: Progress) -> None:
        """Print the expected cost of the remaining blocks, from that of the first, if they take long."""
        cost = trial.expected(self.settings, starts)
        if starts and cost.seconds >= LONG:
            bar.console.print(f"Expected after the first block: {in_words(cost)}.", highlight=False, soft_wrap=True)

    def trial(self, progress: bool) -> Trial:
        """Evaluate a few images, and return the cost."""
        block = self._first_block
        with self.evaluating(), seeded(self.settings.seed):
            softmax = predict(self.classifier, block).softmax
            rows = spread(softmax, self.labels[: len(block)], TRIAL)
            seconds_of_step = timed(self._work(None), block, self.labels, len(rows))
        config = EvaluationConfig.part_of(self.settings)
        settings = Settings.describing(self.threat, self.settings.attacks, len(rows), config)
        task = replace(
            self,
            x=block[rows],
            labels=self.labels[rows],
            settings=settings,
            listeners=Listeners(),
            spent=dict(self.spent),
        )
        with TemporaryDirectory() as folder, RunDirectory(folder, keeps=False) as store:
            task.attack_blocks(store, WHOLE, progress)
            costs = read_costs(folder) + read_findings(Path(folder)).costs
        return Trial(task.plan, settings, 0, len(rows), costs, seconds_of_step)

    def manifest(self) -> Manifest:
        """Return the manifest of the evaluation, and count the passes that it needs."""
        with self.evaluating(), progress_bar(False) as bar:
            phases = Phases(bar, {})
            with phases.phase(PREPARATION, self.classifier, self.undefended):
                return self._manifest(WHOLE)

    def evaluating(self) -> AbstractContextManager[None]:
        """Set the networks to evaluation mode inside the block."""
        classifiers = [self.classifier, *([] if self.undefended is None else [self.undefended])]
        return rebuild.evaluation_mode(*(classifier.model for classifier in classifiers))

    @cached_property
    def _first_block(self) -> FloatArray:
        return np.asarray(self.x[: self.settings.block_size])

    @cached_property
    def attacker(self) -> Attacker:
        """The models that the attacks see; the first block shows whether the classifier is random."""
        return Attacker.of(self.classifier, self._first_block, self.threat, self.settings.adaptive, self.settings.seed)

    @cached_property
    def plan(self) -> list[AttackRun]:
        """The runs of the attacks."""
        settings = self.settings
        return make_plan(
            self.specs,
            self.attacker,
            self.threat,
            with_curve=settings.curve_samples > 0,
            with_checks=settings.check_samples > 0,
            limit=hopeless(self.threat, self.classifier),
        )

    def _manifest(self, shard: Shard) -> Manifest:
        """Return the manifest, without the examination of gradients."""
        described = describe_run(self.attacker, self.undefended, self.settings, self.x, self.labels)
        run = replace(described, options=self.command_options)
        identity = identity_of(self.attacker, self.undefended, self._first_block, self.settings.seed)
        return Manifest(run, self.plan, [], shard, identity)

    def _health(self, phases: Phases) -> list[GradientHealth]:
        """Return the examination of the gradients in each mode; empty if no attack and no check needs it."""
        settings, attacker = self.settings, self.attacker
        smoothed = settings.adaptive and any(spec.crafted_on == "smoothed" for spec in self.specs)
        checked = settings.check_samples > 0 and any(
            spec.kind == "white-box" and spec.source == "suite" for spec in self.specs
        )
        if not smoothed and not checked:
            return []
        steps = nb_batches(len(self.x), len(attacker.modes))
        with phases.phase(GRADIENTS, self.classifier, steps=steps) as announce:
            return examine_gradients(
                attacker.attacked, self.x, self.labels, self.threat, attacker.modes, settings.seed, announce
            )

    def _begin(self, store: RunDirectory, shard: Shard, phases: Phases) -> Manifest:
        """Return the manifest, checked against that in the store."""
        with phases.phase(PREPARATION, self.classifier, self.undefended) as announce:
            announce("the run is described")
            manifest = self._manifest(shard)
        if store.manifest is None:
            health = self._health(phases)
        else:
            store.check_same(manifest)
            health = store.manifest.health
        manifest = replace(manifest, health=health)
        store.begin(manifest)
        return manifest


def classifier_of(model: Any, data: Any, declared: dict[str, Any]) -> Any:
    """Return a torch network as a classifier; return anything else unchanged."""
    if isinstance(model, nn.Module):
        return as_classifier(model, data, **declared)
    if declared:
        raise InputError(
            f"{' and '.join(declared)} given beside a {type(model).__name__}, which has its own; a torch network "
            "(nn.Module) was expected with them"
        )
    return model


def _join_detector(classifier: PyTorchClassifier, detector: BinaryInputDetector) -> PyTorchClassifier:
    """Return both as one classifier that rejects, without a change of the modes of their networks."""
    if rejects(classifier):
        raise InputError("detector was given, and classifier rejects by itself; one of both was expected")
    with rebuild.evaluation_mode(classifier.model):
        return rejecting(classifier, detector)


def _check_finite(classifier: PyTorchClassifier, x: Images, block_size: int) -> None:
    """Refuse a classifier without finite logits for any image of the first block.

    A classifier that cannot run at all, such as one with a detector that is not fitted, raises here.
    """
    for count in (1, block_size):
        classes = predict(classifier, np.asarray(x[:count])).classes
        if (classes != NO_CLASS).any():
            return
    raise InputError(
        f"classifier gives NaN or infinite logits for all of the first {len(classes)} images; finite ones were expected"
    )


def _check_undefended(undefended: Any, classifier: PyTorchClassifier) -> PyTorchClassifier:
    """Refuse a classifier with other images or classes than the defended one, or one that rejects."""
    undefended = differentiable(undefended, "undefended")
    if rejects(undefended):
        raise InputError("undefended rejects images; the classifier without its detector was expected")
    expected, actual = ((tuple(target.input_shape), nb_labels(target)) for target in (classifier, undefended))
    if actual != expected:
        raise InputError(
            f"undefended takes {actual[0]} to {actual[1]} classes; {expected[0]} to {expected[1]} was expected"
        )
    checked: PyTorchClassifier = undefended
    return checked
