"""What a run was: versions, settings, data and model, so that a reader can run it again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from art_defenses_ext.base.provenance import Training, Tuning
from art_defenses_ext.evaluation.config import EvaluationConfig
from art_defenses_ext.evaluation.threat import Threat


class Settings(EvaluationConfig):
    """The arguments of an evaluation that its records depend on.

    Attributes:
        threat: the norm, such as ``"linf"``, ``"l2"`` or ``"l1"``.
        eps: radius, in pixel values.
        attacks: the set's name, or the attacks' names.
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
        """The named suite that is run on the undefended model too; empty where none is. No paper attacks that model."""
        if self.undefended_suite == "papers" or not isinstance(self.attacks, str):
            return ""
        return "+".join(name for name in self.attacks.split("+") if name != "papers")


@dataclass(frozen=True)
class RunDescription:
    """Everything about a run but its results.

    Attributes:
        settings: the arguments.
        defences: name and options of each defence, in the order in which an image meets them; of a detector that is
            none of ours, the class of its network.
        tunings: how their strength was chosen, of those defences that were tuned.
        trainings: how they were trained, one after the other, of those that were.
        modes: the gradient modes that the attacker tried.
        votes: passes that are counted for each image: 1, or more if the defence is random.
        draws: passes that the attacker averaged.
        model: class name of the network.
        model_sha256: of its parameters and buffers.
        pipeline_sha256: of those of the whole defended classifier: preprocessing, model, detector.
        undefended_sha256: of those of the undefended classifier; None without one.
        foreign: preprocessors in torch that are none of our defences, with their parameters as far as these are plain.
        labels: number of classes that an image may belong to.
        clip_values: least and largest pixel value; None without clip values.
        random: whether the defence is random.
        withheld: gradient modes that there are and that the attacker did not try.
        data_sha256: of images and labels.
        device: the processor or GPU by name.
        threads: threads of torch on the CPU.
        command: the command line of the process.
        versions: Python's and the packages'.
        rejects: whether a detector rejects images.
        environments: devices, threads and versions of parts that ran elsewhere, where they differ.
        batch_dependent: whether the logits of an image depend on the others in its batch, or on their order.
        options: of the command that made the run, by name, as its ``--print-config`` writes them, but for where it
            wrote and which part it did; empty of a run made in Python.
        outputs: what a torch network gives, and on what of it the attacks work, in words; empty for plain logits.
        dtype: of the network; it runs in this, and losses are computed in float32 at least.
        input_shape: of an image; empty of runs that did not note it.
        training_alone: preprocessors that act in training alone, which no image of an evaluation meets.
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
        """Whether the undefended model is evaluated beside it: it is known, and a named suite is to run on both."""
        return bool(self.settings.undefended_attacks) and self.undefended_sha256 is not None
