"""Where values lie on a line, without sorting them: monotone keys, and the nearest of a few centroids."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.methods.base import FloatArray

Floats = NDArray[np.float64]
Indices = NDArray[np.uint8 | np.uint16]

CHUNK = 1 << 16
"""Values looked at together, so that what is made of them stays in the cache."""

FLOOR = np.float32(2.0**-10)
"""Share of the largest magnitude below which keys are equidistant; above it they are logarithmic."""

ONE = np.float32(1.0)

MAX_FACTOR = 1000
"""Largest exponent whose power of two is a float64 that is not subnormal, about."""

UNSURE = -1
"""Stands for the centroid of a key that several have."""

MAX_INDEX_8 = 256
"""Most centroids whose indices fit one byte."""


class Keys:
    """Integers that rise with the value: logarithmic on both sides of zero, equidistant around it.

    A larger value never has a smaller key, so where keys differ the values need not be compared.

    Args:
        largest: Largest magnitude of the values; larger ones get the key of this one.
        bits: Keys per octave, as a power of two, at most 23.
    """

    def __init__(self, largest: float, bits: int) -> None:
        self._exponent = binary_exponent(largest)
        self._shift = np.int32(23 - bits)
        self._floor = FLOOR.view(np.int32)
        self._half = int(((ONE + FLOOR).view(np.int32) - self._floor) >> self._shift) + 1

    @property
    def n_keys(self) -> int:
        """Keys are 0 and more, and less than this."""
        return 2 * self._half

    def of(self, values: FloatArray) -> NDArray[np.int32]:
        """Return the key of each value.

        The bits of a positive float32, read as an integer, are its logarithm, piecewise linear.
        """
        wide = scaled(values, -self._exponent)
        shares = np.clip(wide, -1.0, 1.0, out=wide).astype(np.float32)
        shares += np.float32(0.0)  # -0.0 becomes 0.0
        negative = shares.view(np.int32) >> np.int32(31)  # -1 or 0
        np.abs(shares, out=shares)
        shares += FLOOR
        keys = shares.view(np.int32)
        keys -= self._floor
        keys >>= self._shift
        keys ^= negative  # a key k of a negative value becomes -k - 1
        keys += np.int32(self._half)
        return keys


def binary_exponent(largest: float) -> int:
    """Return the least e with ``largest <= 2^e``: dividing by that power of two loses no digit.

    >>> binary_exponent(0.75), binary_exponent(1.5), binary_exponent(0.0)
    (0, 1, 0)
    """
    return int(np.frexp(largest)[1])


def scaled(values: FloatArray, exponent: int) -> Floats:
    """Return values times ``2^exponent`` in float64, exactly where that is in its range."""
    if abs(exponent) > MAX_FACTOR:
        wide: Floats = np.ldexp(values, exponent, dtype=np.float64)
        return wide
    return np.multiply(values, 2.0**exponent, dtype=np.float64)  # several times faster


def index_dtype(n_centroids: int) -> type[np.uint8] | type[np.uint16]:
    """Return the smallest type that holds an index below `n_centroids`."""
    return np.uint8 if n_centroids <= MAX_INDEX_8 else np.uint16


def chunks(values: FloatArray, size: int = CHUNK) -> Iterator[tuple[slice, FloatArray]]:
    """Yield an array of any shape flat and piece by piece, each with its place; broadcast ones unexpanded."""
    n = values.size
    flat = values.reshape(-1) if values.flags.c_contiguous else values.flat
    for start in range(0, n, size):
        place = slice(start, min(start + size, n))
        yield place, flat[place]


def nearest(values: FloatArray, centroids: Floats) -> Indices:
    """Return which centroid is nearest to each value; of two equally near ones the smaller.

    Args:
        values: Any shape, finite.
        centroids: ``(K,)``, never falling; K at most 65536.

    Returns:
        The shape of `values`, uint8 or uint16. Of equal centroids one is named always.
    """
    thresholds = _thresholds(values.dtype, centroids)
    found: Indices = np.empty(values.size, index_dtype(len(centroids)))
    if values.size == 0:
        return found.reshape(values.shape)
    keys = Keys(largest_magnitude(values), 12 if len(centroids) <= MAX_INDEX_8 else 16)
    edges = keys.of(thresholds)  # (K - 1,), never falling
    below = np.cumsum(np.bincount(edges, minlength=keys.n_keys), dtype=np.int32)
    below[edges] = UNSURE  # a threshold lies among the values of this key: they are compared one by one
    for place, part in chunks(values):
        chosen = below[keys.of(part)]
        open_ = np.flatnonzero(chosen == UNSURE)
        chosen[open_] = np.searchsorted(thresholds, part[open_], "left")
        found[place] = chosen
    return found.reshape(values.shape)


def _thresholds(dtype: np.dtype[np.floating], centroids: Floats) -> FloatArray:
    """Return for each pair of neighbours the largest number of `dtype` that belongs to the lower one."""
    middles = centroids[:-1] / 2 + centroids[1:] / 2
    with np.errstate(over="ignore"):
        thresholds = middles.astype(dtype)
    above = thresholds > middles
    thresholds[above] = np.nextafter(thresholds[above], dtype.type(-np.inf))
    return thresholds


def largest_magnitude(values: FloatArray) -> float:
    """Return the largest magnitude of any value, nan or inf if there is one; 0 for no values."""
    if values.size == 0:
        return 0.0
    low, high = float(np.min(values)), float(np.max(values))
    return max(-low, high) if low == low else low
