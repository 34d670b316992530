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
NAMES = [field.name for field in fields(EvaluationConfig)]  # type: ignore[arg-type]


class Wider(EvaluationConfig):
    """A configuration with an option of another package."""

    loudness: Share = option(0.25, "How loud it is.")


def test_type_checkers_see_every_declared_option() -> None:
    declared = get_type_hints(EvaluationOptions, include_extras=True)
    assert declared == {name: get_type_hints(EvaluationConfig, include_extras=True)[name] for name in NAMES}


def test_no_other_module_declares_an_option() -> None:
    """No argument or attribute repeats one; ``seed`` and ``adaptive`` also have other uses and are left out."""
    root = Path(art_defenses_ext.__file__).parent
    declarations = []
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            named = node.arg if isinstance(node, ast.arg) else None
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                named = node.target.id
            if named in ("curve_samples", "check_samples"):
                declarations.append((str(path.relative_to(root)), named))
    assert {path for path, _ in declarations} == {"evaluation/config.py"}
    assert len(declarations) == 4  # in the class, and in what type checkers see


@pytest.mark.parametrize("name", NAMES)
def test_every_option_belongs_to_the_command_and_to_the_settings_of_a_run(name: str) -> None:
    assert set(OTHER) == set(NAMES)
    assert name in [click_option.name for click_option in click_options(EvaluateOptions)]
    default_settings, changed_settings = (
        asdict(Settings.describing(Linf(0.1), "standard", 1000, config))
        for config in (EvaluationConfig(), EvaluationConfig.of({name: OTHER[name]}))
    )
    assert {
        option_name
        for option_name in default_settings
        if default_settings[option_name] != changed_settings[option_name]
    } == {name}


def test_an_option_declared_outside_is_typed_written_and_read(tmp_path: Path) -> None:
    configs: list[Wider] = []
    command = declared_command("wider", Wider, configs.append)
    command.main(["--loudness", "0.5", "--naive"], standalone_mode=False)
    assert configs == [Wider(loudness=0.5, adaptive=False)]
    (tmp_path / "run.toml").write_text(as_toml(configs[0]))
    assert Wider.of(read_toml(tmp_path / "run.toml")) == configs[0]
    command.main(["--config", str(tmp_path / "run.toml"), "--adaptive"], standalone_mode=False)
    assert configs[1] == Wider(loudness=0.5)
    (help_text,) = [
        parameter.help
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.name == "loudness"
    ]
    assert help_text == "How loud it is."
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
def test_bad_options_are_refused_in_one_sentence(config: Any, options: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        config_of(config, options)


TEXTS = ["", "a", 'a "b" \\ c', "\t\n\x7f\x00", "ü €", "a'b", "\U0001f600"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_survives_a_round_trip_through_toml(text: str, tmp_path: Path) -> None:
    class Named(EvaluationConfig):
        text: str = option("")
        texts: tuple[str, ...] = option(())

    named = Named(text=text, texts=(text, "b"))
    (tmp_path / "run.toml").write_text(as_toml(named), encoding="utf-8")
    assert read_toml(tmp_path / "run.toml") == asdict(named) | {"texts": [text, "b"]}
