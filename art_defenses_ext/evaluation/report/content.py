"""The sections of a report, built from a run's figures, in their order and for every medium."""

from __future__ import annotations

from collections.abc import Sequence

from art_defenses_ext.base.errors import shown_by
from art_defenses_ext.evaluation.checks.checks import PAGE
from art_defenses_ext.evaluation.records.description import RunDescription
from art_defenses_ext.evaluation.records.examples import Example
from art_defenses_ext.evaluation.report import described, tables, verdict
from art_defenses_ext.evaluation.report.explained import explained
from art_defenses_ext.evaluation.report.headlines import NOT_ESTABLISHED, headline_table, headlines, result_in_words
from art_defenses_ext.evaluation.report.next_steps import next_steps
from art_defenses_ext.evaluation.report.numbers import percentage, with_interval
from art_defenses_ext.evaluation.report.sections import Document, Figure, Folded, Part, Prose, Section, Table, Terms
from art_defenses_ext.evaluation.report.wording import worded
from art_defenses_ext.evaluation.results.detection import Detection
from art_defenses_ext.evaluation.results.summary import Summary

BY = {"zero": "at least one attack with zero knowledge", "perfect": "at least one attack"}


def document(summary: Summary, examples: Sequence[Example] = ()) -> Document:
    """Return the report of a run.

    Args:
        summary: the figures of the run.
        examples: the images in the figure of examples, if there is one.
    """
    run = summary.run
    heading = f"{described.describe_defences(run)} on {run.model}"
    title = f"{result_in_words(summary)}: {heading}, {run.settings.threat} {run.settings.eps:.4g}"
    sections = [
        Section("Evaluation", [described.facts(run)]),
        Section("Result", _result(summary)),
        Section("Did the attacks work?", _checks(summary)),
        Section("Rounds of more effort", _rounds(summary) if summary.rounds else []),
        Section("Next steps", [next_steps(summary)]),
        Section("The attacks", _attacks(summary)),
        Section("The detector", _detector(summary.detection) if summary.detection else []),
        Section("Accuracy against eps", _curves(summary) if summary.curves else []),
        Section("Clean accuracy against the strength of the defence", [_strength(summary)]),
        Section("Training of the defence", [_training(summary)]),
        Section("Examples", [_examples(summary.run, examples)]),
        Section("Costs", _costs(summary)),
        Section("How to read this report", [_terms(summary)], is_reference=True),
        Section("Provenance", [described.provenance(run)], is_reference=True),
    ]
    report = Document(title, heading, verdict.conclusion(summary), [section for section in sections if section.parts])
    return worded(report, run.input_shape, described.recorded_texts(summary))


def _result(summary: Summary) -> list[Part]:
    bars = [
        f"{line.label} {'' if line.established else f'{NOT_ESTABLISHED}, at most '}{percentage(line.value)}"
        for line in headlines(summary)
        if line.value is not None
    ]
    remarks = (verdict.describe_not_finite, verdict.describe_randomness, verdict.describe_agreement)
    votes = explained("evaluation#random-defences", "Evaluation of a random defence") if summary.randomness else None
    return [
        headline_table(summary),
        Prose(verdict.explanation(summary)),
        *(Prose(text) for text in (describe(summary) for describe in remarks) if text),
        *_if_any(votes),
        Figure("accuracy", f"Bars: {'; '.join(bars)}.", is_small=True),
    ]


def _checks(summary: Summary) -> list[Part]:
    note = f"If a check fails, the robust accuracy is not established; `{shown_by(PAGE)}` explains the remedies."
    return [tables.checks_table(summary.checks), Prose(note, "soft")] if summary.checks else []


def _rounds(summary: Summary) -> list[Part]:
    end = (
        "Each round runs stronger attacks than the one before, on the images left and on those that no white-box "
        "attack had broken. After a round that broke images, the next repeats the attacks that broke them. Rounds end "
        "when two in a row break nothing, or when the budget is spent."
    )
    return _with_legend(tables.rounds_table(summary), end)


def _attacks(summary: Summary) -> list[Part]:
    order = (
        "The attacks are in the order in which they ran, so a small k low in the table does not mean a weak attack. An "
        "attack that ran only on the images left has no accuracy of its own."
    )
    modes = explained("evaluation#gradient-modes", "The gradient modes")
    return [*_with_legend(tables.attacks_table(summary), order), *_if_any(modes)]


def _if_any(folded: Folded | None) -> list[Part]:
    return [] if folded is None else [folded]


def _with_legend(table: Table, note: str) -> list[Part]:
    return [table, Prose(note, "soft"), Folded("Meaning of the columns", [table.legend])]


def _detector(detection: Detection) -> list[Part]:
    text = f"At its own threshold the detector rejects {with_interval(detection.false_positives)} of the clean images."
    for pool in detection.pools:
        if pool.mead is not None:
            rejected = f"it rejects {with_interval(pool.mead)} under each of them"
            text += f" Of the images on which {BY[pool.knows]} fooled the model, {rejected}."
    own = "Attacks with perfect knowledge aim at the detector's own threshold, and would aim at any other."
    zero = "Figures at other thresholds are therefore given for attacks with zero knowledge alone."
    roc = "The attacked images are those inside the ball that the model alone misclassifies. The dotted line is chance."
    others = tables.thresholds_table(detection)
    parts = _with_legend(others, zero) if others.rows else []
    return [
        Prose(text),
        *_with_legend(tables.detector_table(detection), own),
        *parts,
        Figure("roc", "True against false positive rate of the detector, for each attack with zero knowledge.", roc),
        Figure(
            "margins",
            "Histograms of the detector's margin, for clean images and for those of each attack.",
            "The margin is the detection score minus the threshold; above zero an image is rejected.",
        ),
    ]


def _curves(summary: Summary) -> list[Part]:
    caption = (
        "Bands are 95 % intervals. White markers are the paper's attacks. The star is the worst case over all attacks."
    )
    return [
        Figure("curves", "Accuracy against eps, a line for each attack; the numbers are in the table.", caption),
        tables.curves_table(summary),
        Prose("The table gives the accuracy in per cent at each eps at which it was measured.", "soft"),
    ]


def _strength(summary: Summary) -> Figure:
    values = [f"{tuning.parameter} (chosen: {tuning.chosen:.4g})" for tuning in summary.run.tunings]
    caption = "The accuracy is that on validation images; the dotted line is the chosen value. No test image was used."
    return Figure("trade_off", f"Clean accuracy against the {' and the '.join(values)}.", caption, is_small=True)


def _training(summary: Summary) -> Figure:
    trainings = [described.describe_training(training) for training in summary.run.trainings]
    caption = (
        "The training loss is that of the training images during the epoch, and the validation loss that of the "
        "held-out images after it, if there are any. The weights of the epoch with the smallest validation loss were "
        "kept."
    )
    return Figure("losses", f"Losses epoch by epoch. {'. '.join(trainings)}.", caption, is_small=True)


def _examples(run: RunDescription, examples: Sequence[Example]) -> Figure:
    texts = [
        f"Image {example.index}, class {described.class_name(run, example.label)}, "
        f"became {described.class_name(run, example.prediction)} by {example.attack}."
        for example in examples
    ]
    caption = (
        "These images were classified correctly until an attack changed them inside the ball. Above each are its "
        "number, its class, its class under the attack, and the attack. In the difference of grey images blue is "
        "darker and red is lighter. Below are images that the defence computes from both, if it has any."
    )
    return Figure("examples", " ".join(texts), caption)


def _costs(summary: Summary) -> list[Part]:
    return _with_legend(tables.costs_table(summary), f"The peak memory is {summary.total.peak_memory / 1e9:.2f} GB.")


def _terms(summary: Summary) -> Terms:
    accepted, too = (" and accepted", " that is accepted") if summary.run.rejects else ("", "")
    robust = (
        f"the share of images that are classified correctly{accepted} and that no attack of the suite changes into "
        f"another class{too} inside the ball: the worst attack counts for each image. It is an upper bound, since "
        "another attack may break more images."
    )
    suite = (
        "white-box attacks under every gradient mode, transfer, queries and noise. The mode in brackets is the "
        "backward pass that the attack uses; exact is the defence's own derivative."
    )
    rankings = (
        f"agreement of the ranking of all classes with {verdict.whose_ranking(summary)} of the clean image. No attack "
        "minimises these metrics, so their worst cases are upper bounds too."
    )
    intervals = (
        "95 % confidence intervals: Wilson's for shares, Gaffke's for means. All figures are of the same images, so a "
        "difference may be significant although intervals overlap."
    )
    checks = (
        "the attacks pass their own checks. This is not a proof; it rules out known ways in which attacks fail. "
        "Established to so many points: if stronger attacks of the checks' kinds lowered the figure by more, a check "
        "would fail."
    )
    return Terms(
        [
            ("robust accuracy", robust),
            ("established", checks),
            ("ball", f"the perturbations that are allowed: {described.describe_threat(summary.run.settings)}."),
            ("attack suite", suite),
            ("the paper's attacks", "the attacks of the defence's authors, counted in the same ball."),
            ("undefended model", f"the model without the defence. {_undefended_attacks(summary)}"),
            ("NDCG and 1/rank", rankings),
            ("intervals", intervals),
        ]
    )


def _undefended_attacks(summary: Summary) -> str:
    if summary.against_undefended is None:
        return "Fewer attacks are made on it."
    return "It is evaluated under the same suite on the same images, and the results are compared image by image."
