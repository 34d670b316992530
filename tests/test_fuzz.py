"""Hostile arguments are refused in words: a few hundred in each run, ten thousand in ``make fuzz``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _fuzz() -> ModuleType:
    path = Path(__file__).parent / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


fuzz = _fuzz()


def test_a_run_says_what_became_of_each_case_and_a_seed_draws_the_same_ones() -> None:
    first, second = (fuzz.run(3, 40, only="Surrogate") for _ in range(2))
    assert first.cases == second.cases == 40
    assert str(first) == str(second)
    assert first.refused > 20
    assert fuzz.report(first).startswith("cases 40, refused ")


def test_what_nobody_argued_for_is_counted() -> None:
    tally = fuzz.Tally(silent=[("evaluate", "y", "a word"), ("AutoPGD", "batch_size", "a large number")])
    assert tally.unargued == [("evaluate", "y", "a word")]
    assert "NOT ARGUED FOR" in fuzz.report(tally)


@pytest.mark.nightly
def test_ten_thousand() -> None:
    tally = fuzz.run(0, 10_000)
    print(fuzz.report(tally))
    assert tally.cases == 10_000
