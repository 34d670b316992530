"""The binarization test: whether the attacks find an adversarial example that is known to exist.

The network's last layer is replaced by a linear classifier that separates one point on the surface of an image's ball
from many points inside the ball. The point on the surface is an adversarial example of that classifier, so an attack
that finds none is too weak.

Source: Zimmermann, Brendel, Tramer, Carlini 2022, "Increasing Confidence in Adversarial Robustness Evaluations"
(arXiv:2206.13991).
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
from art_defenses_ext.base.validation import within_clip_values
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
"""Number of points inside the ball, of the image's class. **Convention**: a thousand points with the surface point."""

INNER_RADIUS = 0.95
"""Radius of the ball from which these points are drawn, in units of eps. **Convention**."""

CLOSENESS = 0.999
"""Position of the decision boundary between the inner points' largest score (0) and the surface point's (1). The closer
to 1, the fewer other adversarial examples exist. **Convention**."""

RANDOM_DRAWS = 200
"""Number of uniform draws from the ball. If they find an example, the problem is too easy."""


@dataclass(frozen=True)
class Binarization:
    """The outcome of the test.

    Attributes:
        found: share of the images with a linear classifier for which the attacks found an example.
        by_chance: share of these images for which the uniform draws found an example.
        built: share of all images for which the point on the surface could be separated from those inside.
    """

    found: Proportion
    by_chance: Proportion
    built: Proportion


Try = tuple[Callable[[PyTorchClassifier, Threat, int], EvasionAttack], str | None]
"""The build function of an attack, as in an ``AttackSpec``, and the gradient mode; None for the estimated gradient."""


def binarization_test(
    classifier: PyTorchClassifier,
    x: FloatArray,
    threat: Threat,
    tries: Sequence[Try],
    seed: int,
    at_once: int = 256,
    announce: Callable[[str], None] = lambda _: None,
) -> Binarization | None:
    """Run attacks on linear classifiers with a planted adversarial example, one classifier per image.

    Args:
        classifier: the classifier that the attacker differentiates: the defended classifier, averaged if it is random.
        x: images ``(n, *input_shape)``.
        threat: the ball.
        tries: the attacks in turn; one success suffices, as in the evaluation.
        seed: seed of points and attacks.
        at_once: number of images per batch.
        announce: called with the next step, twice per image.

    Returns:
        The outcome; None if the network has no last linear layer, or if no classifier could be built.
    """
    layer = last_linear(classifier, x[:1])
    if layer is None:
        return None
    seeds = [derived_seed(seed, "binarization", index) for index in range(len(x))]
    heads: dict[int, Head] = {}
    for index, (image, own_seed) in enumerate(zip(x, seeds, strict=True)):
        announce("an example is planted")
        head = _head(classifier, layer, image, threat, own_seed)
        if head is not None:
            heads[index] = head
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
    """Return the linear layer whose output for images ``x`` (n, ...) is the logits; None if there is none."""
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
"""Weights (F,) and bias of a linear score of the inputs of a network's last layer."""


class _Binary(PairedNetwork):
    """A network with two logits for each head, 0 and its score."""

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
    """The inputs (n, F) of a network's last layer, averaged over its passes if it makes several."""

    def __init__(self, module: nn.Module, layer: nn.Linear) -> None:
        super().__init__()
        self.module = module
        self._layer = [layer]  # in a list, so that torch does not register it twice

    @property
    def layer(self) -> nn.Linear:
        """The last layer."""
        return self._layer[0]

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        preprocessing: list[nn.Module] = []

        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if not preprocessing:  # a defence that uses the network runs it as well
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
    """Features whose gradient also passes through the logits, as zero, so that backward passes are counted."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, torch.zeros_like(ctx.saved_tensors[0])


def _head(classifier: PyTorchClassifier, layer: nn.Linear, image: FloatArray, threat: Threat, seed: int) -> Head | None:
    """Return a score above zero at a point on the surface of the image's ball and at no point drawn inside it."""
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
    """Return the classifier with a two-class problem for each head in place of its last layer."""
    dtype = torch.promote_types(next(layer.parameters()).dtype, torch.float32)  # half would overflow
    options = {"device": classifier.device, "dtype": dtype}
    weights = torch.tensor(np.stack([weight for weight, _ in heads], axis=1), **options)
    model = _Binary(as_module(classifier), layer, weights, torch.tensor([bias for _, bias in heads], **options))
    return rebuild(
        classifier, model=model.eval(), nb_classes=2 * len(heads), preprocessing_defences=None, preprocessing=(0.0, 1.0)
    )


HALVINGS = 100
"""Number of bisections of the interval of a factor; after them its ends are equal in float64."""


def _on_surface(clean: Tensor, threat: Threat, clip_values: ClipValues, generator: torch.Generator) -> Tensor:
    """Return a point of the clip range on the surface of the ball around an image (1, ...), a corner of a cube.

    The direction is random if the clip range reaches the surface there. Otherwise it is that of the furthest corner of
    the clip range, which is the point itself if it lies inside the ball.
    """
    direction = threat.random_extreme(clean, generator).double().cpu()
    start = clean.double().cpu()
    change = direction if clip_values is None else _within_range(start, direction, threat, clip_values)
    point = into_range((start + change).float(), clip_values).numpy()
    return torch.from_numpy(threat.moved_inside(clean.cpu().numpy(), point, clip_values)).to(clean)


def _within_range(start: Tensor, direction: Tensor, threat: Threat, clip_values: tuple[Any, Any]) -> Tensor:
    """Return a change (1, ...) of size eps, or the largest possible, along a direction and the clip range's limits."""
    low, high = (torch.as_tensor(np.asarray(end, dtype=np.float64)) for end in clip_values)
    above, below = high - start, start - low
    room, length = torch.where(direction > 0, above, below), direction.abs()
    if float(threat.size(room)) < threat.eps:
        direction, room = torch.where(above >= below, length, -length), torch.maximum(above, below)
    factor = 1.0
    if not threat.separable and bool((length > room).any()):
        shortest, factor = 0.0, 2 * float((room / length).max())
        for _ in range(HALVINGS):
            middle = (shortest + factor) / 2
            reaches = float(threat.size(torch.minimum(middle * length, room))) >= threat.eps
            shortest, factor = (shortest, middle) if reaches else (middle, factor)
    return direction.sign() * torch.minimum(factor * length, room)


def _separate(features: FloatArray) -> Head | None:
    """Return weights (F,) and bias of a score above zero for the first row of ``features`` only; None if impossible."""
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
    # Scores are scaled to 0 for the nearest inner point and 1 for the surface point; the boundary lies at CLOSENESS.
    return weight / gap, float(-centre @ weight / gap - scores[1:].max() / gap - CLOSENESS)


def _broken(binary: PyTorchClassifier, x: FloatArray, threat: Threat, tries: Sequence[Try], seed: int) -> list[bool]:
    """Return for each image (B, ...) whether an attack finds an example of class 1 of its problem in the ball."""
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
    """Return for images (n, ...) whether an attack turns class 0 of their problems (n,) into class 1 in the ball."""
    build, mode = attempt
    attack = build(smoothed(binary, threat) if mode is None else binary, threat, seed)
    if not isinstance(attack, TensorAttack) and binary.nb_classes > 2:  # it would mix the classes of all problems
        single = [_select(binary, problem) for problem in problems]
        broken = [_breaks(single[i], x[i : i + 1], np.zeros(1, np.int64), threat, attempt, seed) for i in range(len(x))]
        return np.concatenate(broken)
    with nullcontext() if mode is None else gradient_mode(binary, mode):
        adversarial = attack.generate(x, np.eye(binary.nb_classes, dtype=np.float32)[2 * problems])
    adversarial, usable = within_clip_values(adversarial, binary.clip_values)
    inside = usable & np.array([threat.allows(size) for size in threat.sizes(x, adversarial, binary.clip_values)])
    scores = _scores(binary, torch.tensor(adversarial, device=binary.device))
    found: npt.NDArray[np.bool_] = inside & (scores[np.arange(len(x)), problems] > 0)
    return found


def _select(binary: PyTorchClassifier, problem: int) -> PyTorchClassifier:
    """Return the classifier with one of the problems."""
    network: _Binary = binary.model
    chosen = slice(problem, problem + 1)
    weights, biases = network.weights[:, chosen], network.biases[chosen]
    model = _Binary(network.features.module, network.features.layer, weights, biases)
    return rebuild(binary, model=model.eval(), nb_classes=2)


def _breaks_by_chance(binary: PyTorchClassifier, problem: int, image: FloatArray, threat: Threat, seed: int) -> bool:
    generator = torch.Generator(binary.device).manual_seed(seed + 1)
    clean = torch.tensor(image, device=binary.device).expand(RANDOM_DRAWS, *image.shape)
    random = clean + threat.random_inside(clean, generator)
    with seeded(seed):
        return bool((_scores(binary, into_range(random, binary.clip_values))[:, problem] > 0).any())


def _scores(binary: PyTorchClassifier, images: Tensor) -> FloatArray:
    """Return the scores (n, B) of all problems."""
    with torch.no_grad():
        scores: FloatArray = as_module(binary)(images)[:, 1::2].float().cpu().numpy()
    return scores
