"""Data sets: fixed parts that share nothing, files as torchvision lays them out, one sentence for each failure."""

from __future__ import annotations

import gzip
import hashlib
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, MNIST
from torchvision.transforms.functional import to_tensor

from art_defenses_ext.datasets import DATASETS, Dataset, Split, load_dataset
from art_defenses_ext.validation import InputError

NB_TRAINING, NB_TEST = 5_020, 30


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Keep the user's folders out of the tests that do not ask for them."""
    if "data_root" not in request.fixturenames:
        monkeypatch.delenv("ART_DEFENSES_DATA", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Point torchvision at a port where nobody listens."""
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")


def idx(array: np.ndarray[Any, Any]) -> bytes:
    """Return an array of bytes in the format of the MNIST files."""
    return struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def made_up_mnist() -> dict[str, bytes]:
    """Return the four files by name: image i of each part is filled with i modulo 256 and labelled i modulo 10."""
    files = {}
    for part, size in (("train", NB_TRAINING), ("t10k", NB_TEST)):
        number = np.arange(size)
        images = np.broadcast_to((number % 256).astype(np.uint8)[:, None, None], (size, 28, 28))
        files[f"{part}-images-idx3-ubyte"] = idx(images)
        files[f"{part}-labels-idx1-ubyte"] = idx((number % 10).astype(np.uint8))
    return files


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def parts(dataset: Dataset) -> list[Split]:
    return [dataset.train, dataset.validation, dataset.test]


# The digits


def test_digits_are_997_300_and_500_images_in_0_1() -> None:
    dataset = load_dataset("digits")
    assert (dataset.name, dataset.input_shape, dataset.nb_classes) == ("digits", (1, 8, 8), 10)
    for split, size in zip(parts(dataset), (997, 300, 500), strict=True):
        assert split.x.shape == (size, 1, 8, 8)
        assert split.y.shape == (size,)
        assert (split.x.dtype, split.y.dtype) == (np.float32, np.int64)
        assert (split.x.min(), split.x.max()) == (0, 1)


def test_the_parts_of_digits_share_no_image_and_lack_none() -> None:
    together = parts(load_dataset("digits"))
    found = sorted((int(y), x.tobytes()) for split in together for x, y in zip(split.x * 16, split.y, strict=True))
    digits = load_digits()
    images = digits.images.astype(np.float32)
    assert found == sorted((int(y), x.tobytes()) for x, y in zip(images, digits.target, strict=True))


def test_each_part_of_digits_holds_each_class_in_proportion() -> None:
    share = np.bincount(load_digits().target) / 1797
    for split in parts(load_dataset("digits")):
        assert np.abs(np.bincount(split.y) - share * len(split.y)).max() <= 1


def test_the_parts_of_digits_are_the_same_on_every_machine() -> None:
    """The numbers of all later measurements hang on these three sums."""
    together = parts(load_dataset("digits"))
    sums = [hashlib.sha256((split.x * 16).astype(np.uint8).tobytes()).hexdigest()[:12] for split in together]
    assert sums == ["2b51fa50269d", "8d9216cb3449", "0ac1efb199d2"]


def test_digits_ignores_the_variable_but_not_a_root_that_was_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ART_DEFENSES_DATA", "/nowhere")
    assert len(load_dataset("digits").test.y) == 500
    with pytest.raises(InputError, match=r"^root is '/nowhere'; an existing folder was expected$"):
        load_dataset("digits", "/nowhere")


# Files of the published format


def test_the_last_5000_training_images_are_the_validation_part(tmp_path: Path) -> None:
    write(tmp_path / "MNIST" / "raw", made_up_mnist())
    dataset = load_dataset("mnist", tmp_path)
    assert [len(split.y) for split in parts(dataset)] == [NB_TRAINING - 5_000, 5_000, NB_TEST]
    number = np.arange(NB_TRAINING)
    for split, expected in ((dataset.train, number[:20]), (dataset.validation, number[20:])):
        np.testing.assert_array_equal(split.y, expected % 10)
        np.testing.assert_array_equal(split.x[:, 0, 3, 5], (expected % 256).astype(np.float32) / 255)


def test_a_part_is_read_when_it_is_asked_for_and_once(tmp_path: Path) -> None:
    write(tmp_path / "FashionMNIST" / "raw", made_up_mnist())
    dataset = load_dataset("fashion_mnist", str(tmp_path))
    first = dataset.test
    for file in (tmp_path / "FashionMNIST" / "raw").iterdir():
        file.unlink()
    assert dataset.test is first
    with pytest.raises(InputError, match=r"the files in .*FashionMNIST/raw cannot be used"):
        _ = dataset.train


def test_the_root_comes_from_the_argument_else_the_variable_else_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argument, variable, cache = tmp_path / "a", tmp_path / "b", tmp_path / "home" / ".cache" / "art-defenses-ext"
    for root, size in ((argument, 11), (variable, 12), (cache, 13)):
        files = made_up_mnist() | {
            "t10k-images-idx3-ubyte": idx(np.zeros((size, 28, 28), np.uint8)),
            "t10k-labels-idx1-ubyte": idx(np.zeros(size, np.uint8)),
        }
        write(root / "MNIST" / "raw", files)
    assert len(load_dataset("mnist").test.y) == 13
    monkeypatch.setenv("ART_DEFENSES_DATA", str(variable))
    assert len(load_dataset("mnist").test.y) == 12
    assert len(load_dataset("mnist", argument).test.y) == 11


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda files: files.update({"t10k-images-idx3-ubyte": b""}), "Error"),
        (lambda files: files.update({"t10k-images-idx3-ubyte": files["t10k-images-idx3-ubyte"][:-1]}), "Error"),
        (lambda files: files.update({"t10k-labels-idx1-ubyte": idx(np.zeros(7, np.uint8))}), "for 7 labels"),
        (lambda files: files.update({"t10k-labels-idx1-ubyte": idx(np.full(NB_TEST, 10, np.uint8))}), "outside 0 to 9"),
        (lambda files: files.update({"t10k-images-idx3-ubyte": idx(np.zeros((NB_TEST, 8, 8), np.uint8))}), "shape"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: Callable[[dict[str, bytes]], None], reason: str) -> None:
    files = made_up_mnist()
    damage(files)
    write(tmp_path / "MNIST" / "raw", files)
    with pytest.raises(InputError, match=f"name is 'mnist', but the files in .*MNIST/raw cannot be used .*{reason}"):
        _ = load_dataset("mnist", tmp_path).test


# Roots and names


def test_an_unknown_name_is_answered_with_the_names() -> None:
    with pytest.raises(
        InputError, match=r"^name is 'svhn'; one of digits, mnist, fashion_mnist, cifar10 was expected$"
    ):
        load_dataset("svhn")


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("root", ["/nowhere", Path("/nowhere"), "", 3])
def test_a_root_that_does_not_exist_is_refused(name: str, root: Any) -> None:
    with pytest.raises(InputError, match=r"^root is '?.*'?; an existing folder was expected$"):
        load_dataset(name, root)


def test_a_variable_that_names_no_folder_is_blamed_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ART_DEFENSES_DATA", "/nowhere")
    message = r"^the environment variable ART_DEFENSES_DATA is '/nowhere'; an existing folder was expected$"
    with pytest.raises(InputError, match=message):
        load_dataset("cifar10")


# Downloads


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "folder", "loader"), [("mnist", "MNIST/raw", "MNIST"), ("cifar10", "cifar-10-batches-py", "CIFAR10")]
)
def test_without_a_network_the_folder_and_the_way_out_are_named(
    tmp_path: Path, name: str, folder: str, loader: str
) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset(name, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"name is {name!r}, but ")
    assert f"torchvision.datasets.{loader}(root, download=True)" in message
    assert message.endswith(f"were expected in {tmp_path / folder}")
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("offline")
def test_a_failed_download_leaves_no_trace_of_the_cache(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with pytest.raises(InputError, match="could not be downloaded"):
        load_dataset("mnist")
    assert list((tmp_path / "home").iterdir()) == []


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A web server with the made-up MNIST files, in place of the published ones; the folder that it serves."""
    served = tmp_path / "served"
    archives = {f"{name}.gz": gzip.compress(content) for name, content in made_up_mnist().items()}
    write(served, archives)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(
        MNIST,
        "resources",
        [(name, hashlib.md5(archives[name]).hexdigest()) for name, _ in MNIST.resources],
    )
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("mirror")
def test_missing_files_are_downloaded_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = load_dataset("mnist")
    assert [len(split.y) for split in parts(dataset)] == [NB_TRAINING - 5_000, 5_000, NB_TEST]
    raw = tmp_path / "home" / ".cache" / "art-defenses-ext" / "MNIST" / "raw"
    assert {file.name: file.read_bytes() for file in raw.iterdir()} == made_up_mnist()
    assert list((tmp_path / "home").rglob("*download*")) == []
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("mirror")
def test_a_download_leaves_files_alone_that_are_there(tmp_path: Path) -> None:
    mine = idx(np.full(NB_TEST, 7, np.uint8))
    write(tmp_path / "root" / "MNIST" / "raw", {"t10k-labels-idx1-ubyte": mine})
    dataset = load_dataset("mnist", tmp_path / "root")
    assert (dataset.test.y == 7).all()


def test_a_download_that_breaks_off_leaves_nothing_behind(tmp_path: Path, mirror: Path) -> None:
    (mirror / "t10k-images-idx3-ubyte.gz").unlink()
    (tmp_path / "root").mkdir()
    with pytest.raises(InputError, match="HTTP Error 404"):
        load_dataset("mnist", tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


# The real files


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "shape", "sizes"),
    [
        ("mnist", (1, 28, 28), (55_000, 5_000, 10_000)),
        ("fashion_mnist", (1, 28, 28), (55_000, 5_000, 10_000)),
        ("cifar10", (3, 32, 32), (45_000, 5_000, 10_000)),
    ],
)
def test_the_published_files(data_root: Path, name: str, shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    dataset = load_dataset(name, data_root)
    assert dataset.input_shape == shape
    for split, size in zip(parts(dataset), sizes, strict=True):
        assert split.x.shape == (size, *shape)
        assert (split.x.dtype, split.y.dtype) == (np.float32, np.int64)
        assert (split.x.min(), split.x.max()) == (0, 1)
        assert len(np.unique(split.y)) == 10


@pytest.mark.data
@pytest.mark.parametrize(("name", "loader"), [("mnist", MNIST), ("cifar10", CIFAR10)])
def test_images_are_those_of_torchvision(data_root: Path, name: str, loader: Any) -> None:
    theirs = loader(data_root, train=False)
    test = load_dataset(name, data_root).test
    for index in (0, 17, 9_999):
        image, label = theirs[index]
        np.testing.assert_array_equal(test.x[index], to_tensor(image).numpy())
        assert test.y[index] == label
