"""Defences against adversarial examples, and their adaptive evaluation: a plugin for ART in PyTorch.

Names are imported on first use: torch and ART take seconds to import, and the package's pytest plugin must not slow
down a test suite that attacks nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from art_defenses_ext.attack.ball import L1, L2, Linf
    from art_defenses_ext.detector.explanation_reconstructor import ExplanationReconstructor
    from art_defenses_ext.estimator.defend import as_module, defend
    from art_defenses_ext.estimator.rejecting import rejecting
    from art_defenses_ext.estimator.wrap import as_classifier
    from art_defenses_ext.evaluation.add import add_examples
    from art_defenses_ext.evaluation.config import EvaluationConfig
    from art_defenses_ext.evaluation.evaluate import evaluate
    from art_defenses_ext.evaluation.publish.compare import compare
    from art_defenses_ext.evaluation.rerun import rerun
    from art_defenses_ext.evaluation.suite.spec import AttackSpec
    from art_defenses_ext.evaluation.suite.third_party import ThirdParty
    from art_defenses_ext.gradients.checkpointing import checkpoint_steps
    from art_defenses_ext.gradients.modes import gradient_mode, gradient_modes
    from art_defenses_ext.gradients.surrogate import Surrogate
    from art_defenses_ext.preprocessor.feature_autoencoder import FeatureAutoencoder
    from art_defenses_ext.preprocessor.heat_and_blur import HeatAndBlur
    from art_defenses_ext.preprocessor.restoration_loss import RestorationLoss
    from art_defenses_ext.preprocessor.two_stream_restoration import TwoStreamRestoration
    from art_defenses_ext.transformer.jump_relu import JumpReLU
    from art_defenses_ext.zoo.loaders import load_model

__all__ = [
    "L1",
    "L2",
    "AttackSpec",
    "EvaluationConfig",
    "ExplanationReconstructor",
    "FeatureAutoencoder",
    "HeatAndBlur",
    "JumpReLU",
    "Linf",
    "RestorationLoss",
    "Surrogate",
    "ThirdParty",
    "TwoStreamRestoration",
    "add_examples",
    "as_classifier",
    "as_module",
    "checkpoint_steps",
    "compare",
    "defend",
    "evaluate",
    "gradient_mode",
    "gradient_modes",
    "load_model",
    "rejecting",
    "rerun",
]

_HOMES = {
    "AttackSpec": "evaluation.suite.spec",
    "EvaluationConfig": "evaluation.config",
    "ExplanationReconstructor": "detector.explanation_reconstructor",
    "FeatureAutoencoder": "preprocessor.feature_autoencoder",
    "HeatAndBlur": "preprocessor.heat_and_blur",
    "JumpReLU": "transformer.jump_relu",
    "L1": "attack.ball",
    "L2": "attack.ball",
    "Linf": "attack.ball",
    "RestorationLoss": "preprocessor.restoration_loss",
    "Surrogate": "gradients.surrogate",
    "ThirdParty": "evaluation.suite.third_party",
    "TwoStreamRestoration": "preprocessor.two_stream_restoration",
    "add_examples": "evaluation.add",
    "as_classifier": "estimator.wrap",
    "as_module": "estimator.defend",
    "checkpoint_steps": "gradients.checkpointing",
    "compare": "evaluation.publish.compare",
    "defend": "estimator.defend",
    "evaluate": "evaluation.evaluate",
    "gradient_mode": "gradients.modes",
    "gradient_modes": "gradients.modes",
    "load_model": "zoo.loaders",
    "rejecting": "estimator.rejecting",
    "rerun": "evaluation.rerun",
}
"""The module of each public name."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("art-defenses-ext")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
