"""Types of images and labels: arrays, and images that are read on demand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class StoredImages(ABC):
    """Images that are read on demand, since all of them would not fit into memory.

    ``np.asarray`` reads them; slicing does not.

    Attributes:
        shape: (N, C, H, W).
        dtype: float32.
    """

    shape: tuple[int, ...]
    dtype = np.dtype(np.float32)

    @abstractmethod
    def __getitem__(self, rows: slice) -> StoredImages:
        """Return a part of the images, without reading them."""

    @abstractmethod
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> FloatArray:
        """Return all images, read into memory."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash of their source."""

    def __len__(self) -> int:
        return self.shape[0]


Images = FloatArray | StoredImages
