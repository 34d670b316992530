"""A network linearised at an image, and the distances to its decision boundaries.

Source: Moosavi-Dezfooli, Fawzi, Frossard 2016 (arXiv:1511.04599), equation 8 for l2 and section 3.3 for other norms.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from art_defenses_ext.attack.ball import Ball
from art_defenses_ext.attack.losses import Logits, gradient_of


class Linearised(NamedTuple):
    """The largest logits of each image in descending order, with their gradients.

    Attributes:
        classes: classes of the logits (n, G).
        logits: values of the logits (n, G).
        gradients: gradients with respect to the image (G, n, ...).
    """

    classes: Tensor
    logits: Tensor
    gradients: Tensor

    def distances(self, norm: type[Ball]) -> Tensor:
        """Return the distances to the boundaries of each rival (G - 1, n), in ``norm``; inf where the slope is zero."""
        slope = torch.stack([norm.dual_size(gradient) for gradient in self.gradients[1:] - self.gradients[0]])
        gap = (self.logits[:, :1] - self.logits[:, 1:]).T
        return torch.where(slope > 0, gap / slope, torch.inf)


def linearise(logits: Logits, x: Tensor, y: Tensor, count: int) -> Linearised:
    """Linearise a network at images (n, ...) for its ``count`` largest logits, with one backward pass for each."""
    x = x.detach().requires_grad_()
    outputs = logits(x, y)
    largest, classes = outputs.topk(min(count, outputs.shape[1]), dim=1)
    last = largest.shape[1] - 1
    gradients = [gradient_of(logit, x, retain_graph=rank < last) for rank, logit in enumerate(largest.unbind(dim=1))]
    return Linearised(classes, largest.detach().to(x.dtype), torch.stack(gradients))


def nearest_rivals(logits: Logits, x: Tensor, y: Tensor, norm: type[Ball], count: int) -> Tensor:
    """Return the ``count`` classes (n, count) whose linearised boundaries are nearest to images (n, ...), in order."""
    at = linearise(logits, x, y, 2 * count + 1)  # the boundary of a class with a small logit is far
    order = at.distances(norm).argsort(dim=0)[:count]  # (count, n)
    return at.classes[:, 1:].gather(1, order.T)
