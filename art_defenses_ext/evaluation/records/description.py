"""The description of a run: versions, settings, data and model, so that a reader can repeat it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from art_defenses_ext.base.provenance import Training, Tuning
from art_defenses_ext.evaluation.config import EvaluationConfig
from art_defenses_ext.evaluation.threat import Threat


class Settings(EvaluationConfig):
    """The arguments of an evaluation on which its records depend.

    Attributes:
        threat: the norm, such as ``"linf"``, ``"l2"`` or ``"l1"``.
        eps: radius, in pixel values.
        attacks: the suite's name, or the attacks' names.
        samples: number of images.
    """

    threat: str
    eps: float
    attacks: str | list[str]
    samples: int

    @classmethod
    def describing(cls, threat: Threat, attacks: str | list[str], samples: int, config: EvaluationConfig) -> Settings:
        """Return the settings of an evaluation; options that count samples are at most their number."""
        options = asdict(config)
        for name in ("curve_samples", "check_samples"):
            options[name] = min(options[name], samples)
        return cls(threat=threat.norm_name, eps=threat.eps, attacks=attacks, samples=samples, **options)

    @property
    def undefended_attacks(self) -> str:
        """The named suite that also runs on the undefended model, without papers' attacks; empty if none does."""
        if self.undefended_suite == "papers" or not isinstance(self.attacks, str):
            return ""
        return "+".join(name for name in self.attacks.split("+") if name != "papers")


@dataclass(frozen=True)
class RunDescription:
    """The description of a run without its results.

    Attributes:
        settings: the arguments.
        defences: name and options of each defence, in the order of application; for a detector from another package,
            the class of its network.
        tunings: how the strength of tuned defences was chosen.
        trainings: the trainings of the defences, in order.
        modes: the gradient modes that the attacks used.
        votes: number of passes that are counted for each image: 1, or more if the defence is random.
        draws: number of passes that the attacks average.
        model: class name of the network.
        model_sha256: hash of its parameters and buffers.
        pipeline_sha256: hash of those of the whole defended classifier: preprocessing, model, detector.
        undefended_sha256: hash of those of the undefended classifier; None without one.
        foreign: preprocessors in torch from other packages, with their plain parameters.
        labels: number of classes.
        clip_values: least and largest pixel value; None without clip values.
        random: whether the defence is random.
        withheld: gradient modes that the attacks did not use.
        data_sha256: hash of images and labels.
        device: name of the processor or GPU.
        threads: number of torch's threads on the CPU.
        command: the command line of the process; of a merged run without ``--shard``.
        versions: versions of Python and the packages.
        rejects: whether a detector rejects images.
        environments: devices, threads and versions of parts that ran elsewhere, if they differ.
        batch_dependent: whether the logits of an image depend on the others in its batch, or on their order.
        options: options of the command that made the run, by name, as its ``--print-config`` writes them, without those
            of its files and processes; empty for a run made in Python.
        outputs: the kind of a torch network's outputs, and how they are attacked, in words; empty for plain logits.
        dtype: dtype of the network; losses are computed in float32 at least.
        input_shape: shape of an image; empty in runs of older versions.
        training_alone: preprocessors that act in training alone.
    """

    settings: Settings
    defences: list[dict[str, Any]]
    tunings: list[Tuning]
    trainings: list[Training]
    modes: list[str]
    votes: int
    draws: int
    model: str
    model_sha256: str
    pipeline_sha256: str
    undefended_sha256: str | None
    foreign: list[str]
    labels: int
    clip_values: tuple[float, float] | None
    random: bool
    withheld: list[str]
    data_sha256: str
    device: str
    threads: int
    command: str
    versions: dict[str, str]
    rejects: bool = False
    environments: list[dict[str, Any]] = field(default_factory=list)
    batch_dependent: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    outputs: str = ""
    dtype: str = "float32"
    input_shape: list[int] = field(default_factory=list)
    training_alone: list[str] = field(default_factory=list)

    @property
    def pairs_undefended(self) -> bool:
        """Whether the undefended model is evaluated too: it is known, and a named suite runs on both."""
        return bool(self.settings.undefended_attacks) and self.undefended_sha256 is not None
