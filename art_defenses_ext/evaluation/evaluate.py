"""The evaluation of a defended classifier: every attack of a set, sample by sample, and what is left after all."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext import rebuild
from art_defenses_ext.estimator.defend import as_module, check_differentiable
from art_defenses_ext.evaluation.attacks import AttackSpec, attack_set
from art_defenses_ext.evaluation.costs import measured
from art_defenses_ext.evaluation.plan import AttackRun, make_plan
from art_defenses_ext.evaluation.records import CostRecord, Outcome, RunDirectory, SampleRecord, check_out
from art_defenses_ext.evaluation.report import Example, Report
from art_defenses_ext.evaluation.settings import Settings, describe_run
from art_defenses_ext.evaluation.summary import summarise
from art_defenses_ext.evaluation.threats import L2, Linf, Threat
from art_defenses_ext.gradient_mode import gradient_mode
from art_defenses_ext.progress import progress_bar
from art_defenses_ext.validation import (
    FloatArray,
    InputError,
    IntArray,
    check_count,
    check_images,
    check_labels,
    check_seed,
)

NB_EXAMPLES = 8  # adversarial images kept for the report's pictures, one an attack


def evaluate(
    classifier: PyTorchClassifier,
    x: FloatArray,
    y: Any,
    threat: Threat,
    attacks: str | Sequence[AttackSpec] = "standard",
    *,
    undefended: PyTorchClassifier | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    block_size: int = 256,
    curve_samples: int = 200,
    progress: bool = True,
) -> Report:
    """Attack a classifier with everything in a set of attacks, and keep the worst case of each sample.

    A paper's attacks run on all samples, the ladder's on those that nothing broke before. Robust accuracy is the
    mean over samples of the minimum over attacks. The samples are worked through in blocks; the seed of each attack
    is made from ``seed``, the attack's name and the block, so a block's records do not depend on the others.

    Args:
        classifier: the classifier to attack, as :func:`defend` or :class:`JumpReLU` returned it, or a plain one.
        x: images (N, *input_shape), float32, in the clip range.
        y: true labels, indices (N,) or one-hot (N, nb_classes).
        threat: ``Linf(eps)`` or ``L2(eps)``.
        attacks: ``"papers"``, ``"standard"`` (the papers' and the ladder), or a list of :class:`AttackSpec`.
        undefended: the classifier without defences, which transferred examples are made on; None for the one that
            our defences recorded. Without either, the rows that need it say "not run".
        out: folder for records, costs, ``report.json``, ``report.html`` and pictures; None writes nothing.
        overwrite: replace an earlier run in ``out``.
        seed: of all randomness.
        block_size: consecutive samples attacked at a time; part of the result's identity.
        curve_samples: how many of the first samples serve the curve of accuracy against eps; 0 for no curve.
        progress: show a progress bar.

    Returns:
        The report: figures, per-sample records, costs.

    Raises:
        InputError: for anything unusable, before any work is done or file is written.
    """
    check_differentiable(classifier)
    x = check_images(x, classifier)
    labels = check_labels(y, classifier.nb_classes, len(x))
    if not isinstance(threat, Linf | L2):
        raise InputError(f"threat is {threat!r}; Linf(eps) or L2(eps) was expected")
    undefended = rebuild.undefended(classifier) if undefended is None else _check_undefended(undefended, classifier)
    specs = attack_set(attacks, classifier)
    check_count("block_size", block_size)
    check_seed(seed)
    if isinstance(curve_samples, bool) or not isinstance(curve_samples, int) or curve_samples < 0:
        raise InputError(f"curve_samples is {curve_samples!r}; a whole number >= 0 was expected")
    if out is not None:
        check_out(out, overwrite)
    plan = make_plan(specs, classifier, threat, with_curve=curve_samples > 0)
    settings = Settings(
        threat=threat.norm_name,
        eps=threat.eps,
        attacks=attacks if isinstance(attacks, str) else [spec.name for spec in specs],
        samples=len(x),
        seed=seed,
        block_size=block_size,
        curve_samples=min(curve_samples, len(x)),
    )
    run = describe_run(classifier, settings, x, labels)
    directory = None if out is None else RunDirectory(out, overwrite)

    work = _Work(classifier, undefended, plan, threat, seed, settings.curve_samples)
    starts = range(0, len(x), block_size)
    models = [one.model for one in (classifier, undefended) if one is not None]
    with rebuild.evaluation_mode(*models), progress_bar(progress) as bar:
        task = bar.add_task("attacks", total=len(plan) * len(starts), note="")
        for start in starts:
            rows = slice(start, start + block_size)
            records, costs = work.block(start, x[rows], labels[rows], lambda key: bar.update(task, advance=1, note=key))
            if directory is not None:
                directory.append(records, costs)
    report = Report(summarise(run, plan, work.records, work.costs), work.records, work.examples)
    if directory is not None:
        report.save(directory.path)
    return report


class _Work:
    """The attacks of a plan, carried out block by block."""

    def __init__(
        self,
        classifier: PyTorchClassifier,
        undefended: PyTorchClassifier | None,
        plan: list[AttackRun],
        threat: Threat,
        seed: int,
        curve_samples: int,
    ) -> None:
        self.classifier, self.undefended = classifier, undefended
        self.plan, self.threat, self.seed, self.curve_samples = plan, threat, seed, curve_samples
        self.records: list[SampleRecord] = []
        self.costs: list[CostRecord] = []
        self.examples: list[Example] = []

    def block(
        self, start: int, x: FloatArray, labels: IntArray, announce: Callable[[str], None]
    ) -> tuple[list[SampleRecord], list[CostRecord]]:
        """Attack the samples ``x`` (n, ...), which begin at index ``start``; returns and keeps their records."""
        clean = classes(self.classifier, x)
        plain = None if self.undefended is None else classes(self.undefended, x)
        records = [
            SampleRecord(start + i, int(labels[i]), int(clean[i]), None if plain is None else int(plain[i]))
            for i in range(len(x))
        ]
        costs = []
        for run in self.plan:
            announce(run.key)
            rows = self._rows(run, records)
            if len(rows):
                costs.append(self._attack(run, start, rows, x, labels, records))
        self.records += records
        self.costs += costs
        return records, costs

    def _rows(self, run: AttackRun, records: list[SampleRecord]) -> IntArray:
        """Which samples of the block the run attacks."""
        if run.spec.crafted_on == "undefended" and self.undefended is None:
            return np.array([], dtype=np.int64)
        if run.curve:
            chosen = [i for i, record in enumerate(records) if record.index < self.curve_samples]
        elif run.spec.samples == "all":
            chosen = list(range(len(records)))
        else:
            chosen = [i for i, record in enumerate(records) if record.robust()]
        return np.array(chosen, dtype=np.int64)

    def _attack(
        self, run: AttackRun, start: int, rows: IntArray, x: FloatArray, labels: IntArray, records: list[SampleRecord]
    ) -> CostRecord:
        """Run one attack on some samples of a block, and note in their records what it did."""
        transferred = run.spec.crafted_on == "undefended"
        target = self.undefended if transferred else self.classifier
        assert target is not None  # _rows left nothing to attack otherwise
        seed = derived_seed(self.seed, run.key, start)
        one_hot = np.eye(target.nb_classes, dtype=np.float32)[labels[rows]]
        mode = "exact" if transferred else run.mode
        with seeded(seed), gradient_mode(target, mode), measured(target) as cost:
            adversarial = run.spec.build(target, run.threat, seed).generate(x[rows], one_hot)
        adversarial, usable = _check_examples(adversarial, run.key, x[rows], self.classifier)
        predicted = classes(self.classifier, adversarial)
        plain = classes(target, adversarial) if transferred else None
        delta = (adversarial - x[rows]).reshape(len(rows), -1).astype(np.float64)
        sizes = {"linf": np.abs(delta).max(axis=1), "l2": np.linalg.norm(delta, axis=1)}
        for i, row in enumerate(rows):
            record = records[row]
            missed = bool(predicted[i] != record.label)
            outcome = Outcome(
                prediction=int(predicted[i]),
                misclassified=missed,
                linf=round(float(sizes["linf"][i]), 7),
                l2=round(float(sizes["l2"][i]), 7),
                success=bool(usable[i]) and missed and self.threat.allows(float(sizes[self.threat.norm_name][i])),
                usable=bool(usable[i]),
                undefended_prediction=None if plain is None else int(plain[i]),
            )
            self._keep_example(record, run, outcome, x[row], adversarial[i])
            record.attacks[run.key] = outcome
        return CostRecord(start, run.key, len(rows), cost)

    def _keep_example(
        self, record: SampleRecord, run: AttackRun, outcome: Outcome, clean: FloatArray, adversarial: FloatArray
    ) -> None:
        new = run.key not in {example.attack for example in self.examples}
        if outcome.success and record.robust() and new and len(self.examples) < NB_EXAMPLES:
            self.examples.append(
                Example(record.index, record.label, outcome.prediction, run.key, clean.copy(), adversarial.copy())
            )


def classes(classifier: PyTorchClassifier, x: FloatArray, batch_size: int = 256) -> IntArray:
    """Predicted classes (N,) of images (N, ...), by the same path that attacks differentiate."""
    module = as_module(classifier)
    batches = torch.tensor(x).split(batch_size)
    with torch.no_grad():
        found = [module(batch.to(classifier.device)).argmax(dim=1).cpu() for batch in batches]
    predicted: IntArray = torch.cat(found).numpy()
    return predicted


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


def _check_undefended(undefended: Any, classifier: PyTorchClassifier) -> PyTorchClassifier:
    """Refuse a classifier that takes other images or knows other classes than the defended one."""
    check_differentiable(undefended, "undefended")
    mine, others = ((one.input_shape, one.nb_classes) for one in (classifier, undefended))
    if mine != others:
        raise InputError(f"undefended takes {others[0]} to {others[1]} classes; {mine[0]} to {mine[1]} was expected")
    return undefended


def derived_seed(seed: int, attack: str, block: int) -> int:
    """A seed for one attack on one block, independent of all others."""
    digest = hashlib.sha256(f"{seed}|{attack}|{block}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that ART's attacks draw from, and restore them on exit."""
    state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 (what ART uses)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
        random.setstate(python_state)
