"""The last step of a chain and its bias, refitted to data in closed form.

All steps but the last map a patch x to ``z = F x``, the patch that the last step sees. Given F, the last
step A that is best on the data is a linear least-squares solution::

    minimize tr((W - A F) C (W - A F)^T)      A = W C F^T (F C F^T)^-1

With a bias to adjust, C is the covariance, and the bias takes up ``(W - A F) mean``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Self

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.layer import Layer, StepSpec
from onnxdecomp.methods.base import Chain, FloatArray, recompose
from onnxdecomp.weights.moments import MAX_ROOT, Moment, Moments
from onnxdecomp.weights.shrinkage import shrinkage, shrunk
from onnxdecomp.weights.thin_moment import ThinMoment
from onnxdecomp.weights.whiten import Root, root_of

RIDGE = 1e-5
"""Share of the mean of the diagonal that is added to it before a least-squares solution."""

CHANGE_RIDGE = 1e-4
"""The least penalty on changing a last step that was fitted before."""


@dataclass(frozen=True)
class Metric:
    """How errors of a layer's weight count on data.

    Args:
        layer: The layer.
        weight: ``(G, O/G, D)`` in float64.
        moment: ``(G, D, D)``: the covariance where the bias takes up the mean, else the second moment, shrunk
            as far as there are few patches.
        mean: ``(G, D)`` mean patch; zero where there is no bias to take it up.
        product: ``(G, O/G, D)``, weight times moment.
        energy: ``tr(W C W^T)`` over the groups: the energy of the output.
    """

    layer: Layer
    weight: Moment
    moment: Moment | ThinMoment
    mean: Moment
    product: Moment
    energy: float
    _roots: dict[tuple[tuple[int, ...], float], Root] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, layer: Layer, weight: FloatArray, moments: Moments, *, with_bias: bool) -> "Metric":
        """Return the metric of a weight ``(O, I/G, *K)`` on data."""
        blocks = np.asarray(weight, np.float64).reshape(layer.group, layer.out_channels // layer.group, -1)
        moment = moments.covariance if with_bias else moments.second
        moment = shrunk(moment, moments.n_patches, layer.patch_axes)
        mean = moments.mean if with_bias else np.zeros_like(moments.mean)
        outcome = np.asarray(blocks @ moment, np.float64)  # (G, O/G, D)
        return cls(layer, blocks, moment, mean, outcome, float(np.sum(outcome * blocks)))

    def root(self, axes: tuple[int, ...], share: float) -> Root:
        """Return the root over what a first step with the kernel along `axes` sees, computed once.

        Over more than `MAX_ROOT` values, only those of one place of the kernel are seen. `share` is that of
        the identity, as in `whiten.root_of`.
        """
        seen = self.layer.weight_shape[1] * prod(self.layer.kernel[axis] for axis in axes)
        key = axes if seen <= MAX_ROOT else (), share
        if key not in self._roots:
            self._roots[key] = root_of(self.layer, self.moment, *key)
        return self._roots[key]

    def error(self, approximation: FloatArray) -> float:
        """Return the relative error of the output if ``(O, I/G, *K)`` replaces the weight; never squared."""
        rest = self.weight - approximation.reshape(self.weight.shape)  # (G, O/G, D)
        lost = float(np.sum((rest @ self.moment) * rest))
        return float(np.sqrt(max(lost, 0.0) / self.energy)) if self.energy > 0 else 0.0

    def bias_shift(self, approximation: FloatArray) -> FloatArray:
        """Return ``(O,)``: what the bias gains so that the mean output stays."""
        rest = self.weight - approximation.reshape(self.weight.shape)
        return (rest @ self.mean[:, :, np.newaxis]).reshape(-1)


@dataclass(frozen=True)
class ByTap:
    """The data of a layer in the order in which a last step reads it: tap by tap of its kernel.

    Args:
        order: ``(D,)``, which value of a patch stands where.
        rows: For each tap, the rows ``(G, n, D)`` of the moment that it is reached from.
        product: ``(G, O/G, D)``, weight times moment.
    """

    order: NDArray[np.intp]
    rows: Sequence[FloatArray | ThinMoment]
    product: FloatArray

    @classmethod
    def of(cls, metric: Metric, last: StepSpec, dtype: type[np.floating] = np.float64) -> Self:
        """Return the data for a last step in the precision that it is multiplied in."""
        parts = _parts(metric.layer, last)
        order = np.concatenate(parts)
        product, moment = metric.product.astype(dtype, copy=False), metric.moment.astype(dtype, copy=False)
        if len(parts) == 1 or isinstance(moment, ThinMoment):  # they stand in order
            return cls(order, [moment], product)
        return cls(order, [moment[:, own[:, np.newaxis], order] for own in parts], product[:, :, order])


@dataclass(frozen=True)
class LastStep:
    """The least-squares problem of the last step of a chain, given the others.

    Args:
        metric: How errors of the layer count.
        spec: The last step.
        data: The same in the order of the last step.
        seen: ``(G, M k, M k)``, moment of what the last step sees.
        wanted: ``(G, O/G, M k)``, of what it sees with what the layer should put out.
        across: ``(G, M k, D)``, of what it sees with the patch in the order of the data.
    """

    metric: Metric
    spec: StepSpec
    data: ByTap
    seen: Moment
    wanted: Moment
    across: FloatArray

    @classmethod
    def of(
        cls,
        metric: Metric,
        specs: Sequence[StepSpec],
        weights: Sequence[FloatArray],
        data: ByTap | None = None,
    ) -> Self | None:
        """Return the problem of a chain; None for a depthwise last step, which is no matrix.

        For a chain whose steps change, `data` is laid out once for all.

        Work: ``2 G M n (k^2 n + k O/G)`` operations, ``n`` being the values that one value before the last
        step is a weighted sum of and k the taps of the last kernel. For a spatial split that is k times less
        than to map whole patches.
        """
        layer, last = metric.layer, specs[-1]
        if last.geometry.group != layer.group:
            return None
        data = data or ByTap.of(metric, last)
        before = recompose(specs[:-1], weights[:-1], layer.group)  # (G M, I/G, *j)
        mapped = before.reshape(layer.group, last.weight_shape[1], -1).astype(data.product.dtype)  # (G, M, n)
        onto = mapped.swapaxes(1, 2)
        n_groups, n_rows, n_values = mapped.shape
        n_taps, n_outputs = len(data.rows), data.product.shape[1]
        seen = np.empty((n_groups, n_rows, n_taps, n_rows, n_taps))
        wanted = np.empty((n_groups, n_outputs, n_rows, n_taps))
        across = np.empty((n_groups, n_rows, n_taps, n_taps, n_values), data.product.dtype)
        products = data.product.reshape(n_groups, n_outputs, n_taps, n_values)
        for tap, rows in enumerate(data.rows):
            wanted[..., tap] = products[:, :, tap] @ onto
            across[:, :, tap] = (mapped @ rows).reshape(n_groups, n_rows, n_taps, n_values)
            for other in range(tap + 1):
                block = across[:, :, tap, other] @ onto  # (G, M, M)
                seen[:, :, tap, :, other] = block
                seen[:, :, other, :, tap] = block.swapaxes(1, 2)
        size = n_rows * n_taps
        return cls(
            metric,
            last,
            data,
            seen.reshape(n_groups, size, size),
            wanted.reshape(n_groups, -1, size),
            across.reshape(n_groups, size, -1),
        )

    def solved(self) -> FloatArray:
        """Return the last step ``(O, M, *k)`` with the least error on the data."""
        return ridge_solve(self.seen, self.wanted).reshape(self.spec.weight_shape)

    def error(self, weight: FloatArray) -> float:
        """Return the relative error of the layer's output with this last step, never squared."""
        blocks = weight.reshape(self.wanted.shape)  # (G, O/G, M k)
        gained = 2 * np.sum(blocks * self.wanted) - np.sum((blocks @ self.seen) * blocks)
        energy = self.metric.energy
        return float(np.sqrt(max(energy - float(gained), 0.0) / energy)) if energy > 0 else 0.0

    def slope(self, weight: FloatArray) -> FloatArray:
        """Return ``(G, O/G, D)``: the error of the whole weight with this last step, times the moment."""
        blocks = weight.reshape(self.wanted.shape).astype(self.across.dtype, copy=False)
        found = np.empty_like(self.data.product)
        found[:, :, self.data.order] = blocks @ self.across - self.data.product
        return found


def ridge_solve(seen: Moment, wanted: Moment, ridge: float = RIDGE) -> Moment:
    """Return A with the least ``|A Z - Y|^2`` and a small penalty, from ``Z Z^T`` and ``Y Z^T``, by group.

    Args:
        seen: ``(G, n, n)``.
        wanted: ``(G, m, n)``.
        ridge: Penalty as a share of the mean of the diagonal of `seen`.
    """
    n = seen.shape[-1]
    level = np.trace(seen, axis1=1, axis2=2) / n  # (G,)
    level = np.where(level > 0, level, 1.0)
    regular = seen + (ridge * level)[:, None, None] * np.eye(n)
    return np.asarray(np.linalg.solve(regular, wanted.swapaxes(1, 2)).swapaxes(1, 2))


def change_ridge(seen: Moment, n_patches: int) -> float:
    """Return the penalty on changing a last step, as `ridge_solve` takes it.

    As much as the moment ``(G, n, n)`` is to be shrunk to the identity, but not more than there are unknowns
    to a patch: a moment that is the identity is no reason to believe many patches less.
    """
    size = seen.shape[-1]
    share = min(shrinkage(seen, n_patches), size / (size + n_patches))
    return float(CHANGE_RIDGE + share / (1 - share))


def refitted(chain: Chain, metric: Metric) -> tuple[Chain, float]:
    """Return a chain with the last step that is best on the data, and its relative error there.

    A depthwise last step stays as it is.
    """
    last = LastStep.of(metric, chain.specs, chain.weights)
    if last is None:
        return chain, metric.error(recompose(chain.specs, chain.weights, chain.layer.group))
    solved = last.solved()
    return replace(chain, weights=(*chain.weights[:-1], solved)), last.error(solved)


def _parts(layer: Layer, last: StepSpec) -> list[NDArray[np.intp]]:
    """Return for each tap of the last step which values of a patch of the layer it is reached from.

    The values are in the order of the weights ``(I/G, *j)`` of the steps before; no axis is in both kernels.
    """
    kernel, own = layer.kernel, last.weight_shape[2:]
    places = np.arange(patch_size(layer)).reshape(layer.weight_shape[1], *kernel)
    parts = []
    for tap in np.ndindex(*own):
        inside = tuple(slice(p, p + 1) if size > 1 else slice(None) for p, size in zip(tap, own, strict=True))
        parts.append(places[(slice(None), *inside)].reshape(-1))
    return parts


def patch_size(layer: Layer) -> int:
    """Return D: the values of a patch of one group."""
    return layer.n_params // layer.out_channels
