"""What relevance costs: beside zennit, captum, and one forward and backward pass to the input.

    python tests/benchmarks/relevance.py [--threads 1] [--repeats 7] [--batch 2] [--device cuda]

Needs zennit and captum (the extra ``benchmark``). All variants of a line take turns in one process, and the order turns
from round to round, so that a busy machine slows all of them alike. The weights are random, which changes no time, and
frozen, so that the plain backward pass goes to the input alone. Images are in [0, 1], since captum's z+ rule is another
one for negative inputs. Second order is the gradient of the sum of the squared heatmap with respect to the images;
zennit's hooks are deactivated for it, without which it is wrong. The largest differences go to standard error.
"""

from __future__ import annotations

import argparse
import copy
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from captum.attr import LRP
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule
from timing import Run, Times, clock_of, device_name, take_turns
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import squeezenet1_1, vgg11
from zennit.attribution import Gradient
from zennit.composites import EpsilonAlpha2Beta1, EpsilonPlus
from zennit.core import Composite as ZennitComposite

from art_defenses_ext.attribution.relevance import Composite, epsilon_alpha2_beta1, epsilon_plus, relevance

SIZE = 224
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "VGG-11": lambda: vgg11(weights=None),
    "SqueezeNet 1.1": lambda: squeezenet1_1(weights=None),
}


@dataclass(frozen=True)
class Rules:
    """One composite, ours and theirs, and the bars."""

    name: str
    ours: Composite
    zennits: Callable[[], ZennitComposite]
    captum_has_it: bool
    most_passes: float  # first order, in forward + backward passes
    least_gain: float  # first order, over zennit
    least_second_gain: float = 1.5


RULES = (
    Rules("epsilon-plus", epsilon_plus(), EpsilonPlus, captum_has_it=True, most_passes=2.0, least_gain=1.6),
    Rules("alpha2-beta1", epsilon_alpha2_beta1(), EpsilonAlpha2Beta1, False, most_passes=3.0, least_gain=1.9),
)


# What is timed


def forward_and_backward(model: nn.Module, x: Tensor) -> Run:
    def run() -> Tensor:
        live = x.clone().requires_grad_()
        return torch.autograd.grad(model(live).amax(dim=1).sum(), live)[0]

    return run


def ours(model: nn.Module, x: Tensor, rules: Rules) -> Run:
    return lambda: relevance(model, x, "predicted", rules.ours)


def ours_second(model: nn.Module, x: Tensor, rules: Rules) -> Run:
    def run() -> Tensor:
        live = x.clone().requires_grad_()
        return torch.autograd.grad(relevance(model, live, "predicted", rules.ours).square().sum(), live)[0]

    return run


def predicted(logits: Tensor) -> Tensor:
    """Where zennit's relevance starts: the largest logit."""
    return F.one_hot(logits.argmax(dim=1), logits.shape[1]) * logits


def zennits(model: nn.Module, x: Tensor, rules: Rules) -> Run:
    composite = rules.zennits()

    def run() -> Tensor:
        with Gradient(model=model, composite=composite) as attributor:
            heat: Tensor = attributor(x.clone(), predicted)[1]
        return heat

    return run


def zennits_second(model: nn.Module, x: Tensor, rules: Rules) -> Run:
    composite = rules.zennits()

    def run() -> Tensor:
        live = x.clone().requires_grad_()
        with Gradient(model=model, composite=composite, create_graph=True) as attributor:
            heat: Tensor = attributor(live, predicted)[1]
            with composite.inactive():
                return torch.autograd.grad(heat.square().sum(), live)[0]

    return run


def captums(model: nn.Module, x: Tensor) -> Run:
    """z+ on convolutions, epsilon on all else, for the predicted class."""
    model, target = copy.deepcopy(model), model(x).argmax(dim=1)

    def run() -> Tensor:
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.rule = Alpha1_Beta0_Rule()  # captum takes it off after each call
        heat: Tensor = LRP(model).attribute(x.clone().requires_grad_(), target=target)
        return heat.detach()

    return run


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest, as a share of the largest value."""
    return float((actual - expected).abs().max() / expected.abs().max())


# The table


def milliseconds(times: list[float]) -> str:
    return f"{1000 * median(times):.0f} / {1000 * min(times):.0f}"


def at_most(value: float, bar: float) -> str:
    return f"{'yes' if value <= bar else 'NO'} (<= {bar:g})"


def at_least(value: float, bar: float) -> str:
    return f"{'yes' if value >= bar else 'NO'} (>= {bar:g})"


COLUMNS: tuple[str, ...] = (
    "network",
    "rules",
    "order",
    "forward + backward, ms",
    "ours, ms",
    "ours : f + b",
    "holds",
    "zennit, ms",
)
COLUMNS += ("zennit : ours", "holds", "captum, ms", "captum : ours")


def line(network: str, rules: Rules, order: str, times: dict[str, Times], clock: str, refusal: str) -> str:
    plain, mine, theirs = (median(times[name].of(clock)) for name in ("plain", "ours", "zennit"))
    is_first = order == "first"
    cells = [network, rules.name, order, milliseconds(times["plain"].of(clock)), milliseconds(times["ours"].of(clock))]
    cells += [f"{mine / plain:.2f}", at_most(mine / plain, rules.most_passes) if is_first else ""]
    cells += [milliseconds(times["zennit"].of(clock)), f"{theirs / mine:.2f}"]
    cells += [at_least(theirs / mine, rules.least_gain if is_first else rules.least_second_gain)]
    if "captum" in times:
        cells += [milliseconds(times["captum"].of(clock)), f"{median(times['captum'].of(clock)) / mine:.2f}"]
    else:
        cells += [refusal, ""]
    return f"| {' | '.join(cells)} |"


def compare(
    network: str, rules: Rules, order: str, model: nn.Module, x: Tensor, repeats: int
) -> tuple[dict[str, Times], str]:
    """Times of each variant, and why captum is not among them."""
    first = order == "first"
    runs = {
        "plain": forward_and_backward(model, x),
        "ours": (ours if first else ours_second)(model, x, rules),
        "zennit": (zennits if first else zennits_second)(model, x, rules),
    }
    refusal = "its second order raises" if rules.captum_has_it else "has no such rule"
    if first and rules.captum_has_it:
        runs["captum"] = captums(model, x)
    results = {}
    for name in list(runs):  # the first run of each, which also warms up
        try:
            results[name] = runs[name]()
        except Exception as error:
            if name != "captum":
                raise
            del runs[name]
            refusal = f"refuses: {type(error).__name__}"
            print(f"captum, {network}, {rules.name}: {error}", file=sys.stderr)
    apart = [f"{difference(results['ours'], results[name]):.0e} from {name}" for name in list(results)[2:]]
    print(f"{network}, {rules.name}, {order} order: {', '.join(apart)}", file=sys.stderr, flush=True)
    return take_turns(runs, x.device, repeats), refusal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    clock = clock_of(device)

    print(f"torch {torch.__version__}, {options.threads} thread(s), {device_name(device)}  ")
    print(f"`python {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}`\n")
    print(f"{options.batch} images of {SIZE} px, float32. Median / least of {options.repeats}; ratios of medians;")
    print(f"{'time on the wall' if clock == 'wall' else 'processor time of the process'}.\n")
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|", flush=True)
    walls: list[str] = []
    for network, build in NETWORKS.items():
        model = build().eval().requires_grad_(False).to(device)
        x = torch.rand(options.batch, 3, SIZE, SIZE, device=device)
        for rules in RULES:
            for order in ("first", "second"):
                times, refusal = compare(network, rules, order, model, x, options.repeats)
                print(line(network, rules, order, times, clock, refusal), flush=True)
                mine, plain, theirs = (median(times[name].wall) for name in ("ours", "plain", "zennit"))
                walls.append(f"{network} {rules.name} {order} {mine / plain:.2f}, {theirs / mine:.2f}")
    print(f"\nThe same two ratios on the wall (ours : f + b, zennit : ours): {'; '.join(walls)}.")


if __name__ == "__main__":
    main()
