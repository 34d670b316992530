"""The attacks of defences' own papers, built from the defences' declarations, in the units of their steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
    ProjectedGradientDescentPyTorch,
)
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.attack.ball import norms_of_art
from art_defenses_ext.attack.deep_fool import DeepFoolLp
from art_defenses_ext.attack.iterative_fgsm import IterativeFGSM
from art_defenses_ext.attribution.first_layer import normalisation_of
from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.layout import has_channels_behind, shape_with_channels_in_front
from art_defenses_ext.base.paper_attack import PaperAttack
from art_defenses_ext.defence.face import DefenceFace
from art_defenses_ext.estimator.pipeline import Pipeline
from art_defenses_ext.estimator.rebuild import rebuild, undefended
from art_defenses_ext.estimator.rejecting import rejects
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.gradients.modes import Defence, find_defences


def fgsm(classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
    """Return FGSM, a single step of the threat's size."""
    return IterativeFGSM(classifier, threat.eps, 1, norm=threat.norm)


def _pgd(classifier: PyTorchClassifier, threat: Threat, seed: int, *, eps_step: float, **options: Any) -> EvasionAttack:
    """Return ART's PGD with steps of a share of eps."""
    step = eps_step * threat.eps
    return ProjectedGradientDescentPyTorch(classifier, threat.norm, threat.eps, eps_step=step, verbose=False, **options)


def _pgd_in_pixels(
    classifier: PyTorchClassifier, threat: Threat, seed: int, *, step: float, **options: Any
) -> EvasionAttack:
    """Return ART's PGD with steps of a share of the clip range, for any eps.

    **Convention** for other norms, which are not in the paper: the same share of eps as at its eps of 0.1.
    """
    eps_step = step * clip_width(classifier) if threat.separable else step / 0.1 * threat.eps
    return ProjectedGradientDescentPyTorch(
        classifier, threat.norm, threat.eps, eps_step=eps_step, verbose=False, **options
    )


def _iterative_fgsm(
    classifier: PyTorchClassifier, threat: Threat, seed: int, *, step: float, iterations: dict[str, int]
) -> EvasionAttack:
    """Return iterated FGSM in the units of the normalised input, for any threat."""
    scale = normalisation_scale(classifier)
    return IterativeFGSM(classifier, step, iterations[_colours(classifier)], scale=scale)


def _deep_fool(
    classifier: PyTorchClassifier, threat: Threat, seed: int, *, norm: str, iterations: dict[str, int]
) -> EvasionAttack:
    """Return DeepFool in the units of the normalised input, for any threat."""
    return DeepFoolLp(classifier, norm, iterations[_colours(classifier)], scale=normalisation_scale(classifier))


def _colours(classifier: PyTorchClassifier) -> str:
    return "grey" if shape_with_channels_in_front(classifier)[0] == 1 else "colour"


ATTACKS: dict[str, Callable[..., EvasionAttack]] = {
    "fgsm": fgsm,
    "pgd": _pgd,
    "pgd_in_pixels": _pgd_in_pixels,
    "iterative_fgsm": _iterative_fgsm,
    "deep_fool": _deep_fool,
}
"""The attacks by their names in :class:`.PaperAttack`: (classifier, threat, seed, parameters) -> attack."""

OF_ART = ("pgd", "pgd_in_pixels")
"""Those that are ART's own, which run in norms that ART knows."""


def paper_specs(defence: Defence | type[Defence | DefenceFace]) -> tuple[AttackSpec, ...]:
    """Return the attacks of a defence's paper; they run on all samples.

    Raises:
        InputError: for a defence that names an unknown attack.
    """
    return tuple(map(_spec_of, defence.paper_attacks()))


def specs_of_papers(classifier: PyTorchClassifier) -> tuple[AttackSpec, ...]:
    """Return the papers' attacks of a classifier's defences; a name that two use gets the defence's name appended."""
    defences = {defence.name: defence for defence in find_defences(classifier)}
    named = [(name, spec) for name, defence in defences.items() for spec in paper_specs(defence)]
    uses = Counter(spec.name for _, spec in named)
    return tuple(spec if uses[spec.name] == 1 else replace(spec, name=f"{spec.name}, {name}") for name, spec in named)


@dataclass(frozen=True)
class _Build:
    """The builder of a declared attack; builders of the same attack are equal."""

    attack: PaperAttack

    def __call__(self, classifier: PyTorchClassifier, threat: Threat, seed: int) -> EvasionAttack:
        return ATTACKS[self.attack.attack](classifier, threat, seed, **self.attack.parameters)


def _spec_of(attack: PaperAttack) -> AttackSpec:
    if attack.attack not in ATTACKS:
        raise InputError(f"attack is {attack.attack!r}; one of {', '.join(ATTACKS)} was expected")
    where = "gray-box, made on the undefended model" if attack.crafted_on == "undefended" else "white-box"
    return AttackSpec(
        attack.name,
        _Build(attack),
        f"the paper's, {where}",
        source="paper",
        crafted_on=attack.crafted_on,
        samples="all",
        bounded=attack.bounded,
        labels=attack.labels,
        norms=norms_of_art() if attack.attack in OF_ART else None,
    )


def normalisation_scale(classifier: PyTorchClassifier) -> Any:
    """Return the pixel values per unit of the network's normalised input: its deviation, in the shape of an image.

    **Convention**: without a normalisation, it is the width of the clip range.
    """
    inner = undefended(classifier)
    if rejects(classifier) and inner is not None:  # the whole normalises inside its network
        classifier = inner
    std = np.asarray(getattr(classifier.preprocessing, "std", 1.0), dtype=np.float32)
    inner = _inner_std(classifier)
    if inner is not None:
        std = std.reshape(-1) * inner
    if np.allclose(std, 1, rtol=1e-3):
        return clip_width(classifier)
    return std.reshape(-1, 1, 1) if std.ndim == 1 and not has_channels_behind(classifier) else std


def clip_width(classifier: PyTorchClassifier) -> float:
    """Return the width of the clip range; 1 without clip values."""
    if classifier.clip_values is None:
        return 1.0
    low, high = classifier.clip_values
    return float(np.max(np.asarray(high, dtype=np.float64) - low))


def _inner_std(classifier: PyTorchClassifier) -> FloatArray | None:
    """Return the deviation (C,) by which the network itself divides its input; None if it does not."""
    if len(classifier.input_shape) != 3 or classifier.clip_values is None:
        return None
    standardised = Pipeline(rebuild(classifier, preprocessing_defences=None, postprocessing_defences=None))
    shape, device = (1, *classifier.input_shape), classifier.device
    low, high = (
        standardised.before_model(torch.full(shape, float(limit(end)), device=device))[0]
        for limit, end in zip((np.min, np.max), classifier.clip_values, strict=True)
    )
    inner = normalisation_of(classifier.model, low, high, 2 if has_channels_behind(classifier) else 0)
    return None if inner is None else np.abs(inner.std.cpu().numpy())
