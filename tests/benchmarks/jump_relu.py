"""What the jump costs: the JumpReLU network against the plain one, forward and forward + backward.

    python tests/benchmarks/jump_relu.py [--device cuda] [--threads 2] [--rounds 41]

The variants take turns within each round, so that a busy machine slows all of them alike; the table shows ratios of
medians. "naive" is z * (z > jump) in place of one fused operation.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from art_defenses_ext.activation import ReplaceReLU
from art_defenses_ext.models import LeNetLike, ResNet20
from art_defenses_ext.transformer.jump_relu import JumpReLUNetwork

BATCH = 128
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, float]] = {
    # Name -> (network, shape of an image, ReLU calls in a pass, jump).
    "LeNetLike": (LeNetLike, (1, 28, 28), 4, 1.0),
    "ResNet20": (ResNet20, (3, 32, 32), 19, 0.05),
}
Run = Callable[[], None]


class NaiveJump(nn.Module):
    """The network with z * (z > jump) for each ReLU."""

    def __init__(self, network: nn.Module, jump: float) -> None:
        super().__init__()
        self.network, self.jump = network, jump

    def forward(self, x: Tensor) -> Tensor:
        with ReplaceReLU(lambda z, _: z * (z > self.jump)):
            logits: Tensor = self.network(x)
        return logits


def variants(network: nn.Module, nb_relus: int, jump: float) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {"plain": network}
    for mode in JumpReLUNetwork.gradient_modes:
        found[mode] = JumpReLUNetwork(network, jump, nb_relus)
        found[mode].gradient_mode = mode
    return found | {"naive": NaiveJump(network, jump).eval()}


def forward(network: nn.Module, x: Tensor) -> Run:
    def run() -> None:
        with torch.no_grad():
            network(x)

    return run


def forward_and_backward(network: nn.Module, x: Tensor) -> Run:
    x = x.clone().requires_grad_()

    def run() -> None:
        torch.autograd.grad(network(x).sum(), x)

    return run


def seconds(run: Run, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def medians(runs: dict[str, Run], device: torch.device, nb_rounds: int) -> dict[str, float]:
    """Median seconds of each run; the order turns by one from round to round."""
    for run in runs.values():
        for _ in range(3):
            run()
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(nb_rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds(runs[name], device))
    return {name: median(values) for name, values in times.items()}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description="What the jump costs.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=41)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    print(f"torch {torch.__version__}, {device_name(device)}, {options.threads} threads, batch {BATCH}")
    columns = (*JumpReLUNetwork.gradient_modes, "naive")
    print(f"{'network':<10} {'pass':<18} {'plain ms':>9}", *(f"{column:>7}" for column in columns))
    for name, (build, shape, nb_relus, jump) in NETWORKS.items():
        network = build().eval().to(device)
        x = torch.randn(BATCH, *shape, device=device)
        for label, timed in (("forward", forward), ("forward + backward", forward_and_backward)):
            runs = {which: timed(module, x) for which, module in variants(network, nb_relus, jump).items()}
            found = medians(runs, device, options.rounds)
            ratios = [found[column] / found["plain"] for column in columns]
            print(f"{name:<10} {label:<18} {1000 * found['plain']:9.2f}", *(f"{ratio:7.3f}" for ratio in ratios))


if __name__ == "__main__":
    main()
