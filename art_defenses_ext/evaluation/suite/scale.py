"""The unit in which an attack counts its steps: pixel values, the clip range, the network's normalised input."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_defenses_ext.attribution.first_layer import normalisation_of
from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.layout import has_channels_behind
from art_defenses_ext.estimator.pipeline import Pipeline
from art_defenses_ext.estimator.rebuild import rebuild, undefended
from art_defenses_ext.estimator.rejecting import rejects


def normalisation_scale(classifier: PyTorchClassifier) -> Any:
    """Pixel values per unit of the network's normalised input: its standard deviation, shaped to fit an image.

    **Convention**: where nothing is divided by one, the width of the clip range.
    """
    inner = undefended(classifier)
    if rejects(classifier) and inner is not None:  # the whole normalises inside its network
        classifier = inner
    std = np.asarray(getattr(classifier.preprocessing, "std", 1.0), dtype=np.float32)
    inner = _inner_std(classifier)
    if inner is not None:
        std = std.reshape(-1) * inner
    if np.allclose(std, 1, rtol=1e-3):
        return clip_width(classifier)
    return std.reshape(-1, 1, 1) if std.ndim == 1 and not has_channels_behind(classifier) else std


def clip_width(classifier: PyTorchClassifier) -> float:
    """Return the width of the clip range; 1 without clip values."""
    if classifier.clip_values is None:
        return 1.0
    low, high = classifier.clip_values
    return float(np.max(np.asarray(high, dtype=np.float64) - low))


def _inner_std(classifier: PyTorchClassifier) -> FloatArray | None:
    """Return the deviation (C,) by which the network itself divides what it takes; None where it does not."""
    if len(classifier.input_shape) != 3 or classifier.clip_values is None:
        return None
    standardised = Pipeline(rebuild(classifier, preprocessing_defences=None, postprocessing_defences=None))
    shape, device = (1, *classifier.input_shape), classifier.device
    low, high = (
        standardised.before_model(torch.full(shape, float(limit(end)), device=device))[0]
        for limit, end in zip((np.min, np.max), classifier.clip_values, strict=True)
    )
    inner = normalisation_of(classifier.model, low, high, 2 if has_channels_behind(classifier) else 0)
    return None if inner is None else np.abs(inner.std.cpu().numpy())
