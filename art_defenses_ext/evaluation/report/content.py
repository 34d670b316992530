"""The sections of a report, made of a run's figures: what is said, in which order, whatever the medium."""

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
        summary: its figures.
        examples: the images that the figure of examples shows, if there is one.
    """
    run = summary.run
    heading = f"{described.describe_defences(run)} on {run.model}"
    title = f"{result_in_words(summary)}: {heading}, {run.settings.threat} {run.settings.eps:.4g}"
    sections = [
        Section("What was evaluated", [described.facts(run)]),
        Section("Result", _result(summary)),
        Section("Did the attacks work?", _checks(summary)),
        Section("What next", [next_steps(summary)]),
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
    return worded(report, run.input_shape)


def _result(summary: Summary) -> list[Part]:
    bars = [
        f"{line.label} {'' if line.established else f'{NOT_ESTABLISHED}, at most '}{percentage(line.value)}"
        for line in headlines(summary)
        if line.value is not None
    ]
    remarks = (verdict.describe_not_finite, verdict.describe_randomness, verdict.describe_agreement)
    votes = explained("evaluation#random-defences", "How a random defence is judged") if summary.randomness else None
    return [
        headline_table(summary),
        Prose(verdict.explanation(summary)),
        *(Prose(text) for text in (describe(summary) for describe in remarks) if text),
        *_if_any(votes),
        Figure("accuracy", f"Bars: {'; '.join(bars)}.", is_small=True),
    ]


def _checks(summary: Summary) -> list[Part]:
    note = f"Where a check fails, the robust accuracy is not established; `{shown_by(PAGE)}` shows what to do then."
    return [tables.checks_table(summary.checks), Prose(note, "soft")] if summary.checks else []


def _attacks(summary: Summary) -> list[Part]:
    order = (
        "In the order in which they ran; so a small k low in the table does not mean a weak attack. An attack that was "
        "given the images left alone has no accuracy of its own."
    )
    modes = explained("evaluation#gradient-modes", "What the gradient modes are")
    return [*_with_legend(tables.attacks_table(summary), order), *_if_any(modes)]


def _if_any(folded: Folded | None) -> list[Part]:
    return [] if folded is None else [folded]


def _with_legend(table: Table, note: str) -> list[Part]:
    return [table, Prose(note, "soft"), Folded("What the columns mean", [table.legend])]


def _detector(detection: Detection) -> list[Part]:
    text = f"At its own threshold the detector rejects {with_interval(detection.false_positives)} of the clean images."
    for pool in detection.pools:
        if pool.mead is not None:
            rejected = f"it rejects {with_interval(pool.mead)} under each of them"
            text += f" Of the images that {BY[pool.knows]} fooled the model on, {rejected}."
    own = "Attacks that know the detector aim at its own threshold; at another one they would aim at that."
    zero = "So figures at other thresholds are of attacks with zero knowledge alone."
    roc = "Attacked images are those inside the ball that the model alone misclassifies. Dotted: no better than chance."
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
            "Margin: detection score minus threshold; above zero an image is rejected.",
        ),
    ]


def _curves(summary: Summary) -> list[Part]:
    caption = "Bands are 95 % intervals. White markers: the paper's attacks. The star: the worst case over all attacks."
    return [
        Figure("curves", "Accuracy against eps, a line for each attack; the numbers are in the table.", caption),
        tables.curves_table(summary),
        Prose("Accuracy in per cent at each eps, where it was measured.", "soft"),
    ]


def _strength(summary: Summary) -> Figure:
    chosen = [f"{tuning.parameter}, of which {tuning.chosen:.4g} was chosen" for tuning in summary.run.tunings]
    caption = "On validation images; the dotted line is the value that was chosen. No test image took part."
    return Figure("trade_off", f"Clean accuracy against the {' and the '.join(chosen)}.", caption, is_small=True)


def _training(summary: Summary) -> Figure:
    trainings = [described.describe_training(training) for training in summary.run.trainings]
    caption = (
        "The loss over the training images during the epoch, and where images were held out, over these after it: then "
        "the weights of the epoch with the smallest of the latter were kept."
    )
    return Figure("losses", f"Losses epoch by epoch. {'. '.join(trainings)}.", caption, is_small=True)


def _examples(run: RunDescription, examples: Sequence[Example]) -> Figure:
    texts = [
        f"Image {example.index}, class {described.class_name(run, example.label)}, "
        f"became {described.class_name(run, example.prediction)} by {example.attack}."
        for example in examples
    ]
    caption = (
        "Images that were classified correctly until an attack changed them inside the ball: number, class and class "
        "under the attack, the attack. In the difference of grey images blue is darker and red is lighter. Below: what "
        "the defence computes of both images, where it looks into the network."
    )
    return Figure("examples", " ".join(texts), caption)


def _costs(summary: Summary) -> list[Part]:
    return _with_legend(tables.costs_table(summary), f"At most {summary.total.peak_memory / 1e9:.2f} GB of memory.")


def _terms(summary: Summary) -> Terms:
    accepted, too = (" and accepted", " that is accepted") if summary.run.rejects else ("", "")
    robust = (
        f"the share of images that are classified correctly{accepted} and that no attack of the suite changes into "
        f"another class{too} inside the ball: the worst attack counts for each image. An upper bound: another attack "
        "may break more."
    )
    suite = (
        "white-box attacks under every gradient mode, transfer, queries and noise. The mode in brackets is what is "
        "differentiated in place of the defence; exact is the defence itself."
    )
    rankings = (
        f"agreement of the ranking of all classes with {verdict.whose_ranking(summary)} of the clean image. No attack "
        "minimises them, so their worst cases are upper bounds, too."
    )
    intervals = (
        "95 % confidence intervals: Wilson's for shares, Gaffke's for means. All figures are of the same images, so a "
        "difference may be significant where intervals overlap."
    )
    checks = "the attacks pass their own checks. That is no proof; it rules out the known ways in which attacks fail."
    return Terms(
        [
            ("robust accuracy", robust),
            ("established", checks),
            ("ball", f"the perturbations that are allowed: {described.describe_threat(summary.run.settings)}."),
            ("attack suite", suite),
            ("the paper's attacks", "what the defence's authors ran, counted in the same ball."),
            ("undefended model", f"the network without the defence. {_undefended_attacks(summary)}"),
            ("NDCG and 1/rank", rankings),
            ("intervals", intervals),
        ]
    )


def _undefended_attacks(summary: Summary) -> str:
    if summary.against_undefended is None:
        return "Fewer attacks are made on it."
    return "It is evaluated under the same suite on the same images, which are then compared one by one."
