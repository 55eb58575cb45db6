"""Truncated singular value decomposition through the shorter side of a matrix.

The singular vectors of the shorter side are the eigenvectors of a Gram matrix; the other side follows by one
product. The product of the two is a projection of the matrix, so it is exact at full rank however small
the singular values are. When few ranks of a large matrix are wanted, a randomized block Krylov space replaces
the Gram matrix.

Source: Golub and Van Loan, Matrix Computations, 8.6 and 10.3; Musco and Musco 2015, algorithm 2.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

FloatArray = NDArray[np.floating]

SMALL_SIZE = 2**14
"""Up to this many entries LAPACK decomposes the matrix itself: fast enough, and accurate in the tail."""

DOUBLE_SIZE = 2**20
"""Up to this many entries every product is done in float64; beyond, float32 halves time and memory."""

BLOCK_SIZE = 2**22
"""Entries that are converted to float64 at a time: 32 MB."""

SKETCH_SIDE = 2048
"""Shorter sides up to this are cheaper to decompose in full than to sketch."""

SKETCH_SHARE = 5
"""A sketch pays when the rank is at most this fraction of the shorter side."""

SKETCH_WIDTH = 2.25
"""Columns of a sketch for each wanted vector: the error is within 1 % of the least one even on pure noise."""

SKETCH_BLOCKS = 32
"""Products with the matrix and its transpose that the columns of a sketch are made in."""

NOISE = 1e-7
"""Share of randomness in each block of a sketch: below the rounding of float32, but enough to go on with when
the matrix has fewer dimensions than the sketch."""


@dataclass(frozen=True)
class Subspace:
    """Leading singular vectors of the shorter side of a matrix ``(m, n)``, s being the smaller of m and n.

    Args:
        vectors: ``(s, k)`` with orthonormal columns, float64.
        values: ``(k,)`` singular values, largest first.
        energy: Sum of the squares of all singular values, also of those beyond k.
    """

    vectors: FloatArray
    values: FloatArray
    energy: float


@dataclass(frozen=True)
class Factors:
    """``left @ diag(values) @ right``, the columns of `left` and rows of `right` of norm one (or zero).

    Args:
        left: ``(m, R)``.
        values: ``(R,)``.
        right: ``(R, n)``.
    """

    left: FloatArray
    values: FloatArray
    right: FloatArray


def working_dtype(array: FloatArray) -> type[np.floating]:
    """Return float64, or float32 for an array that is large and has no more digits than that."""
    large = array.size > DOUBLE_SIZE and array.dtype.itemsize <= 4
    return np.float32 if large else np.float64


def working(array: FloatArray) -> FloatArray:
    """Return `array` in its working type, as it is when it has that already."""
    return np.asarray(array, working_dtype(array))


def squared_norm(array: FloatArray) -> float:
    """Return the sum of the squares of `array`, accumulated in float64 without a copy of the whole."""
    rows = array.reshape(array.shape[0], -1)
    step = max(1, BLOCK_SIZE // max(1, rows.shape[1]))
    total = 0.0
    for start in range(0, rows.shape[0], step):
        block = rows[start : start + step].astype(np.float64)
        total += float(np.vdot(block, block))
    return total


def gram(matrix: FloatArray, product_dtype: DTypeLike = np.float64) -> FloatArray:
    """Return the Gram matrix ``(s, s)`` of the shorter side of ``(m, n)``.

    Blocks are multiplied in `product_dtype` and summed in float64.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T  # (s, long)
    side, length = wide.shape
    step = max(side, BLOCK_SIZE // max(1, side))
    total = np.zeros((side, side))
    for start in range(0, length, step):
        block = wide[:, start : start + step].astype(product_dtype)  # (s, step)
        total += block @ block.T
    return total


def leading_eigenvectors(gram_matrix: FloatArray, rank: int | None = None) -> tuple[FloatArray, FloatArray]:
    """Return the roots of the eigenvalues ``(k,)``, largest first, and the eigenvectors ``(s, k)``.

    Args:
        gram_matrix: ``(s, s)``, symmetric and not negative.
        rank: How many eigenvectors are kept; the roots are all returned.
    """
    values, vectors = np.linalg.eigh(gram_matrix)
    roots = np.sqrt(np.maximum(values[::-1], 0.0))
    return roots, np.ascontiguousarray(vectors[:, ::-1][:, :rank])


def is_sketched(side: int, rank: int | None) -> bool:
    """Say whether `rank` vectors of a matrix with this shorter side are found by a sketch."""
    return rank is not None and side > SKETCH_SIDE and rank * SKETCH_SHARE <= side


def leading_subspace(matrix: FloatArray, rng: np.random.Generator, rank: int | None = None) -> Subspace:
    """Find the leading singular vectors of the shorter side of a matrix.

    Args:
        matrix: ``(m, n)``, any float dtype.
        rng: Used by a sketch only.
        rank: How many vectors will be needed; None for all of them.

    Returns:
        At least `rank` values; all of them unless the matrix is sketched.
    """
    side = min(matrix.shape)
    if is_sketched(side, rank):
        return _sketch(working(matrix), rng, rank or side)
    if matrix.size <= SMALL_SIZE:
        left, values, right = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
        vectors = left if matrix.shape[0] <= matrix.shape[1] else right.T
        return Subspace(vectors[:, :rank], values, float(np.sum(np.square(values))))
    values, vectors = leading_eigenvectors(gram(matrix), rank)
    return Subspace(vectors, values, float(np.sum(np.square(values))))


def _sketch(matrix: FloatArray, rng: np.random.Generator, rank: int) -> Subspace:
    """Find `rank` vectors in the block Krylov space of a random start.

    Deep narrow blocks find a flat spectrum far better than power iterations of the same cost. In float32 the
    squared values are known to about 1e-7 of the largest.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T  # (long, s)
    side, width = tall.shape[1], math.ceil(SKETCH_WIDTH * rank / SKETCH_BLOCKS)
    is_wide = 4 * SKETCH_BLOCKS * width >= side  # all products together then cost more than one Gram matrix
    square = tall.T @ tall if is_wide else None  # (s, s)
    energy = squared_norm(matrix) if square is None else float(np.trace(square, dtype=np.float64))
    basis = np.empty((side, SKETCH_BLOCKS * width))  # (s, k)
    images = np.empty_like(basis)  # (s, k)
    block: FloatArray = rng.standard_normal((side, width))
    for start in range(0, basis.shape[1], width):
        known = basis[:, :start]
        for _ in range(2):  # once is not enough for orthogonality to the last digit
            block = block - known @ (known.T @ block)  # (s, width)
        block = orthonormal(block)
        narrow = block.astype(matrix.dtype)
        image = tall.T @ (tall @ narrow) if square is None else square @ narrow  # (s, width)
        basis[:, start : start + width], images[:, start : start + width] = block, image
        scale = NOISE * np.linalg.norm(image) / math.sqrt(image.size) or 1.0
        block = image + scale * rng.standard_normal(image.shape)
    small = basis.T @ images  # (k, k)
    values, rotation = leading_eigenvectors((small + small.T) / 2, rank)
    return Subspace(basis @ rotation, values[:rank], energy)


def orthonormal(columns: FloatArray) -> FloatArray:
    """Return an orthonormal basis ``(m, k)`` in float64 of the span of ``(m, k)``, k at most m."""
    return np.linalg.qr(np.asarray(columns, np.float64))[0]


def project(matrix: FloatArray, subspace: Subspace, rank: int) -> Factors:
    """Return the best factors of `rank`: the matrix projected on its leading singular vectors.

    Args:
        matrix: ``(m, n)``; the one `subspace` was found for.
        subspace: Holds at least `rank` vectors.
        rank: At least 1.

    Returns:
        Float64 factors whose product has the least Frobenius error of any matrix of that rank.
    """
    vectors, work = subspace.vectors[:, :rank], working(matrix)  # (s, R), (m, n)
    wide = matrix.shape[0] <= matrix.shape[1]
    basis = vectors.astype(work.dtype)
    other: FloatArray = np.asarray(basis.T @ work if wide else (work @ basis).T, np.float64)  # (R, long)
    values = np.linalg.norm(other, axis=1)
    other /= np.where(values > 0, values, 1.0)[:, None]
    return Factors(vectors, values, other) if wide else Factors(other.T, values, vectors.T)
