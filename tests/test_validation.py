"""Checks of user input: what is fit for use passes unchanged, the rest is named with its value in one sentence."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from art.estimators.classification import PyTorchClassifier
from hypothesis import given, strategies as st
from torch import Tensor, nn

from art_defenses_ext.base.errors import ClassifierError, InputError
from art_defenses_ext.base.pages import read_page
from art_defenses_ext.base.validation import (
    check_classifier,
    check_count,
    check_flag,
    check_images,
    check_labels,
    check_target,
    within_clip_values,
)
from art_defenses_ext.evaluation.run.shard import Shard


class OwnForward(nn.Sequential):
    """A Sequential that does more than its children: ART would leave the scaling out."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Renamed(nn.Sequential):
    """A Sequential under another name."""


def wrap(model: nn.Module, **arguments: Any) -> PyTorchClassifier:
    settings: dict[str, Any] = {"clip_values": (0.0, 1.0), "device_type": "cpu"} | arguments
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), (3, 2, 2), 4, **settings)


@pytest.fixture
def classifier() -> PyTorchClassifier:
    return wrap(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))


@pytest.fixture
def x() -> Any:
    return np.random.default_rng(0).random((5, 3, 2, 2), dtype=np.float32)


def test_an_input_error_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)


# Classifiers


@pytest.mark.parametrize("kind", [nn.Sequential, Renamed])
def test_a_sequential_that_art_runs_as_it_is_passes(kind: type[nn.Sequential]) -> None:
    classifier = wrap(kind(nn.Flatten(), nn.Linear(12, 4)))
    assert check_classifier(classifier) is classifier


def test_art_ignores_the_forward_of_a_sequential_and_so_it_is_refused(x: Any) -> None:
    model = OwnForward(nn.Flatten(), nn.Linear(12, 4))
    classifier = wrap(model)
    with torch.no_grad():
        assert not np.allclose(classifier.predict(x), model(torch.from_numpy(x)).numpy())  # the reason
    with pytest.raises(InputError, match=r"victim: .* OwnForward .* forward of its own"):
        check_classifier(classifier, "victim")


@pytest.mark.parametrize(
    "register",
    [
        lambda model: model.register_forward_hook(lambda module, inputs, output: output + torch.eye(4)[0] * 17),
        lambda model: model.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 17,)),
        lambda model: model.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * 17,)),
    ],
    ids=["forward", "before forward", "backward"],
)
def test_art_ignores_the_hooks_of_a_sequential_and_so_they_are_refused(register: Callable[[Any], Any], x: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    classifier = wrap(model)
    handle = register(model)
    with pytest.raises(InputError, match=r"victim: the model is an nn.Sequential with a hook of its own"):
        check_classifier(classifier, "victim")
    around = nn.ModuleDict({"inner": model})
    around.forward = model.__call__  # type: ignore[method-assign]
    assert check_classifier(wrap(around))
    model[1].register_forward_hook(lambda module, inputs, output: output)  # of a layer, which ART calls
    handle.remove()
    assert check_classifier(classifier) is classifier


@pytest.mark.parametrize("shape", [(3,), (4,), (2, 3), (1, 3, 2, 2), (5, 3, 2, 2)])
def test_clip_values_that_fit_no_image_are_refused(shape: tuple[int, ...], x: Any) -> None:
    """NumPy's word on it: an image that they change the shape of, or do not broadcast against."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    classifier = wrap(model, clip_values=(np.zeros(shape, np.float32), np.ones(shape, np.float32)))
    try:
        assert np.clip(x[0], *classifier.clip_values).shape != x[0].shape
    except ValueError as error:
        assert "broadcast" in str(error)  # noqa: PT017
    message = rf"victim has clip_values of shape {re.escape(str(shape))} for images \(3, 2, 2\); .* such as \(3, 1, 1\)"
    with pytest.raises(InputError, match=message):
        check_classifier(classifier, "victim")


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 1, 1), (3, 2, 2), (1, 2, 1)])
def test_clip_values_that_broadcast_against_an_image_pass(shape: tuple[int, ...], x: Any) -> None:
    classifier = wrap(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 4)),
        clip_values=(np.zeros(shape, np.float32), np.ones(shape, np.float32)),
    )
    np.testing.assert_array_equal(check_images(x, classifier), x)


@pytest.mark.parametrize("other", [None, nn.Linear(12, 4), "classifier"])
def test_what_is_no_pytorch_classifier_is_refused(other: Any) -> None:
    with pytest.raises(InputError, match=rf"victim is a {type(other).__name__}; .* PyTorchClassifier was expected"):
        check_classifier(other, "victim")


def test_a_classifier_that_predicts_in_a_way_of_its_own_is_refused() -> None:
    """Our copies are plain classifiers, so that the smoothing would be lost without a word."""
    smoothed = PyTorchRandomizedSmoothing(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), nn.CrossEntropyLoss(), (3, 2, 2), 4, device_type="cpu"
    )
    with pytest.raises(InputError, match="PyTorchRandomizedSmoothing"):
        check_classifier(smoothed)


# Images


def test_good_images_pass_unchanged(classifier: PyTorchClassifier, x: Any) -> None:
    x[0, 0, 0] = 0, 1  # the ends of the range belong to it
    np.testing.assert_array_equal(check_images(x, classifier), x)
    assert check_images(x, classifier).dtype == np.float32


def test_without_clip_values_any_finite_image_passes(x: Any) -> None:
    unbounded = wrap(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), clip_values=None)
    np.testing.assert_array_equal(check_images(x * 500 - 3, unbounded), x * 500 - 3)


def test_clip_values_may_differ_from_channel_to_channel(x: Any) -> None:
    low, high = np.zeros((3, 1, 1), np.float32), np.array([1, 2, 3], np.float32).reshape(3, 1, 1)
    classifier = wrap(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), clip_values=(low, high))
    np.testing.assert_array_equal(check_images(x * high, classifier), x * high)
    with pytest.raises(InputError, match="inside the clip values"):
        check_images(x[:, ::-1].copy() * high[::-1], classifier)


RANGES = [(0.0, 1.0), (0.0, 255.0), (-1024.0, 3071.0), (-1.0, 1.0)]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_pixels_that_rounding_took_beyond_the_range_are_moved_into_it(low: float, high: float, x: Any) -> None:
    classifier = wrap(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), clip_values=(low, high))
    images = (low + (high - low) * x).astype(np.float32)
    images[0, 0, 0] = low, high
    beyond = images.copy()
    beyond[0, 0, 0] = (
        np.nextafter(np.float32(low), np.float32(-np.inf)),
        np.nextafter(np.float32(high), np.float32(np.inf)),
    )
    original = beyond.copy()
    np.testing.assert_array_equal(check_images(beyond, classifier), images)
    np.testing.assert_array_equal(beyond, original)  # the caller's own stay


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_a_range_is_told_in_digits_that_show_what_is_wrong(low: float, high: float, x: Any) -> None:
    classifier = wrap(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), clip_values=(low, high))
    images = (low + (high - low) * x).astype(np.float32)
    images[0, 0, 0, 0] = high + 1e-5 * max(abs(low), high)
    with pytest.raises(InputError) as refusal:
        check_images(images, classifier)
    (shown_maximum,) = re.findall(r"to (\S+); values inside", str(refusal.value))
    assert np.float32(shown_maximum) == images.max() > high
    assert float(shown_maximum) > high


def changed(x: Any, value: float) -> Any:
    x[2, 1, 0, 1] = value
    return x


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        *(
            (spoil, "is .*; a numpy array of float32, scaled as in training, was expected")
            for spoil in (
                lambda x: x.tolist(),
                torch.from_numpy,
                lambda x: (x * 255).astype(np.uint8),
                lambda x: x.astype(np.float64),
                lambda x: x > 0.5,
            )
        ),
        (lambda x: x[0], r"has shape \(3, 2, 2\); \(N, 3, 2, 2\) was expected"),
        (lambda x: x.transpose(0, 2, 3, 1), r"has shape \(5, 2, 2, 3\); \(N, 3, 2, 2\) was expected"),
        (lambda x: x[:0], "is empty; at least one image was expected"),
        (lambda x: changed(x, np.nan), "NaN or infinite"),
        (lambda x: changed(x, -np.inf), "NaN or infinite"),
        (lambda x: changed(x, 1.5), r"to 1\.5; values inside the clip values \[0, 1\] were expected"),
        (lambda x: changed(x, -0.25), r"ranges from -0\.25 to"),
    ],
)
def test_unusable_images_are_named(
    classifier: PyTorchClassifier, x: Any, spoil: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(InputError, match=rf"^pictures .*{message}"):
        check_images(spoil(x), classifier, "pictures")


@pytest.mark.parametrize(
    "view",
    [lambda x: np.flip(x, 3), lambda x: x[::-1], np.asfortranarray],
    ids=["mirrored", "reversed", "Fortran order"],
)
def test_images_come_back_in_a_layout_that_torch_reads(
    classifier: PyTorchClassifier, x: Any, view: Callable[[Any], Any]
) -> None:
    """NumPy mirrors by negative strides, which torch refuses."""
    np.testing.assert_array_equal(torch.from_numpy(check_images(view(x), classifier)).numpy(), view(x))


# Labels


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.sampled_from([np.float32, np.float64, np.int64, bool]))
def test_indices_and_one_hot_rows_say_the_same(labels: list[int], dtype: type) -> None:
    indices = np.array(labels)
    for y in (indices, indices.astype(np.uint8), np.eye(7, dtype=dtype)[indices]):
        checked = check_labels(y, 7, len(labels))
        assert checked.dtype == np.int64
        assert checked.tolist() == labels


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.array([0, 1]), "has 2 labels for 3 images"),
        (np.eye(5, dtype=np.float32)[:3], "is one-hot of width 5; 4 classes were expected"),
        *(
            (y, r"is .*; an array of class indices \(N,\) or one-hot rows \(N, 4\) was expected")
            for y in (
                [0, 1, 2],
                None,
                np.full((3, 4), 0.25, np.float32),
                np.zeros((3, 4), np.float32),
                np.ones((3, 4), np.float32),
                np.full((3, 4), np.nan, np.float32),
                np.eye(4, dtype=np.float32)[:3] * 2 - 1,
                np.array([0.0, 1.0, 2.0]),
                np.array([True, False, True]),
                np.array(["0", "1", "2"]),
                np.zeros((3, 4, 1)),
            )
        ),
        (np.array([0, 1, 4]), "holds labels from 0 to 4; 0 to 3 were expected"),
        (np.array([0, -1, 3]), "holds labels from -1 to 3; 0 to 3 were expected"),
    ],
)
def test_unusable_labels_are_named(y: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"^truth .*{message}"):
        check_labels(y, 4, 3, "truth")


def test_a_refusal_names_the_page_that_helps() -> None:
    with pytest.raises(ClassifierError) as error:
        check_classifier("nothing")
    assert error.value.__notes__ == ["See: art-defenses docs traps"]
    with pytest.raises(InputError) as error:
        check_count("count", -1)
    assert not hasattr(error.value, "__notes__")


def test_a_refusal_survives_pickling_with_its_page() -> None:
    with pytest.raises(InputError) as error:
        Shard(3, 2)
    unpickled = pickle.loads(pickle.dumps(error.value))
    assert (str(unpickled), unpickled.__notes__) == (str(error.value), ["See: art-defenses docs scale"])


@pytest.mark.parametrize("kind", InputError.__subclasses__())
def test_the_pages_that_refusals_name_are_there(kind: type[InputError]) -> None:
    assert kind.page is not None
    assert read_page(kind.page)


def test_a_message_is_one_line_of_printable_characters_whatever_the_value() -> None:
    class Hostile:
        def __repr__(self) -> str:
            return "\x1b]0;title\x07\x9b2J\u202e\n"

    class Raising:
        def __repr__(self) -> str:
            raise RuntimeError

    for value in (Hostile(), Raising(), 10**5000, "x" * 10**6):
        with pytest.raises(InputError) as error:
            check_flag("overwrite", value)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 300


@pytest.mark.parametrize("value", [None, "", b"x", 1, "a\0b", Path("missing") / "file", "x" * 5000])
def test_a_file_to_write_lies_in_an_existing_folder(value: Any) -> None:
    with pytest.raises(InputError, match=r"path is .*; a file in an existing folder was expected"):
        check_target("path", value)


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a file in an existing folder was expected"):
        check_target("path", tmp_path)
    assert check_target("path", str(tmp_path / "file")) == tmp_path / "file"


@pytest.mark.parametrize(
    "clip_values", [(0.0, 1.0), (np.zeros((1, 1)), np.ones((1, 1))), (np.float32(0), np.float32(1))]
)
def test_pixels_outside_by_rounding_are_clipped_and_others_make_an_image_unusable(clip_values: Any) -> None:
    x = np.array([0.5, np.nextafter(np.float32(1), np.float32(2)), -1e-7, 1.01, -0.01, np.nan, np.inf], np.float32)
    images, usable = within_clip_values(x.reshape(-1, 1, 1), clip_values)
    assert usable.tolist() == [True, True, True, False, False, False, False]
    assert images[:3].flatten().tolist() == [0.5, 1.0, 0.0]


def test_a_limit_that_float32_rounds_up_can_be_reached() -> None:
    high = np.array([[2.64]])
    assert np.float32(high) > high
    assert within_clip_values(np.full((1, 1, 1), 2.64, np.float32), (-high, high))[1].all()
    assert within_clip_values(np.full((1, 1, 1), 9.0, np.float32), None)[1].all()
