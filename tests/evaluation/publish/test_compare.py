"""Runs compared: the statistics of pairs, and which runs are paired."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.preprocessor import FeatureSqueezing
from art.estimators.classification import PyTorchClassifier
from rich.console import Console
from scipy.stats import binom
from torch import nn

from art_defenses_ext import L2, HeatAndBlur, JumpReLU, Linf, defend, evaluate
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.attack.random_noise import RandomNoise
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.text import for_markdown
from art_defenses_ext.estimator.rebuild import rebuild
from art_defenses_ext.evaluation.publish.compare import Compared, Comparison, _paired, compare
from art_defenses_ext.evaluation.records.paired import Paired
from art_defenses_ext.evaluation.records.proportion import Proportion, plain
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.zoo.datasets import Dataset

from ...conftest import add_breaking_examples, omit_pictures


def build_pgd(classifier: PyTorchClassifier, threat: Threat, seed: int) -> MarginPGD:
    return MarginPGD(classifier, threat.norm, threat.eps, max_iter=5, seed=seed)


def build_weaker_pgd(classifier: PyTorchClassifier, threat: Threat, seed: int) -> MarginPGD:
    return MarginPGD(classifier, threat.norm, threat.eps, max_iter=1, seed=seed)


PGD = [AttackSpec("PGD", build_pgd, "a", kind="white-box", modes="all")]


# Pairs


def test_images_are_counted_in_pairs() -> None:
    pair = Paired.of([True, True, True, False, False], [True, False, False, True, False])
    assert pair == Paired(both=1, gained=1, lost=2, neither=1)
    assert pair.total == 5
    assert pair.difference == -0.2


def test_mcnemar_s_test_agrees_with_an_enumeration() -> None:
    """The expected value sums over all splits of the differing images."""
    for gained, lost in product(range(6), range(6)):
        count = gained + lost
        probabilities = [binom.pmf(k, count, 0.5) for k in range(count + 1)]
        expected = sum(
            probability for probability in probabilities if probability <= probabilities[gained] * (1 + 1e-9)
        )
        assert Paired(3, gained, lost, 7).p_value == pytest.approx(expected)


def test_the_interval_covers_the_true_difference() -> None:
    generator = np.random.default_rng(0)
    for shares in ([0.5, 0.1, 0.05, 0.35], [0.02, 0.01, 0.2, 0.77], [0.9, 0.05, 0.05, 0.0]):
        truth = shares[1] - shares[2]
        inside = 0
        for both, gained, lost, neither in generator.multinomial(200, shares, size=2000):
            low, high = Paired(int(both), int(gained), int(lost), int(neither)).interval
            inside += low <= truth <= high
        assert 0.94 <= inside / 2000 <= 0.985


def test_pairs_resolve_a_difference_that_two_means_do_not() -> None:
    """60 and 64 % of 500 images: apart only if it is known that hardly an image changed sides."""
    low, _ = Paired(both=299, gained=21, lost=1, neither=179).interval
    assert low > 0
    low, _ = Paired(both=200, gained=120, lost=100, neither=80).interval
    assert low < 0


@pytest.mark.parametrize(("first", "second"), [([], []), ([True], [True, False])])
def test_empty_or_unequal_lists_are_refused(first: list[bool], second: list[bool]) -> None:
    with pytest.raises(InputError, match="equally many were expected"):
        Paired.of(first, second)


# Runs


pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(scope="module")
def runs(digits: Dataset, digits_classifier: PyTorchClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `bare`, `jump`, and one of other images and one in another ball."""
    folder = tmp_path_factory.mktemp("compare")
    jump = JumpReLU(digits_classifier, 1.0)()
    x, y = digits.test.x, digits.test.y
    options: dict[str, Any] = {"curve_samples": 0, "check_samples": 0, "progress": False}
    for name, classifier, part, eps in (
        ("bare", digits_classifier, slice(0, 40), 0.1),
        ("jump", jump, slice(0, 40), 0.1),
        ("others", jump, slice(40, 80), 0.1),
        ("some", jump, slice(28, 52), 0.1),
        ("ball", jump, slice(0, 40), 0.2),
    ):
        with pytest.MonkeyPatch.context() as patch:
            omit_pictures(patch)
            evaluate(classifier, (x[part], y[part]), Linf(eps), PGD, out=folder / name, **options)
    return folder


def test_the_same_images_in_the_same_ball_are_paired(runs: Path) -> None:
    folders = [runs / name for name in ("bare", "jump", "others", "ball")]
    comparison = compare(folders, different_attackers=True)
    paired = [run.against_first is not None for run in comparison.runs]
    assert paired == [False, True, False, False]
    pair = comparison.runs[1].against_first
    assert pair is not None
    rates = [run.summary.worst_case.rate for run in comparison.runs]
    assert pair.difference == pytest.approx(rates[1] - rates[0])
    assert pair.both + pair.lost == comparison.runs[0].summary.worst_case.count


def test_runs_are_paired_on_the_samples_that_they_share(runs: Path) -> None:
    """Images are paired by their content: the last 12 of one run are the first 12 of the other."""
    comparison = compare([runs / "bare", runs / "some"])
    pair = comparison.runs[1].against_first
    records = [Report.load(runs / name).records for name in ("bare", "some")]
    assert pair == Paired.of(*([record.robust() for record in part] for part in (records[0][28:], records[1][:12])))
    assert comparison.rows()[1][-2] == f"{pair} (12 images)"


def test_an_image_of_another_label_or_without_a_hash_is_not_paired(
    runs: Path, digits: Dataset, digits_classifier: PyTorchClassifier, tmp_path: Path
) -> None:
    x, y = digits.test.x[28:52], digits.test.y[28:52].copy()
    nines = int((y[6:12] == 9).sum())
    y[6:] = 9
    options: dict[str, Any] = {"curve_samples": 0, "check_samples": 0, "progress": False}
    evaluate(JumpReLU(digits_classifier, 1.0)(), (x, y), Linf(0.1), PGD, out=tmp_path / "label", **options)
    pair = compare([runs / "bare", tmp_path / "label"]).runs[1].against_first
    assert pair is not None
    assert pair.total == 6 + nines
    first, older = Report.load(runs / "bare"), Report.load(runs / "some")
    for record in older.records[6:]:
        record.image = None
    pair = _paired(first, older)
    assert pair is not None
    assert pair.total == 6


@pytest.mark.parametrize("second", ["jump", "some"])
def test_examples_added_to_one_run_are_no_difference_between_the_models(
    second: str, runs: Path, tmp_path: Path
) -> None:
    """The other model was not attacked with them, on the same images and on those that two runs share."""
    own = compare([runs / "bare", runs / second])
    added = Path(shutil.copytree(runs / "bare", tmp_path / "bare"))
    add_breaking_examples(added, "Doe | et al.")
    comparison = compare([added, runs / second])
    assert comparison.runs[0].summary.worst_case.count == 0
    assert comparison.runs[1].against_first == own.runs[1].against_first
    assert (
        compare([runs / second, added]).runs[1].against_first
        == compare([runs / second, runs / "bare"]).runs[1].against_first
    )
    words = f"were added to bare (Doe | et al.; {own.runs[0].summary.worst_case} without them). They count in"
    assert words in comparison.additions
    assert for_markdown(words) in comparison.as_markdown()
    assert [run["added"] for run in comparison.as_dict()["runs"]] == [["Doe | et al."], []]
    assert own.additions == ""


NOISE = [
    AttackSpec(
        "noise", lambda c, t, seed: RandomNoise(c, t.norm, t.eps, nb_draws=5, seed=seed), "five draws", kind="noise"
    )
]
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "suite": ({"attacks": NOISE}, "attacks PGD, not noise"),
    "named suite": ({"attacks": "standard"}, "attacks PGD, not standard"),
    "eps": ({"threat": Linf(0.05)}, "eps 0.1, not 0.05"),
    "seed": ({"seed": 1}, "seed 0, not 1"),
    "block size": ({"block_size": 20}, "block_size 256, not 20"),
    "checks": ({"check_samples": 3}, "check_samples 0, not 3"),
    "code of an attack": ({"attacks": [replace(PGD[0], build=build_weaker_pgd)]}, "attack 'PGD' has another build"),
}


@pytest.mark.usefixtures("short_suite")
@pytest.mark.parametrize("case", OTHERS)
def test_different_attackers_are_refused_unless_allowed_and_then_named(
    case: str, runs: Path, digits: Dataset, digits_classifier: PyTorchClassifier, tmp_path: Path
) -> None:
    """One network, two attackers: whatever the table shows is no difference between networks."""
    changes, words = OTHERS[case]
    arguments = {
        "threat": Linf(0.1),
        "attacks": PGD,
        "curve_samples": 0,
        "check_samples": 0,
        "progress": False,
    } | changes
    few = 1 if case == "named suite" else 6
    evaluate(digits_classifier, (digits.test.x[:few], digits.test.y[:few]), out=tmp_path / "other", **arguments)
    with pytest.raises(
        InputError, match=f"bare and other, made by different attackers \\({re.escape(words)}.*expected"
    ):
        compare([runs / "bare", tmp_path / "other"])
    comparison = compare([runs / "bare", tmp_path / "other"], different_attackers=True)
    warning = f"The runs have different attackers, .* bare and other: {re.escape(words)}"
    assert re.match(warning, comparison.as_markdown())
    console = Console(width=200, file=io.StringIO())
    comparison.print(console)
    shown = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert re.search(f"{warning}.* minus the first", shown)
    assert words in "; ".join(comparison.as_dict()["runs"][1]["other_attacker"])


def test_runs_that_differ_in_the_seed_alone_have_a_spread(runs: Path) -> None:
    """Worked out by hand: 10, 16 and 13 of 40 images; the run in another ball stands alone."""
    summary = Report.load(runs / "jump").summary

    def seeded(seed: int, robust: int) -> Compared:
        run = replace(summary.run, settings=replace(summary.run.settings, seed=seed))
        return Compared(f"seed={seed}", replace(summary, run=run, worst_case=Proportion(robust, 40)), None)

    other_ball = Compared("ball", Report.load(runs / "ball").summary, None)
    comparison = Comparison([seeded(0, 10), seeded(1, 16), other_ball, seeded(2, 13)])
    (sentence,) = comparison.spread
    assert "3 seeds: " in sentence
    assert " 32.5 % on average, 25.0 to 40.0 %; not all of them are established." in sentence
    assert "3 seeds: " in comparison.as_markdown()
    assert Comparison([seeded(0, 10), seeded(0, 16), other_ball]).spread == []


def test_examples_added_to_one_seed_are_no_spread(runs: Path, tmp_path: Path) -> None:
    added = Path(shutil.copytree(runs / "jump", tmp_path / "jump"))
    add_breaking_examples(added, "Doe et al.")
    summary = Report.load(added).summary
    first = replace(summary.run, settings=replace(summary.run.settings, seed=1))
    own = summary.own_worst_case
    assert own is not None
    other = Compared("b", replace(summary, run=first, own_worst_case=None, worst_case=own), None)
    (sentence,) = Comparison([Compared("a", summary, None), other]).spread
    assert f"{100 * own.rate:.1f} to {100 * own.rate:.1f} %" in sentence


def test_seeds_on_other_images_or_of_other_code_have_no_spread(runs: Path) -> None:
    summary = Report.load(runs / "jump").summary
    seed = replace(summary.run.settings, seed=1)

    def spread(code: dict[str, str], **changes: Any) -> list[str]:
        run = replace(summary.run, **{"settings": seed} | changes)
        other = Compared("b", replace(summary, run=run), None, code=code)
        return Comparison([Compared("a", summary, None, code={"network": "0"}), other]).spread

    assert len(spread({"network": "0"})) == 1
    assert len(spread({"network": "1"}, pipeline_sha256="1" * 64)) == 1, "the code of another training"
    assert spread({"network": "1"}) == []
    assert spread({"network": "0"}, data_sha256="1" * 64) == []
    assert spread({"network": "0"}, foreign=["FeatureSqueezing(bit_depth=1)"]) == []


class Sloped(nn.Module):
    """A network with an attribute that no hash of its weights covers."""

    def __init__(self, network: nn.Module, slope: float) -> None:
        super().__init__()
        self.network, self.slope = network, slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.leaky_relu(self.network(x), self.slope)


def sloped(classifier: PyTorchClassifier, slope: float) -> PyTorchClassifier:
    return rebuild(classifier, model=Sloped(classifier.model, slope).eval())


def squeezed(classifier: PyTorchClassifier, bits: float) -> PyTorchClassifier:
    squeezing = FeatureSqueezing((0.0, 1.0), bit_depth=int(bits), apply_predict=True)
    return rebuild(classifier, preprocessing_defences=[squeezing])


@pytest.mark.parametrize(("change", "values"), [(sloped, (0.1, 0.2)), (squeezed, (1, 8))])
def test_models_of_equal_weights_that_differ_otherwise_have_no_union(
    change: Callable[[PyTorchClassifier, float], PyTorchClassifier],
    values: tuple[float, float],
    digits: Dataset,
    digits_classifier: PyTorchClassifier,
    tmp_path: Path,
) -> None:
    data = digits.test.x[:4], digits.test.y[:4]
    options: dict[str, Any] = {"curve_samples": 0, "check_samples": 0, "progress": False}
    folders = [tmp_path / name for name in ("first", "other", "same")]
    for folder, value, threat in zip(folders, (*values, values[0]), (Linf(0.1), L2(0.6), L2(0.6)), strict=True):
        evaluate(change(digits_classifier, value), data, threat, NOISE, out=folder, **options)
    assert len({Report.load(folder).summary.run.pipeline_sha256 for folder in folders}) == 1
    assert compare(folders[:2], different_attackers=True).unions == []
    assert len(compare(folders, different_attackers=True).unions) == 1, "the first and the same"


def test_a_model_attacked_in_several_balls_has_their_union(
    runs: Path, digits: Dataset, digits_classifier: PyTorchClassifier, tmp_path: Path
) -> None:
    """An image counts only if it is robust in each ball; another model, or other images, do not join."""
    options: dict[str, Any] = {"curve_samples": 0, "check_samples": 0, "progress": False}
    data = (digits.test.x[:40], digits.test.y[:40])
    evaluate(JumpReLU(digits_classifier, 1.0)(), data, L2(0.6), PGD, out=tmp_path / "l2", **options)
    comparison = compare([runs / "jump", tmp_path / "l2", runs / "bare", runs / "some"], different_attackers=True)
    linf, l2 = (
        [record.robust() for record in Report.load(folder).records] for folder in (runs / "jump", tmp_path / "l2")
    )
    (union,) = comparison.unions
    assert union.balls == ["linf 0.1", "l2 0.6"]
    assert union.robust == Proportion(int((np.array(linf) & np.array(l2)).sum()), 40)
    assert union.robust.count < min(sum(linf), sum(l2)), "neither ball's images hold the other's"
    assert f"union of linf 0.1 and l2 0.6: {union.figure} at most {union.robust} (not all of" in str(union)
    assert for_markdown(str(union)) in comparison.as_markdown()
    assert comparison.as_dict()["unions"][0]["robust"]["count"] == union.robust.count
    assert compare([runs / "bare", runs / "jump"]).unions == []


def test_noise_against_a_white_box_attack_compares_no_robust_accuracy(
    runs: Path, digits: Dataset, digits_classifier: PyTorchClassifier, tmp_path: Path
) -> None:
    """The network is one and the same, and McNemar's test is sure of a difference: it is the attackers'."""
    x, y = digits.test.x[:40], digits.test.y[:40]
    options: dict[str, Any] = {"curve_samples": 0, "check_samples": 0, "progress": False}
    evaluate(digits_classifier, (x, y), Linf(0.1), NOISE, out=tmp_path / "noise", **options)
    comparison = compare([runs / "bare", tmp_path / "noise"], different_attackers=True)
    pair = comparison.runs[1].against_first
    assert pair is not None
    assert pair.gained >= 10
    assert pair.p_value < 1e-3
    assert comparison.heads[4] == "accuracy under the attacks that ran"
    assert "robust accuracy" not in comparison.as_markdown()
    assert "worst case" not in comparison.as_markdown()
    assert comparison.rows()[1][4].endswith("(no adaptive attack)")
    assert [run["robust_accuracy"] for run in comparison.as_dict()["runs"]] == [None, None]


@pytest.mark.usefixtures("short_suite")
def test_robust_accuracies_are_compared_under_their_name(
    digits: Dataset, digits_classifier: PyTorchClassifier, tmp_path: Path
) -> None:
    """A named suite is one attacker, whatever modes the defence has for it; papers' attacks are one for each method."""
    x, y = digits.test.x[:2], digits.test.y[:2]
    options: dict[str, Any] = {"curve_samples": 0, "check_samples": 1, "undefended_suite": "papers", "progress": False}
    jump = JumpReLU(digits_classifier, 1.0)()
    for name, classifier in (("bare", digits_classifier), ("jump", jump)):
        evaluate(classifier, (x, y), Linf(0.02), out=tmp_path / name, **options)
    comparison = compare([tmp_path / "bare", tmp_path / "jump"])
    assert comparison.warning == ""
    assert comparison.heads[4] == "robust accuracy"
    restorer = defend(digits_classifier, HeatAndBlur.for_classifier(digits_classifier))
    for name, classifier in (("jump, paper", jump), ("blur, paper", restorer)):
        evaluate(classifier, (x, y), Linf(0.02), "papers", out=tmp_path / name, **options | {"check_samples": 0})
    with pytest.raises(InputError, match=r"made by different attackers .attacks IFGSM, gray-box"):
        compare([tmp_path / "jump, paper", tmp_path / "blur, paper"])


def test_a_run_against_itself_differs_in_nothing(runs: Path) -> None:
    pair = compare([runs / "jump", runs / "jump"]).runs[1].against_first
    assert pair is not None
    assert (pair.gained, pair.lost, pair.p_value) == (0, 0, 1.0)


def test_the_files_say_what_the_comparison_says(runs: Path, tmp_path: Path) -> None:
    comparison = compare([runs / "bare", runs / "jump"])
    comparison.save(tmp_path / "out")
    data = json.loads((tmp_path / "out" / "compare.json").read_text())
    pair = comparison.runs[1].against_first
    assert pair is not None
    assert data["runs"][1]["against_first"] == json.loads(json.dumps(plain(pair)))
    assert [run["name"] for run in data["runs"]] == ["bare", "jump"]
    text = (tmp_path / "out" / "compare.md").read_text()
    assert str(pair) in text
    assert "jump_relu (jump 1" in text
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_one_run_or_none_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a list of 2 or more folders was expected"):
        compare([runs / "bare"])
    with pytest.raises(InputError, match="cannot be read"):
        compare([runs / "bare", tmp_path])
