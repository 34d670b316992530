"""Networks of other people's collections, from small local checkpoints in the published format."""

from __future__ import annotations

import json
import re
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
from torchvision.models import WeightsEnum, get_model, get_model_weights
from transformers import (
    BaseImageProcessor,
    ConvNextImageProcessor,
    EfficientNetImageProcessor,
    ImageGPTImageProcessor,
    MobileViTImageProcessor,
    PerceiverImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)

from art_defenses_ext import load_model
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.zoo.catalogue import COLLECTIONS
from art_defenses_ext.zoo.classifiers import load_classifier
from art_defenses_ext.zoo.datasets import Dataset
from art_defenses_ext.zoo.loaders import LOADERS, load_pretrained
from art_defenses_ext.zoo.models import build_model

MEAN, STD, SIZE = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 32
NORMALISATION = {"image_mean": MEAN, "image_std": STD}
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


def vit_processor(**changes: Any) -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": SIZE, "width": SIZE}, **NORMALISATION, **changes)


def hf_checkpoint(folder: Path, processor: BaseImageProcessor | None = None) -> Saved:
    config = {"embedding_size": 4, "hidden_sizes": [4, 4], "depths": [1, 1], "layer_type": "basic", "num_labels": 5}
    network = ResNetForImageClassification(ResNetConfig(**config))
    network.save_pretrained(folder)
    (processor or vit_processor()).save_pretrained(folder)
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


@pytest.mark.parametrize("collection", CHECKPOINTS)
def test_other_weights_are_those_of_the_collection_s_network(
    collection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their keys are those that the collection saves, though a wrapper holds the network of Hugging Face."""
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    name, network, *_ = CHECKPOINTS[collection](tmp_path)
    state = {key: value + 1 if value.is_floating_point() else value for key, value in network.state_dict().items()}
    torch.save(state, tmp_path / "tuned.pt")
    loaded = load_model(name, tmp_path / "tuned.pt").model.state_dict()
    assert {key.removeprefix("network."): value.sum() for key, value in loaded.items()} == {
        key: value.sum() for key, value in state.items()
    }
    torch.save(loaded, tmp_path / "again.pt")
    load_model(name, tmp_path / "again.pt")


def settings(network: nn.Module) -> list[Any]:
    """All by which a network differs from another one of its weights."""
    plain = (bool, int, float, str, tuple, list, type(None))
    return [
        (name, type(part), {key: value for key, value in vars(part).items() if isinstance(value, plain)})
        for name, part in network.named_modules()
    ] + [(name, tensor.shape) for name, tensor in network.state_dict().items()]


@pytest.mark.parametrize(
    ("name", "implied"),
    [
        ("googlenet", {"transform_input": True, "aux_logits": False}),
        ("inception_v3", {"transform_input": True, "aux_logits": True}),
        ("vit_h_14", {"image_size": 518}),
        ("vit_b_16", {"image_size": 224}),
        ("resnet18", {}),
    ],
)
def test_a_network_of_torchvision_is_built_as_its_published_weights_imply(
    name: str, implied: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_args, **_options: {})
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_args, **_options: None)
    with torch.device("meta"):  # the largest has 2.5 GB of weights
        pretrained = load_pretrained(f"torchvision:{name}")
        theirs = get_model(name, weights="DEFAULT").eval()
    assert settings(pretrained.network) == settings(theirs)
    assert {key: getattr(pretrained.network, key) for key in implied} == implied
    assert pretrained.input_shape[1] == implied.get("image_size", pretrained.input_shape[1])


@pytest.mark.parametrize(("name", "options"), [("googlenet", {"init_weights": False}), ("densenet121", {})])
def test_published_weights_give_the_logits_of_torchvisions_own_network(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / Path(get_model_weights(name).DEFAULT.url).name
    file.parent.mkdir()
    torch.manual_seed(1)
    state = get_model(name, **options).state_dict()
    # In the form of the published files, which are older: the builder renames the layers of a DenseNet.
    old = {re.sub(r"(denselayer\d+\.[a-z]+)(\d)", r"\1.\2", key): value for key, value in state.items()}
    torch.save({key: value for key, value in old.items() if "num_batches_tracked" not in key}, file)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        ours = load_pretrained(f"torchvision:{name}").network(x)
        theirs = get_model(name, weights="DEFAULT").eval()(x)
    assert torch.equal(ours, theirs)


def test_code_in_a_file_of_torchvision_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    name = torchvision_checkpoint(tmp_path)[0]
    (file,) = (tmp_path / "checkpoints").iterdir()
    torch.save({"code": Path("of another package")}, file)
    with pytest.raises(InputError, match=r"cannot be loaded \(.*Weights only load failed"):
        load_pretrained(name)
    assert "get_state_dict" not in vars(get_model_weights(TORCHVISION).DEFAULT)


SQUARE = {"height": SIZE, "width": SIZE}

PROCESSORS: dict[str, BaseImageProcessor] = {
    "a second division by the deviation": EfficientNetImageProcessor(size=SQUARE, **NORMALISATION),
    "values from -1": EfficientNetImageProcessor(size=SQUARE, rescale_factor=1 / 127.5, rescale_offset=True),
    "blue first": MobileViTImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE),
    "grey levels, blue first": MobileViTImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE, do_rescale=False),
    "normalised grey levels": vit_processor(do_rescale=False),
    "a range up to 2": vit_processor(rescale_factor=2 / 255),
    "grey levels": vit_processor(do_rescale=False, do_normalize=False),
    "a crop": ConvNextImageProcessor(size={"shortest_edge": SIZE}, crop_pct=0.8, **NORMALISATION),
    "a size after the crop": PerceiverImageProcessor(size=SQUARE, crop_size={"height": 40, "width": 40}),
    "other sides": ViTImageProcessor(size={"height": SIZE, "width": 24}, **NORMALISATION),
}


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
def test_all_that_an_hf_checkpoint_does_to_the_colours_is_done(processor: BaseImageProcessor, tmp_path: Path) -> None:
    torch.manual_seed(1)
    name, network, *_ = hf_checkpoint(tmp_path, processor)
    classifier = load_model(name)
    assert classifier.input_shape == (3, SIZE, dict(processor.size).get("width") or SIZE)
    image = np.random.default_rng(0).integers(0, 256, classifier.input_shape, dtype=np.uint8)
    pixels = processor(images=image, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = network.eval()(pixels.float()).logits
    np.testing.assert_allclose(
        classifier.predict(image[None] / np.float32(255)), expected.numpy(), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (
            MobileViTImageProcessor(size={"shortest_edge": 16}, crop_size=SQUARE),  # pads the sides
            "its MobileViTImageProcessor does more to the colours than a mean and a deviation can say",
        ),
        (
            ImageGPTImageProcessor(clusters=[[0.0] * 3, [1.0] * 3], size=SQUARE),
            r"its ImageGPTImageProcessor makes no batch \(4, 3, H, W\) of 4 images \(3, 32, 32\)",
        ),
    ],
)
def test_an_hf_checkpoint_whose_processor_does_more_is_refused(
    processor: BaseImageProcessor, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        load_model(hf_checkpoint(tmp_path, processor)[0])


def test_an_hf_checkpoint_that_does_not_normalise_gets_no_normalisation(tmp_path: Path) -> None:
    name = hf_checkpoint(tmp_path, vit_processor(do_normalize=False))[0]
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
