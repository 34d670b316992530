"""What an evaluation was expected to cost, and what it cost: python tests/benchmarks/price.py [EXAMPLE ...]

Seconds are of the processor, so that other work on the machine counts for neither.
"""

from __future__ import annotations

import sys
import time

import torch

from art_defenses_ext.cli.evaluate import EvaluateOptions, Prepared
from art_defenses_ext.evaluation.evaluate import evaluate, price
from art_defenses_ext.evaluation.run.shard import WHOLE

EXAMPLES = {
    "JumpReLU, digits": {"defence": ["jump_relu"]},
    "undefended, digits": {"defence": ["none"]},
    "two-stream restoration, digits": {"defence": ["two_stream_restoration"], "samples": 96},
    "autoencoder, digits, l2": {"defence": ["feature_autoencoder"], "norm": "l2", "eps": 0.5, "samples": 256},
    "heat and blur, digits": {"defence": ["heat_and_blur"], "samples": 100},
    "detector, digits": {"defence": ["explanation_reconstructor"], "samples": 128},
}


def main() -> None:
    torch.set_num_threads(1)
    time.perf_counter = time.process_time
    print("| example | images | trial, s | passes forwards | backwards | seconds |")
    print("|---|---|---|---|---|---|")
    for name, values in EXAMPLES.items():
        if len(sys.argv) > 1 and not any(word in name for word in sys.argv[1:]):
            continue
        options = EvaluateOptions.of(values | {"undefended_suite": "papers"})
        task = Prepared.of(options, WHOLE)
        call = (task.classifier, task.data, task.threat, options.attacks)
        begin = time.process_time()
        expected = price(*call, progress=False, **task.arguments).cost
        trial = time.process_time() - begin
        spent = evaluate(*call, progress=False, **task.arguments).summary.total
        pairs = [(getattr(expected, each), getattr(spent, each)) for each in ("forward", "backward", "seconds")]
        cells = [f"{wanted:,.0f} of {found:,.0f} ({100 * (wanted / found - 1):+.0f} %)" for wanted, found in pairs]
        print(f"| {name} | {len(task.data[0])} | {trial:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
