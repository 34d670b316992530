"""The attacks of a plan, run on one block of samples after the other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.attack.by_class import ByClass
from art_defenses_ext.base.arrays import FloatArray, Images, IntArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import for_terminal
from art_defenses_ext.base.validation import one_line, within_clip_values
from art_defenses_ext.estimator.bridged import logits_behind
from art_defenses_ext.estimator.rejecting import rejects
from art_defenses_ext.evaluation.checks.binarization import binarization_test
from art_defenses_ext.evaluation.checks.checks import Evidence
from art_defenses_ext.evaluation.checks.rounds import white_box
from art_defenses_ext.evaluation.records.costs import Cost, measured
from art_defenses_ext.evaluation.records.description import Settings
from art_defenses_ext.evaluation.records.examples import NB_EXAMPLES, Example
from art_defenses_ext.evaluation.records.metrics import Scores, recorded
from art_defenses_ext.evaluation.records.phases import PICTURES, PREDICTIONS, Phases
from art_defenses_ext.evaluation.records.sample import RECORDED, Attempt, CostRecord, Outcome, SampleRecord, image_hash
from art_defenses_ext.evaluation.run.defence_views import with_views
from art_defenses_ext.evaluation.run.folder import Block, Findings, RunDirectory
from art_defenses_ext.evaluation.suite.attacker import Attacker, for_any_attack
from art_defenses_ext.evaluation.suite.plan import AttackRun
from art_defenses_ext.evaluation.suite.predictions import Prediction, predict
from art_defenses_ext.evaluation.suite.seeding import derived_seed, seeded
from art_defenses_ext.evaluation.suite.vote import predict_by_votes
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.gradients.modes import gradient_mode

LOG = logging.getLogger(__name__)

SIZE_DIGITS = 9
"""Significant digits of a perturbation's size in the records. Nine digits distinguish all numbers of float32."""

BINARIZED = 50  # maximum number of images of the binarization test, which takes a thousand points and a fit for each


@dataclass(frozen=True)
class Attacked:
    """The counts of one attack on one block of images.

    Attributes:
        attack: key of the attack.
        start: index of the block's first image.
        images: number of images in the block.
        attacked: number of images that were attacked.
        broken: number of attacked images that were broken inside the ball.
        robust: number of images of the block that no attack has broken yet.
        cost: cost of the attack.
    """

    attack: str
    start: int
    images: int
    attacked: int
    broken: int
    robust: int
    cost: Cost


@dataclass(frozen=True)
class _Block:
    """Consecutive samples that are attacked together.

    Attributes:
        start: index of the first sample.
        x: clean images (n, ...).
        labels: true classes (n,).
        reference: probabilities (n, K) with which the rankings of other predictions are compared.
        records: record of each sample, to which the outcomes of the attacks are added.
        examples: attacked images for the report.
    """

    start: int
    x: FloatArray
    labels: IntArray
    reference: Scores
    records: list[SampleRecord]
    examples: list[Example] = field(default_factory=list)

    def note(self, attempt: Attempt, example: Example | None) -> None:
        """Add the outcomes of an attack to the samples' records, and its image to the examples."""
        for row, outcome in zip(attempt.rows, attempt.outcomes, strict=True):
            self.records[row].attacks[attempt.cost.attack] = outcome
        if example is not None:
            self.examples.append(example)

    def after(self, attempt: Attempt) -> Attacked:
        """Return the counts of an attack whose outcomes are in the records."""
        broken = sum(outcome.success for outcome in attempt.outcomes)
        robust = sum(record.robust() for record in self.records)
        counts = (len(self.records), len(attempt.rows), broken, robust)
        return Attacked(attempt.cost.attack, self.start, *counts, attempt.cost.cost)


@dataclass
class Work:
    """The attacks of a plan, run block by block.

    Attributes:
        attacker: the models that the attacks see.
        undefended: the classifier without defences, if there is one.
        plan: the runs of the attacks.
        threat: the ball in which an attack succeeds.
        settings: settings of the evaluation.
        misled: whether the gradient is misleading in every gradient mode.
        shown: keys of the attacks that have an example already.
        listen: called with the counts of each attack after they are written.
        before: of a round of more effort, the evidence of the attacks before it; None for the run's own attacks.
    """

    attacker: Attacker
    undefended: PyTorchClassifier | None
    plan: list[AttackRun]
    threat: Threat
    settings: Settings
    misled: bool
    shown: set[str] = field(default_factory=set)
    listen: Callable[[Attacked], None] = field(default_factory=lambda: lambda _: None)
    before: Evidence | None = None
    _predictions: Cost = field(default_factory=Cost)

    @property
    def classifier(self) -> PyTorchClassifier:
        """The defended classifier, whose predictions count."""
        return self.attacker.classifier

    def block(
        self,
        start: int,
        x: FloatArray,
        labels: IntArray,
        announce: Callable[..., None],
        store: RunDirectory,
        phases: Phases,
    ) -> list[CostRecord]:
        """Attack the samples ``x`` (n, ...), which begin at index ``start``, and write the block to the store.

        Attacks that the store already holds for the block are not run again. Each new attack is written at its end.

        Returns:
            The costs of the block.
        """
        with blamed("the classifier, on clean images,", start, store.keeps):
            block, predictions = self.clean(start, x, labels)
        self._join_before(block)
        earlier, costs = store.attempts(start), []
        for run in self.plan:
            announce(note=run.key)
            rows = self._rows(run, block.records)
            if not len(rows):
                continue
            attempt, example = earlier.get(run.key, (None, None))
            if attempt is None or attempt.rows != rows.tolist():
                with blamed(f"the attack {run.key!r}", start, store.keeps):
                    attempt, example, adversarial = self._attack(run, rows, block)
                store.note(attempt, example, adversarial)
            block.note(attempt, example)
            self.listen(block.after(attempt))
            self.shown |= set() if example is None else {run.key}
            costs.append(attempt.cost)
            predictions = predictions + attempt.predictions
        phases.count(PREDICTIONS, predictions)
        views = derived_seed(self.settings.seed, "views", start)
        drawing = blamed("a defence, asked for the report's pictures,", start, store.keeps)
        with drawing, phases.phase(PICTURES, self.classifier), seeded(views):
            examples = with_views(self.classifier, block.examples)
        costs = phases.taken(start) + costs
        store.append(Block.of(self._own(block.records)), costs, examples)
        return costs

    def _join_before(self, block: _Block) -> None:
        """Add the outcomes of the attacks before this round to the records of a block."""
        if self.before is not None:
            for record in block.records:
                record.attacks |= self.before.records[record.index].attacks

    def _own(self, records: list[SampleRecord]) -> list[SampleRecord]:
        """Return records with the outcomes of these attacks alone."""
        keys = {run.key for run in self.plan}
        return [
            replace(record, attacks={key: outcome for key, outcome in record.attacks.items() if key in keys})
            for record in records
        ]

    @cached_property
    def _white_box(self) -> set[str]:
        """The keys of white-box attacks, of this round and of all before it."""
        return white_box([*([] if self.before is None else self.before.plan), *self.plan])

    @property
    def _sharing(self) -> int:
        """The number of attacks that share the rate of false successes; all rounds may err as often as the suite."""
        return len(self.plan) * (1 if self.before is None else 2 ** (len(self.before.rounds) + 1))

    def clean(self, start: int, x: FloatArray, labels: IntArray) -> tuple[_Block, Cost]:
        """Return the block before any attack, with the predictions of its clean images, and their cost."""
        self._predictions = Cost()
        clean = self._predict("clean", start, x, labels, None)
        undefended = None if self.undefended is None else self._predict_undefended(self.undefended, x)
        reference = clean.softmax if undefended is None else undefended.softmax
        ndcgs, ranks = recorded(reference, clean.softmax, np.ones(len(x), dtype=np.bool_))
        records = [
            SampleRecord(
                index=start + i,
                label=int(labels[i]),
                clean=int(clean.classes[i]),
                undefended_clean=None if undefended is None else int(undefended.classes[i]),
                clean_misses=_clean_misses(clean.misses, clean.rejections, i),
                clean_ndcg=ndcgs[i],
                clean_reciprocal_rank=ranks[i],
                clean_rejected=None if clean.rejected is None else bool(clean.rejected[i]),
                clean_detection_margin=_margin(clean, i),
                image=image_hash(x[i]),
                clean_first_misses=_clean_misses(clean.first_misses, clean.first_rejections, i),
            )
            for i in range(len(x))
        ]
        return _Block(start, x, labels, reference, records), self._predictions

    @property
    def nb_binarized(self) -> int:
        """The maximum number of images of the binarization test."""
        return min(BINARIZED, self.settings.check_samples)

    def run_binarization(self, x: Images, announce: Callable[[str], None]) -> Findings:
        """Run the binarization test on the first of all images ``x`` (N, ...)."""
        tries = [
            (run.spec.attack_on, None if run.spec.crafted_on == "smoothed" else run.mode)
            for run in self.plan
            if run.role == "suite"
            and run.spec.kind == "white-box"
            and (run.spec.crafted_on == "defended" or self.misled)
        ]
        if not tries or rejects(self.classifier) or not self.settings.check_samples:
            return Findings()
        settings = self.settings
        images = np.asarray(x[: self.nb_binarized])
        return Findings(
            binarization_test(
                self.attacker.attacked, images, self.threat, tries, settings.seed, settings.block_size, announce
            )
        )

    def _predict(self, key: str, start: int, x: FloatArray, labels: IntArray, attacks: int | None) -> Prediction:
        seed = derived_seed(self.settings.seed, f"judge {key}", start)
        with measured(self.classifier) as cost:
            prediction = predict_by_votes(self.classifier, x, labels, self.attacker.votes, seed, attacks)
        self._predictions = self._predictions + cost
        return prediction

    def _predict_undefended(self, undefended: PyTorchClassifier, x: FloatArray) -> Prediction:
        with measured(undefended) as cost:
            prediction = predict(undefended, x)
        self._predictions = self._predictions + cost
        return prediction

    def _rows(self, run: AttackRun, records: list[SampleRecord]) -> IntArray:
        """Return the places (m,) of the samples of the block that the run attacks."""
        if self.target(run) is None:
            return np.array([], dtype=np.int64)
        chosen: Sequence[int] = range(len(records))
        if run.role not in ("suite", "round"):
            first = self.settings.curve_samples if run.role == "curve" else self.settings.check_samples
            chosen = range(sum(record.index < first for record in records))
        if run.role == "round" and run.spec.kind == "white-box":
            chosen = [i for i in chosen if records[i].robust(self._white_box)]
        elif run.role in ("effort", "round") or (run.role == "suite" and run.spec.samples != "all"):
            chosen = [i for i in chosen if records[i].robust()]
        return np.array(chosen[: run.most(len(chosen))], dtype=np.int64)

    def target(self, run: AttackRun) -> PyTorchClassifier | None:
        """Return the classifier that the attack is made on; None if it does not exist or the attack need not run."""
        if run.spec.crafted_on == "undefended":
            return None if self.undefended is None else for_any_attack(logits_behind(self.undefended))
        if run.spec.crafted_on == "smoothed":
            return self.attacker.smoothed if self.misled else None
        # A paper's attack runs as in the paper: without our surrogates and averages.
        return for_any_attack(logits_behind(self.classifier)) if run.spec.source == "paper" else self.attacker.attacked

    def _attack(self, run: AttackRun, rows: IntArray, block: _Block) -> tuple[Attempt, Example | None, FloatArray]:
        """Run one attack on some samples of a block; return its outcomes, an image for the report and all images."""
        target = self.target(run)
        assert target is not None  # without a target _rows is empty
        seed = derived_seed(self.settings.seed, run.key, block.start)
        x = block.x[rows]
        one_hot = np.eye(target.nb_classes, dtype=np.float32)[block.labels[rows]]
        y = None if run.spec.labels == "predicted" else one_hot
        mode = run.mode if run.spec.crafted_on == "defended" else "exact"
        # The passes of the network itself are counted, whatever wraps it.
        counted = target if run.spec.crafted_on == "undefended" else self.classifier
        forms = nullcontext() if run.spec.crafted_on == "smoothed" else gradient_mode(target, mode)
        with seeded(seed), forms, measured(counted) as cost:
            adversarial = _build(run, target, seed).generate(x, y)
        adversarial, usable = _check_examples(adversarial, run.key, x, self.classifier)
        self._predictions = Cost()
        outcomes = self.outcomes(run, rows, block, adversarial, usable)
        example = self._example(run, rows, block, outcomes, adversarial)
        successes = sum(outcome.success for outcome in outcomes)
        message = "images from %d on: %s succeeds on %d of %d, in %.1f s"
        LOG.info(message, block.start, for_terminal(run.key), successes, len(rows), cost.seconds)
        spent = CostRecord(block.start, run.key, len(rows), cost)
        pictured = None if example is None else example.index
        return Attempt(spent, rows.tolist(), outcomes, pictured, self._predictions), example, adversarial

    def outcomes(
        self, run: AttackRun, rows: IntArray, block: _Block, adversarial: FloatArray, usable: npt.NDArray[np.bool_]
    ) -> list[Outcome]:
        """Return the outcomes of the images that an attack made of some samples."""
        labels = block.labels[rows]
        prediction = self._predict(run.key, block.start, adversarial, labels, self._sharing)
        undefended = None
        if run.spec.crafted_on == "undefended" and self.undefended is not None:
            undefended = self._predict_undefended(self.undefended, adversarial).classes
        sizes = self._sizes(run, block.x[rows], adversarial)
        broken = prediction.broken(labels)
        inside = usable & np.array([self.threat.allows(size) for size in sizes[self.threat.norm_name]])
        other_norm = None if type(self.threat) in RECORDED else sizes[self.threat.norm_name]
        ndcgs, ranks = recorded(block.reference[rows], prediction.softmax, inside)
        return [
            Outcome(
                prediction=int(prediction.classes[i]),
                misclassified=bool(broken[i]),
                linf=sizes["linf"][i],
                l2=sizes["l2"][i],
                success=bool(broken[i] and inside[i]),
                usable=bool(usable[i]),
                undefended_prediction=None if undefended is None else int(undefended[i]),
                misses=None if prediction.misses is None else int(prediction.misses[i]),
                ndcg=ndcgs[i],
                reciprocal_rank=ranks[i],
                rejected=None if prediction.rejected is None else bool(prediction.rejected[i]),
                detection_margin=_margin(prediction, i),
                first_misses=None if prediction.first_misses is None else int(prediction.first_misses[i]),
                passes=None if prediction.passes is None else int(prediction.passes[i]),
                undecided=None if prediction.undecided is None else bool(prediction.undecided[i]),
                size=None if other_norm is None else other_norm[i],
            )
            for i in range(len(rows))
        ]

    def _sizes(self, run: AttackRun, x: FloatArray, adversarial: FloatArray) -> dict[str, list[float]]:
        """Return the rounded sizes (n,) of changes of images (n, ...) by norm; the run's ball measures its own norm."""
        delta = adversarial.astype(np.float64) - x
        sizes_of = {ball.norm_name: ball.exact_sizes(delta) for ball in RECORDED}
        sizes_of[run.threat.norm_name] = run.threat.sizes(x, adversarial, self.classifier.clip_values)
        return {name: [float(f"{size:.{SIZE_DIGITS}g}") for size in sizes] for name, sizes in sizes_of.items()}

    def _example(
        self, run: AttackRun, rows: IntArray, block: _Block, outcomes: list[Outcome], adversarial: FloatArray
    ) -> Example | None:
        """Return the first image that this attack was the first to break; None if the attack has an example already."""
        if run.key in self.shown or len(self.shown) >= NB_EXAMPLES:
            return None
        for row, outcome, attacked in zip(rows, outcomes, adversarial, strict=True):
            record = block.records[row]
            if outcome.success and record.robust():
                clean = block.x[row].copy()
                return Example(record.index, record.label, outcome.prediction, run.key, clean, attacked.copy())
        return None


def _build(run: AttackRun, target: PyTorchClassifier, seed: int) -> EvasionAttack:
    """Return the attack.

    On a classifier that rejects, ART's attacks run class by class, or they would stop at the class "rejected".
    """
    attack = run.spec.attack_on(target, run.threat, seed)
    of_art = type(attack).__module__.startswith("art.")
    if not (of_art and rejects(target)) or attack.targeted:
        return attack
    return ByClass(target, lambda view: run.spec.attack_on(view, run.threat, seed))


@contextmanager
def blamed(part: str, start: int, keeps: bool) -> Iterator[None]:
    """Turn an exception into an error that names the part of the run that failed, the block, and what is kept.

    Args:
        part: the part of the run, such as ``"the attack 'FGSM'"``.
        start: index of the block's first sample.
        keeps: whether the run is written to a folder.

    Raises:
        InputError: for any exception inside, which is its cause.
    """
    try:
        yield
    except Exception as error:  # a user's network, defence or attack may raise anything
        kept = (
            "the finished attacks are kept, and the same command continues the run"
            if keeps
            else "with out= the finished attacks would be kept"
        )
        reason = str(error) if isinstance(error, InputError) else one_line(error)
        raise InputError(f"{part} failed in the block from sample {start} on ({reason}); {kept}") from error


def _check_examples(
    adversarial: Any, key: str, x: FloatArray, classifier: PyTorchClassifier
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Return an attack's images (n, ...), the clean image in place of unusable ones, and which are usable (n,)."""
    if not isinstance(adversarial, np.ndarray):
        raise InputError(f"the attack {key!r} returned a {type(adversarial).__name__}; a numpy array was expected")
    if adversarial.shape != x.shape:
        raise InputError(f"the attack {key!r} returned shape {adversarial.shape}; {x.shape} was expected")
    adversarial, usable = within_clip_values(adversarial.astype(np.float32), classifier.clip_values)
    return np.where(usable.reshape(-1, *[1] * (x.ndim - 1)), adversarial, x), usable


def _clean_misses(misses: IntArray | None, rejections: IntArray | None, i: int) -> int | None:
    """Return the number of passes in which a clean image was misclassified or rejected."""
    if misses is None:
        return None
    return int(misses[i]) + (0 if rejections is None else int(rejections[i]))


def _margin(prediction: Prediction, i: int) -> float | None:
    """Return the detector's margin for the records, with the digits of float32, so that its sign is kept."""
    if prediction.detection_margin is None or not np.isfinite(prediction.detection_margin[i]):
        return None
    return float(f"{prediction.detection_margin[i]:.7g}")
