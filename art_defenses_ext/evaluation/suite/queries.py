"""The queries of an attack on a random defence: what the defence answered at each point while the attack optimised."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from art_defenses_ext.base.arrays import FloatArray, IntArray
from art_defenses_ext.base.logits import named_classes
from art_defenses_ext.evaluation.threat import Threat


@dataclass
class PointPasses:
    """The passes of a point that an attack sent.

    Attributes:
        label: the true class.
        named: number of passes that named each class.
    """

    label: int
    named: Counter[int] = field(default_factory=Counter)

    @property
    def passes(self) -> int:
        """The number of passes."""
        return self.named.total()

    @property
    def misses(self) -> int:
        """The number of passes that missed the label."""
        return self.passes - self.named[self.label]

    @property
    def outvoted(self) -> bool:
        """Whether another class has at least as many passes as the label."""
        return any(count >= self.named[self.label] for name, count in self.named.items() if name != self.label)


@dataclass
class Queries:
    """All points in the balls around images that an attack sent, with the passes that missed the label.

    A row of a batch belongs to the nearest image. This is unique for images further apart than two radii
    (:meth:`apart`), whatever rows an attack leaves out or repeats.

    Attributes:
        x: clean images (N, ...).
        labels: true classes (N,).
        threat: the ball; points outside it, or outside the clip range, do not count.
        clip_values: least and largest pixel value; None for no range.
        draws: passes that the attack makes of a point at a step; a point that it sends again later is another one.
        points: for each image its points in the order in which they were sent.
    """

    x: FloatArray
    labels: IntArray
    threat: Threat
    clip_values: tuple[float, float] | None
    draws: int
    points: list[list[PointPasses]] = field(init=False)

    def __post_init__(self) -> None:
        self.points = [[] for _ in self.x]
        self._last: list[dict[bytes, PointPasses]] = [{} for _ in self.x]

    def of(self, rows: slice) -> Queries:
        """Return queries of some of the images, without points."""
        return Queries(self.x[rows], self.labels[rows], self.threat, self.clip_values, self.draws)

    def apart(self) -> bool:
        """Return whether no point can lie in the balls around two of the images."""
        distances = self._distances(torch.from_numpy(self.x)).fill_diagonal_(torch.inf)
        return bool(distances.min() > 2.1 * self.threat.eps)

    def note(self, points: Tensor, classes: Tensor) -> None:
        """Count one pass of points (n, ...), in which the defence named ``classes`` (n,)."""
        sent = points.detach().cpu()
        rows = self._distances(sent).argmin(dim=1).numpy()
        images = sent.float().numpy()
        sizes = self.threat.sizes(self.x[rows], images, self.clip_values)
        inside = np.array([self.threat.allows(size) for size in sizes])
        if self.clip_values is not None:
            low, high = self.clip_values
            inside &= ((images >= low) & (images <= high)).reshape(len(images), -1).all(axis=1)
        for row in np.flatnonzero(inside):
            self._point(int(rows[row]), images[row].tobytes()).named[int(classes[row])] += 1

    def _point(self, row: int, pixels: bytes) -> PointPasses:
        """Return the point of an image that a pass belongs to, a new one after as many passes as a step makes."""
        point = self._last[row].get(pixels)
        if point is None or point.passes == self.draws:
            point = self._last[row][pixels] = PointPasses(int(self.labels[row]))
            self.points[row].append(point)
        return point

    def _distances(self, points: Tensor) -> Tensor:
        """Return the size of the change from each image to each point (n, N)."""
        sizes = [self.threat.size(points - torch.from_numpy(image)) for image in self.x]
        return torch.stack(sizes, dim=1)


class Watched(nn.Module):
    """A network whose passes are counted."""

    def __init__(self, module: nn.Module, queries: Queries) -> None:
        super().__init__()
        self.module, self.queries = module, queries

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K) of one pass."""
        logits: Tensor = self.module(x)
        self.queries.note(x, named_classes(logits.detach()))
        return logits
