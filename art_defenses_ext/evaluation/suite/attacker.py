"""The models that attacks see of a defended classifier: with surrogates, averaged over randomness, or smoothed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.logits import named_classes
from art_defenses_ext.estimator.averaged import Averaged
from art_defenses_ext.estimator.bridged import logits_behind
from art_defenses_ext.estimator.defend import as_module
from art_defenses_ext.estimator.pipeline import Pipeline, device_of, network_input, probes, unmoved_generators
from art_defenses_ext.estimator.rebuild import as_model_input, evaluation_mode, model_dtype, rebuild
from art_defenses_ext.estimator.rejecting import RejectingNetwork, parts_of, rejects
from art_defenses_ext.evaluation.suite.queries import Queries, Watched
from art_defenses_ext.evaluation.suite.seeding import derived_seed, seeded
from art_defenses_ext.evaluation.threat import Threat
from art_defenses_ext.gradients.modes import Defence, annealable_modes, gradient_modes
from art_defenses_ext.gradients.surrogate import Surrogate, resized

EOT_DRAWS = 16
"""Number of passes that attacks average for a random defence. **Convention**: Athalye et al. 2018 name no number."""

VOTES = 32
"""Number of passes of a random defence that are counted for each image, after as many that select the rival of its
label; more are made if they do not decide (``vote.py``). **Convention**."""

BATCHED = 8
"""Number of images that are classified together, in reverse order and alone."""

BATCH_NOISE = 0.01
"""The largest difference of their logits, in units of the largest logit, that counts as rounding."""

SMOOTHING_PAIRS = 64
"""Antithetic pairs for one estimated gradient of the smoothed network. **Convention**: fewer are cheaper and
noisier."""


@dataclass(frozen=True)
class Attacker:
    """The models that attacks differentiate and query in place of the classifier.

    Attributes:
        classifier: the defended classifier itself.
        attacked: the same forward pass, with a surrogate for each preprocessor from another package, averaged if it is
            random; without ART's postprocessors, unless they change the class of an image of the first block.
        smoothed: the same forward pass, with the estimated gradient of its average under Gaussian noise.
        modes: the gradient modes of ``attacked`` that attacks use.
        annealable: those modes whose surrogates have a width.
        withheld: gradient modes that a naive attacker does not use.
        random: whether the classifier's logits differ from pass to pass.
        draws: number of passes averaged in ``attacked``.
        votes: number of passes that are counted for an image, if no more are needed to decide.
        batch_dependent: whether the logits of an image depend on the others in its batch, or on their order.
    """

    classifier: PyTorchClassifier
    attacked: PyTorchClassifier
    smoothed: PyTorchClassifier
    modes: tuple[str, ...]
    annealable: tuple[str, ...]
    withheld: tuple[str, ...]
    random: bool
    draws: int
    votes: int
    batch_dependent: bool = False

    @classmethod
    def of(cls, classifier: PyTorchClassifier, x: FloatArray, threat: Threat, adaptive: bool, seed: int) -> Attacker:
        """Build the models for attacks on ``classifier``; images ``x`` (n, ...) show whether it is random.

        Args:
            classifier: the classifier under attack.
            x: a few images.
            threat: the ball, which scales the smoothing.
            adaptive: False for the naive attacker, with the exact gradient alone and without averages.
            seed: seed of the passes that test for randomness.
        """
        random = is_random(classifier, x, derived_seed(seed, "is it random", 0))
        logits = logits_behind(classifier)
        exposed = with_surrogates(logits if keeps_classes(classifier, logits, x, seed) else classifier)
        draws = EOT_DRAWS if random and adaptive else 1
        modes = gradient_modes(exposed)
        return cls(
            classifier=classifier,
            attacked=for_any_attack(averaged(exposed, draws) if draws > 1 else exposed),
            smoothed=smoothed(exposed, threat),
            modes=modes if adaptive else ("exact",),
            annealable=annealable_modes(exposed) if adaptive else (),
            withheld=() if adaptive else modes[1:],
            random=random,
            draws=draws,
            votes=VOTES if random else 1,
            batch_dependent=not random and depends_on_batch(classifier, x[:BATCHED]),
        )


def for_any_attack(classifier: PyTorchClassifier) -> PyTorchClassifier:
    """Return the classifier in a form for ART's attacks, which send float32 images and maximise ``classifier.loss``.

    A network of another dtype gets a cast before and after it. A loss other than the mean or sum of cross-entropies is
    replaced by the cross-entropy, which the papers' attacks maximise; not all other losses take ART's labels.
    """
    loss = classifier.loss
    suits = type(loss) is nn.CrossEntropyLoss and loss.reduction != "none"
    casts = not rejects(classifier) and not _speaks_float32(classifier)
    if suits and not casts:
        return classifier
    return rebuild(
        classifier,
        model=_Float32Boundary(classifier.model).eval() if casts else classifier.model,
        loss=loss if suits else nn.CrossEntropyLoss(),
        optimizer=None,
    )


def _speaks_float32(classifier: PyTorchClassifier) -> bool:
    """Return whether the network takes and returns float32; it may cast by itself, or compute under autocast."""
    model = classifier.model
    if model_dtype(model) not in (None, torch.float32):
        return False
    if model not in _GIVEN:
        with unmoved_generators(), torch.no_grad(), evaluation_mode(model):
            _GIVEN[model] = getattr(model(network_input(classifier)), "dtype", torch.float32)
    return _GIVEN[model] == torch.float32


_GIVEN: WeakKeyDictionary[nn.Module, torch.dtype] = WeakKeyDictionary()
"""The result of this test for each network."""


class _Float32Boundary(nn.Module):
    """A network of any dtype that takes images of any dtype and returns logits in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(as_model_input(x, self.network))
        return logits.float()


def is_random(classifier: PyTorchClassifier, x: FloatArray, seed: int) -> bool:
    """Return whether two passes of the same images (n, ...) give different logits."""
    module, images = as_module(classifier), torch.tensor(x, device=classifier.device)
    with seeded(seed), torch.no_grad():
        first, second = module(images), module(images)
    unit = min(1.0, float(torch.nan_to_num(first.abs(), nan=0.0, posinf=0.0).amax()))  # small logits differ by little
    return not torch.allclose(first, second, rtol=1e-4, atol=1e-5 * unit, equal_nan=True)  # kernels may round apart


def keeps_classes(classifier: PyTorchClassifier, logits: PyTorchClassifier, x: FloatArray, seed: int) -> bool:
    """Return whether ART's postprocessors keep the class of all images (n, ...).

    If they do, only the logits are attacked. Otherwise attacks see the postprocessed output, with the gradient of the
    logits.
    """
    if logits is classifier:
        return True
    classes = []
    for target in (classifier, logits):
        with seeded(seed), torch.no_grad():
            outputs = as_module(target)(torch.tensor(x, device=classifier.device))
        classes.append(named_classes(outputs))
    return torch.equal(*classes)


def depends_on_batch(classifier: PyTorchClassifier, x: FloatArray) -> bool:
    """Return whether the logits of an image depend on which others are in its batch, or on their order.

    Args:
        classifier: a classifier that is not random.
        x: a few images (n, ...).
    """
    module, images = as_module(classifier), torch.tensor(x, device=classifier.device)
    with torch.no_grad():
        together = module(images).double()
        turned = module(images.flip(0)).double().flip(0)
        alone = torch.cat([module(image) for image in images.split(1)]).double()
    tolerance = BATCH_NOISE * float(torch.nan_to_num(together, posinf=0.0, neginf=0.0).abs().amax())
    return not all(torch.allclose(together, other, rtol=0, atol=tolerance, equal_nan=True) for other in (turned, alone))


def with_surrogates(classifier: PyTorchClassifier) -> PyTorchClassifier:
    """Return the classifier with a surrogate backward pass, the identity, for each preprocessor without modes.

    A preprocessor that changes the images' shape and has a derivative, such as a resize, gets no surrogate. One without
    a derivative gets the adjoint of a bilinear resize.

    Raises:
        InputError: for a preprocessor that changes more than height and width and passes no gradient.
    """
    preprocessors = classifier.preprocessing_defences or []
    if all(isinstance(preprocessor, Defence) for preprocessor in preprocessors):
        return classifier
    x = torch.tensor(probes(classifier), device=device_of(classifier))
    exposed = []
    for preprocessor in preprocessors:
        if not preprocessor.apply_predict:
            exposed.append(preprocessor)
            continue
        known = isinstance(preprocessor, Defence)
        with unmoved_generators():
            shown, has_slope = (_shown(preprocessor, x), True) if known else followed(preprocessor, x)
        exposed.append(
            preprocessor if known or (has_slope and shown.shape != x.shape) else _exposed(preprocessor, x, shown)
        )
        x = shown
    return rebuild(classifier, preprocessing_defences=exposed)


def _exposed(preprocessor: PreprocessorPyTorch, x: Tensor, shown: Tensor) -> Surrogate:
    """Return a preprocessor with the identity as surrogate, if that fits its output ``shown`` for ``x``."""
    if resized(x, shown.shape).shape != shown.shape:
        raise InputError(
            f"classifier has the preprocessor {type(preprocessor).__name__}, which makes {tuple(shown.shape)} of "
            f"{tuple(x.shape)} and passes no gradient; Surrogate(preprocessor, backward) with a function to "
            "differentiate in its place was expected"
        )
    return Surrogate(preprocessor, "identity")


def _shown(preprocessor: PreprocessorPyTorch, x: Tensor) -> Tensor:
    """Return a preprocessor's output for images (n, ...)."""
    with torch.no_grad():
        shown: Tensor = preprocessor.forward(x)[0]
    return shown


def followed(preprocessor: PreprocessorPyTorch, x: Tensor) -> tuple[Tensor, bool]:
    """Return a preprocessor's output for images (n, ...), and whether its derivative is not zero everywhere."""
    live = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        shown = preprocessor.forward(live.clone())[0]  # a copy: it may work in place
        weights = torch.linspace(0.5, 1.5, shown.numel(), device=shown.device).reshape(shown.shape)
        total = (shown * weights).sum()
        (slope,) = torch.autograd.grad(total, live, allow_unused=True) if total.requires_grad else (None,)
    return shown.detach(), slope is not None and bool(slope.any())


def averaged(classifier: PyTorchClassifier, draws: int) -> PyTorchClassifier:
    """Return the classifier with its logits averaged over ``draws`` passes (EOT), for any attack.

    Source: Athalye, Carlini, Wagner 2018 (arXiv:1802.00420), section 4.2 (EOT).
    """
    return _wrapped(classifier, lambda module: Averaged(module, draws))


def watched(classifier: PyTorchClassifier, queries: Queries) -> PyTorchClassifier:
    """Return the classifier with each of its passes counted in ``queries``."""
    return _wrapped(classifier, lambda module: Watched(module, queries))


def smoothed(classifier: PyTorchClassifier, threat: Threat) -> PyTorchClassifier:
    """Return the classifier with its preprocessing, and the estimated gradient of its average under Gaussian noise.

    This gradient is informative across discontinuities and plateaus, where the exact gradient is not.

    Source: Tramer, Carlini, Brendel, Madry 2020 (arXiv:2002.08347), section 5, against k-winners-take-all, with a
    standard deviation of 8/255 at an eps of 8/255. **Convention**: in general the deviation is the largest change that
    all pixel values may have together.
    """
    per_pixel = threat.eps / threat.size_of(1, tuple(classifier.input_shape))

    def estimated(module: nn.Module) -> nn.Module:
        surrogate = Surrogate(module, "estimated", sigma=per_pixel, samples=SMOOTHING_PAIRS)
        surrogate.gradient_mode = "surrogate"
        return surrogate

    return _wrapped(classifier, estimated)


def _wrapped(classifier: PyTorchClassifier, wrap: Callable[[nn.Module], nn.Module]) -> PyTorchClassifier:
    """Return a classifier without preprocessing, whose model wraps all of ``classifier``.

    For a classifier that rejects, logits and margin are wrapped and joined again outside, so it still rejects.
    """
    pipeline = Pipeline(classifier)
    model = _Rejoined(wrap(_Parts(pipeline))) if rejects(classifier) else wrap(pipeline)
    return rebuild(classifier, model=model.eval(), preprocessing_defences=None, preprocessing=(0.0, 1.0))


class _Parts(nn.Module):
    """The network from images (N, ...) to the classifier's logits and the detector's margin, joined (N, K + 1)."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.pipeline = pipeline

    def forward(self, x: Tensor) -> Tensor:
        logits, margin = parts_of(self.pipeline, x)
        return torch.cat([logits, margin[:, None]], dim=1)


class _Rejoined(RejectingNetwork):
    """A network that rejects, from a module that returns logits and margin joined (N, K + 1)."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        beside: Tensor = self.module(x)
        return beside[:, :-1], beside[:, -1]
