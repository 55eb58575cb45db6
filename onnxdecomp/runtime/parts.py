"""Numbers of different kinds side by side in one output, as boxes in pixels and what is found in them.

Compared as a whole, what is small next to the rest could be lost without a trace.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.runtime.session import Array

FloatArray = NDArray[np.float64]

MAX_VALUES, MIN_ROWS = 2**23, 16
"""Values that are looked at, of two samples or more, and how many of them an entry has to have."""

LARGER = 3.0
"""Standard deviations of other numbers over those of shares, from which on they are held apart."""

MUCH_LARGER = 10.0
"""The same ratio of other numbers among themselves."""


@dataclass(frozen=True)
class Part:
    """Some entries of an output along one axis.

    Args:
        output: Name of the output.
        axis: Axis of the output, samples being axis 0.
        entries: Which entries, rising.
    """

    output: str
    axis: int
    entries: tuple[int, ...]

    def of(self, array: Array) -> Array:
        """Return these entries of the output."""
        return np.take(array, self.entries, axis=self.axis)

    def __str__(self) -> str:
        """Return how they are written in numpy.

        >>> str(Part("y", 2, (4, 5, 6))), str(Part("y", 1, (0, 2, 3, 8)))
        ('y[:, :, 4:7]', 'y[:, [0, 2, 3, 8]]')
        >>> str(Part("y", 1, (0, 2, 3, 8, 9, 11)))
        'y[:, [0, 2, 3, ... 3 more]]'
        """
        first, last = self.entries[0], self.entries[-1]
        shown = f"{first}:{last + 1}"
        if last - first >= len(self.entries):
            few = [str(entry) for entry in self.entries]
            shown = f"[{', '.join(few if len(few) < 5 else [*few[:3], f'... {len(few) - 3} more'])}]"
        return f"{self.output}[{':, ' * self.axis}{shown}]"


def parts_of(name: str, output: Array) -> list[Part]:
    """Return the kinds of numbers in an output ``(n, ...)``, none where all are of one.

    Along one of its axes some entries are always between 0 and 1, as what detectors believe, others are not,
    and each of these varies several times as much between samples as any of those. The others are held apart
    where some vary many times as much as the rest, as boxes do next to coefficients of a mask.
    """
    if np.ndim(output) < 2 or len(output) < 2 or not np.size(output):
        return []
    few = np.asarray(output[: max(2, MAX_VALUES // output[0].size)], np.float64)
    varies = few.var(axis=0)  # (...)
    are_shares = np.all((few >= 0) & (few <= 1), axis=0)  # (...)
    for axis in range(1, few.ndim):
        if few.size < MIN_ROWS * few.shape[axis]:
            continue
        others = tuple(other - 1 for other in range(1, few.ndim) if other != axis)
        kinds = _kinds(np.sqrt(varies.mean(axis=others)), are_shares.all(axis=others))
        if kinds:
            every = sorted(sorted(map(int, kind)) for kind in kinds)
            return [Part(name, axis, tuple(entries)) for entries in every]
    return []


def _kinds(deviations: FloatArray, are_shares: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    """Return which entries are of one kind, by their standard deviations ``(C,)``."""
    (shares,), (others,) = np.nonzero(are_shares), np.nonzero(~are_shares)
    varying = others[deviations[others] > 0]
    largest = deviations[shares].max(initial=0.0)
    if not largest or not len(varying) or deviations[varying].min() < LARGER * largest:
        return []
    order = others[np.argsort(deviations[others], kind="stable")]
    sizes = deviations[order]
    gaps = np.nonzero((sizes[:-1] > 0) & (sizes[1:] >= MUCH_LARGER * sizes[:-1]))[0] + 1
    return [*np.split(order, gaps), shares]
