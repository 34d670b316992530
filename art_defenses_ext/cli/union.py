"""``art-defenses evaluate`` in one ball, or in the union of several, for an attacker who chooses the norm."""

from __future__ import annotations

from dataclasses import replace

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.cli.declared import declared_command
from art_defenses_ext.cli.evaluate import EvaluateOptions
from art_defenses_ext.cli.show import say
from art_defenses_ext.cli.sweep import OF_ONE_RUN, Sweep

UNION = "union"
"""The name of all norms together."""

NORMS = ("linf", "l2", "l1")
"""The norms of a union, in the order in which their radii are given."""

NO_UNION = (
    "There is no union of all balls, since the runs attacked different models: a training was not repeated exactly. A "
    "union needs the files of one network (--weights) and of its fitted defences (--fitted)."
)


def evaluate_in_balls(options: EvaluateOptions) -> None:
    """Attack a defended classifier, and print whether the defence helps.

    Every attack of the suite runs, and each image counts by its worst case. With --norm union each image counts by the
    worst of several balls; a run for each of them is in --out.
    """
    norms = NORMS if options.norm == UNION else tuple(options.norm.split(","))
    if len(norms) == 1:
        from art_defenses_ext.cli.processes import attack_and_report

        attack_and_report(options)
        return
    comparison = runs_in_balls(options, norms).make(f"norm is {options.norm}")
    assert comparison is not None  # there are several runs
    for union in comparison.unions:
        say(str(union))
    if not any(len(union.balls) == len(norms) for union in comparison.unions):
        say(NO_UNION, err=True, fg="red")


def runs_in_balls(options: EvaluateOptions, norms: tuple[str, ...]) -> Sweep:
    """Return a run for each ball, all of the same defended model.

    Args:
        options: the options of the command.
        norms: the norms in any spelling, such as ``linf`` or ``inf``.
    """
    from art_defenses_ext.attack.ball import ball_type

    norms = tuple(ball_type(norm).norm_name for norm in norms)
    radii = options.eps.split(",")
    if len(radii) != len(norms):
        raise InputError(
            f"eps is {options.eps!r}; a radius for each of {', '.join(norms)}, separated by commas, was expected"
        )
    if len(set(norms)) < len(norms):
        raise InputError(f"norm is {options.norm!r}; each norm once was expected")
    if options.out is None:
        raise InputError(f"out is missing, but norm is {options.norm!r}; a folder for all runs was expected")
    for name in OF_ONE_RUN:
        if getattr(options, name) != getattr(EvaluateOptions.of({}), name):
            raise InputError(
                f"{name} is an option of a single run, but norm is {options.norm!r}; one norm was expected"
            )
    alike = replace(options, options=(*options.options, *_trained_alike(options, dict(zip(norms, radii, strict=True)))))
    runs = {
        norm: replace(alike, norm=norm, eps=eps, out=options.out / norm) for norm, eps in zip(norms, radii, strict=True)
    }
    return Sweep(options.out, runs)


def _trained_alike(options: EvaluateOptions, balls: dict[str, str]) -> list[str]:
    """Return options with which a defence is trained against the same ball in every run, that in linf.

    Otherwise the radius of its training would depend on the attacked ball, and the runs would attack different models.
    """
    from art_defenses_ext.attack.ball import parse_eps
    from art_defenses_ext.cli.defences import check_defences, face_of, files_of, options_of

    if "linf" not in balls:
        return []
    names = check_defences(options.defence)
    chosen, files = options_of(names, options.options), files_of(names, options.fitted)
    to_train = [name for name in names if name not in files and "eps" not in chosen[name]]
    takes_eps = [name for name in to_train if (face := face_of(name)) is not None and "eps" in face.training_options()]
    return [f"{name}.eps={parse_eps(balls['linf'])}" for name in takes_eps]


evaluate_command = declared_command("evaluate", EvaluateOptions, evaluate_in_balls)
