"""Would this attack have found an example that is known to exist? The binarization test.

Source: Zimmermann, Brendel, Tramer, Carlini 2022, "Increasing Confidence in Adversarial Robustness Evaluations"
(arXiv:2206.13991): the network's last layer is replaced by a linear classifier that tells one point on the surface of
an image's ball from many inside it. The point on the surface is an adversarial example of that classifier, so an
attack that finds none is too weak to say anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from art_defenses_ext.attack.norms import into_range, random_in_ball, random_on_sphere
from art_defenses_ext.estimator.defend import as_module
from art_defenses_ext.evaluation.attacker import smoothed
from art_defenses_ext.evaluation.proportion import Proportion
from art_defenses_ext.evaluation.seeding import derived_seed, seeded
from art_defenses_ext.evaluation.threats import Threat
from art_defenses_ext.modes import gradient_mode
from art_defenses_ext.pipeline import Step
from art_defenses_ext.rebuild import rebuild
from art_defenses_ext.validation import FloatArray

INNER_POINTS = 999
"""Points inside the ball, of the image's class. **Convention**: with the surface point a thousand."""

INNER_RADIUS = 0.95
"""Of the ball that these are drawn from, in units of eps. **Convention**."""

CLOSENESS = 0.999
"""Where the decision boundary lies between the inner points' largest score (0) and the surface point's (1): the nearer
to 1, the fewer other examples there are. **Convention**."""

RANDOM_DRAWS = 200
"""Uniform draws from the ball that must not find an example: else the test would be too easy."""


@dataclass(frozen=True)
class Binarization:
    """The outcome of the test.

    Attributes:
        found: of the images for which a classifier could be built, how many the attacks found an example for.
        by_chance: how many uniform draws found one for.
        built: the share of images for which the point on the surface could be told from those inside.
    """

    found: Proportion
    by_chance: Proportion
    built: Proportion


Try = tuple[Callable[[PyTorchClassifier, Threat, int], EvasionAttack], str | None]
"""What makes an attack, as in an ``AttackSpec``, and the gradient mode; None for the smoothed network's gradient."""


def binarization_test(
    classifier: PyTorchClassifier,
    x: FloatArray,
    threat: Threat,
    tries: Sequence[Try],
    seed: int,
) -> Binarization | None:
    """Try attacks on classifiers with an example that is known to exist, one for each image.

    Args:
        classifier: what the attacker differentiates: the defended classifier, averaged if it is random.
        x: images ``(n, *input_shape)``.
        threat: the ball.
        tries: the attacks to try in turn; one success is enough, as in the evaluation.
        seed: of points and attacks.

    Returns:
        The outcome; None if the network has no last linear layer to replace, or if no classifier could be built.
    """
    layer = last_linear(classifier, x[:1])
    if layer is None:
        return None
    found, chance, built = [], [], []
    for index, image in enumerate(x):
        one_seed = derived_seed(seed, "binarization", index)
        with seeded(one_seed):
            binary = _binary_classifier(classifier, layer, image, threat, one_seed)
            built.append(binary is not None)
            if binary is None:
                continue
            found.append(any(_breaks(binary, image, threat, one, one_seed) for one in tries))
            chance.append(_breaks_by_chance(binary, image, threat, one_seed))
    return Binarization(Proportion.of(found), Proportion.of(chance), Proportion.of(built)) if found else None


def last_linear(classifier: PyTorchClassifier, x: FloatArray) -> nn.Linear | None:
    """The linear layer that makes the logits, if one does: its output for images ``x`` (n, ...) is the network's."""
    module = as_module(classifier)
    seen: list[tuple[nn.Linear, Tensor]] = []
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(lambda layer, _, output: seen.append((layer, output))) for layer in layers]
    try:
        with torch.no_grad():
            logits = module(torch.tensor(x, device=classifier.device))
    finally:
        for handle in handles:
            handle.remove()
    if not seen or seen[-1][1].shape != logits.shape:
        return None
    return seen[-1][0]


class _Binary(nn.Module):
    """Two logits, 0 and a linear score of the features that the network hands to its last layer."""

    def __init__(self, module: nn.Module, layer: nn.Linear, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.features = _Features(module, layer)
        self.register_buffer("weight", weight)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        score = self.features(x) @ self.weight + self.bias
        return torch.stack([torch.zeros_like(score), score], dim=1)


class _Features(nn.Module):
    """What a network hands to its last layer, the mean over the calls if it averages several passes (n, F)."""

    def __init__(self, module: nn.Module, layer: nn.Linear) -> None:
        super().__init__()
        self.module = module
        self._layer = [layer]  # in a list, so that it is no child twice

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        preprocessing: list[nn.Module] = []

        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if not preprocessing:  # a defence that looks into the network runs it, too
                seen.append(inputs[0])

        handles = [self._layer[0].register_forward_pre_hook(note)]
        for step in self.module.modules():
            if isinstance(step, Step):
                handles.append(step.register_forward_pre_hook(lambda step, _: preprocessing.append(step)))
                handles.append(step.register_forward_hook(lambda *_: preprocessing.clear(), always_call=True))
        try:
            self.module(x)
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(seen).mean(dim=0)


def _binary_classifier(
    classifier: PyTorchClassifier, layer: nn.Linear, image: FloatArray, threat: Threat, seed: int
) -> PyTorchClassifier | None:
    """A classifier that says 1 of a point on the surface of the image's ball and 0 of all points drawn inside."""
    module, device = as_module(classifier), classifier.device
    generator = torch.Generator(device).manual_seed(seed)
    clean = torch.tensor(image, device=device)[None]
    inside = clean.expand(INNER_POINTS, *image.shape)
    inside = inside + random_in_ball(inside, INNER_RADIUS * threat.eps, threat.norm, generator)
    surface = _on_surface(clean, threat, generator)
    points = into_range(torch.cat([surface, clean, inside]), classifier.clip_values)
    extract = _Features(module, layer)
    with torch.no_grad():
        features = torch.cat([extract(batch) for batch in points.split(256)]).double()
    fitted = _separate(features.cpu().numpy())
    if fitted is None:
        return None
    weight, bias = fitted
    dtype = next(layer.parameters()).dtype
    binary = _Binary(module, layer, torch.tensor(weight, device=device, dtype=dtype), bias)
    return rebuild(classifier, model=binary.eval(), nb_classes=2, preprocessing_defences=None, preprocessing=(0.0, 1.0))


def _on_surface(clean: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
    """A corner of the cube for linf, a point of the sphere for l2."""
    point = random_on_sphere(clean, threat.eps, threat.norm, generator)
    return clean + (threat.eps * point.sign() if threat.norm == np.inf else point)


def _separate(features: FloatArray) -> tuple[FloatArray, float] | None:
    """Weights (F,) and bias of a score that is above zero for the first row of ``features`` alone; None if none is."""
    spread = features.std(axis=0)
    centre, scale = features.mean(axis=0), np.where(spread > 0, spread, 1.0)
    scaled = (features - centre) / scale
    labels = np.arange(len(scaled)) == 0
    model = LogisticRegression(C=1e5, max_iter=1000, class_weight="balanced").fit(scaled, labels)
    weight = model.coef_[0] / scale
    scores = (features - centre) @ weight
    gap = scores[0] - scores[1:].max()
    if gap <= 0:
        return None
    # Scores become 0 for the nearest inner point and 1 for the surface point, then the boundary moves to CLOSENESS.
    return weight / gap, float(-centre @ weight / gap - scores[1:].max() / gap - CLOSENESS)


def _breaks(binary: PyTorchClassifier, image: FloatArray, threat: Threat, one: Try, seed: int) -> bool:
    """Whether the attack turns class 0 into 1 inside the ball, starting from the clean image."""
    build, mode = one
    label = np.array([[1.0, 0.0]], dtype=np.float32)
    target = smoothed(binary, threat) if mode is None else binary
    with nullcontext() if mode is None else gradient_mode(binary, mode):
        adversarial = build(target, threat, seed).generate(image[None], label)
    inside = threat.allows(float(np.linalg.norm((adversarial - image[None]).ravel(), ord=threat.norm)))
    return inside and _says_one(binary, torch.tensor(adversarial, device=binary.device))


def _breaks_by_chance(binary: PyTorchClassifier, image: FloatArray, threat: Threat, seed: int) -> bool:
    generator = torch.Generator(binary.device).manual_seed(seed + 1)
    clean = torch.tensor(image, device=binary.device).expand(RANDOM_DRAWS, *image.shape)
    drawn = clean + random_in_ball(clean, threat.eps, threat.norm, generator)
    return _says_one(binary, into_range(drawn, binary.clip_values))


def _says_one(binary: PyTorchClassifier, images: Tensor) -> bool:
    with torch.no_grad():
        return bool((as_module(binary)(images).argmax(dim=1) == 1).any())
