"""All runs of docs/results, one after the other; an interrupted run continues.

    python examples/results.py --data DIR --out OUT [--only NAME,...] [--list] [--dry]

DIR holds the data sets as torchvision lays them out and weights/; OUT receives fits and runs. A line is an
`art-defenses evaluate` command, printed before it runs; a finished run is not repeated. Entries and the page are
written to docs/results.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAM = [sys.executable, "-m", "art_defenses_ext"]
RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"

PAPERS = {
    "jump_relu": "https://arxiv.org/abs/1904.03750",
    "heat_and_blur": "https://arxiv.org/abs/2003.07573",
    "feature_autoencoder": "https://arxiv.org/abs/1912.04497",
    "two_stream_restoration": "https://arxiv.org/abs/2202.01117",
    "explanation_reconstructor": "https://arxiv.org/abs/2107.10480",
}

SOFT_MASK = (
    *("-o", "heat_and_blur.mix=soft_mask", "-o", "heat_and_blur.sigma=1.5"),
    *("-o", "heat_and_blur.scale=percentile"),
)
"""The setting of Heat and Blur that the ablation on MNIST chose (docs/methods/heat_and_blur.md)."""


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        dataset: its name.
        name: name of the run and its entry.
        title: title of the line.
        defences: names of the defences, in the order of application.
        options: further words of the command.
        fits: names of the fits that it needs.
        network: file of weights, relative to the data folder; None: trained, or a word of ``options``.
        samples: number of images; None for the data set's default.
        eps: radius of the ball; None for the data set's default.
    """

    dataset: str
    name: str
    title: str
    defences: tuple[str, ...]
    options: tuple[str, ...] = ()
    fits: tuple[str, ...] = ()
    network: str | None = None
    samples: int | None = None
    eps: str | None = None

    @property
    def key(self) -> str:
        """The name of the line on the command line."""
        return f"{self.dataset}/{self.name}"


EPS = {"digits": 0.1, "mnist": 0.2, "fashion_mnist": 0.1, "cifar10": 8 / 255}
SAMPLES = {"digits": 500, "mnist": 1000, "fashion_mnist": 1000, "cifar10": 200}
"""Numbers of test images: for digits all; for CIFAR-10 what is affordable on a CPU."""

FEWER = 200
"""Number of images for pairs, since all their gradient modes are combined, and for an adversarially trained TRN, whose
steps cost a pass through the classifier in each of three modes."""

FITTING = {
    "mnist": ("restoration_mnist.py",),
    "fashion_mnist": ("restoration_fashion_mnist.py",),
    "cifar10": ("restoration_cifar10.py", "--epochs", "10"),
}
"""The example that fits a data set's restorers, and its arguments: on CIFAR-10 half the epochs of a GPU."""

BASE = {
    "mnist": "weights/erichson_mnist_lenet_baseline.pkl",
    "cifar10": "weights/erichson_cifar10_resnet20_baseline.pkl",
}
ROBUST = {"mnist": "weights/erichson_mnist_lenet_robust.pkl"}

TRAINED = {"transformer": "vision transformer", "convnext": "ConvNeXt"}
"""Networks that ``networks_cifar10.py`` trains, and their titles."""

DROP = {"transformer": "0.05", "convnext": "0.06"}
"""Accuracy that tuning JumpReLU may cost them: even a jump of 0 removes a GELU's values below zero."""

SMALL_EPS = "2/255"
"""Radius for these networks, which have no robustness of their own: at 8/255 no image is left."""

EFFORT = {
    "digits/jump_relu": "auto",
    "mnist/feature_autoencoder": "auto",
    "mnist/two_stream_restoration_adversarial": "3",
    "fashion_mnist/two_stream_restoration_adversarial": "auto",
}
"""Rounds of more effort for the lines whose suite alone fails a check; a number where ``auto`` takes many hours."""

FITTED_AS: dict[str, tuple[str, ...]] = {"mnist/two_stream_restoration_adversarial": ("--epochs", "3")}
"""Further words of the commands that make the fits: the epochs on the method's page."""


def restored(dataset: str, face: str, fit: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words that add a restorer, and the fits that they need; for digits the command trains it."""
    if dataset in FITTING:
        return ("--fitted", f"{face}=OUT/{dataset}/{fit}-0.safetensors"), (fit.removesuffix("_adversarial"), fit)
    return (("-o", f"{face}.adversarial=true") if fit.endswith("_adversarial") else ()), ()


def trained(dataset: str) -> tuple[str, ...]:
    """Return the words that train a feature autoencoder for a network with JumpReLU, which no example fits."""
    return ("-o", "feature_autoencoder.nb_epochs=3") if dataset in FITTING else ()


def lines() -> Iterator[Line]:
    """Yield all lines, the fast ones of each data set first."""
    for dataset in ("digits", "mnist", "fashion_mnist"):
        base, robust = BASE.get(dataset), ROBUST.get(dataset)
        yield Line(dataset, "bare", "undefended model", ("none",), network=base)
        yield Line(dataset, "jump_relu", "JumpReLU, jump 1", ("jump_relu",), ("-o", "jump=1"), network=base)
        for face, name, fit in (
            ("feature_autoencoder", "Feature autoencoder", "autoencoder"),
            ("two_stream_restoration", "TRN", "two_stream"),
        ):
            words, fits = restored(dataset, face, fit)
            yield Line(dataset, face, name, (face,), words, fits, base)
            words, fits = restored(dataset, face, f"{fit}_adversarial")
            title = f"{name}, adversarially trained"
            fewer = FEWER if fit == "two_stream" else None
            yield Line(dataset, f"{face}_adversarial", title, (face,), words, fits, base, fewer)
        watch = "explanation_reconstructor"
        yield Line(dataset, watch, "Explanation reconstructor", (watch,), network=base)
        options = () if dataset == "digits" else SOFT_MASK
        yield Line(dataset, "heat_and_blur", "Heat and Blur", ("heat_and_blur",), options, network=base)
        if dataset == "mnist":  # at .2 no image of the undefended model is robust
            yield Line(
                dataset, "heat_and_blur_at_0.1", "Heat and Blur", ("heat_and_blur",), options, (), base, 500, "0.1"
            )
        pair = ("jump_relu", "feature_autoencoder")
        title = "feature autoencoder before JumpReLU"
        yield Line(
            dataset,
            "pair_jump_autoencoder",
            title,
            pair,
            ("-o", "jump_relu.jump=1", *trained(dataset)),
            (),
            base,
            FEWER,
        )
        for name, title, fit in (
            ("pair_plain_autoencoder_detector", "feature autoencoder", "autoencoder"),
            ("pair_autoencoder_detector", "adversarially trained feature autoencoder", "autoencoder_adversarial"),
        ):
            words, fits = restored(dataset, "feature_autoencoder", fit)
            pair, title = ("feature_autoencoder", watch), f"{title}, explanation reconstructor"
            yield Line(dataset, name, title, pair, words, fits, base, FEWER)
        yield from on_robust(dataset, robust)
    yield from on_cifar10()
    yield from on_trained()


def on_robust(dataset: str, network: str | None) -> Iterator[Line]:
    """Yield defences of an adversarially trained network; the command fits the restorer."""
    if network is None:
        return
    yield Line(dataset, "robust_bare", "adversarially trained network", ("none",), network=network)
    yield Line(
        dataset, "robust_jump_relu", "JumpReLU, adversarially trained network", ("jump_relu",), ("-o", "jump=1"),
        network=network,
    )  # fmt: skip
    yield Line(
        dataset, "pair_robust_jump_autoencoder", "feature autoencoder before JumpReLU, adversarially trained network",
        ("jump_relu", "feature_autoencoder"), ("-o", "jump_relu.jump=1", *trained(dataset)), (), network, FEWER,
    )  # fmt: skip


def on_cifar10() -> Iterator[Line]:
    """Yield the lines of CIFAR-10 that take a CPU about an hour each."""
    base = BASE["cifar10"]
    yield Line("cifar10", "bare", "undefended model", ("none",), network=base)
    yield Line("cifar10", "jump_relu", "JumpReLU, jump tuned", ("jump_relu",), network=base)
    yield Line("cifar10", "heat_and_blur", "Heat and Blur", ("heat_and_blur",), network=base)
    words, fits = restored("cifar10", "feature_autoencoder", "autoencoder")
    yield Line("cifar10", "feature_autoencoder", "Feature autoencoder", ("feature_autoencoder",), words, fits, base)


def on_trained() -> Iterator[Line]:
    """Yield the five defences of a vision transformer and a ConvNeXt; the command fits the restorers."""
    for name, title in TRAINED.items():
        network = (
            *("--model", f"examples.networks_cifar10:{name}", "--weights", f"OUT/cifar10/{name}.safetensors"),
            *("--mean", "0.4914,0.4822,0.4465", "--std", "0.2023,0.1994,0.2010"),
        )
        for defence, face, options in (
            ("undefended model", "none", ()),
            ("JumpReLU", "jump_relu", ("-o", f"max_accuracy_drop={DROP[name]}")),
            ("Heat and Blur", "heat_and_blur", ()),
            ("Explanation reconstructor", "explanation_reconstructor", ()),
            ("Feature autoencoder", "feature_autoencoder", ("-o", "nb_epochs=2")),
            ("TRN", "two_stream_restoration", ("-o", "nb_epochs=2")),
        ):
            bare = face == "none"
            words = (*network, *options, *(() if bare else ("--undefended", "papers")))
            yield Line(
                "cifar10",
                f"{name}_{'bare' if bare else face}",
                f"{defence}, {title}",
                (face,),
                words,
                (name,),
                eps=SMALL_EPS,
            )


def command_of(line: Line) -> list[str]:
    """Return the published command, with DIR and OUT for the folders."""
    samples = line.samples or SAMPLES[line.dataset]
    words = ["art-defenses", "evaluate", "--dataset", line.dataset, "--data", "DIR"]
    words += [word for name in line.defences for word in ("--defence", name)]
    words += ["--weights", f"DIR/{line.network}"] if line.network else []
    rounds = ("--effort", EFFORT[line.key], "--undefended", "papers") if line.key in EFFORT else ()
    words += [*line.options, *rounds]
    words += ["--eps", line.eps or str(EPS[line.dataset]), "--samples", str(samples)]
    return [*words, "--curve-samples", "0", "--threads", "1", "--out", f"OUT/runs/{line.dataset}/{line.name}"]


def fitting_of(line: Line) -> list[str] | None:
    """Return the command that makes the fits of a line."""
    if not line.fits:
        return None
    if line.fits[0] in TRAINED:
        words = ["python", "examples/networks_cifar10.py", "--data", "DIR", "--weights", "OUT/cifar10"]
        return [*words, "--networks", *line.fits, "--only", "train"]
    names = ",".join(dict.fromkeys(line.fits))
    example, *arguments = *FITTING[line.dataset], *FITTED_AS.get(line.key, ())
    words = ["python", f"examples/{example}", "--data", "DIR", "--out", f"OUT/{line.dataset}", "--fits", names]
    return [*words, *arguments, "--only", "fit"]


def here(words: list[str], run: argparse.Namespace) -> list[str]:
    """Return the words with this machine's folders and interpreter."""
    folders = {"DIR": run.data, "OUT": run.out}
    rest = [re.sub(r"\b(DIR|OUT)\b", lambda match: str(folders[match[1]]), word) for word in words[1:]]
    if words[0] == "python":
        rest[0] = str(RESULTS.parents[1] / rest[0])
        rest += ["--threads", "1"]
    return [*(PROGRAM if words[0] == "art-defenses" else [sys.executable]), *rest]


def carry_out(line: Line, run: argparse.Namespace) -> None:
    """Fit, evaluate and write the entry of a line."""
    commands = [words for words in (fitting_of(line), command_of(line)) if words is not None]
    typed = "\n".join(shlex.join(words) for words in commands)
    print(f"\n# {line.dataset}: {line.title}\n{typed}", flush=True)
    if run.dry:
        return
    folder = run.out / "runs" / line.dataset / line.name
    for words in commands:
        finished = words[0] == "art-defenses" and (folder / "report.json").exists()
        if finished and line.key not in EFFORT:  # with more rounds than before a finished run goes on
            continue
        subprocess.run(here(words, run), check=True)
    entry = ["entry", str(folder), "--dataset", line.dataset, "--name", line.title]
    entry += ["--out", str(RESULTS / line.dataset / f"{line.name}.json")]
    entry += ["--command", typed.replace("\n", "; ")]  # the published form, with DIR and OUT
    link = PAPERS.get(line.defences[0]) if len(line.defences) == 1 else None
    subprocess.run([*PROGRAM, *entry, *(["--link", link] if link else [])], check=True)
    subprocess.run([*PROGRAM, "leaderboard", str(RESULTS)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("DIR"), help="folder of the data sets, and of weights/")
    parser.add_argument("--out", type=Path, default=Path("OUT"), help="folder of fits and runs")
    parser.add_argument("--only", help="comma-separated names of lines, such as mnist/jump_relu, or of data sets")
    parser.add_argument("--list", action="store_true", help="print the names of all lines")
    parser.add_argument("--dry", action="store_true", help="print the commands without running them")
    run = parser.parse_args()
    wanted = None if run.only is None else set(run.only.split(","))
    for line in lines():
        if wanted is not None and not {line.key, line.dataset} & wanted:
            continue
        if run.list:
            print(line.key)
        else:
            carry_out(line, run)


if __name__ == "__main__":
    main()
