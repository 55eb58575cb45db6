"""What a kernel meets at some places of a tensor, and sums over it: numpy alone.

A *place* is one output position of a layer: sample and spatial position of a convolution, a row of a matrix
product. A *patch* is what that output is a weighted sum of, in the order of a weight ``(O, I/G, *K)``, so
that ``weight.reshape(O, D) @ patch`` is the output without bias. Only the places asked for are read: the
matrix of all patches, which is as many times larger than the tensor as the kernel has taps, is never made.

A transposed convolution is read from its outputs too: a tap that no input meets sees a zero.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import floor, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.layer import StepSpec
from onnxdecomp.methods.base import FloatArray
from onnxdecomp.runtime.session import Array
from onnxdecomp.weights.moments import Moment, Moments, PairMoments
from onnxdecomp.weights.thin_moment import ThinMoment

Numbers = NDArray[np.intp]
Places = tuple[Numbers, ...]
"""Index arrays of equal length: sample and spatial position, or the leading axes of a matrix product."""

CHUNK_ROWS = 2048
"""Patches that are copied out of a tensor at once."""

HELD_ROWS = 512
"""Patches that are held back for a product of matrices that is worth its sum into the large accumulator: so
many, or half as many as a patch has values, which is a quarter of what the accumulator takes."""

HELD_MEANS = 64
"""Means of batches that are held back for the same reason."""


@dataclass(frozen=True)
class Reader:
    """How a layer or a step reads its data tensor and writes its output.

    Args:
        spec: Weight shape and geometry.
        columns: For a matrix: the patches are the columns of the tensor, not its rows.
    """

    spec: StepSpec
    columns: bool = False

    def shape(self, data: Array) -> tuple[int, ...]:
        """Return how many places there are along each of their axes."""
        geometry = self.spec.geometry
        if geometry.n_axes:
            return (len(data), *geometry.out_shape(data.shape[2:], self.spec.weight_shape[2:]))
        return self._rows(data).shape[:-1]

    def patches(self, data: Array, places: Places) -> FloatArray:
        """Return the patches ``(n, G, D)`` at `places`, in float32 (float64 if the data is)."""
        if not self.spec.geometry.n_axes:
            return _as_float(self._rows(data)[places])[:, np.newaxis]
        kernel, group = self.spec.weight_shape[2:], self.spec.geometry.group
        n, ones = len(places[0]), (1,) * len(kernel)
        index: tuple[Any, ...] = (places[0].reshape(n, *ones), slice(None))
        inside = np.ones((n, *ones), bool)
        for axis, k in enumerate(kernel):
            at, meets = self._taps(axis, places[axis + 1], data.shape[axis + 2])  # (n, k)
            along = (n, *ones[:axis], k, *ones[axis + 1 :])
            index = (*index, at.reshape(along))
            inside = inside & meets.reshape(along)  # (n, *K)
        picked = _as_float(data[index])  # (n, *K, I)
        picked[~np.broadcast_to(inside, picked.shape[:-1])] = 0
        return np.moveaxis(picked, -1, 1).reshape(n, group, -1)  # (n, G, I/G K)

    def outputs(self, output: Array, places: Places) -> FloatArray:
        """Return the outputs ``(n, O)`` at `places`, in float32 (float64 if the output is)."""
        index: tuple[Any, ...] = (places[0], slice(None), *places[1:])
        return _as_float(output[index] if self.spec.geometry.n_axes else self._rows(output)[places])

    def _rows(self, data: Array) -> Array:
        if data.ndim == 1:
            return data[np.newaxis]  # a vector is one row, and one column
        return data.swapaxes(-1, -2) if self.columns else data

    def _taps(self, axis: int, places: Numbers, size: int) -> tuple[Numbers, NDArray[np.bool_]]:
        """Return which of `size` samples each tap meets at each place, and whether there is one.

        Source: ONNX operators Conv and ConvTranspose.
        """
        geometry, k = self.spec.geometry, self.spec.weight_shape[axis + 2]
        stride, dilation = geometry.strides[axis], geometry.dilations[axis]
        reach = np.arange(k) * dilation
        if geometry.transposed:
            steps = places[:, np.newaxis] + geometry.pads_begin[axis] - reach  # (n, k)
            at, meets = steps // stride, steps % stride == 0
        else:
            at = places[:, np.newaxis] * stride - self._pad_begin(axis, size) + reach  # (n, k)
            meets = np.ones(at.shape, bool)
        return np.asarray(np.clip(at, 0, size - 1)), meets & (at >= 0) & (at < size)

    def _pad_begin(self, axis: int, size: int) -> int:
        """Return the zeros before an axis; SAME_UPPER puts the odd one behind, SAME_LOWER before."""
        geometry = self.spec.geometry
        if geometry.auto_pad == "NOTSET":
            return geometry.pads_begin[axis]
        stride = geometry.strides[axis]
        span = (self.spec.weight_shape[axis + 2] - 1) * geometry.dilations[axis] + 1
        total = max(0, (-(-size // stride) - 1) * stride + span - size)
        return total // 2 if geometry.auto_pad == "SAME_UPPER" else total - total // 2


class PlaceSampler:
    """Draws places sample by sample at one rate: the same, however samples are put into batches.

    Args:
        seed: Seed of the run.
        key: Key of what is drawn from.
        n_wanted: Places wanted over all samples.
        n_samples: Number of samples; the places of the first set the rate.
    """

    def __init__(self, seed: int, key: str, n_wanted: float, n_samples: int) -> None:
        self._rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
        self._wanted = n_wanted / n_samples
        self._rate: float | None = None

    def draw(self, shape: tuple[int, ...], n_samples: int) -> Iterator[Places]:
        """Yield the places drawn out of a tensor of `n_samples`, rising, at most `CHUNK_ROWS` at once.

        All places of few are drawn. A first axis that does not divide by the samples counts as one sample.

        Args:
            shape: Number of places along each axis.
            n_samples: Samples that follow each other along the first axis.
        """
        n_parts = 1 if shape[0] % n_samples else n_samples
        count = prod(shape) // n_parts
        if self._rate is None:
            self._rate = min(1.0, self._wanted * n_samples / n_parts / max(1, count))
        drawn = [part * count + self._choose(count, self._rate) for part in range(n_parts)]
        numbers = np.concatenate(drawn)
        for start in range(0, len(numbers), CHUNK_ROWS):
            yield np.unravel_index(numbers[start : start + CHUNK_ROWS], shape)

    def _choose(self, count: int, rate: float) -> Numbers:
        n = floor(rate * count + self._rng.random())  # right on average also where a sample has one place
        if n >= count:
            return np.arange(count)
        return np.sort(self._rng.choice(count, n, replace=False, shuffle=False))


class PatchRows:
    """The rows that a wide matrix meets, as `ThinMoment` takes them.

    Args:
        size: Values D of a row.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: list[FloatArray] = []

    def add(self, patches: FloatArray) -> None:
        """Add rows ``(n, 1, D)``."""
        self._held.append(patches[:, 0])

    def moments(self) -> Moments | None:
        """Return the means over all rows; None as in `PatchSums`. The rows are used up."""
        rows = np.concatenate([np.empty((0, self._size)), *self._held])  # (n, D) float64
        self._held.clear()
        n = len(rows)
        if not n or not np.isfinite(rows).all():
            return None
        return Moments(n, rows.mean(axis=0, keepdims=True), ThinMoment(rows, np.full(n, 1 / n)))


class PatchSums:
    """Sums over patches z and, where given, the outputs y that belong to them.

    Each batch is multiplied in its own type about its mean, and what the batches' means differ by is added in
    float64: of values that hardly vary, products in float32 would not tell what they vary by.

    Args:
        group: Number of groups G.
        size: Values D of a patch of one group.
        n_outputs: Number of outputs O; 0 when only patches are summed.
    """

    def __init__(self, group: int, size: int, n_outputs: int = 0) -> None:
        self._n = 0
        self._z: Moment = np.zeros((group, size))
        self._zz: Moment = np.zeros((group, size, size))
        self._y: Moment = np.zeros((group, n_outputs // group))
        self._yy: Moment = np.zeros((group, n_outputs // group))
        self._yz: Moment = np.zeros((group, n_outputs // group, size))
        self._means: list[tuple[int, Moment, Moment]] = []
        self._held: list[tuple[FloatArray, FloatArray]] = []

    def add(self, patches: FloatArray, outputs: FloatArray | None = None) -> None:
        """Add patches ``(n, G, D)`` and their outputs ``(n, O)``."""
        y = np.empty((len(patches), 0), patches.dtype) if outputs is None else outputs
        self._held.append((patches, y.reshape(len(patches), *self._y.shape)))
        if sum(len(z) for z, _ in self._held) >= max(HELD_ROWS, self._z.shape[1] // 2):
            self._sum_up()

    def moments(self) -> Moments | None:
        """Return the means over all patches; None without any, or with values that are not finite.

        The sums are used up.
        """
        found = self.pair_moments()
        return None if found is None else Moments(found.n_patches, found.mean_z, found.second_zz)

    def pair_moments(self) -> PairMoments | None:
        """Return the means over all patches and outputs; None as in `moments`. The sums are used up."""
        if self._held:
            self._sum_up()
        self._add_means()
        if not self._n:
            return None
        totals = self._z, self._zz, self._y, self._yy, self._yz
        with np.errstate(over="ignore", invalid="ignore"):
            for total in totals:
                total /= self._n
        if not all(np.isfinite(total).all() for total in totals):
            return None
        cross = self._yz.reshape(-1, self._yz.shape[-1])  # (O, D)
        return PairMoments(self._n, self._y.reshape(-1), self._z, self._zz, cross, self._yy.reshape(-1))

    def _sum_up(self) -> None:
        z = np.concatenate([z for z, _ in self._held])  # (n, G, D)
        y = np.concatenate([y for _, y in self._held])  # (n, G, O/G)
        self._held.clear()
        with np.errstate(over="ignore", invalid="ignore"):  # such layers are told apart at the end
            mean_z, mean_y = z.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64)
            self._means.append((len(z), mean_z, mean_y))
            z -= mean_z.astype(z.dtype)
            y -= mean_y.astype(y.dtype)
            by_group = z.swapaxes(0, 1)  # (G, n, D)
            self._zz += by_group.swapaxes(1, 2) @ by_group  # (G, D, D)
            self._yz += y.transpose(1, 2, 0) @ by_group  # (G, O/G, D)
            self._yy += np.square(y, dtype=np.float64).sum(axis=0)
        if len(self._means) == HELD_MEANS:
            self._add_means()

    def _add_means(self) -> None:
        """Add to the sums what the means of batches make of them, and let go of these."""
        if not self._means:
            return
        sizes, means_z, means_y = zip(*self._means, strict=True)
        self._means.clear()
        root = np.sqrt(sizes)[:, np.newaxis]  # (batches, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            z, y = root * np.stack(means_z, axis=1), root * np.stack(means_y, axis=1)  # (G, batches, ...)
            self._n += sum(sizes)
            self._z += (root * z).sum(axis=1)
            self._zz += z.swapaxes(1, 2) @ z
            self._y += (root * y).sum(axis=1)
            self._yy += np.square(y).sum(axis=1)
            self._yz += y.swapaxes(1, 2) @ z


def _as_float(values: Array) -> FloatArray:
    """Return a copy in float64 if that is the type of the values, else in float32."""
    return np.array(values, np.float64 if values.dtype == np.float64 else np.float32)
