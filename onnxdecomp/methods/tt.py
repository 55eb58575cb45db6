"""Tensor train: the channels of both sides are compressed and the two spatial axes parted in between.

::

    (O, I, kh, kw) -> (R1, I, 1, 1), (R2, R1, kh, 1), (R3, R2, 1, kw), (O, R3, 1, 1)
    W[o, i, h, w] = sum_{a, b, c}  V[i, a] A[b, a, h] B[c, b, w] U[o, c]

The two channel bases are those of the HOSVD; the core between them is cut by one singular value
decomposition of its unfolding ``(R3 kw, R1 kh)``. Source: Oseledets 2011 (TT-SVD, from both ends).
"""

from math import prod
from typing import ClassVar

import numpy as np

from onnxdecomp.layer import Geometry, Layer, StepSpec
from onnxdecomp.methods.base import Analysis, FloatArray, Method, Ranks, Spectrum
from onnxdecomp.methods.channel_bases import (
    ChannelBases,
    channel_bounds,
    channels,
    joined,
    single_channel,
    stacks,
)
from onnxdecomp.methods.solvers import gram_svd, hooi
from onnxdecomp.methods.solvers.balance import balance


class TensorTrain(Method):
    """A pointwise step, a vertical, a horizontal, a pointwise step; none of them depthwise."""

    name: ClassVar[str] = "tt"
    rank_names: ClassVar[tuple[str, ...]] = ("R1", "R2", "R3")

    def refusal(self, layer: Layer) -> str | None:
        """Refuse layers without two spatial axes to part, and those with a single channel on one side."""
        if not layer.kernel:
            return "a tensor train parts two spatial axes, and a matrix has none"
        if len(layer.kernel) != 2 or min(layer.kernel) < 2:
            kernel = "x".join(map(str, layer.kernel))
            return f"a tensor train needs a kernel along exactly two spatial axes, and this one is {kernel}"
        return single_channel(layer)

    def rank_bounds(self, layer: Layer) -> Ranks:
        """Return the largest ranks that the unfoldings at the three cuts can have."""
        out_bound, in_bound = channel_bounds(layer)
        return in_bound, _middle_bound(layer, in_bound, out_bound), out_bound

    def plan(self, layer: Layer, ranks: Ranks) -> tuple[StepSpec, ...]:
        """Return the four steps; R2 is lowered to what R1 and R3 leave it."""
        in_rank, middle, out_rank = ranks
        middle = min(middle, _middle_bound(layer, in_rank, out_rank))
        group, geometry, (height, width) = layer.group, layer.geometry, layer.kernel
        pointwise = Geometry.pointwise(2, group)
        return (
            StepSpec((group * in_rank, layer.weight_shape[1], 1, 1), pointwise),
            StepSpec((group * middle, in_rank, height, 1), geometry.on_axes((0,), group)),
            StepSpec((group * out_rank, middle, 1, width), geometry.on_axes((1,), group)),
            StepSpec((layer.out_channels, out_rank, 1, 1), pointwise),
        )

    def analyze(
        self, layer: Layer, weight: FloatArray, rng: np.random.Generator, max_ranks: Ranks | None = None
    ) -> Analysis:
        """Find both channel bases and the singular values of the core's middle unfolding."""
        return TensorTrainAnalysis(self, layer, weight, rng, max_ranks)

    def solve_flops(self, layer: Layer, ranks: Ranks) -> float:
        """Count three Gram matrices with their eigenvectors and the projections."""
        out_channels, in_channels = channels(layer)
        in_rank, _, out_rank = ranks
        sides = (out_channels, in_channels, _middle_bound(layer, in_rank, out_rank))
        eigenvectors = 9.0 * layer.group * sum(side**3 for side in sides)
        core_size = layer.group * prod(layer.kernel) * in_rank * out_rank
        grams = layer.n_params * (out_channels + in_channels) + core_size * sides[2]
        return grams + eigenvectors + 2.0 * layer.n_params * (in_rank + out_rank)


class TensorTrainAnalysis(Analysis):
    """HOSVD bases of both sides and the spectrum of the middle cut of the largest core."""

    def __init__(
        self,
        method: TensorTrain,
        layer: Layer,
        weight: FloatArray,
        rng: np.random.Generator,
        max_ranks: Ranks | None,
    ) -> None:
        self._method, self._layer, self._weight = method, layer, weight
        self._seed = int(rng.integers(2**63))  # each call of `weights` starts from the same randomness
        in_rank, middle, out_rank = max_ranks or method.rank_bounds(layer)
        self._sides = ChannelBases(layer, weight, (out_rank, in_rank))
        cuts = []
        for stack, bases in zip(stacks(layer, weight), self._sides.bases, strict=True):
            matrix = self._middle_matrix(stack, bases)
            cuts.append(gram_svd.leading_subspace(matrix, rng, middle if max_ranks else None))
        values = np.sqrt(np.sum([np.square(cut.values) for cut in cuts], axis=0))
        height, width = layer.kernel
        shape = (out_rank * width, in_rank * height)
        self._middle = Spectrum(shape, values, sum(cut.energy for cut in cuts))
        self.spectra = (self._sides.in_spectrum, self._middle, self._sides.out_spectrum)

    def error(self, ranks: Ranks) -> float:
        """Return an upper bound: what the two bases lose, and what the middle cut of the largest core does.

        A smaller core is a part of the largest one, so its cut loses no more.
        """
        in_rank, middle, out_rank = ranks
        if not self._sides.energy:
            return 0.0
        lost = self._sides.lost_energy(out_rank, in_rank) + self._middle.tail(middle)
        return float(np.sqrt(min(1.0, lost / self._sides.energy)))

    def weights(self, ranks: Ranks) -> list[FloatArray]:
        """Return the four factors: the bases truncated, their core cut in the middle."""
        in_rank, _, out_rank = ranks
        specs = self._method.plan(self._layer, ranks)
        middle = specs[2].weight_shape[1]
        rng = np.random.default_rng(self._seed)
        height, width = self._layer.kernel
        groups = []
        for stack, bases in zip(stacks(self._layer, self._weight), self._sides.bases, strict=True):
            kept = bases.leading(out_rank, in_rank)
            matrix = self._middle_matrix(stack, kept)
            factors = gram_svd.project(matrix, gram_svd.leading_subspace(matrix, rng, middle), middle)
            vertical = factors.right.reshape(middle, in_rank, height) * factors.values[:, None, None]
            horizontal = factors.left.reshape(out_rank, width, middle).swapaxes(1, 2)  # (R3, R2, kw)
            groups.append(balance([kept.in_basis.T, vertical, horizontal, kept.out_basis]))
        return joined(groups, specs)

    def _middle_matrix(self, stack: FloatArray, bases: hooi.Bases) -> FloatArray:
        """Return the core of a group unfolded between its spatial axes: ``(R3 kw, R1 kh)``."""
        height, width = self._layer.kernel
        core = hooi.core_of(stack, bases.out_basis, bases.in_basis)  # (kh kw, R3, R1)
        out_rank, in_rank = core.shape[1:]
        cube = core.reshape(height, width, out_rank, in_rank)
        return cube.transpose(2, 1, 3, 0).reshape(out_rank * width, in_rank * height)


def _middle_bound(layer: Layer, in_rank: int, out_rank: int) -> int:
    """Return the shorter side of the middle unfolding ``(R3 kw, R1 kh)``."""
    height, width = layer.kernel
    return min(out_rank * width, in_rank * height)


METHODS = (TensorTrain(),)
