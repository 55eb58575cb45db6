"""The moment of wide matrices: few rows and a multiple of something simple, never written out.

A moment of D values takes D^2 numbers, 5 GB for the first matrix of a VGG-16, while a few hundred or thousand
samples show no more directions than there are of them. What is done with a moment are products with it, with
its root and with the inverse of that, and all follow from the rows::

    C = R (V^T diag(w) V + l I) R                V: (n, D); R = A (x) B, or the identity
    C = S S^T,  S = R H^1/2,  S^-1 = H^-1/2 R^-1          H: what stands between
    H^p = U^T diag((s + l)^p - l^p) U + l^p I    with V^T diag(w) V = U^T diag(s) U, U U^T = I
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from onnxdecomp.methods.base import FloatArray

NEGLIGIBLE = 1e-13
"""Share of the largest eigenvalue below which one is rounding."""


@dataclass(frozen=True)
class Kronecker:
    """The symmetric matrix ``A (x) B``, as an array ``(D, D)`` that multiplies from the right.

    Args:
        first: A, ``(a, a)``.
        second: B, ``(b, b)``; ``D = a b``.
    """

    first: NDArray[np.floating]
    second: NDArray[np.floating]

    __array_ufunc__ = None  # lets an array on the left hand its product over

    def __rmatmul__(self, left: FloatArray) -> NDArray[np.floating]:
        """Return ``(..., D)`` times this."""
        blocks = left.reshape(-1, len(self.first), len(self.second))
        return np.asarray(self.first @ blocks @ self.second).reshape(left.shape)

    @property
    def inverse(self) -> "Kronecker":
        """The matrix that undoes this one."""
        return Kronecker(np.linalg.inv(self.first), np.linalg.inv(self.second))

    def astype(self, dtype: DTypeLike, *, copy: bool = True) -> "Kronecker":
        """Return the same with numbers of another type."""
        return Kronecker(self.first.astype(dtype, copy=copy), self.second.astype(dtype, copy=copy))


@dataclass(frozen=True)
class ThinMoment:
    """A matrix ``(1, D, D)``, as an array of one group is, that multiplies from the right.

    Its trace, its squares and what is blended are those of what stands between the coordinates.

    Args:
        rows: ``(n, D)``.
        weights: ``(n,)``, what the square of each row counts.
        level: What the identity counts.
        before: Coordinates on the left; None for none.
        after: Coordinates on the right; of a moment the same.
    """

    rows: NDArray[np.floating]
    weights: NDArray[np.floating]
    level: float = 0.0
    before: Kronecker | None = None
    after: Kronecker | None = None

    __array_ufunc__ = None  # lets an array on the left hand its product over

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the array that it stands for."""
        return (1, self.rows.shape[1], self.rows.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.rows.nbytes + self.weights.nbytes

    @property
    def trace(self) -> float:
        """The sum of the diagonal."""
        return self._trace_of_rows + self.level * float(self.rows.shape[1])

    @property
    def squares(self) -> float:
        """The sum of the squares of all entries."""
        products = np.square(self.rows @ self.rows.T)  # (n, n)
        of_rows = float(self.weights @ products @ self.weights)
        return of_rows + 2 * self.level * self._trace_of_rows + self.level**2 * float(self.rows.shape[1])

    def __rmatmul__(self, left: FloatArray) -> NDArray[np.floating]:
        """Return ``(..., D)`` times this; in float32 for an array of that, where the rows are too."""
        if self.before is not None:
            left = left @ self.before
        narrow = left @ self.rows.T  # (..., n)
        narrow *= self.weights
        product: NDArray[np.floating] = narrow @ self.rows
        if self.level:
            product += left.dtype.type(self.level) * left
        return product if self.after is None else product @ self.after

    def astype(self, dtype: DTypeLike, *, copy: bool = True) -> Self:
        """Return the same with numbers of another type."""
        arrays: dict[str, Any] = {
            name: found.astype(dtype, copy=copy)
            for name in ("rows", "weights", "before", "after")
            if (found := getattr(self, name)) is not None
        }
        return replace(self, **arrays)

    def blended(self, factor: float, identity: float) -> Self:
        """Return a multiple of this with a multiple of the identity added."""
        return replace(self, weights=factor * self.weights, level=factor * self.level + identity)

    def root_and_inverse(self) -> tuple[Self, Self]:
        """Return S with ``S S^T`` this moment, and its inverse."""
        root, inverse = self.powers(0.5, -0.5)
        return (
            replace(root, before=self.before),
            replace(inverse, after=self.after.inverse if self.after else None),
        )

    def powers(self, *exponents: float) -> tuple[Self, ...]:
        """Return powers of what stands between the coordinates; its weights and level have to be positive.

        Work: ``2 n^2 D`` operations and an eigendecomposition of ``(n, n)``.
        """
        scaled = np.sqrt(self.weights)[:, np.newaxis] * self.rows
        found, vectors = np.linalg.eigh(scaled @ scaled.T)
        seen = found > NEGLIGIBLE * max(float(found[-1]), 0.0)
        values = found[seen]  # (m,)
        rows = (vectors[:, seen] / np.sqrt(values)).T @ scaled  # (m, D), orthonormal
        return tuple(
            replace(
                self,
                rows=rows,
                weights=(values + self.level) ** exponent - self.level**exponent,
                level=self.level**exponent,
                before=None,
                after=None,
            )
            for exponent in exponents
        )

    @property
    def _trace_of_rows(self) -> float:
        return float(self.weights @ np.einsum("nd,nd->n", self.rows, self.rows))
