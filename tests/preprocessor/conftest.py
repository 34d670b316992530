"""What the tests of the preprocessors share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.evaluation.suite.seeding import seeded


@pytest.fixture
def assert_attack_of_art_runs() -> Callable[..., None]:
    """Asserts that an attack of ART makes other images in the clip range, and that PGD lowers the accuracy."""

    def assert_runs(
        attack: Any, defended: PyTorchClassifier, x: FloatArray, one_hot: FloatArray, is_pgd: bool, **options: Any
    ) -> None:
        with seeded(0):
            adversarial = attack(defended, verbose=False, **options).generate(x, one_hot)
        assert isinstance(adversarial, np.ndarray)
        assert (adversarial.shape, adversarial.dtype) == (x.shape, np.float32)
        assert np.isfinite(adversarial).all()
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
        assert not np.array_equal(adversarial, x)
        if is_pgd:
            labels = one_hot.argmax(axis=1)
            clean, attacked = (defended.predict(images).argmax(axis=1) == labels for images in (x, adversarial))
            assert attacked.sum() <= clean.sum() - 3

    return assert_runs
