"""Networks by name: the papers', torchvision's for ImageNet, a small one for the digits, and the user's own.

A network that is not built in is named by the function that builds it: ``"package.module:function"``.
"""

from __future__ import annotations

import importlib
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from art_defenses_ext.base.errors import DataError
from art_defenses_ext.base.text import shown
from art_defenses_ext.base.validation import one_line
from art_defenses_ext.zoo.catalogue import COLLECTIONS, MODELS
from art_defenses_ext.zoo.networks import AlexLike, DigitsCNN, KoLim, LeNetLike, ResNet20, ResNet20A, WongKolter

BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "digits_cnn": DigitsCNN,
    "lenet_like": LeNetLike,
    "ko_lim": KoLim,
    "wong_kolter": WongKolter,
    "alex_like": AlexLike,
    "resnet20": ResNet20,
    "resnet20_a": ResNet20A,
}
"""The constructor of each network of the catalogue except torchvision's."""


def build_model(model: str) -> nn.Module:
    """Build a network by the name of a built-in one or by a function.

    Args:
        model: a name of ``MODELS``, or ``"package.module:function"``: the module is imported, from the current
            directory too, and the function (or class) is called without arguments.

    Returns:
        The network as built; its training mode is not changed.

    Raises:
        InputError: for an unknown name; a module that is missing or fails to import; an attribute that is missing,
            cannot be called, fails, or returns something other than an ``nn.Module``.
    """
    if isinstance(model, str) and model in MODELS:
        return BUILDERS[model]() if model in BUILDERS else _of_torchvision(model)
    module, colon, attribute = (model if isinstance(model, str) else "").partition(":")
    if not (module and colon and attribute):
        known = ", ".join([*MODELS, *(f"{each}:NAME" for each in COLLECTIONS)])
        raise DataError(f"model is {shown(model)}; one of {known} or 'package.module:function' was expected")
    built = call_factory(model, module, attribute)
    if not isinstance(built, nn.Module):
        raise DataError(f"model is {model!r}, which returns a {type(built).__name__}; an nn.Module was expected")
    return built


def _of_torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model  # here, since it takes as long to import as torch

    network: nn.Module = get_model(name)  # untrained unless weights are asked for
    return network


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    entry = str(Path.cwd())
    sys.path.insert(0, entry)
    # Otherwise a module written since the last import may not be found.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(entry)


def call_factory(text: str, module: str, attribute: str, argument: str = "model") -> Any:
    """Call a user's function without arguments and return its result.

    Args:
        text: the user's input, for error messages.
        module: its module, imported from the current directory too.
        attribute: the function's name in the module.
        argument: name of the argument that holds the text.

    Raises:
        InputError: for a module that is missing or fails, and an attribute that is missing, not callable, or fails.
    """
    with _current_directory_importable():
        try:
            return operator.attrgetter(attribute)(importlib.import_module(module))()
        except (Exception, SystemExit) as error:  # the user's code may do anything, sys.exit included
            raise DataError(
                f"{argument} is {text!r}, which failed ({one_line(error)}); a function that can be imported and called "
                "without arguments was expected"
            ) from error
