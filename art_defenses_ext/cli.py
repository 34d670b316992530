"""The command ``art-defenses``: evaluate a defended classifier, or list what there is."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich.console import Console
from rich.table import Table

from art_defenses_ext.classifiers import load_classifier
from art_defenses_ext.datasets import DATASETS, load_dataset
from art_defenses_ext.defences import DEFENCES, Wishes
from art_defenses_ext.evaluation.attacks import DETECTOR_LADDER, FULL, PAPERS, SETS, STANDARD
from art_defenses_ext.evaluation.evaluate import evaluate
from art_defenses_ext.evaluation.records import check_out
from art_defenses_ext.evaluation.threats import L2, Linf, Threat
from art_defenses_ext.models import DEFAULT_MODEL, MODELS
from art_defenses_ext.transformer.jump_relu import check_accuracy_drop, per_layer
from art_defenses_ext.validation import InputError, check_choice, check_count, check_samples_of, check_seed

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

BLOCK_SIZE = {"image_folder": 32}
"""Where the gradients of 256 images at a time would not fit into memory."""


@app.command("evaluate")
def evaluate_command(
    dataset: Annotated[str, typer.Option(help=f"Images to attack: {', '.join(DATASETS)}.")] = "digits",
    defence: Annotated[str, typer.Option(help=f"Defence to put on: {', '.join(DEFENCES)}.")] = "jump_relu",
    norm: Annotated[str, typer.Option(help="What the attacker's change is measured by: inf or 2.")] = "inf",
    eps: Annotated[float, typer.Option(help="How much he may change; pixel values are from 0 to 1.")] = 0.1,
    attacks: Annotated[
        str,
        typer.Option(
            help="papers: what the method's authors ran; standard: these and our ladder; full: and what takes longer."
        ),
    ] = "standard",
    samples: Annotated[int | None, typer.Option(help="Test images, from the first on. By default all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report, its records and pictures.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
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
        typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the defence, such as sigma=2."),
    ] = None,
    fitted: Annotated[
        Path | None, typer.Option(help="File of a trained defence, as save() writes it; by default it is trained.")
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
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads on the CPU. By default torch's own number.")] = None,
) -> None:
    """Attack a defended classifier with everything in a set of attacks; print what is left, worst case first."""
    threat = _threat(norm, eps)
    check_choice("dataset", dataset, DATASETS)
    check_choice("defence", defence, list(DEFENCES))
    check_choice("attacks", attacks, SETS)
    if attacks == "papers" and defence == "none":
        raise InputError("attacks is 'papers', but defence is 'none'; a defence that a paper attacks was expected")
    if jump is not None:
        per_layer(jump, 1)
        if defence != "jump_relu":
            raise InputError(f"jump is {jump}, but defence is {defence!r}; a jump only with jump_relu was expected")
    check_accuracy_drop(max_accuracy_drop)
    check_seed(seed)
    if fitted is not None:
        _check_fitted(defence, fitted, option)
    trained_against = eps if norm == "inf" else TRAINED_AGAINST
    wishes = Wishes(jump, max_accuracy_drop, _options(defence, option or []), trained_against, fitted, seed)
    DEFENCES[defence].check(wishes, dataset)
    block_size = BLOCK_SIZE.get(dataset, 256) if block_size is None else block_size
    check_count("block_size", block_size)
    check_samples_of("curve_samples", curve_samples)
    check_samples_of("check_samples", check_samples)
    if out is not None:
        check_out(out, overwrite)
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads is {threads}; at least 1 was expected")
        torch.set_num_threads(threads)
    if data is not None and not data.is_dir():
        raise InputError(f"data is {data}; an existing folder was expected")
    images = load_dataset(dataset, data, size=_size(dataset, model))
    count = len(images.test.x) if samples is None else samples
    if not 1 <= count <= len(images.test.x):
        raise InputError(f"samples is {count}; from 1 to {dataset}'s {len(images.test.x)} test images was expected")
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
    defended = DEFENCES[defence].put_on(classifier, images, wishes)
    report = evaluate(
        defended,
        images.test.x[:count],
        images.test.y[:count],
        threat,
        attacks,
        out=out,
        overwrite=overwrite,
        seed=seed,
        block_size=block_size,
        curve_samples=curve_samples,
        check_samples=check_samples,
        adaptive=not naive,
    )
    report.print()
    if out is not None:
        Console().print(f"Report: {out / 'report.html'}", soft_wrap=True)


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


def _threat(norm: str, eps: float) -> Threat:
    if norm not in ("inf", "2"):
        raise InputError(f"norm is {norm!r}; inf or 2 was expected")
    return Linf(eps) if norm == "inf" else L2(eps)


def _options(defence: str, given: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs as arguments; a value is a number, true, false or null where it reads as one, else text."""
    known = DEFENCES[defence].options
    options: dict[str, Any] = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not equals or name not in known:
            expected = (
                f"NAME=VALUE with one of {', '.join(known)}" if known else f"none, since {defence} has no options,"
            )
            raise InputError(f"option is {pair!r}; {expected} was expected")
        try:
            options[name] = json.loads(text)
        except json.JSONDecodeError:
            options[name] = text
    return options


def _check_fitted(defence: str, fitted: Path, option: list[str] | None) -> None:
    if not DEFENCES[defence].trained:
        raise InputError(f"fitted is {fitted}, but defence {defence} is not trained; no file was expected")
    if option:
        raise InputError(f"fitted is {fitted} and option is {option[0]!r}; a file holds its own options")
    if not fitted.is_file():
        raise InputError(f"fitted is {fitted}; an existing file was expected")


def _numbers(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} is {text!r}; numbers with commas between were expected") from None


def main() -> NoReturn:
    """Run the command; what a user got wrong is one sentence and exit status 2."""
    # ART warns about its own optional frameworks on import and about each small thing while attacking.
    logging.getLogger("art").setLevel(logging.ERROR)
    try:
        app()
    except InputError as error:
        Console(stderr=True).print(f"Error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
    sys.exit(0)
