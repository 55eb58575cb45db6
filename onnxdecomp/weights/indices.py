"""The indices of a codebook for weights whose errors data weighs together, given the centroids.

With the second moment C of the inputs, errors e ``(O, D)`` of a weight cost ``sum over o of e_o^T C e_o``.
What one input is off by, others can take up: indices are chosen one input at a time, for all channels at
once, each for the number that makes up best for the errors of the inputs before it.

Sources: Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers"
(2023), for a first choice of all; Behdin et al., "QuantEase: optimization-based quantization for language
models" (2023), for the sweeps that improve it; both there over equidistant numbers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky

from onnxdecomp.weights.nearest import Floats

Labels = NDArray[np.signedinteger]
"""``(O, D)``: place of each weight's centroid among those of all groups, one group after the other."""

Singles = NDArray[np.float32]

BLOCK = 128
"""Inputs whose errors are carried over to the others together."""

DAMPING = 1e-3
"""Share of the mean of the moment's diagonal that is added to it: how well inputs are held to go together."""


@dataclass(frozen=True)
class Chooser:
    """Finds the nearest centroid for one number of each channel.

    Args:
        centroids: ``(n_groups, K)``, each row rising.
        rows: ``(O,)``, which row each channel has; rising.
        scale: ``(O,)``, what the centroids of each channel are multiplied with.
    """

    centroids: Floats
    rows: Labels
    scale: Floats

    def of(self, channels: slice) -> "Chooser":
        """Return the chooser for some of the channels."""
        return Chooser(self.centroids, self.rows[channels], self.scale[channels])

    def __call__(self, numbers: Floats) -> Labels:
        """Return ``(O,)`` labels for ``(O,)`` numbers."""
        found = np.empty(len(numbers), np.intp)
        numbers = numbers / self.scale
        middles = (self.centroids[:, :-1] + self.centroids[:, 1:]) / 2
        for row in range(self.rows[0], self.rows[-1] + 1):
            own = slice(*np.searchsorted(self.rows, [row, row + 1]))
            found[own] = np.searchsorted(middles[row], numbers[own]) + row * self.centroids.shape[1]
        return found

    def decoded(self, labels: Labels) -> Floats:
        """Return the numbers that labels ``(O,)`` or ``(O, D)`` stand for."""
        scale = self.scale.reshape(-1, *(1,) * (labels.ndim - 1))
        return np.asarray(scale * self.centroids.reshape(-1)[labels])


def choose_in_turn(labels: Labels, weight: Floats, moment: Singles, choose: Chooser) -> None:
    """Choose all labels anew, in place: the largest inputs first, whose errors the smaller ones take up.

    With a triangular root of the moment, ``C = R^T R``, an input meets the errors of those before it in its
    own row of R alone, and what it leaves counts by the square of its diagonal: what is left of that input
    once those behind it are known. ``D^3 / 3 + O D^2`` operations.

    Args:
        labels: ``(O, D)``, overwritten.
        weight: ``(O, D)``.
        moment: ``(D, D)`` of the inputs.
        choose: Knows the centroids.
    """
    order = np.argsort(np.diagonal(moment), kind="stable")  # the last is chosen first
    root = _root(moment[np.ix_(order, order)])
    wanted = np.ascontiguousarray(weight[:, order].T)  # (D, O)
    errors = np.zeros(wanted.shape, np.float32)
    for stop in range(len(order), 0, -BLOCK):
        start = max(stop - BLOCK, 0)
        carried = root[start:stop, stop:] @ errors[stop:]  # (b, O)
        for at in range(stop - 1, start - 1, -1):
            carry = carried[at - start] + root[at, at + 1 : stop] @ errors[at + 1 : stop]
            chosen = choose(wanted[at] + carry / root[at, at])
            labels[:, order[at]] = chosen
            errors[at] = wanted[at] - choose.decoded(chosen)


def _root(moment: Singles) -> Singles:
    """Return the upper triangular root of a moment with `DAMPING`."""
    damped = moment.astype(np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * float(np.mean(np.diagonal(moment))) or 1.0
    return np.asarray(cholesky(damped, overwrite_a=True, check_finite=False), np.float32)


def sweep(labels: Labels, weight: Floats, moment: Singles, choose: Chooser) -> None:
    """Improve labels in place, each given all the others: ``2 O D^2`` operations.

    Args:
        labels: ``(O, D)``, overwritten.
        weight: ``(O, D)``.
        moment: ``(D, D)`` of the inputs.
        choose: Knows the centroids.
    """
    decoded = choose.decoded(labels)
    slope = (weight - decoded).astype(np.float32) @ moment  # (O, D)
    for start in range(0, len(moment), BLOCK):
        block = slice(start, min(start + BLOCK, len(moment)))
        near, local = np.ascontiguousarray(slope[:, block].T), moment[block, block]  # (b, O), (b, b)
        moves = np.zeros_like(near)
        for at, column in enumerate(range(block.start, block.stop)):
            if local[at, at] <= 0:
                continue
            before = decoded[:, column]
            labels[:, column] = choose(before + near[at] / local[at, at])
            moves[at] = choose.decoded(labels[:, column]) - before
            near[at + 1 :] -= local[at + 1 :, at, np.newaxis] * moves[at]
        decoded[:, block] += moves.T
        slope -= moves.T @ moment[block]
