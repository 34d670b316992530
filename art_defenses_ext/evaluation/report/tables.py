"""The tables of a report: checks, attacks, rankings and costs, curves, the detector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from art_defenses_ext.evaluation.checks.checks import Check
from art_defenses_ext.evaluation.report.explained import explained
from art_defenses_ext.evaluation.report.numbers import MISSING, amount, count_of, fraction, percent, size, unbroken
from art_defenses_ext.evaluation.report.sections import Column, Row, Table
from art_defenses_ext.evaluation.results.detection import FALSE_POSITIVES, PASSING, At, Detection, DetectionRow, Pool
from art_defenses_ext.evaluation.results.summary import AttackRow, Summary

GROUPS = {
    "suite": "Attack suite",
    "paper": "The paper's attacks",
    "side": "Curves and checks",
    "round": "Rounds of more effort",
    "elsewhere": "Examples made elsewhere",
}
"""Headings of the attacks' tables, by the rows' ``source``, in the order in which they ran."""

POOLS = {"zero": "all with zero knowledge", "perfect": "all attacks"}
ATTACK = Column("attack", holds="words")

Columns = dict[Column, Callable[[AttackRow], str]]
"""Columns of the tables of attacks, each with the cell for an attack that ran."""

RANKINGS: Columns = {
    Column("mean\nNDCG", "agreement with the ranking of classes for the clean image, 1 at best"): (
        lambda row: fraction(row.agreement.ndcg.mean if row.agreement else None, 3)
    ),
    Column("mean\n1/rank", "reciprocal rank, under the attack, of the first class of that ranking"): (
        lambda row: fraction(row.agreement.reciprocal_rank.mean if row.agreement else None, 3)
    ),
    Column("images\nin ball", "the images of these two means"): (
        lambda row: str(row.agreement.ndcg.total) if row.agreement else MISSING
    ),
}
COSTS: Columns = {
    Column("forward", "images passed forwards per attacked image"): lambda row: amount(row.forward),
    Column("backward", "images passed backwards per attacked image"): lambda row: amount(row.backward),
    Column("s"): lambda row: amount(row.seconds),
}


def checks_table(checks: Sequence[Check]) -> Table:
    """Return each check with its result and its finding."""
    columns = (Column("check", holds="words"), Column("result", holds="words"), Column("finding", holds="prose"))
    rows = [
        Row(
            check.name,
            (check.verdict, unbroken(check.finding)),
            status=check.verdict,
            folded=explained(check.section, "Reason and remedy"),
        )
        for check in checks
    ]
    return Table(columns, rows)


def rounds_table(summary: Summary) -> Table:
    """Return the results of each round of more effort, and its cost."""
    columns = (
        Column("round", holds="words"),
        Column("steps", "steps of each descent, from two new starts"),
        Column("broke\nk of m", "k of the m images that no attack had broken before"),
        Column("gradients\nbroke too", "images broken before, but by no white-box attack, that one breaks now"),
        Column("forward", "total of images passed forwards"),
        Column("backward", "total of images passed backwards"),
        Column("s"),
    )
    rows = [
        Row(
            str(result.number),
            (
                str(each.steps),
                f"{result.broken} of {result.robust_before}",
                f"{result.white_box_broken} of {result.broken_otherwise}",
                str(each.cost.forward),
                str(each.cost.backward),
                amount(each.cost.seconds),
            ),
        )
        for each in summary.rounds
        for result in [each.result]
    ]
    return Table(columns, rows)


def attacks_table(summary: Summary) -> Table:
    """Return the results of each attack."""
    norm = summary.run.settings.threat
    columns: Columns = {
        Column("made on", "the model that the attack queries; 'smoothed': by gradient estimation", "words"): (
            lambda row: row.crafted_on
        ),
        Column(
            "ran on", "'all' images, or 'unbroken': the correct ones that no attack above had broken", "words"
        ): _samples,
        Column("broke\nk of m", "k of its m images were correct and are misclassified inside the ball"): (
            lambda row: f"{row.broke} of {row.attacked}"
        ),
        Column("% in\nball", "accuracy where only perturbations inside the ball count"): lambda row: percent(
            row.robust
        ),
        Column("% any\nsize", "accuracy at any size of the perturbation, which papers print"): (
            lambda row: percent(row.accuracy)
        ),
        Column(f"median\n{norm}", "median size of the perturbations that led to a wrong class, in the ball or not"): (
            lambda row: size(row.median_size)
        ),
    }
    return _attacks_table(columns, summary.rows)


def _samples(row: AttackRow) -> str:
    return "some" if row.source == "elsewhere" and row.samples != "all" else row.samples


def costs_table(summary: Summary) -> Table:
    """Return the class rankings under each attack, if they were recorded, and its cost."""
    rankings = RANKINGS if any(row.agreement for row in summary.rows) else {}
    table = _attacks_table(
        rankings | COSTS, [row for row in summary.rows if row.attacked and row.source != "elsewhere"]
    )
    costs = [(name, cost, "Besides the attacks") for name, cost in summary.phases.items()]
    costs.append(("total", summary.total, "Total"))
    if summary.against_undefended is not None:
        costs.append(("the undefended model's evaluation", summary.against_undefended.cost, "Total"))
    rows = [
        Row(
            name,
            (*[MISSING] * len(rankings), f"{cost.forward} in all", f"{cost.backward} in all", amount(cost.seconds)),
            group=group,
        )
        for name, cost, group in costs
    ]
    return replace(table, rows=[*table.rows, *rows])


def _attacks_table(columns: Columns, attacks: Sequence[AttackRow]) -> Table:
    rows = [
        Row(
            attack.key,
            tuple(cell(attack) for cell in columns.values()) if attack.attacked else (),
            remark=attack.note,
            detail=attack.purpose,
            group=title,
            status="" if attack.attacked else "not run",
        )
        for source, title in GROUPS.items()
        for attack in attacks
        if attack.source == source
    ]
    return Table((ATTACK, *columns), rows, is_sortable=True)


def curves_table(summary: Summary) -> Table:
    """Return the accuracy at each eps of each curve."""
    grid = sorted({eps for curve in summary.curves for eps, _ in curve.points})
    rows = []
    for curve in summary.curves:
        measured = {eps: percent(share) for eps, share in curve.points}
        cells = (str(curve.points[0][1].total), *(measured.get(eps, MISSING) for eps in grid))
        rows.append(Row(curve.attack, cells))
    return Table((ATTACK, Column("images"), *(Column(f"{eps:.4g}") for eps in grid)), rows)


def detector_table(detection: Detection) -> Table:
    """Return the detector's figures at its own threshold for the images of each attack."""
    columns = (
        ATTACK,
        Column("knows", "'zero': made on the undefended model; 'perfect': on model and detector", "words"),
        Column("fooled\nk of m", "of m images, k are misclassified by the model alone and lie in the ball"),
        Column("% rejected", "share of the fooled images; for all attacks, under every attack that fooled the model"),
        Column("% success", "attack success rate: of images correct when clean, those fooled and accepted"),
    )
    cells = {
        row.key: (row.knows, count_of(row.fooled), percent(row.detected), percent(row.past)) for row in detection.rows
    }
    cells |= {
        POOLS[pool.knows]: (pool.knows, MISSING, percent(pool.mead), percent(pool.past)) for pool in detection.pools
    }
    return Table(columns, [Row(name, values) for name, values in cells.items()])


def thresholds_table(detection: Detection) -> Table:
    """Return the detector's figures at all thresholds, for attacks with zero knowledge; without rows if none ran."""
    auc = "mean over the classes of the area under the ROC curve of fooled against clean images"
    columns = (
        ATTACK,
        Column("mean\nAUC", auc),
        Column("AUC", "the same area for all classes at once"),
        *_columns("TPR at\n", FALSE_POSITIVES, "true positive rate at this false positive rate: fooled images flagged"),
        *_columns("success\nat ", PASSING, "attack success rate at this false positive rate"),
    )
    rows: list[DetectionRow | Pool] = [row for row in detection.rows if row.knows == "zero"]
    rows += [pool for pool in detection.pools if pool.success]
    return Table(columns, [_at_thresholds(row) for row in rows])


def _columns(name: str, rates: Iterable[float], meaning: str) -> list[Column]:
    """Return a column for each false positive rate; the meaning of the first explains all."""
    headers = [f"% {name}{100 * rate:g} % FPR" for rate in rates]
    return [Column(headers[0], meaning), *map(Column, headers[1:])]


def _at_thresholds(row: DetectionRow | Pool) -> Row:
    success = _shares(row.success, len(PASSING))
    if isinstance(row, Pool):
        return Row(POOLS[row.knows], (*[MISSING] * (2 + len(FALSE_POSITIVES)), *success))
    flagged = _shares(row.true_positives, len(FALSE_POSITIVES))
    return Row(row.key, (fraction(row.mean_auc, 4), fraction(row.auc, 4), *flagged, *success))


def _shares(shares: Sequence[At], count: int) -> list[str]:
    return [percent(at.share) for at in shares] or [MISSING] * count
