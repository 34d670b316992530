"""What images and labels come in: arrays, and images that are read when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class StoredImages(ABC):
    """Images that are read when they are asked for, where all of them at once would not fit into memory.

    ``np.asarray`` reads them; a slice is read no sooner.

    Attributes:
        shape: (N, C, H, W).
        dtype: float32.
    """

    shape: tuple[int, ...]
    dtype = np.dtype(np.float32)

    @abstractmethod
    def __getitem__(self, rows: slice) -> StoredImages:
        """Some of them."""

    @abstractmethod
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> FloatArray:
        """All of them, in memory."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of what they are read from."""

    def __len__(self) -> int:
        return self.shape[0]


Images = FloatArray | StoredImages
