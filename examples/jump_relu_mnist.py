"""JumpReLU on MNIST with its authors' LeNet weights: the paper's table, and robust accuracy.

    python examples/jump_relu_mnist.py --data DIR [--ablation] [--threads N]

DIR holds MNIST as torchvision lays it out, and weights/erichson_mnist_lenet_{baseline,robust}.pkl, the authors'
published weights. Takes about half an hour on one core; the ablation about ten minutes.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext import JumpReLU, Linf, evaluate
from art_defenses_ext.attack.annealed_pgd import FACTORS, AnnealedPGD
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.deep_fool import DeepFoolLp
from art_defenses_ext.attack.iterative_fgsm import IterativeFGSM
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.results.summary import Summary
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.suite.suites import STANDARD
from art_defenses_ext.zoo.catalogue import MODELS
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import Dataset, load_dataset

MEAN, STD = MODELS["lenet_like"].mean[0], MODELS["lenet_like"].std[0]
JUMPS = (0.0, 1.0, 1.5, 2.0, 3.0)
EPS = (0.1, 0.2)
WIDTHS = (0.05, 0.1, 0.25, 0.5, 1.0)
SCHEDULES = ((1.0,), (0.1,), (2.0, 1.0, 0.5, 0.25), (0.5, 0.25, 0.1), FACTORS, (4.0, 2.0, *FACTORS))

# The authors' attacks: steps and distances in normalised space, 40 iterations (their figures for MNIST).
PAPER: dict[str, tuple[float, Callable[[PyTorchClassifier], EvasionAttack]]] = {
    "IFGSM 40 x .01": (np.inf, lambda classifier: IterativeFGSM(classifier, 0.01, 40, scale=STD)),
    "DeepFool linf": (np.inf, lambda classifier: DeepFoolLp(classifier, np.inf, 40, scale=STD)),
    "DeepFool l2": (2, lambda classifier: DeepFoolLp(classifier, 2, 40, scale=STD)),
}


PGD = AttackSpec(
    "PGD-40", lambda c, t, seed: MarginPGD(c, t.norm, t.eps, seed=seed), "plain", modes="all", samples="all"
)


def accuracy(classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> Proportion:
    return Proportion.of(classifier.predict(x, batch_size=1000).argmax(axis=1) == y)


def relative_size(adversarial: np.ndarray, x: np.ndarray, norm: float) -> float:
    """Return the mean of ||delta|| / ||x|| in normalised space, in %: the authors' second figure."""
    delta, base = (adversarial - x).reshape(len(x), -1), (x - MEAN).reshape(len(x), -1)
    return 100 * float(np.mean(np.linalg.norm(delta, norm, axis=1) / np.linalg.norm(base, norm, axis=1)))


def print_clean(models: dict[str, PyTorchClassifier], data: Dataset) -> None:
    x, y = data.test.x, data.test.y
    print(f"\n## Clean accuracy, {len(x):,} test images, %\n")
    print(f"| model | {' | '.join(f'jump {jump:g}' for jump in JUMPS)} |")
    print("|---" * (len(JUMPS) + 1) + "|")
    for name, classifier in models.items():
        cells = [f"{100 * accuracy(JumpReLU(classifier, jump)(), x, y).rate:.2f}" for jump in JUMPS]
        print(f"| {name} | {' | '.join(cells)} |")


def print_paper_table(models: dict[str, PyTorchClassifier], data: Dataset, samples: int) -> None:
    x, y = data.test.x[:samples], data.test.y[:samples]
    print(f"\n## The paper's attacks, first {samples} test images: accuracy % [95 % interval] (mean relative size %)\n")
    print(f"| model | {' | '.join(PAPER)} |")
    print("|---" * (len(PAPER) + 1) + "|")
    for name, plain in models.items():
        jumping = JumpReLU(plain, 1.0)()
        rows: dict[str, list[str]] = {"jump 0": [], "jump 1, white-box": [], "jump 1, gray-box": []}
        for norm, attack in PAPER.values():
            made_on_plain, made_on_jump = attack(plain).generate(x, y), attack(jumping).generate(x, y)
            plain_size, jump_size = relative_size(made_on_plain, x, norm), relative_size(made_on_jump, x, norm)
            rows["jump 0"].append(f"{accuracy(plain, made_on_plain, y)} ({plain_size:.1f})")
            rows["jump 1, white-box"].append(f"{accuracy(jumping, made_on_jump, y)} ({jump_size:.1f})")
            rows["jump 1, gray-box"].append(f"{accuracy(jumping, made_on_plain, y)}")
        for setting, cells in rows.items():
            print(f"| {name}, {setting} | {' | '.join(cells)} |")


def print_adaptive_table(
    models: dict[str, PyTorchClassifier], data: Dataset, samples: int, seed: int, out: Path | None
) -> None:
    """Print accuracy under PGD in each gradient mode, and robust accuracy."""
    x, y = data.test.x[:samples], data.test.y[:samples]
    modes = ("exact", "relu", "smooth")
    print(f"\n## Adaptive attacks, linf, first {samples} test images, seed {seed}: accuracy %\n")
    print("PGD: margin loss, 40 steps of eps/4, one random start, by gradient mode.")
    print("Robust accuracy: PGD and the suite standard. Checks: those that failed, if any.\n")
    print(
        f"| model | eps | {' | '.join(f'PGD {mode}' for mode in modes)} | transfer | robust accuracy [95 %] | checks |"
    )
    print("|---" * (len(modes) + 5) + "|")
    times = []
    for name, plain in models.items():
        for jump in (0.0, 1.0):
            classifier = JumpReLU(plain, jump)() if jump else plain
            for eps in EPS:
                folder = out / f"{name}-jump-{jump:g}-eps-{eps:g}" if out else None
                options = {"seed": seed, "curve_samples": 0, "block_size": 512, "out": folder, "overwrite": True}
                summary = evaluate(classifier, (x, y), Linf(eps), [*STANDARD, PGD], **options).summary
                robust = {row.key: row.robust for row in summary.rows}
                cells = [robust.get(f"PGD-40 [{mode}]") for mode in modes] + [robust["transfer PGD-40"]]
                shown = " | ".join("" if cell is None else str(cell) for cell in cells)
                checks = "passed" if summary.established else ", ".join(summary.failed_checks)
                model = f"{name}, jump {jump:g} | {eps:g}"
                print(f"| {model} | {shown} | **{summary.worst_case}** | {checks} |", flush=True)
                times.append(f"| {model} | {' | '.join(_by_mode(summary, mode) for mode in modes)} |")
    threads = torch.get_num_threads()
    print(f"\nWhite-box attacks of the suite by gradient mode: broke, seconds on {threads} thread(s)\n")
    print(f"| model | eps | {' | '.join(modes)} |")
    print("|---" * (len(modes) + 2) + "|")
    print("\n".join(times))


def _by_mode(summary: Summary, mode: str) -> str:
    """Return how many images the suite's attacks under a mode broke, and their seconds."""
    rows = [row for row in summary.rows if row.key.startswith("APGD") and row.key.endswith(f"[{mode}]")]
    return f"{sum(row.broke for row in rows)}, {sum(row.seconds for row in rows):.0f} s" if rows else ""


def print_schedules(models: dict[str, PyTorchClassifier], data: Dataset, samples: int, seed: int) -> None:
    """Print how many images each schedule of the annealed attack breaks that Auto-PGD under all modes does not."""
    x, y = data.validation.x[:samples], data.validation.y[:samples]
    print(f"\n## Schedules of the annealed attack, jump 1, first {samples} validation images: broke\n")
    print("Of the images that Auto-PGD (margin and cross-entropy, each mode) does not break; factors of the width.\n")
    schedules = [", ".join(f"{factor:g}" for factor in schedule) for schedule in SCHEDULES]
    print(f"| model | eps | not broken | {' | '.join(schedules)} |")
    print("|---" * (len(SCHEDULES) + 3) + "|")
    for name, plain in models.items():
        jumping = JumpReLU(plain, 1.0)()
        for eps in EPS:
            left = np.flatnonzero(jumping.predict(x, batch_size=1000).argmax(axis=1) == y)
            for loss in ("margin", "cross_entropy"):
                for mode in ("exact", "relu", "smooth"):
                    attack = AutoPGD(jumping, np.inf, eps, loss=loss, gradient_mode=mode, seed=seed)
                    left = left[~_broken(jumping, attack, x[left], y[left])] if len(left) else left
            cells = []
            for factors in SCHEDULES if len(left) else ():
                attack = AnnealedPGD(jumping, np.inf, eps, factors=factors, gradient_mode="smooth", seed=seed)
                cells.append(str(int(_broken(jumping, attack, x[left], y[left]).sum())))
            print(f"| {name} | {eps:g} | {len(left)} | {' | '.join(cells)} |", flush=True)


def _broken(classifier: PyTorchClassifier, attack: EvasionAttack, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return classifier.predict(attack.generate(x, y), batch_size=1000).argmax(axis=1) != y


def print_ablation(models: dict[str, PyTorchClassifier], data: Dataset, samples: int, seed: int) -> None:
    """Print the ablations of the smooth mode's width and of the jump, on validation images."""
    x, y = data.validation.x[:samples], data.validation.y[:samples]
    print(f"\n## Width of the smooth mode, jump 1, PGD-40, first {samples} validation images, accuracy %\n")
    print(f"| model | eps | {' | '.join(f'width {width:g}' for width in WIDTHS)} |")
    print("|---" * (len(WIDTHS) + 2) + "|")
    for name, plain in models.items():
        for eps in EPS:
            cells = []
            for width in WIDTHS:
                jumping = JumpReLU(plain, 1.0, width=width)()
                attack = MarginPGD(jumping, np.inf, eps, gradient_mode="smooth", nb_starts=2, seed=seed)
                cells.append(f"{100 * accuracy(jumping, attack.generate(x, y), y).rate:.1f}")
            print(f"| {name} | {eps:g} | {' | '.join(cells)} |", flush=True)
    print(f"\n## Clean accuracy % by jump, all {len(data.validation.x):,} validation images\n")
    grid = [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0]
    print(f"| model | {' | '.join(f'{jump:g}' for jump in [0.0, *grid])} | largest within 1 point |")
    print("|---" * (len(grid) + 3) + "|")
    for name, plain in models.items():
        defence = JumpReLU(plain)
        defence.fit(data.validation.x, data.validation.y, max_accuracy_drop=0.01, jumps=grid)
        rates = {point.jump: f"{100 * point.accuracy:.2f}" for point in defence.curve}
        print(f"| {name} | {' | '.join(rates.get(jump, '') for jump in [0.0, *grid])} | {defence.jump:g} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder of MNIST and of the authors' weights")
    parser.add_argument("--samples", type=int, default=1000, help="test images for the paper's table")
    parser.add_argument("--adaptive-samples", type=int, default=500, help="test images for the adaptive table")
    parser.add_argument("--schedule-samples", type=int, default=300, help="validation images for the schedules")
    parser.add_argument("--ablation", action="store_true", help="print the ablation instead, on validation images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--out", type=Path, help="folder for the records of the adaptive table")
    options = parser.parse_args()
    logging.getLogger("art").setLevel(logging.ERROR)
    if options.threads:
        torch.set_num_threads(options.threads)

    data = load_dataset("mnist", options.data)
    weights = {"base": "erichson_mnist_lenet_baseline.pkl", "robust": "erichson_mnist_lenet_robust.pkl"}
    models = {
        name: load_classifier(data, "lenet_like", options.data / "weights" / file, device=options.device)
        for name, file in weights.items()
    }
    if options.ablation:
        print_ablation(models, data, options.adaptive_samples, options.seed)
        print_schedules(models, data, options.schedule_samples, options.seed)
        digits = load_dataset("digits")
        print_schedules({"digits": load_classifier(digits)}, digits, options.schedule_samples, options.seed)
        return
    print_clean(models, data)
    print_paper_table(models, data, options.samples)
    print_adaptive_table(models, data, options.adaptive_samples, options.seed, options.out)


if __name__ == "__main__":
    main()
