"""The last step of a chain and its bias, refitted to data in closed form.

All steps but the last map a patch x to ``z = F x``, the patch that the last step sees. Given F, the last
step A that is best on the data is a linear least-squares solution::

    minimize tr((W - A F) C (W - A F)^T)      A = W C F^T (F C F^T)^-1

With a bias to adjust, C is the covariance, and the bias takes up ``(W - A F) mean``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from onnxdecomp.layer import Layer, StepSpec
from onnxdecomp.methods.base import Chain, FloatArray, recompose
from onnxdecomp.weights.moments import Moment, Moments

RIDGE = 1e-5
"""Share of the mean of the diagonal that is added to it before a least-squares solution."""


@dataclass(frozen=True)
class Metric:
    """How errors of a layer's weight count on data.

    Args:
        layer: The layer.
        weight: ``(G, O/G, D)`` in float64.
        moment: ``(G, D, D)``: the covariance where the bias takes up the mean, else the second moment.
        mean: ``(G, D)`` mean patch; zero where there is no bias to take it up.
        product: ``(G, O/G, D)``, weight times moment.
        energy: ``tr(W C W^T)`` over the groups: the energy of the output.
    """

    layer: Layer
    weight: Moment
    moment: Moment
    mean: Moment
    product: Moment
    energy: float

    @classmethod
    def of(cls, layer: Layer, weight: FloatArray, moments: Moments, *, with_bias: bool) -> "Metric":
        """Return the metric of a weight ``(O, I/G, *K)`` on data."""
        blocks = np.asarray(weight, np.float64).reshape(layer.group, layer.out_channels // layer.group, -1)
        moment = moments.covariance if with_bias else moments.second
        mean = moments.mean if with_bias else np.zeros_like(moments.mean)
        outcome = blocks @ moment  # (G, O/G, D)
        return cls(layer, blocks, moment, mean, outcome, float(np.sum(outcome * blocks)))

    def error(self, approximation: FloatArray) -> float:
        """Return the relative error of the output if ``(O, I/G, *K)`` replaces the weight; never squared."""
        rest = self.weight - approximation.reshape(self.weight.shape)  # (G, O/G, D)
        lost = float(np.sum((rest @ self.moment) * rest))
        return float(np.sqrt(max(lost, 0.0) / self.energy)) if self.energy > 0 else 0.0

    def bias_shift(self, approximation: FloatArray) -> FloatArray:
        """Return ``(O,)``: what the bias gains so that the mean output stays."""
        rest = self.weight - approximation.reshape(self.weight.shape)
        return (rest @ self.mean[:, :, np.newaxis]).reshape(-1)


def refit_last(metric: Metric, specs: Sequence[StepSpec], weights: Sequence[FloatArray]) -> list[FloatArray]:
    """Return the weights of a chain with the last step that is best on the data, given the others.

    Args:
        metric: How errors count.
        specs: The steps of the chain.
        weights: Their arrays ``(O, I/G, *K)``.
    """
    layer, last = metric.layer, specs[-1]
    if last.geometry.group != layer.group:
        return list(weights)  # a depthwise last step is no matrix
    mapped = _last_patch(layer, last, recompose(specs[:-1], weights[:-1], layer.group))  # (G, M k, D)
    seen = mapped @ metric.moment @ mapped.swapaxes(1, 2)  # (G, M k, M k)
    wanted = metric.product @ mapped.swapaxes(1, 2)  # (G, O/G, M k)
    solved = ridge_solve(seen, wanted)  # (G, O/G, M k)
    return [*weights[:-1], solved.reshape(last.weight_shape)]


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


def refitted(chain: Chain, metric: Metric) -> Chain:
    """Return a chain with its last step refitted."""
    return replace(chain, weights=tuple(refit_last(metric, chain.specs, chain.weights)))


def _last_patch(layer: Layer, last: StepSpec, before: FloatArray) -> FloatArray:
    """Return F ``(G, M k, D)`` that maps a patch of the layer to the one its last step sees.

    Args:
        layer: The layer.
        last: Its last step ``(O, M, *k)``.
        before: The other steps as one weight ``(G M, I/G, *j)``; no axis is in both kernels.
    """
    kernel, own = layer.kernel, last.weight_shape[2:]
    blocks = before.reshape(layer.group, -1, *before.shape[1:])  # (G, M, I/G, *j)
    mapped = np.zeros((layer.group, blocks.shape[1], *own, layer.weight_shape[1], *kernel))
    for place in product(*(range(size) for size in own)):
        inside = tuple(
            slice(p, p + 1) if size > 1 else slice(None) for p, size in zip(place, own, strict=True)
        )
        mapped[(slice(None), slice(None), *place, slice(None), *inside)] = blocks
    return mapped.reshape(layer.group, -1, patch_size(layer))


def patch_size(layer: Layer) -> int:
    """Return D: the values of a patch of one group."""
    return layer.n_params // layer.out_channels
