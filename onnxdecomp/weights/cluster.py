"""A weight as small indices into a codebook of 16-bit centroids."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.errors import UsageError
from onnxdecomp.methods.base import FloatArray
from onnxdecomp.weights.kmeans1d import best_centroids
from onnxdecomp.weights.line import Line
from onnxdecomp.weights.moments import Moment
from onnxdecomp.weights.nearest import Floats, Indices, index_dtype, nearest
from onnxdecomp.weights.sixteen_bits import Kind, Rounded, Stored, rounded, stored

MAX_BITS = 16
MAX_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Codebook:
    """A weight as indices, centroids and scales.

    Args:
        indices: Shape of the weight; uint8 for up to 256 centroids, else uint16.
        centroids: ``(n_groups, K)`` float32, exactly as 16 bits of `kind` hold them; each row rises. K is at
            most ``2^bits``, less where there are fewer distinct weights; short rows repeat their last.
        bits: Of one index in a file, 1..16.
        kind: How centroids are stored.
        group_channels: Output channels that share a row of `centroids`; the last group may have fewer.
        axis: Axis of the output channels in `indices`.
        scale: float32 ``(1,)`` or ``(O,)``, what centroids are multiplied with; None for nothing.
        note: What a user should know, as a sentence; empty when there is nothing.
    """

    indices: Indices
    centroids: NDArray[np.float32]
    bits: int
    kind: Kind
    group_channels: int
    axis: int = 0
    scale: NDArray[np.float32] | None = None
    note: str = ""

    @property
    def stored(self) -> Stored:
        """``(n_groups, K)`` as the 16 bits a file holds; bfloat16 as its bits in uint16."""
        return stored(self.centroids, self.kind)

    @property
    def size_bytes(self) -> int:
        """Bytes of the packed indices, the centroids and the scales."""
        n_scales = 0 if self.scale is None else self.scale.size
        return codebook_bytes(self.indices.size, self.bits, self.centroids.size, n_scales)

    def decode(self) -> NDArray[np.float32]:
        """Return the weight in float32, as the operators of ONNX compute it: Gather, Cast, Mul."""
        rows = np.moveaxis(self.indices, self.axis, 0)
        weight = np.empty(self.indices.shape, np.float32)
        decoded = np.moveaxis(weight, self.axis, 0)
        for row, place in enumerate(channel_groups(len(rows), self.group_channels)):
            decoded[place] = self.centroids[row][rows[place]]
        if self.scale is not None:
            decoded *= self.scale.reshape(-1, *(1,) * (decoded.ndim - 1))
        return weight


def codebook_bytes(n_weights: int, bits: int, n_centroids: int, n_scales: int) -> int:
    """Return the bytes of packed indices, of 16-bit centroids and of float32 scales."""
    return -(-n_weights * bits // 8) + 2 * n_centroids + 4 * n_scales


def channel_groups(n_channels: int, group_channels: int) -> Iterator[slice]:
    """Yield the channels of each group."""
    for start in range(0, n_channels, group_channels):
        yield slice(start, min(start + group_channels, n_channels))


@dataclass(frozen=True)
class Point:
    """What a codebook of some width gives.

    Args:
        bits: Of one index.
        error: Relative error of the weight, each square counted by its importance; never squared.
        size_bytes: As `Codebook.size_bytes`.
    """

    bits: int
    error: float
    size_bytes: int


def input_importance(moment: Moment, weight_shape: tuple[int, ...]) -> Floats:
    """Return how much each weight of a layer counts: the second moment of the input it is multiplied with.

    Args:
        moment: ``(G, D, D)`` second moment of the patches of each group.
        weight_shape: ``(O, I/G, *K)``.

    Returns:
        Broadcastable to the weight: ``(1, I/G, *K)``, or ``(O, I/G, *K)`` where there are groups.
    """
    diagonal = np.maximum(np.diagonal(moment, axis1=1, axis2=2), 0.0)  # (G, D)
    channels = 1 if len(moment) == 1 else weight_shape[0] // len(moment)
    return np.repeat(diagonal, channels, axis=0).reshape(-1, *weight_shape[1:])


def cluster(
    weight: FloatArray,
    bits: int,
    *,
    importance: FloatArray | None = None,
    group_channels: int | None = None,
    per_channel_scale: bool = False,
    centroids: Kind = "float16",
    axis: int = 0,
) -> Codebook:
    """Return the codebook with the least error that k-means finds, its centroids rounded to 16 bits.

    Args:
        weight: Any shape with at least one axis.
        bits: 1..16: ``2^bits`` centroids, or as many as there are distinct weights if these are fewer.
        importance: What each squared error counts, not negative, broadcastable to the weight; None: the same.
        group_channels: Output channels that share centroids; None for all.
        per_channel_scale: Whether each output channel is divided by its root mean square beforehand.
        centroids: How they are stored.
        axis: Axis of the output channels.

    Raises:
        ValueError: The weight is empty, or has values or an importance that cannot be clustered.
        UsageError: An option makes no sense.
    """
    problem = _Problem.of(weight, importance, group_channels, per_channel_scale, axis)
    found, rows = problem.solved(bits, centroids)
    n_centroids = found.values.shape[1]
    indices = np.empty(weight.shape, index_dtype(n_centroids))
    moved = np.moveaxis(indices, axis, 0)
    exact = found.values.astype(np.float64) * found.factor
    for row, place in zip(exact, rows, strict=True):
        moved[place] = nearest(problem.values(place), row)
    return Codebook(
        indices,
        found.values,
        bits,
        centroids,
        problem.group_channels,
        axis,
        problem.stored_scale(found.factor),
        found.note,
    )


def curve(
    weight: FloatArray,
    bits_list: Iterable[int],
    *,
    importance: FloatArray | None = None,
    group_channels: int | None = None,
    per_channel_scale: bool = False,
    centroids: Kind = "float16",
    axis: int = 0,
) -> tuple[Point, ...]:
    """Return what `cluster` would give for each number of bits, without the indices.

    The weights are sorted (or counted) once for all.
    """
    problem = _Problem.of(weight, importance, group_channels, per_channel_scale, axis)
    return tuple(problem.point(bits, centroids) for bits in bits_list)


def weight_error(codebook: Codebook, weight: FloatArray, importance: FloatArray | None = None) -> float:
    """Return the relative error of a codebook, each square counted by its importance; never squared."""
    wanted = np.asarray(weight, np.float64)
    lost, energy = np.square(codebook.decode() - wanted), np.square(wanted)
    if importance is not None:
        lost, energy = lost * importance, energy * importance
    whole = float(np.sum(energy))
    return float(np.sqrt(np.sum(lost) / whole)) if whole > 0 else 0.0


@dataclass(frozen=True)
class _Problem:
    """A weight to be clustered.

    Args:
        weight: ``(O, ...)``, output channels first.
        lines: One for each group of channels, of the weight divided by `scale`.
        group_channels: Channels of a group.
        scale: ``(O, 1, ...)`` float32, None for none.
    """

    weight: FloatArray
    lines: tuple[Line, ...]
    group_channels: int
    scale: NDArray[np.float32] | None

    @classmethod
    def of(
        cls,
        weight: FloatArray,
        importance: FloatArray | None,
        group_channels: int | None,
        per_channel_scale: bool,
        axis: int,
    ) -> "_Problem":
        """Return the problem of a weight."""
        moved = np.moveaxis(weight, axis, 0)
        if importance is not None:
            importance = np.moveaxis(np.broadcast_to(importance, weight.shape), axis, 0)
        n_channels = len(moved)
        shared = n_channels if group_channels is None else min(group_channels, n_channels)
        if weight.size and shared < 1:
            raise UsageError(f"{group_channels} output channels cannot share a codebook: give 1 or more")
        scale = _channel_scale(moved) if per_channel_scale and weight.size else None
        problem = cls(moved, (), shared, scale)
        lines = [problem._line(place, importance) for place in channel_groups(n_channels, max(shared, 1))]
        return replace(problem, lines=tuple(lines) if lines else (Line.of(moved),))

    def values(self, place: slice) -> FloatArray:
        """Return the weights of some channels, divided by their scale."""
        part = self.weight[place]
        return part if self.scale is None else part / self.scale[place]

    def solved(self, bits: int, kind: Kind) -> tuple[Rounded, list[slice]]:
        """Return the rounded centroids ``(n_groups, K)``, and the channels of each group."""
        if not 1 <= bits <= MAX_BITS:
            raise UsageError(f"an index of {bits} bits cannot be made: give 1 to {MAX_BITS}")
        fine = len(self.lines) == 1  # else there are too many for the time that takes
        found = [best_centroids(line, 1 << bits, fine=fine) for line in self.lines]
        longest = max(len(row) for row in found)
        full = np.stack([np.pad(row, (0, longest - len(row)), "edge") for row in found])
        return rounded(full, kind), list(channel_groups(len(self.weight), self.group_channels))

    def point(self, bits: int, kind: Kind) -> Point:
        """Return what this many bits give."""
        found, _ = self.solved(bits, kind)
        exact = found.values.astype(np.float64) * found.factor
        lost = sum(line.loss(row) for line, row in zip(self.lines, exact, strict=True))
        energy = sum(line.energy for line in self.lines)
        scale = self.stored_scale(found.factor)
        size_bytes = codebook_bytes(self.weight.size, bits, exact.size, 0 if scale is None else scale.size)
        return Point(bits, float(np.sqrt(lost / energy)) if energy > 0 else 0.0, size_bytes)

    def stored_scale(self, factor: float) -> NDArray[np.float32] | None:
        """Return the scale of the codebook, None where it would be one."""
        if self.scale is not None:
            return (self.scale.reshape(-1) * np.float32(factor)).astype(np.float32)
        return None if factor == 1 else np.array([factor], np.float32)

    def _line(self, place: slice, importance: FloatArray | None) -> Line:
        values = self.values(place)
        largest = float(np.max(np.abs(values), initial=0.0))
        if MAX_FLOAT32 < largest < np.inf:
            raise ValueError(f"the weights cannot be clustered: {largest:.3g} is beyond the range of float32")
        weighing = None if importance is None else importance[place]
        if self.scale is None:
            return Line.of(values, weighing)
        squares = np.square(self.scale[place], dtype=np.float64)
        return Line.of(values, squares if weighing is None else squares * weighing)


def _channel_scale(weight: FloatArray) -> NDArray[np.float32]:
    """Return the root mean square of each channel ``(O, 1, ...)``; 1 where it is zero or not finite."""
    axes = tuple(range(1, weight.ndim))
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.sqrt(np.mean(np.square(weight, dtype=np.float64), axis=axes, keepdims=True))
        scale = mean.astype(np.float32)
    return np.where(np.isfinite(scale) & (scale >= np.finfo(np.float32).tiny), scale, np.float32(1.0))
