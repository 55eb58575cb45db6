"""The centroids and indices of a codebook, refitted to data.

With the second moment C of a layer's patches, what a codebook costs the layer's output is::

    sum over o of  r_o^T C r_o        r_o = w_o - s_o A_o c

where A_o ``(D, K)`` says which centroid each weight of channel o has and s_o is the channel's scale. Given
the indices that is a least-squares problem in the centroids c, with the normal equations::

    N c = sum s_o A_o^T C w_o         N = sum s_o^2 A_o^T C A_o        over the channels that share c

They are solved by preconditioned conjugate gradients from the centroids there are: neither A nor N is made, a
step costs one product of the decoded weight with C, ``2 O D^2`` operations whatever K is, and no step raises
the error. Given the centroids, the indices are improved one input at a time, each taking up the error that
the others make in the output: ``2 O D^2`` operations for a sweep, in blocks of `BLOCK` inputs. Products that
only look for something better are made in float32; what came out is compared in float64.

Source: Behdin et al., "QuantEase: optimization-based quantization for language models" (2023), for the
sweeps, there over equidistant numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.methods.base import FloatArray
from onnxdecomp.weights.cluster import Codebook
from onnxdecomp.weights.moments import Moment
from onnxdecomp.weights.nearest import Floats
from onnxdecomp.weights.sixteen_bits import rounded

Labels = NDArray[np.signedinteger]
"""``(O, D)``: place of each weight's centroid among those of all groups, one group after the other."""

N_SWEEPS = 2
MAX_STEPS = 40
TOLERANCE = 1e-4
"""Share of the first residual, squared, at which conjugate gradients stop: indices change afterwards."""

RIDGE = 1e-8
"""Share of the mean of the diagonal that is added to it: the pull towards the centroids there are."""

BLOCK = 128


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


def refit_centroids(
    codebook: Codebook, weight: FloatArray, moment: Moment, *, n_sweeps: int = N_SWEEPS
) -> Codebook:
    """Return a codebook with an `output_error` that is not larger, of the same size.

    Args:
        codebook: Of the weight, its output channels first.
        weight: ``(O, I/G, *K)``.
        moment: ``(G, D, D)`` second moment of the patches, or covariance where a bias takes up the mean.
        n_sweeps: How often indices are improved after the centroids; 0 keeps the indices.
    """
    problem = _Problem.of(codebook, weight, moment)
    best, error = codebook, problem.error(codebook)
    for sweep in range(n_sweeps + 1):
        labels = problem.labels(best)
        solved = problem.solved(best, labels)
        for candidate in (solved, problem.swept(solved) if sweep < n_sweeps else solved):
            found = problem.error(candidate)
            if found < error:
                best, error = candidate, found
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
    near_moment: NDArray[np.float32]

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

    def solved(self, codebook: Codebook, labels: Labels) -> Codebook:
        """Return the codebook with the best centroids for its indices, rounded to 16 bits."""
        shape = codebook.centroids.shape
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

    def swept(self, codebook: Codebook) -> Codebook:
        """Return the codebook with the best index for each weight in turn, given the others."""
        choose = _Chooser(codebook.centroids.astype(np.float64), self.rows[:, 0])
        labels, scale = self.labels(codebook), self.scale(codebook)
        per_group = self.weight.shape[1]
        for group, moment in enumerate(self.near_moment):
            own = slice(group * per_group, (group + 1) * per_group)
            self._sweep_group(labels[own], self.weight[group], moment, scale[own], choose.of(own))
        found = (labels - self.rows * codebook.centroids.shape[1]).reshape(codebook.indices.shape)
        return replace(codebook, indices=found.astype(codebook.indices.dtype))

    @staticmethod
    def _sweep_group(
        labels: Labels, weight: Floats, moment: NDArray[np.float32], scale: Floats, choose: "_Chooser"
    ) -> None:
        """Improve the labels ``(O/G, D)`` of one group of the layer in place."""
        decoded = scale * choose.flat[labels]
        slope = (weight - decoded).astype(np.float32) @ moment  # (O/G, D)
        factor = scale[:, 0]
        for start in range(0, len(moment), BLOCK):
            block = slice(start, min(start + BLOCK, len(moment)))
            near, local = np.ascontiguousarray(slope[:, block].T), moment[block, block]  # (b, O/G), (b, b)
            moves = np.zeros_like(near)
            for at, column in enumerate(range(block.start, block.stop)):
                if local[at, at] <= 0:
                    continue
                before = decoded[:, column]
                labels[:, column] = choose((before + near[at] / local[at, at]) / factor)
                moves[at] = factor * choose.flat[labels[:, column]] - before
                near[at + 1 :] -= local[at + 1 :, at, np.newaxis] * moves[at]
            decoded[:, block] += moves.T
            slope -= moves.T @ moment[block]


@dataclass(frozen=True)
class _Chooser:
    """Finds the nearest centroid for one number of each channel.

    Args:
        centroids: ``(n_groups, K)``, each row rising.
        rows: ``(O,)``.
    """

    centroids: Floats
    rows: Labels

    def of(self, channels: slice) -> "_Chooser":
        """Return the chooser for some of the channels."""
        return _Chooser(self.centroids, self.rows[channels])

    @property
    def flat(self) -> Floats:
        """All centroids, one group after the other."""
        return self.centroids.reshape(-1)

    def __call__(self, numbers: Floats) -> Labels:
        """Return ``(O,)`` labels."""
        found = np.empty(len(numbers), np.intp)
        middles = (self.centroids[:, :-1] + self.centroids[:, 1:]) / 2
        for row in range(self.rows[0], self.rows[-1] + 1):
            own = slice(*np.searchsorted(self.rows, [row, row + 1]))
            found[own] = np.searchsorted(middles[row], numbers[own]) + row * self.centroids.shape[1]
        return found


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
