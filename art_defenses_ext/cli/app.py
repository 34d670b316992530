"""The command ``art-defenses``: evaluate a defended classifier, join, compare and publish results."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from art.estimators.classification import PyTorchClassifier
from rich.console import Console
from rich.table import Table
from rich.text import Text

from art_defenses_ext.attack.ball import Linf
from art_defenses_ext.base.files import replace_file
from art_defenses_ext.base.text import for_terminal
from art_defenses_ext.base.validation import (
    InputError,
    check_choice,
    check_count,
    check_folder,
    check_samples_of,
    check_seed,
)
from art_defenses_ext.cli.defences import DEFENCES, Wishes, put_on
from art_defenses_ext.cli.doctor import TRAPS, check_kind, environment, examine
from art_defenses_ext.cli.options import check_defences, check_file, files_of, options_of
from art_defenses_ext.evaluation.evaluate import evaluate, evaluate_shard
from art_defenses_ext.evaluation.merge import merge
from art_defenses_ext.evaluation.publish.compare import compare
from art_defenses_ext.evaluation.publish.leaderboard import Entry, leaderboard
from art_defenses_ext.evaluation.records.description import Settings
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.run.folder import check_out, check_settings
from art_defenses_ext.evaluation.run.shard import Shard, local_rank
from art_defenses_ext.evaluation.suite.suites import DETECTOR_LADDER, FULL, PAPERS, SETS, STANDARD
from art_defenses_ext.evaluation.threat import check_radius, named_threat
from art_defenses_ext.transformer.jump_relu import check_accuracy_drop, per_layer
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import DATASETS, Dataset, data_found, load_dataset
from art_defenses_ext.zoo.models import DEFAULT_MODEL, MODELS, call_factory

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Put a published defence on a PyTorch classifier, attack it as its paper did and as an attacker who knows it "
    "would, and print both numbers.",
)


TRAINED_AGAINST = 0.1
"""linf eps that a defence is trained against where the threat is none of linf."""

CLIP_VALUES = (0.0, 1.0)
"""Of all data sets that the command knows."""

MOST_THREADS = 4096
"""More than any processor has."""

BLOCK_SIZE = {"image_folder": 32}
"""Where the gradients of 256 images at a time would not fit into memory."""


@app.command("evaluate")
def evaluate_command(
    dataset: Annotated[str, typer.Option(help=f"Images to attack: {', '.join(DATASETS)}.")] = "digits",
    defence: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Defence to put on: {', '.join(DEFENCES)}. By default jump_relu. Several: in this order, each fitted "
            "to what stands already."
        ),
    ] = None,
    norm: Annotated[str, typer.Option(help="What the attacker's change is measured by: linf or l2.")] = "linf",
    eps: Annotated[
        str, typer.Option(help="How much may be changed, such as 0.1 or 8/255; pixel values are from 0 to 1.")
    ] = "0.1",
    allow_large_eps: Annotated[
        bool, typer.Option("--allow-large-eps", help="Accept an eps at which every image can be turned grey.")
    ] = False,
    attacks: Annotated[
        str,
        typer.Option(
            help="papers: what the method's authors ran; standard: these and our ladder; full: and what takes longer."
        ),
    ] = "standard",
    samples: Annotated[int | None, typer.Option(help="Test images, from the first on. By default all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report, its records and pictures.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run in --out, instead of going on.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the data sets, or of images. By default ART_DEFENSES_DATA, else a cache."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=f"Network: {', '.join(MODELS)}, or package.module:function of your own.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Its weights: safetensors, or a torch file that holds nothing else.")
    ] = None,
    mean: Annotated[str | None, typer.Option(help="Its normalisation: mean per channel, with commas.")] = None,
    std: Annotated[str | None, typer.Option(help="Its normalisation: deviation per channel, with commas.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Train it for so long instead of loading weights.")] = None,
    jump: Annotated[
        float | None, typer.Option(help="jump_relu: the jump. By default tuned on validation images.")
    ] = None,
    max_accuracy_drop: Annotated[
        float, typer.Option(help="jump_relu: clean accuracy that the tuned jump may cost, from 0 to 1.")
    ] = 0.01,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            help="An option of the defence, such as sigma=2; of one of several, such as heat_and_blur.sigma=2.",
        ),
    ] = None,
    fitted: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="File of a trained defence, as save() writes it; of one of several, DEFENCE=FILE. By default trained.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of training and of all attacks.")] = 0,
    block_size: Annotated[
        int | None, typer.Option(help="Images attacked at a time. By default 256; of image_folder 32.")
    ] = None,
    curve_samples: Annotated[int, typer.Option(help="Images for the curve of accuracy against eps; 0: none.")] = 200,
    check_samples: Annotated[int, typer.Option(help="Images for the checks of the attacks; 0: no checks.")] = 100,
    naive: Annotated[
        bool, typer.Option("--naive", help="Give the attacker the exact gradient alone, to see what that hides.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            help="i/n: do the i-th of n parts, to be merged. By default what torchrun or srun says, else everything."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads on the CPU. By default torch's own number.")] = None,
) -> None:
    """Attack a defended classifier with everything in a set of attacks; print what is left, worst case first."""
    threat = named_threat(norm, eps)
    check_choice("dataset", dataset, DATASETS)
    check_choice("attacks", attacks, SETS)
    trained_against = threat.eps if isinstance(threat, Linf) else TRAINED_AGAINST
    wishes = _wishes(defence, jump, max_accuracy_drop, option, fitted, trained_against, seed)
    if attacks == "papers" and list(wishes) == ["none"]:
        raise InputError("attacks is 'papers', but defence is 'none'; a defence that a paper attacks was expected")
    for name, wish in wishes.items():
        DEFENCES[name].check(wish, dataset)
    block_size = BLOCK_SIZE.get(dataset, 256) if block_size is None else block_size
    check_count("block_size", block_size)
    check_samples_of("curve_samples", curve_samples)
    check_samples_of("check_samples", check_samples)
    part = _part(shard, out, overwrite)
    _prepare_machine(device, threads)
    images, count = _images(dataset, data, model, samples)
    check_radius(threat, CLIP_VALUES, images.test.x.shape[1:], allow_large_eps)
    if out is not None and not overwrite:
        settings = Settings.of(threat, attacks, count, seed, block_size, curve_samples, check_samples, not naive)
        check_settings(out if part.is_whole else out / part.folder, settings)
    classifier = load_classifier(
        images,
        model,
        weights,
        mean=_numbers("mean", mean),
        std=_numbers("std", std),
        epochs=epochs,
        device=device,
        seed=seed,
    )
    defended = put_on(classifier, images, wishes)
    arguments: dict[str, Any] = {
        "overwrite": overwrite,
        "seed": seed,
        "block_size": block_size,
        "curve_samples": curve_samples,
        "check_samples": check_samples,
        "adaptive": not naive,
        "allow_large_eps": allow_large_eps,
    }
    x, y = images.test.x[:count], images.test.y[:count]
    if out is not None and not part.is_whole:
        folder = evaluate_shard(defended, x, y, threat, attacks, shard=part, out=out, **arguments)
        _say(f"Part {part}: {folder}; when all are done: art-defenses merge {out}")
        return
    _show(evaluate(defended, x, y, threat, attacks, out=out, **arguments), out)


def _wishes(
    defence: list[str] | None,
    jump: float | None,
    max_accuracy_drop: float,
    option: list[str] | None,
    fitted: list[str] | None,
    trained_against: float,
    seed: int,
) -> dict[str, Wishes]:
    """What is wanted of each defence, by its name, in the order in which they are put on."""
    names = check_defences(defence or ["jump_relu"])
    if jump is not None:
        per_layer(jump, 1)
        if "jump_relu" not in names:
            raise InputError(f"jump is {jump}, but defence is {names[0]!r}; a jump only with jump_relu was expected")
    check_accuracy_drop(max_accuracy_drop)
    check_seed(seed)
    options, files = options_of(names, option or []), files_of(names, fitted or [])
    wishes = {
        name: Wishes(jump, max_accuracy_drop, options[name], trained_against, files.get(name), seed) for name in names
    }
    for name, wish in wishes.items():
        check_file(name, wish)
    return wishes


def _part(shard: str | None, out: Path | None, overwrite: bool) -> Shard:
    """Which part of the evaluation is this process's, if it can be written."""
    part = Shard.of_process() if shard is None else Shard.named(shard)
    if out is not None:
        check_out(out if part.is_whole else out / part.folder, overwrite)
    elif not part.is_whole:
        raise InputError(f"out is missing, but this is the part {part} of an evaluation; a folder was expected")
    return part


def _prepare_machine(device: str, threads: int | None) -> None:
    """Torch's threads, and the GPU of this process among those that a launcher started."""
    if threads is not None:
        if not 1 <= threads <= MOST_THREADS:
            raise InputError(f"threads is {threads}; at least 1, and at most {MOST_THREADS}, was expected")
        torch.set_num_threads(threads)
    if device == "cuda" and torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())


def _images(dataset: str, data: Path | None, model: str | None, samples: int | None) -> tuple[Dataset, int]:
    """The data set, and how many of its test images are attacked."""
    if data is not None:
        check_folder("data", data)
    images = load_dataset(dataset, data, size=_size(dataset, model))
    count = len(images.test.x) if samples is None else samples
    if not 1 <= count <= len(images.test.x):
        raise InputError(f"samples is {count}; from 1 to {dataset}'s {len(images.test.x)} test images was expected")
    return images, count


@app.command("merge")
def merge_command(
    folders: Annotated[list[Path], typer.Argument(help="Folders that --shard wrote to, or of single parts.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the whole. By default the only one given.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Join parts from different devices, versions or numbers of threads, too.")
    ] = False,
) -> None:
    """Join the parts of an evaluation that several processes shared; print and write its report."""
    if out is None:
        if len(folders) > 1:
            raise InputError(f"out is missing, and {len(folders)} folders were given; a folder was expected")
        (out,) = folders
    _show(merge(folders, out, overwrite=overwrite, mixed=mixed), out)


@app.command("compare")
def compare_command(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs; the first is what others are held against.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the table (JSON, Markdown) and a picture.")] = None,
    different_attackers: Annotated[
        bool,
        typer.Option(
            "--different-attackers", help="Compare runs of different attackers, too, and say how they differ."
        ),
    ] = False,
) -> None:
    """Put runs beside each other, image by image where they attacked the same ones."""
    comparison = compare(folders, different_attackers=different_attackers)
    comparison.print()
    if out is not None:
        comparison.save(out)


@app.command("entry")
def entry_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    dataset: Annotated[str, typer.Option(help="Name of the data set.")],
    name: Annotated[str | None, typer.Option(help="Of the line. By default the defences with their options.")] = None,
    link: Annotated[str | None, typer.Option(help="To the paper.")] = None,
    reported: Annotated[float | None, typer.Option(help="Robust accuracy that the paper prints, in per cent.")] = None,
    external: Annotated[
        float | None, typer.Option(help="A lower one that somebody else has shown, in per cent.")
    ] = None,
    command: Annotated[
        str | None, typer.Option(help="That made the run, as others can type it. By default as it was typed.")
    ] = None,
) -> None:
    """Write the line of a run for a page of results."""
    report = Report.load(folder)
    options = {"name": name, "link": link, "reported": reported, "external": external, "command": command}
    Entry.of(report, dataset, **options).save(out)  # type: ignore[arg-type]


@app.command("leaderboard")
def leaderboard_command(
    folder: Annotated[Path, typer.Argument(help="Folder of entries, as the command entry writes them.")],
    out: Annotated[
        Path | None, typer.Option(help="Markdown file to write. By default README.md in the folder.")
    ] = None,
) -> None:
    """Write the page of all results in a folder."""
    page = leaderboard(folder)
    target = folder / "README.md" if out is None else out
    try:
        replace_file(target, page.encode())
    except OSError as error:
        raise InputError(f"out is {target}, which cannot be written ({error.strerror}); a file was expected") from None


def _show(report: Report, out: Path | None) -> None:
    report.print()
    if out is not None:
        _say(f"Report: {out / 'report.html'}")


def _say(line: str) -> None:
    """A line for whoever typed the command, with names as they are and nothing that a terminal would obey."""
    Console().print(for_terminal(line), highlight=False, markup=False, soft_wrap=True)


@app.command("doctor")
def doctor_command(
    classifier: Annotated[
        str | None,
        typer.Option(
            metavar="PACKAGE.MODULE:FUNCTION",
            help="Your function that returns an ART PyTorchClassifier, to be examined.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data sets. By default ART_DEFENSES_DATA, else a cache.")
    ] = None,
) -> None:
    """Say what is installed and found here, and which of ART's traps a classifier of yours holds."""
    traps = None if classifier is None else examine(_own_classifier(classifier))
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, text in environment().items():
        table.add_row(name, Text(for_terminal(text)))
    for name, there in data_found(data).items():
        table.add_row(name, "found" if there else "not there")
    console = Console()
    console.print(table)
    for trap in traps or ():
        said = f"{trap.name}: {trap.finding}; {trap.advice} (docs/traps.md)"
        console.print(for_terminal(said), style="red", highlight=False, markup=False, soft_wrap=True)
    if traps is not None:
        console.print(f"{len(traps)} of {len(TRAPS)} traps found")


def _own_classifier(text: str) -> PyTorchClassifier:
    module, colon, attribute = text.partition(":")
    if not (module and colon and attribute):
        raise InputError(f"classifier is {text!r}; 'package.module:function' was expected")
    return check_kind(call_factory(text, module, attribute, "classifier"), text)


@app.command("list")
def list_command() -> None:
    """List defences, data sets, networks and attacks."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, choice in DEFENCES.items():
        table.add_row("defence", name, choice.title)
        if choice.options:
            table.add_row("", "", f"options: {', '.join(choice.options)}")
    for name in DATASETS:
        table.add_row("data set", name, "")
    for name, spec in MODELS.items():
        table.add_row("network", name, f"for {spec.dataset}, {' x '.join(map(str, spec.input_shape))}")
    for method, specs in PAPERS.items():
        for one in specs:
            table.add_row("attacks papers", one.name, f"{method}: {one.purpose}")
    for one in FULL:
        table.add_row(f"attacks {'standard' if one in STANDARD else 'full'}", one.name, one.purpose)
    for one in DETECTOR_LADDER:
        table.add_row("attacks detector", one.name, one.purpose)
    Console().print(table)


def _size(dataset: str, model: str | None) -> int | None:
    """The size to which the images of a folder are cropped: the built-in network's; None for their own."""
    spec = MODELS.get(DEFAULT_MODEL[dataset] if model is None else model)
    return spec.input_shape[1] if spec is not None and dataset == "image_folder" else None


def _numbers(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} is {text!r}; numbers with commas between were expected") from None


def main() -> NoReturn:
    """Run the command; what a user got wrong is one sentence, and the page that helps, and exit status 2."""
    # ART warns about its own optional frameworks on import and about each small thing while attacking.
    logging.getLogger("art").setLevel(logging.ERROR)
    try:
        app()
    except InputError as error:
        said = "\n".join([f"Error: {error}", *getattr(error, "__notes__", [])])
        Console(stderr=True).print(said, style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
    sys.exit(0)
