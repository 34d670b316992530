"""Hostile arguments are refused in words: a few hundred in each run, ten thousand in ``make fuzz``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from art_defenses_ext.base.errors import InputError


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


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What cases are made of, once for all tests here."""
    return fuzz.World(tmp_path_factory.mktemp("world"))


def test_a_run_says_what_became_of_each_case_and_a_seed_draws_the_same_ones(world: Any) -> None:
    first, second = (fuzz.run(3, 40, only="Surrogate", world=world) for _ in range(2))
    assert first.cases == second.cases == 40
    assert str(first) == str(second)
    assert first.refused > 20
    assert fuzz.report(first).startswith("cases 40, refused ")


def test_what_nobody_argued_for_is_counted() -> None:
    tally = fuzz.Tally(silent=[("evaluate", "y", "a word"), ("AutoPGD", "batch_size", "a large number")])
    assert tally.unargued == [("evaluate", "y", "a word")]
    assert "NOT ARGUED FOR" in fuzz.report(tally)


def test_every_call_works_as_it_is_declared(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its refusals would say nothing."""
    monkeypatch.chdir(world.working)
    refusals = []
    with fuzz.quiet():
        for target in world.targets():
            spoils = " of other " in target.name or " on other " in target.name
            if spoils or target.name in ("load_weights of a dtype", "evaluate again"):
                continue  # these are refused as they are
            try:
                target.call(target.valid())
            except InputError as error:
                refusals.append(f"{target.name}: {error}")
    assert not refusals


def test_three_hundred(world: Any) -> None:
    tally = fuzz.run(20_26, 300, world=world)
    assert not tally.tracebacks, fuzz.report(tally)
    assert not tally.unargued, fuzz.report(tally)
