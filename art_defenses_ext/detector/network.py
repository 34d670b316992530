"""The detector's network: the reconstruction error of a prediction's explanation, compared with a threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.layout import channels_to_front
from art_defenses_ext.base.paper_attack import PaperAttack
from art_defenses_ext.detector.explanations import TINY, maps, statistics
from art_defenses_ext.detector.reconstructors import SCORES, Reconstructor, make_reconstructors
from art_defenses_ext.detector.thresholds import conformal_thresholds
from art_defenses_ext.estimator.pipeline import Pipeline
from art_defenses_ext.estimator.rebuild import evaluation_mode
from art_defenses_ext.gradients.modes import Defence, find_defences, gradient_mode
from art_defenses_ext.gradients.surrogate import replaced

SCALINGS = ("image", "benign")

BETA = 10.0
"""Beta of the softplus in the smooth surrogate; a larger beta is closer to the ReLU. **Convention**: as for TRN's maps;
attacks anneal it up to ten times this value."""

PERCENTILE = 0.99
"""The quantile of an image's explanation that is scaled to 1. Source: the authors' code."""


class DetectorNetwork(nn.Module, Defence):
    """A network from images in the clip range to logits (n, 2): [0, score - threshold of the predicted class].

    Images have the layout of the classifier, (n, C, H, W) or (n, H, W, C); explanations have their channels first.
    The classifier's pipeline is not a submodule: the detector has its own parameters, state and mode.

    Attributes:
        thresholds: threshold of each class (K,).
        gradient_modes: ``"exact"`` differentiates the explanation itself; ``"smooth"`` takes the explanation's
            derivative from the classifier with softplus in place of ReLU.
    """

    name = "explanation_reconstructor"
    gradient_modes = ("exact", "smooth")
    annealable_modes = ("smooth",)
    thresholds: Tensor
    low: Tensor
    high: Tensor
    held_out_scores: Tensor
    held_out_classes: Tensor
    reconstructors: Reconstructor

    def __init__(
        self,
        pipeline: Pipeline,
        nb_classes: int,
        image_shape: tuple[int, ...],
        explanations: list[str],
        scaling: str,
        score: str,
        hidden: int,
        reconstructor: str = "autoencoder",
    ) -> None:
        super().__init__()
        self.set_pipeline(pipeline)
        self.reconstructor = reconstructor
        self.nb_classes, self.image_shape, self.hidden = nb_classes, image_shape, hidden
        self.explanations, self.scaling, self.scoring = explanations, scaling, score
        self.register_buffer("thresholds", torch.full((nb_classes,), torch.nan))
        self.register_buffer("low", torch.zeros(len(explanations), 1, 1))
        self.register_buffer("high", torch.ones(len(explanations), 1, 1))
        self.register_buffer("held_out_scores", torch.zeros(0))
        self.register_buffer("held_out_classes", torch.zeros(0, dtype=torch.long))
        self.add_module("reconstructors", None)  # created by fit and load, since it may be large

    def forward(self, x: Tensor) -> Tensor:
        scores, classes = self.scores(x)
        margins = scores - self.thresholds[classes]
        return torch.stack([torch.zeros_like(margins), margins], dim=1)

    # The method

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return differentiable reconstruction errors (n,) and predicted classes (n,) of images (n, ...)."""
        self.check_fitted()
        classes = self.predicted(x)
        maps = self.scaled(self._explained_as_attacked(x, classes))
        scores = self.score_of(maps, classes).to(x.dtype)
        # A linear classifier's explanation does not depend on x; without this term autograd would raise an error.
        return scores + 0 * x.flatten(1).sum(dim=1), classes

    def predicted(self, x: Tensor) -> Tensor:
        """Return the classes (n,) that the classifier predicts."""
        with torch.no_grad(), evaluation_mode(self.pipeline):
            logits: Tensor = self.pipeline(self._channels_first(x.detach()))
        if logits.shape[1] != self.nb_classes:
            raise InputError(f"classifier gives {logits.shape[1]} logits; nb_classes, {self.nb_classes}, were expected")
        return logits.argmax(dim=1)

    def explained(self, x: Tensor, classes: Tensor) -> Tensor:
        """Return explanations phi (n, M, H, W) of the given classes: absolute attributions summed over colours.

        They are unscaled, and use exact derivatives in every gradient mode of the classifier's defences.
        """
        with gradient_mode(self.pipeline, "exact"):
            return self._explained_with(x, classes, None)

    def scaled(self, maps: Tensor) -> Tensor:
        """Return maps (n, M, H, W) scaled for the autoencoders: to [0, 1], with ``"benign"`` also beyond it.

        Statistics are not scaled.
        """
        if self.reconstructor == "statistics":
            return maps
        if self.scaling == "benign":
            return ((maps + TINY).log() - self.low) / (self.high - self.low)
        flat = maps.flatten(2)  # (n, M, H W)
        least = flat.amin(dim=2)[..., None, None]
        high = torch.quantile(flat, PERCENTILE, dim=2)[..., None, None]
        span = high - least
        return ((maps - least) / torch.where(span > 0, span, 1.0)).clamp(0, 1)

    def score_of(self, maps: Tensor, classes: Tensor) -> Tensor:
        """Return reconstruction errors (n,) of scaled maps (n, M, H, W) by the autoencoders of the given classes.

        For statistics (n, M, 1, 2) the error is the squared Mahalanobis distance divided by their number.
        """
        flat = maps.flatten(1).to(self.reconstructors.dtype)
        outputs = self.reconstructors(flat, classes)
        return SCORES["l2"](outputs) if self.reconstructor == "statistics" else SCORES[self.scoring](flat - outputs)

    def _explained_as_attacked(self, x: Tensor, classes: Tensor) -> Tensor:
        """Return the exact explanations, with the backward pass of the gradient modes of detector and defences."""
        modes = {self.gradient_mode} | {defence.gradient_mode for defence in find_defences(self.pipeline)}
        if modes == {"exact"} or not torch.is_grad_enabled():
            return self.explained(x, classes)
        with torch.no_grad():
            exact = self.explained(x, classes)
        beta = None if self.gradient_mode == "exact" else BETA / self.surrogate_width
        return replaced(self._explained_with(x, classes, beta), exact)

    def _explained_with(self, x: Tensor, classes: Tensor, beta: float | None) -> Tensor:
        explain = statistics if self.reconstructor == "statistics" else maps
        return explain(self.explanations, self.pipeline, self._channels_first(x), classes, beta)

    def _channels_first(self, x: Tensor) -> Tensor:
        """Return images with their channels first, as the pipeline takes them."""
        return channels_to_front(x) if self.pipeline.permutes else x

    # Fitting

    def new_reconstructors(self, seed: int) -> Reconstructor:
        """Return autoencoders with random weights, or Gaussians."""
        count, (height, width) = len(self.explanations), self.image_shape[1:]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return make_reconstructors(self.reconstructor, self.nb_classes, (count, height, width), self.hidden)

    def calibrate(self, maps: Tensor) -> None:
        """Set the range of the scaling ``"benign"`` from unscaled maps (N, M, H, W) of benign images."""
        if self.scaling != "benign" or self.reconstructor == "statistics":
            return
        for number, values in enumerate(maps.unbind(dim=1)):
            # By numpy, since torch's quantile takes at most 16 million values.
            logarithms = np.log(values.flatten().numpy() + TINY)
            low, high = np.quantile(logarithms, [0.001, 0.999])
            if not low < high:
                raise InputError(
                    f"x has {self.explanations[number]} explanations of which 99.8 % of the values are equal; values "
                    'that differ, or scaling="image", were expected'
                )
            self.low[number], self.high[number] = float(low), float(high)

    def keep(self, scores: Tensor, classes: Tensor, rate: float) -> None:
        """Store the scores (n,) of benign images that were not used in training, and set the thresholds on them."""
        self.held_out_scores, self.held_out_classes = scores.to(self.device), classes.to(self.device)
        self.set_rate(rate)

    def set_rate(self, rate: float) -> None:
        """Set the thresholds at which at most the share ``rate`` of benign images of each class is flagged."""
        thresholds = conformal_thresholds(self.held_out_scores, self.held_out_classes, self.nb_classes, rate)
        self.thresholds.copy_(thresholds)  # all together, so that an error leaves all unchanged

    def take(self, fitted: DetectorNetwork) -> None:
        """Take over the learnt state of another network with the same options, without a copy."""
        for name, buffer in fitted.named_buffers(recurse=False):
            setattr(self, name, buffer)
        self.reconstructors = fitted.reconstructors.requires_grad_(False).eval()

    def make(self) -> None:
        """Create random weights, which :meth:`load` replaces."""
        self.reconstructors = self.new_reconstructors(seed=0).to(self.device).requires_grad_(False).eval()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load the tensors of a ``state_dict``."""
        if self._modules["reconstructors"] is None:
            self.make()
        for name in ("held_out_scores", "held_out_classes"):
            setattr(self, name, torch.empty_like(tensors[name], device=self.device))
        self.load_state_dict(tensors)

    # State

    @property
    def pipeline(self) -> Pipeline:
        """The classifier with its preprocessing, for images with their channels first."""
        return self._held[0]

    def set_pipeline(self, pipeline: Pipeline) -> None:
        """Set the classifier to explain."""
        self._held = (pipeline,)  # in a tuple, so that torch does not register it as a submodule

    @property
    def device(self) -> torch.device:
        """The device of the thresholds and of the classifier."""
        return self.thresholds.device

    @property
    def is_fitted(self) -> bool:
        """Whether the network holds benign scores for the thresholds."""
        return len(self.held_out_scores) > 0

    def check_fitted(self) -> None:
        """Refuse to compute scores before a fit.

        Raises:
            InputError: if neither ``fit`` nor ``load`` was called.
        """
        if not self.is_fitted:
            raise InputError("ExplanationReconstructor is not fitted yet; fit() or load() first was expected")

    @classmethod
    def paper_attacks(cls) -> tuple[PaperAttack, ...]:
        """Return the authors' attacks, which leave the predicted class, with the steps of their code."""
        attacks: dict[str, tuple[str, dict[str, Any]]] = {
            "FGSM": ("fgsm", {}),
            "PGD-40": ("pgd_in_pixels", {"step": 0.01, "max_iter": 40}),
            "MIM": ("pgd_in_pixels", {"step": 0.06, "max_iter": 10, "decay": 1.0}),
        }
        return tuple(
            PaperAttack(f"{name}, gray-box", attack, parameters, labels="predicted")
            for name, (attack, parameters) in attacks.items()
        )

    def describe(self) -> dict[str, Any]:
        """Return the options."""
        options = {"explanation": " + ".join(self.explanations), "reconstructor": self.reconstructor}
        if self.reconstructor == "statistics":
            return options
        return options | {"scaling": self.scaling, "score": self.scoring, "hidden": self.hidden}

    def views(self, x: Tensor) -> dict[str, Tensor]:
        """Return the first explanation and its reconstruction; nothing for statistics."""
        if self.reconstructor == "statistics":
            return {}
        with torch.no_grad():
            classes = self.predicted(x)
            maps = self.scaled(self.explained(x, classes)).to(self.reconstructors.dtype)
            reconstruction = self.reconstructors(maps.flatten(1), classes).reshape(maps.shape)
        return {"explanation": maps[:, :1].clamp(0, 1), "reconstruction": reconstruction[:, :1]}
