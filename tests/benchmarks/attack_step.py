"""Where the time of an attack goes: its passes, what it adds to them, and what could make the passes cheaper.

    python tests/benchmarks/attack_step.py [--repeats 7] [--batch 256] [--only NETWORK ...] [--no-compile]

The first table compares runs that take turns in one process: a loop of forward and backward passes alone, Auto-PGD with
as many passes, the same passes in a batch three times as large (so that three gradient modes could share it), and
compiled. The last column is the number of steps after which compiling, which takes place again for each gradient mode,
has paid; "fails" where torch.compile cannot follow a gradient inside the network. The second table compares a defended
network with its parts called by hand. Weights are random, which changes no time, and frozen; the batch stays full,
since no image can be broken.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from pathlib import Path

import torch
from art.estimators.classification import PyTorchClassifier
from timing import Run, clock_of, device_name, take_turns
from torch import Tensor, nn
from torch._inductor import config

from art_defenses_ext import FeatureAutoencoder, HeatAndBlur, JumpReLU, Linf, TwoStreamRestoration, as_module, defend
from art_defenses_ext.attack.auto_pgd import auto_pgd
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.preprocessor.trained import TrainedRestorer
from art_defenses_ext.zoo.networks import LeNetLike, ResNet20

CPU = torch.device("cpu")
UNBREAKABLE = 1e-6  # a radius at which no image is broken, so that the batch stays full
STEPS = 10
MODES = 3


def wrapped(network: nn.Module, shape: tuple[int, ...]) -> PyTorchClassifier:
    network = network.eval().requires_grad_(False)
    return PyTorchClassifier(network, nn.CrossEntropyLoss(), shape, 10, clip_values=(0.0, 1.0), device_type="cpu")


def fitted(face: type[TrainedRestorer], classifier: PyTorchClassifier) -> TrainedRestorer:
    """Return a restorer after a shortest fit: without any it refuses to restore."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, *classifier.input_shape, generator=generator)
    y = torch.randint(10, (40,), generator=generator)
    restorer = face.for_classifier(classifier)
    restorer.fit(x.numpy(), y.numpy(), eps=0.1, nb_epochs=1, progress=False)
    return restorer


def subjects() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Networks and defended networks, and the shapes of their images."""
    grey, colour = (1, 28, 28), (3, 32, 32)
    lenet, resnet = wrapped(LeNetLike(), grey), wrapped(ResNet20(), colour)
    defended = {
        "LeNet": (lenet, grey),
        "LeNet with JumpReLU": (JumpReLU(lenet, 0.1)(), grey),
        "U-Net and LeNet": (defend(lenet, fitted(FeatureAutoencoder, lenet)), grey),
        "TRN and LeNet": (defend(lenet, fitted(TwoStreamRestoration, lenet)), grey),
        "Heat and Blur and LeNet": (defend(lenet, HeatAndBlur.for_classifier(lenet)), grey),
        "ResNet-20": (resnet, colour),
    }
    return {name: (as_module(classifier), shape) for name, (classifier, shape) in defended.items()}


def passes(network: nn.Module, x: Tensor) -> Run:
    """Forward and backward passes to the image, and nothing else."""

    def run() -> None:
        for _ in range(STEPS):
            live = x.clone().requires_grad_()
            torch.autograd.grad(network(live).logsumexp(dim=1).sum(), live)

    return run


def attack(network: nn.Module, x: Tensor, y: Tensor) -> Run:
    def run() -> None:
        auto_pgd(lambda images, _: network(images), x, y, Linf(UNBREAKABLE), max_iter=STEPS, batch_size=len(x))

    return run


def compiled(network: nn.Module, x: Tensor) -> tuple[nn.Module, float]:
    """Return the network compiled, and the processor seconds which that takes, the C++ compiler included."""
    torch.compiler.reset()
    variant: nn.Module = torch.compile(network)  # type: ignore[assignment]
    begin = sum(os.times()[:4])
    with config.patch(compile_threads=1, force_disable_caches=True):
        passes(variant, x)()
    return variant, sum(os.times()[:4]) - begin


def medians(runs: dict[str, Run], options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of a step of each run."""
    take_turns(runs, CPU, 2)
    clock = clock_of(CPU)
    return {name: times.median(clock) / STEPS for name, times in take_turns(runs, CPU, options.repeats).items()}


def step_row(network: nn.Module, shape: tuple[int, ...], options: argparse.Namespace) -> list[str]:
    """Return the cells of a line of the first table."""
    x = torch.rand(options.batch, *shape)
    with torch.no_grad():
        y = network(x).argmax(dim=1)
    runs = {"passes": passes(network, x), "attack": attack(network, x, y)}
    runs["large"] = passes(network, x.repeat(MODES, *(1,) * len(shape)))
    seconds = math.inf
    if not options.no_compile:
        try:
            variant, seconds = compiled(network, x)
            runs["compiled"] = passes(variant, x)
        except (torch._dynamo.exc.TorchDynamoException, InputError):
            pass
    times = medians(runs, options)
    alone = times["passes"]
    cells = [f"{1000 * alone:.1f}", f"{times['attack'] / alone:.2f}", f"{times['large'] / alone / MODES:.2f}"]
    if options.no_compile:
        return cells
    if "compiled" not in runs:
        return [*cells, "fails", "", ""]
    saved = alone - times["compiled"]
    steps = f"{seconds / saved:,.0f}" if saved > 0.02 * alone else "never"
    return [*cells, f"{times['compiled'] / alone:.2f}", f"{seconds:.0f}", steps]


def by_hand(options: argparse.Namespace) -> float:
    """Return the time of passes through U-Net and LeNet as a defended network, beside its parts called in order."""
    lenet = wrapped(LeNetLike(), (1, 28, 28))
    restorer = fitted(FeatureAutoencoder, lenet)
    network, parts = as_module(defend(lenet, restorer)), Parts(restorer.network, lenet.model)
    x = torch.rand(options.batch, 1, 28, 28)
    times = medians({"defended": passes(network, x), "parts": passes(parts, x)}, options)
    return times["defended"] / times["parts"]


class Parts(nn.Module):
    """The correction of a restoring network, added to the image, before a classifier; without clipping and checks."""

    def __init__(self, restoring: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.restoring, self.classifier = restoring, classifier

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x + self.restoring(x))
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--only", nargs="+", help="names of networks in the table")
    parser.add_argument("--no-compile", action="store_true", help="leave out compiling, which needs a C++ compiler")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, 1 thread, {device_name(CPU)}  ")
    print(f"`python {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}`\n")
    print(
        f"Batches of {options.batch}, medians of {options.repeats}, processor time; a pass is forward and backward.\n"
    )
    titles = ["network", "a pass, ms", "Auto-PGD : passes", f"batch times {MODES}"]
    titles += [] if options.no_compile else ["compiled", "compiling, s", "steps until it pays"]
    print(f"| {' | '.join(titles)} |")
    print("|---" * len(titles) + "|")
    for name, (network, shape) in subjects().items():
        if options.only and name not in options.only:
            continue
        print(f"| {name} | {' | '.join(step_row(network, shape, options))} |", flush=True)
    print(f"\nU-Net and LeNet, defended : parts called by hand {by_hand(options):.3f}")


if __name__ == "__main__":
    main()
