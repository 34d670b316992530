"""The figures of random defences while an attack optimises and after, against a brute-force count of all passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from math import prod
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.attack import EvasionAttack
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn import functional as F

from art_defenses_ext import AttackSpec, Linf, defend, evaluate
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.random_protocol import FRESH, PassFigures, figures_of, random_protocol
from art_defenses_ext.evaluation.results.randomness import worst_of
from art_defenses_ext.evaluation.suite import vote
from art_defenses_ext.evaluation.suite.queries import PointPasses, Queries
from art_defenses_ext.zoo.datasets import Dataset

DRAWS = 5
STEPS = 2
EPS = 0.15
COUNT = 6


def noise(x: Tensor) -> Tensor:
    return x + 0.3 * torch.randn_like(x)


def random_resize(x: Tensor) -> Tensor:
    size = int(torch.randint(3, 9, ()))
    return F.interpolate(F.interpolate(x, size=(size, size), mode="bilinear"), size=x.shape[2:], mode="bilinear")


def dropout(x: Tensor) -> Tensor:
    return F.dropout(x, 0.4, training=True)


@dataclass
class Passes:
    """The classes that a network named for each image of each pass, in order."""

    classes: list[Any] = field(default_factory=list)

    def misses(self, y: Any) -> Any:
        """Whether each pass missed each label (passes, N)."""
        return np.stack(self.classes) != y


class Random(PreprocessorPyTorch):
    """A random function in front of the network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(device_type="cpu", apply_fit=False, apply_predict=True)
        self.function = function

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        return self.function(x), y


@pytest.fixture(params=["noise", "random resize", "dropout", "purifier"])
def defended(
    request: pytest.FixtureRequest, own_classifier: PyTorchClassifier, diffusion_purifier: Any
) -> tuple[PyTorchClassifier, Passes]:
    """A random defence, and the passes of its network since an attack began."""
    passes = Passes()
    own_classifier.model.register_forward_hook(
        lambda network, inputs, logits: passes.classes.append(logits.detach().argmax(dim=1).numpy())
    )
    functions = {"noise": noise, "random resize": random_resize, "dropout": dropout}
    name = request.param
    return defend(own_classifier, diffusion_purifier if name == "purifier" else Random(functions[name])), passes


def make_spec(passes: Passes, attack: Callable[..., EvasionAttack]) -> AttackSpec:
    def build(classifier: PyTorchClassifier, threat: Linf, seed: int) -> EvasionAttack:
        passes.classes.clear()
        return attack(classifier, threat.norm, threat.eps, seed=seed)

    return AttackSpec("attack", build, "sends points", samples="all", kind="white-box")


def few_steps(classifier: PyTorchClassifier, norm: Any, eps: float, seed: int) -> MarginPGD:
    return MarginPGD(classifier, norm, eps, max_iter=STEPS, stop_when_broken=False, seed=seed)


def outvoted(classes: Any, label: int) -> bool:
    """Whether another class is named as often as the label."""
    counts = np.bincount(classes, minlength=10)
    return bool(np.delete(counts, label).max() >= counts[label])


def brute_force(classes: Any, y: Any, draws: int) -> dict[str, Any]:
    """The figures of passes (steps * draws, N), from an enumeration of all choices of N passes at each step."""
    misses = classes != y
    steps = misses.reshape(-1, draws, misses.shape[1])
    sets = {size: list(combinations(range(draws), min(size, draws))) for size in (1, 2, draws, 20)}
    return {
        "mean": fmean(min(1 - step[:, i].mean() for step in steps) for i in range(misses.shape[1])),
        "worst_of": {
            size: fmean(
                prod(fmean(not step[list(chosen), i].any() for chosen in choices) for step in steps)
                for i in range(misses.shape[1])
            )
            for size, choices in sets.items()
        },
        "majority": sum(
            not any(outvoted(step[:, i], y[i]) for step in classes.reshape(-1, draws, len(y))) for i in range(len(y))
        ),
    }


def assert_figures(figures: PassFigures, expected: dict[str, Any]) -> None:
    assert figures.mean.mean == pytest.approx(expected["mean"])
    for size, accuracy in expected["worst_of"].items():
        assert figures.worst_of[size - 1] == pytest.approx(accuracy)
    assert figures.majority.count == expected["majority"]


def test_the_protocol_counts_all_passes(defended: tuple[PyTorchClassifier, Passes], digits: Dataset) -> None:
    classifier, passes = defended
    x, y = digits.test.x[:COUNT], digits.test.y[:COUNT]
    protocol = random_protocol(classifier, (x, y), Linf(EPS), make_spec(passes, few_steps), draws=DRAWS, progress=False)
    classes, misses = np.stack(passes.classes), passes.misses(y)
    attack, fresh = classes[:-FRESH], misses[-FRESH:]
    assert len(attack) == (STEPS + 1) * DRAWS
    assert 0 < misses.mean() < 1
    assert_figures(protocol.while_optimising, brute_force(attack, y, DRAWS))
    after = protocol.after
    assert after.mean.mean == pytest.approx(1 - fresh.mean())
    assert after.worst_of == pytest.approx(worst_of(fresh.sum(axis=0).tolist(), FRESH))
    assert after.majority.count == sum(not outvoted(classes[-FRESH:, i], y[i]) for i in range(COUNT))
    assert (protocol.points, protocol.passes, protocol.fresh) == (STEPS + 1, (STEPS + 1) * DRAWS, FRESH)
    assert "| while optimising |" in protocol.table()


def test_the_records_of_an_evaluation_count_all_passes(
    defended: tuple[PyTorchClassifier, Passes], digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an attack that makes no pass, 32 passes choose the rivals and the next 32 are counted."""

    class Shift(EvasionAttack):
        _estimator_requirements = ()

        def generate(self, x: Any, y: Any = None, **_: Any) -> Any:
            return np.clip(x + EPS, 0, 1)

    classifier, passes = defended
    x, y = digits.test.x[:3], digits.test.y[:3]
    monkeypatch.setattr(vote, "MOST_PASSES", 32)  # an image that they do not decide would get more
    shift = make_spec(passes, lambda classifier, norm, eps, seed: Shift(estimator=classifier))
    report = evaluate(classifier, (x, y), Linf(EPS), [shift], curve_samples=0, check_samples=0, progress=False)
    misses = passes.misses(y)
    outcomes = [record.attacks["attack"] for record in report.records]
    assert [outcome.first_misses for outcome in outcomes] == misses[:32].sum(axis=0).tolist()
    assert [outcome.misses for outcome in outcomes] == misses[32:].sum(axis=0).tolist()
    randomness = report.summary.randomness
    assert randomness is not None
    assert randomness.mean == pytest.approx(1 - misses[32:].mean(), abs=0.1)  # the clean image, where it seems worse


def test_a_pass_belongs_to_the_nearest_image_and_counts_inside_the_ball() -> None:
    """Rows in any order, repeated and left out; points outside the ball or the clip range; a point sent again."""
    x = np.array([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]], np.float32)
    queries = Queries(x, np.array([0, 1, 2]), Linf(0.2), (0, 1), draws=2)
    assert queries.apart()
    assert not Queries(x, queries.labels, Linf(0.3), (0, 1), draws=2).apart()
    points = [[0.6, 0.4], [0.1, 0.1], [0.6, 0.4], [0.8, 0.5], [1.1, 1.0], [0.0, 0.2]]
    for classes in ([1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 0, 1]):
        queries.note(torch.tensor(points), torch.tensor(classes))
    expected = [
        [PointPasses(0, Counter([0, 1])), PointPasses(0, Counter([0, 1]))],
        [PointPasses(1, Counter([1, 0])), PointPasses(1, Counter([1, 1]))],  # two passes in each call, and sent twice
        [],
    ]
    assert queries.points == expected


def test_images_whose_balls_overlap_are_attacked_one_by_one(own_classifier: PyTorchClassifier, digits: Dataset) -> None:
    x, y = np.repeat(digits.test.x[:1], 2, axis=0), np.repeat(digits.test.y[:1], 2)
    passes = Passes()
    own_classifier.model.register_forward_hook(lambda network, inputs, logits: passes.classes.append(len(logits)))
    classifier = defend(own_classifier, Random(noise))
    protocol = random_protocol(classifier, (x, y), Linf(EPS), make_spec(passes, few_steps), draws=DRAWS, progress=False)
    assert passes.classes == [1] * (STEPS + 1) * DRAWS + [2] * FRESH  # of the second image, and the fresh ones
    assert protocol.passes == (STEPS + 1) * DRAWS


def test_the_label_wins_a_vote_with_less_than_half_of_the_passes_and_loses_a_tie() -> None:
    won, tied = PointPasses(0, Counter([0, 0, 1, 2, 3])), PointPasses(0, Counter([0, 0, 1, 1]))
    assert (won.passes, won.misses, won.outvoted, tied.outvoted) == (5, 3, False, True)


def test_an_image_without_a_point_counts_as_robust() -> None:
    figures = figures_of([[], [PointPasses(0, Counter([1, 2, 3, 4]))]])
    assert (figures.mean.mean, figures.worst_of[0], figures.majority.count) == (0.5, 0.5, 1)


def test_a_classifier_that_is_not_random_is_refused(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    data = digits.test.x[:2], digits.test.y[:2]
    with pytest.raises(InputError, match="a random classifier was expected"):
        random_protocol(digits_classifier, data, Linf(EPS), make_spec(Passes(), few_steps))
    with pytest.raises(InputError, match="attack is 'standard'; an AttackSpec was expected"):
        random_protocol(digits_classifier, data, Linf(EPS), "standard")  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_figures(own_classifier: PyTorchClassifier, digits: Dataset) -> None:
    classifier = defend(own_classifier, Random(noise))
    data = digits.test.x[:COUNT], digits.test.y[:COUNT]
    first, again, other = (
        random_protocol(
            classifier, data, Linf(EPS), make_spec(Passes(), few_steps), draws=DRAWS, seed=seed, progress=False
        )
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert first.while_optimising.worst_of[0] <= first.after.worst_of[0] + 0.2
