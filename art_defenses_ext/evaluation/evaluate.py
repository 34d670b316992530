"""The evaluation of a defended classifier: every attack of a set, sample by sample, and what is left after all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from art.defences.detector.evasion import BinaryInputDetector
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext import rebuild
from art_defenses_ext.estimator.rejecting import rejecting, rejects
from art_defenses_ext.evaluation.attacker import Attacker
from art_defenses_ext.evaluation.attacks import AttackSpec, attack_set
from art_defenses_ext.evaluation.binarization import binarization_test
from art_defenses_ext.evaluation.checks import Check, Evidence, run_checks
from art_defenses_ext.evaluation.costs import measured
from art_defenses_ext.evaluation.gradient_health import GradientHealth, examine_gradients
from art_defenses_ext.evaluation.judge import Judgement, classes, judge, nb_labels, predict
from art_defenses_ext.evaluation.metrics import Scores, recorded
from art_defenses_ext.evaluation.plan import AttackRun, hopeless, make_plan
from art_defenses_ext.evaluation.records import CostRecord, Outcome, RunDirectory, SampleRecord, check_out
from art_defenses_ext.evaluation.report import Example, Report
from art_defenses_ext.evaluation.seeding import derived_seed, seeded
from art_defenses_ext.evaluation.settings import Settings, describe_run
from art_defenses_ext.evaluation.summary import summarise
from art_defenses_ext.evaluation.threats import L2, Linf, Threat
from art_defenses_ext.evaluation.views import with_views
from art_defenses_ext.gradient_mode import gradient_mode
from art_defenses_ext.pipeline import check_differentiable
from art_defenses_ext.progress import progress_bar
from art_defenses_ext.validation import (
    FloatArray,
    InputError,
    IntArray,
    check_count,
    check_images,
    check_labels,
    check_samples_of,
    check_seed,
)

NB_EXAMPLES = 8  # adversarial images kept for the report's pictures, one an attack
BINARIZED = 50  # images of the binarization test, at most: an attack each, one image at a time


def evaluate(
    classifier: PyTorchClassifier,
    x: FloatArray,
    y: Any,
    threat: Threat,
    attacks: str | Sequence[AttackSpec] = "standard",
    *,
    undefended: PyTorchClassifier | None = None,
    detector: BinaryInputDetector | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    block_size: int = 256,
    curve_samples: int = 200,
    check_samples: int = 100,
    adaptive: bool = True,
    progress: bool = True,
) -> Report:
    """Attack a classifier with everything in a set of attacks, and keep the worst case of each sample.

    A paper's attacks run on all samples, the ladder's on those that nothing broke before. Robust accuracy is the
    mean over samples of the minimum over attacks; it is called established only if the attacks pass their own checks
    (docs/checks.md). Preprocessors of other people are given a surrogate gradient, and a random defence is averaged
    over its randomness by the attacker and judged by a vote.

    With a detector, classifier and detector are attacked and judged as one network. A clean image is right if it is
    classified correctly and accepted; an attack succeeds if its image is misclassified and accepted.

    The samples are worked through in blocks; the seed of each attack is made from ``seed``, the attack's name and the
    block, so a block's records do not depend on the others. Only two things are found out beforehand for all blocks:
    whether the defence is random (from the first block) and whether its gradients mislead (from the first 100 images).

    Args:
        classifier: the classifier to attack, as :func:`defend` or :class:`JumpReLU` returned it, or a plain one.
        x: images (N, *input_shape), float32, in the clip range.
        y: true labels, indices (N,) or one-hot (N, nb_classes).
        threat: ``Linf(eps)`` or ``L2(eps)``.
        attacks: ``"papers"``, ``"standard"`` (the papers' and the ladder), ``"full"`` (and what takes longer), or a
            list of :class:`AttackSpec`.
        undefended: the classifier without defences, which transferred examples are made on; None for the one that
            our defences recorded. Without either, the rows that need it say "not run"; with a detector it is
            ``classifier`` then, or what that recorded.
        detector: what rejects images beside the classifier, see :func:`.rejecting`, such as
            :class:`.ExplanationReconstructor`; None for none, or where ``classifier`` rejects by itself.
        out: folder for records, costs, ``report.json``, ``report.html`` and pictures; None writes nothing.
        overwrite: replace an earlier run in ``out``.
        seed: of all randomness.
        block_size: consecutive samples attacked at a time; part of the result's identity.
        curve_samples: how many of the first samples serve the curve of accuracy against eps; 0 for no curve.
        check_samples: how many of the first samples the checks attack once more, with more steps and without a limit;
            0 for no checks.
        adaptive: False gives the attacker the exact gradient alone, without surrogates or averages: to see what that
            hides.
        progress: show a progress bar.

    Returns:
        The report: figures, per-sample records, costs.

    Raises:
        InputError: for anything unusable, before any work is done or file is written.
    """
    check_differentiable(classifier)
    classifier = classifier if detector is None else _joined(classifier, detector)
    x = check_images(x, classifier)
    labels = check_labels(y, nb_labels(classifier), len(x))
    if not isinstance(threat, Linf | L2):
        raise InputError(f"threat is {threat!r}; Linf(eps) or L2(eps) was expected")
    undefended = rebuild.undefended(classifier) if undefended is None else _check_undefended(undefended, classifier)
    specs = attack_set(attacks, classifier)
    check_count("block_size", block_size)
    check_seed(seed)
    check_samples_of("curve_samples", curve_samples)
    check_samples_of("check_samples", check_samples)
    if out is not None:
        check_out(out, overwrite)
    settings = Settings(
        threat=threat.norm_name,
        eps=threat.eps,
        attacks=attacks if isinstance(attacks, str) else [spec.name for spec in specs],
        samples=len(x),
        seed=seed,
        block_size=block_size,
        curve_samples=min(curve_samples, len(x)),
        check_samples=min(check_samples, len(x)),
        adaptive=adaptive,
    )
    starts = range(0, len(x), block_size)
    models = [one.model for one in (classifier, undefended) if one is not None]
    with rebuild.evaluation_mode(*models), progress_bar(progress) as bar:
        attacker = Attacker.of(classifier, x[:block_size], threat, adaptive, seed)
        health = examine_gradients(attacker.attacked, x, labels, threat, attacker.modes, seed)
        limit = hopeless(threat, classifier) if check_samples else None
        plan = make_plan(specs, attacker, threat, with_curve=curve_samples > 0, limit=limit)
        run = describe_run(attacker, settings, x, labels)
        directory = None if out is None else RunDirectory(out, overwrite)
        work = _Work(attacker, undefended, plan, threat, settings, misled=_misled(health) and adaptive)
        task = bar.add_task("attacks", total=len(plan) * len(starts), note="")
        for start in starts:
            rows = slice(start, start + block_size)
            records, costs = work.block(start, x[rows], labels[rows], lambda key: bar.update(task, advance=1, note=key))
            if directory is not None:
                directory.append(records, costs)
        checks, cost = work.check(health, x) if check_samples else ([], [])
        if directory is not None:
            directory.append([], cost)
        examples = with_views(classifier, work.examples)
    report = Report(summarise(run, plan, work.records, work.costs, checks), work.records, examples)
    if directory is not None:
        report.save(directory.path)
    return report


def _misled(health: list[GradientHealth]) -> bool:
    """Whether no gradient mode leads where it says."""
    return not any(one.is_faithful for one in health)


@dataclass(frozen=True)
class _Block:
    """Consecutive samples that are attacked together.

    Attributes:
        start: index of the first.
        x: clean images (n, ...).
        labels: true classes (n,).
        reference: the softmax lists (n, K) that all others are compared with.
        records: of each sample; the attacks' outcomes are noted there.
    """

    start: int
    x: FloatArray
    labels: IntArray
    reference: Scores
    records: list[SampleRecord]


class _Work:
    """The attacks of a plan, carried out block by block."""

    def __init__(
        self,
        attacker: Attacker,
        undefended: PyTorchClassifier | None,
        plan: list[AttackRun],
        threat: Threat,
        settings: Settings,
        misled: bool,
    ) -> None:
        self.attacker, self.classifier, self.undefended = attacker, attacker.classifier, undefended
        self.plan, self.threat, self.settings, self.misled = plan, threat, settings, misled
        self.records: list[SampleRecord] = []
        self.costs: list[CostRecord] = []
        self.examples: list[Example] = []

    def block(
        self, start: int, x: FloatArray, labels: IntArray, announce: Callable[[str], None]
    ) -> tuple[list[SampleRecord], list[CostRecord]]:
        """Attack the samples ``x`` (n, ...), which begin at index ``start``; returns and keeps their records."""
        block = self._clean(start, x, labels)
        costs = []
        for run in self.plan:
            announce(run.key)
            rows = self._rows(run, block.records)
            if len(rows):
                costs.append(self._attack(run, rows, block))
        self.records += block.records
        self.costs += costs
        return block.records, costs

    def _clean(self, start: int, x: FloatArray, labels: IntArray) -> _Block:
        """The block before any attack: what both classifiers say of the clean images."""
        clean = self._judge("clean", start, x, labels)
        plain = None if self.undefended is None else predict(self.undefended, x)
        reference = clean.softmax if plain is None else plain.softmax
        ndcgs, ranks = recorded(reference, clean.softmax, np.ones(len(x), dtype=np.bool_))
        records = [
            SampleRecord(
                index=start + i,
                label=int(labels[i]),
                clean=int(clean.classes[i]),
                undefended_clean=None if plain is None else int(plain.classes[i]),
                clean_misses=_clean_misses(clean, i),
                clean_ndcg=ndcgs[i],
                clean_reciprocal_rank=ranks[i],
                clean_rejected=None if clean.rejected is None else bool(clean.rejected[i]),
                clean_excess=_excess(clean, i),
            )
            for i in range(len(x))
        ]
        return _Block(start, x, labels, reference, records)

    def check(self, health: list[GradientHealth], x: FloatArray) -> tuple[list[Check], list[CostRecord]]:
        """The checks of the attacks that ran, after all blocks; the binarization test attacks some images more."""
        tries = [
            (run.spec.build, None if run.spec.crafted_on == "smoothed" else run.mode)
            for run in self.plan
            if run.role == "ladder"
            and run.spec.kind == "white-box"
            and (run.spec.crafted_on == "defended" or self.misled)
        ]
        images = x[: min(BINARIZED, self.settings.check_samples)]
        test, costs = None, []
        if tries and not rejects(self.classifier):
            with measured(self.classifier) as cost:
                test = binarization_test(self.attacker.attacked, images, self.threat, tries, self.settings.seed)
            costs = [CostRecord(0, "binarization", len(images), cost)]
        self.costs += costs
        return run_checks(Evidence(self.attacker, self.plan, self.records, self.settings, health, test)), costs

    def _judge(self, key: str, start: int, x: FloatArray, labels: IntArray) -> Judgement:
        seed = derived_seed(self.settings.seed, f"judge {key}", start)
        return judge(self.classifier, x, labels, self.attacker.votes, seed)

    def _rows(self, run: AttackRun, records: list[SampleRecord]) -> IntArray:
        """Which samples of the block the run attacks."""
        if self._target(run) is None:
            return np.array([], dtype=np.int64)
        chosen = range(len(records))
        if run.role != "ladder":
            first = self.settings.curve_samples if run.role == "curve" else self.settings.check_samples
            chosen = range(sum(record.index < first for record in records))
        if run.role == "effort" or (run.role == "ladder" and run.spec.samples == "survivors"):
            return np.array([i for i in chosen if records[i].robust()], dtype=np.int64)
        return np.array(chosen, dtype=np.int64)

    def _target(self, run: AttackRun) -> PyTorchClassifier | None:
        """The classifier that the attack is made on; None if there is none, or no need to."""
        if run.spec.crafted_on == "undefended":
            return self.undefended
        if run.spec.crafted_on == "smoothed":
            return self.attacker.smoothed if self.misled else None
        # What a paper ran is run as it was: without our surrogates and averages.
        return self.classifier if run.spec.source == "paper" else self.attacker.attacked

    def _attack(self, run: AttackRun, rows: IntArray, block: _Block) -> CostRecord:
        """Run one attack on some samples of a block, and note in their records what it did."""
        target = self._target(run)
        assert target is not None  # _rows left nothing to attack otherwise
        seed = derived_seed(self.settings.seed, run.key, block.start)
        x = block.x[rows]
        one_hot = np.eye(target.nb_classes, dtype=np.float32)[block.labels[rows]]
        given = None if run.spec.labels == "predicted" else one_hot
        mode = run.mode if run.spec.crafted_on == "defended" else "exact"
        # The network itself, whatever is wrapped around it.
        counted = target if run.spec.crafted_on == "undefended" else self.classifier
        forms = nullcontext() if run.spec.crafted_on == "smoothed" else gradient_mode(target, mode)
        with seeded(seed), forms, measured(counted) as cost:
            adversarial = run.spec.build(target, run.threat, seed).generate(x, given)
        adversarial, usable = _check_examples(adversarial, run.key, x, self.classifier)
        outcomes = self._outcomes(run, rows, block, adversarial, usable)
        for i, row in enumerate(rows):
            self._keep_example(block.records[row], run, outcomes[i], x[i], adversarial[i])
            block.records[row].attacks[run.key] = outcomes[i]
        return CostRecord(block.start, run.key, len(rows), cost)

    def _outcomes(
        self, run: AttackRun, rows: IntArray, block: _Block, adversarial: FloatArray, usable: npt.NDArray[np.bool_]
    ) -> list[Outcome]:
        """What the images that an attack made of some samples are worth."""
        labels = block.labels[rows]
        judged = self._judge(run.key, block.start, adversarial, labels)
        plain = None
        if run.spec.crafted_on == "undefended" and self.undefended is not None:
            plain = classes(self.undefended, adversarial)
        delta = (adversarial - block.x[rows]).reshape(len(rows), -1).astype(np.float64)
        sizes = {"linf": np.abs(delta).max(axis=1), "l2": np.linalg.norm(delta, axis=1)}
        broken = judged.broken(labels)
        inside = usable & np.array([self.threat.allows(float(size)) for size in sizes[self.threat.norm_name]])
        ndcgs, ranks = recorded(block.reference[rows], judged.softmax, inside)
        return [
            Outcome(
                prediction=int(judged.classes[i]),
                misclassified=bool(broken[i]),
                linf=round(float(sizes["linf"][i]), 7),
                l2=round(float(sizes["l2"][i]), 7),
                success=bool(broken[i] and inside[i]),
                usable=bool(usable[i]),
                undefended_prediction=None if plain is None else int(plain[i]),
                misses=None if judged.misses is None else int(judged.misses[i]),
                ndcg=ndcgs[i],
                reciprocal_rank=ranks[i],
                rejected=None if judged.rejected is None else bool(judged.rejected[i]),
                excess=_excess(judged, i),
            )
            for i in range(len(rows))
        ]

    def _keep_example(
        self, record: SampleRecord, run: AttackRun, outcome: Outcome, clean: FloatArray, adversarial: FloatArray
    ) -> None:
        new = run.key not in {example.attack for example in self.examples}
        if outcome.success and record.robust() and new and len(self.examples) < NB_EXAMPLES:
            self.examples.append(
                Example(record.index, record.label, outcome.prediction, run.key, clean.copy(), adversarial.copy())
            )


def _check_examples(
    adversarial: Any, key: str, x: FloatArray, classifier: PyTorchClassifier
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """What an attack returned, with the clean image where that is unusable, and which ones are usable (n,)."""
    if not isinstance(adversarial, np.ndarray):
        raise InputError(f"the attack {key!r} returned a {type(adversarial).__name__}; a numpy array was expected")
    if adversarial.shape != x.shape:
        raise InputError(f"the attack {key!r} returned shape {adversarial.shape}; {x.shape} was expected")
    adversarial = adversarial.astype(np.float32)
    inside = np.isfinite(adversarial)
    if classifier.clip_values is not None:
        low, high = classifier.clip_values
        inside &= (adversarial >= low) & (adversarial <= high)
    usable: npt.NDArray[np.bool_] = inside.reshape(len(x), -1).all(axis=1)
    return np.where(usable.reshape(-1, *[1] * (x.ndim - 1)), adversarial, x), usable


def _clean_misses(clean: Judgement, i: int) -> int | None:
    """In how many passes the label of a clean image was missed, or the image rejected."""
    if clean.misses is None:
        return None
    return int(clean.misses[i]) + (0 if clean.rejections is None else int(clean.rejections[i]))


def _excess(judged: Judgement, i: int) -> float | None:
    """The detector's excess as records keep it: as many digits as float32 has, so that its sign is kept."""
    if judged.excess is None or not np.isfinite(judged.excess[i]):
        return None
    return float(f"{judged.excess[i]:.7g}")


def _joined(classifier: PyTorchClassifier, detector: BinaryInputDetector) -> PyTorchClassifier:
    """Both as one classifier that rejects; the modes of their networks stay as they are."""
    if rejects(classifier):
        raise InputError("detector was given, and classifier rejects by itself; one of both was expected")
    with rebuild.evaluation_mode(classifier.model):
        return rejecting(classifier, detector)


def _check_undefended(undefended: Any, classifier: PyTorchClassifier) -> PyTorchClassifier:
    """Refuse a classifier that takes other images or knows other classes than the defended one, or that rejects."""
    check_differentiable(undefended, "undefended")
    if rejects(undefended):
        raise InputError("undefended rejects images; the classifier without its detector was expected")
    mine, others = ((one.input_shape, nb_labels(one)) for one in (classifier, undefended))
    if mine != others:
        raise InputError(f"undefended takes {others[0]} to {others[1]} classes; {mine[0]} to {mine[1]} was expected")
    return undefended
