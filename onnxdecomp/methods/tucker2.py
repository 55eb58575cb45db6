"""Tucker-2: the channels of both sides are compressed, the kernel moves on a small core.

::

    (O, I, *K) -> (R_in, I, 1...), (R_out, R_in, *K), (O, R_out, 1...)
    W[o, i, k] = sum_{a, b}  U[o, a] core[a, b, k] V[i, b]

The first step runs at full resolution when the layer is strided. Source: Kim et al. 2015.
"""

from math import prod
from typing import ClassVar

import numpy as np

from onnxdecomp.layer import Geometry, Layer, StepSpec
from onnxdecomp.methods.base import Analysis, FloatArray, Method, Ranks
from onnxdecomp.methods.channel_bases import (
    ChannelBases,
    channel_bounds,
    channels,
    joined,
    single_channel,
    stacks,
)
from onnxdecomp.methods.solvers import hooi
from onnxdecomp.methods.solvers.balance import balance


class Tucker2(Method):
    """A pointwise step, a core with the whole kernel, a pointwise step."""

    name: ClassVar[str] = "tucker2"
    rank_names: ClassVar[tuple[str, ...]] = ("R_out", "R_in")

    def refusal(self, layer: Layer) -> str | None:
        """Refuse matrices, 1x1 kernels and layers with a single channel on one side."""
        if prod(layer.kernel) == 1:
            return "the kernel is one sample wide, so all steps would be matrices: svd is the method for it"
        return single_channel(layer)

    def rank_bounds(self, layer: Layer) -> Ranks:
        """Return the channels of each side, or what the other side and the kernel can fill if less."""
        return channel_bounds(layer)

    def plan(self, layer: Layer, ranks: Ranks) -> tuple[StepSpec, ...]:
        """Return the pointwise step, the core and the pointwise step."""
        out_rank, in_rank = ranks
        group, n_axes = layer.group, len(layer.kernel)
        pointwise, ones = Geometry.pointwise(n_axes, group), (1,) * n_axes
        return (
            StepSpec((group * in_rank, layer.weight_shape[1], *ones), pointwise),
            StepSpec((group * out_rank, in_rank, *layer.kernel), layer.geometry),
            StepSpec((layer.out_channels, out_rank, *ones), pointwise),
        )

    def analyze(
        self, layer: Layer, weight: FloatArray, rng: np.random.Generator, max_ranks: Ranks | None = None
    ) -> Analysis:
        """Find the leading singular vectors of both sides and the energies of the core between them."""
        return Tucker2Analysis(self, layer, weight, max_ranks)

    def solve_flops(self, layer: Layer, ranks: Ranks) -> float:
        """Count two Gram matrices with their eigenvectors and the sweeps of orthogonal iteration."""
        (out_channels, in_channels), (out_rank, in_rank) = channels(layer), ranks
        eigenvectors = 9.0 * layer.group * (out_channels**3 + in_channels**3)
        projection = 2.0 * layer.n_params * (out_rank + in_rank)
        core = layer.n_params * out_rank * in_rank * (1 / out_channels + 1 / in_channels)
        sweeps = hooi.MAX_SWEEPS * (projection + 4.0 * core)
        return layer.n_params * (out_channels + in_channels) + eigenvectors + sweeps


class Tucker2Analysis(Analysis):
    """HOSVD bases, refined for the ranks at hand when weights are made."""

    def __init__(self, method: Tucker2, layer: Layer, weight: FloatArray, max_ranks: Ranks | None) -> None:
        self._method, self._layer, self._weight = method, layer, weight
        self._sides = ChannelBases(layer, weight, (max_ranks[0], max_ranks[1]) if max_ranks else None)
        self.spectra = (self._sides.out_spectrum, self._sides.in_spectrum)

    def error(self, ranks: Ranks) -> float:
        """Return the relative error of the truncated HOSVD, which the sweeps of `weights` only lower."""
        if not self._sides.energy:
            return 0.0
        return float(np.sqrt(min(1.0, self._sides.lost_energy(*ranks) / self._sides.energy)))

    def weights(self, ranks: Ranks) -> list[FloatArray]:
        """Return input basis, core and output basis after orthogonal iteration at exactly these ranks."""
        groups = []
        for stack, bases in zip(stacks(self._layer, self._weight), self._sides.bases, strict=True):
            out_basis, core, in_basis = hooi.tucker2(stack, bases, (ranks[0], ranks[1]))
            groups.append(balance([in_basis.T, core.transpose(1, 2, 0), out_basis]))
        return joined(groups, self._method.plan(self._layer, ranks))


METHODS = (Tucker2(),)
