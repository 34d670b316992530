"""The headline figures of a run, and their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.report.numbers import (
    MISSING,
    at_most_points,
    count_of,
    interval,
    percentage,
    points,
    with_interval,
)
from art_defenses_ext.evaluation.report.sections import Column, Row, Table
from art_defenses_ext.evaluation.results.summary import Summary

NOT_ESTABLISHED = "not established"
"""The words in place of a robust accuracy whose attacks fail their checks."""

COLUMNS = (Column("", holds="words"), Column(""), Column("95 % interval"), Column("images"))

Coverage = Literal["nothing", "papers only", "no gradient", "not all modes", "adaptive", "nothing left"]


@dataclass(frozen=True)
class Headline:
    """A headline figure.

    Attributes:
        key: ``"robust"``, ``"after_attacks"``, ``"paper"``, ``"undefended_robust"``, ``"undefended_clean"`` or
            ``"clean"``.
        label: its name.
        value: the figure; None if it was not measured.
        remark: a qualification of the figure, or the reason why it was not measured.
        established: False if the figure is only an upper bound, since the attacks fail their checks.
    """

    key: str
    label: str
    value: Proportion | None
    remark: str = ""
    established: bool = True


def headlines(summary: Summary) -> list[Headline]:
    """Return the headline figures in their order: robust accuracy, accuracy under the paper's attacks, the others."""
    run = summary.run
    clean = "Clean accuracy of the defended model" if run.defences or run.rejects else "Clean accuracy"
    accepted = "correct and accepted" if run.rejects else ""
    return [
        *_under_attack(summary),
        *_undefended(summary),
        Headline("clean", clean, summary.clean, accepted),
    ]


def _under_attack(summary: Summary) -> list[Headline]:
    counted = "correct or rejected" if summary.run.rejects else ""
    failed = f"failed checks: {', '.join(summary.failed_checks)}" if summary.failed_checks else ""
    paper = Headline(
        "paper", "Accuracy under the paper's attacks", summary.paper, counted if summary.paper else "none was run"
    )
    label = f"Robust accuracy ({_suite_name(summary)})"
    added = "" if summary.own_worst_case is None else f"{percentage(summary.own_worst_case)} by the run's own attacks"
    if summary.robust_accuracy is not None:
        established = summary.standing != "not established"
        bound = "" if established else f"at most {with_interval(summary.worst_case)}"
        remark = _join(counted, bound, failed, added, _established_to(summary))
        return [Headline("robust", label, summary.robust_accuracy, remark, established), paper]
    robust = Headline("robust", label, None, f"unknown: {summary.unknown}")
    if coverage(summary) in ("nothing", "papers only"):
        return [robust, paper]
    ran = Headline(
        "after_attacks", "Accuracy under the attacks that ran", summary.worst_case, _join(counted, failed, added)
    )
    return [robust, ran, paper]


def _established_to(summary: Summary) -> str:
    """Return how finely the robust accuracy is established; empty where it is not, or cannot be lower."""
    return f"established to {at_most_points(summary.resolution)}" if summary.resolution else ""


def _suite_name(summary: Summary) -> str:
    attacks = summary.run.settings.attacks
    if isinstance(attacks, str):
        return f"suite {attacks}"
    return f"suite of {len(attacks)} attack{'' if len(attacks) == 1 else 's'}"


def _undefended(summary: Summary) -> list[Headline]:
    attacked, clean = "Undefended model under attacks made on it", "Clean accuracy of the undefended model"
    if summary.undefended_clean is None:
        return [Headline("undefended_clean", clean, None, "unknown: there is no undefended model")]
    if (beside := summary.against_undefended) is not None:
        label = f"Undefended model under the same attacks ({_suite_name(summary)})"
        bound = "an upper bound: its attacks fail their checks" if beside.standing == "not established" else ""
        undefended = Headline("undefended_robust", label, beside.worst_case, bound)
        return [undefended, Headline("undefended_clean", clean, summary.undefended_clean)]
    fewer = "fewer attacks than on the defended model" if coverage(summary) == "adaptive" else ""
    return [
        Headline(
            "undefended_robust", attacked, summary.undefended_robust, fewer if summary.undefended_robust else "not run"
        ),
        Headline("undefended_clean", clean, summary.undefended_clean),
    ]


def _join(*remarks: str) -> str:
    return "; ".join(remark for remark in remarks if remark)


def headline_table(summary: Summary) -> Table:
    """Return the headline figures with their intervals, and the gap between the first two."""
    rows: list[Row] = []
    for line in headlines(summary):
        if line.value is None:
            cells = (MISSING, "", "")
        elif line.established:
            cells = (percentage(line.value), interval(line.value), count_of(line.value))
        else:
            cells = (NOT_ESTABLISHED, "", "")
        rows.append(Row(line.label, cells, line.remark, status="main" if line.key == "robust" else ""))
        if line.key == "paper" and summary.gap is not None:
            rows.append(Row("Gap between the two", (points(summary.gap), "", "")))
    return Table(COLUMNS, rows, look="figures")


def coverage(summary: Summary) -> Coverage:
    """Return the strength of the attackers, on which the meaning of the worst case depends.

    Returns:
        ``"adaptive"`` if an adaptive suite ran (``evaluation/checks/standing.py``) and followed the gradient of the
        defended model; ``"not all modes"`` if gradients were followed, but not as such a suite does;
        ``"no gradient"`` if the suite only transferred or queried; ``"nothing left"`` if it had no image left to
        attack; ``"papers only"`` without a suite; ``"nothing"`` if no attack ran.
    """
    if not any(row.attacked for row in summary.rows):
        return "nothing"
    suite = [row for row in summary.rows if row.source == "suite"]
    if any(row.attacked and row.crafted_on == "defended" and row.backward > 0 for row in suite):
        return "not all modes" if summary.lacking else "adaptive"
    if any(row.attacked for row in suite):
        return "no gradient"
    return "nothing left" if any(row.crafted_on == "defended" for row in suite) else "papers only"


def figure_name(summary: Summary) -> str:
    """Return the name of the worst case over the attacks that ran."""
    if summary.robust_accuracy is not None:
        return "robust accuracy"
    attacks = "the paper's attacks" if coverage(summary) == "papers only" else "the attacks that ran"
    return f"accuracy under {attacks}"


def own_worst_case(summary: Summary) -> Proportion:
    """Return the worst case over the run's own attacks, without examples from elsewhere that were added to it."""
    return summary.worst_case if summary.own_worst_case is None else summary.own_worst_case


def added_names(summary: Summary) -> list[str]:
    """Return the names of the examples from elsewhere that were added to a run."""
    return [row.key for row in summary.rows if row.source == "elsewhere"]


def worst_case_in_words(summary: Summary) -> str:
    """Return the worst case with its interval, as a bound if it is not established, and why if it is unknown."""
    if summary.standing == "not established":
        return f"at most {summary.worst_case} ({NOT_ESTABLISHED})"
    known = summary.robust_accuracy is not None
    return str(summary.worst_case) if known else f"{summary.worst_case} ({summary.standing})"


def compared_figure(summaries: Sequence[Summary]) -> str:
    """Return the common name of the worst cases of several runs: robust accuracy only if every run has one."""
    known = all(summary.robust_accuracy is not None for summary in summaries)
    return "robust accuracy" if known else "accuracy under the attacks that ran"


def result_in_words(summary: Summary) -> str:
    """Return the result in two or three words."""
    if summary.standing == "not established":
        return NOT_ESTABLISHED
    if summary.robust_accuracy is None:
        return "robust accuracy unknown"
    return f"{percentage(summary.robust_accuracy)} robust accuracy"
