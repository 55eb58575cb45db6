"""How data weighs the errors of a layer: first and second moments of what its kernel is laid on."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.layer import Layer
from onnxdecomp.weights.thin_moment import ThinMoment

Moment = NDArray[np.float64]

MAX_ROOT = 4096
"""Largest moment that a root is taken of."""

CONSTANT = 1e-10
"""Share of its mean square below which the variance of a value is taken for rounding."""


def is_thin(layer: Layer) -> bool:
    """Tell whether the moment of a layer is a `ThinMoment`: those of matrices too wide for a root are."""
    return not layer.kernel and layer.group == 1 and layer.weight_shape[1] > MAX_ROOT


@dataclass(frozen=True)
class Moments:
    """Moments of the patches that a layer's kernel meets, by group.

    A patch of group g has the ``D = I/G * prod(K)`` values that one output of the group is a weighted sum
    of, in the order of a weight ``(O, I/G, *K)`` without its first axis; zeros of the padding are among
    them. For Gemm and MatMul a patch is a row of the input. One output of a transposed convolution meets
    an input only at some taps of the kernel: the others see zeros.

    Args:
        n_patches: How many patches were seen.
        mean: ``(G, D)`` mean patch.
        second: ``(G, D, D)`` mean of ``x x^T``, not centred; symmetric.
    """

    n_patches: int
    mean: Moment
    second: Moment | ThinMoment

    @property
    def covariance(self) -> Moment | ThinMoment:
        """``(G, D, D)`` mean of ``(x - mean) (x - mean)^T``."""
        if isinstance(self.second, ThinMoment):
            return replace(self.second, rows=self.second.rows - self.mean)
        found = self.second - self.mean[:, :, np.newaxis] * self.mean[:, np.newaxis, :]  # (G, D, D)
        variance, square = (np.diagonal(one, axis1=1, axis2=2) for one in (found, self.second))
        varies = variance > CONSTANT * square  # (G, D)
        return found if varies.all() else found * (varies[:, :, np.newaxis] & varies[:, np.newaxis, :])

    def in_order(self) -> Self:
        """Return the same with arrays in the one order in memory that pickling keeps.

        A product of arrays in another order may differ in its last bits.
        """
        second = self.second
        if isinstance(second, ThinMoment):
            second = replace(second, rows=np.ascontiguousarray(second.rows))
        else:
            second = np.ascontiguousarray(second)
        return replace(self, mean=np.ascontiguousarray(self.mean), second=second)


@dataclass(frozen=True)
class PairMoments:
    """Joint moments of what a layer of the original puts out and what the last step that replaces it meets.

    Both are seen on the same samples at the same places: the output in the original model, the input in the
    rewritten one, where the layers before it may have been replaced too. With the row ``a`` of a last step
    ``(O, D)``, ``a z + b`` is to come as close to ``y`` as it can.

    Args:
        n_patches: How many places were seen.
        mean_y: ``(O,)`` mean output, the bias included if the layer has one.
        mean_z: ``(G, D)`` mean patch of the last step, G being the groups of that step.
        second_zz: ``(G, D, D)`` mean of ``z z^T``, not centred; symmetric.
        cross_yz: ``(O, D)`` mean of ``y z``, not centred; each output with the patch of its own group.
        energy_y: ``(O,)`` mean of ``y^2``, not centred.
    """

    n_patches: int
    mean_y: Moment
    mean_z: Moment
    second_zz: Moment
    cross_yz: Moment
    energy_y: Moment
