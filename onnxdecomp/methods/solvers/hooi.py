"""Tucker-2 of a stack of matrices: ``W[k] ~ U @ core[k] @ V.T`` with one pair of bases for all k.

The stack ``(D, O, I)`` holds a convolution's weight with its D kernel positions in front, so that every
contraction is a batch of matrix products and nothing has to be unfolded.

Source: De Lathauwer, De Moor and Vandewalle 2000 (HOSVD, and higher-order orthogonal iteration); Kim et al.
2015 (Tucker-2 of a convolution).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.methods.solvers.gram_svd import leading_eigenvectors, orthonormal, squared_norm

FloatArray = NDArray[np.floating]

MAX_SWEEPS = 6
"""Sweeps over both modes; the first two bring nearly all of the gain."""

MIN_GAIN = 5e-3
"""A sweep that lowers the squared error by less than this share of it is the last one."""


@dataclass(frozen=True)
class Bases:
    """The leading singular vectors of both modes, each found without regard to the other (HOSVD).

    Args:
        out_basis: ``(O, a)`` with orthonormal columns.
        in_basis: ``(I, b)`` with orthonormal columns.
        out_values: ``(O,)`` singular values of the mode-O unfolding ``(O, D I)``, largest first.
        in_values: ``(I,)`` singular values of the mode-I unfolding ``(I, D O)``.
        energy: Squared norm of the stack.
    """

    out_basis: FloatArray
    in_basis: FloatArray
    out_values: FloatArray
    in_values: FloatArray
    energy: float

    def leading(self, out_rank: int, in_rank: int) -> "Bases":
        """Return the bases with fewer vectors; the spectra stay whole."""
        return replace(self, out_basis=self.out_basis[:, :out_rank], in_basis=self.in_basis[:, :in_rank])


def hosvd(stack: FloatArray, max_ranks: tuple[int, int] | None = None) -> Bases:
    """Find the leading singular vectors of both modes of ``(D, O, I)``.

    Args:
        stack: Its dtype is that of the products; sums run in float64.
        max_ranks: How many vectors of each mode are kept; None for all.
    """
    out_rank, in_rank = max_ranks or stack.shape[1:]
    out_values, out_basis = leading_eigenvectors(_mode_gram(stack), out_rank)
    in_values, in_basis = leading_eigenvectors(_mode_gram(stack.transpose(0, 2, 1)), in_rank)
    return Bases(out_basis, in_basis, out_values, in_values, squared_norm(stack))


def core_energies(stack: FloatArray, bases: Bases) -> FloatArray:
    """Return the energy ``(a, b)`` of the HOSVD core at each pair of vectors, summed over k.

    The sum of a leading block is what the truncated HOSVD of those ranks keeps.
    """
    out_basis, in_basis = bases.out_basis.astype(stack.dtype), bases.in_basis.astype(stack.dtype)
    energies = np.zeros((out_basis.shape[1], in_basis.shape[1]))
    for matrix in stack:  # one at a time: the core would be as large as the weight
        energies += np.square(out_basis.T @ (matrix @ in_basis))  # (a, b)
    return energies


def tucker2(
    stack: FloatArray, bases: Bases, ranks: tuple[int, int]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return ``U (O, Ro)``, ``core (D, Ro, Ri)`` and ``V (I, Ri)`` in float64, U and V orthonormal.

    Starts from the truncated HOSVD and turns one basis at a time towards the best one for the other by one
    step of orthogonal iteration, which never loses energy: the error is at most that of the HOSVD.

    Args:
        stack: ``(D, O, I)``.
        bases: Of this stack, with at least `ranks` vectors.
        ranks: ``(Ro, Ri)``.
    """
    start = bases.leading(*ranks)
    out_basis, in_basis = start.out_basis, start.in_basis  # (O, Ro), (I, Ri)
    kept = 0.0
    for _ in range(MAX_SWEEPS):
        before = kept
        out_basis, _ = _turn(stack @ in_basis.astype(stack.dtype), out_basis)
        compressed = stack.transpose(0, 2, 1) @ out_basis.astype(stack.dtype)  # (D, I, Ro)
        in_basis, kept = _turn(compressed, in_basis)
        if kept - before <= MIN_GAIN * (bases.energy - kept):
            break
    core = compressed.transpose(0, 2, 1) @ in_basis.astype(stack.dtype)  # (D, Ro, Ri)
    return out_basis, np.asarray(core, np.float64), in_basis


def core_of(stack: FloatArray, out_basis: FloatArray, in_basis: FloatArray) -> FloatArray:
    """Return the stack ``(D, O, I)`` seen in two orthonormal bases: ``(D, Ro, Ri)`` in float64."""
    compressed = stack @ in_basis.astype(stack.dtype)  # (D, O, Ri)
    return np.asarray(out_basis.T.astype(stack.dtype) @ compressed, np.float64)


def _mode_gram(stack: FloatArray) -> FloatArray:
    """Return ``sum_k W[k] @ W[k].T`` for ``(D, m, n)``: ``(m, m)`` in float64."""
    total = np.zeros((stack.shape[1], stack.shape[1]))
    for matrix in stack:
        total += matrix @ matrix.T
    return total


def _turn(compressed: FloatArray, basis: FloatArray) -> tuple[FloatArray, float]:
    """Turn a basis ``(m, r)`` towards the leading singular vectors of ``(D, m, n)``.

    Returns:
        The new basis, and the energy that the old one kept.
    """
    core = compressed.transpose(0, 2, 1) @ basis.astype(compressed.dtype)  # (D, n, r)
    image = np.zeros(basis.shape)
    for matrix, part in zip(compressed, core, strict=True):
        image += matrix @ part  # (m, r)
    return orthonormal(image), squared_norm(core)
