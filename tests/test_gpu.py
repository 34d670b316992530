"""On a CUDA device: the same numbers as on the CPU to 1e-4 with TF32 off, and nothing leaves the device."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_defenses_ext import FeatureAutoencoder, JumpReLU, TwoStreamRestoration, as_module, defend, gradient_mode
from art_defenses_ext.attack.annealed_pgd import AnnealedPGD
from art_defenses_ext.attack.base import TensorAttack
from art_defenses_ext.attack.deep_fool import DeepFoolLp
from art_defenses_ext.attack.iterative_fgsm import IterativeFGSM
from art_defenses_ext.attack.margin_pgd import MarginPGD
from art_defenses_ext.attack.random_noise import RandomNoise
from art_defenses_ext.detector.explanation_reconstructor import ExplanationReconstructor
from art_defenses_ext.detector.explanations import EXPLANATIONS
from art_defenses_ext.detector.reconstructors import ClassAutoencoders
from art_defenses_ext.estimator.rebuild import rebuild
from art_defenses_ext.estimator.rejecting import rejecting
from art_defenses_ext.preprocessor.trained import TrainedRestorer
from art_defenses_ext.transformer.jump_relu import jump_relu
from art_defenses_ext.zoo.catalogue import MODELS
from art_defenses_ext.zoo.datasets import Dataset
from art_defenses_ext.zoo.networks import ResNet20

pytestmark = pytest.mark.gpu

MODES = ("exact", "relu", "smooth")

ATTACKS: dict[str, tuple[type[TensorAttack], dict[str, Any], tuple[float, float] | None]] = {
    "fgsm": (IterativeFGSM, {"eps_step": 0.02, "max_iter": 12}, (np.inf, 0.24)),
    "deep fool linf": (DeepFoolLp, {"norm": np.inf}, None),
    "deep fool l2": (DeepFoolLp, {"norm": 2}, None),
    "pgd linf": (MarginPGD, {"norm": np.inf, "eps": 0.2, "max_iter": 20, "nb_starts": 2}, (np.inf, 0.2)),
    "pgd l2": (MarginPGD, {"norm": 2, "eps": 1.5, "max_iter": 20}, (2, 1.5)),
    "annealed": (AnnealedPGD, {"norm": np.inf, "eps": 0.2, "max_iter": 20, "factors": (1.0, 0.2)}, (np.inf, 0.2)),
    "noise": (RandomNoise, {"norm": 2, "eps": 1.5, "nb_draws": 20}, (2, 1.5)),
}


def copy_to(device_type: str, original: PyTorchClassifier) -> PyTorchClassifier:
    """A classifier with a copy of the network of ``original`` on the CPU or the current CUDA device."""
    model = copy.deepcopy(original.model)
    optimizer = torch.optim.Adam(model.to("cuda" if device_type == "gpu" else "cpu").parameters(), lr=1e-3)
    preprocessing = (
        None if original.preprocessing is None else (original.preprocessing.mean, original.preprocessing.std)
    )
    return PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        original.input_shape,
        original.nb_classes,
        optimizer=optimizer,
        clip_values=(0.0, 1.0),
        preprocessing=preprocessing,
        device_type=device_type,
    )


def residual() -> PyTorchClassifier:
    """An untrained ResNet-20 with a mean and a standard deviation for each channel."""
    spec = MODELS["resnet20"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet20()
    return PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        spec.input_shape,
        spec.nb_classes,
        clip_values=(0.0, 1.0),
        preprocessing=(np.array(spec.mean), np.array(spec.std)),
        device_type="cpu",
    )


def assert_close(actual: Any, expected: Any, share: float = 1.0) -> None:
    """To 1e-4 of the largest value, for at least this share of the samples."""
    assert actual.shape == expected.shape
    far = np.abs(actual - expected) > 1e-4 * np.abs(expected).max()
    assert (~far).reshape(len(far), -1).all(axis=1).mean() >= share


@pytest.mark.parametrize("mode", MODES)
def test_the_function_is_the_same_on_both(cuda: torch.device, mode: str) -> None:
    z = torch.linspace(-3, 4, 10_001)
    results = []
    for device in ("cpu", cuda):
        points = z.to(device).requires_grad_()
        out = jump_relu(points, 1.0, mode)
        assert out.device == points.device
        (gradient,) = torch.autograd.grad(out.sum(), points)
        results.append((out.detach().cpu(), gradient.cpu()))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("jump", [0.0, 0.3, 1.0])
def test_predictions_and_gradients_are_those_of_the_cpu(
    mode: str, jump: float, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    """Of a few images a unit may lie so near its jump that rounding decides; in float64 of none."""
    x, y = digits.test.x[:100], np.eye(10, dtype=np.float32)[digits.test.y[:100]]
    _assert_devices_agree(digits_classifier, jump, mode, x, y, share=0.9)
    double = rebuild(digits_classifier, model=copy.deepcopy(digits_classifier.model).double())
    _assert_devices_agree(double, jump, mode, x, y)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("mode", MODES)
def test_a_residual_network_agrees_too(mode: str) -> None:
    random = np.random.default_rng(0)
    x, y = random.random((16, 3, 32, 32), dtype=np.float32), np.eye(10, dtype=np.float32)[random.integers(0, 10, 16)]
    classifier = residual()
    classifier.model.double()
    _assert_devices_agree(classifier, 0.05, mode, x, y)


def _assert_devices_agree(
    classifier: PyTorchClassifier, jump: float, mode: str, x: Any, y: Any, share: float = 1.0
) -> None:
    cpu, gpu = (JumpReLU(copy_to(kind, classifier), jump)() for kind in ("cpu", "gpu"))
    with gradient_mode(cpu, mode), gradient_mode(gpu, mode):
        assert_close(gpu.predict(x), cpu.predict(x), share)
        assert_close(gpu.loss_gradient(x, y), cpu.loss_gradient(x, y), share)
        assert_close(gpu.class_gradient(x, label=3), cpu.class_gradient(x, label=3), share)


@pytest.mark.parametrize("mode", MODES)
def test_the_module_is_on_the_device_and_agrees_with_art(
    cuda: torch.device, mode: str, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    """With the mean/std preprocessing of one channel, of three, and with none."""
    for original in (digits_classifier, residual(), rebuild(residual(), preprocessing=None)):
        transformed = JumpReLU(copy_to("gpu", original), 0.05)()
        module = as_module(transformed)
        assert {tensor.device for tensor in (*module.parameters(), *module.buffers())} == {cuda}
        x = np.random.default_rng(0).random((8, *original.input_shape), dtype=np.float32)
        y = np.arange(8)
        with gradient_mode(transformed, mode):
            images = torch.from_numpy(x).to(cuda).requires_grad_()
            logits = module(images)
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(y).to(cuda))
            (gradient,) = torch.autograd.grad(loss, images)
            assert_close(logits.detach().cpu().numpy(), transformed.predict(x))
            assert_close(gradient.cpu().numpy(), transformed.loss_gradient(x, np.eye(10, dtype=np.float32)[y]))


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_run_there(name: str, mode: str, digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    kind, settings, ball = ATTACKS[name]
    x, y = digits.test.x[:50], digits.test.y[:50]
    transformed = JumpReLU(copy_to("gpu", digits_classifier), 0.5)()
    attack = kind(transformed, gradient_mode=mode, batch_size=20, seed=1, **settings)
    x_adv = attack.generate(x, y)
    assert x_adv.dtype == np.float32
    assert x_adv.shape == x.shape
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    if ball is not None:
        norm, eps = ball
        assert np.linalg.norm((x_adv - x).reshape(50, -1), ord=norm, axis=1).max() <= eps * (1 + 1e-5)
    clean = (transformed.predict(x).argmax(axis=1) == y).mean()
    attacked = (transformed.predict(x_adv).argmax(axis=1) == y).mean()
    assert attacked <= clean if name == "noise" else attacked < clean


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("name", ["pgd linf", "annealed", "noise"])
def test_a_seed_gives_other_examples_than_another(
    name: str, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    kind, settings, _ = ATTACKS[name]
    transformed = JumpReLU(copy_to("gpu", digits_classifier), 0.5)()
    x, y = digits.test.x[:20], digits.test.y[:20]
    before = torch.cuda.get_rng_state()
    first, repeated, reseeded = (kind(transformed, seed=seed, **settings).generate(x, y) for seed in (1, 1, 2))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    # Not to the last bit: cuDNN may add in another order from run to run.
    assert (np.abs(first - repeated) > 1e-4).mean() < 0.01
    assert (np.abs(first - reseeded) > 1e-4).mean() > 0.01


@pytest.mark.usefixtures("cuda")
def test_the_robust_accuracy_is_that_of_the_cpu(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    """Without a random start both devices walk the same way, but for rounding."""
    x, y = digits.test.x[:200], digits.test.y[:200]
    correct = []
    for kind in ("cpu", "gpu"):
        transformed = JumpReLU(copy_to(kind, digits_classifier), 0.5)()
        x_adv = IterativeFGSM(transformed, eps_step=0.02, max_iter=6).generate(x, y)
        correct.append(transformed.predict(x_adv).argmax(axis=1) == y)
    assert (correct[0] != correct[1]).mean() <= 0.02


def test_everything_stays_on_the_device(cuda: torch.device, digits_classifier: PyTorchClassifier) -> None:
    classifier = copy_to("gpu", digits_classifier)
    assert classifier.device == cuda
    for full_copy in (False, True):
        transformed = JumpReLU(classifier, 0.3, copy=full_copy)()
        assert transformed.device == cuda
        assert {parameter.device for parameter in transformed.model.parameters()} == {cuda}
    assert rebuild(classifier).device == cuda
    assert rebuild(rebuild(copy_to("cpu", digits_classifier))).device == torch.device("cpu")
    assert defend(transformed, classifier.preprocessing).device == cuda


def test_a_full_copy_is_trained_there(
    cuda: torch.device, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    classifier = copy_to("gpu", digits_classifier)
    before = classifier.predict(digits.test.x[:50])
    transformed = JumpReLU(classifier, 0.3, copy=True)()
    weights = [parameter.detach().clone() for parameter in transformed.model.parameters()]
    transformed.fit(digits.train.x[:128], digits.train.y[:128], nb_epochs=1, batch_size=64)
    for old, new in zip(weights, transformed.model.parameters(), strict=True):
        assert new.device == cuda
        assert not torch.equal(old, new)
    np.testing.assert_array_equal(classifier.predict(digits.test.x[:50]), before)


@pytest.mark.usefixtures("cuda")
def test_tuning_chooses_the_jump_that_it_chooses_on_the_cpu(
    digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    """On a grid so coarse that the rounding of a unit cannot decide."""
    chosen = []
    for kind in ("cpu", "gpu"):
        transformer = JumpReLU(copy_to(kind, digits_classifier))
        transformer.fit(digits.validation.x, digits.validation.y, max_accuracy_drop=0.1, jumps=[0.5, 4.0, 16.0])
        chosen.append(transformer.jump)
    assert chosen[0] == chosen[1]


@pytest.mark.usefixtures("cuda")
def test_a_second_device_is_kept_when_it_is_not_the_current_one(
    digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is only one CUDA device")
    with torch.cuda.device(1):
        classifier = copy_to("gpu", digits_classifier)
    assert classifier.device == torch.device("cuda", 1)
    transformed = JumpReLU(classifier, 0.3)()
    assert rebuild(classifier).device == transformed.device == torch.device("cuda", 1)
    x_adv = MarginPGD(transformed, eps=0.2, max_iter=5).generate(digits.test.x[:10], digits.test.y[:10])
    assert x_adv.shape == (10, 1, 8, 8)


RESTORERS: dict[str, tuple[type[TrainedRestorer], dict[str, Any]]] = {
    "autoencoder": (FeatureAutoencoder, {}),
    **{name: (TwoStreamRestoration, {"map": name, "blocks": 1}) for name in ("stacked", "sum", "predicted")},
}


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("name", RESTORERS)
def test_a_restorer_gives_the_images_and_gradients_that_it_gives_on_the_cpu(
    name: str, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    face, options = RESTORERS[name]
    x = torch.from_numpy(digits.test.x[:40])
    outputs = []
    for kind in ("cpu", "gpu"):
        classifier = copy_to(kind, digits_classifier)
        restorer = face.for_classifier(classifier, **options)
        weights = restorer.state_dict()
        generator = torch.Generator().manual_seed(1)
        restorer.load_state_dict(
            {key: 0.1 * torch.randn(value.shape, generator=generator) for key, value in sorted(weights.items())}
        )
        module = as_module(defend(classifier, restorer))
        results = [module(x.to(classifier.device)).detach()]
        for mode in restorer.gradient_modes:
            with gradient_mode(module, mode):
                live = x.to(classifier.device).requires_grad_()
                results.append(torch.autograd.grad(module(live).logsumexp(dim=1).sum(), live)[0])
        outputs.append([result.cpu() for result in results])
    for actual, expected in zip(*outputs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", RESTORERS)
def test_a_restorer_is_trained_there_and_loaded_here(
    name: str, cuda: torch.device, digits_classifier: PyTorchClassifier, digits: Dataset, tmp_path: Path
) -> None:
    """In bfloat16, killed midway or not; the parameters come back in float32 and stay in channels-last."""
    face, options = RESTORERS[name]
    classifier = copy_to("gpu", digits_classifier)
    restorer = face.for_classifier(classifier, **options)
    fit_options = {"eps": 0.1, "nb_epochs": 3, "batch_size": 50, "learning_rate": 5e-3, "progress": False}
    restorer.fit(digits.train.x[:500], digits.train.y[:500], **fit_options, checkpoint=tmp_path / "part")
    totals = [sum(epoch.training.values()) for epoch in restorer.history]
    assert totals[-1] < totals[0]
    for parameter in restorer.network.parameters():
        assert (parameter.device, parameter.dtype) == (cuda, torch.float32)
        layout = torch.channels_last if parameter.ndim == 4 else torch.contiguous_format
        assert parameter.is_contiguous(memory_format=layout)
    restorer.save(tmp_path / "fitted")
    loaded = face.load(tmp_path / "fitted", classifier=copy_to("cpu", digits_classifier))
    x = digits.test.x[:100]
    expected = defend(classifier, restorer).predict(x)
    np.testing.assert_allclose(defend(copy_to("cpu", digits_classifier), loaded).predict(x), expected, atol=1e-3)


def detectors(original: PyTorchClassifier, x: Any, **options: Any) -> list[ExplanationReconstructor]:
    """The same one on both, fitted on the CPU."""
    pair = [
        ExplanationReconstructor(copy_to(kind, original), false_positive_rate=0.1, **options) for kind in ("cpu", "gpu")
    ]
    pair[0].fit(x, nb_epochs=3, learning_rate=3e-3, progress=False)
    pair[1].network.load(pair[0].network.state_dict())
    return pair


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("name", EXPLANATIONS)
def test_a_detector_gives_the_scores_and_gradients_that_it_gives_on_the_cpu(
    name: str, digits_classifier: PyTorchClassifier, digits: Dataset
) -> None:
    """In float64, where rounding decides of no unit, percentile or median; scores in float32 as well."""
    x = digits.test.x[:100]
    single = detectors(digits_classifier, digits.train.x, explanation=name)
    double = detectors(
        rebuild(digits_classifier, model=copy.deepcopy(digits_classifier.model).double()),
        digits.train.x,
        explanation=name,
    )
    actual, expected = (detector.detect(x)[0] for detector in reversed(single))
    assert_close(actual["scores"], expected["scores"], share=0.97)
    np.testing.assert_array_equal(actual["classes"], expected["classes"])
    for mode in ("exact", "smooth"):
        outputs = []
        for watcher in double:
            network = watcher.network.double()
            with gradient_mode(watcher.detector, mode):
                live = torch.from_numpy(x).double().to(network.device).requires_grad_()
                scores, _ = network.scores(live)
                (gradient,) = torch.autograd.grad(scores.sum(), live)
            assert scores.device == gradient.device == network.device
            outputs.append((scores.detach().cpu().numpy(), gradient.cpu().numpy()))
        for actual, expected in zip(*reversed(outputs), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.usefixtures("cuda")
def test_the_autoencoders_of_all_classes_agree(cuda: torch.device) -> None:
    """Though there each class has room for every image."""
    torch.manual_seed(0)
    on_cpu, maps, classes = ClassAutoencoders(5, 30, 8), torch.rand(40, 30), torch.randint(4, (40,))
    on_cuda = copy.deepcopy(on_cpu).to(cuda)
    results = []
    for autoencoders in (on_cpu, on_cuda):
        device = autoencoders.encoder.device
        live = maps.to(device).requires_grad_()
        outputs = autoencoders(live, classes.to(device))
        gradients = torch.autograd.grad(outputs.square().sum(), [live, *autoencoders.parameters()])
        results.append([value.detach().cpu() for value in (outputs, *gradients)])
    for actual, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_detector_is_fitted_there_and_loaded_here(
    cuda: torch.device, digits_classifier: PyTorchClassifier, digits: Dataset, tmp_path: Path
) -> None:
    """In bfloat16; weights and thresholds come back in float32, and a copy stays on the device."""
    detector = ExplanationReconstructor(copy_to("gpu", digits_classifier), scaling="benign", false_positive_rate=0.1)
    fit_options = {"nb_epochs": 5, "learning_rate": 3e-3, "progress": False, "checkpoint": tmp_path / "part"}
    detector.fit(digits.train.x, **fit_options)
    assert detector.training is not None
    losses = [loss for loss, _ in detector.training.losses]
    assert losses[-1] < losses[0]
    for fitted in (detector, copy.deepcopy(detector)):
        assert {tensor.device for tensor in fitted.network.state_dict().values()} == {cuda}
        assert {parameter.dtype for parameter in fitted.network.parameters()} == {torch.float32}
        assert fitted.detector.device == cuda
    x = digits.test.x[:100]
    expected, flagged = detector.detect(x)
    np.testing.assert_allclose(detector.detector.predict(x), expected["predictions"], atol=1e-5)
    detector.save(tmp_path / "fitted")
    loaded = ExplanationReconstructor.load(tmp_path / "fitted", classifier=copy_to("cpu", digits_classifier))
    assert_close(loaded.scores(x), expected["scores"], share=0.97)
    assert (loaded.detect(x)[1] == flagged).mean() > 0.97


@pytest.mark.usefixtures("cuda")
def test_a_rejecting_classifier_agrees(digits_classifier: PyTorchClassifier, digits: Dataset) -> None:
    x, y = digits.test.x[:100], np.eye(11, dtype=np.float32)[digits.test.y[:100]]
    double = rebuild(digits_classifier, model=copy.deepcopy(digits_classifier.model).double())
    watchers = detectors(double, digits.train.x)
    for watcher in watchers:
        watcher.network.double()
    on_cpu, on_cuda = (rejecting(watcher.classifier, watcher) for watcher in watchers)
    for mode in ("exact", "smooth"):
        with gradient_mode(on_cpu, mode), gradient_mode(on_cuda, mode):
            assert_close(on_cuda.predict(x), on_cpu.predict(x))
            assert_close(on_cuda.loss_gradient(x, y), on_cpu.loss_gradient(x, y))
