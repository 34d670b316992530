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
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from art_defenses_ext.attack.ball import ClipValues, into_range
from art_defenses_ext.attack.base import TensorAttack
from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.estimator.defend import as_module
from art_defenses_ext.estimator.paired import PairedNetwork
from art_defenses_ext.estimator.pipeline import Step
from art_defenses_ext.estimator.rebuild import rebuild
from art_defenses_ext.evaluation.records.proportion import Proportion
from art_defenses_ext.evaluation.suite.attacker import smoothed
from art_defenses_ext.evaluation.suite.seeding import derived_seed, seeded
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.gradients.modes import gradient_mode

INNER_POINTS = 999
"""Points inside the ball, of the image's class. **Convention**: with the surface point a thousand."""

INNER_RADIUS = 0.95
"""The radius of the ball that these are drawn from, in units of eps. **Convention**."""

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
    at_once: int = 256,
    announce: Callable[[str], None] = lambda _: None,
) -> Binarization | None:
    """Try attacks on classifiers with an example that is known to exist, one for each image.

    Args:
        classifier: what the attacker differentiates: the defended classifier, averaged if it is random.
        x: images ``(n, *input_shape)``.
        threat: the ball.
        tries: the attacks to try in turn; one success is enough, as in the evaluation.
        seed: of points and attacks.
        at_once: images attacked at a time.
        announce: is told twice for each image what is done to it next.

    Returns:
        The outcome; None if the network has no last linear layer to replace, or if no classifier could be built.
    """
    layer = last_linear(classifier, x[:1])
    if layer is None:
        return None
    seeds = [derived_seed(seed, "binarization", index) for index in range(len(x))]
    tried = []
    for image, own_seed in zip(x, seeds, strict=True):
        announce("an example is planted")
        tried.append(_head(classifier, layer, image, threat, own_seed))
    heads = {index: head for index, head in enumerate(tried) if head is not None}
    rows = list(heads)
    broken: list[bool] = []
    chance: list[bool] = []
    for start in range(0, len(rows), at_once):
        chosen = rows[start : start + at_once]
        binary = _binary(classifier, layer, [heads[row] for row in chosen])
        broken += _broken(binary, x[chosen], threat, tries, seeds[chosen[0]])
        for i, row in enumerate(chosen):
            announce("attacked")
            chance.append(_breaks_by_chance(binary, i, x[row], threat, seeds[row]))
    built = Proportion(len(rows), len(x))
    return Binarization(Proportion.of(broken), Proportion.of(chance), built) if rows else None


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


Head = tuple[FloatArray, float]
"""Weights (F,) and bias of a score of the features that a network hands to its last layer."""


class _Binary(PairedNetwork):
    """For each head two logits, 0 and its score."""

    weights: Tensor
    biases: Tensor

    def __init__(self, module: nn.Module, layer: nn.Linear, weights: Tensor, biases: Tensor) -> None:
        """``weights`` (F, B) and ``biases`` (B,)."""
        super().__init__()
        self.features = _Features(module, layer)
        self.register_buffer("weights", weights)
        self.register_buffer("biases", biases)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.features(x).to(self.weights.dtype) @ self.weights + self.biases  # (n, B)
        return torch.stack([torch.zeros_like(scores), scores], dim=2).flatten(1)


class _Features(nn.Module):
    """What a network hands to its last layer, the mean over the calls if it averages several passes (n, F)."""

    def __init__(self, module: nn.Module, layer: nn.Linear) -> None:
        super().__init__()
        self.module = module
        self._layer = [layer]  # in a list, so that it is no child twice

    @property
    def layer(self) -> nn.Linear:
        """The last layer."""
        return self._layer[0]

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        preprocessing: list[nn.Module] = []

        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if not preprocessing:  # a defence that looks into the network runs it, too
                seen.append(inputs[0])

        handles = [self.layer.register_forward_pre_hook(note)]
        for step in self.module.modules():
            if isinstance(step, Step):
                handles.append(step.register_forward_pre_hook(lambda step, _: preprocessing.append(step)))
                handles.append(step.register_forward_hook(lambda *_: preprocessing.clear(), always_call=True))
        try:
            logits = self.module(x)
        finally:
            for handle in handles:
                handle.remove()
        features: Tensor = _WithLogits.apply(torch.stack(seen).mean(dim=0), logits)
        return features


class _WithLogits(torch.autograd.Function):
    """Features, whose gradient also comes by the logits, as zero: where passes are counted, they are seen."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, torch.zeros_like(ctx.saved_tensors[0])


def _head(classifier: PyTorchClassifier, layer: nn.Linear, image: FloatArray, threat: Threat, seed: int) -> Head | None:
    """A score above zero at a point on the surface of the image's ball, and at no point that is drawn inside."""
    generator = torch.Generator(classifier.device).manual_seed(seed)
    clean = torch.tensor(image, device=classifier.device)[None]
    inside = clean.expand(INNER_POINTS, *image.shape)
    inside = inside + threat.at(INNER_RADIUS * threat.eps).random_inside(inside, generator)
    surface = _on_surface(clean, threat, classifier.clip_values, generator)
    points = torch.cat([surface, into_range(torch.cat([clean, inside]), classifier.clip_values)])
    extract = _Features(as_module(classifier), layer)
    with seeded(seed), torch.no_grad():
        features = torch.cat([extract(batch) for batch in points.split(256)]).double()
    return _separate(features.cpu().numpy())


def _binary(classifier: PyTorchClassifier, layer: nn.Linear, heads: Sequence[Head]) -> PyTorchClassifier:
    """Return the classifier with so many two-class problems in place of its last layer."""
    precise = torch.promote_types(next(layer.parameters()).dtype, torch.float32)  # half would overflow
    like = {"device": classifier.device, "dtype": precise}
    weights = torch.tensor(np.stack([weight for weight, _ in heads], axis=1), **like)
    model = _Binary(as_module(classifier), layer, weights, torch.tensor([bias for _, bias in heads], **like))
    return rebuild(
        classifier, model=model.eval(), nb_classes=2 * len(heads), preprocessing_defences=None, preprocessing=(0.0, 1.0)
    )


HALVINGS = 100
"""The number of halvings of the interval of a factor, until float64 does not tell its ends apart."""


def _on_surface(clean: Tensor, threat: Threat, clip_values: ClipValues, generator: torch.Generator) -> Tensor:
    """A point of the clip range on the surface of the ball around an image (1, ...), a corner if the ball is a cube.

    In a random direction, where the clip range reaches so far there; else towards its corner that is furthest from the
    image, and in that corner if it lies inside the ball.
    """
    way = threat.random_extreme(clean, generator).double().cpu()
    start = clean.double().cpu()
    change = way if clip_values is None else _within_range(start, way, threat, clip_values)
    point = into_range((start + change).float(), clip_values).numpy()
    return torch.from_numpy(threat.moved_inside(clean.cpu().numpy(), point, clip_values)).to(clean)


def _within_range(start: Tensor, way: Tensor, threat: Threat, clip_values: tuple[Any, Any]) -> Tensor:
    """A change of size eps, or the largest that there is, along ``way`` (1, ...) and the walls of the clip range."""
    low, high = (torch.as_tensor(np.asarray(end, dtype=np.float64)) for end in clip_values)
    above, below = high - start, start - low
    room, length = torch.where(way > 0, above, below), way.abs()
    if float(threat.size(room)) < threat.eps:
        way, room = torch.where(above >= below, length, -length), torch.maximum(above, below)
    factor = 1.0
    if not threat.separable and bool((length > room).any()):
        shortest, factor = 0.0, 2 * float((room / length).max())
        for _ in range(HALVINGS):
            middle = (shortest + factor) / 2
            reaches = float(threat.size(torch.minimum(middle * length, room))) >= threat.eps
            shortest, factor = (shortest, middle) if reaches else (middle, factor)
    return way.sign() * torch.minimum(factor * length, room)


def _separate(features: FloatArray) -> Head | None:
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


def _broken(binary: PyTorchClassifier, x: FloatArray, threat: Threat, tries: Sequence[Try], seed: int) -> list[bool]:
    """Return whether some attack finds an example of class 1 of its problem in the ball of each image (B, ...)."""
    broken = np.zeros(len(x), dtype=bool)
    for attempt in tries:
        left = np.flatnonzero(~broken)
        if len(left):
            with seeded(seed):
                broken[left] = _breaks(binary, x[left], left, threat, attempt, seed)
    return broken.tolist()


def _breaks(
    binary: PyTorchClassifier, x: FloatArray, problems: IntArray, threat: Threat, attempt: Try, seed: int
) -> npt.NDArray[np.bool_]:
    """Return whether an attack turns class 0 of images (n, ...), each of its problem (n,), into 1 inside the ball."""
    build, mode = attempt
    attack = build(smoothed(binary, threat) if mode is None else binary, threat, seed)
    if not isinstance(attack, TensorAttack) and binary.nb_classes > 2:  # it would confuse the problems
        alone = [_only(binary, problem) for problem in problems]
        broken = [_breaks(alone[i], x[i : i + 1], np.zeros(1, np.int64), threat, attempt, seed) for i in range(len(x))]
        return np.concatenate(broken)
    with nullcontext() if mode is None else gradient_mode(binary, mode):
        adversarial = attack.generate(x, np.eye(binary.nb_classes, dtype=np.float32)[2 * problems])
    inside = np.array([threat.allows(size) for size in threat.sizes(x, adversarial, binary.clip_values)])
    scores = _scores(binary, torch.tensor(adversarial, device=binary.device))
    return inside & (scores[np.arange(len(x)), problems] > 0)


def _only(binary: PyTorchClassifier, problem: int) -> PyTorchClassifier:
    """A single one of the problems."""
    network: _Binary = binary.model
    chosen = slice(problem, problem + 1)
    weights, biases = network.weights[:, chosen], network.biases[chosen]
    model = _Binary(network.features.module, network.features.layer, weights, biases)
    return rebuild(binary, model=model.eval(), nb_classes=2)


def _breaks_by_chance(binary: PyTorchClassifier, problem: int, image: FloatArray, threat: Threat, seed: int) -> bool:
    generator = torch.Generator(binary.device).manual_seed(seed + 1)
    clean = torch.tensor(image, device=binary.device).expand(RANDOM_DRAWS, *image.shape)
    drawn = clean + threat.random_inside(clean, generator)
    with seeded(seed):
        return bool((_scores(binary, into_range(drawn, binary.clip_values))[:, problem] > 0).any())


def _scores(binary: PyTorchClassifier, images: Tensor) -> FloatArray:
    """Return the scores (n, B) of all problems."""
    with torch.no_grad():
        scores: FloatArray = as_module(binary)(images)[:, 1::2].float().cpu().numpy()
    return scores
