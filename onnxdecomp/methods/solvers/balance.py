"""Even out the norms of the factors of a chain, which keeps float16, codebooks and training healthy."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]

SWEEPS = 3
"""Passes over the bonds; each pass evens out a bond and slightly disturbs its neighbours."""


def balance(factors: Sequence[FloatArray]) -> list[FloatArray]:
    """Scale the channels between the factors so that each enters and leaves with equal norm.

    What one factor is divided by the next is multiplied with: the chain stays the same.

    Args:
        factors: Arrays ``(M_out, M_in, *K)``, first to last; M_out of one is M_in of the next.

    Returns:
        Scaled copies. A channel that is zero on one side becomes zero on both.
    """
    scaled: list[FloatArray] = [np.array(factor, np.float64) for factor in factors]
    for _ in range(SWEEPS):
        for before, after in pairwise(scaled):
            leaving = np.linalg.norm(before.reshape(before.shape[0], -1), axis=1)  # (M,)
            entering = np.linalg.norm(after.swapaxes(0, 1).reshape(after.shape[1], -1), axis=1)  # (M,)
            alive = (leaving > 0) & (entering > 0)
            scale = np.sqrt(np.divide(entering, leaving, out=np.zeros_like(leaving), where=alive))
            inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=alive)
            before *= scale.reshape(-1, *(1,) * (before.ndim - 1))
            after *= inverse.reshape(1, -1, *(1,) * (after.ndim - 2))
    return scaled
