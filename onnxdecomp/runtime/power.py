"""Power of outputs and of what differs between two, sample by sample, in float64.

A block of samples is converted at a time: outputs may be images, of which no copies are made as a whole.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.runtime.session import Array

FloatArray = NDArray[np.float64]

BLOCK = 2**16
"""Values that are worked on at once, or those of one sample: few enough to stay in a processor's cache."""


def noise_powers(ours: Array, theirs: Array, *, finite_only: bool = False) -> FloatArray:
    """Return the sum of squares of what differs, of each sample.

    Args:
        ours: ``(n, ...)``.
        theirs: ``(n, ...)``.
        finite_only: Leave entries out where `theirs` is not finite.

    Returns:
        ``(n,)``.
    """
    found = np.zeros(len(theirs))
    for rows in blocks(*_size(theirs)):
        other = values_of(theirs[rows])
        with np.errstate(all="ignore"):
            noise = values_of(ours[rows]) - other
        if finite_only:
            noise = np.where(np.isfinite(other), noise, 0.0)
        found[rows] = np.einsum("ij,ij->i", noise, noise)
    return found


def signal_powers(outputs: Array, *, of_variance: bool = False, finite_only: bool = False) -> FloatArray:
    """Return the sum of squares of each sample, or of what differs from the mean over the samples.

    Args:
        outputs: ``(n, ...)``.
        of_variance: Take the mean of each entry over the samples off.
        finite_only: Count entries that are not finite as 0.

    Returns:
        ``(n,)``.
    """

    def finite(values: FloatArray, where: FloatArray) -> FloatArray:
        return np.where(np.isfinite(where), values, 0.0) if finite_only else values

    every = list(blocks(*_size(outputs)))
    mean: FloatArray | float = 0.0
    if of_variance:
        for own in (values_of(outputs[rows]) for rows in every):
            mean = mean + finite(own, own).sum(axis=0)
        mean = mean / len(outputs)
    found = np.zeros(len(outputs))
    for rows in every:
        own = values_of(outputs[rows])
        signal = finite(own - mean, own)
        found[rows] = np.einsum("ij,ij->i", signal, signal)
    return found


def values_of(rows: Array) -> FloatArray:
    """Return samples as rows of values, ``(n, values)``."""
    return np.asarray(rows, np.float64).reshape(len(rows), -1)


def blocks(n_rows: int, n_values: int) -> Iterator[slice]:
    """Yield slices of rows of so many values each, `BLOCK` values together at the most, or one row."""
    step = max(1, BLOCK // max(n_values, 1))
    for start in range(0, n_rows, step):
        yield slice(start, start + step)


def _size(outputs: Array) -> tuple[int, int]:
    """Return the number of samples, and of the values of one."""
    return len(outputs), outputs.size // max(len(outputs), 1)
