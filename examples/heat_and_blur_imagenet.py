"""Heat and Blur on natural images and on MNIST: ablation, the paper's setting, and robust accuracy.

    python examples/heat_and_blur_imagenet.py --data DIR [--dataset image_folder] [--choose 100] [--measure 100]
        [--adaptive 50] [--eps 2/255 ...] [--defaults] [--brief] [--model squeezenet1_1 --weights FILE]
        [--device cuda] [--out DIR]

DIR holds the images: nips2017/ with labels.csv, or MNIST as torchvision lays it out. By default the network is
SqueezeNet 1.1 (``--model vgg19`` for the paper's), with the weights that torchvision publishes, or with --weights.

1. The ablation, on the first images of the validation half: accuracy of every setting, clean and under PGD (10 steps)
   on the undefended network, as in the paper. The choice is the setting with the largest mean of clean accuracy and of
   accuracy under PGD at the three eps.
2. The choice and its controls on the test half, under the same attack and FGSM, with NDCG, and the overlap of
   heatmaps.
3. The choice under adaptive attacks on the test half: accuracy under all of them, and under PGD (20 steps) in each
   gradient mode alone. --brief leaves out the undefended network, and the attacks that run on all images.

With --defaults the method's defaults take the place of the choice. On natural images part 3 then has a line for
JumpReLU, whose jump is tuned on the first --choose validation images. --measure 0 omits part 2. With --out an
interrupted run of part 3 continues.

Takes about two hours on one core.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext import HeatAndBlur, JumpReLU, Linf, defend, evaluate
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.estimator.rebuild import undefended
from art_defenses_ext.evaluation.records.metrics import ndcg
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.suite.papers import paper_specs
from art_defenses_ext.evaluation.suite.predictions import predict
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.suite.suites import STANDARD, attack_set
from art_defenses_ext.gradients.modes import find_defences
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import Split, load_dataset

Options = dict[str, Any]
Target = Callable[[], PyTorchClassifier]

# A blur of the same strength on small images has a smaller sigma.
SETTINGS: dict[str, dict[str, Any]] = {
    "image_folder": {"eps": (2 / 255, 4 / 255, 8 / 255), "sigmas": (1.0, 2.0, 3.0, 5.0), "sharp": 0.7},
    "mnist": {"eps": (0.1, 0.2, 0.3), "sigmas": (0.7, 1.0, 1.5, 2.0), "sharp": 0.4},
}

SUITE = tuple(spec for spec in STANDARD if spec.name not in ("APGD staged, long", "APGD smoothed", "FGSM", "noise"))
"""The suite ``standard`` without its slowest attacks on natural images; the output names those that run."""

EACH_MODE = AttackSpec(
    "PGD-20",
    lambda classifier, threat, seed: MarginPGD(classifier, threat.norm, threat.eps, max_iter=20, seed=seed),
    "white-box: each gradient mode alone",
    modes="all",
    samples="all",
)
"""Runs on all images, since the suite attacks under each mode only the images that are still robust."""

USUAL: Options = {"start": "last_conv", "rules": "epsilon_plus_box", "scale": "percentile"}
"""Options that a setting does not name; the method's defaults are the choice of this example."""


def settings(sigmas: tuple[float, ...], sharp: float) -> Iterator[tuple[str, Options]]:
    """Vary every option of the method, one at a time, and each way of mixing at each sigma."""
    middle = sigmas[1]
    for sigma in sigmas:
        yield f"blur only, sigma {sigma:g}", {"mix": "blur", "sigma": sigma}
    yield "heat only", {"mix": "heat"}
    for mix in ("blend", "heat_then_blur", "soft_mask"):
        for sigma in sigmas[:3]:
            yield f"{mix}, sigma {sigma:g}", {"mix": mix, "sigma": sigma}
    for sigma in sigmas[1:]:
        yield f"strength {sharp:g} to {sigma:g}", {"mix": "strength", "sigma": sigma, "sharp_sigma": sharp}
    yield f"strength {sigmas[0]:g} to {sigmas[2]:g}", {"mix": "strength", "sigma": sigmas[2], "sharp_sigma": sigmas[0]}
    for gain in (0.5, 1.0):
        yield f"gain {gain:g}, sigma {sigmas[0]:g}", {"mix": "gain", "sigma": sigmas[0], "gain": gain}
    blend: Options = {"mix": "blend", "sigma": middle}
    for start in ("predicted", "top_k", "positive"):
        yield f"blend, from {start}", blend | {"start": start}
    for rules in ("epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_gamma_box"):
        yield f"blend, {rules}", blend | {"rules": rules}
    yield "blend, heat by its maximum", blend | {"scale": "max"}
    yield f"blend, heat blurred by {middle:g}", blend | {"heat_sigma": middle}
    for mix in ("soft_mask", "heat_then_blur"):
        yield f"{mix}, floor 0.5, sigma {sigmas[0]:g}", {"mix": mix, "sigma": sigmas[0], "floor": 0.5}
    yield "blend, 3 passes", blend | {"passes": 3}


def first(split: Split, count: int) -> Split:
    return Split(split.x[:count], split.y[:count])


DEFAULTS: list[tuple[str, Options]] = [
    ("the defaults", {}),
    ("their blur alone", {"mix": "blur"}),
    ("their heat alone", {"mix": "heat"}),
    ("a weaker blur alone, sigma 1", {"mix": "blur", "sigma": 1.0}),
]
"""The rows of the paper's setting with --defaults."""


def attacked_sets(
    classifier: PyTorchClassifier, part: Split, all_eps: tuple[float, ...], seed: int, only: str = ""
) -> dict[str, FloatArray]:
    """Return clean images, and those of the paper's attacks (or of one kind) on the undefended network."""
    one_hot = np.eye(classifier.nb_classes, dtype=np.float32)[part.y]
    sets = {"clean": part.x}
    for spec in paper_specs(HeatAndBlur):
        for eps in all_eps if spec.name.startswith(only) else ():
            name = f"{spec.name.split(',')[0]} {shown(eps)}"
            attack = spec.build(classifier, Linf(eps), seed)
            attack.set_params(batch_size=32)
            sets[name] = attack.generate(part.x, one_hot)
    return sets


def shown(eps: float) -> str:
    return f"{round(255 * eps)}/255" if eps < 0.05 else f"{eps:g}"


def defended_by(classifier: PyTorchClassifier, options: Options) -> PyTorchClassifier:
    return defend(classifier, HeatAndBlur.for_classifier(classifier, chunk_size=32, **options))


class Restorer:
    """Restores images under many settings; a heatmap that several of them share is computed once."""

    def __init__(self, classifier: PyTorchClassifier, sets: dict[str, FloatArray]) -> None:
        self.classifier, self.sets = classifier, sets
        self.heats: dict[tuple[Any, ...], torch.Tensor] = {}

    def restored(self, options: Options, name: str) -> FloatArray:
        face = HeatAndBlur.for_classifier(self.classifier, **options)
        heated = [options.get(key) for key in ("start", "rules", "scale", "heat_sigma", "floor", "top_k")]
        key = (name, *heated)
        batches = torch.tensor(self.sets[name]).split(16)
        with torch.no_grad():
            if face.passes > 1 or face.mix == "blur":
                return np.concatenate([face.restore(batch.to(face.device)).cpu().numpy() for batch in batches])
            if key not in self.heats:
                self.heats[key] = torch.cat([face.heatmap(batch.to(face.device)) for batch in batches])
            heats = self.heats[key].split(16)
            restored = [face.mixed(batch.to(face.device), heat) for batch, heat in zip(batches, heats, strict=True)]
            return torch.cat(restored).cpu().numpy()


def mean_of(rates: dict[str, float]) -> float:
    """Return the criterion of the choice: the mean of clean accuracy and of accuracy under PGD at each eps."""
    return float(np.mean(list(rates.values())))


def print_ablation(
    classifier: PyTorchClassifier, part: Split, setting: dict[str, Any], seed: int
) -> tuple[Options, list[tuple[str, Options]]]:
    """Print the table; return the chosen options and their controls."""
    sets = attacked_sets(classifier, part, setting["eps"], seed, only="PGD")
    print(f"\n## Settings, first {len(part.x)} images of the validation part: accuracy %\n")
    print(f"| setting | {' | '.join(sets)} | mean of clean and PGD |")
    print("|---" * (len(sets) + 2) + "|", flush=True)
    print_row("undefended network", {name: accuracy(classifier, x, part.y).rate for name, x in sets.items()})
    restorer = Restorer(classifier, sets)
    scores: dict[str, tuple[float, Options]] = {}
    for name, own in settings(setting["sigmas"], setting["sharp"]):
        options = USUAL | own
        rates = {key: accuracy(classifier, restorer.restored(options, key), part.y).rate for key in sets}
        print_row(name, rates)
        scores[name] = mean_of(rates), options
    controls = {name: pair for name, pair in scores.items() if pair[1]["mix"] in ("blur", "heat")}
    best = max((pair for name, pair in scores.items() if name not in controls), key=lambda pair: pair[0])
    blur = max((pair for pair in controls.values() if pair[1]["mix"] == "blur"), key=lambda pair: pair[0])
    chosen = next(name for name, pair in scores.items() if pair is best)
    print(
        f"\nChosen: {chosen} ({100 * best[0]:.1f}); best blur alone: sigma {blur[1]['sigma']:g} ({100 * blur[0]:.1f})."
    )
    heat_alone = {key: value for key, value in best[1].items() if key not in ("sharp_sigma", "gain")} | {"mix": "heat"}
    same_blur = {"mix": "blur", "sigma": best[1]["sigma"]}
    rows = [("chosen: " + chosen, best[1]), ("its blur alone", same_blur), ("its heat alone", heat_alone)]
    if blur[1]["sigma"] != same_blur["sigma"]:
        rows.append((f"the best blur alone, sigma {blur[1]['sigma']:g}", blur[1]))
    return best[1], rows


def accuracy(classifier: PyTorchClassifier, x: FloatArray, y: np.ndarray) -> Proportion:
    return Proportion.of((predict(classifier, x)[0] == y).tolist())


def print_row(name: str, rates: dict[str, float]) -> None:
    cells = " | ".join(f"{100 * rate:.0f}" for rate in rates.values())
    print(f"| {name} | {cells} | {100 * mean_of(rates):.1f} |", flush=True)


def print_gray_box(
    classifier: PyTorchClassifier, part: Split, rows: list[tuple[str, Options]], all_eps: tuple[float, ...], seed: int
) -> dict[str, FloatArray]:
    """Print accuracy with its interval and NDCG on test images."""
    sets = attacked_sets(classifier, part, all_eps, seed)
    print(f"\n## The paper's setting, first {len(part.x)} images of the test part: accuracy % [95 % interval] (NDCG)\n")
    print(f"| | {' | '.join(sets)} |")
    print("|---" * (len(sets) + 1) + "|", flush=True)
    clean = predict(classifier, part.x)[1]
    for name, options in [("undefended network", None), *rows]:
        target = classifier if options is None else defended_by(classifier, options)
        cells = []
        for x in sets.values():
            classes, probabilities = predict(target, x)[:2]
            right = Proportion.of((classes == part.y).tolist())
            cells.append(f"{right} ({ndcg(clean, probabilities).mean():.2f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return sets


def print_overlap(classifier: PyTorchClassifier, sets: dict[str, FloatArray], chosen: Options) -> None:
    """Print the overlap of the hottest tenth of a heatmap with that of the clean image, which tests the hypothesis."""
    print("\n## Overlap (intersection over union) of the hottest 10 % of pixels, attacked with clean heatmap\n")
    print(f"| relevance from | {' | '.join(name for name in sets if name != 'clean')} |")
    print("|---" * len(sets) + "|", flush=True)
    for start in ("last_conv", "predicted", "top_k", "positive"):
        options = chosen | {"start": start, "mix": "heat", "floor": 0.0, "heat_sigma": 0.0}
        face = HeatAndBlur.for_classifier(classifier, **options)
        clean = hottest(face, sets["clean"])
        cells = []
        for name, x in sets.items():
            if name != "clean":
                hot = hottest(face, x)
                cells.append(f"{((hot & clean).sum(axis=1) / (hot | clean).sum(axis=1)).mean():.2f}")
        print(f"| {start} | {' | '.join(cells)} |", flush=True)


def hottest(face: HeatAndBlur, x: FloatArray) -> np.ndarray:
    """Return a mask of the hottest tenth of the pixels (N, H * W)."""
    with torch.no_grad():
        heat = torch.cat([face.heatmap(torch.tensor(batch, device=face.device)) for batch in np.array_split(x, len(x))])
    flat = heat.flatten(1).cpu().numpy()
    limit = np.quantile(flat, 0.9, axis=1, keepdims=True)
    return flat > limit


def print_adaptive(
    classifier: PyTorchClassifier,
    part: Split,
    targets: dict[str, Target],
    all_eps: tuple[float, ...],
    options: argparse.Namespace,
) -> None:
    """Print accuracy under all attacks, then under each gradient mode alone."""
    seed = options.seed
    print(f"\n## Adaptive attacks, first {len(part.x)} images of the test part, seed {seed}: accuracy %\n")
    suite = [spec.name for spec in SUITE if spec.samples != "all" or not options.brief]
    print(f"Attacks: {', '.join(suite)}{'' if options.brief else ', and those of the paper that keep to the ball'}.\n")
    print("| | eps | clean accuracy | under the paper's attacks | under all attacks [95 % interval] | broken by |")
    print("|---" * 6 + "|", flush=True)
    each_mode: list[str] = []
    for eps in all_eps:
        for name, build in targets.items():
            target = build()
            report = evaluate(
                target, (part.x, part.y), Linf(eps), adaptive_specs(target, options.brief), seed=seed, block_size=25,
                curve_samples=0, check_samples=0, out=report_folder(options.out, name, eps),
            )  # fmt: skip
            summary = report.summary
            rows = [row for row in summary.rows if row.source == "suite" and not row.key.startswith(EACH_MODE.name)]
            broke = [f"{row.key} {row.broke}" for row in rows if row.broke]
            modes = {row.mode: f"{row.robust}" for row in summary.rows if row.key.startswith(EACH_MODE.name)}
            if modes and not each_mode:
                each_mode = [f"| eps | {' | '.join(modes)} |", "|---" * (len(modes) + 1) + "|"]
            each_mode += [f"| {shown(eps)} | {' | '.join(modes.values())} |"] * bool(modes)
            paper = "" if summary.paper is None else f"{summary.paper}"
            cells = [name, shown(eps), str(summary.clean), paper, f"**{summary.worst_case}**", "; ".join(broke)]
            print(f"| {' | '.join(cells)} |", flush=True)
    if each_mode:
        print(f"\n{EACH_MODE.name} on the margin in each gradient mode of Heat and Blur: accuracy %\n")
        print("\n".join(each_mode), flush=True)


def adaptive_specs(target: PyTorchClassifier, brief: bool) -> list[AttackSpec]:
    """Return the attacks on ``target``: the suite, and those of its paper that keep to the ball."""
    if undefended(target) is None:
        return [spec for spec in SUITE if spec.crafted_on == "defended"]
    papers = [spec for spec in attack_set("papers", target) if spec.bounded]
    if brief:
        return [spec for spec in SUITE if spec.samples != "all"]
    return [*SUITE, *([EACH_MODE] if isinstance(find_defences(target)[0], HeatAndBlur) else []), *papers]


def report_folder(out: Path | None, name: str, eps: float) -> Path | None:
    return None if out is None else out / f"{name.split(',')[0].replace(' ', '_')}-eps-{eps:.4f}"


def tuned_jump_relu(classifier: PyTorchClassifier, part: Split) -> JumpReLU:
    """Return a JumpReLU whose jump costs at most one point of clean accuracy on validation images."""
    defence = JumpReLU(classifier)
    defence.fit(part.x, part.y, max_accuracy_drop=0.01)
    return defence


def draw(classifier: PyTorchClassifier, sets: dict[str, FloatArray], chosen: Options, path: Path) -> None:
    """Draw images, attacked images, their heatmaps and the restored images."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    face = HeatAndBlur.for_classifier(classifier, **chosen)
    attacked = sets[[name for name in sets if name.startswith("PGD")][1]]
    columns = {"clean": sets["clean"], "attacked": attacked}
    figure, axes = plt.subplots(4, 6, figsize=(12, 8), layout="constrained")
    for row in range(4):
        for half, (name, x) in enumerate(columns.items()):
            image = torch.tensor(x[row : row + 1], device=face.device)
            with torch.no_grad():
                pictures = {"": image, ", heat": face.heatmap(image), ", restored": face.restore(image)}
            for column, (title, picture) in enumerate(pictures.items()):
                axis = axes[row, 3 * half + column]
                shown_picture = picture[0].permute(1, 2, 0).clamp(0, 1).cpu().numpy().squeeze()
                axis.imshow(shown_picture, cmap="inferno" if "heat" in title else "gray")
                axis.set_axis_off()
                if row == 0:
                    axis.set_title(name + title)
    figure.savefig(path, dpi=80)
    print(f"\nPictures: {path.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True, type=Path, help="folder of the images, and of weights/")
    parser.add_argument("--dataset", choices=SETTINGS, default="image_folder")
    parser.add_argument("--model", help="default: the data set's default network")
    parser.add_argument("--weights", type=Path, help="default: the published ones, or training")
    parser.add_argument("--choose", type=int, default=100, help="images of the ablation")
    parser.add_argument("--measure", type=int, default=100, help="images of the paper's setting")
    parser.add_argument("--adaptive", type=int, default=50, help="images for the adaptive attacks")
    parser.add_argument("--eps", nargs="+", type=Fraction, help="such as 2/255 4/255; default: the data set's")
    parser.add_argument("--defaults", action="store_true", help="no ablation: the method's defaults, and JumpReLU")
    parser.add_argument("--brief", action="store_true", help="omit the attacks that run on all images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="folder for pictures and for the reports of the adaptive runs")
    options = parser.parse_args()
    logging.getLogger("art").setLevel(logging.ERROR)

    setting = SETTINGS[options.dataset]
    dataset = load_dataset(options.dataset, options.data)
    classifier = load_classifier(dataset, options.model, options.weights, device=options.device, seed=options.seed)
    all_eps = tuple(map(float, options.eps or setting["eps"]))
    validation = first(dataset.validation, options.choose)
    chosen: Options = {}
    rows = DEFAULTS
    if not options.defaults:
        chosen, rows = print_ablation(classifier, validation, setting, options.seed)
    sets: dict[str, FloatArray] = {}
    if options.measure:
        sets = print_gray_box(classifier, first(dataset.test, options.measure), rows, all_eps, options.seed)
    if sets and not options.defaults:
        print_overlap(classifier, sets, chosen)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            draw(classifier, sets, chosen, options.out / "heat.png")
    targets: dict[str, Target] = {} if options.brief else {"undefended network": lambda: classifier}
    if options.defaults and options.dataset == "image_folder":
        jump_relu = tuned_jump_relu(classifier, validation)
        targets[f"JumpReLU, jump {jump_relu.jump:g}"] = jump_relu
    targets[f"Heat and Blur, {rows[0][0]}"] = partial(defended_by, classifier, chosen)
    print_adaptive(classifier, first(dataset.test, options.adaptive), targets, all_eps, options)


if __name__ == "__main__":
    main()
