"""The centroids and indices of a codebook, refitted to data.

With the second moment C of a layer's patches, what a codebook costs the layer's output is::

    sum over o of  r_o^T C r_o        r_o = w_o - s_o A_o c

where A_o ``(D, K)`` says which centroid each weight of channel o has and s_o is the channel's scale. Given
the indices that is a least-squares problem in the centroids c, with the normal equations::

    N c = sum s_o A_o^T C w_o         N = sum s_o^2 A_o^T C A_o        over the channels that share c

They are solved by preconditioned conjugate gradients from the centroids there are: neither A nor N is made, a
step costs one product of the decoded weight with C, ``2 O D^2`` operations whatever K is, and no step raises
the error. Given the centroids, the indices are chosen by `weights.indices`, and the two take turns. Products
that only look for something better are made in float32; what came out is compared in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.methods.base import FloatArray
from onnxdecomp.weights.cluster import Codebook
from onnxdecomp.weights.indices import Chooser, Labels, Singles, choose_in_turn, sweep
from onnxdecomp.weights.moments import Moment
from onnxdecomp.weights.nearest import Floats
from onnxdecomp.weights.sixteen_bits import rounded

ChooseIndices = Callable[[Labels, Floats, Singles, Chooser], None]

IMPROVEMENTS: tuple[ChooseIndices, ...] = (choose_in_turn, sweep, sweep)
"""What is done to the indices, each time after the centroids were solved for."""

MAX_STEPS = 40
TOLERANCE = 1e-4
"""Share of the first residual, squared, at which conjugate gradients stop: indices change afterwards."""

RIDGE = 1e-8
"""Share of the mean of the diagonal that is added to it: the pull towards the centroids there are."""


def output_error(approximation: FloatArray, weight: FloatArray, moment: Moment) -> float:
    """Return the relative error of a layer's output if an approximation replaces its weight; never squared.

    Args:
        approximation: Shape of the weight.
        weight: ``(O, I/G, *K)``.
        moment: ``(G, D, D)`` second moment of the patches, or covariance where a bias takes up the mean.
    """
    wanted = _blocks(weight, moment)
    energy = _energy(wanted, moment)
    lost = _energy(wanted - _blocks(approximation, moment), moment)
    return float(np.sqrt(max(lost, 0.0) / energy)) if energy > 0 else 0.0


def refit_codebook(
    codebook: Codebook,
    weight: FloatArray,
    moment: Moment,
    *,
    keep_indices: bool = False,
    keep_centroids: bool = False,
) -> Codebook:
    """Return a codebook with an `output_error` that is not larger, of the same size.

    Args:
        codebook: Of the weight, its output channels first.
        weight: ``(O, I/G, *K)``.
        moment: ``(G, D, D)`` second moment of the patches, or covariance where a bias takes up the mean.
        keep_indices: Refit the centroids alone.
        keep_centroids: Choose the indices alone, once: no step of conjugate gradients is made.
    """
    problem = _Problem.of(codebook, weight, moment)
    best, error = codebook, problem.error(codebook)

    def tried(candidate: Codebook) -> Codebook:
        nonlocal best, error
        found = problem.error(candidate)
        if found < error:
            best, error = candidate, found
        return candidate

    if keep_centroids:
        tried(problem.improved(codebook, choose_in_turn))
        return best
    for improve in () if keep_indices else IMPROVEMENTS:
        tried(problem.improved(tried(problem.solved(best)), improve))
    tried(problem.solved(best))
    return best


def _blocks(weight: FloatArray, moment: Moment) -> Floats:
    """Return a weight by groups of the layer: ``(G, O/G, D)``."""
    groups, size = moment.shape[:2]
    return np.asarray(weight, np.float64).reshape(groups, -1, size)


def _energy(blocks: Floats, moment: Moment) -> float:
    return float(np.sum((blocks @ moment) * blocks))


@dataclass(frozen=True)
class _Problem:
    """A weight to be approximated in the metric of a moment.

    Args:
        weight: ``(G, O/G, D)``.
        moment: ``(G, D, D)``.
        rows: ``(O, 1)``, which row of the centroids each channel has.
        near_moment: The moment in float32, times what makes its largest entry 1.
    """

    weight: Floats
    moment: Moment
    rows: Labels
    near_moment: Singles

    @classmethod
    def of(cls, codebook: Codebook, weight: FloatArray, moment: Moment) -> "_Problem":
        """Return the problem of a codebook."""
        rows = np.arange(len(weight))[:, np.newaxis] // codebook.group_channels
        near_moment = (moment / (float(np.max(np.abs(moment))) or 1.0)).astype(np.float32)
        return cls(_blocks(weight, moment), moment, rows, near_moment)

    def error(self, codebook: Codebook) -> float:
        """Return the energy that is lost at the output."""
        return _energy(self.weight - _blocks(codebook.decode(), self.moment), self.moment)

    def labels(self, codebook: Codebook) -> Labels:
        """Return ``(O, D)`` labels."""
        flat = codebook.indices.reshape(len(self.rows), -1).astype(np.intp)
        labels: Labels = flat + self.rows * codebook.centroids.shape[1]
        return labels

    def solved(self, codebook: Codebook) -> Codebook:
        """Return the codebook with the best centroids for its indices, rounded to 16 bits."""
        labels, shape = self.labels(codebook), codebook.centroids.shape
        centroids = codebook.centroids.astype(np.float64)
        scale, blocks = self.scale(codebook), self.weight.shape

        def gathered(products: NDArray[np.floating]) -> Floats:  # sums over each centroid's weights
            scaled = products.reshape(labels.shape) * scale
            sums = np.bincount(labels.reshape(-1), scaled.reshape(-1), centroids.size)
            return np.asarray(sums, np.float64).reshape(shape)

        def decoded(values: Floats) -> Floats:
            return np.asarray(scale * values.reshape(-1)[labels]).reshape(blocks)  # (G, O/G, D)

        def weighed(blocks: Floats) -> NDArray[np.float32]:
            return blocks.astype(np.float32) @ self.near_moment

        residual = gathered(weighed(self.weight - decoded(centroids)))
        diagonal = np.repeat(np.diagonal(self.near_moment, axis1=1, axis2=2), blocks[1], 0)  # (O, D)
        level = gathered(scale * diagonal)
        level = np.maximum(level, RIDGE * float(np.mean(level)) or 1.0)
        step = _conjugate_gradients(lambda move: gathered(weighed(decoded(move))), residual, level)
        return _with_centroids(codebook, centroids + step)

    def scale(self, codebook: Codebook) -> Floats:
        """Return ``(O, 1)``, what the centroids of each channel are multiplied with."""
        scale = np.ones(1) if codebook.scale is None else codebook.scale.astype(np.float64)
        return np.broadcast_to(scale[:, np.newaxis], self.rows.shape)

    def improved(self, codebook: Codebook, improve: ChooseIndices) -> Codebook:
        """Return the codebook with other indices, given its centroids."""
        scale = self.scale(codebook)[:, 0]
        choose = Chooser(codebook.centroids.astype(np.float64), self.rows[:, 0], scale)
        labels = self.labels(codebook)
        per_group = self.weight.shape[1]
        for group, moment in enumerate(self.near_moment):
            own = slice(group * per_group, (group + 1) * per_group)
            improve(labels[own], self.weight[group], moment, choose.of(own))
        found = (labels - self.rows * codebook.centroids.shape[1]).reshape(codebook.indices.shape)
        return replace(codebook, indices=found.astype(codebook.indices.dtype))


def _conjugate_gradients(normal: Callable[[Floats], Floats], wanted: Floats, diagonal: Floats) -> Floats:
    """Return about the solution of normal equations for each row ``(n_groups, K)``, from zero.

    Args:
        normal: Multiplies with the normal matrices, of which each row has its own.
        wanted: Right sides.
        diagonal: Preconditioner, positive.
    """
    ridge = RIDGE * np.mean(diagonal, axis=1, keepdims=True)
    found, residual = np.zeros_like(wanted), wanted.copy()
    near = residual / diagonal
    move, size = near, _dot(residual, near)
    enough = TOLERANCE * size
    for _ in range(min(MAX_STEPS, wanted.shape[1])):
        if np.all(size <= enough):
            break
        product = normal(move) + ridge * move
        curved = _dot(move, product)
        length = np.divide(size, curved, out=np.zeros_like(size), where=curved > 0)
        found += length * move
        residual -= length * product
        near = residual / diagonal
        before, size = size, _dot(residual, near)
        move = near + np.divide(size, before, out=np.zeros_like(size), where=before > 0) * move
    return found


def _dot(left: Floats, right: Floats) -> Floats:
    """Return ``(n_groups, 1)``, the product of each row."""
    return np.asarray(np.sum(left * right, axis=1, keepdims=True))


def _with_centroids(codebook: Codebook, centroids: Floats) -> Codebook:
    """Return a codebook with other centroids ``(n_groups, K)``, rounded to 16 bits and put in order."""
    order = np.argsort(centroids, axis=1, kind="stable")
    found = rounded(np.take_along_axis(centroids, order, axis=1), codebook.kind)
    places = np.argsort(order, axis=1, kind="stable").astype(codebook.indices.dtype)
    rows = np.arange(len(codebook.indices)) // codebook.group_channels
    column = rows.reshape(-1, *(1,) * (codebook.indices.ndim - 1))
    scale = codebook.scale
    if found.factor != 1:
        whole = np.ones(1, np.float32) if scale is None else scale
        scale = (whole * np.float32(found.factor)).astype(np.float32)
    return replace(
        codebook,
        indices=places[column, codebook.indices],
        centroids=found.values,
        scale=scale,
        note=codebook.note or found.note,
    )
