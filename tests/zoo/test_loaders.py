"""Networks of other people's collections, from small local checkpoints in the published format."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from torch import nn
from torchvision.models import get_model, get_model_weights
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from art_defenses_ext import load_model
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.zoo.catalogue import COLLECTIONS
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import Dataset
from art_defenses_ext.zoo.loaders import LOADERS
from art_defenses_ext.zoo.models import build_model

MEAN, STD, SIZE = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 32
TORCHVISION = "squeezenet1_1"

Saved = tuple[str, nn.Module, tuple[float, ...], tuple[float, ...], int]
"""The checkpoint's name; the network that was saved, its mean and std, the side of its images."""


def timm_checkpoint(folder: Path) -> Saved:
    network = timm.create_model("test_resnet", num_classes=5)
    save_for_hf(network, folder)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": MEAN, "std": STD, "input_size": [3, SIZE, SIZE], "num_classes": 5}
    (folder / "config.json").write_text(json.dumps(config | {"num_classes": 5}))
    return f"timm:{folder}", network, MEAN, STD, SIZE


def hf_checkpoint(folder: Path, **changes: Any) -> Saved:
    config = {"embedding_size": 4, "hidden_sizes": [4, 4], "depths": [1, 1], "layer_type": "basic", "num_labels": 5}
    network = ResNetForImageClassification(ResNetConfig(**config))
    network.save_pretrained(folder)
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=MEAN, image_std=STD, **changes).save_pretrained(
        folder
    )
    return f"hf:{folder}", network, MEAN, STD, SIZE


def torchvision_checkpoint(folder: Path) -> Saved:
    network = get_model(TORCHVISION)
    published = get_model_weights(TORCHVISION).DEFAULT
    (folder / "checkpoints").mkdir()
    torch.save(network.state_dict(), folder / "checkpoints" / Path(published.url).name)
    transforms = published.transforms()
    return f"torchvision:{TORCHVISION}", network, tuple(transforms.mean), tuple(transforms.std), 224


CHECKPOINTS: dict[str, Callable[[Path], Saved]] = {
    "timm": timm_checkpoint, "hf": hf_checkpoint, "torchvision": torchvision_checkpoint
}  # fmt: skip


def test_each_collection_has_a_loader() -> None:
    assert tuple(LOADERS) == COLLECTIONS == tuple(CHECKPOINTS)


@pytest.mark.parametrize("collection", CHECKPOINTS)
def test_a_checkpoint_gives_its_network_with_its_own_normalisation(
    collection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    torch.manual_seed(1)
    name, network, mean, std, side = CHECKPOINTS[collection](tmp_path)
    classifier = load_model(name)
    assert (classifier.input_shape, classifier.clip_values.tolist()) == ((3, side, side), [0, 1])
    x = torch.rand(2, 3, side, side)
    normalised = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        logits = network.eval()(normalised)
    expected = getattr(logits, "logits", logits)
    assert classifier.nb_classes == expected.shape[1]
    np.testing.assert_allclose(classifier.predict(x.numpy()), expected.numpy(), atol=1e-5)


def test_an_hf_checkpoint_that_does_not_normalise_gets_no_normalisation(tmp_path: Path) -> None:
    name = hf_checkpoint(tmp_path, do_normalize=False)[0]
    preprocessing = load_model(name).preprocessing
    assert (np.ravel(preprocessing.mean) == 0).all()
    assert (np.ravel(preprocessing.std) == 1).all()


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    hf = hf_checkpoint(tmp_path / "hf")[0]
    (tmp_path / "timm").mkdir()
    in_timm = timm_checkpoint(tmp_path / "timm")[0]
    changes = (("hf", "hidden_sizes", [4, 8]), ("timm", "architecture", "test_vit"))
    for name, (folder, key, value) in zip((hf, in_timm), changes, strict=True):
        file = tmp_path / folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
        with pytest.raises(InputError, match="which cannot be loaded"):
            load_model(name)


@pytest.mark.parametrize(("module", "collection"), [("timm", "timm"), ("transformers", "hf")])
def test_a_package_that_is_not_installed_is_named_with_its_command(
    module: str, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf'cannot be imported .*`pip install "art-defenses-ext\[{collection}\]"`'):
        load_model(f"{collection}:any")


def test_other_names_are_refused() -> None:
    for name in ("resnet18", "keras:any", "timm:", 3):
        with pytest.raises(InputError, match="one of timm:NAME, hf:NAME, torchvision:NAME was expected"):
            load_model(name)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="timm:NAME"):
        build_model("keras")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model("torchvision:no_such_network")


def test_the_commands_networks_are_those_of_the_collections(tmp_path: Path, digits: Dataset) -> None:
    name = hf_checkpoint(tmp_path)[0]
    with pytest.raises(InputError, match=r"takes images \(3, 32, 32\); digits has \(1, 8, 8\)"):
        load_classifier(digits, name)
