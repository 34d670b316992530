"""AutoPGD on linear classifiers, where the smallest radius that breaks an image has a closed form, and on digits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.detector.evasion import BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext import as_module
from art_defenses_ext.attack.auto_pgd import AutoPGD, auto_pgd, nearest_targets
from art_defenses_ext.attack.ball import L1, L2, Ball, Linf
from art_defenses_ext.attack.base import CONFIRMATIONS, predict
from art_defenses_ext.attack.losses import LOSSES, Objective
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.averaged import Averaged
from art_defenses_ext.estimator.rebuild import rebuild
from art_defenses_ext.estimator.rejecting import rejecting
from art_defenses_ext.zoo.datasets import Dataset

NORMS = (2, np.inf)
Problem = Callable[..., tuple[PyTorchClassifier, Any, Any, Any]]


def missed(classifier: PyTorchClassifier, x: Any, y: Any) -> Any:
    return classifier.predict(x).argmax(axis=1) != y


@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.5), L1(2)])
def test_the_function_alone_descends_a_linear_network_to_its_lowest_margin(ball: Ball) -> None:
    """No classifier, no ART: the margin of w x falls by eps times the dual norm of w at most."""
    weight = torch.randn(40, generator=torch.Generator().manual_seed(0))
    x, y = torch.ones(3, 40), torch.zeros(3, dtype=torch.long)

    def logits(images: Tensor, labels: Tensor) -> Tensor:
        return torch.stack([images @ weight + 100, torch.zeros(len(images))], dim=1)

    adversarial = auto_pgd(logits, x, y, ball, max_iter=30)
    lowest = x @ weight - ball.eps * ball.dual_size(weight[None])
    torch.testing.assert_close(adversarial @ weight, lowest, rtol=1e-3, atol=1e-3)
    assert (ball.size(adversarial - x) <= ball.eps * (1 + 1e-5)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_targeted_attack_reaches_the_class_asked_for(norm: float, at_distance: Problem) -> None:
    classifier, x, y, _ = at_distance((4, 6), norm, 0.03)
    x_adv = AutoPGD(classifier, norm, 0.0303, targeted=True).generate(x, 1 - y)
    assert missed(classifier, x_adv, y).all()
    short = AutoPGD(classifier, norm, 0.0297, targeted=True).generate(x, 1 - y)
    assert not missed(classifier, short, y).any()


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_breaks_at_least_as_much_as_plain_descent(
    loss: str, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    """Three images of 40 are allowed for chance."""
    x, y = digits.test.x[:40], digits.test.y[:40]
    plain = missed(digits_classifier, MarginPGD(digits_classifier, np.inf, 0.1, max_iter=20).generate(x, y), y).sum()
    runs = 3 if loss.endswith("_targeted") else 1
    adversarial = AutoPGD(digits_classifier, np.inf, 0.1, max_iter=30, loss=loss, nb_runs=runs).generate(x, y)
    assert missed(digits_classifier, adversarial, y).sum() >= plain - 3


def test_the_batch_is_refilled_and_stays_full(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    """Broken samples make room for those that wait, so that only the last ones run in a batch that is not full."""
    x, y = digits.test.x[:64], digits.test.y[:64]
    sizes: list[int] = []
    handle = digits_classifier.model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    AutoPGD(digits_classifier, np.inf, 0.1, max_iter=50, batch_size=8).generate(x, y)
    handle.remove()
    assert sizes == sorted(sizes, reverse=True)
    assert sizes.count(8) >= (64 - 8 + 1) * 10 / 8  # each of those that had to wait takes ten steps or more
    assert sum(sizes) < 50 * 64


@pytest.mark.parametrize(
    ("max_iter", "batch_size", "sizes"),
    [
        (40, 256, [4] * 10 + [36] * 30 + [32] * 10),
        (10, 20, [4] * 10 + [20] * 10 + [12] * 10),
        (1, 256, [4, 32]),
    ],
)
def test_later_runs_begin_when_the_first_has_come_a_quarter_of_its_way(
    max_iter: int, batch_size: int, sizes: list[int], digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    """In a ball in which nothing breaks: four samples, nine runs of each."""
    batch_sizes: list[int] = []
    handle = digits_classifier.model.register_forward_hook(lambda _, inputs, __: batch_sizes.append(len(inputs[0])))
    attack = AutoPGD(digits_classifier, np.inf, 1e-4, max_iter, "dlr_targeted", nb_runs=9, batch_size=batch_size)
    attack.generate(digits.test.x[:4], digits.test.y[:4])
    handle.remove()
    assert batch_sizes[-len(sizes) :] == sizes  # before them the targets are chosen


class NoisyLinear(nn.Module):
    """Logits (W + noise) x, with noise of each image's own: the expected gradient of the margin is that of W."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weight + torch.randn(len(x), *self.weight.shape)
        return (weights @ x.flatten(1)[:, :, None]).squeeze(2)


def test_gradients_averaged_over_randomness_converge_to_their_expectation() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NoisyLinear(torch.randn(2, 12))
        copies = 50  # of three images, to draw more often in a pass
        x, y = torch.rand(3, 12).repeat(copies, 1), torch.tensor([0, 1, 0]).repeat(copies)
        side = torch.where(y == 0, 1.0, -1.0)[:, None]
        expected = (model.weight[1] - model.weight[0]).detach() * side
        errors = []
        for eot in (2, 50):
            _, _, gradient = Objective(eot=eot).differentiate(lambda images, labels: model(images), x, y, y)
            errors.append(float((gradient - expected).reshape(copies, 3, 12).mean(dim=0).abs().max()))
    # The standard error of a difference of two unit normals, over 36 entries: below four of it.
    assert errors[0] < 4 * (2 / 100) ** 0.5
    assert errors[1] < 4 * (2 / 2_500) ** 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "dlr_targeted", "targeted": True}, "with targeted another loss"),
    ],
)
def test_a_bad_setting_is_refused(options: dict[str, Any], message: str, digits_classifier: PyTorchClassifier) -> None:
    with pytest.raises(InputError, match=message):
        AutoPGD(digits_classifier, **options)


def test_a_loss_that_needs_more_classes_is_refused(at_distance: Problem) -> None:
    classifier, *_ = at_distance((8,), 2, 0.1)
    with pytest.raises(InputError, match="loss dlr needs 3 classes; the classifier has 2"):
        AutoPGD(classifier, loss="dlr")


def with_detector(classifier: PyTorchClassifier, linear_classifier: Callable[..., PyTorchClassifier]) -> Any:
    """Rejects the half of the images that is brighter than the other."""
    weight = np.stack([np.zeros(64), np.ones(64)]).astype(np.float32)
    return rejecting(
        classifier, BinaryInputDetector(linear_classifier(weight, np.array([0, -20], np.float32), (1, 8, 8)))
    )


@pytest.mark.parametrize("norm", NORMS)
def test_rejected_is_no_target(
    norm: float, digits_classifier: PyTorchClassifier, digits: Dataset, linear_classifier: Any
) -> None:
    """Each of the nine runs heads for another class, and none stays."""
    rejecting_classifier = with_detector(digits_classifier, linear_classifier)
    x, y = torch.from_numpy(digits.test.x[:40]), torch.from_numpy(digits.test.y[:40])
    rejected = predict(as_module(rejecting_classifier), x) == 10
    assert 5 < rejected.sum() < 35
    robust = rejected | (predict(as_module(rejecting_classifier), x) == y)
    attack = AutoPGD(rejecting_classifier, norm, loss="margin_targeted", nb_runs=9)
    logits = partial(attack.logits, as_module(rejecting_classifier))
    targets = nearest_targets(logits, x[robust], y[robust], attack.ball, attack.loss, attack.nb_runs)
    classes = torch.cat([targets, y[robust, None]], dim=1).sort(dim=1).values
    assert (classes == torch.arange(10)).all()


class Tied(nn.Module):
    """All logits tie up to a pixel sum of 36, where the first class is still predicted; above it the second wins."""

    def forward(self, x: Tensor) -> Tensor:
        rise = (x.flatten(1).sum(dim=1) - 32) / 100
        steep = torch.where(x.flatten(1).sum(dim=1) > 36, rise, rise - rise.detach())
        return torch.stack([torch.zeros_like(rise), steep, torch.zeros_like(rise)], dim=1)


@pytest.mark.parametrize("attack", [AutoPGD, MarginPGD])
def test_a_tie_is_no_success(attack: Any) -> None:
    """The first class is predicted while all tie, so that an attack that stopped at a margin of zero broke nothing."""
    classifier = PyTorchClassifier(Tied(), nn.CrossEntropyLoss(), (1, 8, 8), 3, clip_values=(0, 1), device_type="cpu")
    x, y = np.full((4, 1, 8, 8), 0.5, np.float32), np.zeros(4, int)
    assert not missed(classifier, x, y).any()
    assert missed(classifier, attack(classifier, np.inf, 0.065, max_iter=40).generate(x, y), y).all()


@pytest.mark.parametrize(("confirmations", "lucky", "passes"), [(1, 1, 10), (8, 1, 40), (8, 8, 10), (8, 7, 40)])
def test_an_image_leaves_once_it_is_broken_so_many_times_in_a_row(confirmations: int, lucky: int, passes: int) -> None:
    """A network that errs in its first passes alone; the batch changes after every ten steps."""
    calls = 0

    def logits(x: Tensor, _: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        right = -1.0 if calls <= lucky else 1.0
        return torch.stack([x.flatten(1).sum(dim=1) * 0 + right, x.flatten(1).sum(dim=1) * 0], dim=1)

    x, y = torch.full((3, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    auto_pgd(logits, x, y, Linf(0.1), max_iter=40, confirmations=confirmations, clip_values=(0.0, 1.0))
    assert calls == passes


def test_a_random_network_must_be_broken_repeatedly(digits_classifier: PyTorchClassifier) -> None:
    x = torch.zeros(1, 1, 8, 8)
    averaged = rebuild(digits_classifier, model=Averaged(digits_classifier.model, 2).eval())
    for attack, expected in (
        (AutoPGD(digits_classifier), 1),
        (AutoPGD(digits_classifier, eot=2), CONFIRMATIONS),
        (AutoPGD(averaged), CONFIRMATIONS),
    ):
        assert attack.options(as_module(attack.estimator), x)["confirmations"] == expected
