"""The defences' views of the example images: pictures for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_defenses_ext.base.arrays import FloatArray
from art_defenses_ext.base.layout import has_channels_behind
from art_defenses_ext.estimator.pipeline import Pipeline
from art_defenses_ext.estimator.rebuild import as_model_input
from art_defenses_ext.estimator.rejecting import rejects
from art_defenses_ext.evaluation.records.examples import Example
from art_defenses_ext.gradients.modes import Defence


def with_views(classifier: PyTorchClassifier, examples: Sequence[Example]) -> list[Example]:
    """Return the examples with the defences' views of their clean and attacked images.

    All pictures have their channels first, even if the classifier has them last.
    """
    pictured = []
    for example in examples:
        clean, adversarial = (_views(classifier, image) for image in (example.clean, example.adversarial))
        views = {name: (clean[name], adversarial[name]) for name in clean}
        if has_channels_behind(classifier):
            attacked = example.adversarial.transpose(2, 0, 1)
            example = replace(example, clean=example.clean.transpose(2, 0, 1), adversarial=attacked)
        pictured.append(replace(example, views=views))
    return pictured


def _views(classifier: PyTorchClassifier, image: FloatArray) -> dict[str, FloatArray]:
    """Return the views of an image (...) by name; each defence sees the output of the defence before it."""
    whole = Pipeline(classifier).eval()
    # A detector runs beside the classifier: it sees the image, not the output of a preprocessor.
    pipelines = [whole.model.pipeline, whole.model.detection] if rejects(classifier) else [whole]
    views: dict[str, Tensor] = {}
    with torch.no_grad():
        x = as_model_input(torch.tensor(image[None], device=classifier.device), classifier.model)
        for pipeline in pipelines:
            views |= _views_of_steps(pipeline, x)
    return {name: view[0].float().cpu().numpy() for name, view in views.items()}


def _views_of_steps(pipeline: Pipeline, x: Tensor) -> dict[str, Tensor]:
    """Return the views of a pipeline's preprocessors and of its model for images (N, ...), by name."""
    views: dict[str, Tensor] = {}
    for step in pipeline.steps:
        preprocessor = getattr(step, "preprocessor", None)
        if isinstance(preprocessor, Defence):
            views |= preprocessor.views(x.clone())  # it may run a network that writes into its input
        x = step(x.clone())
    return views | (pipeline.model.views(x) if isinstance(pipeline.model, Defence) else {})
