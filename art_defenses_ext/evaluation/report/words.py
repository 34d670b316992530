"""The figures of a report in words, which terminal, page, pictures and comparisons share.

All text here is ASCII, so that it survives any pipe and any locale.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from art_defenses_ext.attack.ball import ball_type
from art_defenses_ext.base.provenance import Training
from art_defenses_ext.evaluation.records.description import RunDescription, Settings
from art_defenses_ext.evaluation.records.proportion import Mean, Proportion
from art_defenses_ext.evaluation.results.detection import FALSE_POSITIVES, PASSING, At, Detection
from art_defenses_ext.evaluation.results.summary import Agreement, AttackRow, Summary
from art_defenses_ext.evaluation.suite.vote import MOST_PASSES

NO_BREAK = "\N{NO-BREAK SPACE}"  # never printed: keeps a number and its unit on one line while text is wrapped
GROUPS = {"ladder": "the ladder", "paper": "the paper's attacks", "side": "curves and checks"}
"""Headings of the attack table, by the rows' ``source``, in the order in which they ran."""

NOT_ESTABLISHED = "not established"
"""What stands in place of a robust accuracy whose attacks fail their checks."""

LEGEND = (
    ("broke k of m", "of m images given, k were correct and became wrong in the ball"),
    ("given", "'all' images, or 'left': the correct ones that nothing above broke"),
    ("in ball", "accuracy after it, if only changes inside the threat's ball count"),
    ("any size", "accuracy after it, whatever the changes' size: what papers print"),
    ("median", "size of the changes that led to a wrong class, in the ball or not"),
    ("NDCG", "agreement with the ranking of classes for the clean image, 1 at best"),
    ("1/rank", "of the class that leads that ranking, after the attack"),
    ("counted", "images in the ball, which these two are means over"),
    ("passes", "images through the network per attacked image, forwards/backwards"),
)
"""What the columns of the attack table mean, a line each."""

LEGEND_WITH_DETECTOR = (
    ("rejected", "after an attack it counts as correct, of a clean image as wrong"),
    ("knows", "'zero': made on the bare network; 'perfect': on network and detector"),
    ("fooled", "of m images, k are wrong for the network alone and lie in the ball"),
    ("past at own", "of images right when clean: fooled and accepted, at its own threshold"),
    ("% rejected", "of the fooled, at its own threshold; for all: whatever fooled them"),
    ("AUC", "of fooled against clean images; mean: class by class, as papers print"),
    ("flagged", "of the fooled, where so many per cent of clean images are flagged"),
    ("past", "of images right when clean: fooled and not flagged, likewise"),
    ("a dash", "AUC, flagged and past need attacks that aim at no threshold: 'zero' alone"),
)
"""And of the table of the detector, where there is one."""


@dataclass(frozen=True)
class Headline:
    """One of the few figures to take away.

    Attributes:
        key: ``"worst_case"``, ``"after_attacks"``, ``"paper"``, ``"undefended_robust"``, ``"undefended_clean"`` or
            ``"clean"``.
        label: what it is, in plain words.
        value: the figure; None if it was not measured.
        remark: what to know with it, or why it was not measured.
        established: False if the figure is only an upper bound, since the attacks fail their checks.
    """

    key: str
    label: str
    value: Proportion | None
    remark: str = ""
    established: bool = True


def headlines(summary: Summary) -> list[Headline]:
    """The headline figures in their order: the robust accuracy comes first, the paper's number after it."""
    known = summary.robust_accuracy is not None
    remark = _remarks(_counted_right(summary), _warning(summary)) if known else f"unknown: {summary.unknown}"
    found = [
        Headline(
            "worst_case",
            "Robust accuracy over all attacks",
            summary.robust_accuracy,
            remark,
            established=summary.standing != "not established",
        )
    ]
    if not known and tried(summary) not in ("nothing", "papers only"):
        failed = f"failed checks: {', '.join(summary.failed_checks)}" if summary.failed_checks else ""
        remark = _remarks(_counted_right(summary), failed)
        found.append(Headline("after_attacks", "Accuracy after the attacks that ran", summary.worst_case, remark))
    found.append(
        Headline(
            "paper",
            "Accuracy after the paper's attacks",
            summary.paper,
            _counted_right(summary) if summary.paper else "none was run",
        )
    )
    clean = Headline(
        "clean",
        "Defended network, clean images" if summary.run.defences else "Clean images",
        summary.clean,
        "correct and accepted" if summary.run.rejects else "",
    )
    if summary.undefended_clean is None:
        return [
            *found,
            Headline("undefended_clean", "Undefended network", None, "not run: none is known"),
            clean,
        ]
    fewer = "fewer attacks than on the defended" if tried(summary) == "adaptive" else ""
    remark = fewer if summary.undefended_robust else "not run"
    return [
        *found,
        Headline("undefended_robust", "Undefended network, attacks made on it", summary.undefended_robust, remark),
        Headline("undefended_clean", "Undefended network, clean images", summary.undefended_clean),
        clean,
    ]


def _counted_right(summary: Summary) -> str:
    """What an attacked image must be."""
    return "correct or rejected" if summary.run.rejects else ""


def _remarks(*remarks: str) -> str:
    return "; ".join(one for one in remarks if one)


Tried = Literal["nothing", "papers only", "no gradient", "not all modes", "adaptive", "nothing left"]


def tried(summary: Summary) -> Tried:
    """How far the attackers went: the honest reading of the worst case depends on it.

    Returns:
        ``"adaptive"`` if an adaptive suite ran (``evaluation/checks/standing.py``) and followed the gradient of the
        defended network; ``"not all modes"`` if gradients were followed, but not as such a suite does;
        ``"no gradient"`` if the suite only transferred or queried; ``"nothing left"`` if it had no image left to
        attack; ``"papers only"`` without a suite; ``"nothing"`` if no attack ran.
    """
    if not any(row.attacked for row in summary.rows):
        return "nothing"
    suite = [row for row in summary.rows if row.source == "ladder"]
    if any(row.attacked and row.crafted_on == "defended" and row.backward > 0 for row in suite):
        return "not all modes" if summary.lacking else "adaptive"
    if any(row.attacked for row in suite):
        return "no gradient"
    return "nothing left" if any(row.crafted_on == "defended" for row in suite) else "papers only"


def shown_gap(summary: Summary) -> float | None:
    """The gap, from 0 to 1; None also where it is 0 only because nobody but the paper's own attackers tried."""
    return None if tried(summary) == "papers only" else summary.gap


def figure_name(summary: Summary) -> str:
    """What the worst case over the attacks that ran is called."""
    if summary.robust_accuracy is not None:
        return "robust accuracy"
    return f"accuracy after {_attacks_that_ran(summary)}"


def _attacks_that_ran(summary: Summary) -> str:
    return "the paper's attacks" if tried(summary) == "papers only" else "the attacks that ran"


def _warning(summary: Summary) -> str:
    if summary.standing != "not established":
        return ""
    most = f"{percent(summary.worst_case)} {interval(summary.worst_case)}"
    return f"at most {most}; failed checks: {', '.join(summary.failed_checks)}"


def title(summary: Summary) -> str:
    """The result in two or three words."""
    if summary.standing == "not established":
        return NOT_ESTABLISHED
    if summary.robust_accuracy is None:
        return "robustness unknown"
    return f"{percent(summary.robust_accuracy)} robust"


def verdict(summary: Summary) -> str:
    """What the figures say, in a few sentences that hold whatever they are."""
    parts = (
        _verdict_on_checks(summary),
        _verdict_on_defence(summary),
        _verdict_on_detector(summary),
        _verdict_on_undefended(summary),
    )
    return " ".join(part for part in parts if part)


def _verdict_on_checks(summary: Summary) -> str:
    if summary.standing == "no checks" and tried(summary) != "nothing":
        return "No checks of the attacks were made, so the robust accuracy is unknown."
    if not summary.failed_checks:
        return ""
    failed = ", ".join(summary.failed_checks)
    return f"Robustness is not established: the attacks fail their own checks ({failed}), so others may break more."


def _verdict_on_defence(summary: Summary) -> str:
    how_far, left = tried(summary), percent(summary.worst_case)
    target = "defence" if summary.run.defences else "network"
    correct, accepted = ("correct or rejected", " and accepted") if summary.run.rejects else ("correct", "")
    if how_far == "nothing":
        return (
            f"No attack was run: that {left} of the images are classified correctly{accepted} says nothing about "
            "robustness."
        )
    if summary.paper is None:
        none = " None of a paper's own attacks was run." if summary.run.defences else ""
        if how_far == "adaptive":
            return f"An attacker who knows the {target} leaves {left} {correct}.{none}"
        if how_far == "not all modes":
            return f"The attacks that were run leave {left} {correct}. {capital(summary.unknown)}.{none}"
        return (
            f"The attacks that were run leave {left} {correct}, but none followed the gradient of the {target}.{none}"
        )
    paper = f"the paper's own attacks, counted in the same ball, leave {percent(summary.paper)}"
    if how_far == "adaptive":
        return f"An attacker who knows the {target} leaves {left} {correct}; {_compared(summary, paper)}."
    if how_far == "not all modes":
        return (
            f"The attacks that were run leave {left} {correct}; {_compared(summary, paper)}. "
            f"{capital(summary.unknown)}."
        )
    if how_far == "no gradient":
        return (
            f"With attacks that follow no gradient of the {target}, {left} stay {correct}; "
            f"{_compared(summary, paper)}. An attacker who knows the {target} was not tried and may leave far less."
        )
    if how_far == "nothing left":
        left_over = "correctly classified and accepted" if summary.run.rejects else "correctly classified"
        return f"{capital(paper)}, and no {left_over} image was left to attack further."
    return f"{capital(paper)}. Nobody who knows the {target} has attacked it yet: that number is still unknown."


def _compared(summary: Summary, paper: str) -> str:
    """The paper's number beside the one that survives."""
    assert summary.paper is not None
    gap = summary.paper.count - summary.worst_case.count
    if gap == 0:
        return f"{paper} too: nothing else broke an image that they had left"
    return f"{paper}, which is {points(gap / summary.paper.total)} more ({images(gap)})"


def _verdict_on_detector(summary: Summary) -> str:
    """Who gets past it."""
    pools = {pool.knows: pool for pool in summary.detection.pools} if summary.detection else {}
    if summary.detection is None or not any(pool.past for pool in pools.values()):
        return ""
    names = {"zero": "an attacker who does not know the detector", "perfect": "one who does"}
    past = " and ".join(
        f"{names[knows] if len(pools) > 1 else 'the best attack of each image'} gets {percent(pool.past)}"
        for knows, pool in pools.items()
        if pool.past
    )
    flagged = percent(summary.detection.false_positives)
    clean = f"At its threshold the detector flags {flagged} of clean images"
    return f"{clean}; {past} of the images past network and detector."


def detection_in_words(detection: Detection | None) -> str:
    """What the detector does at its own threshold; empty without one."""
    if detection is None:
        return ""
    found = detection.false_positives
    text = f"At its own threshold the detector rejects {percent(found)} {interval(found)} of the clean images."
    for pool in detection.pools:
        if pool.mead is not None:
            whose = {"zero": "an attack that does not know it", "perfect": "any attack"}[pool.knows]
            text += (
                f" Of the images on which {whose} fooled the network, it rejects {percent(pool.mead)} "
                f"{interval(pool.mead)} whatever the attack."
            )
    return text


DETECTION_COLUMNS = (
    "knows",
    "fooled\nk of m",
    "mean\nAUC",
    "AUC",
    *(f"% flagged\nat {100 * share:g} %" for share in FALSE_POSITIVES),
    *(f"% past\nat {100 * share:g} %" for share in PASSING),
    "% past\nat own",
    "%\nrejected",
)
"""Headings of the detector's table, after the attack's name."""


def detection_rows(detection: Detection) -> list[tuple[str, list[str]]]:
    """The detector's table: a name and the cells under ``DETECTION_COLUMNS``; the last lines are of all attacks."""
    return [
        *(
            (
                row.key,
                [
                    row.knows,
                    count_of(row.fooled),
                    _auc(row.mean_auc),
                    _auc(row.auc),
                    *_shares(row.true_positives, len(FALSE_POSITIVES)),
                    *_shares(row.success, len(PASSING)),
                    bare_percent(row.past),
                    bare_percent(row.detected),
                ],
            )
            for row in detection.rows
        ),
        *(
            (
                {"zero": "all that do not know it", "perfect": "all attacks"}[pool.knows],
                [
                    pool.knows,
                    *["-"] * (3 + len(FALSE_POSITIVES)),
                    *_shares(pool.success, len(PASSING)),
                    bare_percent(pool.past),
                    bare_percent(pool.mead),
                ],
            )
            for pool in detection.pools
        ),
    ]


def _auc(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _shares(found: list[At], count: int) -> list[str]:
    return [bare_percent(at.share) for at in found] or ["-"] * count


def bare_percent(share: Proportion | None) -> str:
    """The same without its unit, for columns that name it."""
    return percent(share).removesuffix(f"{NO_BREAK}%")


def _verdict_on_undefended(summary: Summary) -> str:
    if summary.undefended_clean is None:
        return "No undefended network was there to compare with." if summary.run.defences else ""
    if summary.undefended_robust is None:
        return "The undefended network was not attacked."
    kept = percent(summary.undefended_robust)
    fewer = ", which are fewer" if tried(summary) == "adaptive" else ""
    return f"The undefended network keeps {kept} under attacks made on it{fewer}."


def capital(text: str) -> str:
    """With its first letter as a capital, the rest as it is."""
    return text[:1].upper() + text[1:]


def percent(share: Proportion | None) -> str:
    """``"26.7 %"`` on one line; ``"-"`` for None."""
    return "-" if share is None else f"{100 * share.rate:.1f}{NO_BREAK}%"


def interval(share: Proportion) -> str:
    """Its 95 % interval in per cent, ``"[22.0, 31.9]"``."""
    low, high = share.interval
    return f"[{100 * low:.1f},{NO_BREAK}{100 * high:.1f}]"


def points(gap: float) -> str:
    """A difference of two accuracies, ``"62.0 points"``."""
    return f"{100 * gap:.1f}{NO_BREAK}points"


def images(count: int) -> str:
    """So many images, on one line."""
    return f"{count}{NO_BREAK}image{'' if count == 1 else 's'}"


def amount(value: float) -> str:
    """A number of passes, no finer than it is worth reading."""
    return f"{value:.1f}".removesuffix(".0") if value < 100 else f"{value:.0f}"


def phases_in_words(summary: Summary) -> str:
    """What was done besides the attacks, each phase with its passes and seconds; empty without any."""
    return "; ".join(
        f"{phase.name} {phase.forward} passes forwards, {phase.backward} backwards, {seconds(phase.seconds)}{NO_BREAK}s"
        for phase in summary.phases
    )


def seconds(value: float) -> str:
    """Seconds, likewise; without the unit."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def size(value: float | None) -> str:
    """The size of a perturbation."""
    return "-" if value is None else f"{value:.3g}"


def defence_names(run: RunDescription) -> list[str]:
    """Each defence with its settings, ``"jump_relu (jump 1, relus 4)"``; settings that are None are left out."""
    return [_defence_name(defence) for defence in run.defences]


def _defence_name(defence: dict[str, Any]) -> str:
    options = [
        f"{key.replace('_', ' ')} {_option(value)}"
        for key, value in defence.items()
        if key != "name" and value is not None
    ]
    return f"{defence['name']} ({', '.join(options)})" if options else str(defence["name"])


def training_in_words(training: Training) -> str:
    """What a defence was trained on, in a line."""
    settings = training.settings
    if "loss" not in settings:  # a detector's
        images = f"{settings['images']} benign images"
        trained = f"{len(training.losses)} epoch(s) on {images} in batches of {settings.get('batch_size')}"
        how = trained if training.losses else f"fitted to {images}"
        share = f"thresholds set on a share of {settings['validation_split']:g} held out"
        return f"{how}, seed {settings['seed']}; {share}"
    loss = settings["loss"]
    names = {"pixel_weight": f"pixels ({loss['pixel']})", "feature_weight": f"features ({loss['network']})"}
    names["class_weight"] = "class"
    terms = ", ".join(f"{loss[key]:g} {name}" for key, name in names.items() if loss[key])
    return (
        f"{len(training.losses)} epoch(s) on {settings['images']} images: {'; '.join(settings['inputs'])}; eps "
        f"{settings['eps']:g}, attacks made in mode {settings['attack_mode']}, seed {settings['seed']}; loss {terms}"
    )


def _option(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_option(one) for one in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def threat_in_words(settings: Settings) -> str:
    """What the attacker may do."""
    return f"{settings.threat}: {ball_type(settings.threat).rule} {settings.eps:g}"


def grouped(rows: list[AttackRow]) -> list[tuple[str, list[AttackRow]]]:
    """The rows under their headings, in the order of ``GROUPS``; no heading without rows."""
    groups = [(title, [row for row in rows if row.source == source]) for source, title in GROUPS.items()]
    return [(title, chosen) for title, chosen in groups if chosen]


def notes(rows: list[AttackRow]) -> list[str]:
    """A line for each thing that is to be said of attacks, such as why they did not run."""
    found = dict.fromkeys(row.note for row in rows if row.note)
    return [f"{note}: {', '.join(row.key for row in rows if row.note == note)}" for note in found]


def median_size(row: AttackRow, norm: str) -> float | None:
    """The median size of its perturbations in the threat's norm."""
    return row.median_size


def randomness_in_words(summary: Summary) -> str:
    """How a random defence is judged, and what its passes say one by one; empty for one that is not random."""
    found = summary.randomness
    if found is None:
        return ""
    low, high = (f"{100 * end:.1f}" for end in found.mean_interval)
    return (
        "The defence is random and judged by the likeliest class of each image: an attack succeeds only where fresh "
        f"passes, {found.votes} to {MOST_PASSES}, show that another class is at least as likely as the label. For "
        f"{count_of(found.undecided)} images they could not tell; these count as robust. Pass by pass, after the "
        f"attack that seems the worst by earlier passes: {100 * found.mean:.1f}{NO_BREAK}% [{low},{NO_BREAK}{high}] "
        f"robust in the mean of {found.votes} passes; in none of them wrong: {percent(found.worst)} "
        f"{interval(found.worst)}."
    )


def not_finite_in_words(summary: Summary) -> str:
    """How many images have no finite logits; empty where all have."""
    clean, broken = summary.not_finite.clean, summary.not_finite.broken
    parts = []
    if clean.count:
        parts.append(
            f"The network gives logits that are not finite for {count_of(clean)} clean images, which count as wrong."
        )
    if broken is not None and broken.count:
        parts.append(
            f"Of {images(broken.total)} that attacks broke, {broken.count} were broken by NaN or infinite logits alone."
        )
    return " ".join(parts)


def agreement_in_words(summary: Summary) -> str:
    """The agreement of softmax lists, of clean images and in the worst case; empty if none was recorded."""
    clean, worst = summary.clean_agreement, summary.worst_agreement
    if clean is None or worst is None:
        return ""
    whose = {"undefended": "the undefended network's", "own": "its own"}[summary.reference]
    return (
        f"The network's ranking of all classes, compared with {whose} of the clean image (1 is the same): "
        f"mean NDCG {_mean(clean.ndcg)} on clean images, {_mean(worst.ndcg)} in the worst case of each; "
        f"mean reciprocal rank {_mean(clean.reciprocal_rank)} and {_mean(worst.reciprocal_rank)}."
    )


def _mean(of: Mean) -> str:
    low, high = of.interval
    return f"{of.mean:.3f}{NO_BREAK}[{low:.3f},{NO_BREAK}{high:.3f}]"


def ndcg(agreement: Agreement | None) -> str:
    """Its mean NDCG, ``"0.412"``; ``"-"`` for None."""
    return "-" if agreement is None else f"{agreement.ndcg.mean:.3f}"


def reciprocal_rank(agreement: Agreement | None) -> str:
    """Its mean reciprocal rank, likewise."""
    return "-" if agreement is None else f"{agreement.reciprocal_rank.mean:.3f}"


def counted(row: AttackRow) -> str:
    """How many of its images both are means over: those inside the ball; ``"-"`` for none."""
    return "-" if row.agreement is None else str(row.agreement.ndcg.total)


def attacker_in_words(run: RunDescription) -> str:
    """Which gradients the attacker was given."""
    given = f"gradient mode{'' if len(run.modes) == 1 else 's'} {', '.join(run.modes)}"
    if run.draws > 1:
        given += f", averaged over {run.draws} passes"
    return given if run.settings.adaptive else f"naive: {given} alone"


def given(row: AttackRow) -> str:
    """Which images it attacked."""
    return "all" if row.samples == "all" else "left"


def broke(row: AttackRow) -> str:
    """``"52 of 251"``, or that it did not run."""
    return f"{row.broke} of {row.attacked}" if row.attacked else "not run"


def passes(row: AttackRow) -> str:
    """Passes per attacked image, forwards/backwards; ``"-"`` if it did not run."""
    return f"{amount(row.forward)}/{amount(row.backward)}" if row.attacked else "-"


def row_in_words(row: AttackRow) -> str:
    """All that the table says of an attack, where there is no room for one."""
    if not row.attacked:
        return row.note
    target = "both networks" if row.crafted_on == "both" else f"the {row.crafted_on} network"
    text = f"made on {target}; broke {broke(row).replace(' ', NO_BREAK)}"
    if row.robust is not None:
        text += f"; leaves {percent(row.robust)} in the ball, {percent(row.accuracy)} at any size"
    if row.agreement is not None:
        text += f"; NDCG{NO_BREAK}{ndcg(row.agreement)}, 1/rank{NO_BREAK}{reciprocal_rank(row.agreement)}"
    return f"{text}; {passes(row)} passes; {seconds(row.seconds)}{NO_BREAK}s"


def count_of(share: Proportion) -> str:
    """``"52 of 251"``."""
    return f"{share.count} of {share.total}"


def unbroken(finding: str) -> str:
    """With ``"3 of 20"`` and ``"90 %"`` kept on one line."""
    return re.sub(r"(?<=\d) of (?=\d)|(?<=\d) (?=%)", lambda found: found[0].replace(" ", NO_BREAK), finding)
