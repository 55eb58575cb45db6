"""How data weighs the errors of a layer: first and second moments of what its kernel is laid on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Moment = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Moments of the patches that a layer's kernel meets, by group.

    A patch of group g has the ``D = I/G * prod(K)`` values that one output of the group is a weighted sum
    of, in the order of a weight ``(O, I/G, *K)`` without its first axis; zeros of the padding are among
    them. For Gemm and MatMul a patch is a row of the input. A transposed convolution lays its kernel on
    single positions: its moments are those of the channels, the same at every place of the kernel.

    Args:
        n_patches: How many patches were seen.
        mean: ``(G, D)`` mean patch.
        second: ``(G, D, D)`` mean of ``x x^T``, not centred; symmetric.
    """

    n_patches: int
    mean: Moment
    second: Moment

    @property
    def covariance(self) -> Moment:
        """``(G, D, D)`` mean of ``(x - mean) (x - mean)^T``."""
        return self.second - self.mean[:, :, np.newaxis] * self.mean[:, np.newaxis, :]  # (G, D, D)
