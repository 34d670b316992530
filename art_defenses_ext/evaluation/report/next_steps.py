"""What to do with a result: the commands that would establish it, make it more certain, or publish it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from typing import Any

from art_defenses_ext.evaluation.records.description import RunDescription
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.report.explained import advice
from art_defenses_ext.evaluation.report.sections import NO_BREAK, Terms
from art_defenses_ext.evaluation.results.summary import Summary

NARROW = 0.1
"""Width of an interval that is narrow enough to compare defences by. **Convention**."""

Z = 1.96
"""The normal quantile of a 95 % interval."""

COMMAND = ["art-defenses", "evaluate"]
LOUDNESS = ("--quiet", "--verbose")


def next_steps(summary: Summary) -> Terms:
    """Return what would establish, strengthen and publish a result, and how each is done."""
    return Terms([*_to_establish(summary), *_to_compare(summary), *_to_strengthen(summary), *_to_publish(summary)])


def _to_establish(summary: Summary) -> Iterator[tuple[str, str]]:
    run = summary.run
    if summary.standing == "no adaptive attack":
        if run.settings.adaptive:
            yield "Run an adaptive suite", f"{_again(run, attacks='standard')} attacks under every gradient mode."
        else:
            how = "without `--naive`" if _typed(run) else "without `adaptive=False`"
            yield "Run an adaptive suite", f"The same {how} gives the attacker every gradient mode."
    elif summary.standing == "no checks":
        yield (
            "Check the attacks",
            f"{_again(run, check_samples=100)} makes the checks that a robust accuracy must pass.",
        )
    for check in summary.checks:
        if check.verdict == "failed":
            what = advice(check.section, "What to do")
            yield f"Pass the check {check.name}", f"{what[:1].upper()}{what[1:]} (`{check.link}`)".strip()


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
    run, share = summary.run, summary.worst_case
    low, high = share.interval
    if high - low > NARROW and (enough := _enough_samples(share)) > share.total:
        width = f"{100 * (high - low):.0f}{NO_BREAK}points"
        again = _again(run, samples=enough)
        yield (
            "Attack more images",
            f"The 95 % interval is {width} wide. {again} makes it about {100 * NARROW:.0f}{NO_BREAK}points.",
        )
    if summary.standing == "established" and run.settings.attacks == "standard":
        yield "Attack for longer", f"{_again(run, attacks='full')} adds what takes longer."
    if summary.standing == "established" and run.options:
        add = "art-defenses add RUN FILE --from NAME,LINK"
        yield "Let others attack", f"`{add}` judges their examples on this run's images."


def _to_publish(summary: Summary) -> Iterator[tuple[str, str]]:
    run = summary.run
    if run.options:
        yield "Repeat it", "`art-defenses rerun RUN` runs it once more and compares the records."
    if summary.standing == "established":
        dataset = shlex.quote(str(run.options.get("dataset", "NAME")))
        entry = f"`art-defenses entry RUN --dataset {dataset} --out results/ENTRY.json`"
        yield "Publish it", f"{entry} writes its line; `art-defenses leaderboard results` writes the page of all lines."


def _enough_samples(share: Proportion) -> int:
    """Return how many images give a narrow interval, in hundreds, whichever rate of this interval is the true one."""
    rate = min(share.interval, key=lambda end: abs(end - 0.5))
    low, high = share.interval
    rate = 0.5 if low < 0.5 < high else rate
    return 100 * math.ceil(rate * (1 - rate) * (2 * Z / NARROW) ** 2 / 100)


def _typed(run: RunDescription) -> str:
    """Return the command that made a run, as it can be typed again; empty of a run made in Python.

    A run's folder may come from others: each word is quoted, so that a shell sees one command and nothing else.
    """
    try:
        words = shlex.split(run.command)
    except ValueError:  # a quotation that does not end
        return ""
    words = [word for word in words if word not in LOUDNESS]
    return shlex.join(words) if run.options and words[:2] == COMMAND else ""


def _again(run: RunDescription, **changes: Any) -> str:
    """Return the run's command, or its call, with changed options and another folder."""
    command = _typed(run)
    if not command:
        return f"`evaluate({', '.join(['...', *(f'{name}={value!r}' for name, value in changes.items())])})`"
    options = " ".join(f"--{_switch(name)} {value}" for name, value in changes.items())
    return f"`{command} {options} --out NEW`"


def _switch(name: str) -> str:
    return "undefended" if name == "undefended_suite" else name.replace("_", "-")
