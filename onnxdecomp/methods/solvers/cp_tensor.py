"""Algebra of the canonical polyadic (CP) form: a tensor as a sum of R rank-one terms.

    T[i, j, ..., k]  ~  sum over r of  U_1[r, i] U_2[r, j] ... U_N[r, k]

Factors are stored component first, ``(R, I_n)``: every contraction below is then one matrix product, or a
batch of them, on contiguous memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.floating]
Factors = list[Matrix]
Precision = type[np.floating]

FALLEN_ASLEEP = 1e-6
"""Components whose norm is below this share of the largest one are dead: no gradient reaches them."""


@dataclass(frozen=True)
class CpFit:
    """Factors that a solver found.

    Args:
        factors: One array ``(R, I_n)`` per mode, balanced, in the order of the tensor's modes.
        rel_error: ``||T - T'|| / ||T||``, computed in float64 from the difference itself.
        n_iterations: Sweeps or steps that were made.
    """

    factors: Factors
    rel_error: float
    n_iterations: int


class Target:
    """A tensor scaled to unit norm, its longest mode first, ready for contractions.

    The matricized-tensor times Khatri-Rao products (MTTKRP) of all N modes share their large contractions:
    the longest mode needs the tensor once, all others start from one common partial contraction that is
    smaller by that longest mode (a dimension tree with two branches). So a gradient costs 4 |T| R flops for
    any N.

    Args:
        tensor: Any real array with two modes or more; never modified.

    Source: A.-H. Phan, P. Tichavsky, A. Cichocki, "Fast alternating LS algorithms for high order CP tensor
        factorizations", IEEE Trans. Signal Processing 61 (2013), section III.
    """

    def __init__(self, tensor: Matrix) -> None:
        exact = np.asarray(tensor, np.float64)
        peak = float(np.max(np.abs(exact), initial=0.0))
        self.norm = peak * float(np.linalg.norm(exact / peak)) if peak else 0.0
        self.order = tuple(int(n) for n in np.argsort([-n for n in exact.shape], kind="stable"))
        unit = exact / self.norm if self.norm else exact
        self.tensor = np.ascontiguousarray(unit.transpose(self.order))
        self.shape = self.tensor.shape
        self._flat: dict[Precision, Matrix] = {}

    def flat(self, precision: Precision) -> Matrix:
        """Return the unfolding ``(I_1, rest)`` in float32 or float64."""
        if precision not in self._flat:
            matrix = self.tensor.reshape(self.shape[0], -1)
            self._flat[precision] = matrix.astype(precision, copy=False)
        return self._flat[precision]

    def mttkrp(self, factors: Factors, precision: Precision = np.float64) -> Factors:
        """Return ``(R, I_n)`` for every mode: the tensor contracted with all factors but the n-th."""
        matrix = self.flat(precision)
        cast = [u.astype(precision, copy=False) for u in factors]
        products: Factors = [khatri_rao(cast[1:]) @ matrix.T]  # (R, rest) @ (rest, I_1) = (R, I_1)
        partial: Matrix = cast[0] @ matrix  # (R, rest)
        for n in range(1, len(cast)):
            products.append(_own_mode(partial, cast[n:]))
            partial = _contract_first(partial, cast[n])
        return [p.astype(np.float64, copy=False) for p in products]

    def sweep(
        self,
        factors: Factors,
        update: Callable[[int, Matrix, list[Matrix]], Matrix],
        precision: Precision = np.float64,
    ) -> None:
        """Replace each factor in turn, the later ones seeing the new values of the earlier ones.

        Args:
            factors: Changed in place.
            update: ``update(n, mttkrp, grams)`` returns the new n-th factor from the MTTKRP of its mode
                ``(R, I_n)`` and the Gram matrices ``(R, R)`` of all current factors.
            precision: Of the contractions.
        """
        matrix = self.flat(precision)
        gram = grams(factors)
        cast = [u.astype(precision, copy=False) for u in factors]
        partial = matrix  # stands for the contraction with no factor yet
        for n in range(len(factors)):
            product = khatri_rao(cast[1:]) @ matrix.T if n == 0 else _own_mode(partial, cast[n:])
            factors[n] = update(n, product.astype(np.float64, copy=False), gram)
            gram[n] = factors[n] @ factors[n].T  # (R, R)
            cast[n] = factors[n].astype(precision, copy=False)
            partial = cast[0] @ matrix if n == 0 else _contract_first(partial, cast[n])

    def squared_error(self, product: Matrix, factor: Matrix, gram: list[Matrix]) -> float:
        """Return ``||T - T'||^2`` from the MTTKRP of one mode, that mode's factor and all Gram matrices.

        Exact to about 1e-7 (float32) or 1e-15 (float64) of the unit norm, so useless below that.
        """
        return max(0.0, 1.0 - 2.0 * float(np.vdot(product, factor)) + float(np.sum(hadamard(gram))))

    def rel_error(self, factors: Factors) -> float:
        """Return ``||T - T'||`` from the difference itself."""
        difference = self.flat(np.float64) - factors[0].T @ khatri_rao(factors[1:])  # (I_1, rest)
        return float(np.linalg.norm(difference))

    def fit(self, factors: Factors, n_iterations: int) -> CpFit:
        """Return balanced factors of the original tensor, in the order of its modes."""
        even = balance(factors)
        error = self.rel_error(even) if self.norm else 0.0
        scale = self.norm ** (1.0 / len(even))
        restored: Factors = [even[self.order.index(mode)] * scale for mode in range(len(even))]
        return CpFit(restored, error, n_iterations)

    def random_start(self, rank: int, rng: np.random.Generator) -> Factors:
        """Return normal factors ``(R, I_n)`` whose components have norm ``1 / sqrt(R)`` on average."""
        size = rank ** (-0.5 / len(self.shape))
        return [rng.standard_normal((rank, n)) * (size / np.sqrt(n)) for n in self.shape]


def khatri_rao(factors: Sequence[Matrix]) -> Matrix:
    """Return the row-wise Kronecker product ``(R, I_1 I_2 ...)`` of factors ``(R, I_n)``."""
    whole = factors[0]
    for factor in factors[1:]:
        whole = (whole[:, :, None] * factor[:, None, :]).reshape(len(whole), -1)
    return whole


def _own_mode(partial: Matrix, factors: list[Matrix]) -> Matrix:
    """Contract ``(R, I_n I_{n+1} ...)`` with all factors but the first: ``(R, I_n)``."""
    if len(factors) == 1:
        return partial
    blocks = partial.reshape(*factors[0].shape, -1)  # (R, I_n, rest)
    result: Matrix = np.matmul(blocks, khatri_rao(factors[1:])[:, :, None])[:, :, 0]
    return result


def _contract_first(partial: Matrix, factor: Matrix) -> Matrix:
    """Contract ``(R, I_n I_{n+1} ...)`` with the factor of its first mode: ``(R, I_{n+1} ...)``."""
    blocks = partial.reshape(*factor.shape, -1)  # (R, I_n, rest)
    result: Matrix = np.matmul(factor[:, None, :], blocks)[:, 0, :]
    return result


def grams(factors: Factors) -> list[Matrix]:
    """Return ``U_n U_n^T``, ``(R, R)``, of every mode."""
    return [u @ u.T for u in factors]


def hadamard(matrices: Sequence[Matrix], *skipped: int) -> Matrix:
    """Return the elementwise product of all matrices but the skipped ones; ones where none is left."""
    kept = [m for n, m in enumerate(matrices) if n not in skipped]
    product: Matrix = np.multiply.reduce(kept) if kept else np.ones_like(matrices[0])
    return product


def component_norms(factors: Factors) -> Matrix:
    """Return the Frobenius norm of each rank-one term, ``(R,)``."""
    norms: Matrix = np.multiply.reduce([np.linalg.norm(u, axis=1) for u in factors])
    return norms


def balance(factors: Factors) -> Factors:
    """Give the vectors of each component the same norm in every mode; the sum stays what it was.

    A component that is zero in one mode becomes zero in all.
    """
    norms = [np.linalg.norm(u, axis=1) for u in factors]  # N times (R,)
    # The root is taken before the product, so that N small norms do not underflow.
    even = np.multiply.reduce([n ** (1.0 / len(norms)) for n in norms])
    scales = [np.divide(even, n, out=np.zeros_like(n), where=n > 0) for n in norms]
    return [u * s[:, None] for u, s in zip(factors, scales, strict=True)]


def revive(factors: Factors, rng: np.random.Generator) -> Factors:
    """Give components that died out a small random start, so that the planned rank is used."""
    norms = component_norms(factors)
    dead = norms <= FALLEN_ASLEEP * np.max(norms)
    if not np.any(dead) or np.all(dead):
        return factors
    size = (0.01 * float(np.median(norms[~dead]))) ** (1.0 / len(factors))
    alive = [u.copy() for u in factors]
    for u in alive:
        seeds = rng.standard_normal((int(np.sum(dead)), u.shape[1]))
        u[dead] = seeds * (size / np.linalg.norm(seeds, axis=1, keepdims=True))
    return alive


def sensitivity(factors: Factors) -> float:
    """Return the expected growth of the squared error per unit variance of noise on every factor entry.

    ``ss = sum over n of I_n sum over r of the product over m != n of ||u_m,r||^2``: large values mean
    components that cancel, which neither rounding nor training survives.

    Source: A.-H. Phan et al., "Stable low-rank tensor decomposition for compression of convolutional
        neural network", ECCV 2020, definition 1.
    """
    energies = [np.sum(np.square(u), axis=1) for u in factors]  # N times (R,)
    others = (np.multiply.reduce(energies[:n] + energies[n + 1 :]) for n in range(len(energies)))
    return float(sum(u.shape[1] * np.sum(o) for u, o in zip(factors, others, strict=True)))


def reconstruct(factors: Factors) -> Matrix:
    """Return the tensor ``(I_1, ..., I_N)`` that the factors stand for."""
    shape = tuple(u.shape[1] for u in factors)
    return (factors[0].T @ khatri_rao(factors[1:])).astype(np.float64).reshape(shape)


def trivial_rank(shape: tuple[int, ...]) -> int:
    """Return the rank at which every tensor of this shape is written exactly: all modes but the longest."""
    return prod(shape) // max(shape)


def exact_factors(tensor: Matrix) -> Factors:
    """Write a tensor exactly with `trivial_rank` components: one per fibre of the longest mode."""
    exact = np.asarray(tensor, np.float64)
    longest = int(np.argmax(exact.shape))
    fibres = np.moveaxis(exact, longest, -1).reshape(-1, exact.shape[longest])  # (R, I_longest)
    others = exact.shape[:longest] + exact.shape[longest + 1 :]
    positions = np.indices(others).reshape(len(others), -1)  # (N - 1, R)
    units = [np.eye(n)[p] for n, p in zip(others, positions, strict=True)]  # (R, I_n)
    return balance([*units[:longest], fibres, *units[longest:]])
