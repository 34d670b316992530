"""Feature autoencoder and TRN on MNIST: the papers' setting and robust accuracy at eps .2.

    python examples/restoration_mnist.py --data DIR --out OUT [--fits NAME,...]
        [--only ablation|fit|surrogates|papers|adaptive]

DIR holds MNIST as torchvision lays it out, and in weights/ the LeNet of the JumpReLU authors (or --weights FILE). OUT
receives the fits, which a later call loads, and the reports.
"""

from __future__ import annotations

from restoration import Setting, end_to_end, main

EPS = 0.2

SETTING = Setting(
    dataset="mnist",
    eps=EPS,
    model="lenet_like",
    weights="weights/erichson_mnist_lenet_baseline.pkl",
    fit={"nb_epochs": 3, "learning_rate": 2e-3},
    adversarial={"nb_epochs": 4, "learning_rate": 3e-3, "inputs": end_to_end(EPS, 7)},
    ablation_images=12_800,
    ablation_fit={"nb_epochs": 2, "learning_rate": 2e-3},
)

if __name__ == "__main__":
    main(SETTING, __doc__ or "")
