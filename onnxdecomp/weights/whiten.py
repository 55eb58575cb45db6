"""Factorizations in the metric of the data: whiten the weight, factorize it, unwhiten the first step.

What a layer gets wrong on data is ``tr((W - W') C (W - W')^T)``, C being the moment of its input. With a
root ``C = S S^T``, a factorization of ``W S`` that is best in the Frobenius norm is best on the data, and the
first step of the chain takes ``S^-1`` back.

A first step that sees only part of the kernel can undo only a root over what it sees, so C is averaged over
the other places of the kernel. This is exact for matrices, 1x1 kernels and channel SVD with the kernel
first, and a good basis elsewhere: `refit` then makes the last step exact.

Source: Chen et al. 2021 (DRONE); Zhang et al. 2015 see the same from the side of the responses.
"""

from dataclasses import dataclass
from math import prod

import numpy as np

from onnxdecomp.layer import Layer, StepSpec
from onnxdecomp.methods.base import Analysis, FloatArray, Method, Ranks
from onnxdecomp.weights.moments import Moment
from onnxdecomp.weights.thin_moment import ThinMoment

MIN_SHRINKAGE = 1e-4
"""Share of the identity in a root, so that directions which the samples did not show can be undone."""

LEAST_SCALE = float(np.finfo(np.float32).tiny)
"""Mean square of a group's values below which they are taken for zeros, as float32 rounds them."""


@dataclass(frozen=True)
class Root:
    """A root ``C = S S^T`` of the moment of what the first step of a chain sees, and its inverse.

    Args:
        axes: Spatial axes that the first step sees.
        root: ``(G, I/G ka, I/G ka)``, the lower triangle of Cholesky where the moment is not thin.
        inverse: The same shape.
    """

    axes: tuple[int, ...]
    root: Moment | ThinMoment
    inverse: Moment | ThinMoment


def first_axes(layer: Layer, first: StepSpec) -> tuple[int, ...]:
    """Return the spatial axes along which the first step has the layer's kernel."""
    own = first.weight_shape[2:]
    return tuple(axis for axis, size in enumerate(layer.kernel) if own[axis] == size and size > 1)


def root_of(layer: Layer, moment: Moment | ThinMoment, axes: tuple[int, ...], shrinkage: float) -> Root:
    """Return the root of a moment ``(G, D, D)``, averaged over the kernel's axes that are not in `axes`.

    Args:
        layer: The layer.
        moment: Second moment or covariance of its patches.
        axes: Spatial axes that the first step sees.
        shrinkage: Share of the identity (of the same trace) in the moment, 0..1: 1 is no data at all. A thin
            moment with coordinates takes the identity of these.
    """
    alpha = max(shrinkage, MIN_SHRINKAGE)
    if isinstance(moment, ThinMoment):
        level = moment.trace / moment.shape[-1] or 1.0
        return Root(axes, *moment.blended((1 - alpha) / level, alpha).root_and_inverse())
    seen = _seen(layer, moment, axes)  # (G, n, n)
    n = seen.shape[-1]
    scale = np.trace(seen, axis1=1, axis2=2) / n  # (G,)
    scale = np.where(scale > LEAST_SCALE, scale, np.inf)
    mixed = (1 - alpha) * seen / scale[:, None, None] + alpha * np.eye(n)
    root = np.asarray(np.linalg.cholesky(mixed), np.float64)  # (G, n, n)
    return Root(axes, root, np.asarray(np.linalg.inv(root), np.float64))


def _seen(layer: Layer, moment: Moment, axes: tuple[int, ...]) -> Moment:
    """Average a moment over the places along the axes that are not seen: (G, D, D) -> (G, I/G ka, I/G ka)."""
    kernel = layer.kernel
    n_axes, in_channels = len(kernel), layer.weight_shape[1]
    whole = moment.reshape(layer.group, in_channels, *kernel, in_channels, *kernel)
    letters = "abcdefgh"
    left, right = letters[:n_axes], letters[:n_axes].upper()
    right = "".join(r if axis in axes else left[axis] for axis, r in enumerate(right))
    kept_left = "".join(left[axis] for axis in axes)
    kept_right = "".join(right[axis] for axis in axes)
    summed = np.einsum(f"gi{left}j{right}->gi{kept_left}j{kept_right}", whole)
    n = in_channels * prod(kernel[axis] for axis in axes)
    n_places = prod(size for axis, size in enumerate(kernel) if axis not in axes)
    return np.asarray(summed.reshape(layer.group, n, n) / n_places)


def whitened(layer: Layer, weight: FloatArray, root: Root) -> FloatArray:
    """Return ``W S``: a weight ``(O, I/G, *K)`` of the same shape in float64."""
    return times(layer, np.asarray(weight, np.float64), root.root, root.axes)


def times(layer: Layer, weight: FloatArray, factor: Moment | ThinMoment, axes: tuple[int, ...]) -> FloatArray:
    """Multiply the channels and `axes` of a weight ``(G M, I/G, *k)`` by ``(G, I/G ka, I/G ka)``."""
    n_axes = weight.ndim - 2
    blocks = weight.reshape(layer.group, -1, *weight.shape[1:])  # (G, M, I/G, *k)
    others = [axis for axis in range(n_axes) if axis not in axes]
    order = [0, 1, *(axis + 3 for axis in others), 2, *(axis + 3 for axis in axes)]
    moved = blocks.transpose(order)  # (G, M, *kb, I/G, *ka)
    rows = moved.reshape(layer.group, -1, factor.shape[1])  # (G, M kb, I/G ka)
    product = (rows @ factor).reshape(moved.shape)
    return product.transpose(np.argsort(order)).reshape(weight.shape)


class WhitenedAnalysis(Analysis):
    """A method's analysis of a whitened weight; its errors are those of the output on the data.

    Exact where the first step sees the whole kernel; else an estimate in the averaged metric.
    """

    def __init__(
        self,
        method: Method,
        layer: Layer,
        weight: FloatArray,
        root: Root,
        rng: np.random.Generator,
        max_ranks: Ranks | None = None,
    ) -> None:
        self._layer, self._root = layer, root
        self._inner = method.analyze(layer, whitened(layer, weight, root), rng, max_ranks)
        self.spectra = self._inner.spectra

    def error(self, ranks: Ranks) -> float:
        """Return the relative error of the whitened weight."""
        return self._inner.error(ranks)

    def weights(self, ranks: Ranks) -> list[FloatArray]:
        """Return the factors, the root undone in the first."""
        first, *others = self._inner.weights(ranks)
        return [times(self._layer, first, self._root.inverse, self._root.axes), *others]
