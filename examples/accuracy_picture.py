"""The picture in README: accuracy of JumpReLU on digits against eps, under the paper's attack and under adaptive ones.

    python examples/accuracy_picture.py --out out/picture --svg docs/images/accuracy.svg

A run for each eps lies in a folder below ``--out``; called again, the script goes on with those that are unfinished.
About six minutes on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from art_defenses_ext import JumpReLU, Linf, evaluate
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import load_dataset

EPS = (0.025, 0.05, 0.075, 0.1, 0.125)
LINES = {
    "JumpReLU, the paper's attack": ("#0072B2", "--", "s"),
    "undefended model, adaptive attacks": ("#777777", "-", "o"),
    "JumpReLU, adaptive attacks": ("#D55E00", "-", "D"),
}
"""Colour, line and marker of each line."""


def reports(out: Path, samples: int) -> dict[float, Report]:
    """Evaluate JumpReLU, tuned on the validation images, and the undefended model in balls of several sizes."""
    digits = load_dataset("digits")
    defence = JumpReLU(load_classifier(digits))
    defence.fit(digits.validation.x, digits.validation.y)
    defended, data = defence(), (digits.test.x[:samples], digits.test.y[:samples])
    options = {"curve_samples": 0, "check_samples": 50}
    return {eps: evaluate(defended, data, Linf(eps), out=out / f"{eps:g}", **options) for eps in EPS}


def shares(found: dict[float, Report]) -> dict[str, list[Proportion]]:
    """Return the accuracies of each line, from eps 0 on; a figure that is not established is refused."""
    first = next(iter(found.values())).summary
    assert first.undefended_clean is not None
    lines = {name: [first.clean] for name in LINES}
    paper, undefended, adaptive = LINES
    lines[undefended] = [first.undefended_clean]
    for eps, report in found.items():
        summary, beside = report.summary, report.summary.against_undefended
        assert summary.paper is not None
        assert beside is not None
        if not (summary.established and beside.standing == "established"):
            raise SystemExit(f"at eps {eps} a robust accuracy is not established: {summary.failed_checks}")
        for name, share in ((paper, summary.paper), (undefended, beside.worst_case), (adaptive, summary.worst_case)):
            lines[name].append(share)
    return lines


def picture(lines: dict[str, list[Proportion]]) -> Figure:
    """Draw the lines with their 95 % intervals, each named at its end."""
    figure = Figure(figsize=(7.6, 4.0), layout="constrained")
    axes = figure.add_subplot()
    grid, lowest = (0.0, *EPS), 100.0
    for name, points in lines.items():
        colour, line, marker = LINES[name]
        low, high = zip(*(share.interval for share in points), strict=True)
        rates = [100 * share.rate for share in points]
        axes.fill_between(grid, [100 * end for end in low], [100 * end for end in high], color=colour, alpha=0.12, lw=0)
        axes.plot(grid, rates, line, color=colour, marker=marker, markersize=5, linewidth=2)
        lowest = min(rates[-1], lowest - 12)  # names do not overlap
        axes.text(EPS[-1] + 0.003, lowest, name.replace(", ", ",\n"), color=colour, va="center", fontsize=10)
    axes.set_xlabel("eps: each pixel value may change by so much (of 1)")
    axes.set_ylabel("classified correctly, per cent")
    axes.set_xlim(0, EPS[-1] + 0.045)
    axes.set_ylim(0, 100)
    axes.set_xticks(grid)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e8e8e8")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--svg", type=Path, required=True, help="file to write")
    parser.add_argument("--samples", type=int, default=200, help="test images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = shares(reports(arguments.out, arguments.samples))
    for name, points in lines.items():
        print(f"{name}: {', '.join(map(str, points))}")
    arguments.svg.parent.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "accuracy"  # the same file each time
    picture(lines).savefig(arguments.svg, metadata={"Date": None})


if __name__ == "__main__":
    main()
