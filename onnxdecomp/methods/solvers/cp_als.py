"""CP by alternating least squares: the classical baseline, and the first steps of the better solver."""

from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.methods.solvers.cp_tensor import CpFit, Factors, Matrix, Precision, Target, grams, hadamard

MAX_SWEEPS = 100
LEAST_GAIN = 1e-6
"""A sweep that lowers the squared error of a unit-norm tensor by less ends the iteration."""
RIDGE = 1e-12
"""Share of the mean diagonal added to a normal matrix: keeps collinear components solvable."""


def solve_als(tensor: NDArray[np.floating], rank: int, rng: np.random.Generator) -> CpFit:
    """Fit `rank` components by alternating least squares from a random start.

    Args:
        tensor: Real array with two modes or more.
        rank: Number of components R, at least 1.
        rng: Chooses the start.

    Returns:
        The factors ``(R, I_n)``. The error never rises from sweep to sweep, beyond rounding.

    Source: T. Kolda, B. Bader, "Tensor decompositions and applications", SIAM Review 51 (2009), figure 3.3.
    """
    target = Target(tensor)
    factors = target.random_start(rank, rng)
    if not target.norm:
        return target.fit([np.zeros_like(u) for u in factors], 0)
    before, n_sweeps = 1.0, 0
    for n_sweeps in range(1, MAX_SWEEPS + 1):
        after = als_sweep(target, factors, 0.0)
        if n_sweeps > 1 and before - after < LEAST_GAIN:
            break
        before = after
    return target.fit(factors, n_sweeps)


def als_sweep(target: Target, factors: Factors, l2: float, precision: Precision = np.float64) -> float:
    """Improve each factor once, in place, and return the squared error that is left.

    Args:
        target: The tensor.
        factors: ``(R, I_n)`` each, changed in place.
        l2: Weight of half the squared norm of the factors in the objective.
        precision: Of the large contractions.
    """
    last: list[Matrix] = []

    def update(n: int, product: Matrix, gram: list[Matrix]) -> Matrix:
        normal = hadamard(gram, n)  # (R, R)
        shift = l2 + RIDGE * float(np.mean(np.diagonal(normal))) + np.finfo(np.float64).tiny
        normal = normal + shift * np.eye(len(normal))
        last[:] = [product]
        return np.linalg.solve(normal, product)  # (R, I_n)

    target.sweep(factors, update, precision)
    return target.squared_error(last[0], factors[-1], grams(factors))


def als_flops(shape: tuple[int, ...], rank: int) -> float:
    """Return an upper estimate of the floating-point operations of `solve_als`."""
    normal_equations = 4.0 * rank**2 * sum(shape) + len(shape) * rank**3
    return MAX_SWEEPS * (4.0 * prod(shape) * rank + normal_equations)
