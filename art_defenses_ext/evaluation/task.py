"""One evaluation with checked arguments: its networks, its blocks and its rounds of more effort."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
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
from art_defenses_ext.base.validation import check_evaluated, check_flag, check_labels
from art_defenses_ext.estimator import rebuild
from art_defenses_ext.estimator.bridged import differentiable, logits_behind
from art_defenses_ext.estimator.pipeline import PROBES, check_runs
from art_defenses_ext.estimator.rejecting import rejecting, rejects
from art_defenses_ext.estimator.wrap import as_classifier
from art_defenses_ext.evaluation.callbacks import Listeners
from art_defenses_ext.evaluation.checks.gradient_health import GradientHealth, examine_gradients, nb_batches
from art_defenses_ext.evaluation.config import EvaluationConfig, EvaluationOptions, config_of
from art_defenses_ext.evaluation.records.costs import Cost
from art_defenses_ext.evaluation.records.description import Settings
from art_defenses_ext.evaluation.records.examples import Example
from art_defenses_ext.evaluation.records.phases import BINARIZATION, GRADIENTS, PREPARATION, Phases
from art_defenses_ext.evaluation.records.sample import CostRecord
from art_defenses_ext.evaluation.results.price import Trial, in_words
from art_defenses_ext.evaluation.run.all_images import AllImages
from art_defenses_ext.evaluation.run.block import Work
from art_defenses_ext.evaluation.run.describe import describe_run
from art_defenses_ext.evaluation.run.folder import (
    UNDEFENDED,
    RunDirectory,
    check_continues,
    note_effort,
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

DECLARED = ("mean", "std", "clip_values", "outputs")
"""Arguments for a torch network; a classifier has its own."""


class AttackArguments(EvaluationOptions, total=False):
    """The arguments of :func:`.evaluate` on how a network is attacked.

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
    """The arguments of :func:`.evaluate` on the detector and the command, and those of :class:`AttackArguments`.

    Attributes:
        detector: a detector that rejects images, such as :class:`.ExplanationReconstructor`, see :func:`.rejecting`;
            None for none, or if ``model`` rejects by itself.
        command_options: the options of the command that makes this run, by name, with which ``art-defenses rerun``
            repeats it.
    """

    detector: BinaryInputDetector | None
    command_options: dict[str, Any]


@dataclass(frozen=True)
class Task:
    """An evaluation with checked arguments.

    Attributes:
        classifier: the classifier to attack, with its detector.
        undefended: the classifier without defences, if it is known.
        x: the images (N, ...).
        labels: their true classes (N,).
        threat: the ball.
        specs: the attacks.
        settings: the settings, as the manifest holds them.
        command_options: the options of the command that made the evaluation.
        listeners: those who are told of its events.
        spent: the cost of its preparation so far, by phase.
    """

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
    ) -> Task:
        """Check the arguments of :func:`.evaluate`."""
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
        if save_examples == "all":
            starts = WHOLE.starts(self.settings.samples, self.settings.block_size)
            AllImages(path, held).check_complete(starts)
        folder = self._make_round(path, held.continued_by(manifest), shard, progress, save_examples)
        if folder is None:
            note_effort(path, manifest)
        return folder

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

    def counterpart(self, progress: bool) -> Task | None:
        """Return the evaluation of the undefended model under the same named suite; None if it is not made.

        It has no paper's attacks and no curve.
        """
        attacks = self.settings.undefended_attacks
        if self.undefended is None or not attacks:
            return None
        config = replace(EvaluationConfig.part_of(self.settings), curve_samples=0, undefended_suite="papers")
        data = self.x, self.labels
        return Task.of(
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
