"""The last step of a chain, fitted to what a ReLU behind the layer lets through.

Where the original's output y is negative the ReLU hides it, so any negative output is as good. What is
minimized over patches z is, convex in A and b::

    sum over y > 0 of (A z + b - y)^2   +   sum over y <= 0 of max(0, A z + b)^2

by majorization: each round sets the targets of the hidden outputs to what the chain gives there, if that is
negative, and solves a linear least-squares problem. No round is worse than the one before.

Source: Zhang et al. 2015, "Accelerating very deep convolutional networks", section 3.2 has the aim; there
with a penalty and an auxiliary variable where this is exact for the hidden half.
"""

import numpy as np

from onnxdecomp.methods.base import FloatArray
from onnxdecomp.weights.refit import change_ridge, ridge_solve

N_ROUNDS = 4
"""Least-squares solutions. Further ones lower the loss, and move the output of the network no nearer."""


def fit_through_relu(
    patches: FloatArray, outputs: FloatArray, last: FloatArray, bias: FloatArray, n_rounds: int = N_ROUNDS
) -> tuple[FloatArray, FloatArray]:
    """Return a last step and its bias.

    Args:
        patches: ``(n, G, D)`` what the last step meets.
        outputs: ``(n, O)`` what the layer of the original puts out there, before the ReLU.
        last: ``(O, D)`` to start from.
        bias: ``(O,)``.
        n_rounds: Least-squares solutions, the first of which takes all outputs as they are.

    Returns:
        ``(O, D)`` and ``(O,)``. Work: ``4 n O D`` operations a round.
    """
    n, group, size = patches.shape
    mean = patches.mean(axis=0, dtype=np.float64)  # (G, D)
    seen = (patches - mean).astype(patches.dtype).swapaxes(0, 1)  # (G, n, D)
    moment = np.asarray(seen.swapaxes(1, 2) @ seen, np.float64) / n  # (G, D, D)
    ridge = change_ridge(moment, n)
    blocks = np.array(last, np.float64).reshape(group, -1, size)  # (G, O/G, D)
    wanted = outputs.reshape(n, group, -1).swapaxes(0, 1)  # (G, n, O/G)
    offset = bias.reshape(group, 1, -1) + (blocks @ mean[:, :, None]).swapaxes(1, 2)  # (G, 1, O/G)
    for number in range(n_rounds):
        given = seen @ blocks.swapaxes(1, 2).astype(seen.dtype) + offset.astype(seen.dtype)
        targets = wanted if number == 0 else np.where(wanted > 0, wanted, np.minimum(given, 0))
        rest = (targets - given).swapaxes(1, 2)  # (G, O/G, n)
        offset = offset + rest.mean(axis=2, dtype=np.float64)[:, None, :]
        blocks = blocks + ridge_solve(moment, np.asarray(rest @ seen, np.float64) / n, ridge)
    bias = offset.reshape(-1) - (blocks @ mean[:, :, None]).reshape(-1)
    return blocks.reshape(last.shape), bias
