"""Unusable input is refused before any work, in a sentence that names it; all other input is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from art.estimators.estimator import BaseEstimator
from torch import Tensor, nn

from art_defenses_ext import (
    AttackSpec,
    ExplanationReconstructor,
    FeatureAutoencoder,
    HeatAndBlur,
    Linf,
    TwoStreamRestoration,
    defend,
    evaluate,
)
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.attack.square import Square
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.evaluate import evaluate_shard, run_key
from art_defenses_ext.evaluation.run.folder import RECORDS
from art_defenses_ext.evaluation.run.shard import Shard
from art_defenses_ext.evaluation.suite.attacker import depends_on_batch
from art_defenses_ext.evaluation.suite.probe import with_least_effort
from art_defenses_ext.evaluation.suite.suites import FAST, STANDARD, WHITE_BOX
from art_defenses_ext.preprocessor.base import PreprocessorPyTorch
from art_defenses_ext.testing.assertions import Suite

N, K = 12, 4
SHAPE = (1, 6, 6)


class Answering(nn.Module):
    """Four logits of an image, from which ``answer`` makes what the network returns."""

    def __init__(self, answer: Callable[[Tensor], Any] = lambda logits: logits, shape: tuple[int, ...] = SHAPE) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.linear = nn.Linear(int(np.prod(shape)), K)
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(self.linear(x.flatten(1)))


def wrap(network: nn.Module, shape: tuple[int, ...] = SHAPE, nb_classes: int = K) -> PyTorchClassifier:
    return PyTorchClassifier(
        network.eval(), nn.CrossEntropyLoss(), shape, nb_classes, clip_values=(0.0, 1.0), device_type="cpu"
    )


def make_images(shape: tuple[int, ...] = SHAPE) -> Any:
    return np.random.default_rng(0).random((N, *shape), dtype=np.float32)


BRIEF = (
    AttackSpec(
        "PGD",
        lambda c, t, seed: MarginPGD(c, t.norm, t.eps, max_iter=3, seed=seed),
        "white-box",
        kind="white-box",
    ),
    AttackSpec("Square", lambda c, t, seed: Square(c, t.norm, t.eps, max_queries=20, seed=seed), "", kind="queries"),
)


def evaluate_briefly(classifier: PyTorchClassifier, attacks: Any = BRIEF, **options: Any) -> Any:
    x = make_images(classifier.input_shape)
    settings: dict[str, Any] = {"curve_samples": 0, "check_samples": 0, "progress": False} | options
    return evaluate(classifier, (x, np.arange(N) % 2), Linf(0.1), attacks, **settings)


class Scriptable(nn.Module):
    """A network that torch can script."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(36, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


REFUSED: dict[str, tuple[Callable[[], PyTorchClassifier], str]] = {
    "tuple": (lambda: wrap(Answering(lambda z: (z, z))), r"classifier (gives|returns) a tuple .* logits"),
    "integers": (lambda: wrap(Answering(lambda z: z.long())), "classifier .*int64 .* floating-point"),
    "three dimensions": (lambda: wrap(Answering(lambda z: z[:, None])), r"classifier .*\(2, 1, 4\)"),
    "too few logits": (lambda: wrap(Answering(), nb_classes=10), r"classifier .*logits \(2, 10\)"),
    "one logit of two": (lambda: wrap(Answering(lambda z: z[:, :1]), nb_classes=2), "classifier .* single logit"),
    "scripted": (lambda: wrap(torch.jit.script(Scriptable())), "classifier has a network of TorchScript"),
    "raising": (lambda: wrap(Answering(lambda z: 1 / 0)), "classifier .*ZeroDivisionError"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_network_that_makes_no_logits_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    build, sentence = REFUSED[case]
    x = make_images()
    for entry_point in (
        lambda: evaluate_briefly(build(), "standard", out=tmp_path / "run"),
        lambda: run_key(build(), (x, np.arange(N) % 2), Linf(0.1)),
        lambda: evaluate_shard(
            build(), (x, np.arange(N) % 2), Linf(0.1), shard=Shard(1, 2), out=tmp_path / "run", progress=False
        ),
        lambda: Suite(tmp_path / "cache").is_robust("name", build(), (x, np.arange(N) % 2), Linf(0.1), 0.0),
    ):
        with pytest.raises(InputError, match=sentence) as refused:
            entry_point()
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shape", [(8,), (1, 2, 4, 4)])
def test_the_whole_standard_suite_runs_on_inputs_of_any_number_of_axes(shape: tuple[int, ...]) -> None:
    """The suite breaks a linear network exactly where its closed form says so."""
    classifier = wrap(Answering(shape=shape), shape)
    x = make_images(shape)
    weight = classifier.model.linear.weight.detach().numpy().astype(np.float64)
    logits = classifier.predict(x).astype(np.float64)
    labels = logits.argmax(axis=1)
    gaps = np.array([[logits[i, y] - logits[i, k] for k in range(K) if k != y] for i, y in enumerate(labels)])
    slopes = np.array([[np.abs(weight[y] - weight[k]).sum() for k in range(K) if k != y] for y in labels])
    distances = (gaps / slopes).min(axis=1)
    eps = float(np.median(distances))
    inner = np.clip(x, eps, 1 - eps)  # so that no ball meets the ends of the clip range
    logits = classifier.predict(inner).astype(np.float64)
    labels = logits.argmax(axis=1)
    gaps = np.array([[logits[i, y] - logits[i, k] for k in range(K) if k != y] for i, y in enumerate(labels)])
    slopes = np.array([[np.abs(weight[y] - weight[k]).sum() for k in range(K) if k != y] for y in labels])
    robust = (gaps / slopes).min(axis=1) > eps
    report = evaluate(
        classifier, (inner.astype(np.float32), labels), Linf(eps), curve_samples=0, check_samples=0, progress=False
    )
    assert [record.robust() for record in report.records] == robust.tolist()
    assert {"APGD margin [exact]", "Square", "noise"} <= {key for r in report.records for key in r.attacks}


def test_a_network_of_another_dtype_gives_the_same_verdicts_and_hides_no_planted_example() -> None:
    """A convex score of the image: a gradient leads to the planted example, in half precision too."""
    verdicts = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        report = evaluate_briefly(wrap(Answering().to(dtype)), [WHITE_BOX], check_samples=4)
        verdicts.append([record.robust() for record in report.records])
        (check,) = [check for check in report.summary.checks if check.name == "binarization"]
        assert check.verdict == "passed", check.finding
    assert verdicts == [verdicts[0]] * 4


class Own(EvasionAttack):
    """An attack of a user's."""

    _estimator_requirements = (BaseEstimator,)

    def __init__(self, estimator: PyTorchClassifier, act: Callable[[Any], Any]) -> None:
        super().__init__(estimator=estimator)
        self.act = act

    def generate(self, x: Any, y: Any = None, **kwargs: Any) -> Any:
        return self.act(x)


def make_attack(name: str, act: Callable[[Any], Any], **options: Any) -> AttackSpec:
    return AttackSpec(name, lambda classifier, threat, seed: Own(classifier, act), "a test's", **options)


def test_the_last_attack_that_cannot_be_built_is_named_before_the_first_begins(tmp_path: Path) -> None:
    batch_sizes: list[int] = []

    def refuse(classifier: PyTorchClassifier, threat: Any, seed: int) -> EvasionAttack:
        raise TypeError("needs colours")

    first = make_attack("first", lambda x: batch_sizes.append(len(x)) or x)
    with pytest.raises(InputError, match=r"attacks holds 'last', .*\(TypeError: needs colours\)") as refused:
        evaluate_briefly(wrap(Answering()), [first, AttackSpec("last", refuse, "a test's")], out=tmp_path / "run")
    assert isinstance(refused.value.__cause__, TypeError)
    assert batch_sizes == []
    assert not (tmp_path / "run").exists()


def test_an_attack_of_ours_that_fails_in_its_first_step_is_named_at_once() -> None:
    """The probe asks for the gradient under the mode in which the attack runs."""

    class Deaf(MarginPGD):
        def perturb(self, *arguments: Any, **options: Any) -> Tensor:
            raise RuntimeError("no kernel")

    failing_spec = AttackSpec("late", lambda c, t, seed: Deaf(c, t.norm, t.eps), "", kind="white-box")
    with pytest.raises(InputError, match=r"attacks holds 'late'.*RuntimeError: no kernel"):
        evaluate_briefly(wrap(Answering()), [BRIEF[0], failing_spec])


def test_attacks_that_all_follow_a_gradient_need_one(tmp_path: Path) -> None:
    detached = wrap(Answering(lambda z: z.detach()))
    with pytest.raises(InputError, match="attacks holds 'PGD', which follows a gradient, and no graph leads"):
        evaluate_briefly(detached, BRIEF[:1])
    assert len(evaluate_briefly(detached, BRIEF).records) == N  # Square needs none


def test_the_least_effort_makes_few_passes_and_leaves_the_attack_unchanged() -> None:
    passes = {"images": 0}

    class Counting(Answering):
        def forward(self, x: Tensor) -> Any:
            passes["images"] += len(x)
            return super().forward(x)

    classifier = wrap(Counting())
    for spec in (*FAST, *STANDARD):
        if spec.crafted_on == "smoothed":
            continue
        attack = spec.build(classifier, Linf(0.1), 0)
        before = {name: getattr(attack, name) for name in attack.attack_params}
        passes["images"] = 0
        with_least_effort(attack).generate(make_images()[:2], np.array([0, 1]))
        assert passes["images"] <= 40, spec.name
        assert {name: getattr(attack, name) for name in attack.attack_params} == before


# What depends on the batch


class OverTheBatch(nn.Module):
    """A softmax over the wrong axis, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Answering()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return logits.softmax(dim=0)


class ByPlace(nn.Module):
    """Adds to each image's logits a term that depends on its place in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Answering()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return logits + torch.arange(len(x))[:, None] * torch.tensor([1.0, 0, 0, 0])


@pytest.mark.parametrize("network", [OverTheBatch, ByPlace])
def test_evaluate_names_a_network_that_does_not_treat_each_image_alone(network: type[nn.Module]) -> None:
    classifier = wrap(network())
    assert depends_on_batch(classifier, make_images()[:4])
    report = evaluate_briefly(classifier, [WHITE_BOX], check_samples=4)
    (check,) = [check for check in report.summary.checks if check.name == "batches"]
    assert check.verdict == "failed"
    assert "block_size" in check.finding
    assert report.established is False


@pytest.mark.parametrize("scale", [1.0, 1e4, float("nan")])
def test_a_network_that_treats_each_image_alone_does_not_depend_on_the_batch(scale: float) -> None:
    assert not depends_on_batch(wrap(Answering(lambda z: z * scale)), make_images()[:8])


# What breaks off


class Changing(Answering):
    """Answers otherwise from its n-th pass on."""

    def __init__(self, after: int, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.after, self.other, self.passes = after, answer, 0

    def forward(self, x: Tensor) -> Any:
        self.passes += 1
        logits = super().forward(x)
        return logits if self.passes < self.after else self.other(logits)


def fail(*_: Any) -> Any:
    raise KeyError("the wire came loose")


@pytest.mark.parametrize(
    "other",
    [
        lambda z: z[:, :3],
        lambda z: {"logits": z},
        fail,
    ],
)
def test_a_network_that_fails_during_a_run_is_named_with_attack_and_block(
    other: Callable[[Tensor], Any], tmp_path: Path
) -> None:
    counting_network = Changing(10**9, other)
    evaluate_briefly(wrap(counting_network), BRIEF, block_size=4)
    broken = Changing(counting_network.passes - 2, other)
    with pytest.raises(
        InputError, match=r"(the attack '.*'|the classifier).* failed in the block from sample"
    ) as caught:
        evaluate_briefly(wrap(broken), BRIEF, block_size=4, out=tmp_path / "run")
    assert "the finished attacks are kept" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None
    finished_records = (tmp_path / "run" / RECORDS).read_text().splitlines()
    assert 4 <= len(finished_records) < N
    with pytest.raises(InputError, match="with out= the finished attacks would be kept"):
        evaluate_briefly(wrap(Changing(counting_network.passes - 2, other)), BRIEF, block_size=4)


def test_a_users_attack_that_raises_is_named_and_finished_attacks_are_not_repeated(tmp_path: Path) -> None:
    log = tmp_path / "calls"  # on the disk, since what an attack holds in memory is part of the run's identity

    def append_call(name: str) -> list[str]:
        with log.open("a") as file:
            file.write(f"{name}\n")
        return log.read_text().split()

    def first(x: Any) -> Any:
        append_call("first")
        return x

    def second(x: Any) -> Any:
        if len(append_call("second")) == 4:
            raise KeyError("out of luck")
        return x

    specs = [make_attack("first", first, samples="all"), make_attack("second", second, samples="all")]
    with pytest.raises(InputError, match="the attack 'second' failed in the block from sample 6 on") as caught:
        evaluate_briefly(wrap(Answering()), specs, block_size=6, out=tmp_path / "run")
    assert isinstance(caught.value.__cause__, KeyError)
    assert log.read_text().split() == ["first", "second"] * 2
    report = evaluate_briefly(wrap(Answering()), specs, block_size=6, out=tmp_path / "run")
    assert log.read_text().split() == ["first", "second", "first", "second", "second"]
    assert len(report.records) == N


class Sometimes(PreprocessorPyTorch):
    """Raises from its n-th call on."""

    params: list[str] = []  # noqa: RUF012

    def __init__(self, after: int) -> None:
        super().__init__(device_type="cpu", apply_fit=False, apply_predict=True)
        self.after, self.calls = after, 0

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        self.calls += 1
        if self.calls >= self.after:
            raise OSError("no more paper")
        return x, y


def test_a_preprocessor_that_raises_during_a_run_is_named_with_the_attack() -> None:
    counting_preprocessor = Sometimes(10**9)
    evaluate_briefly(defend(wrap(Answering()), counting_preprocessor), BRIEF)
    with pytest.raises(InputError, match=r"failed in the block from sample 0 on \(OSError: no more paper\)") as caught:
        evaluate_briefly(defend(wrap(Answering()), Sometimes(counting_preprocessor.calls - 3)), BRIEF)
    assert isinstance(caught.value.__cause__, OSError)


# What needs rows and columns


@pytest.mark.parametrize("shape", [(8,), (1, 4, 4, 4)])
@pytest.mark.parametrize(
    "build",
    [
        lambda c: ExplanationReconstructor(c),
        lambda c: ExplanationReconstructor(c, reconstructor="convolutional"),
        lambda c: ExplanationReconstructor(c, reconstructor="statistics"),
        HeatAndBlur.for_classifier,
        FeatureAutoencoder.for_classifier,
        TwoStreamRestoration.for_classifier,
    ],
)
def test_methods_for_images_refuse_inputs_without_rows_and_columns(build: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"classifier takes inputs of shape .*; images \(C, H, W\) were expected"):
        build(wrap(Answering(shape=shape), shape))


# A cache that cannot be written


@pytest.mark.usefixtures("without_pictures")
def test_statements_hold_without_a_writable_cache_and_say_so(tmp_path: Path) -> None:
    (tmp_path / "below a file").write_text("")
    suite = Suite(tmp_path / "below a file" / "robustness")
    classifier = wrap(Answering())
    x = make_images()
    y = classifier.predict(x).argmax(axis=1)
    for _ in range(2):
        report, folder = suite.evaluated("name", classifier, (x, y), Linf(1e-4), [WHITE_BOX], check_samples=2)
        assert (folder / "report.json").exists()
    assert report.robust_accuracy == 1.0
    assert len([note for note in suite.notes if "cannot be written" in note]) == 1
    assert "evaluated without it" in suite.notes[0]
