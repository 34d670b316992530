"""Feature autoencoder and TRN on CIFAR-10: the papers' setting and robust accuracy at 8/255.

    python examples/restoration_cifar10.py --data DIR --out OUT [--fits NAME,...]
        [--only ablation|fit|surrogates|papers|adaptive] [--device cuda] [--measure 1000]
        [--dataset svhn --weights FILE]

DIR holds CIFAR-10 as torchvision lays it out, and in weights/ the ResNet-20 of the JumpReLU authors (or --weights
FILE). OUT receives the fits, which a later call loads, and the reports. On a CPU a fit takes hours; an
interrupted fit continues.
"""

from __future__ import annotations

from restoration import Fit, Setting, end_to_end, main

from art_defenses_ext import FeatureAutoencoder, RestorationLoss
from art_defenses_ext.training.inputs import pgd

EPS = 8 / 255
THIRDS = ["clean", "fgsm", pgd(EPS, 5)]

SETTING = Setting(
    dataset="cifar10",
    eps=EPS,
    model="resnet20",
    weights="weights/erichson_cifar10_resnet20_baseline.pkl",
    # BIM, MIM and FFGSM are held out. Without the class term the accuracy under attack is low; without half of the
    # images clean, the clean accuracy is.
    fit={
        "nb_epochs": 20,
        "learning_rate": 2e-3,
        "inputs": ["clean", "clean", "fgsm", pgd(EPS, 5)],
        "loss": RestorationLoss(feature_weight=1.0, class_weight=1.0),
    },
    adversarial={"nb_epochs": 10, "learning_rate": 2e-3, "inputs": end_to_end(EPS, 5), "loss": None},
    ablation_images=12_800,
    ablation_fit={"nb_epochs": 2, "learning_rate": 2e-3},
    options={"width": 32},
    tried=(
        Fit(
            "autoencoder_features",
            "feature autoencoder, loss without class, a third of the images clean",
            FeatureAutoencoder,
            training={"loss": RestorationLoss(feature_weight=1.0), "inputs": THIRDS},
        ),
        Fit(
            "autoencoder_thirds",
            "feature autoencoder, a third of the images clean",
            FeatureAutoencoder,
            training={"inputs": THIRDS},
        ),
        # A second, smaller cosine (SGDR), for a fit that was cut to what a CPU can do.
        Fit(
            "autoencoder_further",
            "feature autoencoder, three more epochs",
            FeatureAutoencoder,
            training={"nb_epochs": 3, "learning_rate": 5e-4},
            after="autoencoder",
        ),
    ),
)

if __name__ == "__main__":
    main(SETTING, __doc__ or "")
