"""Gradient modes: every defence is found once, in the order of execution, and is left as it was."""

from __future__ import annotations

import copy
import pickle
from typing import Any, ClassVar

import numpy as np
import pytest
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.gradients.modes import (
    Defence,
    annealable_modes,
    find_defences,
    gradient_mode,
    gradient_modes,
    surrogate_width,
)


class Scale(nn.Module, Defence):
    """Doubles its input; the derivative that an attacker sees is 2 (exact), 1 or 10."""

    name = "scale"
    gradient_modes: ClassVar[tuple[str, ...]] = ("exact", "identity", "steep")

    def forward(self, x: Tensor) -> Tensor:
        slope = {"exact": 2.0, "identity": 1.0, "steep": 10.0}[self.gradient_mode]
        return 2 * x.detach() + slope * (x - x.detach())


class Shift(PreprocessorPyTorch, Defence):
    """Adds 1 before the network; no module. The derivative that an attacker sees is 1 (exact) or 3."""

    name = "shift"
    gradient_modes: ClassVar[tuple[str, ...]] = ("exact", "triple")

    def __init__(self) -> None:
        super().__init__(device_type="cpu", apply_fit=False, apply_predict=True)

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        slope = {"exact": 1.0, "triple": 3.0}[self.gradient_mode]
        return x.detach() + 1 + slope * (x - x.detach()), y


class Wide(nn.Module, Defence):
    """The identity; the derivative that an attacker sees in mode "wide" is the surrogate's width."""

    name = "wide"
    gradient_modes: ClassVar[tuple[str, ...]] = ("exact", "identity", "wide")
    annealable_modes: ClassVar[tuple[str, ...]] = ("wide",)

    def forward(self, x: Tensor) -> Tensor:
        slope = self.surrogate_width if self.gradient_mode == "wide" else 1.0
        return x.detach() + slope * (x - x.detach())


class Single(nn.Module, Defence):
    """A defence with no surrogate."""

    name = "single"


def sum_of_four() -> nn.Linear:
    linear = nn.Linear(4, 2, bias=False)
    nn.init.ones_(linear.weight)
    return linear


def wrap(model: nn.Module, *preprocessors: PreprocessorPyTorch) -> PyTorchClassifier:
    return PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        (4,),
        2,
        preprocessing_defences=list(preprocessors),
        preprocessing=None,
        device_type="cpu",
    )


def slope(classifier: PyTorchClassifier) -> float:
    """The derivative of a logit that is the sum of four equal defended inputs."""
    x = np.zeros((1, 4), np.float32)
    gradient = classifier.class_gradient(x, label=0)[0, 0]
    assert (gradient == gradient[0]).all()
    return float(gradient[0])


# One defence


def test_exact_comes_first_and_is_the_default() -> None:
    for defence in (Scale(), Shift(), Single()):
        assert defence.gradient_modes[0] == "exact"
        assert defence.gradient_mode == "exact"
        assert defence.describe() == {}


@pytest.mark.parametrize("mode", ["smooth", "", None])
def test_a_mode_that_is_not_offered_is_refused_and_changes_nothing(mode: Any) -> None:
    defence = Scale()
    defence.gradient_mode = "steep"
    with pytest.raises(InputError, match=r"gradient mode .*one of exact, identity, steep was expected"):
        defence.gradient_mode = mode
    assert defence.gradient_mode == "steep"


@pytest.mark.parametrize("twin_of", [copy.deepcopy, copy.copy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_keep_their_own_mode(twin_of: Any) -> None:
    original = nn.Sequential(Scale())
    twin = twin_of(original) if twin_of is not copy.copy else nn.Sequential(copy.copy(original[0]))
    with gradient_mode(original, "identity"):
        assert find_defences(twin)[0].gradient_mode == "exact"
        find_defences(twin)[0].gradient_mode = "steep"
        assert find_defences(original)[0].gradient_mode == "identity"
    assert find_defences(twin)[0].gradient_mode == "steep"
    assert find_defences(twin_of(twin))[0].gradient_mode == "steep"  # the copy starts from where the original is


# Finding them


def test_defences_are_found_in_the_order_in_which_an_image_meets_them() -> None:
    first, second, inner, outer = Shift(), Shift(), Scale(), Scale()
    model = nn.Sequential(outer, nn.Sequential(sum_of_four(), inner))
    assert find_defences(wrap(model, first, second)) == [first, second, outer, inner]
    assert find_defences(model) == [outer, inner]


def test_a_defence_that_is_met_twice_is_listed_once() -> None:
    shift, scale = Shift(), Scale()
    assert find_defences(wrap(nn.Sequential(scale, scale, sum_of_four()), shift, shift)) == [shift, scale]


def test_without_a_defence_there_is_one_mode() -> None:
    for target in (nn.Linear(4, 2), wrap(nn.Linear(4, 2))):
        assert find_defences(target) == []
        assert gradient_modes(target) == ("exact",)
        with gradient_mode(target, "exact"):
            pass
        with pytest.raises(InputError, match=r"'smooth': one of exact was expected"), gradient_mode(target, "smooth"):
            pass


def test_the_modes_of_stacked_defences_are_all_their_combinations() -> None:
    stacked = wrap(nn.Sequential(Scale(), sum_of_four()), Shift())
    assert gradient_modes(stacked) == (
        "exact+exact",
        "exact+identity",
        "exact+steep",
        "triple+exact",
        "triple+identity",
        "triple+steep",
    )
    assert gradient_modes(nn.Sequential(Single(), Scale())) == ("exact+exact", "exact+identity", "exact+steep")


# Choosing one


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("exact", 1 * 2),
        ("exact+identity", 1 * 1),
        ("triple+exact", 3 * 2),
        ("triple+steep", 3 * 10),
    ],
)
def test_a_combination_reaches_each_defence(mode: str, expected: float) -> None:
    stacked = wrap(nn.Sequential(Scale(), sum_of_four()), Shift())
    x = np.random.default_rng(0).random((3, 4), dtype=np.float32)
    plain = stacked.predict(x)
    assert slope(stacked) == 2
    with gradient_mode(stacked, mode):
        assert slope(stacked) == expected
        np.testing.assert_array_equal(stacked.predict(x), plain)
    assert slope(stacked) == 2


@pytest.mark.parametrize("mode", ["steep", "steep+triple", "triple+steep+exact", "triple+"])
def test_a_combination_that_does_not_exist_is_refused_and_changes_nothing(mode: str) -> None:
    stacked = wrap(nn.Sequential(Scale(), sum_of_four()), Shift())
    stacked.model[0].gradient_mode = "identity"
    with (
        pytest.raises(InputError, match=r"gradient mode .*one of exact\+exact, .*triple\+steep was expected"),
        gradient_mode(stacked, mode),
    ):
        pytest.fail("the context was entered")
    assert slope(stacked) == 1


def test_exact_means_exact_for_any_number_of_defences() -> None:
    model = nn.Sequential(Scale(), Scale(), Scale())
    for defence in find_defences(model):
        defence.gradient_mode = "steep"
    with gradient_mode(model, "exact"):
        assert [defence.gradient_mode for defence in find_defences(model)] == ["exact"] * 3
    assert [defence.gradient_mode for defence in find_defences(model)] == ["steep"] * 3


def test_an_exception_inside_restores_the_former_modes() -> None:
    stacked = wrap(nn.Sequential(Scale(), sum_of_four()), Shift())
    stacked.model[0].gradient_mode = "steep"
    with pytest.raises(FloatingPointError), gradient_mode(stacked, "triple+identity"):
        raise FloatingPointError
    assert slope(stacked) == 10


def test_contexts_nest() -> None:
    stacked = wrap(nn.Sequential(Scale(), sum_of_four()), Shift())
    with gradient_mode(stacked, "triple+steep"):
        with gradient_mode(stacked.model, "identity"):
            assert slope(stacked) == 3
        assert slope(stacked) == 30
    assert slope(stacked) == 2


# Surrogates with a width


def test_annealable_are_the_modes_in_which_some_surrogate_has_a_width() -> None:
    assert annealable_modes(Wide()) == ("wide",)
    for target in (Scale(), Single(), nn.Linear(4, 2), wrap(nn.Linear(4, 2))):
        assert annealable_modes(target) == ()
    stacked = wrap(nn.Sequential(Wide(), sum_of_four()), Shift())
    assert annealable_modes(stacked) == ("exact+wide", "triple+wide")
    assert annealable_modes(nn.Sequential(Wide(), Wide())) == (
        "exact+wide",
        "identity+wide",
        "wide+exact",
        "wide+identity",
        "wide+wide",
    )
    assert set(annealable_modes(stacked)) <= set(gradient_modes(stacked))


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_the_width_reaches_every_defence_and_is_restored_on_exit(factor: float) -> None:
    stacked = wrap(nn.Sequential(Wide(), Scale(), Wide(), sum_of_four()), Shift())
    x = np.random.default_rng(0).random((3, 4), dtype=np.float32)
    plain = stacked.predict(x)
    with gradient_mode(stacked, "triple+wide+exact+wide"):
        assert slope(stacked) == 3 * 1 * 2 * 1
        with surrogate_width(stacked, factor):
            assert slope(stacked) == 3 * factor * 2 * factor
            np.testing.assert_array_equal(stacked.predict(x), plain)
        assert slope(stacked) == 3 * 2
    assert [defence.surrogate_width for defence in find_defences(stacked)] == [1.0] * 4


def test_widths_multiply_where_contexts_nest_and_each_keeps_its_own() -> None:
    first, second = Wide(), Wide()
    first.surrogate_width = 2.0
    model = nn.Sequential(first, second)
    with surrogate_width(model, 0.5):
        assert (first.surrogate_width, second.surrogate_width) == (1.0, 0.5)
        with surrogate_width(second, 0.5):
            assert (first.surrogate_width, second.surrogate_width) == (1.0, 0.25)
        assert (first.surrogate_width, second.surrogate_width) == (1.0, 0.5)
    assert (first.surrogate_width, second.surrogate_width) == (2.0, 1.0)
