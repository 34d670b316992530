"""Rebuilding a classifier: what is not replaced is carried over and shared."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.postprocessor import ReverseSigmoid
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from torch import nn

from art_defenses_ext.estimator.rebuild import as_model_input, model_dtype, rebuild, record_undefended, undefended

CONSTRUCTOR_ARGUMENTS = [
    "model",
    "loss",
    "input_shape",
    "nb_classes",
    "optimizer",
    "use_amp",
    "opt_level",
    "loss_scale",
    "channels_first",
    "clip_values",
    "preprocessing_defences",
    "postprocessing_defences",
    "preprocessing",
    "device_type",
]


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(75, 4))


@pytest.fixture
def classifier() -> PyTorchClassifier:
    """Nothing here has ART's default value."""
    model = linear()
    return PyTorchClassifier(
        model,
        nn.MultiMarginLoss(),
        (5, 5, 3),
        4,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.2),
        opt_level="O2",
        loss_scale="4.0",
        channels_first=False,
        clip_values=(np.zeros(3), np.array([1.0, 2.0, 4.0])),
        preprocessing_defences=[StandardisationMeanStdPyTorch(mean=0.1, std=3.0, device_type="cpu")],
        postprocessing_defences=[ReverseSigmoid()],
        preprocessing=(np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])),
        device_type="cpu",
    )


@pytest.fixture
def x() -> Any:
    return np.random.default_rng(0).random((6, 5, 5, 3), dtype=np.float32)


def test_the_list_of_constructor_arguments_is_that_of_art() -> None:
    """A new argument in a later version of ART must be carried over too."""
    names = PyTorchClassifier.__init__.__code__.co_varnames[1 : PyTorchClassifier.__init__.__code__.co_argcount]
    assert sorted(names) == sorted(CONSTRUCTOR_ARGUMENTS)


def test_every_constructor_argument_is_carried_over(classifier: PyTorchClassifier, x: Any) -> None:
    rebuilt = rebuild(classifier)
    assert rebuilt is not classifier
    for name in CONSTRUCTOR_ARGUMENTS:
        before, after = getattr(classifier, name), getattr(rebuilt, name)
        if name == "clip_values":
            np.testing.assert_array_equal(after, before)
        elif name in ("preprocessing_defences", "postprocessing_defences"):
            assert [id(part) for part in after] == [id(part) for part in before]
        else:
            assert after is before or after == before
    assert rebuilt.model is classifier.model
    assert rebuilt.device == classifier.device
    np.testing.assert_array_equal(rebuilt.predict(x), classifier.predict(x))
    y = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1]]
    np.testing.assert_array_equal(rebuilt.loss_gradient(x, y), classifier.loss_gradient(x, y))


@pytest.mark.parametrize("preprocessing", [None, (0.0, 1.0), (0.25, 0.5)])
def test_any_preprocessing_is_carried_over(preprocessing: Any, x: Any) -> None:
    classifier = PyTorchClassifier(
        linear(), nn.CrossEntropyLoss(), (5, 5, 3), 4, preprocessing=preprocessing, device_type="cpu"
    )
    rebuilt = rebuild(classifier)
    assert (rebuilt.preprocessing is None) == (preprocessing is None)
    np.testing.assert_array_equal(rebuilt.predict(x), classifier.predict(x))


def test_a_part_that_is_given_replaces_the_old_one_and_the_old_classifier_stays(
    classifier: PyTorchClassifier, x: Any
) -> None:
    before = classifier.predict(x)
    replacement = linear()
    changed = rebuild(classifier, model=replacement, optimizer=None, preprocessing_defences=None)
    assert changed.model is replacement
    assert changed.optimizer is None
    assert changed.preprocessing_operations == [classifier.preprocessing]
    assert len(classifier.preprocessing_operations) == 2
    np.testing.assert_array_equal(classifier.predict(x), before)


# The undefended classifier


def test_the_first_classifier_in_a_row_is_the_undefended_one(classifier: PyTorchClassifier) -> None:
    assert undefended(classifier) is None
    once = record_undefended(rebuild(classifier), classifier)
    twice = record_undefended(rebuild(once), once)
    assert undefended(once) is classifier
    assert undefended(twice) is classifier
    assert undefended(classifier) is None


def test_a_deep_copy_has_an_undefended_classifier_of_its_own(classifier: PyTorchClassifier, x: Any) -> None:
    defended = record_undefended(rebuild(classifier, model=linear(), optimizer=None), classifier)
    twin = deepcopy(defended)
    with torch.no_grad():
        for parameter in undefended(twin).model.parameters():
            parameter.zero_()
    assert (undefended(twin).predict(x) == undefended(twin).predict(x)[0, 0]).all()
    assert np.ptp(classifier.predict(x)) > 0


# The model's dtype


class Indexed(nn.Module):
    """Its first parameter is a list of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.index = nn.Parameter(torch.arange(3), requires_grad=False)
        self.linear = nn.Linear(2, 2).double()


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        (nn.Linear(2, 2), torch.float32),
        (nn.Linear(2, 2).double(), torch.float64),
        (nn.Linear(2, 2).to(torch.bfloat16), torch.bfloat16),
        (Indexed(), torch.float64),
        (nn.Flatten(), None),
    ],
)
def test_an_input_is_cast_to_the_dtype_of_the_parameters(model: nn.Module, dtype: torch.dtype | None) -> None:
    assert model_dtype(model) == dtype
    x = torch.rand(3, 2, dtype=torch.float64)
    assert as_model_input(x, model).dtype == (dtype or torch.float64)
