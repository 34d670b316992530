"""rejecting: one network out of a classifier and a detector, whose last class means "rejected"."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import AutoProjectedGradientDescent, FastGradientMethod, ProjectedGradientDescent
from art.defences.detector.evasion import BinaryInputDetector
from art.defences.trainer import AdversarialTrainerFBFPyTorch
from art.estimators.classification import PyTorchClassifier
from art.estimators.estimator import BaseEstimator
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from art_defenses_ext import HeatAndBlur, Linf, as_module, defend, evaluate, gradient_mode, gradient_modes
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.by_class import ByClass
from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.detector.explanation_reconstructor import ExplanationReconstructor
from art_defenses_ext.estimator.rebuild import rebuild, undefended
from art_defenses_ext.estimator.rejecting import RejectingNetwork, check_detector, rejected_as, rejecting, rejects
from art_defenses_ext.evaluation.suite.seeding import seeded
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.gradients.modes import find_defences
from art_defenses_ext.zoo.datasets import Dataset

SHAPE, NB_CLASSES = (2, 3, 4), 5


class Given(nn.Module):
    """An image's first values are its logits, from ``start`` on."""

    def __init__(self, start: int, count: int) -> None:
        super().__init__()
        self.start, self.count = start, count

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self.start : self.start + self.count]


def wrap(model: nn.Module, nb_classes: int = NB_CLASSES, shape: tuple[int, ...] = SHAPE, **options: Any) -> Any:
    settings: dict[str, Any] = {"clip_values": (0.0, 1.0), "device_type": "cpu"} | options
    return PyTorchClassifier(model.eval(), nn.CrossEntropyLoss(), shape, nb_classes, **settings)


def network(nb_outputs: int, seed: int, shape: tuple[int, ...] = SHAPE) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = int(np.prod(shape))
        return nn.Sequential(nn.Flatten(), nn.Linear(size, 12), nn.Tanh(), nn.Linear(12, nb_outputs))


MEAN, STD = np.array([0.2, 0.4], np.float32), np.array([0.5, 0.3], np.float32)


@pytest.fixture
def classifier() -> PyTorchClassifier:
    return wrap(network(NB_CLASSES, seed=0), preprocessing=(MEAN, STD))


@pytest.fixture
def detector() -> BinaryInputDetector:
    """ART's own, over another network with a preprocessing of its own, which rejects about half of all images."""
    two_outputs = wrap(network(2, seed=1), 2, preprocessing=(MEAN + 0.1, 2 * STD))
    with torch.no_grad():
        two_outputs.model[-1].bias.sub_(torch.from_numpy(np.median(two_outputs.predict(images(500)), axis=0)))
    return BinaryInputDetector(two_outputs)


def images(count: int = 40, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).random((count, *SHAPE), dtype=np.float32)


@pytest.mark.parametrize("kind", ["fit", "FBF"])
def test_it_cannot_be_trained_under_its_detector(kind: str, detector: BinaryInputDetector) -> None:
    """The detector was made for the network as it is."""
    model = network(NB_CLASSES, seed=0)
    classifier = wrap(model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    before = copy.deepcopy(model.state_dict())
    rejecting_classifier = rejecting(classifier, detector)
    x, y = images(), np.eye(NB_CLASSES + 1, dtype=np.float32)[np.arange(40) % NB_CLASSES]
    trained = rejecting_classifier if kind == "fit" else AdversarialTrainerFBFPyTorch(rejecting_classifier, eps=0.1)
    with pytest.raises(InputError, match="a classifier that rejects cannot be trained"):
        trained.fit(x, y, nb_epochs=1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert rejecting(wrap(model), detector).optimizer is None  # as the classifier's own


@pytest.fixture(scope="module")
def reconstructor(digits_classifier: PyTorchClassifier, digits: Dataset) -> ExplanationReconstructor:
    fitted_reconstructor = ExplanationReconstructor(digits_classifier, false_positive_rate=0.1)
    fitted_reconstructor.fit(digits.train.x, nb_epochs=10, learning_rate=3e-3, progress=False)
    return fitted_reconstructor


# What the last class means


AS_GIVEN = RejectingNetwork(
    wrap(Given(0, NB_CLASSES), preprocessing=None),
    BinaryInputDetector(wrap(Given(NB_CLASSES, 2), 2, preprocessing=None)),
)
NUMBERS = st.one_of(
    st.floats(-1e6, 1e6, width=32),
    st.floats(-(2.0**-20), 2.0**-20, width=32),
    st.sampled_from([0.0, 1e-45, -1e-45, 1e-30, -1e-30, 1e-8, -1e-8, 1e15, -1e15]),
)


@given(
    logits=arrays(np.float32, st.tuples(st.integers(1, 4), st.just(NB_CLASSES)), elements=NUMBERS),
    shift=NUMBERS,
    values=st.lists(NUMBERS, min_size=8, max_size=8),
)
def test_the_last_class_is_the_largest_exactly_where_the_detector_says_so(
    logits: Any, shift: float, values: list[float]
) -> None:
    """For logits of any sign and size, equal ones, and however little the detector finds; else as without it."""
    logits = logits + np.float32(shift)
    count = len(logits)
    detector_logits = np.array(values[: 2 * count], np.float32).reshape(count, 2)
    x = np.zeros((count, *SHAPE), np.float32)
    flat = x.reshape(count, -1)
    flat[:, :NB_CLASSES], flat[:, NB_CLASSES : NB_CLASSES + 2] = logits, detector_logits
    with torch.no_grad():
        outputs = AS_GIVEN(torch.from_numpy(x))
    assert outputs.shape == (count, NB_CLASSES + 1)
    np.testing.assert_array_equal(outputs[:, :NB_CLASSES], logits)
    flagged = detector_logits[:, 1] > detector_logits[:, 0]
    expected = np.where(flagged, NB_CLASSES, logits.argmax(axis=1))
    np.testing.assert_array_equal(outputs.argmax(dim=1), expected)
    np.testing.assert_array_equal(outputs.numpy().argmax(axis=1), expected)
    largest = outputs[:, :NB_CLASSES].amax(dim=1).numpy()
    np.testing.assert_array_equal(outputs[:, -1].numpy() > largest, flagged)  # not on the strength of the order


def test_the_last_logit_is_carlini_and_wagner_s_after_a_shift(
    classifier: PyTorchClassifier, detector: BinaryInputDetector
) -> None:
    """(1 + D) max Z of logits that are moved so that the smallest is 1, moved back."""
    x = images()
    outputs = rejecting(classifier, detector).predict(x)
    logits, detector_logits = classifier.predict(x).astype(np.float64), detector.detector.predict(x).astype(np.float64)
    shifted = logits - logits.min(axis=1, keepdims=True) + 1
    score = detector_logits[:, 1] - detector_logits[:, 0]
    expected = (1 + score) * shifted.max(axis=1) + logits.min(axis=1) - 1
    np.testing.assert_allclose(outputs[:, -1], expected, rtol=1e-4, atol=1e-5)
    assert 0.2 < (score > 0).mean() < 0.8


def test_it_rejects_what_art_s_detector_flags_and_keeps_the_classifier_s_logits(
    classifier: PyTorchClassifier, detector: BinaryInputDetector
) -> None:
    """To the last bit, with a preprocessing of each one's own."""
    x = images()
    rejecting_classifier = rejecting(classifier, detector)
    outputs, (_, flagged) = rejecting_classifier.predict(x), detector.detect(x)
    np.testing.assert_array_equal(outputs[:, :NB_CLASSES], classifier.predict(x))
    np.testing.assert_array_equal(outputs.argmax(axis=1) == NB_CLASSES, flagged)
    accepted = outputs[~flagged].argmax(axis=1)
    np.testing.assert_array_equal(accepted, classifier.predict(x)[~flagged].argmax(axis=1))
    assert 0 < flagged.sum() < len(x)


# The one network


def test_the_module_and_the_classifier_are_one(classifier: PyTorchClassifier, detector: BinaryInputDetector) -> None:
    x = torch.from_numpy(images())
    rejecting_classifier, module = rejecting(classifier, detector), as_module(classifier, detector)
    assert isinstance(module, RejectingNetwork)
    assert not module.training
    assert torch.equal(module(x), torch.from_numpy(rejecting_classifier.predict(images())))
    logits, score = module.parts(x)
    assert torch.equal(logits, module(x)[:, :NB_CLASSES])
    assert torch.equal(score > 0, module(x).argmax(dim=1) == NB_CLASSES)
    assert rejects(rejecting_classifier)
    assert not rejects(classifier)
    assert not rejects(detector.detector)


def test_it_is_a_plain_classifier_of_the_same_model(
    classifier: PyTorchClassifier, detector: BinaryInputDetector
) -> None:
    rejecting_classifier = rejecting(classifier, detector)
    assert type(rejecting_classifier) is PyTorchClassifier
    assert isinstance(rejecting_classifier, BaseEstimator)
    assert (rejecting_classifier.nb_classes, rejecting_classifier.input_shape) == (NB_CLASSES + 1, SHAPE)
    np.testing.assert_array_equal(rejecting_classifier.clip_values, [0, 1])
    assert rejecting_classifier.loss is classifier.loss
    assert not rejecting_classifier.preprocessing_defences
    shared = {id(parameter) for parameter in rejecting_classifier.model.parameters()}
    assert {id(parameter) for parameter in classifier.model.parameters()} <= shared
    assert undefended(rejecting_classifier) is classifier
    assert undefended(rejecting(rebuild(rejecting_classifier.undefended), detector)) is not classifier
    first = defend(classifier, HeatAndBlur(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(6, 5))))
    assert undefended(rejecting(first, detector)) is classifier


def test_the_gradient_is_that_of_finite_differences(detector: BinaryInputDetector) -> None:
    """Of every logit, the last too, in float64, where images are rejected and where not."""
    classifier = wrap(network(NB_CLASSES, seed=0).double(), preprocessing=(MEAN, STD))
    detector.detector.model.double()
    module = as_module(classifier, detector).double()
    x = torch.from_numpy(images(6)).double().requires_grad_()
    assert 0 < int((module.parts(x)[1] > 0).sum()) < 6
    assert torch.autograd.gradcheck(module, x)
    (gradient,) = torch.autograd.grad(module(x)[:, -1].sum(), x)
    assert bool((gradient.flatten(1).norm(dim=1) > 1e-3).all())


def test_a_word_too_small_for_the_last_digit_keeps_its_gradient() -> None:
    """Where rounding would lose it, the value is lifted; the derivative is that of the formula."""
    x = torch.zeros(1, *SHAPE)
    x.flatten(1)[0, : NB_CLASSES + 2] = torch.tensor([1000.0, 0, 1, 2, 3, 0, 1e-9])
    x.requires_grad_()
    outputs = AS_GIVEN(x)
    assert outputs.argmax(dim=1).item() == NB_CLASSES
    (gradient,) = torch.autograd.grad(outputs[:, -1].sum(), x)
    expected = [1.0, 0, 0, 0, 0, -1001, 1001]
    np.testing.assert_allclose(gradient.flatten()[: NB_CLASSES + 2], expected, atol=1e-5)


def test_art_s_gradients_are_those_of_autograd(classifier: PyTorchClassifier, detector: BinaryInputDetector) -> None:
    rejecting_classifier, x = rejecting(classifier, detector), images()
    labels = np.arange(len(x)) % (NB_CLASSES + 1)
    live = torch.from_numpy(x).requires_grad_()
    loss = nn.functional.cross_entropy(rejecting_classifier.model(live), torch.from_numpy(labels))
    (gradient,) = torch.autograd.grad(loss, live)
    actual = rejecting_classifier.loss_gradient(x, np.eye(NB_CLASSES + 1, dtype=np.float32)[labels])
    np.testing.assert_array_equal(actual, gradient.numpy())


@pytest.mark.parametrize("name", ["fast gradient", "pgd"])
def test_art_s_attacks_run_targeted_on_it(
    name: str, classifier: PyTorchClassifier, detector: BinaryInputDetector
) -> None:
    """At a class that is not the rejected one, they bring images there past the detector."""
    rejecting_classifier, x = rejecting(classifier, detector), images(60)
    targets = (classifier.predict(x).argmax(axis=1) + 1) % NB_CLASSES
    wanted = np.eye(NB_CLASSES + 1, dtype=np.float32)[targets]
    attack: Any
    if name == "pgd":
        attack = ProjectedGradientDescent(
            rejecting_classifier, eps=1.0, eps_step=0.05, max_iter=60, targeted=True, verbose=False
        )
    else:
        attack = FastGradientMethod(rejecting_classifier, eps=0.2, targeted=True)
    x_adv = attack.generate(x, wanted)

    def share(candidates: FloatArray) -> float:
        return float(
            ((classifier.predict(candidates).argmax(axis=1) == targets) & ~detector.detect(candidates)[1]).mean()
        )

    assert share(x) == 0
    np.testing.assert_allclose((rejecting_classifier.predict(x_adv).argmax(axis=1) == targets).mean(), share(x_adv))
    assert share(x_adv) > (0.3 if name == "pgd" else 0.02)


# "Rejected" counted as a class


@given(
    logits=arrays(np.float32, st.tuples(st.integers(1, 4), st.just(NB_CLASSES)), elements=NUMBERS),
    values=st.lists(NUMBERS, min_size=8, max_size=8),
    label=st.integers(0, NB_CLASSES - 1),
)
def test_another_class_than_the_label_means_misclassified_and_accepted(
    logits: Any, values: list[float], label: int
) -> None:
    """What an untargeted attack looks for is the success that counts, whatever the logits and the detector say."""
    count = len(logits)
    detector_logits = np.array(values[: 2 * count], np.float32).reshape(count, 2)
    x = np.zeros((count, *SHAPE), np.float32)
    flat = x.reshape(count, -1)
    flat[:, :NB_CLASSES], flat[:, NB_CLASSES : NB_CLASSES + 2] = logits, detector_logits
    classifier = wrap(Given(0, NB_CLASSES), preprocessing=None)
    detector = BinaryInputDetector(wrap(Given(NB_CLASSES, 2), 2, preprocessing=None))
    outputs = rejected_as(rejecting(classifier, detector), label).predict(x)
    assert outputs.shape == (count, NB_CLASSES)
    rival_logits = np.delete(logits, label, axis=1).max(axis=1)
    misclassified = rival_logits > logits[:, label]
    ties = rival_logits == logits[:, label]  # the prediction may be either
    success = misclassified & ~(detector_logits[:, 1] > detector_logits[:, 0])
    np.testing.assert_array_equal((outputs.argmax(axis=1) != label)[~ties], success[~ties])


@pytest.mark.parametrize("label", [-1, NB_CLASSES, True])
def test_a_label_that_is_no_class_is_refused(
    label: Any, classifier: PyTorchClassifier, detector: BinaryInputDetector
) -> None:
    with pytest.raises(InputError, match=r"label is .*; .* expected"):
        rejected_as(rejecting(classifier, detector), label)


def test_what_does_not_reject_is_refused(classifier: PyTorchClassifier, detector: BinaryInputDetector) -> None:
    with pytest.raises(InputError, match="classifier has a Sequential; one made by rejecting was expected"):
        rejected_as(classifier, 0)
    with pytest.raises(InputError, match="estimator does not reject"):
        ByClass(classifier, FastGradientMethod)
    with pytest.raises(InputError, match="build is 3"):
        ByClass(rejecting(classifier, detector), 3)  # type: ignore[arg-type]
    attack = ByClass(rejecting(classifier, detector), FastGradientMethod)
    with pytest.raises(InputError, match="y holds the label 5, which means rejected"):
        attack.generate(images(3), np.array([0, NB_CLASSES, 1]))


def test_each_image_is_attacked_as_one_of_its_class_and_keeps_its_place(
    classifier: PyTorchClassifier, detector: BinaryInputDetector
) -> None:
    rejecting_classifier, x = rejecting(classifier, detector), images()
    y = np.arange(len(x)) % NB_CLASSES

    def build(view: PyTorchClassifier) -> FastGradientMethod:
        return FastGradientMethod(view, eps=0.1)

    adversarial = ByClass(rejecting_classifier, build).generate(x, y)
    for i in range(len(x)):
        single = FastGradientMethod(rejected_as(rejecting_classifier, int(y[i])), eps=0.1).generate(
            x[i : i + 1], y[i : i + 1]
        )
        np.testing.assert_array_equal(adversarial[i], single[0])
    predicted = classifier.predict(x).argmax(axis=1)
    np.testing.assert_array_equal(
        ByClass(rejecting_classifier, build).generate(x), ByClass(rejecting_classifier, build).generate(x, predicted)
    )


# With this package's detector


def test_it_finds_all_defences_and_combines_their_modes(
    own_classifier: PyTorchClassifier, reconstructor: ExplanationReconstructor, digits: Dataset
) -> None:
    restorer = HeatAndBlur.for_classifier(own_classifier, sigma=0.8)
    defended = defend(own_classifier, restorer)
    detector = ExplanationReconstructor(defended, false_positive_rate=0.1)
    detector.network.load(reconstructor.network.state_dict())
    rejecting_classifier = rejecting(defended, detector)
    expected = [restorer, detector.network]
    combined = tuple(
        f"{restorer_mode}+{detector_mode}"
        for restorer_mode in restorer.gradient_modes
        for detector_mode in ("exact", "smooth")
    )
    for target in (rejecting_classifier, as_module(rejecting_classifier), as_module(defended, detector)):
        assert find_defences(target) == expected
        assert gradient_modes(target) == combined
        with gradient_mode(target, "identity+smooth"):
            assert [defence.gradient_mode for defence in expected] == ["identity", "smooth"]
        assert [defence.gradient_mode for defence in expected] == ["exact", "exact"]
    x = digits.test.x[:20]
    answers, gradients = [], []
    for mode in ("exact+exact", "exact+smooth", "identity+exact"):
        with gradient_mode(rejecting_classifier, mode):
            answers.append(rejecting_classifier.predict(x))
            gradients.append(rejecting_classifier.class_gradient(x, label=10))
    for i in range(3):
        np.testing.assert_array_equal(answers[i], answers[0])
        for j in range(i):
            assert np.abs(gradients[i] - gradients[j]).max() > 1e-4
    np.testing.assert_array_equal(answers[0].argmax(axis=1) == 10, detector.detect(x)[1])
    np.testing.assert_array_equal(answers[0][:, :10], defended.predict(x))


def test_it_follows_the_detector(own_classifier: PyTorchClassifier, digits: Dataset) -> None:
    """To other thresholds, and to another fit."""
    detector = ExplanationReconstructor(own_classifier, false_positive_rate=0.1)
    rejecting_classifier = rejecting(own_classifier, detector)
    x = digits.test.x[:100]
    with pytest.raises(InputError, match=r"not fitted yet; fit\(\) or load\(\) first was expected"):
        rejecting_classifier.predict(x)
    for seed, rate in ((0, 0.1), (0, 0.6), (1, 0.6)):
        detector.set_params(false_positive_rate=rate)
        detector.fit(digits.train.x[:500], nb_epochs=1, validation_split=0.3, progress=False, seed=seed)
        np.testing.assert_array_equal(rejecting_classifier.predict(x).argmax(axis=1) == 10, detector.detect(x)[1])


def test_art_s_untargeted_auto_pgd_finds_class_by_class_what_ours_finds(
    digits_classifier: PyTorchClassifier, reconstructor: ExplanationReconstructor, digits: Dataset
) -> None:
    """On the network with a class more it stops at "rejected"; on the views of it, at real successes alone."""
    rejecting_classifier = rejecting(digits_classifier, reconstructor)
    right = (rejecting_classifier.predict(digits.test.x).argmax(axis=1) == digits.test.y) & (digits.test.y < 2)
    x, y = digits.test.x[right][:24], digits.test.y[right][:24]
    eps = 0.2

    def art(classifier: PyTorchClassifier) -> AutoProjectedGradientDescent:
        return AutoProjectedGradientDescent(
            classifier, eps=eps, eps_step=2 * eps, max_iter=20, nb_random_init=1, batch_size=64, verbose=False
        )

    with gradient_mode(rejecting_classifier, "smooth"), seeded(0):  # ART draws from numpy's global generator
        ours = AutoPGD(rejecting_classifier, np.inf, eps, max_iter=40).generate(x, y)
        untargeted = art(rejecting_classifier).generate(x, y)
        by_class = ByClass(rejecting_classifier, art).generate(x, y)

    def robust(adversarial: FloatArray) -> float:
        assert np.abs(adversarial - x).max() <= eps + 1e-6
        right = digits_classifier.predict(adversarial).argmax(axis=1) == y
        return float((right | reconstructor.detect(adversarial)[1]).mean())

    rejected = rejecting_classifier.predict(untargeted).argmax(axis=1) == 10
    assert rejected.mean() > 0.1  # what it took for successes
    assert robust(untargeted) > robust(ours) + 0.1
    assert robust(by_class) <= robust(ours) + 0.05


def test_an_evaluation_sends_other_people_s_attacks_class_by_class(
    classifier: PyTorchClassifier, detector: BinaryInputDetector
) -> None:
    """ART's would stop at "rejected"; ours knows what it means, and is left alone."""
    class_counts: list[int] = []

    def art_pgd(target: PyTorchClassifier, threat: Any, seed: int) -> ProjectedGradientDescent:
        class_counts.append(target.nb_classes)
        return ProjectedGradientDescent(target, eps=threat.eps, eps_step=0.05, max_iter=5, verbose=False)

    def our_pgd(target: PyTorchClassifier, threat: Any, seed: int) -> AutoPGD:
        class_counts.append(target.nb_classes)
        return AutoPGD(target, np.inf, threat.eps, max_iter=5)

    x = images(30)
    y = classifier.predict(x).argmax(axis=1)
    options: Any = {"curve_samples": 0, "check_samples": 0, "progress": False}
    attacks = {name: AttackSpec(name, build, "", samples="all") for name, build in (("a", art_pgd), ("b", our_pgd))}
    evaluate(classifier, (x, y), Linf(0.2), [attacks["b"]], detector=detector, **options)
    assert class_counts == [NB_CLASSES + 1] * 2  # tried on two images, then run
    class_counts.clear()
    report = evaluate(classifier, (x, y), Linf(0.2), [attacks["a"]], detector=detector, **options)
    assert class_counts[-len(set(y)) :] == [NB_CLASSES] * len(set(y))
    rejecting_classifier = rejecting(classifier, detector)
    plain = ProjectedGradientDescent(rejecting_classifier, eps=0.2, eps_step=0.05, max_iter=5, verbose=False).generate(
        x, y
    )
    fooled = (classifier.predict(plain).argmax(axis=1) != y) & ~detector.detect(plain)[1]
    assert sum(record.attacks["a"].success for record in report.records) > fooled.sum()


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda classifier: pickle.loads(pickle.dumps(classifier)),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_are_whole_and_independent(
    way: str, own_classifier: PyTorchClassifier, reconstructor: ExplanationReconstructor, digits: Dataset
) -> None:
    detector = ExplanationReconstructor(own_classifier, false_positive_rate=0.1)
    detector.network.load(reconstructor.network.state_dict())
    rejecting_classifier, x = rejecting(own_classifier, detector), digits.test.x[:50]
    expected = rejecting_classifier.predict(x)
    copied = COPIES[way](rejecting_classifier)
    np.testing.assert_array_equal(copied.predict(x), expected)
    assert rejects(copied)
    (copied_defence,) = find_defences(copied)
    assert copied_defence is not detector.network
    with gradient_mode(copied, "smooth"):
        assert detector.network.gradient_mode == "exact"
        np.testing.assert_array_equal(copied.predict(x), expected)
    with torch.no_grad():
        for parameter in copied.model.parameters():
            parameter.mul_(0.5)
    assert np.abs(copied.predict(x) - expected).max() > 1e-3
    np.testing.assert_array_equal(rejecting_classifier.predict(x), expected)
    undefended_copy = undefended(copied)
    assert undefended_copy is not None
    np.testing.assert_array_equal(undefended_copy.predict(x), copied.predict(x)[:, :10])


# What is refused


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (lambda detector: None, "detector is a NoneType; an ART BinaryInputDetector was expected"),
        (
            lambda detector: BinaryInputDetector(detector.detector.model),
            "detector.detector is a Sequential; an ART PyTorchClassifier was expected",
        ),
        (
            lambda detector: BinaryInputDetector(wrap(network(3, 0), 3)),
            "detector.detector has 3 outputs; two were expected",
        ),
        (
            lambda detector: BinaryInputDetector(wrap(network(2, 0, (2, 4, 3)), 2, (2, 4, 3))),
            r"detector takes images \(2, 4, 3\) and classifier \(2, 3, 4\); the same were expected",
        ),
        (
            lambda detector: BinaryInputDetector(rebuild(detector.detector, clip_values=(0, 255))),
            r"detector takes values in \[0, 255\] and classifier in \[0, 1\]; the same were expected",
        ),
    ],
)
def test_a_detector_that_cannot_be_joined_is_refused(
    classifier: PyTorchClassifier, detector: BinaryInputDetector, spoilt: Callable[[Any], Any], message: str
) -> None:
    joins: tuple[Callable[..., Any], ...] = (rejecting, RejectingNetwork)
    for join in joins:
        with pytest.raises(InputError, match=f"^{message}"):
            join(classifier, spoilt(detector))
    with pytest.raises(InputError, match=f"^{message}"):
        check_detector(spoilt(detector), classifier)
