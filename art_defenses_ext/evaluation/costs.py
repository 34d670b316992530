"""What an attack costs: passes through the network, seconds, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext.estimator.rejecting import RejectingNetwork


@dataclass
class Cost:
    """The cost of some work on a network.

    Attributes:
        forward: images passed forwards.
        backward: images passed backwards.
        seconds: wall time.
        peak_memory: bytes: the most that was allocated on a CUDA device meanwhile; on the CPU the process's
            high-water mark so far.
    """

    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    peak_memory: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Both, one after the other."""
        memory = max(self.peak_memory, other.peak_memory)
        return Cost(self.forward + other.forward, self.backward + other.backward, self.seconds + other.seconds, memory)


@contextmanager
def measured(classifier: PyTorchClassifier) -> Iterator[Cost]:
    """Count and time what happens to ``classifier``'s network inside the block."""
    cost = Cost()
    on_cuda = classifier.device.type == "cuda"

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        cost.forward += len(inputs[0])
        if output.requires_grad:
            output.register_hook(count_backward)

    def count_backward(gradient: Tensor) -> None:
        cost.backward += len(gradient)

    handle = _entrance(classifier.model).register_forward_hook(count)
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(classifier.device)
    begin = time.perf_counter()
    try:
        yield cost
    finally:
        if on_cuda:
            torch.cuda.synchronize(classifier.device)
        cost.seconds = time.perf_counter() - begin
        cost.peak_memory = torch.cuda.max_memory_allocated(classifier.device) if on_cuda else _process_peak()
        handle.remove()


def _entrance(model: nn.Module) -> nn.Module:
    """The module that each pass calls once.

    ART calls the children of a Sequential, not the Sequential itself. Of a network that rejects, some attacks call the
    parts: those passes count that go through the classifier.
    """
    if isinstance(model, RejectingNetwork):
        return model.pipeline
    return next(iter(model.children())) if isinstance(model, nn.Sequential) else model


def _process_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
