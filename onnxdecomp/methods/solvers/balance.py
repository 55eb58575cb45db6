"""Even out the norms of the factors of a chain, which keeps float16, codebooks and training healthy."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]

SWEEPS = 12
"""Passes over the bonds; evening out a bond disturbs its neighbours a little, a quarter as much each time."""


def balance(factors: Sequence[FloatArray]) -> list[FloatArray]:
    """Scale the channels between the factors so that each enters and leaves with equal norm.

    What one factor is multiplied with, the next is divided by: the chain stays the same.

    Args:
        factors: Arrays ``(M_out, M_in, *K)``, first to last; M_out of one is M_in of the next.

    Returns:
        Scaled copies in float64. A channel that is zero on one side becomes zero on both.
    """
    energies = [np.square(f, dtype=np.float64).reshape(*f.shape[:2], -1).sum(axis=2) for f in factors]
    bonds = [np.ones(energies[0].shape[1]), *(np.ones(energy.shape[0]) for energy in energies)]
    for _ in range(SWEEPS):  # on squared norms and squared scales, which are small arrays
        for index in range(1, len(factors)):
            leaving = energies[index - 1] @ _inverse(bonds[index - 1])  # (M,)
            entering = bonds[index + 1] @ energies[index]  # (M,)
            bonds[index] = np.sqrt(entering * _inverse(leaving))
    scaled = []
    for factor, (before, after) in zip(factors, pairwise(bonds), strict=True):
        ones = (1,) * (factor.ndim - 2)
        by_input = np.sqrt(_inverse(before)).reshape(1, -1, *ones)
        scaled.append(factor * np.sqrt(after).reshape(-1, 1, *ones) * by_input)
    return scaled


def _inverse(values: FloatArray) -> FloatArray:
    """Return ``1 / values``, and 0 where a value is 0."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
