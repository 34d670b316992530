"""What a function does, as a hash."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod

from art_defenses_ext.evaluation.run.code_hash import code_hash

STEP = 0.1


def with_default(x: float, step: float = 0.1) -> float:
    return x + step


def closing(step: Any) -> Callable[[float], Any]:
    return lambda x: x * step


def of_global(x: float) -> float:
    return x + STEP


def calling(x: float) -> float:
    return of_global(x) + 1


def inside(x: float) -> Callable[[], float]:
    return lambda: x + STEP


def even(n: int) -> bool:
    return n == 0 or odd(n - 1)


def odd(n: int) -> bool:
    return n > 0 and even(n - 1)


class Attack(FastGradientMethod):
    def __init__(self, eps: float) -> None:
        self.by = eps

    def generate(self, x: Any, y: Any = None, **kwargs: Any) -> Any:
        return x + self.by


class Counting:
    """A class with a member of every kind."""

    steps = 1

    @staticmethod
    def sized(x: float) -> float:
        return x

    @classmethod
    def made(cls) -> float:
        return 1.0

    @property
    def size(self) -> float:
        return 1.0


def choosing() -> Any:
    return line(0.0), other_line(0.0), PICK(0.0)


SAME = {
    "a lambda made twice": lambda: closing(2.0),
    "an array in a closure": lambda: closing(np.arange(3)),
    "a tensor in a closure": lambda: closing(torch.arange(3)),
    "options": lambda: closing({"b": [1, 2], "a": {3, 4}, "c": None}),
    "a function that calls itself by another one": lambda: even,
    "part of a function": lambda: functools.partial(with_default, step=2.0),
    "a class of one's own": lambda: lambda classifier: Attack(0.1),
    "a class with all that one may hold": lambda: Counting,
    "a method": lambda: Attack(0.1).generate,
    "ART's attack": lambda: lambda classifier: FastGradientMethod(classifier, eps=0.1),
    "a network": lambda: closing(torch.nn.Flatten()),
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME.keys())
def test_equal_behaviour_has_one_hash(make: Callable[[], Any]) -> None:
    first, second = code_hash(make()), code_hash(make())
    assert first == second
    assert len(first) == 64


def line(x: float) -> float:
    return x + 1


def other_line(x: float) -> float:
    return x + 2


PICK = line


OTHER = {
    "a constant": (line, other_line),
    "what a closure holds": (closing(1.0), closing(2.0)),
    "an option of it": (closing({"a": 1}), closing({"a": 2})),
    "an array of it": (closing(np.zeros(2)), closing(np.ones(2))),
    "its dtype": (closing(np.zeros(2, np.float32)), closing(np.zeros(2, np.int32))),
    "a function of it": (closing(line), closing(other_line)),
    "an option of a part": (functools.partial(line, x=1.0), functools.partial(line, x=2.0)),
    "what the object of a method holds": (Attack(0.1).generate, Attack(0.2).generate),
    "the class": (lambda c: FastGradientMethod(c), lambda c: Attack(c)),
}


@pytest.mark.parametrize(("first", "second"), OTHER.values(), ids=OTHER.keys())
def test_different_behaviour_has_another_hash(first: Any, second: Any) -> None:
    assert code_hash(first) != code_hash(second)


@pytest.mark.parametrize("function", [of_global, calling, inside])
def test_the_hash_covers_globals_of_called_functions(
    function: Callable[[float], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = code_hash(function)
    monkeypatch.setitem(of_global.__globals__, "STEP", 0.2)
    assert code_hash(function) != before


PARTS = {
    "steps": 2,
    "sized": staticmethod(lambda x: x + 1),
    "made": classmethod(lambda cls: 2.0),
    "size": property(lambda self: 2.0),
}


@pytest.mark.parametrize("name", PARTS)
def test_the_hash_covers_every_member_of_a_class(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_hash(Counting)
    monkeypatch.setattr(Counting, name, PARTS[name])
    assert code_hash(Counting) != before


def test_the_hash_covers_the_function_that_a_name_refers_to(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = set()
    for picked in (line, other_line):
        monkeypatch.setitem(globals(), "PICK", picked)
        hashes.add(code_hash(choosing))
    assert len(hashes) == 2
