"""Feature autoencoder and TRN on Fashion-MNIST: the papers' setting and robust accuracy at eps .1.

    python examples/restoration_fashion_mnist.py --data DIR --out OUT [--fits NAME,...]
        [--only ablation|fit|surrogates|papers|adaptive]

DIR holds Fashion-MNIST as torchvision lays it out. The classifier is the LeNet of the JumpReLU authors, trained here
for five epochs (or --weights FILE). OUT receives the fits, which a later call loads, and the reports.
"""

from __future__ import annotations

from restoration import Setting, end_to_end, main

EPS = 0.1

SETTING = Setting(
    dataset="fashion_mnist",
    eps=EPS,
    model="lenet_like",
    weights=None,
    fit={"nb_epochs": 3, "learning_rate": 2e-3},
    adversarial={"nb_epochs": 4, "learning_rate": 3e-3, "inputs": end_to_end(EPS, 7)},
    ablation_images=12_800,
    ablation_fit={"nb_epochs": 2, "learning_rate": 2e-3},
)

if __name__ == "__main__":
    main(SETTING, __doc__ or "")
