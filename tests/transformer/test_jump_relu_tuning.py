"""JumpReLU.fit: the jump that it chooses on validation images, against a search by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from art_defenses_ext import JumpReLU
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.rebuild import rebuild
from art_defenses_ext.zoo.datasets import Dataset


def oracle(classifier: PyTorchClassifier, x: Any, y: Any, jump: float) -> int:
    """How many images the network gets right with this jump."""
    return int((JumpReLU(classifier, jump)().predict(x).argmax(axis=1) == y).sum())


@pytest.mark.parametrize(("max_drop", "count"), [(0.01, 100), (0.1, 90), (0.019, 50)])
def test_the_chosen_jump_is_the_largest_on_the_grid_that_the_drop_allows(
    digits_classifier: PyTorchClassifier, digits: Dataset, max_drop: float, count: int
) -> None:
    x, y = digits.validation.x[:count], digits.validation.y[:count]
    transformer = JumpReLU(digits_classifier)
    transformer.fit(x, y, max_accuracy_drop=max_drop)
    assert transformer.is_fitted
    walked = [jump for jump, _ in transformer.curve]
    assert walked == sorted(set(walked))
    assert walked[0] == 0
    for jump, accuracy in transformer.curve:
        assert accuracy == pytest.approx(oracle(digits_classifier, x, y, jump) / len(x), abs=1e-9)
    allowed = int(max_drop * len(x) + 1e-9)
    plain = oracle(digits_classifier, x, y, 0.0)
    assert transformer.jump > 0
    assert plain - oracle(digits_classifier, x, y, transformer.jump) <= allowed
    # The grid has twenty equal steps up to a power of two times .01 that costs too much.
    limit = next(limit for limit in 0.01 * 2.0 ** np.arange(30) if limit > transformer.jump)
    while plain - oracle(digits_classifier, x, y, limit) <= allowed:
        limit *= 2
    assert plain - oracle(digits_classifier, x, y, transformer.jump + limit / 20) > allowed
    assert transformer().model.jumps == (transformer.jump,) * 3


def test_a_grid_of_one_s_own_is_walked_up_to_the_first_jump_that_costs_too_much(
    digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    x, y = digits.validation.x, digits.validation.y
    grid = [0.1, 0.3, 0.9, 2.7, 8.1]
    transformer = JumpReLU(digits_classifier)
    transformer.fit(x, y, max_accuracy_drop=0.02, jumps=grid)
    correct = {jump: oracle(digits_classifier, x, y, jump) for jump in (0.0, *grid)}
    costs = [correct[0.0] - correct[jump] > 0.02 * len(x) for jump in grid]
    first = costs.index(True)
    assert transformer.jump == (grid[first - 1] if first else 0.0)
    assert [jump for jump, _ in transformer.curve] == [0.0, *grid[: first + 1]]


def test_labels_in_either_form_and_batches_of_any_size_give_the_same_jump(
    digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    x, y = digits.validation.x[:100], digits.validation.y[:100]
    results = []
    for labels, batch_size in ((y, 256), (np.eye(10, dtype=np.float32)[y], 256), (y, 7)):
        transformer = JumpReLU(digits_classifier)
        transformer.fit(x, labels, batch_size=batch_size)
        results.append((transformer.jump, transformer.curve))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.zeros((9, 1, 8, 8))}, "x is float64"),
        ({"y": None}, "y is None"),
        ({"y": np.zeros(8, int)}, "y has 8 labels for 9 images"),
        ({"max_accuracy_drop": 1}, "max_accuracy_drop is 1; a fraction"),
        ({"jumps": []}, r"jumps is \[\]; ascending finite numbers > 0, or None, was expected"),
        ({"jumps": [0.0, 0.1]}, r"jumps is \[0\.0, 0\.1\]"),
        ({"jumps": [0.2, 0.1]}, "ascending"),
        ({"jumps": [0.1, 0.1]}, "ascending"),
        ({"jumps": [0.1, float("nan")]}, "ascending finite numbers"),
        ({"jumps": 0.1}, "jumps is 0.1"),
    ],
)
def test_tuning_with_unusable_arguments_is_refused(
    arguments: dict[str, Any], message: str, digits_classifier: PyTorchClassifier
) -> None:
    transformer = JumpReLU(digits_classifier, 0.1)
    x, y = np.zeros((9, 1, 8, 8), np.float32), np.arange(9)
    with pytest.raises(InputError, match=message):
        transformer.fit(**({"x": x, "y": y} | arguments))
    assert not transformer.is_fitted
    assert transformer.jump == 0.1


class Threshold(nn.Module):
    """Class 1 where r(x + shift) exceeds its value at x = .5."""

    def __init__(self, rectifier: Callable[[Tensor], Tensor], shift: float) -> None:
        super().__init__()
        self.rectifier, self.shift = rectifier, shift

    def forward(self, x: Tensor) -> Tensor:
        level = torch.sigmoid(torch.tensor(0.5 + self.shift)) * (0.5 + self.shift)  # SiLU's
        return torch.cat([level.expand(len(x), 1), self.rectifier(x.flatten(1) + self.shift)], dim=1)


@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_tuning_is_held_against_the_network_without_a_gate(shift: float) -> None:
    """What decides lies above zero, where jumps up to .5 cost nothing, or below, where a jump of 0 takes it away."""
    x = np.linspace(0, 1, 100, dtype=np.float32).reshape(100, 1)
    classifier = PyTorchClassifier(
        Threshold(F.silu, shift), nn.CrossEntropyLoss(), (1,), 2, clip_values=(0.0, 1.0), device_type="cpu"
    )
    transformer, y = JumpReLU(classifier), (x[:, 0] > 0.5).astype(int)
    assert (classifier.predict(x).argmax(axis=1) == y).all()
    if shift < 0:
        with pytest.raises(InputError, match=r"max_accuracy_drop is 0\.01, but a jump of 0 costs 0\.500"):
            transformer.fit(x, y)
    else:
        transformer.fit(x, y, jumps=[0.2, 0.4, 0.6])
        assert transformer.jump == 0.4


def test_what_was_tuned_goes_with_the_network_and_what_was_set_does_not(
    digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    transformer = JumpReLU(digits_classifier, 0.3)
    assert transformer().model.tuning is None
    transformer.fit(digits.validation.x, digits.validation.y, jumps=[0.1, 0.2])
    tuning = transformer().model.tuning
    assert (tuning.parameter, tuning.chosen) == ("jump", transformer.jump)
    assert tuning.points == [tuple(point) for point in transformer.curve]
    transformer.set_params(jump=0.15)
    assert transformer().model.tuning is None


def test_a_file_holds_the_tuned_jump_and_its_curve(
    digits_classifier: PyTorchClassifier, digits: Dataset, tmp_path: Path
) -> None:
    defence = JumpReLU(digits_classifier, width=0.5)
    defence.fit(digits.validation.x[:50], digits.validation.y[:50], max_accuracy_drop=0.1)
    defence.save(tmp_path / "jump")
    loaded = JumpReLU.load(tmp_path / "jump", classifier=digits_classifier)
    assert (loaded.jump, loaded.width, loaded.curve, loaded.is_fitted) == (defence.jump, 0.5, defence.curve, True)
    assert loaded().model.tuning == defence().model.tuning is not None
    x = digits.test.x[:20]
    assert np.array_equal(loaded.apply(digits_classifier).predict(x), defence().predict(x))


def test_a_file_is_of_its_network_alone(own_classifier: PyTorchClassifier, tmp_path: Path) -> None:
    JumpReLU(own_classifier, [0.1] * 3).save(tmp_path / "jump")
    assert JumpReLU.load(tmp_path / "jump", classifier=own_classifier).jump == [0.1] * 3
    with pytest.raises(InputError, match=r"and the classifier has \[\[0.0, 1.0\], \[0.0\], \[4.0\]"):
        JumpReLU.load(tmp_path / "jump", classifier=rebuild(own_classifier, preprocessing=(0.0, 4.0)))
    with torch.no_grad():
        next(own_classifier.model.parameters()).add_(1)
    with pytest.raises(InputError, match="whose jump_relu was built for another network"):
        JumpReLU.load(tmp_path / "jump", classifier=own_classifier)


def test_a_fit_leaves_the_network_and_the_generators_as_they_were(
    own_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    own_classifier.model.train()
    before = torch.get_rng_state()
    JumpReLU(own_classifier).fit(digits.validation.x[:20], digits.validation.y[:20], max_accuracy_drop=0.5)
    assert all(module.training for module in own_classifier.model.modules())
    assert torch.equal(torch.get_rng_state(), before)
