"""A vision transformer and a ConvNeXt on CIFAR-10: JumpReLU's jump, and where Heat and Blur starts in them.

    python examples/networks_cifar10.py --data DIR [--images 300] [--weights DIR]

DIR holds CIFAR-10 as torchvision lays it out. Both networks are torchvision's, small, and train here without
augmentation: seven and eleven minutes on one core. ``--weights`` keeps them for the next call.

For each network, on validation images: clean accuracy by jump; and for each start of relevance, clean accuracy and
accuracy under PGD (10 steps) that was made on the undefended network, as the paper attacks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import ConvNeXt, VisionTransformer
from torchvision.models.convnext import CNBlockConfig

from art_defenses_ext import HeatAndBlur, JumpReLU, Linf, defend
from art_defenses_ext.attribution.relevance import Layer
from art_defenses_ext.base.declared import Kind
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.suite.papers import paper_specs
from art_defenses_ext.training.classifier import train_classifier
from art_defenses_ext.zoo.datasets import Dataset, Split, load_dataset

EPS = (2, 4, 8)
JUMPS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def transformer() -> nn.Module:
    """Return a vision transformer: patches of 4 x 4 pixels, three blocks of width 64, a class token."""
    return VisionTransformer(32, 4, 3, 4, 64, 128, num_classes=10)


def convnext() -> nn.Module:
    """Return a ConvNeXt: patches of 2 x 2 pixels, four blocks of widths 24 to 96."""
    blocks = [CNBlockConfig(24, 48, 1), CNBlockConfig(48, 96, 2), CNBlockConfig(96, None, 1)]
    network: Any = ConvNeXt(blocks, layer_scale=0.1, num_classes=10)
    network.features[0][0] = nn.Conv2d(3, 24, 2, 2)  # the original's patches of 4 x 4 leave 2 x 2 places at the end
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "transformer": (transformer, 20000, 6),
    "convnext": (convnext, 45000, 5),
}
"""Networks, and their training images and epochs, by name: minutes of one core."""


def classifier_of(name: str, data: Dataset, run: argparse.Namespace) -> PyTorchClassifier:
    """Return a trained classifier, with the weights of an earlier call if there are any."""
    build, nb_images, epochs = NETWORKS[name]
    torch.manual_seed(0)
    network = build()
    file = None if run.weights is None else Path(run.weights) / f"{name}.safetensors"
    if file is not None and file.is_file():
        network.load_state_dict(load_file(file))
    else:
        x, y = (values[: run.train or nb_images] for values in (data.train.x, data.train.y))
        train_classifier(network, x, y, mean=MEAN, std=STD, nb_epochs=run.epochs or epochs, progress=False)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(network.state_dict(), file)
    return PyTorchClassifier(
        network.eval(),
        nn.CrossEntropyLoss(),
        data.input_shape,
        data.nb_classes,
        clip_values=(0.0, 1.0),
        preprocessing=(np.array(MEAN, dtype=np.float32), np.array(STD, dtype=np.float32)),
        device_type="cpu",
    )


class FromLayer(HeatAndBlur):
    """Heat and Blur that starts at a layer of the network, by its name."""

    layer: Annotated[str, Kind("the name of a layer", str)]

    def _start(self) -> Layer:
        return Layer(self.layer)


STARTS: dict[str, dict[str, str]] = {
    "transformer": {
        "the patches, before all blocks": "conv_proj",
        "last dense layer of the last block": "encoder.layers.encoder_layer_2.mlp.3",
        "last block, with the class token": "encoder.ln",
    },
    "convnext": {
        "the last block's convolution": "features.5.0.block.0",
        "last dense layer of the last block": "features.5.0.block.5",
    },
}
"""Layers to start at besides the names that the method knows, by network."""


def restorers(name: str, classifier: PyTorchClassifier) -> Iterator[tuple[str, HeatAndBlur]]:
    """Yield the method at every start, and its blur alone."""
    yield "blur alone", HeatAndBlur.for_classifier(classifier, mix="blur")
    for title, layer in STARTS[name].items():
        yield title, FromLayer.for_classifier(classifier, layer=layer)
    for start in ("last_conv", "predicted", "top_k", "positive"):
        yield f"`{start}`", HeatAndBlur.for_classifier(classifier, start=start)


def starts(name: str, classifier: PyTorchClassifier, part: Split) -> None:
    """Print the table of starts."""
    one_hot = np.eye(classifier.nb_classes, dtype=np.float32)[part.y]
    sets = {"clean": part.x}
    pgd = next(spec for spec in paper_specs(HeatAndBlur) if spec.name.startswith("PGD"))
    for eps in EPS:
        attack = pgd.build(classifier, Linf(eps / 255), 0)
        sets[f"PGD-10 {eps}/255"] = attack.generate(part.x, one_hot)
    print(f"\n{name}, {len(part.x)} validation images, accuracy in %\n")
    print(f"| start | {' | '.join(sets)} | mean |")
    print("|---" * (len(sets) + 2) + "|", flush=True)
    shown = [("undefended", classifier)]
    shown += [(title, defend(classifier, restorer)) for title, restorer in restorers(name, classifier)]
    for title, defended in shown:
        shares = [100 * float((defended.predict(x).argmax(axis=1) == part.y).mean()) for x in sets.values()]
        cells = [f"{share:.1f}" for share in (*shares, np.mean(shares))]
        print(f"| {title} | {' | '.join(cells)} |", flush=True)


def jumps(name: str, classifier: PyTorchClassifier, part: Split) -> None:
    """Print the clean accuracy by jump, and the jump that ``fit`` chooses."""
    accuracies = [float((classifier.predict(part.x).argmax(axis=1) == part.y).mean())]
    for jump in JUMPS:
        accuracies.append(float((JumpReLU(classifier, jump)().predict(part.x).argmax(axis=1) == part.y).mean()))
    defence = JumpReLU(classifier)
    try:
        defence.fit(part.x, part.y)
        chosen = f"{defence.jump:.3g}"
    except InputError:
        chosen = "none"
    print(f"\n| {name}, jump | undefended | {' | '.join(f'{jump:g}' for jump in JUMPS)} | `fit`, 1 point |")
    print("|---" * (len(JUMPS) + 3) + "|")
    print(f"| clean accuracy, % | {' | '.join(f'{100 * share:.1f}' for share in accuracies)} | {chosen} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10")
    parser.add_argument("--train", type=int, help="training images instead of each network's own number")
    parser.add_argument("--epochs", type=int, help="training epochs instead of each network's own number")
    parser.add_argument("--images", type=int, default=300, help="validation images")
    parser.add_argument("--weights", help="folder of the networks' weights, read or written")
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--only", choices=["train"], help="train and keep the weights, without the tables")
    parser.add_argument("--threads", type=int, default=1)
    run = parser.parse_args()
    torch.set_num_threads(run.threads)
    data = load_dataset("cifar10", run.data)
    part = Split(data.validation.x[: run.images], data.validation.y[: run.images])
    for name in run.networks:
        classifier = classifier_of(name, data, run)
        if run.only == "train":
            continue
        jumps(name, classifier, part)
        starts(name, classifier, part)


if __name__ == "__main__":
    main()
