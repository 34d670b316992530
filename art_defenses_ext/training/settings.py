"""The settings of a training of preprocessors, detectors and classifiers, each declared once."""

from __future__ import annotations

from typing import TypedDict

from art_defenses_ext.base.declared import Count, Flag, NonNegative, Options, Positive, Seed


class Settings(Options):
    """The settings of a training run.

    Attributes:
        nb_epochs: passes over the images.
        batch_size: maximum number of images in a step.
        learning_rate: Adam's initial step size; it decays to 0 along half a cosine, step by step.
        weight_decay: Adam's weight decay, added to the gradient.
        clip_norm: maximum l2 norm of the gradient of all parameters together; None for no clipping.
        patience: stop after this many epochs without a lower validation loss, which needs validation images; None runs
            all epochs.
        seed: seed of the order of the images and of all random draws.
        mixed_precision: autocast to bfloat16; None does so on CUDA only.

    Raises:
        InputError: for a value of another type or out of range.
    """

    nb_epochs: Count = 10
    batch_size: Count = 128
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    clip_norm: Positive | None = None
    patience: Count | None = None
    seed: Seed = 0
    mixed_precision: Flag | None = None


class OtherSettings(TypedDict, total=False):
    """All settings but the two that ART's detectors have by name, for type checkers and editors."""

    learning_rate: Positive
    weight_decay: NonNegative
    clip_norm: Positive | None
    patience: Count | None
    seed: Seed
    mixed_precision: Flag | None


class SettingsOptions(OtherSettings, total=False):
    """All settings as keyword arguments, for type checkers and editors."""

    nb_epochs: Count
    batch_size: Count
