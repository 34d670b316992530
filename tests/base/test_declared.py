"""Options are refused by their declaration alone, wherever they arrive."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict
from typing import Annotated, Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from art_defenses_ext.base import declared
from art_defenses_ext.base.declared import (
    Count,
    Flag,
    InnerShare,
    Kind,
    Natural,
    NonNegative,
    Number,
    Options,
    Positive,
    Seed,
    Share,
    Text,
    check_declared,
    kind_of,
    one_of,
    option,
    validated,
)
from art_defenses_ext.base.errors import InputError

Mode = Annotated[str, one_of("exact", "smooth")]

ACCEPTED: list[tuple[Any, Any, Any]] = [
    (Count, 1, 1),
    (Count, np.int64(3), 3),
    (Natural, np.uint8(0), 0),
    (Seed, 2**63 - 1, 2**63 - 1),
    (Number, -2, -2.0),
    (Positive, np.float32(0.5), 0.5),
    (NonNegative, 0, 0.0),
    (Share, 1, 1.0),
    (InnerShare, 0.5, 0.5),
    (Flag, np.True_, True),
    (Text, "a name", "a name"),
    (Mode, "smooth", "smooth"),
    (Count | None, None, None),
    (Count | None, 2, 2),
]

REFUSED: list[tuple[Any, list[Any]]] = [
    (Count, [0, -1, 1.0, "1", True, None, 2**63, np.float64(1), [1]]),
    (Natural, [-1, 0.5, False]),
    (Seed, [-1, 2**63, "0"]),
    (Number, [float("nan"), float("inf"), "1", None, 10**400, True, np.array(3)]),
    (Positive, [0, -1, 1e39, float("nan")]),
    (NonNegative, [-1e-9]),
    (Share, [-0.01, 1.01, "0.5"]),
    (InnerShare, [0, 1]),
    (Flag, ["no", 0, 1, None, np.array([True])]),
    (Text, ["", "  ", "a\nb", "\x1b[2J", 3]),
    (Mode, ["none", "", None, ["exact"]]),
    (Count | None, [0, "none"]),
]

REFUSALS = [(annotation, value) for annotation, values in REFUSED for value in values]


def function_of(annotation: Any) -> Any:
    def function(option: Any) -> Any:
        return option

    function.__annotations__ = {"option": annotation}
    return validated(function)


def options_of(annotation: Any) -> Any:
    return type("Made", (Options,), {"__annotations__": {"option": annotation}, "__module__": __name__})


def holder_of(annotation: Any) -> Any:
    return type("Holder", (), {"__annotations__": {"option": annotation}, "__module__": __name__})


@pytest.mark.parametrize(("annotation", "value", "expected"), ACCEPTED)
def test_each_door_accepts_the_same_as_python_s_own_type(annotation: Any, value: Any, expected: Any) -> None:
    holder = holder_of(annotation)()
    holder.option = value
    check_declared(holder)
    for accepted in (function_of(annotation)(value), options_of(annotation)(option=value).option, holder.option):
        assert accepted == expected
        assert type(accepted) is type(expected)


@pytest.mark.parametrize(("annotation", "value"), REFUSALS)
def test_each_door_refuses_the_same_in_the_same_words(annotation: Any, value: Any) -> None:
    holder = holder_of(annotation)()
    holder.option = value
    doors = (
        lambda: function_of(annotation)(value),
        lambda: options_of(annotation)(option=value),
        lambda: check_declared(holder),
    )
    messages = set()
    for door in doors:
        with pytest.raises(InputError, match=r"^option is .*; .* was expected") as error:
            door()
        messages.add(str(error.value))
    assert len(messages) == 1


class Search(Options):
    """Options of nothing."""

    steps: Count = option(description="Steps.")
    mode: Mode = "exact"


def test_options_name_what_is_none_of_them_and_what_is_missing() -> None:
    with pytest.raises(InputError, match=r"^width is no option of Search; one of steps, mode was expected"):
        Search.of({"steps": 1, "width": 2})
    with pytest.raises(InputError, match=r"^steps is missing"):
        Search.of({})
    search = Search.of({"steps": np.int64(2)})
    with pytest.raises(FrozenInstanceError):
        search.steps = 3  # type: ignore[misc]
    assert asdict(search) == {"steps": 2, "mode": "exact"}


def test_pydantic_reads_options_as_they_were_written() -> None:
    adapter = TypeAdapter(Search)
    assert adapter.validate_python(asdict(Search(steps=3))) == Search(steps=3)
    with pytest.raises(ValidationError, match="steps"):
        adapter.validate_python({"steps": 0})


def test_defaults_and_positions_of_a_function_are_untouched() -> None:
    @validated
    def search(x: Any, steps: Count = 10, *, mode: Mode = "exact", **options: Any) -> Any:
        return x, steps, mode, options

    assert search("x", np.int32(2), other=1) == ("x", 2, "exact", {"other": 1})
    assert search(x="x") == ("x", 10, "exact", {})
    with pytest.raises(TypeError):
        search()


def test_every_kind_says_what_it_expects() -> None:
    kinds = [kind_of(value) for value in vars(declared).values() if kind_of(value) is not None]
    assert len(kinds) >= 10
    assert all(isinstance(kind, Kind) and kind.expected.startswith(("a ", "True")) for kind in kinds)


def test_an_annotation_that_nobody_can_read_is_named() -> None:
    def search(steps: Any) -> None: ...

    search.__annotations__ = {"steps": "Unknown"}
    with pytest.raises(InputError, match=r"search has an annotation that cannot be read .*Unknown"):
        declared.declared_of(search)
