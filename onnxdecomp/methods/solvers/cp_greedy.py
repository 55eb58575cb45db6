"""CP by rank-one deflation: the naive baseline. Components are never corrected once they are found."""

from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.methods.solvers.cp_tensor import CpFit, Factors, Target

MAX_POWER_STEPS = 10
LEAST_GROWTH = 1e-3
"""A power step that lengthens the component by a smaller share ends the search for it."""


def solve_greedy(tensor: NDArray[np.floating], rank: int, rng: np.random.Generator) -> CpFit:
    """Take away the best rank-one term that a power iteration finds, `rank` times.

    Args:
        tensor: Real array with two modes or more.
        rank: Number of components R, at least 1.
        rng: Chooses the start of each power iteration.

    Returns:
        The factors ``(R, I_n)``; the error never rises with the number of components.

    Source: E. Denton et al., "Exploiting linear structure within convolutional networks for efficient
        evaluation", NeurIPS 2014, section 3.1.2.
    """
    target = Target(tensor)
    residual = target.flat(np.float32).copy()  # (I_1, rest)
    found: list[Factors] = []
    n_steps = 0
    for _ in range(rank):
        component, steps = _rank_one(residual, target.shape, rng)
        found.append(component)
        n_steps += steps
        rest = component[1][0]
        for vector in component[2:]:
            rest = np.outer(rest, vector[0]).ravel()
        residual -= np.outer(component[0][0], rest).astype(np.float32)  # (I_1, rest)
    return target.fit([np.concatenate(rows) for rows in zip(*found, strict=True)], n_steps)


def greedy_flops(shape: tuple[int, ...], rank: int) -> float:
    """Return an upper estimate of the floating-point operations of `solve_greedy`."""
    return rank * (4.0 * MAX_POWER_STEPS + 2.0) * prod(shape)


def _rank_one(
    residual: NDArray[np.float32], shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[Factors, int]:
    """Return one component, ``(1, I_n)`` per mode with its length in the last one, and the steps taken."""
    vectors = [rng.standard_normal(n) for n in shape]
    vectors = [v / np.linalg.norm(v) for v in vectors]
    length, n_steps = 0.0, 0
    while n_steps < MAX_POWER_STEPS:
        before, n_steps = length, n_steps + 1
        rest = vectors[1]
        for vector in vectors[2:]:
            rest = np.outer(rest, vector).ravel()
        vectors[0], length = _unit(residual @ rest.astype(np.float32))  # (I_1,)
        partial = (vectors[0].astype(np.float32) @ residual).astype(np.float64).reshape(shape[1:])
        for n in range(1, len(shape)):
            own = partial
            for m in range(len(shape) - 1, 0, -1):
                if m != n:
                    own = np.tensordot(own, vectors[m], (m - 1, 0))
            vectors[n], length = _unit(own)
        if length - before <= LEAST_GROWTH * length:
            break
    vectors[-1] = vectors[-1] * length
    return [v[None, :] for v in vectors], n_steps


def _unit(vector: NDArray[np.floating]) -> tuple[NDArray[np.float64], float]:
    """Return the vector scaled to unit length, zero if it is zero, and its length."""
    exact = vector.astype(np.float64)
    length = float(np.linalg.norm(exact))
    return (exact / length if length else exact), length
