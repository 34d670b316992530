"""The options of an evaluation, each declared once: what its records depend on besides the networks and the images.

From this declaration come the keyword arguments of :func:`.evaluate`, the options of the command and of its TOML file,
what the manifest says of a run, and the key of a cache. Nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, TypedDict

from art_defenses_ext.base.declared import Count, Flag, Kind, Natural, Options, Seed, one_of, option
from art_defenses_ext.base.entry_points import installed
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import shown

SETS = ("papers", "standard", "full")
"""Names of attack suites: ``standard`` is the papers' attacks and ours, ``full`` adds what takes longer."""


def _named_attacks(value: Any) -> str:
    if not isinstance(value, str) or not set(value.split("+")) <= {*SETS, *installed("attack")}:
        raise ValueError
    return value


NamedAttacks = Annotated[
    str, Kind(f"one of {', '.join(SETS)}, an installed attack, or several joined by +,", _named_attacks, SETS)
]
"""Attacks by name, such as ``"standard"`` or ``"standard+simba"``: suites, and attacks of other packages."""


UndefendedSuite = Annotated[str, one_of("same", "papers")]
"""What is run on the undefended model."""


class EvaluationConfig(Options):
    """The options of an evaluation that its records depend on.

    Attributes:
        seed: of all randomness.
        block_size: consecutive samples attacked at a time; part of the result's identity.
        curve_samples: how many of the first samples serve the curve of accuracy against eps; 0 for no curve.
        check_samples: how many of the first samples the checks attack once more, with more steps and without a limit;
            0 for no checks.
        adaptive: False gives the attacker the exact gradient alone, without surrogates or averages: to see what that
            hides.
        undefended_suite: ``"same"``: where a named suite runs, the undefended model is evaluated under it too, on the
            same images with the same seed and checks, so that the report can say whether the defence helps;
            ``"papers"``: only the attacks that are made on the undefended model anyway.

    Raises:
        InputError: for a value of another type or out of range.

    Example:
        >>> EvaluationConfig(seed=3).block_size
        256
    """

    seed: Seed = option(0, "Seed of training and of all attacks.")
    block_size: Count = option(256, "Images attacked at a time.")
    curve_samples: Natural = option(200, "Images for the curve of accuracy against eps; 0: none.")
    check_samples: Natural = option(100, "Images for the checks of the attacks; 0: no checks.")
    adaptive: Flag = option(
        True, "Whether the attacker may do more than follow the exact gradient; --naive shows what that hides.",
        off="--naive",
    )  # fmt: skip
    undefended_suite: UndefendedSuite = option(
        "same", "What the undefended model is attacked with: the same suite, or only what the papers' attacks need.",
        switch="--undefended",
    )  # fmt: skip


class EvaluationOptions(TypedDict, total=False):
    """The options as keyword arguments, for type checkers and editors, which cannot read them off the class."""

    seed: Seed
    block_size: Count
    curve_samples: Natural
    check_samples: Natural
    adaptive: Flag
    undefended_suite: UndefendedSuite


def config_of(config: EvaluationConfig | None, options: EvaluationOptions) -> EvaluationConfig:
    """Return the options of a config, or the defaults, in which single ones are replaced.

    Raises:
        InputError: for another object, a name that is no option, or a value that is none of its kind.
    """
    if not isinstance(config, EvaluationConfig | None):
        raise InputError(f"config is {shown(config)}; an EvaluationConfig was expected")
    return EvaluationConfig.of(({} if config is None else asdict(EvaluationConfig.part_of(config))) | {**options})
