"""A detector's weights are counted before they are made, and refused in words where they do not fit."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext import ExplanationReconstructor
from art_defenses_ext.base import memory
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.memory import available_memory, in_words
from art_defenses_ext.detector import fitting, memory as detector_memory
from art_defenses_ext.zoo.datasets import Dataset

CPU = torch.device("cpu")


def wide() -> PyTorchClassifier:
    """A thousand classes of images of 224 x 224 pixels."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))
    return PyTorchClassifier(
        model.eval(), nn.CrossEntropyLoss(), (3, 224, 224), 1000, clip_values=(0.0, 1.0), device_type="cpu"
    )


def dense(nb_classes: int, size: int, hidden: int) -> int:
    """Bytes of one dense autoencoder d - h - d with its biases for each class, in float32."""
    return 4 * nb_classes * (size * hidden + hidden + hidden * size + size)


def set_available(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(detector_memory, "available_memory", lambda device: count)


def test_a_thousand_classes_at_224_pixels_are_made_without_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    set_available(monkeypatch, 2**40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    detector = ExplanationReconstructor(wide(), reconstructor="autoencoder")
    assert detector.weight_bytes == dense(1000, 224 * 224, 64) == 25_891_072_000
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 2**30


def test_weights_that_do_not_fit_are_refused_with_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    set_available(monkeypatch, 16 * 2**30)
    message = (
        r"reconstructor is 'autoencoder', whose weights for 1000 classes take 24\.1 GiB, of 16\.0 GiB available on "
        r"cpu; reconstructor='convolutional' or reconstructor='statistics' was expected"
    )
    with pytest.raises(InputError, match=message):
        ExplanationReconstructor(wide(), reconstructor="autoencoder")
    for reconstructor in ("convolutional", "statistics"):
        assert ExplanationReconstructor(wide(), reconstructor=reconstructor).weight_bytes < 2**20
    set_available(monkeypatch, 100)
    with pytest.raises(InputError, match="a smaller hidden was expected"):
        ExplanationReconstructor(wide(), reconstructor="convolutional")


@pytest.mark.parametrize(
    ("nb_classes", "size", "expected"),
    [(10, 224, "autoencoder"), (1000, 32, "autoencoder"), (100, 224, "convolutional"), (1000, 224, "convolutional")],
)
def test_the_default_is_convolutional_where_the_dense_one_takes_more_than_four_gib_in_training(
    nb_classes: int, size: int, expected: str
) -> None:
    assert (4 * dense(nb_classes, size * size, 64) <= 4 * 2**30) == (expected == "autoencoder")
    assert detector_memory.usual_reconstructor(nb_classes, (1, size, size), 64) == expected
    assert nb_classes * size < 224000 or ExplanationReconstructor(wide()).reconstructor == expected


def test_a_fit_that_does_not_fit_is_refused_before_an_image_is_explained(
    monkeypatch: pytest.MonkeyPatch, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    weights = dense(10, 64, 8)
    set_available(monkeypatch, 3 * weights)
    detector = ExplanationReconstructor(digits_classifier, hidden=8)
    monkeypatch.setattr(fitting, "explained", lambda *_: pytest.fail("it began"))
    with pytest.raises(
        InputError, match=rf"and {in_words(4 * weights)} while they are trained, of {in_words(3 * weights)}"
    ):
        detector.fit(digits.train.x, nb_epochs=1, validation_split=0.3, progress=False)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"hidden": 8}, dense(10, 64, 8)),
        ({"hidden": 8, "explanation": ["input_gradient", "relevance"]}, dense(10, 128, 8)),
        # 3 x 3 kernels: 1 -> 32 -> 1 -> 32 -> 1 channels with biases, and 2 x 32 numbers for each of ten classes.
        ({"hidden": 16, "reconstructor": "convolutional"}, 4 * (9 * 4 * 32 + 32 + 1 + 32 + 1 + 640)),
        # A mean of 2 and a matrix of 2 x 2 for each of ten classes.
        ({"reconstructor": "statistics"}, 4 * 10 * (2 + 4)),
    ],
)
def test_the_count_is_what_a_fit_has_made(
    options: dict[str, Any], expected: int, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    detector = ExplanationReconstructor(digits_classifier, **options)
    assert detector.weight_bytes == expected
    detector.fit(digits.train.x, nb_epochs=1, validation_split=0.3, progress=False)
    weights = {tensor.data_ptr(): tensor for tensor in detector.network.reconstructors.state_dict().values()}
    assert sum(tensor.untyped_storage().nbytes() for tensor in weights.values()) == expected


# What is left


@pytest.mark.parametrize("group", [True, False])
def test_the_cpu_has_left_what_the_system_and_the_group_allow(
    group: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 16000 kB\nMemAvailable:    5000 kB\n")
    (tmp_path / "memory.max").write_text("4096000\n" if group else "max\n")
    (tmp_path / "memory.current").write_text("2048000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 1000\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert available_memory(CPU) == (4096000 - 2048000 + 1000 if group else 5000 * 1024)


def test_nothing_is_refused_where_the_free_memory_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "none")
    assert available_memory(CPU) is None
    assert available_memory(torch.device("meta")) is None
    monkeypatch.setattr(detector_memory, "available_memory", lambda device: None)
    assert not ExplanationReconstructor(wide()).network.is_fitted
