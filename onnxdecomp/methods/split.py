"""Methods that split a layer in two at one unfolding of its weight.

The first step keeps some of the spatial axes, the last step keeps the others::

    W[o, i, ka, kb] = sum_r  left[o, kb, r] values[r] right[r, i, ka]
    (O, I, *K) -> first (R, I, *ka), last (O, R, *kb)

The matrix ``(O kb, I ka)`` of each group is cut by its singular value decomposition, which is optimal and
nested: the factors of a smaller rank are slices of those of a larger one. Groups share one rank.
"""

from abc import abstractmethod
from math import prod

import numpy as np

from onnxdecomp.layer import Geometry, Layer, StepSpec
from onnxdecomp.methods.base import Analysis, FloatArray, Method, Ranks, Spectrum
from onnxdecomp.methods.solvers import gram_svd


class SplitMethod(Method):
    """A method that is told by the spatial axes of its first step, and by its number of steps."""

    n_steps: int = 2
    """Two, or more for a chain with ``R -> R`` steps between the two factors."""

    @abstractmethod
    def first_axes(self, layer: Layer) -> tuple[int, ...]:
        """Return the spatial axes that belong to the first step, in rising order."""

    def last_axes(self, layer: Layer) -> tuple[int, ...]:
        """Return the spatial axes that belong to the last step, in rising order."""
        first = self.first_axes(layer)
        return tuple(axis for axis in range(len(layer.kernel)) if axis not in first)

    def matrix_shape(self, layer: Layer) -> tuple[int, int]:
        """Return rows ``O/G kb`` and columns ``I/G ka`` of the matrix of one group."""
        rows = layer.out_channels // layer.group * prod(layer.kernel[a] for a in self.last_axes(layer))
        columns = layer.in_channels // layer.group * prod(layer.kernel[a] for a in self.first_axes(layer))
        return rows, columns

    def rank_bounds(self, layer: Layer) -> Ranks:
        """Return the shorter side of the matrix."""
        return (min(self.matrix_shape(layer)),)

    def no_rank_to_cut(self, layer: Layer) -> str | None:
        """Return a sentence when the matrix has a single row or column, so that there is nothing to cut."""
        rows, columns = self.matrix_shape(layer)
        if min(rows, columns) >= 2:
            return None
        per_group = f" in each of its {layer.group} groups" if layer.group > 1 else ""
        return f"the weight is a {rows}x{columns} matrix{per_group}, which has rank 1 already"

    def plan(self, layer: Layer, ranks: Ranks) -> tuple[StepSpec, ...]:
        """Return the first step, the ``R -> R`` steps if any, and the last step."""
        (rank,) = ranks
        first, last = self.first_axes(layer), self.last_axes(layer)
        group, n_axes = layer.group, len(layer.kernel)
        inner = StepSpec((group * rank, rank, *(1,) * n_axes), Geometry.pointwise(n_axes, group))
        return (
            StepSpec(
                (group * rank, layer.weight_shape[1], *_kernel_on(layer, first)), _geometry_on(layer, first)
            ),
            *(inner for _ in range(self.n_steps - 2)),
            StepSpec((layer.out_channels, rank, *_kernel_on(layer, last)), _geometry_on(layer, last)),
        )

    def analyze(
        self, layer: Layer, weight: FloatArray, rng: np.random.Generator, max_ranks: Ranks | None = None
    ) -> Analysis:
        """Find the leading singular vectors of the matrix of each group."""
        return SplitAnalysis(self, layer, weight, rng, max_ranks[0] if max_ranks else None)

    def solve_flops(self, layer: Layer, ranks: Ranks) -> float:
        """Count the Gram matrix and its eigenvectors, or the products of a sketch, and the projection."""
        side = min(self.matrix_shape(layer))
        projection = 2.0 * layer.n_params * ranks[0]
        if gram_svd.is_sketched(side, ranks[0]):
            products = 2 * gram_svd.SKETCH_WIDTH * projection
            return min(products, float(side) * layer.n_params) + projection
        return float(side) * layer.n_params + 9.0 * layer.group * side**3 + projection

    def unfold(self, layer: Layer, weight: FloatArray) -> FloatArray:
        """Return the matrices ``(G, O/G kb, I/G ka)`` of a weight, as a view where the order allows."""
        first, last = self.first_axes(layer), self.last_axes(layer)
        blocks = weight.reshape(layer.group, -1, *weight.shape[1:])  # (G, O/G, I/G, *K)
        order = (0, 1, *(axis + 3 for axis in last), 2, *(axis + 3 for axis in first))
        return blocks.transpose(order).reshape(layer.group, *self.matrix_shape(layer))


class SplitAnalysis(Analysis):
    """The leading singular vectors of the matrix of each group."""

    def __init__(
        self,
        method: SplitMethod,
        layer: Layer,
        weight: FloatArray,
        rng: np.random.Generator,
        max_rank: int | None,
    ) -> None:
        self._method, self._layer, self._weight = method, layer, weight
        matrices = method.unfold(layer, weight)
        self._subspaces = [gram_svd.leading_subspace(matrix, rng, max_rank) for matrix in matrices]
        values = np.sqrt(np.sum([np.square(s.values) for s in self._subspaces], axis=0))
        energy = sum(s.energy for s in self._subspaces)
        self.spectra = (Spectrum(method.matrix_shape(layer), values, energy),)

    def error(self, ranks: Ranks) -> float:
        """Return the exact relative error: the root of the share of energy beyond the rank."""
        (spectrum,) = self.spectra
        return float(np.sqrt(spectrum.tail(ranks[0]) / spectrum.energy)) if spectrum.energy else 0.0

    def weights(self, ranks: Ranks) -> list[FloatArray]:
        """Return the factors, the singular values shared out evenly over the steps."""
        method, layer, (rank,) = self._method, self._layer, ranks
        matrices = method.unfold(layer, self._weight)
        first, last, inner = [], [], []
        for matrix, subspace in zip(matrices, self._subspaces, strict=True):
            factors = gram_svd.project(matrix, subspace, rank)
            share = factors.values ** (1 / method.n_steps)  # (R,)
            first.append(factors.right * share[:, None])  # (R, I/G ka)
            last.append(factors.left * share)  # (O/G kb, R)
            inner.append(np.diag(share))  # (R, R)
        specs = method.plan(layer, ranks)
        kernel = specs[-1].weight_shape[2:]
        columns = np.stack(last).reshape(layer.group, -1, *kernel, rank)  # (G, O/G, *kb, R)
        return [
            np.stack(first).reshape(specs[0].weight_shape),  # (G R, I/G, *ka)
            *(np.stack(inner).reshape(spec.weight_shape) for spec in specs[1:-1]),  # (G R, R, 1...)
            np.moveaxis(columns, -1, 2).reshape(specs[-1].weight_shape),  # (O, R, *kb)
        ]


def _kernel_on(layer: Layer, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the layer's kernel along `axes` and 1 along the others."""
    return tuple(size if axis in axes else 1 for axis, size in enumerate(layer.kernel))


def _geometry_on(layer: Layer, axes: tuple[int, ...]) -> Geometry:
    """Return what the layer does along `axes`; without any it is a pointwise step, never transposed."""
    if not axes:
        return Geometry.pointwise(len(layer.kernel), layer.group)
    return layer.geometry.on_axes(axes, layer.group)
