"""What is saved comes back as it was, and only for the network that it belongs to."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from safetensors.torch import save_file
from torch import nn

from art_defenses_ext import HeatAndBlur
from art_defenses_ext.attribution.relevance import epsilon_plus
from art_defenses_ext.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from art_defenses_ext.datasets import Dataset
from art_defenses_ext.validation import InputError


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))


def test_settings_and_tensors_come_back_bit_for_bit(network: nn.Module, tmp_path: Path) -> None:
    own = nn.Linear(3, 4).to(torch.float64)
    settings = {"name": "é", "numbers": [1, 2.5, None, True]}
    save_checkpoint(tmp_path / "one.safetensors", "kind", settings, own, network)
    found, tensors = load_checkpoint(tmp_path / "one.safetensors", "kind", network)
    assert found == settings
    assert tensors.keys() == own.state_dict().keys()
    for name, tensor in own.state_dict().items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


@pytest.mark.parametrize("change", ["a weight", "a statistic", "the dtype", "a name"])
def test_a_fingerprint_knows_a_network_from_any_other(change: str, network: nn.Module) -> None:
    before = fingerprint(network)
    assert fingerprint(deepcopy(network)) == before
    if change == "a weight":
        with torch.no_grad():
            network[3].weight[0, 0] += 1e-6
    elif change == "a statistic":
        network[1].running_mean[1] = 0.5
    elif change == "the dtype":
        network.double()
    else:
        network.append(nn.Identity())
        network = nn.Sequential(network)
    assert fingerprint(network) != before


def test_a_network_in_bfloat16_has_a_fingerprint(network: nn.Module) -> None:
    assert fingerprint(network.bfloat16()) != fingerprint(network.float())


def test_a_defence_restores_the_same_images_after_loading(
    digits_classifier: PyTorchClassifier, digits: Dataset, tmp_path: Path
) -> None:
    saved = HeatAndBlur.for_classifier(digits_classifier, mix="strength", sigma=1.0, sharp_sigma=0.3, floor=0.1)
    saved.save(tmp_path / "heat.safetensors")
    loaded = HeatAndBlur.load(tmp_path / "heat.safetensors", classifier=digits_classifier)
    assert loaded.describe() == saved.describe()
    x = digits.test.x[:5]
    assert np.array_equal(loaded(x)[0], saved(x)[0])


def test_what_cannot_be_used_is_refused_in_words(
    network: nn.Module, own_classifier: PyTorchClassifier, tmp_path: Path
) -> None:
    path = tmp_path / "one.safetensors"
    save_checkpoint(path, "kind", {}, nn.Identity(), network)
    with pytest.raises(InputError, match="existing file was expected"):
        load_checkpoint(tmp_path / "none", "kind", network)
    with pytest.raises(InputError, match="holds a kind; a other was expected"):
        load_checkpoint(path, "other", network)
    with pytest.raises(InputError, match="built for another network"):
        load_checkpoint(path, "kind", nn.Linear(2, 2))
    (tmp_path / "text").write_text("no checkpoint")
    with pytest.raises(InputError, match="no safetensors file"):
        load_checkpoint(tmp_path / "text", "kind", network)
    save_file({"weight": torch.zeros(2)}, tmp_path / "plain")
    with pytest.raises(InputError, match="holds no defence of this version"):
        load_checkpoint(tmp_path / "plain", "kind", network)
    with pytest.raises(InputError, match="existing folder"):
        save_checkpoint(tmp_path / "no" / "folder", "kind", {}, nn.Identity(), network)
    face = HeatAndBlur.for_classifier(own_classifier, rules=epsilon_plus())
    with pytest.raises(InputError, match="cannot be saved"):
        face.save(tmp_path / "composite")
    assert not (tmp_path / "composite").exists()
