"""The cost of an attack: passes through the network, seconds, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.base.validation import one_line
from art_defenses_ext.estimator.rejecting import RejectingNetwork
from art_defenses_ext.gradients.numpy_bridge import Postprocessed


@dataclass
class Cost:
    """The cost of some work on a network.

    Attributes:
        forward: images passed forwards.
        backward: images passed backwards.
        seconds: wall time.
        peak_memory: bytes: the peak allocation on a CUDA device; on the CPU the process's high-water mark so far.
        calls: number of calls of the network with a batch of images.
    """

    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    peak_memory: int = 0
    calls: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of both, one after the other."""
        passes = self.forward + other.forward, self.backward + other.backward
        memory = max(self.peak_memory, other.peak_memory)
        return Cost(*passes, self.seconds + other.seconds, memory, self.calls + other.calls)


@contextmanager
def measured(classifier: PyTorchClassifier, *others: PyTorchClassifier) -> Iterator[Cost]:
    """Count and time the passes of classifiers' networks inside the block; a shared network counts once.

    Raises:
        InputError: for a network that takes no hooks, such as a scripted one.
    """
    cost = Cost()
    on_cuda = classifier.device.type == "cuda"

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        cost.forward += len(inputs[0])
        cost.calls += 1
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(count_backward)

    def count_backward(gradient: Tensor) -> None:
        cost.backward += len(gradient)

    entrances = {id(entrance): entrance for entrance in (_entrance(target.model) for target in (classifier, *others))}
    try:
        handles = [entrance.register_forward_hook(count) for entrance in entrances.values()]
    except RuntimeError as error:
        raise InputError(
            f"classifier has a network of TorchScript, whose passes cannot be counted ({one_line(error)}); "
            "the nn.Module that it was made from, or torch.jit.trace of that, was expected"
        ) from error
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
        for handle in handles:
            handle.remove()


def _entrance(model: nn.Module) -> nn.Module:
    """Return the module that each pass calls once.

    ART calls the children of a Sequential, not the Sequential itself. Some attacks call the parts of a network that
    rejects: the passes through the classifier's network count, including those of the detector.
    """
    if isinstance(model, Postprocessed):
        return _entrance(model.network)
    if isinstance(model, RejectingNetwork):
        return _entrance(_innermost(model))
    return next(iter(model.children())) if isinstance(model, nn.Sequential) else model


def _innermost(model: RejectingNetwork) -> nn.Module:
    """Return the classifier's network; of a rejecting one, the network inside its wrappers."""
    inner: Any = model.pipeline.model if hasattr(model, "pipeline") else model.module
    network: nn.Module = inner
    return network


def _process_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
