"""Error-preserving correction (EPC): the least sensitive CP factors at an error already reached."""

import numpy as np

from onnxdecomp.methods.solvers.cp_tensor import Factors, Matrix, Target, balance, hadamard, sensitivity

N_SWEEPS = 3
N_BISECTIONS = 60
LEAST_ERROR = 1e-5
"""Below this relative error, rounding decides about the residual and the correction has nothing to hold."""


def correct(target: Target, factors: Factors, rel_error: float, n_sweeps: int = N_SWEEPS) -> Factors:
    """Lower the sensitivity of `factors` without raising the error above `rel_error`.

    Mode by mode, ``min sum of w_r^2 ||u_r||^2  such that  ||T - T'|| <= rel_error``, where the weights make
    the objective the part of `sensitivity` that depends on this mode. That is ridge regression whose
    multiplier makes the residual equal to the bound; in the eigenbasis of the normal matrix the residual is
    a monotone function of the multiplier, so bisection finds it.

    Args:
        target: The tensor, of unit norm.
        factors: ``(R, I_n)`` each; not modified.
        rel_error: Bound of the error, reached by `factors`.
        n_sweeps: Times that every mode is corrected.

    Returns:
        Balanced factors, never more sensitive than the given ones.

    Source: A.-H. Phan et al., ECCV 2020, section 3.2 (their spherical programs, solved here in closed form).
    """
    if rel_error < LEAST_ERROR:
        return balance(factors)
    current = balance(factors)
    before = sensitivity(current)
    lengths = [u.shape[1] for u in factors]

    def update(n: int, product: Matrix, gram: list[Matrix]) -> Matrix:
        weights = _weights(n, lengths, gram)
        factor = _constrained(product / weights[:, None], hadamard(gram, n), weights, rel_error**2)
        return current[n] if factor is None else factor

    for _ in range(n_sweeps):
        kept = [u.copy() for u in current]
        target.sweep(current, update)
        current = balance(current)
        after = sensitivity(current)
        if after >= before:
            return kept
        before = after
    return current


def _weights(mode: int, lengths: list[int], gram: list[Matrix]) -> Matrix:
    """Return ``w_r``, ``(R,)``: the root of how `sensitivity` grows with ``||u_r||^2`` of this mode."""
    energies = [np.diagonal(g) for g in gram]
    squares = np.zeros(len(gram[0]))
    for m, length in enumerate(lengths):
        if m != mode:
            rest = [e for k, e in enumerate(energies) if k not in (m, mode)]
            squares += length * (np.multiply.reduce(rest) if rest else 1.0)
    roots: Matrix = np.sqrt(np.where(squares > 0, squares, 1.0))
    return roots


def _constrained(product: Matrix, normal: Matrix, weights: Matrix, bound: float) -> Matrix | None:
    """Solve the weighted problem of one mode; None when even its least-squares solution misses the bound.

    Args:
        product: MTTKRP of the mode divided by the weights, ``(R, I_n)``.
        normal: Normal matrix of the mode, ``(R, R)``.
        weights: ``(R,)``.
        bound: Largest squared error of the unit-norm tensor.
    """
    values, vectors = np.linalg.eigh(normal / np.outer(weights, weights))  # (R,), (R, R)
    values = np.maximum(values, 0.0)
    turned = vectors.T @ product  # (R, I_n)
    energies = np.sum(np.square(turned), axis=1)  # (R,)

    def squared_error(multiplier: float) -> float:
        return 1.0 - float(np.sum(energies * (values + 2 * multiplier) / np.square(values + multiplier)))

    peak = max(float(values[-1]), np.finfo(np.float64).tiny)
    low, high = np.log(peak * 1e-15), np.log(peak * 1e3)
    if squared_error(float(np.exp(low))) > bound:
        return None
    for _ in range(N_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if squared_error(float(np.exp(middle))) <= bound else (low, middle)
    solution = vectors @ (turned / (values + np.exp(low))[:, None])  # (R, I_n)
    factor: Matrix = solution / weights[:, None]
    return factor
