"""What the restorers cost: beside one forward pass of the classifier, and the gradient map beside single passes.

    python tests/benchmarks/restoration.py [--threads 1] [--repeats 15] [--batch 32] [--device cuda]

The runs of a line take turns in one process. Weights are random, which changes no time, and frozen. "one class" is one
forward and backward pass to the input: the gradient of one class's cross-entropy.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch
from timing import Run, clock_of, device_name, take_turns
from torch import Tensor, nn
from torch.nn import functional

from art_defenses_ext import FeatureAutoencoder, TwoStreamRestoration
from art_defenses_ext.preprocessor.trained import TrainedRestorer
from art_defenses_ext.zoo.networks import LeNetLike, ResNet20

NETWORKS = {"LeNetLike": (LeNetLike, (1, 28, 28)), "ResNet20": (ResNet20, (3, 32, 32))}
CLASSES = 10
BAR = 1.2
"""A stacked map of K classes may cost so many times K single passes."""


def restorers(model: nn.Module, channels: int) -> dict[str, TrainedRestorer]:
    return {
        "feature autoencoder": FeatureAutoencoder(model, channels=channels),
        **{
            f"TRN, {name}": TwoStreamRestoration(model, channels=channels, nb_classes=CLASSES, map=name, top_k=CLASSES)
            for name in ("stacked", "sum", "predicted")
        },
    }


def forward(function: nn.Module, x: Tensor) -> Run:
    def run() -> None:
        with torch.no_grad():
            function(x)

    return run


def restoring(restorer: TrainedRestorer, x: Tensor) -> Run:
    def run() -> None:
        with torch.no_grad():
            restorer.restore(x)

    return run


def attacked(restorer: TrainedRestorer, model: nn.Module, x: Tensor, mode: str) -> Run:
    """One step of an attack on the whole."""

    def run() -> None:
        live = x.clone().requires_grad_()
        torch.autograd.grad(model(restorer.restore_with(live, mode)).sum(), live)

    return run


def one_class(model: nn.Module, x: Tensor) -> Run:
    labels = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def run() -> None:
        live = x.clone().requires_grad_()
        torch.autograd.grad(functional.cross_entropy(model(live), labels, reduction="sum"), live)

    return run


def mapping(restorer: TwoStreamRestoration, x: Tensor) -> Run:
    def run() -> None:
        with torch.no_grad():
            restorer.gradient_map(x)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    clock = clock_of(device)
    print(f"torch {torch.__version__}, {options.threads} thread(s), {device_name(device)}  ")
    print(f"`python {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}`\n")
    print(f"Batches of {options.batch}, medians of {options.repeats}, {clock} time.\n")
    networks = {}
    for name, (build, shape) in NETWORKS.items():
        model = build().eval().requires_grad_(False).to(device)
        networks[name] = model, torch.rand(options.batch, *shape, device=device)
    print("Cost in forward passes of the classifier; one step of an attack in forward and backward passes of it.\n")
    print("| classifier | restorer | restoring | attack, exact | attack, other modes |")
    print("|---|---|---|---|---|", flush=True)
    for name, (model, x) in networks.items():
        for title, restorer in restorers(model, x.shape[1]).items():
            modes = restorer.gradient_modes
            runs = {"forward": forward(model, x), "both": one_class(model, x), "restoring": restoring(restorer, x)}
            runs |= {mode: attacked(restorer, model, x, mode) for mode in modes}
            take_turns(runs, device, 2)
            times = {key: one.median(clock) for key, one in take_turns(runs, device, options.repeats).items()}
            others = ", ".join(f"{mode} {times[mode] / times['both']:.1f}" for mode in modes[1:])
            cells = f"{times['restoring'] / times['forward']:.1f} | {times['exact'] / times['both']:.1f} | {others}"
            print(f"| {name} | {title} | {cells} |", flush=True)
    print(f"\nThe gradient map of {CLASSES} classes in single passes: the gradient of one class.\n")
    print("| classifier | one class, ms | sum | stacked | stacked : K single passes | holds |")
    print("|---|---|---|---|---|---|", flush=True)
    for name, (model, x) in networks.items():
        faces = {
            which: TwoStreamRestoration(model, channels=x.shape[1], nb_classes=CLASSES, map=which, top_k=CLASSES)
            for which in ("sum", "stacked")
        }
        runs = {"one": one_class(model, x)} | {which: mapping(face, x) for which, face in faces.items()}
        take_turns(runs, device, 2)
        times = {key: one.median(clock) for key, one in take_turns(runs, device, options.repeats).items()}
        ratio = times["stacked"] / times["one"]
        share = f"{ratio / CLASSES:.2f} | {'yes' if ratio <= BAR * CLASSES else 'NO'} (<= {BAR:g})"
        print(f"| {name} | {1000 * times['one']:.1f} | {times['sum'] / times['one']:.2f} | {ratio:.2f} | {share} |")


if __name__ == "__main__":
    main()
