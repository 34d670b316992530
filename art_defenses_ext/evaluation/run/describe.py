"""The description of a run before it starts: versions, settings, data and model."""

from __future__ import annotations

import hashlib
import platform
import shlex
import sys
from collections.abc import Collection, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext.base.arrays import Images, IntArray, StoredImages
from art_defenses_ext.base.checkpoint import fingerprint
from art_defenses_ext.estimator.bridged import logits_behind
from art_defenses_ext.estimator.pipeline import Pipeline, own_name
from art_defenses_ext.estimator.rebuild import model_dtype
from art_defenses_ext.estimator.rejecting import rejects
from art_defenses_ext.estimator.wrap import AdaptedNetwork
from art_defenses_ext.evaluation.records.description import RunDescription, Settings
from art_defenses_ext.evaluation.suite.attacker import Attacker
from art_defenses_ext.evaluation.suite.predictions import nb_labels
from art_defenses_ext.gradients.modes import Defence, find_defences
from art_defenses_ext.gradients.numpy_bridge import Postprocessed
from art_defenses_ext.gradients.surrogate import plain_params

COMMAND = ["art-defenses", "evaluate"]
"""The words with which a command of an evaluation begins."""

PACKAGES = ("art-defenses-ext", "adversarial-robustness-toolbox", "torch", "torchvision", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


_version = cache(version)  # each call parses a file


def describe_run(
    attacker: Attacker, undefended: PyTorchClassifier | None, settings: Settings, x: Images, labels: IntArray
) -> RunDescription:
    """Describe a run that is about to start."""
    classifier = attacker.classifier
    defences = find_defences(classifier)
    preprocessors = classifier.preprocessing_defences or []
    return RunDescription(
        settings=settings,
        defences=[{"name": defence.name} | defence.describe() for defence in defences]
        + _foreign(classifier)
        + _postprocessors(classifier),
        tunings=[defence.tuning for defence in defences if defence.tuning is not None],
        trainings=[training for defence in defences for training in defence.trainings],
        modes=list(attacker.modes),
        votes=attacker.votes,
        draws=attacker.draws,
        model=_network_name(classifier),
        model_sha256=fingerprint(classifier.model),
        pipeline_sha256=_pipeline_sha256(classifier),
        undefended_sha256=None if undefended is None else _pipeline_sha256(undefended),
        foreign=[
            _named(preprocessor)
            for preprocessor in preprocessors
            if preprocessor.apply_predict and not isinstance(preprocessor, Defence)
        ],
        training_alone=[own_name(preprocessor) for preprocessor in preprocessors if not preprocessor.apply_predict],
        labels=nb_labels(classifier),
        clip_values=_clip_values(classifier),
        random=attacker.random,
        withheld=list(attacker.withheld),
        data_sha256=_sha256([x, labels]),
        device=_device_name(classifier.device),
        threads=torch.get_num_threads(),
        command=command_of_process(),
        versions=versions(),
        rejects=rejects(classifier),
        batch_dependent=attacker.batch_dependent,
        outputs=next((part.remark for part in classifier.model.modules() if isinstance(part, AdaptedNetwork)), ""),
        dtype=str(model_dtype(classifier.model) or torch.float32).removeprefix("torch."),
        input_shape=list(classifier.input_shape),
    )


def command_of_process() -> str:
    """Return the command of this process, as it can be typed again."""
    path = Path(sys.argv[0])
    of_package = (path.parent.name, path.name) == (__package__.partition(".")[0], "__main__.py")  # python -m
    return shlex.join([COMMAND[0] if of_package else path.name, *sys.argv[1:]])


def command_of_whole(run: RunDescription) -> str:
    """Return the command that makes a whole run, from the recorded one, which may have made a shard of it.

    The command of a run made in Python is that of a user's program, and stays as it is.
    """
    try:
        words = shlex.split(run.command)
    except ValueError:  # an unclosed quotation
        return run.command
    first, rest = words[:1], words[1:]
    whole = without_options([COMMAND[0] if first == ["__main__.py"] else word for word in first] + rest, ["--shard"])
    return run.command if whole == words or whole[:2] != COMMAND or not run.options else shlex.join(whole)


def without_options(words: Sequence[str], switches: Collection[str]) -> list[str]:
    """Return the words of a command without these options, each of which takes a value."""
    kept: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word in switches:
            next(remaining, None)
        elif word.partition("=")[0] not in switches:
            kept.append(word)
    return kept


def _clip_values(classifier: PyTorchClassifier) -> tuple[float, float] | None:
    """Return the clip values; the lowest and the highest where they differ between channels."""
    if classifier.clip_values is None:
        return None
    low, high = classifier.clip_values
    return float(np.min(low)), float(np.max(high))


def _network_name(classifier: PyTorchClassifier) -> str:
    """Return the class name of the network inside all defences."""
    model = logits_behind(classifier).model
    model = model.pipeline.model if rejects(classifier) else model
    model = getattr(model, "network", model)
    return type(model.network if isinstance(model, AdaptedNetwork) else model).__name__


def _pipeline_sha256(classifier: PyTorchClassifier) -> str:
    """Return the hash of all tensors that an image passes, including ART's mean and standard deviation."""
    whole = Pipeline(classifier)
    tensors = dict(whole.named_parameters()) | dict(whole.named_buffers())
    for number, network in enumerate(_other_networks(classifier)):
        tensors |= {f"looked into {number}.{name}": tensor for name, tensor in network.state_dict().items()}
    return fingerprint(tensors)


def _other_networks(classifier: PyTorchClassifier) -> list[nn.Module]:
    """Return the networks that the defences use, other than the classifier's own."""
    networks = [getattr(defence, "model", None) for defence in find_defences(classifier)]
    return [network for network in networks if isinstance(network, nn.Module) and network is not classifier.model]


def _named(preprocessor: Any) -> str:
    """Return the class and the plain parameters of an ART preprocessor."""
    plain = (f"{name}={value!r}" for name, value in plain_params(preprocessor).items())
    return f"{type(preprocessor).__name__}({', '.join(plain)})"


def _postprocessors(classifier: PyTorchClassifier) -> list[dict[str, Any]]:
    """Return ART's postprocessors, which change the classifier's predictions."""
    model = classifier.model
    steps = model.steps if isinstance(model, Postprocessed) else []
    return [{"name": type(step).__name__} | plain_params(step) for step in steps]


def _foreign(classifier: PyTorchClassifier) -> list[dict[str, Any]]:
    """Return the detector, unless it is a defence of this package."""
    if not rejects(classifier) or find_defences(classifier.model.detection):
        return []
    return [{"name": "detector", "network": type(classifier.model.detection.model).__name__}]


def _sha256(arrays: Sequence[Images | IntArray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        if isinstance(array, StoredImages):
            digest.update(array.fingerprint().encode())
            continue
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}"
