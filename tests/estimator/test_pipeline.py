"""Before any work a classifier is tried on two images: logits for each class, as many images as were given."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.expectation_over_transformation import EoTImageRotationPyTorch
from torch import Tensor, nn

from art_defenses_ext import (
    ExplanationReconstructor,
    FeatureAutoencoder,
    HeatAndBlur,
    JumpReLU,
    Surrogate,
    TwoStreamRestoration,
    defend,
)
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.estimator.pipeline import check_runs
from art_defenses_ext.estimator.rebuild import rebuild
from art_defenses_ext.training.classifier import train_classifier

SHAPE, NB_CLASSES = (3, 8, 8), 10


class Network(nn.Module):
    """Ten logits, and something made of them."""

    def __init__(self, answer: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(144, NB_CLASSES)
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(self.linear(self.convolution(x).relu().flatten(1)))


def wrap(answer: Callable[[Tensor], Any] = lambda logits: logits, **options: Any) -> PyTorchClassifier:
    arguments = {"clip_values": (0.0, 1.0), "device_type": "cpu", "nb_classes": NB_CLASSES} | options
    return PyTorchClassifier(Network(answer).eval(), nn.CrossEntropyLoss(), SHAPE, **arguments)


ANSWERS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "one column": (lambda z: z[:, :1], r"gives .* of shape \(2, 1\)"),
    "no column": (lambda z: z[:, 0], r"gives .* of shape \(2,\)"),
    "too many axes": (lambda z: z[:, :, None, None], r"gives .* of shape \(2, 10, 1, 1\)"),
    "too few": (lambda z: z[:, :9], r"gives .*shape \(2, 9\) for 2 images; logits \(2, 10\)"),
    "too many": (lambda z: torch.cat([z, z], dim=1), r"gives .*shape \(2, 20\) for 2 images; logits \(2, 10\)"),
    "whole numbers": (lambda z: z.round().long(), r"gives torch.int64 of shape \(2, 10\)"),
    "a pair": (lambda z: (z, z), "gives a tuple "),
    "a dictionary": (lambda z: {"logits": z}, "gives a dict "),
    "another number of rows": (lambda z: z[:1], r"gives .*shape \(1, 10\) for 2"),
}

CONSTRUCTORS: dict[str, Callable[[PyTorchClassifier], Any]] = {
    "JumpReLU": JumpReLU,
    "HeatAndBlur": HeatAndBlur.for_classifier,
    "FeatureAutoencoder": FeatureAutoencoder.for_classifier,
    "TwoStreamRestoration": TwoStreamRestoration.for_classifier,
    "ExplanationReconstructor": ExplanationReconstructor,
}


@pytest.mark.parametrize(
    ("answer", "constructor"),
    [*((answer, "HeatAndBlur") for answer in ANSWERS), *(("too few", constructor) for constructor in CONSTRUCTORS)],
)
def test_outputs_that_are_no_logits_of_each_class_are_refused(answer: str, constructor: str) -> None:
    outputs, message = ANSWERS[answer]
    with pytest.raises(InputError, match=rf"^classifier {message}"):
        CONSTRUCTORS[constructor](wrap(outputs))
    CONSTRUCTORS[constructor](wrap())


@pytest.mark.parametrize("answer", ["one column", "no column", "too many axes"])
def test_a_fit_by_the_network_alone_refuses_them_too(answer: str) -> None:
    x, y = np.random.default_rng(0).random((6, *SHAPE), dtype=np.float32), np.arange(6) % 2
    outputs, message = ANSWERS[answer]
    with pytest.raises(InputError, match=rf"^model {message.replace('2', '1', 1)}"):
        FeatureAutoencoder(Network(outputs), channels=3, width=2).fit(x, y, nb_epochs=1, batch_size=6, progress=False)
    with pytest.raises(InputError, match="model"):
        train_classifier(Network(outputs), x, y, nb_epochs=1, mean=[0.0] * 3, std=[1.0] * 3, progress=False)


def test_a_network_for_other_images_is_named() -> None:
    with pytest.raises(InputError, match=r"classifier cannot take 2 images \(3, 9, 9\) \(RuntimeError: mat1 and mat2"):
        JumpReLU(PyTorchClassifier(Network(), nn.CrossEntropyLoss(), (3, 9, 9), NB_CLASSES, device_type="cpu"))


# As many images as were given


def rotations(**options: Any) -> PreprocessorPyTorch:
    """ART's average over rotations: four images of each."""
    return EoTImageRotationPyTorch(nb_samples=4, clip_values=(0.0, 1.0), angles=10.0, apply_predict=True, **options)


def test_a_preprocessor_that_repeats_images_is_refused_where_it_is_put_on() -> None:
    message = r"EoTImageRotationPyTorch makes \(8, 3, 8, 8\) of \(2, 3, 8, 8\); the same number of images was expected"
    with pytest.raises(InputError, match=message):
        defend(wrap(), rotations())
    with pytest.raises(
        InputError, match=r"preprocessor EoTImageRotationPyTorch makes \(8, 3, 8, 8\) of \(2, 3, 8, 8\)"
    ):
        defend(wrap(), Surrogate(rotations()))
    already = rebuild(wrap(), preprocessing_defences=[rotations()])
    for constructor in CONSTRUCTORS.values():
        with pytest.raises(InputError, match=r"classifier has the preprocessor EoTImageRotationPyTorch, which makes"):
            constructor(already)


class Own(PreprocessorPyTorch):
    """Whatever it is given."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__(is_fitted=True, apply_fit=False, apply_predict=True)
        self.answer = answer

    def forward(self, x: Tensor, y: Any = None) -> tuple[Any, Any]:
        return self.answer(x), y


def test_a_preprocessor_that_gives_no_images_is_refused() -> None:
    with pytest.raises(InputError, match="preprocessor Own gives a list; a tensor was expected"):
        defend(wrap(), Own(lambda x: list(x)))
    with pytest.raises(InputError, match=r"preprocessor Own cannot take images \(2, 3, 8, 8\) \(RuntimeError: "):
        defend(wrap(), Own(lambda x: x.reshape(7)))


# What the trial leaves alone


def test_no_generator_moves_and_no_mode_changes() -> None:
    def add_noise(x: Tensor) -> Tensor:
        return x + torch.rand_like(x) * np.random.rand() * random.random()  # noqa: NPY002 (ART's own draw from it)

    classifier = rebuild(wrap(), preprocessing_defences=[Own(add_noise)])
    classifier.model.train()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    check_runs(classifier)
    assert classifier.model.training
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
