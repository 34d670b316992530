"""Each option of an evaluation is declared in one place, from which all else follows."""

from __future__ import annotations

import ast
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

import click
import numpy as np
import pytest

import art_defenses_ext
from art_defenses_ext import Linf
from art_defenses_ext.base.declared import Share, option
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.cli.declared import as_toml, click_options, declared_command, read_toml
from art_defenses_ext.cli.evaluate import EvaluateOptions
from art_defenses_ext.evaluation.config import EvaluationConfig, EvaluationOptions, config_of
from art_defenses_ext.evaluation.records.description import Settings

OTHER: dict[str, Any] = {
    **{"seed": 5, "block_size": 7, "curve_samples": 3, "check_samples": 2, "adaptive": False},
    **{"undefended_suite": "papers", "effort": "auto"},
}
NAMES = [each.name for each in fields(EvaluationConfig)]  # type: ignore[arg-type]


class Wider(EvaluationConfig):
    """With an option of somebody else's."""

    loudness: Share = option(0.25, "How loud it is.")


def test_type_checkers_see_what_is_declared() -> None:
    seen = get_type_hints(EvaluationOptions, include_extras=True)
    assert seen == {name: get_type_hints(EvaluationConfig, include_extras=True)[name] for name in NAMES}


def test_no_other_module_declares_an_option_once_more() -> None:
    """As an argument or an attribute; ``seed`` and ``adaptive`` are words that others use as well."""
    root = Path(art_defenses_ext.__file__).parent
    places = []
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            named = node.arg if isinstance(node, ast.arg) else None
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                named = node.target.id
            if named in ("curve_samples", "check_samples"):
                places.append((str(path.relative_to(root)), named))
    assert {path for path, _ in places} == {"evaluation/config.py"}
    assert len(places) == 4  # in the class, and in what type checkers see


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_one_of_the_command_and_of_what_a_run_is(name: str) -> None:
    assert set(OTHER) == set(NAMES)
    assert name in [each.name for each in click_options(EvaluateOptions)]
    usual, other = (
        asdict(Settings.describing(Linf(0.1), "standard", 1000, config))
        for config in (EvaluationConfig(), EvaluationConfig.of({name: OTHER[name]}))
    )
    assert {each for each in usual if usual[each] != other[each]} == {name}


def test_an_option_declared_outside_is_typed_written_and_read(tmp_path: Path) -> None:
    made: list[Wider] = []
    command = declared_command("wider", Wider, made.append)
    command.main(["--loudness", "0.5", "--naive"], standalone_mode=False)
    assert made == [Wider(loudness=0.5, adaptive=False)]
    (tmp_path / "run.toml").write_text(as_toml(made[0]))
    assert Wider.of(read_toml(tmp_path / "run.toml")) == made[0]
    command.main(["--config", str(tmp_path / "run.toml"), "--adaptive"], standalone_mode=False)
    assert made[1] == Wider(loudness=0.5)
    (help_of,) = [each.help for each in command.params if isinstance(each, click.Option) and each.name == "loudness"]
    assert help_of == "How loud it is."
    with pytest.raises(InputError, match=r"^loudness is 2\.0; a number from 0 to 1 was expected"):
        command.main(["--loudness", "2"], standalone_mode=False)


def test_keywords_win_over_a_config() -> None:
    config = Wider(seed=3, check_samples=1)
    assert config_of(config, {"seed": np.int64(4)}) == EvaluationConfig(seed=4, check_samples=1)
    assert config_of(None, {}) == EvaluationConfig()


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (None, {"sede": 1}, "^sede is no option of EvaluationConfig; one of seed, block_size"),
        (None, {"adaptive": "no"}, "^adaptive is 'no'; True or False was expected"),
        (None, {"seed": True}, "^seed is True; a whole number from 0"),
        ({"seed": 1}, {}, "^config is {'seed': 1}; an EvaluationConfig was expected"),
    ],
)
def test_what_is_wrong_is_one_sentence(config: Any, options: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        config_of(config, options)


TEXTS = ["", "a", 'a "b" \\ c', "\t\n\x7f\x00", "ü €", "a'b", "\U0001f600"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_survives_its_toml(text: str, tmp_path: Path) -> None:
    class Named(EvaluationConfig):
        text: str = option("")
        texts: tuple[str, ...] = option(())

    named = Named(text=text, texts=(text, "b"))
    (tmp_path / "run.toml").write_text(as_toml(named), encoding="utf-8")
    assert read_toml(tmp_path / "run.toml") == asdict(named) | {"texts": [text, "b"]}
