"""The description of a run before it starts: versions, settings, data and model."""

from __future__ import annotations

import hashlib
import platform
import shlex
import sys
from collections.abc import Sequence
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
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        versions=versions(),
        rejects=rejects(classifier),
        batch_dependent=attacker.batch_dependent,
        outputs=next((part.remark for part in classifier.model.modules() if isinstance(part, AdaptedNetwork)), ""),
        dtype=str(model_dtype(classifier.model) or torch.float32).removeprefix("torch."),
        input_shape=list(classifier.input_shape),
    )


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
