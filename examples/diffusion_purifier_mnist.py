"""A small diffusion purifier on MNIST, trained in minutes: a random defence of many steps, and its robust accuracy.

    python examples/diffusion_purifier_mnist.py --data DIR [--samples N] [--checks N] [--epochs N] [--eps EPS]
        [--out OUT]

DIR holds MNIST as torchvision lays it out, and in weights/ the LeNet of the JumpReLU authors. OUT receives the noise
predictor, which a later call loads, and the reports of a naive and of an adaptive evaluation.

Source: Nie et al. 2022, "Diffusion Models for Adversarial Purification" (arXiv:2205.07460), with the model and the
reverse steps of Ho, Jain, Abbeel 2020, "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239).
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from art_defenses_ext import Linf, checkpoint_steps, defend, evaluate
from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.evaluation.random_protocol import random_protocol
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.suite.suites import DIFF_HAMMER, FAST
from art_defenses_ext.training.loop import train
from art_defenses_ext.training.settings import Settings
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import Dataset, load_dataset

BETAS = (0.05, 0.12, 0.19, 0.26)
"""The variances of the noise of the steps t = 1 to 4. After the last, signal and noise have about the same weight: for
pixels in [0, 1] the noise has a standard deviation of half the clip range."""

ATTACKS = [FAST[0], *(spec for spec in FAST if spec.kind in ("transfer", "single step"))]
"""A white-box attack of 30 steps, and the cheap attacks that must not find what it misses."""

HEAD = (
    "attacker",
    "clean",
    "after attacks",
    "one pass",
    "worst of 5",
    "worst of 20",
    "of 1,000, extrapolated",
    "standing",
)


class NoisePredictor(nn.Module):
    """A U-Net of two scales that estimates the noise in images (N, C, H, W); height and width are multiples of 4."""

    def __init__(self, channels: int = 1, width: int = 16) -> None:
        super().__init__()
        conv = partial(nn.Conv2d, kernel_size=3, padding=1)
        self.enter = conv(4 * channels + 1, width)
        self.fine = conv(width, width)
        self.down = conv(width, 2 * width, stride=2)
        self.coarse = conv(2 * width, 2 * width)
        self.up = conv(2 * width, width)
        self.join = conv(width, width)
        self.leave = conv(width, 4 * channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return the noise in images (N, C, H, W) in [-1, 1] with noise; ``time`` (N,) is t as a share of the steps."""
        blocks = F.pixel_unshuffle(x, 2)  # (N, 4 C, H / 2, W / 2)
        times = time.to(x)[:, None, None, None].expand(-1, 1, *blocks.shape[2:])
        fine = F.silu(self.enter(torch.cat([blocks, times], dim=1)))
        fine = fine + F.silu(self.fine(fine))
        coarse = F.silu(self.down(fine))
        coarse = coarse + F.silu(self.coarse(coarse))
        fine = fine + F.interpolate(F.silu(self.up(coarse)), scale_factor=2)
        return F.pixel_shuffle(self.leave(fine + F.silu(self.join(fine))), 2)


def signal_shares(betas: tuple[float, ...] = BETAS) -> Tensor:
    """Return the share of the signal in the variance after each step, the products of 1 - beta (T,)."""
    return (1 - torch.tensor(betas)).cumprod(0)


def prediction_loss(
    predictor: NoisePredictor, betas: tuple[float, ...], x: Tensor, y: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the mean squared error of the noise in images (n, C, H, W) in [0, 1] after random steps."""
    steps = torch.randint(len(betas), (len(x),), generator=generator, device=x.device)
    share = signal_shares(betas).to(x)[steps][:, None, None, None]
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    noisy = share.sqrt() * (2 * x - 1) + (1 - share).sqrt() * noise
    return {"noise": F.mse_loss(predictor(noisy, (steps + 1) / len(betas)), noise)}


def train_predictor(
    predictor: NoisePredictor, x: FloatArray, y: IntArray, *, nb_epochs: int, betas: tuple[float, ...] = BETAS
) -> None:
    """Train a noise predictor on images (N, C, H, W) in [0, 1], and freeze it; the labels (N,) are not used."""
    settings = Settings(nb_epochs=nb_epochs, learning_rate=2e-3)
    train(predictor, (torch.tensor(x), torch.tensor(y)), partial(prediction_loss, predictor, betas), settings)
    predictor.requires_grad_(False)


class DiffusionPurifier(PreprocessorPyTorch):
    """Adds the noise of all steps to an image in [0, 1], and removes it step by step."""

    params = ["checkpointed"]  # noqa: RUF012 (ART's convention)

    def __init__(
        self, predictor: NoisePredictor, betas: tuple[float, ...] = BETAS, *, checkpointed: bool = True
    ) -> None:
        super().__init__(device_type="cpu", apply_fit=False, apply_predict=True)
        self.predictor, self.betas, self.checkpointed = predictor, betas, checkpointed

    def signal_shares(self) -> Tensor:
        """Return the share of the signal in the variance after each step (T,)."""
        return signal_shares(self.betas)

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the purified images, of the shape of ``x`` (N, C, H, W), and ``y``."""
        share = self.signal_shares()[-1].to(x)
        noisy = share.sqrt() * (2 * x - 1) + (1 - share).sqrt() * torch.randn_like(x)
        steps = range(len(self.betas) - 1, -1, -1)
        if self.checkpointed:
            purified = checkpoint_steps(self.reverse_step, noisy, steps)
        else:
            purified = noisy
            for step in steps:
                purified = self.reverse_step(purified, step)
        return (purified + 1) / 2, y

    def reverse_step(self, x: Tensor, step: int) -> Tensor:
        """Return images (N, C, H, W) with the noise of one step less: algorithm 2 of Ho et al. 2020."""
        shares = self.signal_shares().to(x)
        beta, share = self.betas[step], shares[step]
        time = torch.full((len(x),), (step + 1) / len(self.betas))
        mean = (x - beta / (1 - share).sqrt() * self.predictor(x, time)) / (1 - beta) ** 0.5
        if step == 0:
            return mean
        return mean + (beta * (1 - shares[step - 1]) / (1 - share)).sqrt() * torch.randn_like(x)


def load_predictor(path: Path, data: Dataset, nb_epochs: int) -> NoisePredictor:
    """Return the noise predictor of a file, or train it on the training images and write the file."""
    torch.manual_seed(0)
    predictor = NoisePredictor()
    if path.exists():
        predictor.load_state_dict(load_file(path))
        return predictor.eval().requires_grad_(False)
    begin = time.perf_counter()
    train_predictor(predictor, data.train.x, data.train.y, nb_epochs=nb_epochs)
    count = sum(parameter.numel() for parameter in predictor.parameters())
    print(f"noise predictor: {count:,} parameters, {nb_epochs} epochs in {time.perf_counter() - begin:.0f} s\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(predictor.state_dict(), path)
    return predictor


def row_of(name: str, report: Report) -> str:
    """Return a row of the table: accuracies in per cent with intervals, and what the checks say of them."""
    summary = report.summary
    passes = summary.randomness
    assert passes is not None
    failed = [check.name for check in summary.checks if check.verdict == "failed"]
    worst = (f"{100 * passes.worst_of[size - 1]:.1f}" for size in (1, 5, 20))
    more = f"{100 * passes.worst_of_more[-1]:.1f}"
    standing = summary.standing + (f": {', '.join(failed)}" if failed else "")
    return f"| {' | '.join((name, str(summary.clean), str(summary.worst_case), *worst, more, standing))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST and weights/")
    parser.add_argument("--out", type=Path, default=Path("diffusion_purifier"), help="folder of predictor and reports")
    parser.add_argument("--samples", type=int, default=20, help="test images")
    parser.add_argument("--checks", type=int, default=2, help="test images of the checks")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of the noise predictor")
    parser.add_argument("--eps", type=float, default=0.2, help="radius of the linf ball")
    options = parser.parse_args()
    data = load_dataset("mnist", options.data)
    classifier = load_classifier(data, weights=options.data / "weights" / "erichson_mnist_lenet_baseline.pkl")
    predictor = load_predictor(options.out / "predictor.safetensors", data, options.epochs)
    defended = defend(classifier, DiffusionPurifier(predictor))
    images, threat = (data.test.x[: options.samples], data.test.y[: options.samples]), Linf(options.eps)

    print(f"| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|")
    for name, adaptive in (("naive", False), ("adaptive", True)):
        report = evaluate(
            defended, images, threat, ATTACKS, adaptive=adaptive, curve_samples=0, check_samples=options.checks,
            out=options.out / name,
        )  # fmt: skip
        print(row_of(name, report), flush=True)
    for attack in (FAST[0], DIFF_HAMMER):
        protocol = random_protocol(defended, images, threat, attack)
        print(f"\n{attack.name}, {protocol.passes:.0f} passes an image\n\n{protocol.table()}", flush=True)


if __name__ == "__main__":
    main()
