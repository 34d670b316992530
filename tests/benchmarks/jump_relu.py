"""What the jump costs: the JumpReLU network against the plain one, forward and forward + backward.

    python tests/benchmarks/jump_relu.py [--device cuda] [--threads 2] [--rounds 41]

The variants take turns within each round, so that a busy machine slows all of them alike; the table shows ratios of
medians. "naive" is z * (z > jump) in place of one fused operation.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from timing import Run, device_name, take_turns
from torch import Tensor, nn

from art_defenses_ext.gradients.activation import ReplaceRectifiers
from art_defenses_ext.transformer.jump_relu import JumpReLUNetwork
from art_defenses_ext.zoo.networks import LeNetLike, ResNet20

BATCH = 128
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, float]] = {
    # Name -> (network, shape of an image, ReLU calls in a pass, jump).
    "LeNetLike": (LeNetLike, (1, 28, 28), 4, 1.0),
    "ResNet20": (ResNet20, (3, 32, 32), 19, 0.05),
}


class NaiveJump(nn.Module):
    """The network with z * (z > jump) for each ReLU."""

    def __init__(self, network: nn.Module, jump: float) -> None:
        super().__init__()
        self.network, self.jump = network, jump

    def forward(self, x: Tensor) -> Tensor:
        with ReplaceRectifiers(lambda _, z, __: z * (z > self.jump)):
            logits: Tensor = self.network(x)
        return logits


def variants(network: nn.Module, nb_rectifiers: int, jump: float) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {"plain": network}
    for mode in JumpReLUNetwork.gradient_modes:
        found[mode] = JumpReLUNetwork(network, jump, nb_rectifiers)
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
    for name, (build, shape, nb_rectifiers, jump) in NETWORKS.items():
        network = build().eval().to(device)
        x = torch.randn(BATCH, *shape, device=device)
        for label, timed in (("forward", forward), ("forward + backward", forward_and_backward)):
            runs = {which: timed(module, x) for which, module in variants(network, nb_rectifiers, jump).items()}
            take_turns(runs, device, 3)  # warms up
            times = take_turns(runs, device, options.rounds)
            found = {which: one.median("wall") for which, one in times.items()}
            ratios = [found[column] / found["plain"] for column in columns]
            print(f"{name:<10} {label:<18} {1000 * found['plain']:9.2f}", *(f"{ratio:7.3f}" for ratio in ratios))


if __name__ == "__main__":
    main()
