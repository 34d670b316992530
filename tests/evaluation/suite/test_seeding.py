"""Seeds of an evaluation."""

from __future__ import annotations

import random
import traceback
from typing import Any

import numpy as np
import pytest
import torch

from art_defenses_ext.evaluation.suite.seeding import seeded


def draws() -> tuple[Any, ...]:
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()  # noqa: NPY002


def test_the_seed_decides_the_draws_and_the_generators_go_on_as_before() -> None:
    with seeded(1):
        with seeded(3):
            first = draws()
        after = draws()
    with seeded(3):
        assert draws() == first
    with seeded(4):
        assert draws() != first
    with seeded(1):
        assert draws() == after


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a device that is there is seeded at once")
def test_without_a_device_no_seed_is_stored_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch stores it with a formatted stack, for each call of a run that seeds thousands of times."""
    stacks: list[Any] = []
    monkeypatch.setattr(traceback, "format_stack", lambda *_: stacks.append(None) or [])
    with seeded(3):
        torch.rand(1)
    assert not stacks


def test_a_random_defence_draws_other_numbers_than_the_attack_on_it() -> None:
    for seed in range(5):
        with seeded(seed):
            of_the_defence = torch.rand(4)
        assert not torch.equal(of_the_defence, torch.rand(4, generator=torch.Generator().manual_seed(seed)))
