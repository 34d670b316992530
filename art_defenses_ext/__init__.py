"""Defences against adversarial examples that can be attacked honestly: a plugin for ART in PyTorch."""

from art_defenses_ext.detector.explanation_reconstructor import ExplanationReconstructor
from art_defenses_ext.estimator.defend import as_module, defend
from art_defenses_ext.estimator.rejecting import rejecting
from art_defenses_ext.evaluation.evaluate import evaluate
from art_defenses_ext.evaluation.threats import L2, Linf
from art_defenses_ext.gradient_mode import gradient_mode, gradient_modes
from art_defenses_ext.preprocessor.feature_autoencoder import FeatureAutoencoder
from art_defenses_ext.preprocessor.heat_and_blur import HeatAndBlur
from art_defenses_ext.preprocessor.restoration_loss import RestorationLoss
from art_defenses_ext.preprocessor.two_stream_restoration import TwoStreamRestoration
from art_defenses_ext.surrogate import Surrogate
from art_defenses_ext.transformer.jump_relu import JumpReLU

__all__ = [
    "L2",
    "ExplanationReconstructor",
    "FeatureAutoencoder",
    "HeatAndBlur",
    "JumpReLU",
    "Linf",
    "RestorationLoss",
    "Surrogate",
    "TwoStreamRestoration",
    "as_module",
    "defend",
    "evaluate",
    "gradient_mode",
    "gradient_modes",
    "rejecting",
]
