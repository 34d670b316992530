"""The evaluation: its numbers follow from its records, its records from the attacks, and from nothing else."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import FastGradientMethod, SquareAttack
from art.defences.detector.evasion import BinaryInputDetector
from art.defences.preprocessor import LabelSmoothing
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from art.estimators.estimator import BaseEstimator
from torch import nn

from art_defenses_ext import ExplanationReconstructor, HeatAndBlur, JumpReLU, defend, evaluate, gradient_mode, rejecting
from art_defenses_ext.attack.annealed_pgd import AnnealedPGD
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.ball import L2, Linf
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.attack.random_noise import RandomNoise
from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.rebuild import rebuild, undefended
from art_defenses_ext.evaluation.records.costs import measured
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.results.summary import AttackRow, summarise
from art_defenses_ext.evaluation.run.folder import RECORDS, read_records
from art_defenses_ext.evaluation.suite.attacker import EOT_DRAWS, VOTES, Attacker
from art_defenses_ext.evaluation.suite.papers import paper_specs
from art_defenses_ext.evaluation.suite.plan import CURVE_FACTORS, EFFORT, make_plan
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.suite.suites import DETECTOR_SUITE, STANDARD, WHITE_BOX
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.gradients.modes import find_defences
from art_defenses_ext.zoo.datasets import Dataset

from ..conftest import omit_pictures

EPS = 0.1
BLOCK = 8
WHOLE = 2 * BLOCK
Act = Callable[[FloatArray, FloatArray], Any]

# An evaluation of seconds: all the papers' attacks, and each kind of the suite's with few steps.
ATTACKS = (
    *paper_specs(JumpReLU),
    AttackSpec("FGSM", lambda c, threat, seed: FastGradientMethod(c, threat.norm, threat.eps), "one step"),
    AttackSpec(
        "PGD",
        lambda c, threat, seed: MarginPGD(c, threat.norm, threat.eps, max_iter=8, seed=seed),
        "white-box",
        modes="all",
    ),
    AttackSpec(
        "transfer",
        lambda c, threat, seed: MarginPGD(c, threat.norm, threat.eps, max_iter=8, stop_when_broken=False, seed=seed),
        "made elsewhere",
        crafted_on="undefended",
        samples="all",
    ),
    AttackSpec(
        "Square",
        lambda c, threat, seed: SquareAttack(c, norm=threat.norm, eps=threat.eps, max_iter=20, verbose=False),
        "queries",
    ),
    AttackSpec("noise", lambda c, threat, seed: RandomNoise(c, threat.norm, threat.eps, 5, seed=seed), "control"),
)


# In place of the checks' own attack.
BRIEF_EFFORT = replace(EFFORT, build=lambda c, t, seed: AutoPGD(c, t.norm, t.eps, max_iter=20, seed=seed))
BRIEF_WHITE_BOX = replace(WHITE_BOX, build=lambda c, t, seed: AutoPGD(c, t.norm, t.eps, max_iter=10, seed=seed))


@pytest.fixture
def brief_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks' own attacks and the suite's first one take few steps."""
    monkeypatch.setattr("art_defenses_ext.evaluation.suite.plan.EFFORT", BRIEF_EFFORT)
    monkeypatch.setattr("art_defenses_ext.evaluation.suite.plan.FIRSTS", (BRIEF_WHITE_BOX,))
    monkeypatch.setattr("art_defenses_ext.evaluation.run.block.BINARIZED", 4)


@pytest.fixture
def few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images on which a random network is undecided get 64 passes, not a thousand."""
    monkeypatch.setattr("art_defenses_ext.evaluation.suite.vote.MOST_PASSES", 64)


class Own(EvasionAttack):
    """An attack that does what a test says."""

    _estimator_requirements = (BaseEstimator,)

    def __init__(self, estimator: PyTorchClassifier, act: Act) -> None:
        super().__init__(estimator=estimator)
        self.act = act

    def generate(self, x: FloatArray, y: Any = None, **kwargs: Any) -> Any:
        return self.act(x, y)


def make_attack(name: str, act: Act, **options: Any) -> AttackSpec:
    return AttackSpec(name, lambda classifier, threat, seed: Own(classifier, act), "for a test", **options)


@dataclass
class Call:
    """A call of an attack: its network, its input and what it returned."""

    key: str
    estimator: PyTorchClassifier
    mode: str
    threat: Threat
    seed: int
    x: FloatArray
    y: FloatArray
    returned: FloatArray


def evaluate_in_blocks(
    classifier: PyTorchClassifier, x: FloatArray, y: Any, threat: Threat, attacks: Any, **options: Any
) -> Report:
    """``evaluate`` in blocks, by default without curve and checks."""
    return evaluate(
        classifier, (x, y), threat, attacks,
        **({"block_size": BLOCK, "curve_samples": 0, "check_samples": 0, "progress": False} | options),
    )  # fmt: skip


def record_calls(spec: AttackSpec, calls: list[Call]) -> AttackSpec:
    """The same attack, which also notes each call."""

    def build(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
        attack = spec.build(classifier, threat, seed)

        def act(x: FloatArray, y: FloatArray) -> FloatArray:
            mode = "+".join(defence.gradient_mode for defence in find_defences(classifier))
            inputs = x.copy(), y.copy()
            returned = attack.generate(x, y)
            key = spec.name if spec.modes == "exact" else f"{spec.name} [{mode}]"
            calls.append(Call(key, classifier, mode, threat, seed, *inputs, np.array(returned)))
            return returned

        return Own(classifier, act)

    return replace(spec, build=build)


@pytest.fixture(scope="module")
def defended(digits_classifier: PyTorchClassifier) -> PyTorchClassifier:
    return JumpReLU(digits_classifier, 1.0)()


@pytest.fixture(scope="module")
def x(digits: Dataset) -> FloatArray:
    return digits.test.x[:WHOLE].copy()


@pytest.fixture(scope="module")
def y(digits: Dataset) -> IntArray:
    return digits.test.y[:WHOLE].copy()


@dataclass
class Run:
    """A whole evaluation with its files and the calls of its attacks."""

    report: Report
    calls: list[Call]
    folder: Path


@pytest.fixture(scope="module")
def run(defended: PyTorchClassifier, x: FloatArray, y: IntArray, tmp_path_factory: pytest.TempPathFactory) -> Run:
    calls: list[Call] = []
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    attacks = [record_calls(spec, calls) for spec in ATTACKS]
    report = evaluate_in_blocks(defended, x, y, Linf(EPS), attacks, out=folder, check_samples=4)
    return Run(report, calls, folder)


@pytest.fixture(scope="module")
def replacements(defended: PyTorchClassifier, digits: Dataset) -> FloatArray:
    """Two images that the defended classifier takes for a 0 and for a 1."""
    predicted = defended.predict(digits.test.x).argmax(axis=1)
    return np.stack([digits.test.x[predicted == label][0] for label in (0, 1)])


def predict_classes(classifier: PyTorchClassifier, x: FloatArray) -> IntArray:
    """The classes by ART's own path, not the evaluation's."""
    classes: IntArray = classifier.predict(x).argmax(axis=1)
    return classes


def break_labels(replacements: FloatArray, *labels: int) -> Act:
    """Replace each image that has one of these labels: a success in the ball of radius 1."""

    def act(x: FloatArray, y: FloatArray) -> FloatArray:
        adversarial = x.copy()
        for i, label in enumerate(y.argmax(axis=1)):
            if label in labels:
                adversarial[i] = replacements[int(label == 0)]
        return adversarial

    return act


def find_row(report: Report, key: str) -> AttackRow:
    (row,) = [row for row in report.summary.rows if row.key == key]
    return row


def read_lines(folder: Path) -> list[str]:
    return (folder / RECORDS).read_text(encoding="utf-8").splitlines()


# The numbers follow from the records


def test_robust_accuracy_agrees_with_brute_force_over_the_file(run: Run) -> None:
    robust = []
    for line in read_lines(run.folder):
        record = json.loads(line)
        verdicts = [record["clean"] == record["label"]]
        for outcome in record["attacks"].values():
            inside = outcome["linf"] <= EPS + 1e-5
            verdicts.append(not (inside and outcome["prediction"] != record["label"]))
        robust.append(min(verdicts))
    assert run.report.accuracy_after_attacks == np.mean(robust)
    assert json.loads((run.folder / "report.json").read_text())["after_attacks"]["rate"] == np.mean(robust)
    assert 0 < np.mean(robust) < 1  # or this test shows little


def test_each_figure_can_be_recomputed_from_the_files(run: Run, defended: PyTorchClassifier, x: FloatArray) -> None:
    records = read_records(run.folder)
    assert records == run.report.records
    summary = run.report.summary
    attacker = Attacker.of(defended, x[:BLOCK], Linf(EPS), adaptive=True, seed=0)
    plan = make_plan(ATTACKS, attacker, Linf(EPS), with_curve=False)
    recomputed = summarise(summary.run, plan, records, [], summary.checks)
    assert replace(recomputed, rows=[], phases=summary.phases, total=summary.total) == replace(summary, rows=[])
    for recomputed_row, reported_row in zip(recomputed.rows, summary.rows, strict=True):
        assert replace(reported_row, forward=0, backward=0, seconds=0) == recomputed_row


def test_there_is_a_record_for_each_sample_with_the_class_that_art_predicts(
    run: Run, defended: PyTorchClassifier, x: FloatArray, y: IntArray
) -> None:
    undefended_classifier = undefended(defended)
    assert undefended_classifier is not None
    assert [record.index for record in run.report.records] == list(range(len(x)))
    assert [record.label for record in run.report.records] == y.tolist()
    assert [record.clean for record in run.report.records] == predict_classes(defended, x).tolist()
    assert [record.undefended_clean for record in run.report.records] == predict_classes(
        undefended_classifier, x
    ).tolist()


# The records follow from what the attacks returned


def test_each_success_is_inside_ball_and_range_and_really_misclassified(
    run: Run, defended: PyTorchClassifier, x: FloatArray, y: IntArray
) -> None:
    index_of_image = {image.tobytes(): i for i, image in enumerate(x)}
    assert len(index_of_image) == len(x)
    judged = successes = 0
    for call in run.calls:
        classes = predict_classes(defended, call.returned)
        for image, adversarial, predicted in zip(call.x, call.returned, classes, strict=True):
            record = run.report.records[index_of_image[image.tobytes()]]
            outcome = record.attacks[call.key]
            size = np.abs(adversarial.astype(np.float64) - image).max()
            misclassified = predicted != y[record.index]
            assert outcome.usable
            assert outcome.prediction == predicted
            assert outcome.misclassified == misclassified
            assert outcome.linf == pytest.approx(size, abs=1e-6)
            assert outcome.l2 == pytest.approx(np.linalg.norm(adversarial.astype(np.float64) - image), abs=1e-6)
            assert outcome.success == (misclassified and size <= EPS + 1e-5)
            if outcome.success:
                assert adversarial.min() >= 0
                assert adversarial.max() <= 1
            judged, successes = judged + 1, successes + outcome.success
    assert judged == sum(len(record.attacks) for record in run.report.records)
    assert successes > 0


def test_a_transferred_example_is_judged_on_both_networks(run: Run, defended: PyTorchClassifier, x: FloatArray) -> None:
    undefended_classifier = undefended(defended)
    assert undefended_classifier is not None
    calls = [call for call in run.calls if call.key == "transfer"]
    adversarial = np.concatenate([call.returned for call in calls])
    outcomes = [record.attacks["transfer"] for record in run.report.records]
    assert [outcome.undefended_prediction for outcome in outcomes] == predict_classes(
        undefended_classifier, adversarial
    ).tolist()
    assert [outcome.prediction for outcome in outcomes] == predict_classes(defended, adversarial).tolist()
    white = [record.attacks["IFGSM, white-box"] for record in run.report.records]
    assert all(outcome.undefended_prediction is None for outcome in white)


def test_the_examples_are_successes_of_the_records(run: Run, defended: PyTorchClassifier, x: FloatArray) -> None:
    assert 0 < len(run.report.examples) <= 6
    for example in run.report.examples:
        record = run.report.records[example.index]
        assert record.correct
        assert record.attacks[example.attack].success
        assert np.array_equal(example.clean, x[example.index])
        assert np.abs(example.adversarial - example.clean).max() <= EPS + 1e-5
        (predicted,) = predict_classes(defended, example.adversarial[None])
        assert predicted == example.prediction == record.attacks[example.attack].prediction != example.label


# Nothing else plays a part


def test_a_second_run_has_the_same_records(run: Run, defended: PyTorchClassifier, x: FloatArray, y: IntArray) -> None:
    """Neither the state of the global generators nor the form of the labels changes the records."""
    one_hot = np.eye(10, dtype=np.float32)[y[:BLOCK]]
    with seed_global_generators(1):
        report = evaluate_in_blocks(defended, x[:BLOCK], one_hot, Linf(EPS), ATTACKS)
    assert report.records == run.report.records[:BLOCK]


@contextmanager
def seed_global_generators(seed: int) -> Iterator[None]:
    """Seed the global generators, and restore their states afterwards."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        yield
    random.setstate(before[0])
    np.random.set_state(before[1])  # noqa: NPY002


def move_randomly(x: FloatArray, y: FloatArray) -> FloatArray:
    """Moves by numbers of all three global generators."""
    change = np.random.uniform(-0.1, 0.1, x.shape) + random.random() / 100 + float(torch.rand(())) / 100  # noqa: NPY002
    return np.clip(x + change, 0, 1).astype(np.float32)


def test_the_global_generators_are_seeded_for_an_attack(
    defended: PyTorchClassifier, x: FloatArray, y: IntArray
) -> None:
    attacks = [make_attack("a", move_randomly, samples="all"), make_attack("b", move_randomly, samples="all")]
    sizes = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 5)):
        with seed_global_generators(global_seed):
            report = evaluate_in_blocks(defended, x, y, Linf(1.0), attacks, seed=seed, allow_large_eps=True)
        sizes.append([[record.attacks[name].l2 for record in report.records] for name in "ab"])
    assert sizes[0] == sizes[1]
    assert sizes[0] != sizes[2]
    assert sizes[0][0] != sizes[0][1]  # another attack draws other numbers


def test_every_seed_that_is_accepted_can_be_used(defended: PyTorchClassifier, x: FloatArray, y: IntArray) -> None:
    attacks = [make_attack("a", move_randomly, samples="all")]
    for seed in (2**32, 2**63 - 1):
        report = evaluate_in_blocks(defended, x[:2], y[:2], Linf(1.0), attacks, seed=seed, allow_large_eps=True)
        assert report.summary.run.settings.seed == seed


@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_generators_keep_their_states(
    fails: bool, defended: PyTorchClassifier, x: FloatArray, y: IntArray, brief_checks: None
) -> None:

    def act(x: FloatArray, y: FloatArray) -> FloatArray:
        adversarial = move_randomly(x, y)
        if fails:
            raise KeyError("the attack failed")
        return adversarial

    def state() -> tuple[Any, ...]:
        _, keys, *remaining = np.random.get_state()  # noqa: NPY002
        return (keys.tolist(), *remaining, torch.get_rng_state().tolist(), random.getstate())

    before = state()
    attacks = [BRIEF_WHITE_BOX, make_attack("drawing", act, samples="all"), *ATTACKS[-2:]]
    with pytest.raises(InputError, match="the attack failed") if fails else nullcontext():
        evaluate_in_blocks(defended, x[:4], y[:4], Linf(EPS), attacks, check_samples=1)
    assert state() == before


def test_seeds_differ_by_attack_mode_block_and_run(defended: PyTorchClassifier, x: FloatArray, y: IntArray) -> None:
    def seeds(seed: int) -> dict[tuple[str, bytes], int]:
        calls: list[Call] = []
        attacks = [
            record_calls(make_attack("a", lambda x, y: x, samples="all", modes="all"), calls),
            record_calls(make_attack("b", lambda x, y: x, samples="all"), calls),
        ]
        evaluate_in_blocks(defended, x, y, Linf(EPS), attacks, seed=seed)
        return {(call.key, call.x.tobytes()): call.seed for call in calls}

    first, again, other = seeds(0), seeds(0), seeds(1)
    assert len(first) == 2 * (3 + 1)
    assert first == again
    assert len({*first.values(), *other.values()}) == 2 * len(first)


def test_an_attack_may_run_on_a_few_unbroken_samples_of_a_block(
    defended: PyTorchClassifier, x: FloatArray, y: IntArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_sizes: list[int] = []

    def count_images(images: FloatArray, labels: FloatArray) -> FloatArray:
        batch_sizes.append(len(images))
        return images

    monkeypatch.setattr("art_defenses_ext.evaluation.suite.plan.FEW", 2)
    report = evaluate_in_blocks(
        defended, x, y, Linf(EPS), [make_attack("few", count_images, samples="few", kind="queries")]
    )
    correct = np.flatnonzero(predict_classes(defended, x) == y)
    first, second = correct[correct < BLOCK], correct[correct >= BLOCK]
    assert min(len(first), len(second)) > 2
    assert batch_sizes == [2, 2]
    attacked = [record.index for record in report.records if "few" in record.attacks]
    assert attacked == [*first[:2], *second[:2]]


def test_the_network_is_left_as_it_was(
    own_classifier: PyTorchClassifier, x: FloatArray, y: IntArray, brief_checks: None
) -> None:
    own_classifier.model.head[1].weight.requires_grad_(False)
    defended = JumpReLU(own_classifier, 1.0)()
    defended.model.gradient_mode = "smooth"
    models = (defended.model, own_classifier.model)

    def state() -> list[Any]:
        return [
            [[value.numpy().tobytes() for value in model.state_dict().values()] for model in models],
            [[parameter.requires_grad for parameter in model.parameters()] for model in models],
            [[module.training for module in model.modules()] for model in models],
            [[len(module._forward_hooks) for module in model.modules()] for model in models],
            [[len(module._forward_pre_hooks) for module in model.modules()] for model in models],
            defended.model.gradient_mode,
            defended.model.surrogate_width,
        ]

    before = state()
    evaluate_in_blocks(defended, x[:4], y[:4], Linf(EPS), ATTACKS)
    assert state() == before
    (annealed,) = [spec for spec in STANDARD if spec.modes == "annealable"]
    brief = replace(annealed, build=lambda c, t, seed: AnnealedPGD(c, t.norm, t.eps, max_iter=5, seed=seed))
    evaluate_in_blocks(defended, x[:4], y[:4], Linf(EPS), [BRIEF_WHITE_BOX, brief], check_samples=1)
    assert state() == before

    def fail(x: FloatArray, y: FloatArray) -> FloatArray:
        raise KeyError("the attack failed")

    with pytest.raises(InputError, match="KeyError: 'the attack failed'"):
        evaluate_in_blocks(defended, x[:4], y[:4], Linf(EPS), [make_attack("fails", fail, modes="all")])
    assert state() == before


def test_a_network_in_training_mode_is_attacked_as_it_predicts(x: FloatArray, y: IntArray) -> None:
    """Batch statistics are neither used nor moved, and training may go on afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10), nn.Dropout(0.5))
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    buffers = [buffer.clone() for buffer in model.buffers()]
    attacks = [spec for spec in ATTACKS if spec.name in ("FGSM", "PGD", "noise")]
    reports = []
    for training in (False, True):
        model.train(training)
        reports.append(evaluate_in_blocks(classifier, x, y, Linf(EPS), attacks))
        assert [module.training for module in model.modules()] == [training] * 5
    assert reports[0].records == reports[1].records
    assert all(torch.equal(before, after) for before, after in zip(buffers, model.buffers(), strict=True))


def test_the_images_are_never_modified(defended: PyTorchClassifier, x: FloatArray, y: IntArray) -> None:
    """Not even by an attack that scribbles on what it is given: the next one and the records see the clean image."""

    def scribble(x: FloatArray, y: FloatArray) -> FloatArray:
        x[:] = 1 - x
        y[:] = 0
        return x

    calls: list[Call] = []
    before = x.tobytes(), y.tobytes()
    attacks = [
        make_attack("scribbles", scribble, samples="all"),
        record_calls(make_attack("looks", lambda x, y: x, samples="all"), calls),
    ]
    report = evaluate_in_blocks(defended, x, y, Linf(EPS), attacks, block_size=WHOLE)
    assert (x.tobytes(), y.tobytes()) == before
    assert np.array_equal(calls[0].x, x)
    assert np.array_equal(calls[0].y.argmax(axis=1), y)
    for image, record in zip(x, report.records, strict=True):
        assert record.attacks["scribbles"].linf == pytest.approx(np.abs(1 - 2 * image).max(), abs=1e-6)
        assert record.attacks["looks"].linf == 0


def test_only_the_values_of_the_images_matter(defended: PyTorchClassifier, x: FloatArray, y: IntArray) -> None:
    """A view that is reversed, strided or read-only is attacked like its copy."""
    (pgd,) = [spec for spec in ATTACKS if spec.name == "PGD"]
    fixed = x.copy()
    fixed.flags.writeable = False
    for view, labels in ((x[::-4], y[::-4]), (x[:4, :, :, ::-1], y[:4]), (fixed[:4], y[:4])):
        reports = [evaluate_in_blocks(defended, images, labels, Linf(EPS), [pgd]) for images in (view, view.copy())]
        assert reports[0].records == reports[1].records


def test_an_evaluation_prints_and_writes_nothing_unless_asked(
    defended: PyTorchClassifier,
    x: FloatArray,
    y: IntArray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluate_in_blocks(defended, x[:4], y[:4], Linf(EPS), ATTACKS, curve_samples=4)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


# Who attacks what


def test_the_suite_attacks_only_unbroken_images(
    defended: PyTorchClassifier, x: FloatArray, y: IntArray, replacements: FloatArray
) -> None:
    calls: list[Call] = []
    attacks = [
        make_attack("paper", break_labels(replacements, 0), source="paper", samples="all"),
        make_attack("first", break_labels(replacements, 1, 2)),
        make_attack("second", break_labels(replacements, 3), modes="all"),
        make_attack("third", break_labels(replacements)),
        make_attack("later paper", break_labels(replacements, 1, 4), source="paper", samples="all"),
        make_attack("last", break_labels(replacements)),
    ]
    report = evaluate_in_blocks(
        defended, x, y, Linf(1.0), [record_calls(spec, calls) for spec in attacks], allow_large_eps=True
    )
    correct = predict_classes(defended, x) == y
    attacked_images = {
        "paper": np.ones(len(x), bool),
        "first": correct & (y != 0),
        "second [exact]": correct & ~np.isin(y, (0, 1, 2)),
        "second [relu]": correct & ~np.isin(y, (0, 1, 2, 3)),
        "second [smooth]": correct & ~np.isin(y, (0, 1, 2, 3)),
        "third": correct & ~np.isin(y, (0, 1, 2, 3)),
        "later paper": np.ones(len(x), bool),
        "last": correct & ~np.isin(y, (0, 1, 2, 3, 4)),
    }
    for key, expected in attacked_images.items():
        images = np.concatenate([call.x for call in calls if call.key == key])
        assert np.array_equal(images, x[expected]), key
        assert [key in record.attacks for record in report.records] == expected.tolist(), key
        assert find_row(report, key).attacked == expected.sum()
    assert {call.key for call in calls} == attacked_images.keys()
    assert find_row(report, "first").broke == (correct & np.isin(y, (1, 2))).sum()
    assert find_row(report, "second [relu]").broke == 0
    assert report.accuracy_after_attacks == np.mean(correct & (y > 4))


def test_an_attack_with_no_sample_left_is_not_run(
    defended: PyTorchClassifier, x: FloatArray, y: IntArray, replacements: FloatArray
) -> None:
    def fail_if_attacked(x: FloatArray, y: FloatArray) -> FloatArray:
        raise AssertionError("nothing was left to attack")

    attacks = [make_attack("all", break_labels(replacements, *range(10))), make_attack("idle", fail_if_attacked)]
    report = evaluate_in_blocks(defended, x, y, Linf(1.0), attacks, allow_large_eps=True)
    assert report.accuracy_after_attacks == 0
    assert find_row(report, "idle").note == "not run: no sample was left"


def test_attacks_get_one_hot_labels_the_threat_and_their_network(
    run: Run, defended: PyTorchClassifier, x: FloatArray, y: IntArray
) -> None:
    labels = dict(zip((image.tobytes() for image in x), y.tolist(), strict=True))
    crafted_on = {spec.name: spec.crafted_on for spec in ATTACKS}
    for call in run.calls:
        expected = np.eye(10, dtype=np.float32)[[labels[image.tobytes()] for image in call.x]]
        assert call.y.dtype == np.float32
        assert np.array_equal(call.y, expected)
        assert call.threat == Linf(EPS)
        elsewhere = crafted_on[call.key.split(" [")[0]] == "undefended"
        assert call.estimator is (undefended(defended) if elsewhere else defended)


def test_the_curve_attacks_the_first_samples_broken_or_not(
    defended: PyTorchClassifier, x: FloatArray, y: IntArray, replacements: FloatArray
) -> None:
    calls: list[Call] = []
    attack = record_calls(make_attack("curved", break_labels(replacements, *range(10)), curve=True), calls)
    report = evaluate_in_blocks(defended, x, y, Linf(0.5), [attack], block_size=BLOCK, curve_samples=BLOCK + 4)
    for factor in CURVE_FACTORS:
        images = [call.x for call in calls if call.threat == Linf(0.5 * factor)]
        # At the threat's own eps the attack itself runs too, in each block before the curve.
        curve_images = images[1::2] if factor == 1 else images
        assert np.array_equal(np.concatenate(curve_images), x[: BLOCK + 4])
    (curve,) = report.summary.curves
    assert [eps for eps, _ in curve.points] == [0, *(0.5 * factor for factor in CURVE_FACTORS)]
    assert all(share.total == BLOCK + 4 for _, share in curve.points)
    assert report.summary.run.settings.curve_samples == BLOCK + 4


def test_costs_are_those_of_the_attack_alone(defended: PyTorchClassifier, x: FloatArray, y: IntArray) -> None:
    """Two predictions and one gradient an image; what the evaluation itself predicts is not the attacker's cost."""

    def build(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
        def act(x: FloatArray, y: FloatArray) -> FloatArray:
            classifier.predict(x)
            classifier.loss_gradient(x, y)
            return x

        return Own(classifier, act)

    attacks = [
        AttackSpec("a", build, "for a test", samples="all"),
        AttackSpec("b", build, "for a test", crafted_on="undefended"),
    ]
    report = evaluate_in_blocks(defended, x, y, Linf(EPS), attacks)
    for key in "ab":
        assert (find_row(report, key).forward, find_row(report, key).backward) == (2, 1)


# What the attacker is given


class Rounding(PreprocessorPyTorch):
    """A foreign preprocessor of five grey levels, so that no gradient passes."""

    def __init__(self) -> None:
        super().__init__(is_fitted=True, apply_fit=False, apply_predict=True)

    def forward(self, x: torch.Tensor, y: Any = None) -> tuple[torch.Tensor, Any]:
        return (x * 4).round() / 4, y


class Noise(PreprocessorPyTorch):
    """A foreign preprocessor that makes another image in each pass."""

    def __init__(self) -> None:
        super().__init__(is_fitted=True, apply_fit=False, apply_predict=True)

    def forward(self, x: torch.Tensor, y: Any = None) -> tuple[torch.Tensor, Any]:
        return x + 0.3 * torch.randn_like(x), y


def return_images(x: FloatArray, y: FloatArray) -> FloatArray:
    return x


# One attack of each kind, which changes nothing; their calls are recorded.
IDLE_ATTACKS = (
    make_attack("all modes", return_images, modes="all", samples="all"),
    make_attack("annealed", return_images, modes="annealable", samples="all"),
    make_attack("smoothed", return_images, crafted_on="smoothed", samples="all"),
    make_attack("paper", return_images, source="paper", samples="all"),
    make_attack("transfer", return_images, crafted_on="undefended", samples="all"),
)


def collect_calls(
    classifier: PyTorchClassifier, x: FloatArray, y: IntArray, **options: Any
) -> tuple[Report, list[Call]]:
    calls: list[Call] = []
    attacks = [record_calls(spec, calls) for spec in IDLE_ATTACKS]
    report = evaluate_in_blocks(classifier, x, y, Linf(EPS), attacks, block_size=WHOLE, **options)
    return report, calls


def test_foreign_preprocessors_get_a_surrogate_except_in_papers_attacks(
    digits_classifier: PyTorchClassifier, x: FloatArray, y: IntArray
) -> None:
    defended = defend(digits_classifier, Rounding())
    report, calls = collect_calls(defended, x, y)
    assert report.summary.run.modes == ["exact", "surrogate"]
    classifiers = {call.key: call.estimator for call in calls}
    assert classifiers["paper"] is defended
    assert classifiers["transfer"] is digits_classifier
    one_hot = np.eye(10, dtype=np.float32)[y]
    assert not defended.loss_gradient(x, one_hot).any()
    for key in ("all modes [exact]", "all modes [surrogate]"):
        assert not classifiers[key].loss_gradient(x, one_hot).any()  # outside the attack each mode is exact again
        assert np.array_equal(classifiers[key].predict(x), defended.predict(x))
        with gradient_mode(classifiers[key], "surrogate"):
            assert classifiers[key].loss_gradient(x, one_hot).any()
    assert {call.mode for call in calls if call.key.startswith("all modes")} == {"exact", "surrogate"}


def test_the_smoothed_network_is_attacked_only_if_every_gradient_is_masked(
    defended: PyTorchClassifier, digits_classifier: PyTorchClassifier, x: FloatArray, y: IntArray
) -> None:
    for classifier in (defended, digits_classifier):  # the surrogates of JumpReLU have a useful gradient
        report, calls = collect_calls(classifier, x, y)
        assert "smoothed" not in {call.key for call in calls}
        assert find_row(report, "smoothed").note.startswith("not run")
    stepped = defend(digits_classifier, Rounding())
    _, calls = collect_calls(stepped, x, y)
    (call,) = [call for call in calls if call.key == "smoothed"]
    assert np.array_equal(call.estimator.predict(x), stepped.predict(x))
    one_hot = np.eye(10, dtype=np.float32)[y]
    assert call.estimator.loss_gradient(x, one_hot).any()
    assert not stepped.loss_gradient(x, one_hot).any()


@pytest.mark.parametrize("adaptive", [True, False])
def test_a_random_defence_is_averaged_by_its_attacker_and_judged_by_a_vote(
    adaptive: bool, digits_classifier: PyTorchClassifier, x: FloatArray, y: IntArray, few_passes: None
) -> None:
    defended = defend(digits_classifier, Noise())
    report, calls = collect_calls(defended, x, y, adaptive=adaptive)
    draws = EOT_DRAWS if adaptive else 1
    assert (report.summary.run.votes, report.summary.run.draws) == (VOTES, draws)
    assert report.summary.randomness is not None
    attacked_classifier = next(call.estimator for call in calls if call.key.startswith("all modes"))
    with measured(defended) as cost, torch.random.fork_rng():
        attacked_classifier.loss_gradient(x[:3], np.eye(10, dtype=np.float32)[y[:3]])
    assert (cost.forward, cost.backward) == (3 * draws, 3 * draws)
    assert next(call.estimator for call in calls if call.key == "paper") is defended
    verdicts = [(record.clean, record.clean_misses, record.label) for record in report.records]
    verdicts += [
        (outcome.prediction, outcome.misses, record.label)
        for record in report.records
        for outcome in record.attacks.values()
    ]
    for prediction, misses, label in verdicts:
        assert misses is not None
        assert misses > VOTES / 4 or prediction == label
        assert misses < VOTES or prediction != label
    assert len({misses for _, misses, _ in verdicts}) > 3  # or this test shows little


def test_a_random_defences_records_are_reproducible(
    digits_classifier: PyTorchClassifier, x: FloatArray, y: IntArray, few_passes: None
) -> None:
    """The state of the global generators changes nothing, and the first block alone has the same records."""
    defended = defend(digits_classifier, Noise())
    attacks = [spec for spec in ATTACKS if spec.name in ("FGSM", "transfer")]
    records = []
    for global_seed, count in ((1, 4), (2, 4), (3, 2)):
        with seed_global_generators(global_seed):
            report = evaluate_in_blocks(defended, x[:count], y[:count], Linf(EPS), attacks, block_size=2)
        records.append(report.records)
    assert records[0] == records[1]
    assert records[0][:2] == records[2]


# The checks


CHECKED = BLOCK + 2


@pytest.fixture(scope="module")
def checked(defended: PyTorchClassifier, x: FloatArray, y: IntArray, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The first attack of the suite and its checks on more than a block, with fewer steps than they take."""
    folder = tmp_path_factory.mktemp("checked") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("art_defenses_ext.evaluation.run.block.BINARIZED", 4)
        patch.setattr("art_defenses_ext.evaluation.suite.plan.EFFORT", BRIEF_EFFORT)
        patch.setattr("art_defenses_ext.evaluation.suite.plan.FIRSTS", (BRIEF_WHITE_BOX,))
        omit_pictures(patch)
        report = evaluate_in_blocks(defended, x, y, Linf(0.05), [BRIEF_WHITE_BOX], out=folder, check_samples=CHECKED)
    return Run(report, [], folder)


def test_the_checks_attack_first_samples_at_the_limit_and_unbroken_ones_with_more_effort(checked: Run) -> None:
    modes = ("exact", "relu", "smooth")
    suite = {f"APGD margin [{mode}]" for mode in modes}
    for record in checked.report.records:
        limit = {key for key in record.attacks if key.endswith(" @ 0.5, limit")}
        effort = {key for key in record.attacks if key.startswith("APGD margin, 300 steps")}
        assert len(limit) == (3 if record.index < CHECKED else 0)
        if record.index >= CHECKED or not record.robust(suite):
            assert effort == set()
        elif record.robust():
            assert len(effort) == 3
        else:
            assert effort
    side = [row.key for row in checked.report.summary.rows if row.source == "side"]
    assert side == ["the checks' effort", "the checks' limit"]


def test_the_checks_are_in_the_report_and_in_its_files(checked: Run) -> None:
    summary = checked.report.summary
    verdicts = {check.name: check.verdict for check in summary.checks}
    assert list(verdicts) == [
        "single step",
        "larger eps",
        "more effort",
        "transfer",
        "queries",
        "noise",
        "gradients",
        "randomness",
        "batches",
        "gradient modes",
        "binarization",
        "finite logits",
    ]
    # No such attack was in the set.
    assert {name for name in ("single step", "transfer", "queries", "noise") if verdicts[name] != "not run"} == set()
    assert verdicts["larger eps"] == verdicts["more effort"] == verdicts["gradient modes"] == "passed"
    assert checked.report.established == summary.established == ("failed" not in verdicts.values())
    written = json.loads((checked.folder / "report.json").read_text())
    assert {check["name"]: check["verdict"] for check in written["checks"]} == verdicts
    assert written["established"] is checked.report.established
    assert written["run"]["settings"]["check_samples"] == CHECKED


def test_images_hidden_by_the_exact_gradients_of_stacked_defences_are_counted(
    digits_classifier: PyTorchClassifier, x: FloatArray, y: IntArray, brief_checks: None
) -> None:
    stacked = defend(JumpReLU(digits_classifier, 0.5)(), Rounding())
    report = evaluate_in_blocks(stacked, x[:8], y[:8], Linf(0.2), [BRIEF_WHITE_BOX], check_samples=1)
    assert len(report.summary.run.modes) == 6
    exact = [record.robust({"APGD margin [exact+exact]"}) for record in report.records]
    hidden = sum(exact) - sum(record.robust() for record in report.records)
    assert hidden > 2  # rounding lets no gradient pass
    (check,) = [check for check in report.summary.checks if check.name == "gradient modes"]
    assert check.figures == {"hidden by the exact gradient": Proportion(hidden, sum(exact))}


def test_checks_change_no_record_of_the_suite(
    checked: Run, defended: PyTorchClassifier, x: FloatArray, y: IntArray
) -> None:
    report = evaluate_in_blocks(defended, x[:BLOCK], y[:BLOCK], Linf(0.05), [BRIEF_WHITE_BOX])
    for unchecked_record, record in zip(report.records, checked.report.records, strict=False):
        assert unchecked_record.attacks.items() <= record.attacks.items()
        assert (unchecked_record.clean, unchecked_record.label) == (record.clean, record.label)


def test_an_attacker_who_is_not_adaptive_or_not_checked_establishes_nothing(
    defended: PyTorchClassifier, x: FloatArray, y: IntArray, brief_checks: None
) -> None:
    """A naive one, one who is given all modes and tries one, the paper's attacks alone, and one without checks."""
    exact = replace(BRIEF_WHITE_BOX, modes="exact", curve=False)
    for attacks, options, standing in (
        ([BRIEF_WHITE_BOX], {"check_samples": 2, "adaptive": False}, "no adaptive attack"),
        ([exact], {"check_samples": 2}, "no adaptive attack"),
        ("papers", {"check_samples": 2}, "no adaptive attack"),
        ([BRIEF_WHITE_BOX], {}, "no checks"),
    ):
        report = evaluate_in_blocks(defended, x[:2], y[:2], Linf(0.02), attacks, **options)
        assert (report.summary.standing, report.robust_accuracy) == (standing, None)
        assert report.established is not True
        failed = "gradient modes" in report.summary.failed_checks
        assert failed == (attacks != "papers" and bool(options))


# The undefended classifier


def make_transfer_attacks(calls: list[Call]) -> list[AttackSpec]:
    return [
        record_calls(make_attack("transfer", lambda x, y: x, crafted_on="undefended", samples="all"), calls),
        record_calls(make_attack("white", lambda x, y: x), calls),
    ]


def test_the_recorded_undefended_classifier_is_used(
    defended: PyTorchClassifier, digits_classifier: PyTorchClassifier, x: FloatArray, y: IntArray
) -> None:
    calls: list[Call] = []
    report = evaluate_in_blocks(defended, x, y, Linf(EPS), make_transfer_attacks(calls), block_size=WHOLE)
    assert [call.estimator for call in calls] == [digits_classifier, defended]
    assert report.summary.undefended_clean is not None
    assert report.summary.undefended_clean.rate == np.mean(predict_classes(digits_classifier, x) == y)
    assert report.summary.undefended_robust == report.summary.undefended_clean


def build_in_arts_own_way(classifier: PyTorchClassifier, model: nn.Module, *preprocessors: Any) -> PyTorchClassifier:
    return PyTorchClassifier(
        model,
        classifier.loss,
        classifier.input_shape,
        classifier.nb_classes,
        clip_values=(0.0, 1.0),
        preprocessing_defences=list(preprocessors) or None,
        preprocessing=(classifier.preprocessing.mean, classifier.preprocessing.std),
        device_type="cpu",
    )


@pytest.mark.parametrize("construction", ["a preprocessor", "between others", "a network"])
def test_the_undefended_classifier_of_a_classifier_built_with_art_is_found(
    construction: str, digits_classifier: PyTorchClassifier, x: FloatArray, y: IntArray
) -> None:
    """The paper's gray-box attacks run, on the classifier that is the same without our defence."""
    model = digits_classifier.model
    blur = HeatAndBlur.for_classifier(digits_classifier)
    if construction == "a network":
        model = JumpReLU(digits_classifier, 1.0)().model
    preprocessors = (
        [Rounding(), blur, Rounding()]
        if construction == "between others"
        else [blur]
        if construction == "a preprocessor"
        else []
    )
    classifier = build_in_arts_own_way(digits_classifier, model, *preprocessors)
    foreign_preprocessors = [preprocessor for preprocessor in preprocessors if preprocessor is not blur]
    expected = build_in_arts_own_way(digits_classifier, digits_classifier.model, *foreign_preprocessors)
    report = evaluate_in_blocks(classifier, x[:6], y[:6], Linf(EPS), "papers")
    clean = report.summary.undefended_clean
    assert clean is not None
    assert clean.rate == np.mean(predict_classes(expected, x[:6]) == y[:6])
    gray = [row for row in report.summary.rows if "gray-box" in row.key]
    assert gray
    assert [(row.attacked, row.note) for row in gray] == [(6, "")] * len(gray)
    undefended_classifier = undefended(classifier)
    assert undefended_classifier is not None
    np.testing.assert_array_equal(undefended_classifier.predict(x), expected.predict(x))
    assert (undefended_classifier.preprocessing_defences or []) == foreign_preprocessors


def test_a_named_undefended_classifier_replaces_the_recorded_one(
    defended: PyTorchClassifier, own_classifier: PyTorchClassifier, x: FloatArray, y: IntArray
) -> None:
    with torch.no_grad():
        own_classifier.model.head[3].bias[0] += 1e4  # it takes everything for a 0
    calls: list[Call] = []
    report = evaluate_in_blocks(
        defended, x, y, Linf(EPS), make_transfer_attacks(calls), undefended=own_classifier, block_size=WHOLE
    )
    assert [call.estimator for call in calls] == [own_classifier, defended]
    assert all(record.undefended_clean == 0 for record in report.records)
    assert all(record.attacks["transfer"].undefended_prediction == 0 for record in report.records)


# With a detector


class MeanDetector(nn.Module):
    """A detector of five lines: the mean of the pixels times ``slope``, less ``threshold``, in noise if asked for."""

    def __init__(self, slope: float, threshold: float, noise: float = 0.0) -> None:
        super().__init__()
        self.slope, self.threshold, self.noise = slope, threshold, noise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        margin = self.slope * x.flatten(1).mean(dim=1) - self.threshold
        margin = margin + self.noise * torch.randn_like(margin) if self.noise else margin
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


def make_detector(slope: float, threshold: float, noise: float = 0.0) -> BinaryInputDetector:
    network = MeanDetector(slope, threshold, noise)
    return BinaryInputDetector(
        PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 2, clip_values=(0, 1), device_type="cpu")
    )


@pytest.fixture(scope="module")
def reconstructor(digits_classifier: PyTorchClassifier, digits: Dataset) -> ExplanationReconstructor:
    detector = ExplanationReconstructor(digits_classifier)
    detector.fit(digits.train.x, nb_epochs=8, validation_split=0.25, progress=False)
    return detector


# Attacks that know what the last class means; none of ART's own does.
SEEING = [spec for spec in ATTACKS[len(paper_specs(JumpReLU)) :] if spec.name in ("PGD", "transfer", "noise")]


def test_a_detector_that_flags_nothing_changes_no_figure(
    defended: PyTorchClassifier, x: FloatArray, y: IntArray
) -> None:
    without_detector, with_detector = (
        evaluate_in_blocks(defended, x, y, Linf(EPS), SEEING, detector=detector)
        for detector in (None, make_detector(0.0, 1.0))
    )
    for record, expected in zip(with_detector.records, without_detector.records, strict=True):
        assert (record.clean_rejected, record.clean_detection_margin) == (False, -1.0)
        attacks = {
            key: replace(outcome, rejected=None, detection_margin=None) for key, outcome in record.attacks.items()
        }
        assert replace(record, clean_rejected=None, clean_detection_margin=None, attacks=attacks) == expected
        assert all((outcome.rejected, outcome.detection_margin) == (False, -1.0) for outcome in record.attacks.values())
    for name in ("clean", "worst_case", "undefended_clean", "undefended_robust", "clean_agreement", "worst_agreement"):
        assert getattr(with_detector.summary, name) == getattr(without_detector.summary, name), name
    # Otherwise this test shows little.
    assert 0 < without_detector.accuracy_after_attacks < without_detector.summary.clean.rate
    assert without_detector.summary.detection is None
    assert with_detector.summary.detection is not None
    assert with_detector.summary.detection.false_positives.count == 0
    for row in with_detector.summary.detection.rows:
        assert row.detected == Proportion(0, row.fooled.count)


def test_a_detector_that_flags_everything_leaves_no_correct_image_and_no_success(
    defended: PyTorchClassifier, x: FloatArray, y: IntArray
) -> None:
    attacks = [replace(spec, samples="all") for spec in SEEING]
    report = evaluate_in_blocks(defended, x, y, Linf(0.3), attacks, detector=make_detector(0.0, -1.0))
    assert report.summary.clean.count == report.summary.worst_case.count == 0
    outcomes = [outcome for record in report.records for outcome in record.attacks.values()]
    assert not any(outcome.success or outcome.misclassified for outcome in outcomes)
    assert any(outcome.prediction != record.label for record in report.records for outcome in record.attacks.values())
    detection = report.summary.detection
    assert detection is not None
    assert detection.false_positives == Proportion(len(x), len(x))
    assert all(row.detected == Proportion(row.fooled.count, row.fooled.count) for row in detection.rows)


def test_the_records_agree_with_classifier_and_detector_alone(
    digits_classifier: PyTorchClassifier, reconstructor: ExplanationReconstructor, x: FloatArray, y: IntArray
) -> None:
    calls: list[Call] = []
    specs = [replace(spec, samples="all") for spec in SEEING]
    attacks = [record_calls(spec, calls) for spec in specs]
    report = evaluate_in_blocks(digits_classifier, x, y, Linf(0.2), attacks, detector=reconstructor, block_size=WHOLE)
    rejecting_report = evaluate_in_blocks(
        rejecting(digits_classifier, reconstructor), x, y, Linf(0.2), specs, block_size=WHOLE
    )
    assert rejecting_report.records == report.records

    def check_detection(images: FloatArray, recorded: list[tuple[Any, Any, Any]]) -> None:
        scores, flagged = reconstructor.detect(images)
        assert [prediction for prediction, _, _ in recorded] == predict_classes(digits_classifier, images).tolist()
        assert [rejected for _, rejected, _ in recorded] == flagged.tolist()
        np.testing.assert_allclose([margin for *_, margin in recorded], scores["predictions"][:, 1], atol=1e-6)

    check_detection(
        x, [(record.clean, record.clean_rejected, record.clean_detection_margin) for record in report.records]
    )
    for call in calls:
        check_detection(
            call.returned,
            [
                (outcome.prediction, outcome.rejected, outcome.detection_margin)
                for record in report.records
                if (outcome := record.attacks[call.key])
            ],
        )
    correct = [record.clean == record.label and not record.clean_rejected for record in report.records]
    assert report.summary.clean == Proportion.of(correct)
    for record in report.records:
        for outcome in record.attacks.values():
            assert outcome.misclassified == (outcome.prediction != record.label and not outcome.rejected)
            assert outcome.success == (outcome.misclassified and outcome.linf <= 0.2 + 1e-5)
    assert report.summary.undefended_clean is not None  # the classifier without its detector
    assert report.summary.undefended_clean.rate == np.mean(predict_classes(digits_classifier, x) == y)
    assert [call.estimator for call in calls if call.key == "transfer"] == [digits_classifier]
    assert report.summary.run.model == "DigitsCNN"
    assert [defence["name"] for defence in report.summary.run.defences] == ["explanation_reconstructor"]


def test_the_standard_suite_runs_with_a_detector(
    digits_classifier: PyTorchClassifier, reconstructor: ExplanationReconstructor, x: FloatArray, y: IntArray
) -> None:
    """Every attack runs, those against the detector on all images and on the surrogate."""
    brief = [replace(spec, build=lambda c, t, seed: RandomNoise(c, t.norm, t.eps, 2, seed=seed)) for spec in STANDARD]
    attacks = [*brief, *paper_specs(ExplanationReconstructor), *DETECTOR_SUITE[:1]]
    report = evaluate_in_blocks(
        digits_classifier, x[:3], y[:3], Linf(EPS), attacks, curve_samples=1, check_samples=0, detector=reconstructor
    )
    assert report.summary.run.modes == ["exact", "smooth"]
    selective_row = find_row(report, "selective PGD [smooth]")
    assert (selective_row.attacked, selective_row.samples) == (3, "all")
    # A step is a pass of the classifier's and three of the detector's through the same network: the predicted class,
    # the explanation as it is and as it is differentiated. At the end the images are looked at without a gradient.
    assert (selective_row.forward, selective_row.backward) == (100 * 4 + 3, 100 * 3 + 1)
    assert report.summary.detection is not None
    knows = {row.key: row.knows for row in report.summary.detection.rows}
    papers = [spec.name for spec in paper_specs(ExplanationReconstructor)]
    assert knows == {"transfer PGD-40": "zero", **dict.fromkeys(papers, "zero"), "selective PGD [smooth]": "perfect"}
    assert {name for example in report.examples for name in example.views} <= {"explanation", "reconstruction"}


def test_examples_show_what_the_detector_sees(
    digits_classifier: PyTorchClassifier, reconstructor: ExplanationReconstructor, x: FloatArray, y: IntArray
) -> None:
    attack = make_attack("dark", lambda x, y: x * np.float32(0.2), samples="all")
    report = evaluate_in_blocks(
        digits_classifier, x, y, Linf(1.0), [attack], allow_large_eps=True, detector=reconstructor
    )
    (example,) = report.examples
    assert set(example.views) == {"explanation", "reconstruction"}
    assert all(view.shape == (1, 8, 8) for views in example.views.values() for view in views)


def test_the_papers_of_the_reconstructor_move_images_away_from_the_predicted_class(
    digits_classifier: PyTorchClassifier, reconstructor: ExplanationReconstructor, x: FloatArray, y: IntArray
) -> None:
    """A misclassified image is moved away from its predicted class, not further into it."""
    # For each image a class that is not the predicted one.
    wrong_labels = (predict_classes(digits_classifier, x) + 1) % 10
    fgsm = paper_specs(ExplanationReconstructor)[0]
    records = [
        evaluate_in_blocks(digits_classifier, x, labels, Linf(EPS), [fgsm], detector=reconstructor).records
        for labels in (y, wrong_labels)
    ]
    for record, other_record in zip(*records, strict=True):
        assert record.attacks[fgsm.name].l2 == other_record.attacks[fgsm.name].l2
        assert record.attacks[fgsm.name].detection_margin == other_record.attacks[fgsm.name].detection_margin


def test_a_random_detector_is_averaged_by_its_attacker_and_votes(
    digits_classifier: PyTorchClassifier, x: FloatArray, y: IntArray, few_passes: None
) -> None:
    calls: list[Call] = []
    attacks = [record_calls(replace(spec, samples="all"), calls) for spec in SEEING[:1]]
    detector = make_detector(1.0, 0.35, noise=0.02)
    report = evaluate_in_blocks(digits_classifier, x, y, Linf(EPS), attacks, detector=detector)
    assert (report.summary.run.votes, report.summary.run.draws) == (VOTES, EOT_DRAWS)
    rejected = [record.clean_misses for record in report.records if record.clean_rejected]
    accepted = [record.clean_misses for record in report.records if record.correct]
    assert rejected
    assert all(misses is not None and misses > VOTES / 4 for misses in rejected)
    assert accepted
    assert all(misses is not None and misses < 3 * VOTES / 4 for misses in accepted)
    assert {*rejected, *accepted} - {0, VOTES}  # or this test shows little
    for record in report.records:
        for outcome in record.attacks.values():
            assert outcome.misses is not None
            if outcome.prediction == record.label:
                assert not outcome.misclassified
    assert report.summary.randomness is not None
    # It still rejects, and its margin is the mean of many.
    (attacked_classifier,) = {id(call.estimator): call.estimator for call in calls}.values()
    assert attacked_classifier.predict(x).shape == (len(x), 11)
    rejection_rates = np.array([(attacked_classifier.predict(x).argmax(axis=1) == 10).mean() for _ in range(3)])
    assert np.ptp(rejection_rates) < 0.2


# Attacks that return what cannot be used


def test_an_unusable_image_is_never_a_success(
    defended: PyTorchClassifier, x: FloatArray, y: IntArray, replacements: FloatArray
) -> None:
    """One pixel condemns the image; its neighbours in the batch count as ever, also where they are float64."""

    def act(x: FloatArray, y: FloatArray) -> Any:
        adversarial = break_labels(replacements, *range(10))(x, y).astype(np.float64)
        for position, value in enumerate((np.nan, np.inf, -0.01, 1.01)):
            adversarial[2 * position :: 8, 0, 3, 3] = value
        return adversarial

    report = evaluate_in_blocks(defended, x, y, Linf(2.0), [make_attack("a", act, samples="all")], allow_large_eps=True)
    clean = predict_classes(defended, x)
    for record in report.records:
        outcome = record.attacks["a"]
        assert outcome.usable == outcome.success == bool(record.index % 2)
        if not outcome.usable:
            assert (outcome.prediction, outcome.linf, outcome.l2) == (clean[record.index], 0, 0)
    assert f"{len(x) // 2} unusable" in find_row(report, "a").note
    assert report.accuracy_after_attacks == np.mean((clean == y)[::2]) / 2


def test_transferred_images_must_lie_in_the_clip_range_of_the_defended_classifier(
    defended: PyTorchClassifier, digits_classifier: PyTorchClassifier, x: FloatArray, y: IntArray
) -> None:
    """An undefended classifier may take any image; the defended one is never shown such."""
    unclipped = rebuild(digits_classifier, clip_values=None)
    attack = make_attack("beyond", lambda x, y: x - np.float32(5), crafted_on="undefended", samples="all")
    report = evaluate_in_blocks(defended, x, y, Linf(10.0), [attack], undefended=unclipped, allow_large_eps=True)
    assert not any(record.attacks["beyond"].success for record in report.records)
    assert report.accuracy_after_attacks == np.mean(predict_classes(defended, x) == y)


def test_a_misclassified_image_outside_the_ball_is_no_success(
    defended: PyTorchClassifier, x: FloatArray, y: IntArray, replacements: FloatArray
) -> None:
    attack = make_attack("far", break_labels(replacements, *range(10)), samples="all", bounded=False)
    report = evaluate_in_blocks(defended, x, y, Linf(0.3), [attack])
    correct = predict_classes(defended, x) == y
    far = np.array([np.abs(x[i] - replacements[int(y[i] == 0)]).max() > 0.3 for i in range(len(x))])
    assert far.all()
    assert all(record.attacks["far"].misclassified for record in report.records)
    assert not any(record.attacks["far"].success for record in report.records)
    assert report.accuracy_after_attacks == np.mean(correct)
    assert (find_row(report, "far").accuracy.rate, find_row(report, "far").broke) == (0, 0)  # type: ignore[union-attr]


RESULTS: dict[str, Callable[[FloatArray], Any]] = {
    "too few": lambda x: x[1:],
    "another image shape": lambda x: x[:, :, 1:],
    "None": lambda x: None,
    "a tensor": torch.from_numpy,
}


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
def test_a_result_that_is_no_batch_of_images_is_refused_in_a_sentence(
    result: Callable[[FloatArray], Any], defended: PyTorchClassifier, x: FloatArray, y: IntArray
) -> None:
    with pytest.raises(InputError, match=r"the attack 'odd' returned .* was expected") as caught:
        evaluate_in_blocks(defended, x, y, Linf(EPS), [make_attack("odd", lambda x, y: result(x))])
    assert len(str(caught.value).splitlines()) == 1


# Input that cannot be used


def _needing_labels(classifier: PyTorchClassifier) -> PyTorchClassifier:
    return rebuild(classifier, preprocessing_defences=[LabelSmoothing(apply_predict=True)])


def _of_shape(input_shape: tuple[int, ...], nb_classes: int) -> PyTorchClassifier:
    model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), nb_classes))
    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), input_shape, nb_classes, clip_values=(0, 1), device_type="cpu"
    )


def _with(x: FloatArray, value: float) -> FloatArray:
    changed = x.copy()
    changed[1, 0, 2, 2] = value
    return changed


def _labels_with(y: IntArray, value: int) -> IntArray:
    changed = y.copy()
    changed[1] = value
    return changed


BAD: dict[str, Callable[[PyTorchClassifier, FloatArray, Any], dict[str, Any]]] = {
    "NaN": lambda c, x, y: {"x": _with(x, np.nan)},
    "below the clip values": lambda c, x, y: {"x": _with(x, -0.1)},
    "three channels": lambda c, x, y: {"x": np.repeat(x, 3, axis=1)},
    "channels last": lambda c, x, y: {"x": x.transpose(0, 2, 3, 1)},
    "no image": lambda c, x, y: {"x": x[:0], "y": y[:0]},
    "uint8 images": lambda c, x, y: {"x": (x * 255).astype(np.uint8)},
    "one-hot too wide": lambda c, x, y: {"y": np.eye(11, dtype=np.float32)[y]},
    "probabilities": lambda c, x, y: {"y": np.full((len(x), 10), 0.1, np.float32)},
    "fractions as labels": lambda c, x, y: {"y": y + np.float32(0.5)},
    "unknown attack set": lambda c, x, y: {"attacks": "strongest"},
    "no attack": lambda c, x, y: {"attacks": []},
    "a number as threat": lambda c, x, y: {"threat": 0.1},
    "block_size 0": lambda c, x, y: {"block_size": 0},
    "curve_samples -1": lambda c, x, y: {"curve_samples": -1},
    "check_samples True": lambda c, x, y: {"check_samples": True},
    "a function": lambda c, x, y: {"classifier": c.predict},
    "labels at prediction": lambda c, x, y: {"classifier": _needing_labels(c)},
    "undefended for other images": lambda c, x, y: {"undefended": _of_shape((3, 8, 8), 10)},
    "undefended that rejects": lambda c, x, y: {"undefended": rejecting(c, make_detector(1, 0.5))},
    "a network as detector": lambda c, x, y: {"detector": MeanDetector(1, 0.5)},
    "a detector of three classes": lambda c, x, y: {"detector": BinaryInputDetector(_of_shape((1, 8, 8), 3))},
    "a detector that is not fitted": lambda c, x, y: {"detector": ExplanationReconstructor(c)},
    "two detectors": lambda c, x, y: {
        "classifier": rejecting(c, make_detector(1, 0.5)),
        "detector": make_detector(1, 0.5),
    },
    "rejected as a label": lambda c, x, y: {"detector": make_detector(1, 0.5), "y": _labels_with(y, 10)},
}


def fail_if_called(x: FloatArray, y: FloatArray) -> FloatArray:
    raise AssertionError("no work may begin")


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_a_sentence_and_nothing_is_written(
    bad: Callable[[PyTorchClassifier, FloatArray, IntArray], dict[str, Any]],
    defended: PyTorchClassifier,
    x: FloatArray,
    y: IntArray,
    tmp_path: Path,
) -> None:
    attacks = [
        make_attack("white", fail_if_called),
        make_attack("transfer", fail_if_called, crafted_on="undefended", samples="all"),
    ]
    good: dict[str, Any] = {"classifier": defended, "x": x, "y": y, "threat": Linf(EPS), "attacks": attacks}
    options = good | bad(defended, x, y)
    model, data = options.pop("classifier"), (options.pop("x"), options.pop("y"))
    with pytest.raises(InputError, match="expected") as caught:
        evaluate(model, data, **options, out=tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["a file", "another run"])
def test_a_folder_that_cannot_be_used_is_refused_before_any_work(
    kind: str, run: Run, defended: PyTorchClassifier, x: FloatArray, y: IntArray, tmp_path: Path
) -> None:
    if kind == "a file":
        (tmp_path / "run").write_text("in the way")
    else:
        shutil.copytree(run.folder, tmp_path / "run")
    before = read_contents(tmp_path)
    with pytest.raises(InputError, match=r"out is .* expected"):
        evaluate_in_blocks(defended, x, y, Linf(EPS), [make_attack("white", fail_if_called)], out=tmp_path / "run")
    assert read_contents(tmp_path) == before


def read_contents(folder: Path) -> dict[Path, Any]:
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


# Known answers


def make_plane(classes: int = 2) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    generator = np.random.default_rng(3)
    return generator.normal(size=(classes, 5)).astype(np.float32), generator.normal(size=classes).astype(np.float32)


@pytest.mark.parametrize(("threat", "dual"), [(Linf(0.08), 1), (L2(0.15), 2)], ids=["linf", "l2"])
def test_on_a_linear_classifier_robust_accuracy_is_the_share_beyond_the_radius(
    threat: Threat, dual: int, linear_classifier: Callable[..., PyTorchClassifier]
) -> None:
    """The distance to the boundary between two classes is |difference of logits| / dual norm of the difference."""
    weight, _ = make_plane()
    normal = weight[0].astype(np.float64) - weight[1]
    bias = np.array([0, normal.sum() / 2], np.float32)  # the boundary passes through the middle of the cube
    classifier = linear_classifier(weight, bias, (1, 1, 5))
    # Far from the faces of the cube, so that no clipping helps the classifier.
    x = np.random.default_rng(4).uniform(0.25, 0.75, size=(60, 1, 1, 5)).astype(np.float32)
    difference = x.reshape(60, 5).astype(np.float64) @ normal - bias[1]
    distance = np.abs(difference) / np.linalg.norm(normal, ord=dual)
    clear = np.abs(distance / threat.eps - 1) > 0.02
    x, distance, y = x[clear], distance[clear], (difference[clear] < 0).astype(np.int64)
    y[:3] = 1 - y[:3]  # wrong from the start
    pgd = AttackSpec("PGD", lambda c, t, seed: MarginPGD(c, t.norm, t.eps, max_iter=20, seed=seed), "", samples="all")
    report = evaluate_in_blocks(classifier, x, y, threat, [pgd], block_size=20)
    expected = distance > threat.eps
    expected[:3] = False
    assert [record.robust() for record in report.records] == expected.tolist()
    assert report.accuracy_after_attacks == expected.mean()
    assert 0.1 < expected.mean() < 0.9
    assert report.summary.clean.rate == 1 - 3 / len(x)


def test_more_attacks_never_raise_the_accuracy(
    run: Run, defended: PyTorchClassifier, x: FloatArray, y: IntArray
) -> None:
    papers = evaluate_in_blocks(defended, x, y, Linf(EPS), "papers")
    assert papers.accuracy_after_attacks == papers.summary.paper.rate  # type: ignore[union-attr]
    assert papers.summary.paper == run.report.summary.paper
    assert run.report.accuracy_after_attacks <= papers.accuracy_after_attacks


# The folder


def test_the_folder_holds_every_file_of_a_run(run: Run) -> None:
    files = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()}
    expected = {"manifest.json", "records.jsonl", "costs.jsonl", "findings.json"}
    expected |= {"report.json", "report.html", "figures/accuracy.png"}
    assert expected <= files
    assert all((run.folder / name).stat().st_size > 0 for name in expected)
    assert not any(Path(name).name.startswith(".") for name in files)  # nothing half-written
    assert json.loads((run.folder / "report.json").read_text()) == json.loads(json.dumps(run.report.summary.as_dict()))


def test_a_run_is_overwritten_only_on_request_and_a_failed_one_leaves_no_figures(
    run: Run, defended: PyTorchClassifier, x: FloatArray, y: IntArray, tmp_path: Path, without_pictures: None
) -> None:
    """``overwrite="no"`` is true to Python. A failed run beside an older report would have figures of another's."""
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    before, arguments = read_contents(folder), (x[:4], y[:4], Linf(EPS))
    with pytest.raises(InputError, match=r"^overwrite is 'no'; True or False was expected"):
        evaluate_in_blocks(defended, *arguments, [make_attack("idle", return_images)], out=folder, overwrite="no")
    assert read_contents(folder) == before

    def fail(x: FloatArray, y: FloatArray) -> FloatArray:
        raise RuntimeError("no memory left")

    with pytest.raises(InputError, match=r"'fails' failed in the block from sample 0 on .*no memory left"):
        evaluate_in_blocks(defended, *arguments, [make_attack("fails", fail)], out=folder, overwrite=True)
    assert not (folder / "report.json").exists()
    assert not (folder / "report.html").exists()
    evaluate_in_blocks(defended, *arguments, [make_attack("idle", return_images)], out=folder, overwrite=True)
    assert (
        len(read_records(folder)) == json.loads((folder / "report.json").read_text())["run"]["settings"]["samples"] == 4
    )
