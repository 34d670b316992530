"""The detector's network: how badly the explanation of a prediction is reconstructed, held against a threshold."""

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
"""Beta of the softplus in the smooth surrogate: the larger, the closer to the ReLU. **Convention**: as for TRN's maps;
an attacker grows it to ten times as much."""

PERCENTILE = 0.99
"""The quantile of an image's explanation that becomes 1. Source: the authors' code."""


class DetectorNetwork(nn.Module, Defence):
    """Images in the clip range to logits (n, 2): [0, score - threshold of the predicted class].

    They come as the classifier takes them, (n, C, H, W) or (n, H, W, C); explanations have the channels in front.
    The classifier's pipeline is no submodule: the detector's parameters, state and mode are its own.

    Attributes:
        thresholds: (K,), of each class.
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
        self.look_into(pipeline)
        self.reconstructor = reconstructor
        self.nb_classes, self.image_shape, self.hidden = nb_classes, image_shape, hidden
        self.explanations, self.scaling, self.scoring = explanations, scaling, score
        self.register_buffer("thresholds", torch.full((nb_classes,), torch.nan))
        self.register_buffer("low", torch.zeros(len(explanations), 1, 1))
        self.register_buffer("high", torch.ones(len(explanations), 1, 1))
        self.register_buffer("held_out_scores", torch.zeros(0))
        self.register_buffer("held_out_classes", torch.zeros(0, dtype=torch.long))
        self.add_module("reconstructors", None)  # which may be large: made by fit and load

    def forward(self, x: Tensor) -> Tensor:
        scores, classes = self.scores(x)
        margins = scores - self.thresholds[classes]
        return torch.stack([torch.zeros_like(margins), margins], dim=1)

    # The method

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction errors (n,), differentiable, and predicted classes (n,) of images (n, ...)."""
        self.check_fitted()
        classes = self.predicted(x)
        maps = self.scaled(self._explained_as_attacked(x, classes))
        scores = self.score_of(maps, classes).to(x.dtype)
        # A linear classifier's explanation has no x in it: its gradient is zero, which autograd would call an error.
        return scores + 0 * x.flatten(1).sum(dim=1), classes

    def predicted(self, x: Tensor) -> Tensor:
        """The classes (n,) that the classifier predicts."""
        with torch.no_grad(), evaluation_mode(self.pipeline):
            logits: Tensor = self.pipeline(self._turned(x.detach()))
        if logits.shape[1] != self.nb_classes:
            raise InputError(f"classifier gives {logits.shape[1]} logits; nb_classes, {self.nb_classes}, were expected")
        return logits.argmax(dim=1)

    def explained(self, x: Tensor, classes: Tensor) -> Tensor:
        """Explanations phi (n, M, H, W) of the given classes: absolute attributions summed over colours, unscaled.

        They are made of exact derivatives, whatever the gradient mode of a defence inside the classifier.
        """
        with gradient_mode(self.pipeline, "exact"):
            return self._explained_with(x, classes, None)

    def scaled(self, maps: Tensor) -> Tensor:
        """Maps (n, M, H, W) as the autoencoders see them: from 0 to 1, ``"benign"`` also beyond; statistics as is."""
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
        """Reconstruction errors (n,) of scaled maps (n, M, H, W) by the autoencoders of the given classes.

        Of statistics (n, M, 1, 2) the squared Mahalanobis distance, over their number.
        """
        flat = maps.flatten(1).to(self.reconstructors.dtype)
        learnt = self.reconstructors(flat, classes)
        return SCORES["l2"](learnt) if self.reconstructor == "statistics" else SCORES[self.scoring](flat - learnt)

    def _explained_as_attacked(self, x: Tensor, classes: Tensor) -> Tensor:
        """The exact explanations; backwards those that the gradient modes make, the defences' inside included."""
        modes = {self.gradient_mode} | {defence.gradient_mode for defence in find_defences(self.pipeline)}
        if modes == {"exact"} or not torch.is_grad_enabled():
            return self.explained(x, classes)
        with torch.no_grad():
            exact = self.explained(x, classes)
        beta = None if self.gradient_mode == "exact" else BETA / self.surrogate_width
        return replaced(self._explained_with(x, classes, beta), exact)

    def _explained_with(self, x: Tensor, classes: Tensor, beta: float | None) -> Tensor:
        look = statistics if self.reconstructor == "statistics" else maps
        return look(self.explanations, self.pipeline, self._turned(x), classes, beta)

    def _turned(self, x: Tensor) -> Tensor:
        """Images with the channels in front, as the pipeline takes them."""
        return channels_to_front(x) if self.pipeline.permutes else x

    # Fitting

    def new_reconstructors(self, seed: int) -> Reconstructor:
        """Autoencoders with the random weights of ``seed``, or Gaussians."""
        count, (height, width) = len(self.explanations), self.image_shape[1:]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return make_reconstructors(self.reconstructor, self.nb_classes, (count, height, width), self.hidden)

    def calibrate(self, maps: Tensor) -> None:
        """Set what ``"benign"`` scales by, from unscaled maps (N, M, H, W) of benign images."""
        if self.scaling != "benign" or self.reconstructor == "statistics":
            return
        for number, values in enumerate(maps.unbind(dim=1)):
            # By numpy, since torch's quantile takes no more than 16 million values.
            logarithms = np.log(values.flatten().numpy() + TINY)
            low, high = np.quantile(logarithms, [0.001, 0.999])
            if not low < high:
                raise InputError(
                    f"x has {self.explanations[number]} explanations whose values are all but 0.2 % the same; ones "
                    'that differ, or scaling="image", were expected'
                )
            self.low[number], self.high[number] = float(low), float(high)

    def keep(self, scores: Tensor, classes: Tensor, rate: float) -> None:
        """Hold the scores (n,) of benign images that took no part in training, and set the thresholds on them."""
        self.held_out_scores, self.held_out_classes = scores.to(self.device), classes.to(self.device)
        self.set_rate(rate)

    def set_rate(self, rate: float) -> None:
        """Set the thresholds at which at most the share ``rate`` of benign images of each class is flagged."""
        thresholds = conformal_thresholds(self.held_out_scores, self.held_out_classes, self.nb_classes, rate)
        self.thresholds.copy_(thresholds)  # all at once, so that nothing has changed where one is refused

    def take(self, fitted: DetectorNetwork) -> None:
        """Take what another one of the same options has learnt; nothing is copied."""
        for name, buffer in fitted.named_buffers(recurse=False):
            setattr(self, name, buffer)
        self.reconstructors = fitted.reconstructors.requires_grad_(False).eval()

    def make(self) -> None:
        """Make the weights, random ones: what is loaded replaces them."""
        self.reconstructors = self.new_reconstructors(seed=0).to(self.device).requires_grad_(False).eval()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take what ``state_dict`` gave."""
        if self._modules["reconstructors"] is None:
            self.make()
        for name in ("held_out_scores", "held_out_classes"):
            setattr(self, name, torch.empty_like(tensors[name], device=self.device))
        self.load_state_dict(tensors)

    # State

    @property
    def pipeline(self) -> Pipeline:
        """The classifier with its preprocessing, from images with the channels in front."""
        return self._held[0]

    def look_into(self, pipeline: Pipeline) -> None:
        """Explain this classifier from now on."""
        self._held = (pipeline,)  # in a tuple, which nn.Module does not look into

    @property
    def device(self) -> torch.device:
        """The device of the thresholds, and so of the classifier."""
        return self.thresholds.device

    @property
    def is_fitted(self) -> bool:
        """Whether there are benign scores to set thresholds on."""
        return len(self.held_out_scores) > 0

    def check_fitted(self) -> None:
        """Refuse to answer before a fit.

        Raises:
            InputError: if neither ``fit`` nor ``load`` was called.
        """
        if not self.is_fitted:
            raise InputError("ExplanationReconstructor is not fitted yet; fit() or load() first was expected")

    @classmethod
    def paper_attacks(cls) -> tuple[PaperAttack, ...]:
        """What the authors ran; steps, and that they leave the predicted class, are those of their code."""
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
        """The options."""
        options = {"explanation": " + ".join(self.explanations), "reconstructor": self.reconstructor}
        if self.reconstructor == "statistics":
            return options
        return options | {"scaling": self.scaling, "score": self.scoring, "hidden": self.hidden}

    def views(self, x: Tensor) -> dict[str, Tensor]:
        """The explanation and its reconstruction, where that is a picture."""
        if self.reconstructor == "statistics":
            return {}
        with torch.no_grad():
            classes = self.predicted(x)
            maps = self.scaled(self.explained(x, classes)).to(self.reconstructors.dtype)
            again = self.reconstructors(maps.flatten(1), classes).reshape(maps.shape)
        return {"explanation": maps[:, :1].clamp(0, 1), "reconstruction": again[:, :1]}
