"""The Gauss-Newton matrix of the CP form, used through its products alone.

Source: L. Sorber, M. Van Barel, L. De Lathauwer, "Optimization-based algorithms for tensor decompositions",
    SIAM J. Optimization 23 (2013), section 4.2.
"""

from itertools import accumulate, pairwise

import numpy as np

from onnxdecomp.methods.solvers.cp_tensor import Factors, Matrix, Precision, hadamard


class GaussNewton:
    """The matrix ``J^T J + shift I`` of one point, J being the Jacobian of the CP form, never written out.

    Its diagonal blocks are ``Gamma_n = product over m != n of the Gram matrices``, once for each column;
    their inverse is the preconditioner. Products cost ``O(N R^2 (I_1 + ... + I_N))``.

    Args:
        factors: ``(R, I_n)`` each.
        gram: Their Gram matrices.
        shift: Penalty plus damping, positive.
        precision: Of the products.
    """

    def __init__(self, factors: Factors, gram: list[Matrix], shift: float, precision: Precision) -> None:
        modes = range(len(factors))
        eye = shift * np.eye(len(gram[0]))
        blocks = [hadamard(gram, n) + eye for n in modes]
        self.factors = [u.astype(precision, copy=False) for u in factors]
        self.bounds = [0, *accumulate(u.shape[1] for u in factors)]
        self.blocks = [b.astype(precision, copy=False) for b in blocks]
        self.inverses: Factors = [np.linalg.inv(b).astype(precision, copy=False) for b in blocks]
        self.couplings = {
            (n, m): hadamard(gram, n, m).astype(precision, copy=False) for n in modes for m in modes if n < m
        }

    def product(self, step: Factors) -> Factors:
        """Return the product of the matrix with ``(R, I_n)`` per mode."""
        rest = self._split(self._coupled(np.concatenate(step, axis=1)))
        return [b @ x + r for b, x, r in zip(self.blocks, step, rest, strict=True)]

    def solve(self, right: Factors, max_steps: int, tolerance: float) -> tuple[Factors, Factors]:
        """Solve by preconditioned conjugate gradients.

        The preconditioner is the inverse of the diagonal blocks, so the diagonal part of the product with a
        preconditioned residual is that residual: it is carried along instead of being multiplied out.

        Returns:
            The solution and the residual that is left, ``(R, I_n)`` per mode in the precision of this object.
        """
        residual = np.concatenate(right, axis=1).astype(self.factors[0].dtype)  # (R, sum of I_n)
        solution = np.zeros_like(residual)
        direction = self._preconditioned(residual)
        diagonal = residual.copy()  # diagonal blocks times direction
        size = first = float(np.vdot(residual, direction))
        for _ in range(max_steps):
            image = diagonal + self._coupled(direction)
            curvature = float(np.vdot(direction, image))
            if not (size > 0.0 and curvature > 0.0):
                break
            length = size / curvature  # a Python float, so float32 arrays stay float32
            solution += length * direction
            residual -= length * image
            scaled = self._preconditioned(residual)
            before, size = size, float(np.vdot(residual, scaled))
            if size <= tolerance**2 * first:
                break
            direction = scaled + (size / before) * direction
            diagonal = residual + (size / before) * diagonal
        return self._split(solution), self._split(residual)

    def _coupled(self, step: Matrix) -> Matrix:
        """Multiply ``(R, sum of I_n)`` by all blocks but the diagonal ones."""
        crossed = [u @ x.T for u, x in zip(self.factors, self._split(step), strict=True)]  # (R, R)
        modes = range(len(crossed))
        mixed = (
            sum(self.couplings[min(n, m), max(n, m)] * crossed[m] for m in modes if m != n) for n in modes
        )
        return np.concatenate([k @ u for k, u in zip(mixed, self.factors, strict=True)], axis=1)

    def _preconditioned(self, step: Matrix) -> Matrix:
        """Multiply ``(R, sum of I_n)`` by the inverses of the diagonal blocks."""
        products = [p @ x for p, x in zip(self.inverses, self._split(step), strict=True)]
        return np.concatenate(products, axis=1)

    def _split(self, step: Matrix) -> Factors:
        """Return views ``(R, I_n)`` of the modes of ``(R, sum of I_n)``."""
        return [step[:, begin:end] for begin, end in pairwise(self.bounds)]
