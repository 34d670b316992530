"""Data sets: fixed parts that share nothing, files as torchvision lays them out, one sentence for each failure."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, MNIST, SVHN, ImageFolder
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import to_tensor

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.zoo import image_folder
from art_defenses_ext.zoo.datasets import DATASETS, Dataset, Split, data_found, load_dataset
from art_defenses_ext.zoo.image_folder import ImageFiles, find_images

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
    take_for_published(monkeypatch, {"train_32x32.mat": b"", "test_32x32.mat": b""})


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


def mat(**arrays: np.ndarray[Any, Any]) -> bytes:
    """Return arrays in the format of the SVHN files."""
    file = io.BytesIO()
    savemat(file, arrays, do_compression=True)
    return file.getvalue()


def made_up_pixels(size: int) -> np.ndarray[Any, Any]:
    """Return images (N, 3, 32, 32) in which neither the numbers, the channels, the rows nor the columns are alike."""
    number, channel, row, column = np.ogrid[:size, :3, :32, :32]
    return np.asarray(number + 70 * channel + 2 * row + 5 * column, dtype=np.uint8)


def made_up_svhn() -> dict[str, bytes]:
    """Return both files by name: image i of each part shows the digit i modulo 10, where 0 is labelled 10."""
    files = {}
    for part, size in (("train", NB_TRAINING), ("test", NB_TEST)):
        digit = np.arange(size) % 10
        label = np.where(digit == 0, 10, digit).astype(np.uint8)[:, None]
        files[f"{part}_32x32.mat"] = mat(X=made_up_pixels(size).transpose(2, 3, 1, 0), y=label)
    return files


def take_for_published(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], address: str = "http://127.0.0.1:9"
) -> None:
    """Have torchvision take these SVHN files, by their checksums, for the published ones, and find them there."""
    parts = {name.partition("_")[0]: (name, hashlib.md5(content).hexdigest()) for name, content in files.items()}
    split_list = {part: [f"{address}/{name}", name, checksum] for part, (name, checksum) in parts.items()}
    monkeypatch.setattr(SVHN, "split_list", split_list)


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
    actual = sorted((int(y), x.tobytes()) for split in together for x, y in zip(split.x * 16, split.y, strict=True))
    digits = load_digits()
    images = digits.images.astype(np.float32)
    assert actual == sorted((int(y), x.tobytes()) for x, y in zip(images, digits.target, strict=True))


def test_the_parts_of_digits_are_the_same_on_every_machine() -> None:
    """The numbers of all later measurements hang on these three sums."""
    together = parts(load_dataset("digits"))
    sums = [hashlib.sha256((split.x * 16).astype(np.uint8).tobytes()).hexdigest()[:12] for split in together]
    assert sums == ["2b51fa50269d", "8d9216cb3449", "0ac1efb199d2"]


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


def test_svhn_is_read_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = made_up_svhn()
    take_for_published(monkeypatch, files)
    write(tmp_path, files)
    dataset = load_dataset("svhn", tmp_path)
    assert (dataset.name, dataset.input_shape, dataset.nb_classes) == ("svhn", (3, 32, 32), 10)
    pixels, number = made_up_pixels(NB_TRAINING), np.arange(NB_TRAINING)
    members = (number[:20], number[20:], number[:NB_TEST])
    for split, expected in zip(parts(dataset), members, strict=True):
        assert (split.x.dtype, split.y.dtype) == (np.float32, np.int64)
        assert split.x.flags.c_contiguous
        np.testing.assert_array_equal(split.x, pixels[expected].astype(np.float32) / 255)
        np.testing.assert_array_equal(split.y, expected % 10)  # the label 10 is class 0
    theirs = SVHN(tmp_path, "test")
    for index in (0, 10, 17):
        image, label = theirs[index]
        np.testing.assert_array_equal(dataset.test.x[index], to_tensor(image).numpy())
        assert dataset.test.y[index] == label


PIXELS = np.zeros((32, 32, 3, NB_TEST), np.uint8)
LABELS = np.ones((NB_TEST, 1), np.uint8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Error"),
        (mat(X=PIXELS), "KeyError: 'y'"),
        (mat(X=PIXELS[:8, :8], y=LABELS), "shape"),
        (mat(X=PIXELS, y=LABELS[:7]), "for 7 labels"),
        (mat(X=PIXELS, y=LABELS + 10), "outside 0 to 9"),
    ],
)
def test_a_damaged_file_of_svhn_is_refused_and_nothing_else_in_the_root_is_to_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, reason: str
) -> None:
    files = {"train_32x32.mat": b"", "test_32x32.mat": content}
    take_for_published(monkeypatch, files)
    write(tmp_path, files)
    message = (
        f"(?m)^name is 'svhn', but the files in {tmp_path} cannot be used .*{reason}.*; "
        "the published ones were expected: "
        "delete train_32x32.mat, test_32x32.mat to have them downloaded again$"
    )
    with pytest.raises(InputError, match=message):
        _ = load_dataset("svhn", tmp_path).test


def test_files_of_svhn_that_are_not_the_published_ones_are_refused(tmp_path: Path) -> None:
    write(tmp_path, made_up_svhn())
    with pytest.raises(InputError, match=r"cannot be used .*corrupted"):
        _ = load_dataset("svhn", tmp_path).test


# Roots and names


def test_an_unknown_name_is_answered_with_the_names() -> None:
    names = "digits, mnist, fashion_mnist, cifar10, svhn, image_folder"
    with pytest.raises(InputError, match=f"(?m)^name is 'stl10'; one of {names} was expected$"):
        load_dataset("stl10")


@pytest.mark.parametrize(
    ("name", "root"), [*((name, Path("/nowhere")) for name in DATASETS), ("digits", ""), ("mnist", 3)]
)
def test_a_root_that_does_not_exist_is_refused(name: str, root: Any) -> None:
    with pytest.raises(InputError, match=r"(?m)^root is '?.*'?; an existing folder was expected$"):
        load_dataset(name, root)


# Downloads


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "folder", "files"),
    [
        ("mnist", "MNIST/raw", made_up_mnist()),
        ("cifar10", "cifar-10-batches-py", ["data_batch_1", "test_batch"]),
        ("svhn", "", ["train_32x32.mat", "test_32x32.mat"]),
    ],
)
def test_without_a_network_the_files_the_folder_and_the_way_out_are_named(
    tmp_path: Path, name: str, folder: str, files: Iterable[str]
) -> None:
    with pytest.raises(InputError) as error:
        load_dataset(name, tmp_path)
    message = str(error.value)
    assert message.startswith(f"name is {name!r}, but ")
    assert all(file in message for file in files)
    assert "torchvision.datasets" in message
    assert message.endswith(f"were expected in {tmp_path / folder}")
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A web server with made-up MNIST and SVHN files, in place of the published ones; the folder that it serves."""
    served = tmp_path / "served"
    archives = {f"{name}.gz": gzip.compress(content) for name, content in made_up_mnist().items()}
    svhn = made_up_svhn()
    write(served, archives | svhn)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    take_for_published(monkeypatch, svhn, address)
    monkeypatch.setattr(MNIST, "mirrors", [f"{address}/"])
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


def test_a_download_that_breaks_off_leaves_nothing_behind(tmp_path: Path, mirror: Path) -> None:
    (mirror / "t10k-images-idx3-ubyte.gz").unlink()
    (tmp_path / "root").mkdir()
    with pytest.raises(InputError, match="HTTP Error 404"):
        load_dataset("mnist", tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


def test_both_files_of_svhn_are_downloaded_beside_other_data(tmp_path: Path, mirror: Path) -> None:
    root = tmp_path / "root"
    write(root / "MNIST" / "raw", made_up_mnist())
    dataset = load_dataset("svhn", root)
    assert sorted(path.name for path in root.iterdir()) == ["MNIST", "test_32x32.mat", "train_32x32.mat"]
    for name in ("test_32x32.mat", "train_32x32.mat"):
        assert (root / name).read_bytes() == (mirror / name).read_bytes()
        (mirror / name).unlink()
    assert [len(split.y) for split in parts(load_dataset("svhn", root))] == [NB_TRAINING - 5_000, 5_000, NB_TEST]
    assert (dataset.test.y == np.arange(NB_TEST) % 10).all()


# Folders of images: image i is filled with the value i, so that each can be told from the others


def made_up_image(value: int, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> Image.Image:
    """An image of a height and width, filled with ``value``."""
    return Image.new(mode, (size[1], size[0]), (value,) * 3 if mode == "RGB" else value)


def write_images(folder: Path, names: list[str], **options: Any) -> Path:
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        made_up_image(value, **options).save(folder / name)
    return folder


def labelled_folder(folder: Path, count: int = 7, **options: Any) -> Path:
    """Images 00.png, 01.png, ..., labelled 0, 10, 20, ... in another order than that of the names."""
    write_images(folder, [f"{value:02}.png" for value in range(count)], **options)
    rows = [f"{value:02}.png,{10 * value}\n" for value in reversed(range(count))]
    (folder / "labels.csv").write_text("file,label\n" + "".join(rows))
    return folder


def values(split: Split) -> list[int]:
    """The value that fills each image."""
    assert all(len(np.unique(image)) == 1 for image in split.x)
    return [round(float(image[0, 0, 0]) * 255) for image in split.x]


def test_a_folder_of_images_is_halved_by_name(tmp_path: Path) -> None:
    dataset = load_dataset("image_folder", labelled_folder(tmp_path))
    assert (dataset.name, dataset.input_shape, dataset.nb_classes) == ("image_folder", (3, 6, 5), 61)
    assert (dataset.nb_validation, dataset.open_classes) == (3, True)
    for split, members in ((dataset.test, [0, 2, 4, 6]), (dataset.validation, [1, 3, 5])):
        assert split.x.shape == (len(members), 3, 6, 5)
        assert (split.x.dtype, split.y.dtype) == (np.float32, np.int64)
        assert sorted(values(split)) == members
        assert split.y.tolist() == [10 * value for value in values(split)]


def test_the_order_within_a_half_is_mixed_and_fixed(tmp_path: Path) -> None:
    """The numbers of all later measurements hang on it."""
    dataset = load_dataset("image_folder", labelled_folder(tmp_path, 20))
    assert values(dataset.test) == [4, 16, 8, 18, 2, 12, 14, 6, 0, 10]
    assert values(dataset.validation) == [5, 17, 9, 19, 3, 13, 15, 7, 1, 11]


def test_class_folders_are_numbered_as_torchvision_does(tmp_path: Path) -> None:
    names = [f"{animal}/{number}.png" for animal in ("cat", "dog", "Eel") for number in range(4)]
    write_images(tmp_path, names)
    dataset = load_dataset("image_folder", tmp_path)
    theirs = ImageFolder(str(tmp_path))
    expected = {np.asarray(theirs[index][0])[0, 0, 0]: theirs[index][1] for index in range(len(theirs))}
    assert (dataset.nb_classes, dataset.open_classes) == (3, False)
    for split in (dataset.test, dataset.validation):
        assert [expected[value] for value in values(split)] == split.y.tolist()
        assert np.bincount(split.y).tolist() == [2, 2, 2]
    assert sorted(values(dataset.test) + values(dataset.validation)) == list(range(12))


def test_class_folders_hold_the_images_that_torchvision_takes(tmp_path: Path) -> None:
    endings = ("png", "webp", "bmp", "ppm", "pgm", "tif", "tiff", "JPEG", "jpg")
    names = [f"cat/{number}.{ending}" for number, ending in enumerate(endings)]
    names += ["cat/b/0.png", "cat/b-c/0.png", "cat/b/d/0.webp", "dog/e/0.png", "dog/e.png", "dog/1.png"]
    write_images(tmp_path, names)
    (tmp_path / "dog" / "notes.txt").touch()
    images = find_images(tmp_path)
    theirs = ImageFolder(str(tmp_path))
    assert [(str(file), label) for file, label in zip(images.files, images.labels, strict=True)] == theirs.samples
    dataset = load_dataset("image_folder", tmp_path)
    expected = sorted(np.asarray(image)[0, 0, 0] for image, _ in theirs)
    assert sorted(values(dataset.test) + values(dataset.validation)) == expected


def test_hidden_files_and_folders_are_ignored(tmp_path: Path) -> None:
    shown = [f"{animal}/{number}.png" for animal in ("cat", "dog") for number in range(2)]
    write_images(tmp_path, [*shown, "cat/.0.png", "cat/.cache/0.png", ".cache/0.png"])
    assert [file.relative_to(tmp_path).as_posix() for file in find_images(tmp_path).files] == shown


def test_the_folder_may_lie_in_the_root_beside_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labelled_folder(tmp_path / "nips2017")
    write_images(tmp_path / "MNIST", ["a.png", "b.png"])
    monkeypatch.setenv("ART_DEFENSES_DATA", str(tmp_path))
    for root in (None, tmp_path, tmp_path / "nips2017", str(tmp_path)):
        assert len(load_dataset("image_folder", root).test.y) == 4


@pytest.mark.parametrize(
    "content",
    [
        "image_id,class_index\na,3\nb,1\n",
        "class_index,author,image_id\n3,me,a.png\n1,you,b.JPG\n",
        "\ufefffile,label\r\na.png, 3\r\nb,1 \r\n\r\n",
    ],
)
def test_forms_of_a_labels_file(tmp_path: Path, content: str) -> None:
    write_images(tmp_path, ["a.png", "b.JPG", ".hidden.png"])
    (tmp_path / "notes.txt").touch()
    (tmp_path / "labels.csv").write_bytes(content.encode())
    dataset = load_dataset("image_folder", tmp_path)
    assert (dataset.test.y.tolist(), dataset.validation.y.tolist()) == ([3], [1])
    assert dataset.nb_classes == 4


def test_there_are_no_images_to_train_on(tmp_path: Path) -> None:
    dataset = load_dataset("image_folder", labelled_folder(tmp_path))
    with pytest.raises(InputError, match="whose images serve validation and testing only"):
        _ = dataset.train


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_colours_become_rgb(tmp_path: Path, mode: str) -> None:
    ending = "jpg" if mode == "CMYK" else "png"
    for name in "ab":
        Image.new("RGB", (5, 6), "white").convert(mode).save(tmp_path / f"{name}.{ending}")
    (tmp_path / "labels.csv").write_text("file,label\na,0\nb,1\n")
    dataset = load_dataset("image_folder", tmp_path)
    assert dataset.test.x.shape == (1, 3, 6, 5)
    assert (dataset.test.x == 1).all()


# Sizes of images


@pytest.mark.parametrize("size", [(40, 60), (61, 33), (29, 28), (20, 9)], ids=str)
def test_an_image_of_another_size_is_cropped_as_torchvision_does(tmp_path: Path, size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "labels.csv").write_text("file,label\na,0\nb,1\n")
    dataset = load_dataset("image_folder", tmp_path, size=28)
    evaluation = ImageClassification(crop_size=28, resize_size=32, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert dataset.input_shape == (3, 28, 28)
    for split, name in ((dataset.test, "a"), (dataset.validation, "b")):
        np.testing.assert_array_equal(split.x[0], evaluation(Image.open(tmp_path / f"{name}.png")).numpy())


def test_images_of_several_sizes_are_cropped_to_that_of_imagenet(tmp_path: Path) -> None:
    labelled_folder(tmp_path, 4, size=(224, 260))
    made_up_image(3, (300, 224)).save(tmp_path / "03.png")
    dataset = load_dataset("image_folder", tmp_path)
    assert dataset.input_shape == (3, 224, 224)
    assert sorted(values(dataset.validation)) == [1, 3]


@pytest.mark.parametrize(("name", "size"), [("image_folder", 0), ("image_folder", 2.5), ("digits", 8), ("mnist", 28)])
def test_a_size_that_makes_no_sense_is_refused(tmp_path: Path, name: str, size: Any) -> None:
    with pytest.raises(InputError, match=f"^size is {size}"):
        load_dataset(name, labelled_folder(tmp_path), size=size)


# Folders that cannot be used


def _no_files(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _labels(content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "labels.csv").write_text(content) and None


def _rows(*changed: str) -> Callable[[Path], None]:
    return _labels("\n".join(["file,label", "00.png,0", "01.png,1", *changed]))


def _only_class(folder: Path) -> None:
    _no_files(folder)
    write_images(folder, ["cats/a.png", "cats/b.png"])


def _empty_class(folder: Path) -> None:
    _only_class(folder)
    (folder / "dogs").mkdir()


def _single_image(folder: Path) -> None:
    _no_files(folder)
    labelled_folder(folder, 1)


FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (_no_files, r"holds 0 folder\(s\) of images; .jpg, .*, .webp files in a folder"),
    "no labels": (lambda folder: (folder / "labels.csv").unlink(), "holds [0-9]+ images and no labels.csv; images"),
    "a single image": (_single_image, "holds a single image; two or more"),
    "a single class": (_only_class, "holds 1 folder\\(s\\) of images; .* two or more classes"),
    "a class without images": (_empty_class, "holds the folder dogs without an image"),
    "empty labels": (_labels(""), "labels.csv has the columns of an empty file; one file or image_id was expected"),
    "no label column": (_labels("file,class\n"), "has the columns file, class; one label or class_index was expected"),
    "labels that are no text": (lambda folder: (folder / "labels.csv").write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "no row": (_labels("file,label\n"), "labels.csv without 00.png \\(3 such\\); a label for each image was expected"),
    "an image without a label": (_rows(), "labels.csv without 02.png \\(1 such\\)"),
    "an image twice": (_rows("02.png,2", "02,2"), "labels.csv that lists 02.png twice"),
    "a label without an image": (_rows("02.png,2", "03.png,3"), "holds 0 images '03.png' of labels.csv; exactly one"),
    "a negative label": (_rows("02.png,-1"), "says '-1' in line 4; a class index, a whole number from 0, was expected"),
    "a label beyond all bounds": (_rows("02.png," + "9" * 30), "says '9999.*' in line 4"),
    "an ambiguous name": (_rows("02,2"), "holds 2 images '02' of labels.csv; exactly one"),
    "no image at all": (
        lambda folder: (folder / "02.png").write_text("text"),
        "02.png cannot be used .*; a JPEG, PNG, PPM, BMP, TIFF or WebP image was expected",
    ),
    "another format": (lambda folder: made_up_image(2).save(folder / "02.png", "GIF"), "02.png cannot be used"),
    "several small sizes": (
        lambda folder: made_up_image(2, (223, 400)).save(folder / "02.png"),
        "images of several sizes, of which 00.png has 6 x 5 pixels; one size, or at least 224 x 224",
    ),
}


@pytest.mark.parametrize(("damage", "message"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_cannot_be_used_is_refused_in_a_sentence(
    tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    labelled_folder(tmp_path, 3)
    if "2 images" in message:
        made_up_image(2).save(tmp_path / "02.jpg")
    damage(tmp_path)
    with pytest.raises(InputError, match=f"^name is 'image_folder', but {tmp_path}.*{message}") as error:
        load_dataset("image_folder", tmp_path)
    assert "\n" not in str(error.value)


def forbid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to list a folder and to look at what is in it, as a system does that knows other users than root."""

    def refusing(name: str, forbids: Callable[[Path], bool]) -> None:
        allowed = getattr(os, name)

        def call(path: Any = ".", *args: Any, **options: Any) -> Any:
            if not isinstance(path, int) and forbids(Path(path)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return allowed(path, *args, **options)

        monkeypatch.setattr(os, name, call)

    refusing("stat", lambda path: folder in path.parents)
    for name in ("listdir", "scandir"):
        refusing(name, lambda path: folder in (path, *path.parents))


@pytest.mark.parametrize("forbidden", [".", "cat", "cat/b"])
def test_a_folder_of_images_that_may_not_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forbidden: str
) -> None:
    write_images(tmp_path, ["cat/0.png", "cat/b/1.png", "dog/2.png"])
    forbid(tmp_path / forbidden, monkeypatch)
    with pytest.raises(InputError, match=f"^name is 'image_folder', but {tmp_path} cannot be read .*denied: "):
        load_dataset("image_folder", tmp_path)


def test_published_files_that_may_not_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(tmp_path, monkeypatch)
    for call in (lambda: load_dataset("cifar10", tmp_path), lambda: data_found(tmp_path)):
        with pytest.raises(InputError, match=f"^root is '{tmp_path}', of which .* cannot be read .*denied"):
            call()


def test_an_image_that_has_gone_since_is_named(tmp_path: Path) -> None:
    files = find_images(labelled_folder(tmp_path)).files
    files[3].unlink()
    with pytest.raises(InputError, match=r"03\.png cannot be used \(FileNotFoundError.*image was expected"):
        ImageFiles(files, 6, 5).fingerprint()


def _cut_off(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-40])


def _deep(path: Path) -> None:
    Image.fromarray(np.full((6, 5), 40_000, np.uint16)).save(path)


@pytest.mark.parametrize(("damage", "reason"), [(_cut_off, "Error"), (_deep, "pixels of more than 8 bits")])
def test_an_image_whose_pixels_cannot_be_read_is_named(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(labelled_folder(tmp_path) / "04.png")
    dataset = load_dataset("image_folder", tmp_path)
    assert len(dataset.validation.y) == 3
    with pytest.raises(InputError, match=rf"04\.png cannot be used \(.*{reason}.*\); a JPEG, .* image was expected"):
        _ = dataset.test


def test_test_images_that_do_not_fit_into_memory_are_read_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled_folder(tmp_path, 7)
    in_memory = load_dataset("image_folder", tmp_path).test
    monkeypatch.setattr(image_folder, "MAX_PART_BYTES", 4 * 4 * 3 * 6 * 5 - 1)
    stored = load_dataset("image_folder", tmp_path).test
    assert isinstance(stored.x, ImageFiles)
    np.testing.assert_array_equal(stored.y, in_memory.y)
    assert (len(stored.x), stored.x.shape, stored.x.dtype) == (4, in_memory.x.shape, np.float32)
    for rows in (slice(None), slice(1, 3), slice(3, 9), slice(0, 4, 2)):
        np.testing.assert_array_equal(np.asarray(stored.x[rows]), in_memory.x[rows])
        np.testing.assert_array_equal(np.asarray(stored.x[1:][rows]), in_memory.x[1:][rows])


def test_a_hash_of_files_is_of_their_bytes_and_order_and_size(tmp_path: Path) -> None:
    labelled_folder(tmp_path, 4)
    files = sorted(tmp_path.glob("*.png"))
    hashes = [
        ImageFiles(selection, *size).fingerprint()
        for selection in (files, files[::-1], files[:3])
        for size in ((6, 5), (5, 5))
    ]
    assert len(set(hashes)) == 6
    assert ImageFiles(list(files), 6, 5).fingerprint() == hashes[0]
    Image.new("RGB", (5, 6), (1, 2, 3)).save(files[0])
    assert ImageFiles(files, 6, 5).fingerprint() not in hashes


def test_validation_images_that_do_not_fit_into_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled_folder(tmp_path, 7)
    monkeypatch.setattr(image_folder, "MAX_PART_BYTES", 4 * 3 * 3 * 6 * 5 - 1)
    dataset = load_dataset("image_folder", tmp_path)
    with pytest.raises(InputError, match="the 3 for validation do not fit into memory at 6 x 5 pixels"):
        _ = dataset.validation
    assert len(dataset.test.y) == 4


# The real files


@pytest.mark.data
def test_the_images_of_the_nips_2017_competition(data_root: Path) -> None:
    if not (data_root / "nips2017").is_dir():
        pytest.skip("nips2017 is not in the folder ART_DEFENSES_DATA")
    dataset = load_dataset("image_folder", data_root)
    assert (dataset.input_shape, dataset.nb_classes) == ((3, 224, 224), 996)
    labels = []
    for split in (dataset.validation, dataset.test):
        assert split.x.shape == (500, 3, 224, 224)
        assert (split.x.dtype, split.y.dtype) == (np.float32, np.int64)
        assert (split.x.min(), split.x.max()) == (0, 1)
        labels += split.y.tolist()
    assert len(set(labels)) == 430


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "shape", "sizes"),
    [
        ("mnist", (1, 28, 28), (55_000, 5_000, 10_000)),
        ("fashion_mnist", (1, 28, 28), (55_000, 5_000, 10_000)),
        ("cifar10", (3, 32, 32), (45_000, 5_000, 10_000)),
        ("svhn", (3, 32, 32), (68_257, 5_000, 26_032)),
    ],
)
def test_the_published_files(data_root: Path, name: str, shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    if name == "svhn" and not (data_root / "test_32x32.mat").is_file():
        pytest.skip("SVHN is not in the folder ART_DEFENSES_DATA")
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
