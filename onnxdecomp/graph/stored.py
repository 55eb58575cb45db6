"""A tensor as indices into codebooks of 16-bit numbers: what is written to a model in its place."""

from dataclasses import dataclass
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

CENTROID_TYPES = tuple(map(np.dtype, (np.float16, ml_dtypes.bfloat16, np.int16)))
"""The element types of a codebook."""

MAX_BITS = 16


@dataclass(frozen=True, eq=False)
class StoredCodebook:
    """A tensor as indices into codebooks.

    An element is ``centroids[group of its channel, index]``, times the scale in float32 when there is one.

    Args:
        indices: uint8 or uint16 of the tensor's stored shape, below the number of centroids.
        centroids: ``(groups, centroids)`` of a type in `CENTROID_TYPES`.
        bits: Bits of an index, 1 to 16.
        axis: The axis of `indices` that counts channels.
        group_size: Channel c belongs to group ``c // group_size``; 0 when all share one codebook.
        scale: None, ``()`` for the whole tensor or ``(channels,)``, float32.

    Raises:
        ValueError: Types, shapes and numbers do not go together.
    """

    indices: NDArray[np.uint8 | np.uint16]
    centroids: NDArray[np.generic]
    bits: int
    axis: int = 0
    group_size: int = 0
    scale: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise ValueError(problem)

    @property
    def rows(self) -> tuple[int, int, int]:
        """The shape with everything before and behind the channels as one axis: ``(before, C, behind)``."""
        shape = self.indices.shape
        if not shape:
            return (1, 1, 1)
        return prod(shape[: self.axis]), shape[self.axis], prod(shape[self.axis + 1 :])

    @property
    def scales_channels(self) -> bool:
        """Tell whether each channel has a scale of its own."""
        return self.scale is not None and self.scale.ndim > 0

    @property
    def offsets(self) -> NDArray[np.int32] | None:
        """Where each channel's codebook starts among all centroids: ``(C, 1)``, None with one codebook."""
        n_groups, n_centroids = self.centroids.shape
        if n_groups == 1:
            return None
        groups = np.arange(self.rows[1], dtype=np.int32)[:, None] // self.group_size  # (C, 1)
        return groups * np.int32(n_centroids)

    def dense(self, dtype: np.dtype | type) -> NDArray[np.generic]:
        """Return the tensor that the stored form decodes to, bit for bit."""
        number = np.dtype(dtype) if self.scale is None else np.dtype(np.float32)
        table: NDArray[Any] = self.centroids.reshape(-1).astype(number)  # (groups centroids,)
        if self.scale is not None and not self.scales_channels:
            table = table * self.scale
        indices = self.indices.reshape(self.rows).astype(np.int32)  # (before, C, behind)
        if self.offsets is not None:
            indices += self.offsets
        values = table[indices]
        if self.scale is not None and self.scales_channels:
            values = values * self.scale[:, None]
        tensor: NDArray[np.generic] = values.astype(dtype).reshape(self.indices.shape)
        return tensor

    def part(self, start: int, stop: int) -> "StoredCodebook":
        """Return the channels from `start` up to `stop`, where `start` is the first of a group."""
        n_groups = len(self.centroids)
        size = self.group_size if n_groups > 1 else 0
        groups = slice(start // size, -(-stop // size)) if size else slice(None)
        scale = self.scale[start:stop] if self.scale is not None and self.scales_channels else self.scale
        indices = self.indices[(slice(None),) * self.axis + (slice(start, stop),)]
        return StoredCodebook(indices, self.centroids[groups], self.bits, self.axis, size, scale)

    def _problem(self) -> str | None:
        indices, centroids, scale = self.indices, self.centroids, self.scale
        if indices.dtype not in (np.uint8, np.uint16):
            return f"indices are uint8 or uint16, not {indices.dtype}"
        if centroids.dtype not in CENTROID_TYPES or centroids.ndim != 2:
            return f"centroids are (groups, centroids) of 16 bits, not {centroids.dtype} {centroids.shape}"
        if not 1 <= self.bits <= MAX_BITS:
            return f"an index has 1 to {MAX_BITS} bits, not {self.bits}"
        if int(indices.max(initial=0)) >= min(centroids.shape[1], 2**self.bits):
            return f"index {indices.max()} is beyond {centroids.shape[1]} centroids or {self.bits} bits"
        if indices.ndim and not 0 <= self.axis < indices.ndim:
            return f"a tensor of {indices.ndim} axes has no axis {self.axis}"
        channels = self.rows[1]
        groups = -(-channels // self.group_size) if self.group_size else 1
        if len(centroids) != max(groups, 1):
            return f"{channels} channels in groups of {self.group_size} need {groups}, not {len(centroids)}"
        if scale is not None and (scale.dtype != np.float32 or scale.shape not in ((), (channels,))):
            return f"a scale is float32 of shape () or ({channels},), not {scale.dtype} {scale.shape}"
        return None
