"""What detecting costs, and an attacker's step against classifier and detector, in passes of the classifier alone.

    python tests/benchmarks/detection.py [--threads 1] [--repeats 15] [--batch 32] [--device cuda]
    python tests/benchmarks/detection.py --memory

The latter prints what the weights take, and makes none of them.

The runs of a line take turns in one process. Weights are random, which changes no time, and frozen. A pass is one
forward and backward pass to the input: the gradient of one class's logit.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from art.estimators.classification import PyTorchClassifier
from timing import Run, clock_of, device_name, take_turns
from torch import Tensor, nn

from art_defenses_ext.base.memory import in_words
from art_defenses_ext.detector.explanation_reconstructor import ExplanationReconstructor
from art_defenses_ext.detector.explanations import EXPLANATIONS
from art_defenses_ext.detector.memory import TRAINING_COPIES
from art_defenses_ext.detector.reconstructors import RECONSTRUCTORS, make_reconstructors
from art_defenses_ext.estimator.rejecting import rejecting
from art_defenses_ext.gradients.modes import gradient_mode
from art_defenses_ext.zoo.networks import KoLim, LeNetLike, ResNet20

NETWORKS = {"KoLim": (KoLim, (1, 28, 28)), "LeNetLike": (LeNetLike, (1, 28, 28)), "ResNet20": (ResNet20, (3, 32, 32))}
CLASSES = 10
BAR = 3.0
"""Detecting by the input gradient may cost so many passes."""


def detector_of(classifier: PyTorchClassifier, explanation: str) -> ExplanationReconstructor:
    """A detector that knows nothing, but has thresholds."""
    detector = ExplanationReconstructor(classifier, explanation=explanation)
    detector.network.make()
    each = torch.arange(CLASSES).repeat(20)
    detector.network.keep(torch.rand(len(each)), each, 0.05)
    return detector


def one_class(model: nn.Module, x: Tensor) -> Run:
    def run() -> None:
        live = x.clone().requires_grad_()
        torch.autograd.grad(model(live)[:, 0].sum(), live)

    return run


def detecting(network: nn.Module, x: Tensor) -> Run:
    def run() -> None:
        with torch.no_grad():
            network(x)

    return run


def attacked(whole: PyTorchClassifier, x: Tensor, mode: str) -> Run:
    """The gradients of the label's logit and of the detector's word, as an attacker takes them in each step."""
    parts: Callable[[Tensor], tuple[Tensor, Tensor]] = whole.model.parts

    def run() -> None:
        live = x.clone().requires_grad_()
        with gradient_mode(whole, mode):
            logits, excess = parts(live)
        torch.autograd.grad(logits[:, 0].sum(), live, retain_graph=True)
        torch.autograd.grad(excess.sum(), live)

    return run


def print_memory() -> None:
    """Bytes of each kind of reconstructor of a single explanation, with 64 hidden units."""
    print("| classes, pixels, kind | weights | while trained |\n|---|---|---|")
    for nb_classes, side in ((10, 28), (1000, 224)):
        for kind in RECONSTRUCTORS:
            with torch.device("meta"):
                made = make_reconstructors(kind, nb_classes, (1, side, side), 64)
            weights = sum(tensor.nbytes for tensor in made.state_dict().values())
            trained = "" if kind == "statistics" else in_words(TRAINING_COPIES * weights)  # a Gaussian is not trained
            print(f"| {nb_classes:,} classes of {side} x {side} pixels, `{kind}` | {in_words(weights)} | {trained} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    if options.memory:
        print_memory()
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    clock = clock_of(device)
    print(f"torch {torch.__version__}, {options.threads} thread(s), {device_name(device)}  ")
    print(f"`python {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}`\n")
    print(f"Batches of {options.batch}, medians of {options.repeats}, {clock} time.\n")
    heads = (
        "classifier",
        "explanation",
        "one pass, ms an image",
        "detecting",
        "holds",
        "attack, exact",
        "attack, smooth",
    )
    print(f"| {' | '.join(heads)} |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, (build, shape) in NETWORKS.items():
        model = build().eval().requires_grad_(False).to(device)
        x = torch.rand(options.batch, *shape, device=device)
        classifier = PyTorchClassifier(
            model,
            nn.CrossEntropyLoss(),
            input_shape=shape,
            nb_classes=CLASSES,
            clip_values=(0.0, 1.0),
            device_type="gpu" if device.type == "cuda" else "cpu",
        )
        for explanation in EXPLANATIONS:
            detector = detector_of(classifier, explanation)
            whole = rejecting(classifier, detector)
            runs = {"one": one_class(model, x), "detecting": detecting(detector.network, x)}
            runs |= {mode: attacked(whole, x, mode) for mode in ("exact", "smooth")}
            take_turns(runs, device, 2)
            times = {key: one.median(clock) for key, one in take_turns(runs, device, options.repeats).items()}
            one = times["one"]
            ratio = times["detecting"] / one
            holds = f"{'yes' if ratio <= BAR else 'NO'} (<= {BAR:g})" if explanation == "input_gradient" else ""
            cells = [f"{1000 * one / options.batch:.2f}", f"{ratio:.1f}", holds]
            cells += [f"{times[mode] / one:.1f}" for mode in ("exact", "smooth")]
            print(f"| {name} | {explanation} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
