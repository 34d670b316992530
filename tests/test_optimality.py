"""The strength of an attack as a number, by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RADII = np.array([0.0, 1.0, 2.0, 4.0])


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parent / "benchmarks")
    return importlib.import_module("optimality")


def images_left(*broken_from: int) -> Any:
    """Images left at each radius, for the index of the radius from which each image is broken; the last: wrong."""
    wrong = [0]
    return np.array([[place < first for first in (*broken_from, *wrong)] for place in range(len(RADII))])


def test_the_best_attack_has_one_and_an_attack_that_breaks_nothing_has_zero(benchmark: Any) -> None:
    best_attack = images_left(1, 2, 4)
    assert benchmark.optimality(best_attack, best_attack, RADII) == 1
    assert benchmark.optimality(images_left(4, 4, 4), best_attack, RADII) == 0


def test_an_attack_in_between_has_its_share_of_the_area(benchmark: Any) -> None:
    """The best breaks the first image from 1 on and the second from 2 on: areas .5 and 1.5 of 4; it takes 6 of 8."""
    best_attack = images_left(1, 2)
    attack = images_left(2, 3)  # areas 1.5 and 3 (2 and half of 2)
    assert benchmark.optimality(attack, best_attack, RADII) == pytest.approx((2.5 + 1) / 6)


def test_an_image_stays_broken_at_larger_radii(benchmark: Any) -> None:
    """A perturbation of a small ball lies in the larger ones too."""
    robust_again = images_left(1, 2)
    robust_again[3, 0] = True
    assert benchmark.optimality(robust_again, images_left(1, 2), RADII) == 1
