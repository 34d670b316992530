"""Which networks each defence takes: derivatives against finite differences, time and memory.

    python tests/benchmarks/networks.py [--networks vit_b_16 ...] [--defences jump_relu ...] [--threads 1]
    python tests/benchmarks/networks.py --defences    # lost relevance only, a minute
    python tests/benchmarks/networks.py --restorers [--networks ...]    # their weights and training, 1,000 classes

Builds torchvision's networks with random weights and prints the table of docs/networks.md. The first and second
derivative of the defended network, in one direction, are held against central differences, in float64 and at a reduced
image size, where the network allows one. Lost relevance is the difference of the sum of relevance and the logit, in
shares of the logit, under rules that conserve, in float64 at the same size; biases, means of batch norms and class
tokens are zero. Time and memory are those of a forward pass and its gradient for one image of 224 pixels in float32;
memory is what they take beyond the network's. Takes about half an hour on one core.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torchvision.models import get_model

from art_defenses_ext import (
    ExplanationReconstructor,
    FeatureAutoencoder,
    HeatAndBlur,
    JumpReLU,
    TwoStreamRestoration,
    as_module,
    rejecting,
)
from art_defenses_ext.attribution.relevance import Composite, relevance
from art_defenses_ext.attribution.rules import Epsilon
from art_defenses_ext.attribution.second_order import elementary_operations
from art_defenses_ext.base.errors import InputError

NETWORKS: dict[str, dict[str, Any]] = {
    "vit_b_16": {"image_size": 32},  # it is built for one size
    **{name: {} for name in ("swin_t", "swin_v2_t", "convnext_tiny", "efficientnet_b0", "mobilenet_v3_small")},
    **{name: {} for name in ("regnet_y_400mf", "shufflenet_v2_x1_0", "resnet50", "densenet121")},
    "googlenet": {"aux_logits": False, "init_weights": False},
    "maxvit_t": {},
}
"""Networks of torchvision, and options of their constructors."""

SIZE, FULL = 32, 224
"""Image sizes, of derivatives and of time and memory; MaxViT's windows fit no smaller image than the latter."""

NB_CLASSES = 5

STEPS = (1e-5, 1e-4, 1e-6, 1e-7)
"""Of central differences, in float64; the first that agrees counts."""

LARGEST = 1e-4
"""Error of a derivative, in shares of the gradient's length, up to which it agrees."""


def build(name: str, size: int, nb_classes: int = NB_CLASSES) -> nn.Module:
    """Return a network of torchvision with random weights."""
    options = NETWORKS[name] | ({"image_size": size} if "image_size" in NETWORKS[name] else {})
    torch.manual_seed(0)
    return get_model(name, num_classes=nb_classes, **options)


def settle(network: nn.Module, size: int) -> None:
    """Give batch norms the statistics of noise, without which the signal of an untrained network fades with depth."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain average, here of one batch
    with torch.no_grad():
        count = 2 if size == FULL else 32  # small maps have few places
        network.train()(torch.rand(count, 3, size, size, dtype=next(network.parameters()).dtype))


def wrapped(network: nn.Module, size: int) -> PyTorchClassifier:
    """Return a classifier of images (3, size, size) in [0, 1]."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear) and layer.out_features == NB_CLASSES:
            layer.reset_parameters()  # which a vision transformer sets to zero
    settle(network, size)
    return PyTorchClassifier(
        network.eval(), nn.CrossEntropyLoss(), (3, size, size), NB_CLASSES, clip_values=(0.0, 1.0), device_type="cpu"
    )


# The defences, with random weights where they are trained


def _jump_relu(classifier: PyTorchClassifier) -> nn.Module:
    return as_module(JumpReLU(classifier, 0.01)())


def _restored(face: type[Any], **options: Any) -> Callable[[PyTorchClassifier], nn.Module]:
    def defended(classifier: PyTorchClassifier) -> nn.Module:
        restorer = face.for_classifier(classifier, **options)
        dtype = next(classifier.model.parameters()).dtype
        state = {name: 0.1 * torch.randn_like(values) for name, values in restorer.state_dict().items()}
        restorer.load_state_dict(state)
        return as_module(restorer.to(dtype).apply(classifier))

    return defended


def _heat_and_blur(classifier: PyTorchClassifier) -> nn.Module:
    return as_module(HeatAndBlur.for_classifier(classifier).apply(classifier))


def _detector(classifier: PyTorchClassifier) -> nn.Module:
    detector = ExplanationReconstructor(classifier, score="l2", hidden=16)
    detector.network.make()
    detector.network.keep(torch.zeros(20 * NB_CLASSES), torch.arange(20 * NB_CLASSES) % NB_CLASSES, 0.05)
    detector.network.to(next(classifier.model.parameters()).dtype)
    return as_module(rejecting(classifier, detector))


DEFENCES: dict[str, Callable[[PyTorchClassifier], nn.Module]] = {
    "jump_relu": _jump_relu,
    "feature_autoencoder": _restored(FeatureAutoencoder, width=4),
    "two_stream_restoration": _restored(TwoStreamRestoration, width=4, blocks=1),
    "heat_and_blur": _heat_and_blur,
    "explanation_reconstructor": _detector,
}
"""From a classifier to logits of the defended one, as a network of images in the clip range."""


# Derivatives


@elementary_operations()
def derivatives(network: nn.Module, x: Tensor, steps: Sequence[float] = STEPS) -> tuple[float, float]:
    """Return the errors of the first and second derivative, in shares of the gradients' lengths.

    Both are taken along one random direction and held against central differences; the first step that agrees counts.
    """
    direction = nn.functional.normalize(torch.randn_like(x).flatten(), dim=0).view_as(x)
    weight = torch.randn(x.shape[0], NB_CLASSES + 1, dtype=x.dtype)

    def loss(x: Tensor) -> Tensor:
        logits = network(x)
        total: Tensor = (weight[:, : logits.shape[1]] * logits).sum() + logits.logsumexp(dim=1).sum()
        return total

    @torch.enable_grad()
    def gradient(x: Tensor, again: bool = False) -> Tensor:
        live = x if x.requires_grad else x.clone().requires_grad_()
        return torch.autograd.grad(loss(live), live, create_graph=again)[0]

    other = torch.randn_like(x)

    def slope(x: Tensor) -> Tensor:
        return (gradient(x) * other).sum()

    live = x.clone().requires_grad_()
    first = gradient(live, again=True)
    (second,) = torch.autograd.grad((first * other).sum(), live)
    return _error(loss, first.detach(), x, direction, steps), _error(slope, second, x, direction, steps)


@torch.no_grad()
def _error(
    function: Callable[[Tensor], Tensor], gradient: Tensor, x: Tensor, direction: Tensor, steps: Sequence[float]
) -> float:
    along, length = (gradient * direction).sum(), gradient.norm()
    if not gradient.isfinite().all() or length == 0:
        return float("inf")
    errors: list[float] = []
    for step in steps:
        above, below = (function(x + sign * step * direction) for sign in (1, -1))
        errors.append(float((along - (above - below) / (2 * step)).abs() / length))
        if errors[-1] <= LARGEST:
            break
    return min(errors)


# Conservation of relevance

TINY = 1e-30  # activations of untrained networks are small
CONSERVING = Composite(Epsilon(TINY), Epsilon(TINY), scale=Epsilon(TINY), stabilizer=TINY, attention="values")


@torch.no_grad()
def zero_constants(network: nn.Module) -> None:
    """Set to zero what takes a part of the relevance: biases, means, and a class token with its place's embedding."""
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if name.endswith(("bias", "class_token", "running_mean")):
            tensor.zero_()
        elif name.endswith("pos_embedding"):
            tensor[:, 0] = 0


@torch.no_grad()
def lost_relevance(network: nn.Module, x: Tensor, rules: Composite) -> float:
    """Return the difference of the sum of relevance and the largest logit, in shares of the logit."""
    logit = network(x).amax()
    return float((relevance(network, x, "predicted", rules).sum() - logit).abs() / logit.abs())


def conservation(name: str) -> float:
    """Return the lost relevance of a full network under the rules that conserve."""
    size = FULL if name == "maxvit_t" else SIZE
    network = as_module(wrapped(build(name, size).double(), size))
    zero_constants(network)
    return lost_relevance(network, torch.rand(1, 3, size, size, dtype=torch.float64), CONSERVING)


# Time and memory


def forward_and_gradient(network: nn.Module, x: Tensor) -> None:
    live = x.clone().requires_grad_()
    logits = network(live)
    torch.autograd.grad(logits.logsumexp(dim=1).sum(), live)


def cost(network: nn.Module, x: Tensor) -> tuple[float, float]:
    """Return the processor seconds and the MiB of a forward pass and its gradient."""
    return measured(lambda: forward_and_gradient(network, x))


def measured(call: Callable[[], object]) -> tuple[float, float]:
    """Return the processor seconds and the MiB that a call takes."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
    before, start = _memory("VmRSS"), time.process_time()
    call()
    return time.process_time() - start, (_memory("VmHWM") - before) / 1024


def _memory(kind: str) -> int:
    """KiB, out of the process's status."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[kind].split()[0])


def restorer_row(name: str, face: type[Any]) -> str:
    """Return a restorer's weights, a restored image and a training step in words, at its default size."""
    classifier = PyTorchClassifier(
        build(name, FULL, 1000).eval(), nn.CrossEntropyLoss(), (3, FULL, FULL), 1000, clip_values=(0.0, 1.0),
        device_type="cpu",
    )  # fmt: skip
    restorer = face.for_classifier(classifier)
    x, labels = torch.rand(8, 3, FULL, FULL).numpy(), torch.arange(8).numpy()
    settings = {"eps": 2 / 255, "nb_epochs": 1, "batch_size": 8, "validation_split": 0.0, "progress": False}
    seconds, memory = measured(lambda: restorer.fit(x, labels, **settings))
    weights = sum(values.nbytes for values in restorer.state_dict().values()) / 1024
    once, taken = cost(as_module(restorer.apply(classifier)), torch.rand(1, 3, FULL, FULL))
    return (
        f"| {face.name} on {name} | {weights:.0f} KiB | {once:.2f} s, {taken:.0f} MiB "
        f"| {seconds / len(x):.1f} s, {memory / len(x):.0f} MiB |"
    )


# The table


def cell(name: str, defence: str) -> tuple[float, str]:
    """Return the largest error of a derivative, and time and memory in words."""
    size = FULL if name == "maxvit_t" else SIZE
    try:
        torch.manual_seed(0)
        defended = DEFENCES[defence](wrapped(build(name, size).double(), size))
        errors = derivatives(defended, torch.rand(1, 3, size, size, dtype=torch.float64))
        seconds, memory = cost(DEFENCES[defence](wrapped(build(name, FULL), FULL)), torch.rand(1, 3, FULL, FULL))
    except InputError as error:
        return 0.0, f"refused: {error}"
    return max(errors), f"{seconds:.2f} s, {memory:.0f} MiB"


def main() -> None:
    from timing import device_name  # beside this file, which tests import from elsewhere

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--defences", nargs="*", choices=list(DEFENCES), default=list(DEFENCES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--restorers", action="store_true", help="the restorers at their default sizes instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} thread(s), {device_name(torch.device('cpu'))}\n")
    if options.restorers:
        print("| restorer | weights | an image | training, for each image of a batch |\n|---|---|---|---|", flush=True)
        for name in options.networks:
            for face in (FeatureAutoencoder, TwoStreamRestoration):
                print(restorer_row(name, face), flush=True)
        return
    columns = ["network", "lost relevance", *(["largest error", "undefended"] if options.defences else [])]
    print(f"| {' | '.join([*columns, *options.defences])} |")
    print("|---" * len([*columns, *options.defences]) + "|", flush=True)
    for name in options.networks:
        lost = conservation(name)
        if not options.defences:
            print(f"| {name} | {lost:.0e} |", flush=True)
            continue
        seconds, memory = cost(as_module(wrapped(build(name, FULL), FULL)), torch.rand(1, 3, FULL, FULL))
        cells = [cell(name, defence) for defence in options.defences]
        words = [f"{seconds:.2f} s, {memory:.0f} MiB", *(text for _, text in cells)]
        print(f"| {name} | {lost:.0e} | {max(error for error, _ in cells):.0e} | {' | '.join(words)} |", flush=True)


if __name__ == "__main__":
    main()
