"""The next steps after a result: commands that would establish, strengthen or publish it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from typing import Any

from art_defenses_ext.evaluation.checks.checks import OF_EFFORT
from art_defenses_ext.evaluation.config import AUTO
from art_defenses_ext.evaluation.records.description import RunDescription
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.report.explained import advice
from art_defenses_ext.evaluation.report.sections import NO_BREAK, Terms
from art_defenses_ext.evaluation.results.summary import Summary
from art_defenses_ext.evaluation.run.describe import COMMAND, command_of_whole, without_options

NARROW = 0.1
"""Width of an interval that is narrow enough to compare defences by. **Convention**."""

Z = 1.96
"""The normal quantile of a 95 % interval."""

LOUDNESS = ("--quiet", "--verbose")

LONGER = {
    "fast": ("standard", "takes more steps, more targets and more queries, on all images"),
    "standard": ("full", "adds slower attacks"),
}
"""The next larger suite, and its additional work in words."""


def next_steps(summary: Summary) -> Terms:
    """Return the steps that would establish, strengthen and publish a result, each with its command."""
    return Terms([*_to_establish(summary), *_to_compare(summary), *_to_strengthen(summary), *_to_publish(summary)])


def _to_establish(summary: Summary) -> Iterator[tuple[str, str]]:
    run = summary.run
    if summary.standing == "no adaptive attack":
        if run.settings.adaptive:
            yield "Run an adaptive suite", f"{_again(run, attacks='standard')} attacks under every gradient mode."
        else:
            option = "`--naive`" if _typed(run) else "`adaptive=False`"
            yield "Run an adaptive suite", f"The same call without {option} attacks under every gradient mode."
    elif summary.standing == "no checks":
        yield (
            "Check the attacks",
            f"{_again(run, check_samples=100)} makes the checks that a robust accuracy must pass.",
        )
    if set(summary.failed_checks) & set(OF_EFFORT) and not summary.rounds and run.settings.adaptive:
        yield (
            "Attack for longer until it is established",
            f"{_again(run, folder='', effort=AUTO)} continues with stronger attacks on the images that are left.",
        )
    for check in summary.checks:
        if check.verdict == "failed":
            remedy = advice(check.section, "What to do")
            yield f"Pass the check {check.name}", f"{remedy[:1].upper()}{remedy[1:]} (`{check.link}`)".strip()


def _to_compare(summary: Summary) -> Iterator[tuple[str, str]]:
    run = summary.run
    if summary.against_undefended is not None or summary.robust_accuracy is None or not (run.defences or run.foreign):
        return
    if run.undefended_sha256 is None:
        yield "Compare with the undefended model", "Pass it as `undefended=`: none was recorded."
    elif isinstance(run.settings.attacks, str):
        again = _again(run, undefended_suite="same")
        yield "Compare with the undefended model", f"{again} attacks it with the same suite."


def _to_strengthen(summary: Summary) -> Iterator[tuple[str, str]]:
    run, share, suite = summary.run, summary.worst_case, summary.run.settings.attacks
    low, high = share.interval
    if high - low > NARROW and (enough := _enough_samples(share)) > share.total:
        width = f"{100 * (high - low):.0f}{NO_BREAK}points"
        again = _again(run, samples=enough)
        yield (
            "Attack more images",
            f"The 95 % interval is {width} wide. {again} narrows it to about {100 * NARROW:.0f}{NO_BREAK}points.",
        )
    if summary.standing == "established" and isinstance(suite, str) and suite in LONGER:
        longer, how = LONGER[suite]
        yield "Attack for longer", f"{_again(run, attacks=longer)} {how}."
    if summary.standing == "established" and run.options:
        add = "art-defenses add RUN FILE --from NAME,LINK"
        yield "Let others attack", f"`{add}` adds their examples to this run."


def _to_publish(summary: Summary) -> Iterator[tuple[str, str]]:
    run = summary.run
    if run.options:
        yield "Repeat the run", "`art-defenses rerun RUN` repeats it and compares the records."
    if summary.standing == "established":
        dataset = shlex.quote(str(run.options.get("dataset", "NAME")))
        entry = f"`art-defenses entry RUN --dataset {dataset} --out results/ENTRY.json`"
        yield (
            "Publish the result",
            f"{entry} writes its entry; `art-defenses leaderboard results` writes the page of all entries.",
        )


def _enough_samples(share: Proportion) -> int:
    """Return the number of images, in hundreds, that gives a narrow interval for every true rate in this interval."""
    rate = min(share.interval, key=lambda end: abs(end - 0.5))
    low, high = share.interval
    rate = 0.5 if low < 0.5 < high else rate
    return 100 * math.ceil(rate * (1 - rate) * (2 * Z / NARROW) ** 2 / 100)


def _typed(run: RunDescription) -> str:
    """Return the command that makes a whole run, as it can be typed again; empty for a run made in Python.

    A run's folder may come from others: each word is quoted, so that a shell sees one command and nothing else.
    """
    try:
        words = shlex.split(command_of_whole(run))
    except ValueError:  # an unclosed quotation
        return ""
    words = [word for word in words if word not in LOUDNESS]
    return shlex.join(words) if run.options and words[:2] == COMMAND else ""


def _again(run: RunDescription, folder: str = "NEW", **changes: Any) -> str:
    """Return the run's command, or its call in Python, with changed options, and another folder if one is given."""
    command = _typed(run)
    if not command:
        return f"`evaluate({', '.join(['...', *(f'{name}={value!r}' for name, value in changes.items())])})`"
    options = {f"--{_switch(name)}": str(value) for name, value in changes.items()}
    options |= {"--out": folder} if folder else {}
    kept = [word for word in without_options(shlex.split(command), options) if word != "--overwrite"]
    return f"`{shlex.join(kept)} {' '.join(f'{switch} {value}' for switch, value in options.items())}`"


def _switch(name: str) -> str:
    return "undefended" if name == "undefended_suite" else name.replace("_", "-")
