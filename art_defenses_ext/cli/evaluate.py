"""``art-defenses evaluate``: a data set, a network, defences and an attack suite, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from art_defenses_ext.base.declared import (
    AnyPath,
    Count,
    Flag,
    Kind,
    Text,
    Texts,
    integer,
    one_of,
    option,
)
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.cli.declared import as_plain
from art_defenses_ext.evaluation.config import SETS, EvaluationConfig, NamedAttacks
from art_defenses_ext.evaluation.run.shard import Shard, local_rank
from art_defenses_ext.zoo.catalogue import COLLECTIONS, DATASETS, DEFAULT_MODEL, MODELS

if TYPE_CHECKING:
    from art.estimators.classification import PyTorchClassifier

    from art_defenses_ext.base.arrays import Images, IntArray
    from art_defenses_ext.cli.defences import DefenceSpec
    from art_defenses_ext.evaluation.threat import Threat
    from art_defenses_ext.zoo.datasets import Dataset

TRAINED_AGAINST = 0.1
"""The linf eps of a defence's adversarial training if the threat is not a linf ball."""

CLIP_VALUES = (0.0, 1.0)
"""The clip values of all built-in data sets."""

NOT_REPEATED = ("out", "overwrite", "save_examples", "price", "shard", "processes")
"""Options that a run's manifest does not keep: those of its files and of its processes."""

BLOCK_SIZE = {"image_folder": 32}
"""Default block sizes for data sets of which the gradients of 256 images do not fit into memory."""


def _text_of_number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError
    return str(value)


def _numbers(value: Any) -> tuple[float, ...]:
    numbers = value.split(",") if isinstance(value, str) else value
    if not isinstance(numbers, list | tuple) or any(isinstance(number, bool) for number in numbers):
        raise ValueError
    try:
        accepted = tuple(map(float, numbers))
    except (TypeError, OverflowError):
        raise ValueError from None
    if not all(map(math.isfinite, accepted)):
        raise ValueError
    return accepted


Numbers = Annotated[tuple[float, ...], Kind("finite numbers separated by commas", _numbers)]
Eps = Annotated[str, Kind("a number, or a fraction such as '8/255',", _text_of_number)]


class EvaluateOptions(EvaluationConfig):
    """The options of ``art-defenses evaluate``: those of the evaluation, of the model and of the data."""

    dataset: Annotated[str, one_of(*DATASETS)] = option("digits", f"Data set to attack: {', '.join(DATASETS)}.")
    defence: Texts = option(
        ("jump_relu",),
        "Name of a defence, as `art-defenses list` prints it; by default jump_relu. Repeat the option to apply several "
        "defences in this order; each is fitted to the classifier with the defences before it.",
        multiple=True, metavar="NAME",
    )  # fmt: skip
    norm: Text = option(
        "linf",
        "Norm of the perturbation: linf, l2, l1, or that of a ball of one's own. With several, such as l2,linf, or "
        "union for these three, an image is robust if it is robust in each of their balls.",
    )
    eps: Eps = option(
        "0.1",
        "Radius of the ball in this norm, such as 0.1 or 8/255; pixel values are from 0 to 1. For several norms a "
        "radius for each, such as 8/255,0.5,12.",
    )
    allow_large_eps: Flag = option(False, "Accept an eps at which every image can be turned grey.")
    attacks: NamedAttacks = option(
        "standard",
        f"Attack suite: {', '.join(f'{name} ({description})' for name, description in SETS.items())}. Attacks of other "
        "packages are added with +, as in standard+simba; `art-defenses list` names those that are installed.",
    )
    samples: Count | None = option(None, "Number of test images, from the first on. By default all.")
    out: AnyPath | None = option(None, "Folder for the report, its records and pictures.")
    price: Flag = option(False, "Print the estimated cost of the evaluation, from a trial on a few images, and stop.")
    overwrite: Flag = option(False, "Replace an earlier run in --out instead of continuing it.")
    save_examples: Annotated[str, one_of("one", "all")] = option(
        "one", "Adversarial images to keep in --out: one of up to eight attacks, or all, in its folder adversarial."
    )
    data: AnyPath | None = option(
        None, "Folder of the data sets, or of images. By default ART_DEFENSES_DATA, else a cache."
    )
    model: Text | None = option(
        None,
        f"Network: {', '.join(MODELS)}; {', '.join(f'{name}:NAME' for name in COLLECTIONS)} (see `art-defenses docs "
        "data`); or a function of your own, package.module:function.",
    )
    weights: AnyPath | None = option(
        None, "File of the network's weights: safetensors, or a torch file of tensors only."
    )
    mean: Numbers | None = option(
        None, "Mean of the network's normalisation: a number per channel, separated by commas."
    )
    std: Numbers | None = option(
        None, "Deviation of the network's normalisation: a number per channel, separated by commas."
    )
    epochs: Count | None = option(None, "Train the network for this many epochs instead of loading weights.")
    options: Texts = option(
        (),
        "Option of the defence or of its training, such as jump=1; with several defences, such as jump_relu.jump=1. "
        "`art-defenses list jump_relu` prints the names.",
        multiple=True, switch="--option", short="-o", metavar="NAME=VALUE",
    )  # fmt: skip
    fitted: Texts = option(
        (),
        "File of a fitted defence, as save() writes it; with several defences, DEFENCE=FILE. By default the defence is "
        "fitted first.",
        multiple=True, metavar="FILE",
    )  # fmt: skip
    shard: Text | None = option(
        None,
        "Evaluate the i-th of n parts, as i/n, for a later merge; in a merged run, this part of the next round of more "
        "effort. By default torchrun or srun sets it, else all.",
    )
    processes: Count = option(
        1, "Number of processes of this machine that share the blocks of the run and of its rounds."
    )
    device: Annotated[str, one_of("cpu", "cuda")] = option("cpu", "Device of the network: cpu or cuda.")
    threads: Annotated[int, integer(1, "a whole number from 1 to 4096", most=4096)] | None = option(
        None, "Number of threads on the CPU. By default torch's own."
    )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the options with these values by name, else the defaults; that of a block depends on the data set."""
        block_size = BLOCK_SIZE.get(str(values.get("dataset")))
        return super().of(({} if block_size is None else {"block_size": block_size}) | dict(values))


@dataclass(frozen=True)
class Prepared:
    """The arguments of :func:`.evaluate`, made from the options of the command.

    Attributes:
        classifier: the defended classifier.
        data: the images (N, ...) to attack, and their labels (N,).
        threat: the ball.
        attacks: the name of the attack suite.
        arguments: the keyword arguments.
    """

    classifier: PyTorchClassifier
    data: tuple[Images, IntArray]
    threat: Threat
    attacks: str
    arguments: dict[str, Any]

    @classmethod
    def of(cls, options: EvaluateOptions, part: Shard) -> Prepared:
        """Check all options, load the data, and make the defended classifier."""
        from art_defenses_ext.cli.defences import apply_defences
        from art_defenses_ext.zoo.classifiers import load_classifier

        _prepare_machine(options)
        threat, specs, images, count = checked(options, part)
        classifier = load_classifier(
            images, options.model, options.weights, mean=options.mean, std=options.std, epochs=options.epochs,
            device=options.device, seed=options.seed,
        )  # fmt: skip
        arguments = {
            "allow_large_eps": options.allow_large_eps,
            "config": EvaluationConfig.part_of(options),
            "command_options": repeated(options),
        }
        data = images.test.x[:count], images.test.y[:count]
        return cls(apply_defences(classifier, images, specs), data, threat, options.attacks, arguments)

    @property
    def call(self) -> tuple[PyTorchClassifier, tuple[Images, IntArray], Threat, str]:
        """The positional arguments."""
        return self.classifier, self.data, self.threat, self.attacks


def checked(options: EvaluateOptions, part: Shard) -> tuple[Threat, dict[str, DefenceSpec], Dataset, int]:
    """Return the ball, the specification of each defence, the data and the number of attacked images.

    Raises:
        InputError: for options that contradict each other, before a network is loaded or trained.
    """
    from art_defenses_ext.attack.ball import Linf
    from art_defenses_ext.evaluation.threat import named_threat

    threat = named_threat(options.norm, options.eps)
    specs = _defence_specs(options, threat.eps if isinstance(threat, Linf) else TRAINED_AGAINST)
    images, count = _images(options)
    check_run(options, threat, images, count, part)
    return threat, specs, images, count


def repeated(options: EvaluateOptions) -> dict[str, Any]:
    """Return the options that a run's manifest keeps, by name, as plain values."""
    return {name: value for name, value in as_plain(options).items() if name not in NOT_REPEATED}


def options_of_run(folder: Path) -> EvaluateOptions:
    """Return the options of the command that made a run, without those of its files and of its processes.

    Raises:
        InputError: for a folder without a run, and for a run that was made in Python.
    """
    from art_defenses_ext.evaluation.run.folder import read_manifest

    run = read_manifest(folder).run
    if not run.options:
        raise InputError(
            f"run is {folder}, which was made in Python and does not name its model; a run of "
            "`art-defenses evaluate`, or in Python rerun(run, model, data), was expected"
        )
    return EvaluateOptions.of(run.options | {"threads": run.threads})


def _defence_specs(options: EvaluateOptions, trained_against: float) -> dict[str, DefenceSpec]:
    """Return the specification of each defence by its name, in the order of application."""
    from art_defenses_ext.cli.defences import (
        NONE,
        DefenceSpec,
        check_defences,
        check_file,
        check_spec,
        files_of,
        options_of,
    )

    names = check_defences(options.defence)
    if options.attacks == "papers" and names == [NONE]:
        raise InputError("attacks is 'papers', but defence is 'none'; a defence that a paper attacks was expected")
    chosen, files = options_of(names, options.options), files_of(names, options.fitted)
    specs = {name: DefenceSpec(chosen[name], trained_against, options.seed, files.get(name)) for name in names}
    for name, spec in specs.items():
        check_file(name, spec)
        check_spec(name, spec, options.dataset)
    return specs


def shard_of(options: EvaluateOptions) -> Shard:
    """Return the part of the evaluation that belongs to this process, if it can be written."""
    from art_defenses_ext.evaluation.run.folder import check_out

    part = Shard.of_process() if options.shard is None else Shard.named(options.shard)
    if options.out is not None:
        check_out(options.out if part.is_whole else options.out / part.folder)
    elif not part.is_whole:
        raise InputError(f"out is missing, but this is the part {part} of an evaluation; a folder was expected")
    elif options.save_examples == "all":
        raise InputError("save_examples is 'all', but out is missing; a folder for the images was expected")
    return part


def _prepare_machine(options: EvaluateOptions) -> None:
    """Set torch's threads, and the GPU of this process among those that a launcher started."""
    import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.device == "cuda" and torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())


def _images(options: EvaluateOptions) -> tuple[Dataset, int]:
    """Return the data set, and the number of its test images that are attacked."""
    from art_defenses_ext.base.validation import check_folder
    from art_defenses_ext.zoo.datasets import load_dataset

    dataset, samples = options.dataset, options.samples
    if options.data is not None:
        check_folder("data", options.data)
    images = load_dataset(dataset, options.data, size=_size(dataset, options.model))
    count = len(images.test.x) if samples is None else samples
    if count > len(images.test.x):
        raise InputError(f"samples is {count}; from 1 to {dataset}'s {len(images.test.x)} test images was expected")
    return images, count


def _size(dataset: str, model: str | None) -> int | None:
    """Return the size to which the images of a folder are cropped: the network's; None for their own."""
    from art_defenses_ext.zoo.loaders import has_loader, load_pretrained

    if dataset != "image_folder":
        return None
    if model is not None and has_loader(model):
        return load_pretrained(model).input_shape[1]
    spec = MODELS.get(DEFAULT_MODEL[dataset] if model is None else model)
    return None if spec is None else spec.input_shape[1]


def check_run(options: EvaluateOptions, threat: Threat, images: Dataset, count: int, part: Shard) -> None:
    """Refuse, before a network is trained, a ball that is too large, and a folder that holds another run."""
    from art_defenses_ext.evaluation.records.description import Settings
    from art_defenses_ext.evaluation.run.folder import MANIFEST, check_settings
    from art_defenses_ext.evaluation.threat import check_radius

    check_radius(threat, CLIP_VALUES, images.test.x.shape[1:], options.allow_large_eps)
    out: Path | None = options.out
    if out is not None and not options.overwrite:
        settings = Settings.describing(threat, options.attacks, count, EvaluationConfig.part_of(options))
        own = out if part.is_whole else out / part.folder
        check_settings(own if (own / MANIFEST).exists() else out, settings)
