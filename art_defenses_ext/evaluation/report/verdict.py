"""The result of a run in sentences."""

from __future__ import annotations

from art_defenses_ext.evaluation.checks.standing import Standing
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.report.headlines import coverage
from art_defenses_ext.evaluation.report.numbers import (
    count_of,
    images,
    interval,
    mean_with_interval,
    percentage,
    points,
    with_interval,
)
from art_defenses_ext.evaluation.report.sections import NO_BREAK, Prose, Status
from art_defenses_ext.evaluation.results.randomness import MORE_SENT, Randomness
from art_defenses_ext.evaluation.results.summary import AgainstUndefended, Summary
from art_defenses_ext.evaluation.suite.vote import MOST_PASSES

SIGNIFICANT = 0.05
"""The p value below which a difference is significant."""


SENT = (1, 2, 5, 10, 20)
"""Numbers of passes of which a report prints the worst; ``report.json`` holds all from 1 to 20."""


def verdict(summary: Summary) -> str:
    """Return the result in a few sentences; the first is the conclusion."""
    return f"{conclusion(summary).text} {explanation(summary)}"


def explanation(summary: Summary) -> str:
    """Return the explanation of the conclusion, in a few sentences."""
    parts = (
        _on_checks(summary),
        _on_rounds(summary),
        _on_attacks(summary),
        _on_detector(summary),
        _on_undefended(summary),
    )
    return " ".join(part for part in parts if part)


def conclusion(summary: Summary) -> Prose:
    """Return the result in a sentence: whether the defence helps, or else the robust accuracy, or why it is unknown."""
    beside = summary.against_undefended
    if summary.robust_accuracy is None:
        return Prose(f"The robust accuracy is unknown, since {summary.unknown}.", "strong", "not run")
    counted = ", rejected images counted as correct," if summary.run.rejects else ""
    robust = f"robust accuracy {_bounded(summary.worst_case, summary.standing)}"
    if beside is None or summary.own_worst_case is not None:  # examples made elsewhere attack the defended model alone
        suite = summary.run.settings.attacks
        where = f" under the suite {suite}" if isinstance(suite, str) else ""
        where += " and examples made elsewhere" if summary.own_worst_case is not None else ""
        figure = f"{robust} {interval(summary.worst_case)}{counted}{where}."
        is_known = summary.standing == "established"
        text = figure[:1].upper() + figure[1:] if is_known else f"Robustness is not established: {figure}"
        return Prose(text, "strong", "" if is_known else "failed")
    effect, status = _effect(summary, beside)
    pair = beside.paired
    low, high = (f"{100 * end:+.1f}" for end in pair.interval)
    difference = f"{100 * pair.difference:+.1f}{NO_BREAK}points [{low},{NO_BREAK}{high}]"
    figures = (
        f"{robust}{counted} against {_bounded(beside.worst_case, beside.standing)} undefended under the same suite; "
        f"paired difference {difference}, p{NO_BREAK}={NO_BREAK}{pair.p_value:.2g}"
    )
    return Prose(f"{effect}: {figures}.", "strong", status)


def _effect(summary: Summary, beside: AgainstUndefended) -> tuple[str, Status]:
    """Return the effect of the defence. An upper bound can show that it does not help, never that it helps."""
    pair = beside.paired
    larger = beside.standing if pair.difference < 0 else summary.standing  # must not be an upper bound
    if pair.p_value >= SIGNIFICANT and summary.standing == beside.standing == "established":
        return "The defence makes no significant difference", "failed"
    if pair.p_value >= SIGNIFICANT or larger != "established":
        return "Whether the defence helps is not established", "not run"
    return ("The defence helps", "passed") if pair.difference > 0 else ("The defence does not help", "failed")


def _bounded(share: Proportion, standing: Standing) -> str:
    return percentage(share) if standing == "established" else f"at most {percentage(share)}"


def _on_checks(summary: Summary) -> str:
    if not summary.failed_checks:
        return ""
    failed = ", ".join(summary.failed_checks)
    return f"The attacks fail their own checks ({failed}), so other attacks may break more images."


def _on_rounds(summary: Summary) -> str:
    """Return what rounds of more effort added to the suite."""
    if not summary.rounds:
        return ""
    results = [each.result for each in summary.rounds]
    broken, left = sum(result.broken for result in results), images(results[0].robust_before)
    rounds = f"{len(results)} round{'s' * (len(results) > 1)} of more effort"
    first = f"Of {left} left by the suite, {rounds} broke {broken or 'none'}."
    return f"{first} The last one broke none." if broken and results[-1].is_idle else first


def _on_attacks(summary: Summary) -> str:
    how_far, rejects, accuracy = coverage(summary), summary.run.rejects, percentage(summary.worst_case)
    if how_far == "nothing":
        return f"No attack ran: a clean accuracy of {percentage(summary.clean)} is no evidence of robustness."
    paper, ball = percentage(summary.paper), "under the paper's own attacks, counted in the same ball,"
    if how_far == "papers only":
        return f"The accuracy {ball} is {paper}."
    if how_far == "nothing left":
        correct = "correctly classified and accepted" if rejects else "correctly classified"
        return f"The accuracy {ball} is {paper}, and no {correct} image was left for the attack suite."
    attacks, caution = {
        "adaptive": ("adaptive attacks", ""),
        "not all modes": ("the attacks that ran", ""),
        "no gradient": (
            "attacks that follow no gradient of the defended model",
            " An adaptive attack may break far more images.",
        ),
    }[how_far]
    none = "None of a paper's own attacks was run." if summary.run.defences and summary.paper is None else ""
    if summary.robust_accuracy is not None and how_far == "adaptive":
        return none if summary.paper is None else f"The accuracy {ball} is {paper}{_compared(summary)}."
    counted = ", rejected images counted as correct," if rejects else ""
    first = f"The accuracy under {attacks}{counted} is {accuracy}"
    if summary.paper is None:
        return f"{first}.{caution} {none}".rstrip()
    return f"{first}; {ball} it is {paper}{_compared(summary)}.{caution}"


def _compared(summary: Summary) -> str:
    """Return the accuracy under the paper's attacks beside that under all attacks."""
    assert summary.paper is not None
    gap = summary.paper.count - summary.worst_case.count
    if gap == 0:
        return ", too: no other attack broke an image on which these failed"
    return f", which is {points(gap / summary.paper.total)} more ({images(gap)})"


def _on_detector(summary: Summary) -> str:
    """Return the attack success rate beside the false positive rate."""
    if summary.detection is None:
        return ""
    attacks = {"zero": "for attacks with zero knowledge", "perfect": "for attacks with perfect knowledge of it"}
    rates = {pool.knows: percentage(pool.past) for pool in summary.detection.pools if pool.past}
    if not rates:
        return ""
    success = " and ".join(f"{rate} {attacks[knows]}" if len(rates) > 1 else rate for knows, rate in rates.items())
    flagged = percentage(summary.detection.false_positives)
    return f"At its threshold the detector flags {flagged} of clean images; the attack success rate is {success}."


def _on_undefended(summary: Summary) -> str:
    if (beside := summary.against_undefended) is not None:
        if summary.own_worst_case is None:
            return ""
        own, undefended = percentage(summary.own_worst_case), _bounded(beside.worst_case, beside.standing)
        return f"Under the run's own attacks alone it is {own}, against {undefended} undefended under the same suite."
    if summary.undefended_clean is None:
        return "There was no undefended model for comparison." if summary.run.defences else ""
    if summary.undefended_robust is None:
        return "The undefended model was not attacked."
    fewer = ", which are fewer," if coverage(summary) == "adaptive" else ""
    accuracy = percentage(summary.undefended_robust)
    return f"The accuracy of the undefended model under attacks made on it{fewer} is {accuracy}."


def describe_not_finite(summary: Summary) -> str:
    """Return the number of images without finite logits; empty if there are none."""
    clean, broken = summary.not_finite.clean, summary.not_finite.broken
    parts = []
    if clean.count:
        parts.append(f"The logits are not finite for {count_of(clean)} clean images, which count as misclassified.")
    if broken is not None and broken.count:
        parts.append(
            f"Of {images(broken.total)} that attacks broke, {broken.count} were broken by NaN or infinite logits only."
        )
    return " ".join(parts)


def describe_randomness(summary: Summary) -> str:
    """Return how a random defence is evaluated, and its figures for single passes; empty if it is not random."""
    passes = summary.randomness
    if passes is None:
        return ""
    low, high = (f"{100 * end:.1f}" for end in passes.mean_interval)
    return (
        "The defence is random, so its prediction is the most probable class of each image: an attack succeeds only if "
        f"{passes.votes} to {MOST_PASSES} fresh passes show that another class is at least as probable as the label. "
        f"They do not decide {count_of(passes.undecided)} images, which count as robust. Under the attack that seems "
        f"worst in earlier passes, the mean accuracy over {passes.votes} passes is {100 * passes.mean:.1f}{NO_BREAK}% "
        f"[{low},{NO_BREAK}{high}], and the share of images that are correct in every pass is "
        f"{with_interval(passes.worst)}. The accuracy in the worst of N passes is {_worst_of(passes)}, "
        f"and of more passes, by extrapolation, {_more(passes)}. The attacker averages {summary.run.draws} passes a "
        "step."
    )


def _worst_of(passes: Randomness) -> str:
    """Return the accuracy in the worst of some numbers of passes, in per cent."""
    return _at_sizes([(size, passes.worst_of[size - 1]) for size in SENT if size <= len(passes.worst_of)])


def _more(passes: Randomness) -> str:
    """Return the extrapolated accuracy in the worst of more passes, in per cent."""
    return _at_sizes(list(zip(MORE_SENT, passes.worst_of_more, strict=True)))


def _at_sizes(accuracies: list[tuple[int, float]]) -> str:
    return ", ".join(f"{100 * accuracy:.1f}{NO_BREAK}% (N{NO_BREAK}={NO_BREAK}{size})" for size, accuracy in accuracies)


def describe_agreement(summary: Summary) -> str:
    """Return the agreement of class rankings on clean images and in the worst case; empty if it was not recorded."""
    clean, worst = summary.clean_agreement, summary.worst_agreement
    if clean is None or worst is None:
        return ""
    return (
        f"The model's ranking of all classes is compared with {whose_ranking(summary)} of the clean image (1 means "
        f"equal): the mean NDCG is {mean_with_interval(clean.ndcg)} on clean images and "
        f"{mean_with_interval(worst.ndcg)} in the worst case; the mean reciprocal rank is "
        f"{mean_with_interval(clean.reciprocal_rank)} and {mean_with_interval(worst.reciprocal_rank)}."
    )


def whose_ranking(summary: Summary) -> str:
    """Return whose ranking of the classes is the reference."""
    return {"undefended": "the undefended model's", "own": "its own"}[summary.reference]
