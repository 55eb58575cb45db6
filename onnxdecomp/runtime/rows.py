"""Parts of samples."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.runtime.session import Array

Rows = NDArray[np.int64]


def part(samples: Mapping[str, Array], rows: Rows) -> dict[str, Array]:
    """Return some of the samples: these rows of every array, in this order."""
    return {name: np.asarray(array)[rows] for name, array in samples.items()}


def by_sample(outputs: Mapping[str, Array], n_samples: int) -> dict[str, Array]:
    """Return outputs with samples on axis 0, ``(n_samples, ...)``.

    Where there are several rows for each sample, as of places of a single one, these become an axis of their
    own. What has any other number of rows is left out.
    """
    found = {}
    for name, array in outputs.items():
        n_rows = len(array) if np.ndim(array) else 1
        if n_samples and n_rows > n_samples and n_rows % n_samples == 0 and isinstance(array, np.ndarray):
            found[name] = array.reshape(n_samples, n_rows // n_samples, *array.shape[1:])
        elif n_rows == n_samples:
            found[name] = array
    return found


def samples_first(output: Array, n_samples: int) -> Array:
    """Return an output of so many samples with them on axis 0, if they are on axis 1 ``(steps, n, ...)``.

    Of a single sample ``(steps, 1)`` is left, which may be numbers of single places.
    """
    shape = np.shape(output)
    if len(shape) < 3 or shape[0] == n_samples or shape[1] != n_samples or not isinstance(output, np.ndarray):
        return output
    return np.moveaxis(output, 1, 0)


def split_rows(n: int, shares: Sequence[float], seed: int) -> list[Rows]:
    """Draw disjoint parts of n samples.

    Args:
        n: Number of samples.
        shares: Share of each part, above 0, together at most 1.
        seed: The only source of chance.

    Returns:
        For each part its rows, rising. Every part has at least one where there are as many samples as
        parts.

    Raises:
        ValueError: The shares are not shares.
    """
    wanted = n * np.asarray(shares, np.float64)
    if not np.all(wanted >= 0) or min(shares) <= 0 or sum(shares) > 1 + 1e-9:
        raise ValueError(f"Shares {list(shares)} have to be above 0 and together at most 1.")
    sizes = np.maximum(np.floor(wanted + 1e-9).astype(np.int64), 1)
    while sizes.sum() > n:
        spare = np.where(sizes > 1, n, 0) + sizes - wanted  # leave a part empty only when all have one
        sizes[len(sizes) - 1 - int(np.argmax(spare[::-1]))] -= 1
    while sizes.sum() < round(wanted.sum()):
        sizes[int(np.argmax(wanted - sizes))] += 1
    order = np.random.default_rng(seed).permutation(n)
    return [np.sort(rows) for rows in np.split(order, np.cumsum(sizes))[: len(sizes)]]
