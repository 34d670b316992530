"""What attacks cost on a GPU: a table of steps that are timed one by one and written as they end.

    python tests/benchmarks/gpu.py steps --out OUT [--half 1|2 | --only STEP ...] [--images FILE.npz] [--data DIR]
        [--limit 720] [--device cuda] [--trial]
    python tests/benchmarks/gpu.py pack --data DIR --out FILE.npz [--images 12000]
    python tests/benchmarks/gpu.py table OUT

``steps`` appends one line to OUT/steps.jsonl after each step and begins none that the limit (seconds) no longer holds.
Half 1 needs no data (with ``--data``, MNIST and its weights are compared on both devices, too): the speed of attacks
on networks with random weights, relevance, and what the defences add. Half 2 trains a ResNet-18 on the images of
``--images FILE.npz``, which ``pack`` took out of CIFAR-10, and evaluates it. ``--trial`` runs everything at toy sizes,
to see on a CPU that it runs: its figures mean nothing. ``table`` prints what docs/performance.md shows.

An attack that breaks no image does the most work, so the speed of a suite is taken in a ball too small to break any.
Convolutions run in TF32 unless a line says otherwise; what an attack in bfloat16 finds is judged in float32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from safetensors.torch import save_file
from timing import device_name
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18, resnet50

from art_defenses_ext import JumpReLU, Linf, TwoStreamRestoration, as_module, defend, evaluate
from art_defenses_ext.attack.auto_pgd import AutoPGD, auto_pgd
from art_defenses_ext.attribution.relevance import epsilon_plus, relevance
from art_defenses_ext.evaluation.run.shard import Shard
from art_defenses_ext.training.classifier import train_classifier
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import load_dataset
from art_defenses_ext.zoo.networks import LeNetLike

UNBREAKABLE = 3e-5  # a radius within which no label changes
MNIST_WEIGHTS = "erichson_mnist_lenet_baseline.pkl"
NO_CHECKS = {"check_samples": 0, "curve_samples": 0, "progress": False}


class WideResNet(nn.Module):
    """WRN-28-10 of Zagoruyko, Komodakis 2016 (arXiv:1605.07146), without dropout: (N, 3, 32, 32) -> (N, 10)."""

    def __init__(self, width: int = 10, blocks: int = 4) -> None:
        super().__init__()
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(
            *(
                _WideBlock(before if block == 0 else after, after, stride if block == 0 else 1)
                for before, after, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
                for block in range(blocks)
            )
        )
        self.norm, self.linear = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        features = functional.relu(self.norm(self.blocks(self.stem(x))))
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits


class _WideBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.shortcut = None if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.norm1(x))
        out = self.conv2(functional.relu(self.norm2(self.conv1(inner))))
        return out + (x if self.shortcut is None else self.shortcut(inner))


def small_resnet18() -> nn.Module:
    """ResNet-18 for images of 32 pixels: a first convolution of 3 pixels without stride, and no pooling after it."""
    network = resnet18(weights=None, num_classes=10)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return network


@dataclass(frozen=True)
class Subject:
    """A network under attack, the shape of its images, and images a batch."""

    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    classes: int
    batch: int


SUBJECTS = {
    "LeNet": Subject(LeNetLike, (1, 28, 28), 10, 2048),
    "ResNet-18": Subject(small_resnet18, (3, 32, 32), 10, 512),
    "WRN-28-10": Subject(WideResNet, (3, 32, 32), 10, 256),
    "ResNet-50": Subject(lambda: resnet50(weights=None), (3, 224, 224), 1000, 64),
}


def _toy_network(channels: int, classes: int) -> nn.Module:
    """What stands for each network in a trial."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(8), nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes)
    )


class Bfloat16(nn.Module):
    """A network whose passes run in bfloat16 where autocast thinks fit; its logits are float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits: Tensor = self.network(x)
        return logits.float()


VARIANTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "eager": lambda network: network,
    "compiled": lambda network: torch.compile(network),
    "CUDA graphs": lambda network: torch.compile(network, mode="reduce-overhead"),
    "bfloat16": Bfloat16,
    "bfloat16, compiled": lambda network: torch.compile(Bfloat16(network)),
}


@dataclass(frozen=True)
class Bench:
    """Where the steps run, and how large they are."""

    device: torch.device
    trial: bool
    images: Path | None = None
    data: Path | None = None
    out: Path = Path()

    def count(self, wanted: int) -> int:
        return min(wanted, 4) if self.trial else wanted

    def shape(self, name: str) -> tuple[int, int, int]:
        channels, height, width = SUBJECTS[name].shape
        return (channels, min(height, 32), min(width, 32)) if self.trial else (channels, height, width)

    def network(self, name: str) -> nn.Module:
        torch.manual_seed(0)
        subject = SUBJECTS[name]
        built = _toy_network(subject.shape[0], subject.classes) if self.trial else subject.build()
        return built.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)

    def random_images(self, name: str, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.rand(count, *self.shape(name), generator=generator).to(self.device)

    def wrapped(self, network: nn.Module, name: str) -> PyTorchClassifier:
        subject = SUBJECTS[name]
        kind = "gpu" if self.device.type == "cuda" else "cpu"
        return PyTorchClassifier(
            network,
            nn.CrossEntropyLoss(),
            self.shape(name),
            subject.classes,
            optimizer=torch.optim.Adam(network.parameters(), lr=1e-3),
            clip_values=(0.0, 1.0),
            device_type=kind,
        )

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], Any], repeats: int = 3) -> float:
        """The median time of a run, after one that warms up."""
        run()
        times = []
        for _ in range(1 if self.trial else repeats):
            self.wait()
            begun = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - begun)
        return median(times)


Step = Callable[[Bench], dict[str, Any]]
STEPS: dict[str, tuple[int, Step]] = {}
"""Name -> (half, step); in the order in which they run."""


def step(half: int, name: str) -> Callable[[Step], Step]:
    def register(function: Step) -> Step:
        STEPS[name] = (half, function)
        return function

    return register


@step(1, "tests")
def run_gpu_tests(bench: Bench) -> dict[str, Any]:
    """The tests with the marker ``gpu``."""
    line = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    if bench.trial:
        line.append("--collect-only")
    ended = subprocess.run(line, capture_output=True, text=True, check=False)
    (bench.out / "gpu_tests.txt").write_text(ended.stdout + ended.stderr)
    return {"status": ended.returncode, "last line": (ended.stdout.strip().splitlines() or [""])[-1]}


@step(1, "equality")
def compare_devices(bench: Bench) -> dict[str, Any]:
    """Verdicts of an evaluation of JumpReLU on the CPU and on the device: digits, and MNIST where it is at hand."""
    digits = load_dataset("digits")
    trained_here = load_classifier(digits, epochs=2 if bench.trial else 30, progress=False)
    subjects = {"digits": (digits, trained_here.model.state_dict(), 0.1)}
    if bench.data is not None:
        subjects["mnist"] = (load_dataset("mnist", bench.data), bench.data / "weights" / MNIST_WEIGHTS, 0.1)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, (dataset, weights, eps) in subjects.items():
            if not isinstance(weights, Path):
                save_file(weights, Path(scratch) / "weights.safetensors")
                weights = Path(scratch) / "weights.safetensors"
            count = bench.count(300)
            x, y = dataset.test.x[:count], dataset.test.y[:count]
            verdicts = []
            for device in ("cpu", bench.device.type):
                defended = JumpReLU(load_classifier(dataset, weights=weights, device=device), 0.5)()
                report = evaluate(defended, (x, y), Linf(eps), **NO_CHECKS)
                verdicts.append([record.robust() for record in report.records])
            differing = sum(first != second for first, second in zip(*verdicts, strict=True))
            holds = differing <= 0.005 * count
            result[name] = {"images": count, "robust": sum(verdicts[0]), "differing": differing, "holds": holds}
    return result


def speed_step(name: str) -> Step:
    def measure(bench: Bench) -> dict[str, Any]:
        """Auto-PGD steps a second beside a bare loop of the same passes, eager and compiled; peak memory."""
        subject, network = SUBJECTS[name], bench.network(name)
        batch, steps = bench.count(subject.batch), 2 if bench.trial else 20
        x = bench.random_images(name, batch)
        y = network(x).argmax(dim=1)

        def bare(variant: nn.Module) -> None:
            live = x.clone().requires_grad_()
            for _ in range(steps):
                torch.autograd.grad(variant(live).logsumexp(dim=1).sum(), live)

        def attack(variant: nn.Module) -> None:
            auto_pgd(lambda images, labels: variant(images), x, y, Linf(UNBREAKABLE), max_iter=steps, batch_size=batch)

        result: dict[str, Any] = {"batch": batch}
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        variants = VARIANTS if not bench.trial else {label: VARIANTS[label] for label in ("eager", "bfloat16")}
        for label, vary in variants.items():
            try:
                variant = vary(network)
                bare_seconds, seconds = (
                    bench.seconds(lambda v=variant: bare(v)),
                    bench.seconds(lambda v=variant: attack(v)),
                )
            except Exception as error:  # one variant that a machine cannot run must not end the table
                result[label] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
                continue
            result[label] = {
                "steps a second": round(steps / seconds, 2),
                "images a second": round(batch * steps / seconds),
                "share of a bare loop": round(bare_seconds / seconds, 3),
            }
        if bench.device.type == "cuda":
            result["peak MiB"] = torch.cuda.max_memory_allocated() // 2**20
        return result

    return measure


def suite_step(name: str, count: int) -> Step:
    def measure(bench: Bench) -> dict[str, Any]:
        """Images a second of the suite ``standard`` where nothing breaks, the most that it can cost."""
        network = bench.network(name)
        images = bench.random_images(name, bench.count(count))
        x, y = images.cpu().numpy(), network(images).argmax(dim=1).cpu().numpy()
        begun = time.perf_counter()
        report = evaluate(bench.wrapped(network, name), (x, y), Linf(UNBREAKABLE), **NO_CHECKS)
        seconds = time.perf_counter() - begun
        cost = report.summary.total
        return {
            "images": len(x),
            "seconds": round(seconds, 1),
            "images a second": round(len(x) / seconds, 1),
            "passes an image": round((cost.forward + cost.backward) / len(x)),
            "10,000 images, minutes": round(1e4 / len(x) * seconds / 60, 1),
        }

    return measure


for _name, _count in (("LeNet", 2000), ("ResNet-18", 500), ("WRN-28-10", 64), ("ResNet-50", 32)):
    STEPS[f"speed {_name}"] = (1, speed_step(_name))
    STEPS[f"standard {_name}"] = (1, suite_step(_name, _count))


@step(1, "relevance")
def time_relevance(bench: Bench) -> dict[str, Any]:
    """Relevance (epsilon-plus) and its gradient in units of one pass forwards and backwards."""
    network = bench.network("ResNet-18")
    x = bench.random_images("ResNet-18", bench.count(256))
    rules = epsilon_plus()

    def plain() -> None:
        live = x.clone().requires_grad_()
        torch.autograd.grad(network(live).amax(dim=1).sum(), live)

    def second() -> None:
        live = x.clone().requires_grad_()
        torch.autograd.grad(relevance(network, live, "predicted", rules).square().sum(), live)

    passes = bench.seconds(plain)
    first = bench.seconds(lambda: relevance(network, x, "predicted", rules))
    return {"first order": round(first / passes, 2), "second order": round(bench.seconds(second) / passes, 2)}


@step(1, "defences")
def time_defences(bench: Bench) -> dict[str, Any]:
    """Logits and gradient of a defended ResNet-18 in units of the undefended one's, in each gradient mode."""
    classifier = bench.wrapped(bench.network("ResNet-18"), "ResNet-18")
    x = bench.random_images("ResNet-18", bench.count(256))

    def run(target: PyTorchClassifier) -> Callable[[], None]:
        module = as_module(target)

        def passes() -> None:
            live = x.clone().requires_grad_()
            torch.autograd.grad(module(live).logsumexp(dim=1).sum(), live)

        return passes

    undefended = bench.seconds(run(classifier))
    restorer = TwoStreamRestoration.for_classifier(classifier)  # trained for one step, which changes no time
    images, labels = bench.random_images("ResNet-18", 20).cpu().numpy(), np.arange(20) % 10
    restorer.fit(images, labels, eps=0.1, nb_epochs=1, validation_split=0.0, progress=False)
    defended = {"JumpReLU": JumpReLU(classifier, 0.05)(), "TRN": defend(classifier, restorer)}
    return {name: round(bench.seconds(run(target)) / undefended, 2) for name, target in defended.items()}


@step(1, "shards")
def share_the_gpu(bench: Bench) -> dict[str, Any]:
    """An evaluation by one process, and by two that share the device."""
    line = [sys.executable, __file__, "part", "--device", str(bench.device), *(["--trial"] if bench.trial else [])]
    seconds = []
    for count in (1, 2):
        begun = time.perf_counter()
        parts = [subprocess.Popen([*line, "--shard", str(Shard(i, count))]) for i in range(1, count + 1)]
        statuses = [part.wait() for part in parts]
        if any(statuses):
            raise RuntimeError("a part failed")
        seconds.append(time.perf_counter() - begun)
    return {"one": round(seconds[0], 1), "two": round(seconds[1], 1), "gain": round(seconds[0] / seconds[1], 2)}


def run_part(device: torch.device, trial: bool, shard: str) -> None:
    """One process of ``shards``: its share of 1,000 images."""
    bench = Bench(device, trial)
    which = Shard.named(shard)
    images = bench.random_images("ResNet-18", bench.count(1000))[which.number - 1 :: which.count]
    network = bench.network("ResNet-18")
    attack = AutoPGD(bench.wrapped(network, "ResNet-18"), eps=UNBREAKABLE, max_iter=2 if trial else 50)
    attack.generate(images.cpu().numpy(), network(images).argmax(dim=1).cpu().numpy())


@step(2, "train")
def train_resnet(bench: Bench) -> dict[str, Any]:
    """A ResNet-18 on CIFAR-10, in bfloat16 and channels-last memory; its weights go to OUT/resnet18.pt."""
    x, y, x_test, y_test = cifar(bench)
    network = bench.network("ResNet-18").requires_grad_(True)
    begun = time.perf_counter()
    epochs = 1 if bench.trial else 20
    train_classifier(network, x, y, nb_epochs=epochs, batch_size=256, mean=(0.5,) * 3, std=(0.25,) * 3, progress=False)
    seconds = time.perf_counter() - begun
    torch.save(network.state_dict(), bench.out / "resnet18.pt")
    right = bench.wrapped(network.eval(), "ResNet-18").predict(x_test).argmax(axis=1) == y_test
    return {"images": len(x), "seconds": round(seconds), "clean accuracy": round(float(right.mean()), 4)}


@step(2, "search in bfloat16")
def search_in_bfloat16(bench: Bench) -> dict[str, Any]:
    """Robust accuracy under Auto-PGD whose search runs in bfloat16, each image judged in float32."""
    _, _, x, y = cifar(bench)
    x, y = x[: bench.count(1000)], y[: bench.count(1000)]
    network = trained(bench)
    robust = {}
    for label in ("eager", "bfloat16"):
        attack = AutoPGD(bench.wrapped(VARIANTS[label](network), "ResNet-18"), eps=0.5 / 255, max_iter=50)
        adv = attack.generate(x, y)
        robust[label] = float((bench.wrapped(network, "ResNet-18").predict(adv).argmax(axis=1) == y).mean())
    points = 100 * (robust["bfloat16"] - robust["eager"])
    return {"images": len(x), **robust, "points": round(points, 2), "holds": points <= 0.1}


@step(2, "autoattack")
def compare_autoattack(bench: Bench) -> dict[str, Any]:
    """The suite and the authors' AutoAttack (package ``pyautoattack``) on the same images of the trained network."""
    try:
        from pyautoattack import AutoAttack
    except ImportError:
        return {"not run": "the package pyautoattack is not installed"}
    _, _, x, y = cifar(bench)
    x, y = x[: bench.count(1000)], y[: bench.count(1000)]
    classifier = bench.wrapped(trained(bench), "ResNet-18")
    begun = time.perf_counter()
    ours = evaluate(classifier, (x, y), Linf(0.5 / 255), **NO_CHECKS).accuracy_after_attacks
    ours_seconds, begun = time.perf_counter() - begun, time.perf_counter()
    attack = AutoAttack(as_module(classifier), norm="Linf", eps=0.5 / 255, device=bench.device)
    adv, _ = attack.run_standard_evaluation(torch.tensor(x), torch.tensor(y, dtype=torch.int64), batch_size=500)
    seconds = time.perf_counter() - begun
    theirs = float((classifier.predict(adv.cpu().numpy()).argmax(axis=1) == y).mean())
    return {
        "images": len(x),
        "ours": str(ours),
        "theirs": theirs,
        "seconds": [round(ours_seconds, 1), round(seconds, 1)],
        "times slower": round(seconds / ours_seconds, 1),
    }


@step(2, "restorer")
def train_restorer(bench: Bench) -> dict[str, Any]:
    """A TRN trained for the frozen ResNet-18, and 1,000 images of it evaluated with all checks."""
    x, y, x_test, y_test = cifar(bench)
    classifier = bench.wrapped(trained(bench), "ResNet-18")
    restorer = TwoStreamRestoration.for_classifier(classifier)
    begun = time.perf_counter()
    restorer.fit(x, y, eps=0.5 / 255, nb_epochs=1 if bench.trial else 4, batch_size=256, progress=False)
    fitted = time.perf_counter() - begun
    count = bench.count(1000)
    report = evaluate(
        defend(classifier, restorer), (x_test[:count], y_test[:count]), Linf(0.5 / 255), out=bench.out / "trn",
        overwrite=True, progress=False, **({"check_samples": 0, "curve_samples": 0} if bench.trial else {}),
    )  # fmt: skip
    seconds = time.perf_counter() - begun - fitted
    return {
        "fit seconds": round(fitted),
        "seconds": round(seconds),
        "images": count,
        "accuracy": str(report.accuracy_after_attacks),
    }


def cifar(bench: Bench) -> tuple[Any, ...]:
    """Training images (N, 3, 32, 32) in [0, 1] and labels, and those for testing."""
    if bench.images is None:
        raise FileNotFoundError("--images FILE.npz is needed, as `gpu.py pack` writes it")
    packed = np.load(bench.images)
    most = bench.count(len(packed["x"])) * (64 if bench.trial else 1)
    x, x_test = (packed[name].astype(np.float32) / 255 for name in ("x", "x_test"))
    return x[:most], packed["y"][:most].astype(np.int64), x_test, packed["y_test"].astype(np.int64)


def trained(bench: Bench) -> nn.Module:
    network = bench.network("ResNet-18")
    network.load_state_dict(torch.load(bench.out / "resnet18.pt", map_location="cpu", weights_only=True))
    return network


def pack(data: Path, out: Path, images: int) -> None:
    """Write the first training images of CIFAR-10 and 1,000 test images as bytes."""
    cifar10 = load_dataset("cifar10", data)
    parts = {"": (cifar10.train, images), "_test": (cifar10.test, 1000)}
    arrays: dict[str, Any] = {}
    for suffix, (part, count) in parts.items():
        arrays[f"x{suffix}"] = np.round(255 * np.asarray(part.x[:count])).astype(np.uint8)
        arrays[f"y{suffix}"] = np.asarray(part.y[:count]).astype(np.uint8)
    np.savez_compressed(out, **arrays)
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")


def run_steps(bench: Bench, chosen: list[str], limit: float) -> bool:
    """Run steps and append each to OUT/steps.jsonl; False where one failed."""
    begun, good = time.monotonic(), True
    for name in chosen:
        _, function = STEPS[name]
        with told(bench, name) as line:
            if time.monotonic() - begun > limit:
                line["not run"] = "the limit is reached"
                continue
            try:
                line["result"] = function(bench)
            except Exception as error:  # the steps after it are wanted all the same
                line["failed"], good = f"{type(error).__name__}: {error}", False
    return good


@contextmanager
def told(bench: Bench, name: str) -> Iterator[dict[str, Any]]:
    """One line of the file, written at the end whatever happens."""
    line: dict[str, Any] = {"step": name, "device": device_name(bench.device), "torch": torch.__version__}
    begun = time.monotonic()
    try:
        yield line
    finally:
        line["seconds"] = round(time.monotonic() - begun, 1)
        text = json.dumps(line)
        with (bench.out / "steps.jsonl").open("a") as file:
            file.write(text + "\n")
        print(text, flush=True)


def print_table(out: Path) -> None:
    """The lines of OUT/steps.jsonl as a Markdown table; of a step that ran several times, the last."""
    lines = {line["step"]: line for line in map(json.loads, (out / "steps.jsonl").read_text().splitlines())}
    machine = next(iter(lines.values()))
    print(f"{machine['device']}, torch {machine['torch']}.\n\n| step | seconds | result |\n|---|---|---|")
    for name, line in lines.items():
        result = line.get("result") or {key: line[key] for key in ("failed", "not run") if key in line}
        cells = "; ".join(f"{key}: {_cell(value)}" for key, value in result.items())
        print(f"| {name} | {line['seconds']:g} | {cells} |")


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description="What attacks cost on a GPU.")
    commands = parser.add_subparsers(dest="command", required=True)
    steps, part = commands.add_parser("steps"), commands.add_parser("part")
    for command in (steps, part):
        command.add_argument("--device", default="cuda")
        command.add_argument("--trial", action="store_true")
    steps.add_argument("--out", type=Path, required=True)
    steps.add_argument("--half", type=int, choices=(1, 2))
    steps.add_argument("--only", nargs="+", choices=STEPS, metavar="STEP", help=", ".join(STEPS))
    steps.add_argument("--limit", type=float, default=720)
    steps.add_argument("--images", type=Path)
    steps.add_argument("--data", type=Path)
    part.add_argument("--shard", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("--data", type=Path, required=True)
    packing.add_argument("--out", type=Path, required=True)
    packing.add_argument("--images", type=int, default=12_000)
    commands.add_parser("table").add_argument("out", type=Path)
    options = parser.parse_args()
    if options.command == "pack":
        pack(options.data, options.out, options.images)
    elif options.command == "table":
        print_table(options.out)
    elif options.command == "part":
        run_part(torch.device(options.device), options.trial, options.shard)
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = True
        bench = Bench(torch.device(options.device), options.trial, options.images, options.data, options.out)
        chosen = options.only or [name for name, (half, _) in STEPS.items() if options.half in (None, half)]
        sys.exit(0 if run_steps(bench, chosen, options.limit) else 1)


if __name__ == "__main__":
    main()
