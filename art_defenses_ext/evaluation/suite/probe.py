"""A test of networks and attacks on two images before any work, so that errors appear at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from art.estimators.estimator import LossGradientsMixin

from art_defenses_ext.attack.base import TensorAttack
from art_defenses_ext.attack.staged_pgd import StagedPGD
from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.validation import one_line
from art_defenses_ext.estimator.defend import as_module
from art_defenses_ext.evaluation.suite.plan import AttackRun
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.gradients.modes import gradient_mode

LEAST: dict[str, Any] = {"max_iter": 1, "max_queries": 2, "nb_draws": 1, "nb_runs": 1, "nb_starts": 1, "eot": 1}
"""The least effort of this package's attacks, by parameter."""

Target = Callable[[AttackRun], PyTorchClassifier | None]
"""The classifier that a run of the plan is made on; None if it does not run."""


def probe_attacks(
    plan: Sequence[AttackRun], target: Target, x: FloatArray, labels: IntArray, announce: Callable[[str], None]
) -> None:
    """Build each attack of a plan, and run this package's attacks with the least effort on two images.

    For ART's attacks one gradient of ART's loss is computed. Other attacks are only built, since their duration is
    unknown. Gradient estimation is not tested, since it costs hundreds of passes.

    Args:
        plan: the runs of the attacks.
        target: the classifier of each run.
        x: images (n, ...).
        labels: true classes (n,).
        announce: called with the name of each attack.

    Raises:
        InputError: that names the first attack that cannot run.
    """
    firsts = {run.spec.name: run for run in reversed(plan)}
    for run in reversed(firsts.values()):
        announce(run.spec.name)
        classifier = target(run)
        if classifier is None:
            continue
        try:
            _try(run, classifier, x, labels)
        except Exception as error:  # an attack or its build function may raise any type
            raise InputError(
                f"attacks holds {run.spec.name!r}, which cannot attack images {tuple(x.shape[1:])} of this classifier "
                f"({one_line(error)}); an attack that can, or a list of attacks without it, was expected"
            ) from error


def _try(run: AttackRun, classifier: PyTorchClassifier, x: FloatArray, labels: IntArray) -> None:
    attack = run.spec.attack_on(classifier, run.threat, 0)
    if not callable(getattr(attack, "generate", None)):
        raise InputError(f"build returned a {type(attack).__name__}; an attack of ART's kind was expected")
    if run.spec.crafted_on == "smoothed":
        return
    one_hot = np.eye(classifier.nb_classes, dtype=np.float32)[labels]
    mode = gradient_mode(classifier, run.mode) if run.spec.crafted_on == "defended" else nullcontext()
    with mode:
        if isinstance(attack, TensorAttack):
            with_least_effort(attack).generate(x, None if run.spec.labels == "predicted" else one_hot)
        elif (
            isinstance(attack, EvasionAttack)
            and LossGradientsMixin in attack.estimator_requirements
            and type(attack).__module__.startswith("art.")
        ):
            classifier.loss_gradient(x, one_hot)


def with_least_effort(attack: TensorAttack) -> TensorAttack:
    """Return the attack with the smallest numbers of steps, starts and queries."""
    brief = copy(attack)
    for name, least in LEAST.items():
        if name in attack.attack_params:
            setattr(brief, name, least)
    if "factors" in attack.attack_params:
        brief.factors = attack.factors[:1]
    if isinstance(attack, StagedPGD):
        brief.stages = tuple(replace(stage, max_iter=1, nb_runs=1) for stage in attack.stages)
    return brief


def check_graph(
    specs: Sequence[AttackSpec], classifier: PyTorchClassifier, modes: Sequence[str], x: FloatArray
) -> None:
    """Refuse attacks that all follow a gradient if no gradient exists in any mode.

    If other attacks run too, such as an attack by queries, the evaluation is possible, and the checks report the
    missing gradient.

    Raises:
        InputError: if no attack could change an image.
    """
    by_gradient = [
        spec for spec in specs if spec.crafted_on == "defended" and spec.kind in ("white-box", "single step")
    ]
    if len(by_gradient) < len(specs) or any(has_gradient(classifier, mode, x) for mode in modes):
        return
    raise InputError(
        f"attacks holds {by_gradient[0].name!r}, which follows a gradient, and no graph leads from the classifier's "
        "logits back to the images; a network that computes under autograd, or attacks that need no gradient, were "
        "expected"
    )


def has_gradient(classifier: PyTorchClassifier, mode: str, x: FloatArray) -> bool:
    """Return whether a graph leads from the logits back to the images (n, ...) in a gradient mode."""
    images = torch.tensor(x, device=classifier.device, requires_grad=True)
    with torch.enable_grad(), gradient_mode(classifier, mode):
        logits = as_module(classifier)(images)
        if not logits.requires_grad:
            return False
        try:
            return torch.autograd.grad(logits.sum(), images, allow_unused=True)[0] is not None
        except RuntimeError:  # an operation without a derivative, which the attack reports
            return True
