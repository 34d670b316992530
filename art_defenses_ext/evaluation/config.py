"""The options of an evaluation on which its records depend, besides networks and images; each is declared once.

The keyword arguments of :func:`.evaluate`, the options of the command and of its TOML file, the description of a run in
its manifest, and the key of a cache follow from this declaration. Nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, TypedDict

from art_defenses_ext.base.declared import Count, Flag, Kind, Natural, Options, Seed, integer, one_of, option
from art_defenses_ext.base.entry_points import installed
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown

SETS = {
    "papers": "the attacks of the method's authors",
    "fast": "these and a short adaptive suite, for every day",
    "standard": "these and the adaptive attacks of this package",
    "full": "slower attacks too",
}
"""The attack suites by name, and a description of each."""


def _named_attacks(value: Any) -> str:
    if not isinstance(value, str) or not set(value.split("+")) <= {*SETS, *installed("attack")}:
        raise ValueError
    return value


NamedAttacks = Annotated[
    str, Kind(f"one of {', '.join(SETS)}, an installed attack, or several joined by +,", _named_attacks, tuple(SETS))
]
"""Attacks by name, such as ``"standard"`` or ``"standard+simba"``: suites, and attacks of other packages."""


UndefendedSuite = Annotated[str, one_of("same", "papers")]
"""The attacks on the undefended model."""


AUTO = "auto"
"""The value of ``effort`` for up to :data:`MOST_ROUNDS` rounds if a check fails, until two in a row add nothing."""

MOST_ROUNDS = 4
"""The largest number of rounds of more effort. **Convention**: together they cost at most ten times the
first."""


def most_rounds(effort: str) -> int:
    """Return the largest number of rounds of more effort that an ``effort`` allows."""
    return MOST_ROUNDS if effort == AUTO else int(effort)


def _rounds(value: Any) -> str:
    text = value if isinstance(value, str) else str(integer(0).accept(value))
    if text not in (AUTO, *map(str, range(MOST_ROUNDS + 1))):
        raise ValueError
    return text


Effort = Annotated[
    str, Kind(f"a number of rounds from 0 to {MOST_ROUNDS}, or {AUTO},", _rounds, ("0", "1", "2", "4", AUTO))
]
"""The number of rounds of more effort after the suite, as a text, or :data:`AUTO`."""


class EvaluationConfig(Options):
    """The options of an evaluation on which its records depend.

    Attributes:
        seed: the seed of all randomness.
        block_size: number of consecutive samples attacked at a time; part of the identity of a result.
        curve_samples: number of samples, from the first on, for the curve of accuracy against eps; 0 for no curve.
        check_samples: number of samples, from the first on, that the checks attack once more, with more steps and
            without a limit; 0 for no checks.
        adaptive: False restricts the attacks to the exact gradient, without surrogates or averages, as many papers do,
            to show gradient masking.
        undefended_suite: ``"same"``: where a named suite runs, the undefended model is evaluated under it too, on the
            same images with the same seed and checks, so that the report can say whether the defence helps;
            ``"papers"``: only the attacks that are made on the undefended model anyway.
        effort: rounds of more effort after the suite, on the images that are left (docs/checks.md): ``"0"`` for none,
            ``"1"`` to ``"4"`` for at most this number, ``"auto"`` for up to four if a check fails. Rounds end when two
            in a row add nothing.

    Raises:
        InputError: for a value of another type or out of range.

    Example:
        >>> EvaluationConfig(seed=3).block_size
        256
    """

    seed: Seed = option(0, "Seed of training and of all attacks.")
    block_size: Count = option(256, "Number of images attacked at a time.")
    curve_samples: Natural = option(200, "Number of images for the curve of accuracy against eps; 0 for no curve.")
    check_samples: Natural = option(100, "Number of images for the checks of the attacks; 0 for no checks.")
    adaptive: Flag = option(
        True, "Whether attacks may use surrogates and averages; --naive allows the exact gradient only.",
        off="--naive",
    )  # fmt: skip
    undefended_suite: UndefendedSuite = option(
        "same", "Attacks on the undefended model: the same suite, or only those of the papers.",
        switch="--undefended",
    )  # fmt: skip
    effort: Effort = option(
        "0", "Rounds of stronger attacks after the suite, at most; auto: if a check fails, until two add nothing.",
    )  # fmt: skip


class EvaluationOptions(TypedDict, total=False):
    """The options as keyword arguments, for type checkers and editors."""

    seed: Seed
    block_size: Count
    curve_samples: Natural
    check_samples: Natural
    adaptive: Flag
    undefended_suite: UndefendedSuite
    effort: Effort


def config_of(config: EvaluationConfig | None, options: EvaluationOptions) -> EvaluationConfig:
    """Return a config, by default the defaults, with the given options replaced.

    Raises:
        InputError: for another object, an unknown option, or a value of the wrong kind.
    """
    if not isinstance(config, EvaluationConfig | None):
        raise InputError(f"config is {shown(config)}; an EvaluationConfig was expected")
    return EvaluationConfig.of(({} if config is None else asdict(EvaluationConfig.part_of(config))) | {**options})
