"""What is saved comes back as it was, and only for the network that it belongs to."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file
from torch import nn

from art_defenses_ext import FeatureAutoencoder, HeatAndBlur
from art_defenses_ext.attribution.relevance import epsilon_plus
from art_defenses_ext.base.checkpoint import (
    FORMAT,
    VERSION,
    check_format,
    check_kinds,
    fingerprint,
    load_checkpoint,
    read_tensors,
    save_checkpoint,
    write_tensors,
)
from art_defenses_ext.base.errors import InputError


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))


def test_settings_and_tensors_come_back_bit_for_bit(network: nn.Module, tmp_path: Path) -> None:
    module = nn.Linear(3, 4).to(torch.float64)
    settings = {"name": "é", "numbers": [1, 2.5, None, True]}
    save_checkpoint(tmp_path / "one.safetensors", "kind", settings, module, network)
    checkpoint = load_checkpoint(tmp_path / "one.safetensors", "kind", network)
    assert checkpoint.settings == settings
    assert checkpoint.training == []
    assert checkpoint.tensors.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert checkpoint.tensors[name].dtype == tensor.dtype
        assert torch.equal(checkpoint.tensors[name], tensor)


def test_weights_that_are_one_and_views_of_others_can_be_written(tmp_path: Path) -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    tensors = {"one": weight, "same": weight, "turned": weight.T, "row": weight[1], "wide": weight[:1].expand(5, 4)}
    tensors |= {"number": torch.tensor(2), "none": torch.zeros(0, 3), "half": weight.bfloat16(), "flag": weight > 5}
    write_tensors(tmp_path / "one", tensors, {"a": "é"})
    metadata, loaded = read_tensors(tmp_path / "one")
    assert metadata == {"a": "é"}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


@pytest.mark.parametrize("fails", ["in the middle of writing", "before the exchange"])
def test_writing_that_fails_leaves_the_former_file(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one"
    write_tensors(path, {"a": torch.zeros(3)}, {})
    before = path.read_bytes()

    def half(tensors: Any, file: Path, metadata: Any) -> None:
        file.write_bytes(before[: len(before) // 2])
        raise OSError("no space left")

    def refuse(*_: Any) -> None:
        raise OSError("no permission")

    if fails == "in the middle of writing":
        monkeypatch.setattr("art_defenses_ext.base.checkpoint.save_file", half)
    else:
        monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(InputError, match=r"path is .*, which cannot be written \(OSError: no .*\); a file"):
        write_tensors(path, {"a": torch.ones(3)}, {})
    monkeypatch.undo()
    assert path.read_bytes() == before
    write_tensors(path, {"a": torch.ones(3)}, {})  # what was left lying around is in nobody's way
    assert torch.equal(read_tensors(path)[1]["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


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
    with pytest.raises(InputError, match="holds no 'art-defenses-ext defence'; a file that this package wrote"):
        load_checkpoint(tmp_path / "plain", "kind", network)
    with pytest.raises(InputError, match="existing file was expected"):
        load_checkpoint(tmp_path, "kind", network)
    for setting in (object(), float("nan")):
        for given_settings, training in (({"a": setting}, []), ({}, [{"a": setting}])):
            with pytest.raises(InputError, match="a setting of kind cannot be saved"):
                save_checkpoint(tmp_path / "odd", "kind", given_settings, nn.Identity(), network, training)
    assert not (tmp_path / "odd").exists()
    with pytest.raises(InputError, match="existing folder"):
        save_checkpoint(tmp_path / "no" / "folder", "kind", {}, nn.Identity(), network)
    face = HeatAndBlur.for_classifier(own_classifier, rules=epsilon_plus())
    with pytest.raises(InputError, match="cannot be saved"):
        face.save(tmp_path / "composite")
    assert not (tmp_path / "composite").exists()


@pytest.mark.parametrize(
    ("stored_format", "message"),
    [
        ("name 3", None),
        ("name 1", None),
        ("name 4", "of format 4; this version of art-defenses-ext reads formats up to 3"),
        ("name 12", "of format 12; this version of art-defenses-ext reads formats up to 3"),
        ("other 1", "which holds no 'name'; a file that this package wrote was expected"),
        ("name", "which holds no 'name'"),
        ("name -1", "which holds no 'name'"),
        ("name one", "which holds no 'name'"),
        (None, "which holds no 'name'"),
    ],
)
def test_a_format_is_known_by_its_name_and_up_to_a_version(stored_format: str | None, message: str | None) -> None:
    metadata = {} if stored_format is None else {"format": stored_format}
    if message is None:
        check_format(Path("file"), metadata, "name", 3)
        return
    with pytest.raises(InputError) as error:
        check_format(Path("file"), metadata, "name", 3)
    assert str(error.value).startswith(f"path is 'file', {message}")


def test_a_file_of_a_later_version_of_the_package_is_refused(network: nn.Module, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "one", "kind", {}, nn.Identity(), network)
    metadata, tensors = read_tensors(tmp_path / "one")
    write_tensors(tmp_path / "one", tensors, metadata | {"format": f"{FORMAT} {VERSION + 1}", "settings": "unheard of"})
    with pytest.raises(InputError, match=rf"(?m)of format {VERSION + 1}; this version .* up to {VERSION}$"):
        load_checkpoint(tmp_path / "one", "kind", network)


@pytest.fixture(scope="module")
def file_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "one"
    write_tensors(path, nn.Linear(3, 4).state_dict(), {"a": "b"})
    return path.read_bytes()


@settings(max_examples=25)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_anywhere_is_refused(share: float, file_bytes: bytes) -> None:
    with NamedTemporaryFile() as file:
        Path(file.name).write_bytes(file_bytes[: int(share * len(file_bytes))])
        with pytest.raises(InputError, match="which is no safetensors file"):
            read_tensors(Path(file.name))


class Program:
    """What a pickle runs as it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_a_pickle_is_refused_and_does_not_run(network: nn.Module, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "plain").write_bytes(pickle.dumps(Program(trace)))
    torch.save({"weight": torch.zeros(2), "program": Program(trace)}, tmp_path / "torch")
    for name in ("plain", "torch"):
        with pytest.raises(InputError, match="which is no safetensors file"):
            load_checkpoint(tmp_path / name, "kind", network)
    assert not trace.exists()
    pickle.loads((tmp_path / "plain").read_bytes())
    assert trace.exists()


# Weights of another kind, and places that nothing can be written to

KINDS: dict[str, Callable[[], Any]] = {
    "int64": lambda: torch.zeros(4, 3, dtype=torch.int64),
    "bool": lambda: torch.zeros(4, 3, dtype=torch.bool),
    "complex64": lambda: torch.ones(4, 3, dtype=torch.complex64) * 1j,
    "float8": lambda: torch.zeros(4, 3).to(torch.float8_e4m3fn),
    "meta": lambda: torch.zeros(4, 3, device="meta"),
    "sparse": lambda: torch.eye(4, 3).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(4, 3), 0.1, 0, torch.quint8),
    "no tensor": lambda: np.zeros((4, 3)),
    "NaN": lambda: torch.full((4, 3), torch.nan),
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_another_kind_are_refused(kind: str) -> None:
    with pytest.raises(InputError, match=r"^file is 'a': weight (is|holds) .* (was|were) expected"):
        check_kinds("file is 'a'", {"weight": KINDS[kind]()}, {"weight": torch.zeros(4, 3)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_numbers_of_another_width_are_taken(dtype: torch.dtype) -> None:
    check_kinds("file is 'a'", {"weight": torch.zeros(4, 3, dtype=dtype)}, {"weight": torch.zeros(4, 3)})


@pytest.mark.parametrize("kind", ["meta", "sparse", "quantised"])
def test_tensors_without_plain_values_are_not_saved(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"weight is a tensor of .*; a dense tensor with values was expected"):
        write_tensors(tmp_path / "one", {"weight": KINDS[kind]()}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["int64", "float8"])
def test_a_defence_does_not_load_weights_of_another_kind(
    kind: str, own_classifier: PyTorchClassifier, tmp_path: Path
) -> None:
    restorer = FeatureAutoencoder.for_classifier(own_classifier, width=2)
    restorer._is_fitted = True
    restorer.save(tmp_path / "one")
    metadata, tensors = read_tensors(tmp_path / "one")
    name = next(iter(tensors))
    tensors[name] = tensors[name].to(KINDS[kind]().dtype)
    write_tensors(tmp_path / "one", tensors, metadata)
    with pytest.raises(InputError, match=f"{name} is a tensor of .* was expected"):
        FeatureAutoencoder.load(tmp_path / "one", classifier=own_classifier)


@pytest.mark.parametrize("place", [None, "", "a folder", "missing/one", "a\0b", "x" * 300])
def test_a_place_that_holds_no_file_is_refused_and_nothing_is_left(
    place: Any, own_classifier: PyTorchClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a folder").mkdir()
    defence = HeatAndBlur.for_classifier(own_classifier)
    with pytest.raises(InputError, match=r"path is .* expected"):
        defence.save(place)
    assert [path.name for path in tmp_path.iterdir()] == ["a folder"]


@pytest.mark.parametrize("text", ["null", "[", "[" * 100_000])
@pytest.mark.parametrize("name", ["settings", "training"])
def test_settings_that_are_none_are_refused(
    name: str, text: str, own_classifier: PyTorchClassifier, tmp_path: Path
) -> None:
    HeatAndBlur.for_classifier(own_classifier).save(tmp_path / "one")
    metadata, tensors = read_tensors(tmp_path / "one")
    write_tensors(tmp_path / "one", tensors, metadata | {name: text})
    with pytest.raises(InputError, match=f"path is .*, whose {name} .* was expected"):
        HeatAndBlur.load(tmp_path / "one", classifier=own_classifier)
