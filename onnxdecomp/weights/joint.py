"""All steps of a chain fitted to data together, from the factors that a method found.

A factorization in an averaged metric with a refitted last step is a good start, not the best chain: what is
minimized is ``tr((W - A F) C (W - A F)^T)``, where F is what all steps but the last make of a patch. For
every F the best last step A is a linear least-squares solution, so only F is searched (variable projection),
by L-BFGS in coordinates in which the patches are about white.

Source: Golub and Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares problems whose
variables separate", SIAM Journal on Numerical Analysis 10 (1973).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import numpy as np

from onnxdecomp.layer import Layer, StepSpec
from onnxdecomp.methods.base import Chain, FloatArray
from onnxdecomp.weights.moments import Moment
from onnxdecomp.weights.refit import ByTap, LastStep, Metric, patch_size
from onnxdecomp.weights.whiten import first_axes, times

Index = tuple[Any, ...]

N_STEPS = 8
"""Steps of L-BFGS: on kernels of trained networks further ones lower the error by less than 2 %."""

N_STEPS_OF_CP = 16
"""Steps for chains with a depthwise step, whose factors start further from the best: on a 9x9 kernel of a
trained network 8 steps lower the error by a quarter and 30 by a third."""

MAX_FLOPS = 6e10
"""Most work that one chain is worth: larger ones get fewer steps, and none below `MIN_STEPS`."""

MIN_STEPS = 3

SINGLE_FROM_SIZE = 256
"""Size of a patch from which the moment is multiplied in single precision while steps are searched."""

ROOT_SHRINKAGE = 0.01
"""Share of the identity in the root that whitens the coordinates."""


def jointly_fitted(chain: Chain, before: float, metric: Metric) -> tuple[Chain, float] | None:
    """Return a chain with a lower error on the data, and that relative error.

    Args:
        chain: Where to start from, its last step refitted.
        before: The relative error of that.
        metric: How errors of its layer count.

    Returns:
        None when the last step is no matrix, when the work is too much, or when nothing was gained.
    """
    is_cp = any(map(_is_diagonal, chain.specs))
    n_steps = n_steps_of(chain.layer, N_STEPS_OF_CP if is_cp else N_STEPS)
    is_matrix = chain.specs[-1].geometry.group == chain.layer.group
    if not is_matrix or n_steps == 0 or metric.energy <= 0:
        return None
    from scipy.optimize import minimize  # takes half a second, as long as all else that a worker loads

    problem = _Problem(chain, metric)
    found = minimize(
        problem.value_and_gradient,
        problem.start(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": n_steps},
    )
    inner = problem.weights(found.x)
    last = LastStep.of(metric, chain.specs, (*inner, chain.weights[-1]))
    assert last is not None
    solved = last.solved()
    error = last.error(solved)
    if not np.all(np.isfinite(solved)) or error >= before:
        return None
    return replace(chain, weights=(*inner, solved)), error


def n_steps_of(layer: Layer, wanted: int = N_STEPS) -> int:
    """Return the steps that chains of a layer are worth, `wanted` at most; 0 for a layer that is too large.

    The work of a step is to map the moment by all steps but the last, which have `O` outputs at the most.
    """
    flops = 2.0 * layer.out_channels * patch_size(layer) ** 2
    n_steps = min(wanted, int(MAX_FLOPS / flops))
    return n_steps if n_steps >= MIN_STEPS else 0


class _Problem:
    """The error as a function of all steps but the last, as one vector.

    Args:
        chain: Its steps, whose last one has the groups of the layer.
        metric: How errors count.
    """

    def __init__(self, chain: Chain, metric: Metric) -> None:
        self._chain, self._metric, self._layer = chain, metric, chain.layer
        self._shapes = [spec.weight_shape for spec in chain.specs[:-1]]
        self._diagonal = [index > 0 and _is_diagonal(spec) for index, spec in enumerate(chain.specs)]
        root = metric.root(first_axes(self._layer, chain.specs[0]), ROOT_SHRINKAGE)
        assert isinstance(root.inverse, np.ndarray)  # wide matrices are not fitted jointly
        self._axes, self._root, self._inverse = root.axes, root.root, root.inverse
        large = metric.moment.shape[1] >= SINGLE_FROM_SIZE
        self._data = ByTap.of(metric, chain.specs[-1], np.float32 if large else np.float64)

    def start(self) -> FloatArray:
        """Return the vector of the chain as it is."""
        first, *others = (np.asarray(weight, np.float64) for weight in self._chain.weights[:-1])
        return _joined([times(self._layer, first, self._root, self._axes), *others])

    def weights(self, vector: FloatArray) -> list[FloatArray]:
        """Return the steps that a vector stands for."""
        ends = accumulate((prod(shape) for shape in self._shapes), initial=0)
        parts = [
            vector[begin:end].reshape(shape)
            for (begin, end), shape in zip(pairwise(ends), self._shapes, strict=True)
        ]
        return [times(self._layer, parts[0], self._inverse, self._axes), *parts[1:]]

    def value_and_gradient(self, vector: FloatArray) -> tuple[float, FloatArray]:
        """Return the squared relative error with the best last step, and its gradient."""
        inner, specs, metric = self.weights(vector), self._chain.specs, self._metric
        last = LastStep.of(metric, specs, (*inner, self._chain.weights[-1]), self._data)
        assert last is not None
        solved = last.solved()
        lifted = [
            _lifted(self._layer, spec, weight, diagonal)
            for spec, weight, diagonal in zip(specs, (*inner, solved), self._diagonal, strict=True)
        ]
        slope = (2.0 / metric.energy) * last.slope(solved)  # (G, O/G, D)
        wanted = slope.reshape(*slope.shape[:2], -1, *self._layer.kernel)
        parts = _gradients(self._layer, lifted, self._diagonal, wanted)
        gradients = [
            _lowered(self._layer, spec, part, diagonal)
            for spec, part, diagonal in zip(specs[:-1], parts[:-1], self._diagonal[:-1], strict=True)
        ]
        gradients[0] = times(self._layer, gradients[0], self._inverse.swapaxes(1, 2), self._axes)
        return last.error(solved) ** 2, _joined(gradients)


def _joined(arrays: Sequence[FloatArray]) -> FloatArray:
    return np.concatenate([array.reshape(-1) for array in arrays])


def _is_diagonal(spec: StepSpec) -> bool:
    """Tell whether every output of a step sees one channel of its own, as in the middle of CP."""
    return spec.weight_shape[:2] == (spec.geometry.group, 1)


def _lifted(layer: Layer, spec: StepSpec, weight: FloatArray, diagonal: bool) -> Moment:
    """Spread a step ``(O, I/g, *k)`` over the groups of the layer: ``(G, O/G, I/G, *k)`` with its zeros.

    A step that is a diagonal at every tap is not spread: ``(G, O/G, 1, *k)``.
    """
    if diagonal:
        return np.asarray(weight.reshape(layer.group, -1, 1, *spec.weight_shape[2:]), np.float64)
    own = spec.geometry.group // layer.group
    blocks = weight.reshape(layer.group, own, -1, *spec.weight_shape[1:])  # (G, g/G, o, i, *k)
    n_out, n_in, kernel = blocks.shape[2], blocks.shape[3], spec.weight_shape[2:]
    whole = np.zeros((layer.group, own, n_out, own, n_in, *kernel))
    at = np.arange(own)
    whole[:, at, :, at] = blocks.swapaxes(0, 1)
    return whole.reshape(layer.group, own * n_out, own * n_in, *kernel)


def _lowered(layer: Layer, spec: StepSpec, whole: Moment, diagonal: bool) -> FloatArray:
    """Take back from what `_lifted` makes what a step of shape ``(O, I/g, *k)`` can have."""
    if diagonal:
        return whole.reshape(spec.weight_shape)
    own = spec.geometry.group // layer.group
    n_in, kernel = spec.weight_shape[1], spec.weight_shape[2:]
    blocks = whole.reshape(layer.group, own, -1, own, n_in, *kernel)
    at = np.arange(own)
    return np.asarray(blocks[:, at, :, at].swapaxes(0, 1).reshape(spec.weight_shape))


def _places(layer: Layer, steps: Sequence[Moment]) -> Iterator[tuple[Index, list[Index]]]:
    """Yield each place of the kernel, in the whole and in every step."""
    for place in np.ndindex(*layer.kernel):
        yield (
            (..., *place),
            [(..., *(min(p, k - 1) for p, k in zip(place, s.shape[3:], strict=True))) for s in steps],
        )


def _gradients(
    layer: Layer, steps: Sequence[Moment], diagonal: Sequence[bool], wanted: FloatArray
) -> list[Moment]:
    """Return the gradient of every step, given that ``(G, O/G, I/G, *K)`` of the whole."""
    found = [np.zeros_like(step) for step in steps]
    for place, own in _places(layer, steps):
        here = [step[at] for step, at in zip(steps, own, strict=True)]
        before = [here[0]]
        for step, is_diagonal in zip(here[1:-1], diagonal[1:-1], strict=True):
            before.append(step * before[-1] if is_diagonal else step @ before[-1])
        left = wanted[place]
        for index in range(len(steps) - 1, 0, -1):
            if diagonal[index]:
                found[index][own[index]] += np.sum(left * before[index - 1], axis=2, keepdims=True)
                left = here[index] * left
            else:
                found[index][own[index]] += left @ before[index - 1].swapaxes(1, 2)
                left = here[index].swapaxes(1, 2) @ left
        found[0][own[0]] += left
    return found
