"""CP by damped Gauss-Newton steps on a penalised objective: the solver to use.

    f(U) = 1/2 ||T - [[U_1, ..., U_N]]||^2 + rho/2 sum over n of ||U_n||^2,    ||T|| = 1

The penalty is what keeps components from growing without bound while they cancel (degeneracy); it is
lowered in stages, each starting from the last. Within a stage, a step solves the normal equations of the
linearised residual by preconditioned conjugate gradients. The product of that matrix with a vector costs
no contraction of the tensor, only products of R x R and R x I_n matrices. A step costs as much as a few
sweeps of alternating least squares (about ten where R exceeds the channels) and gains more than they do,
because it sees how the factors act together.

Source: L. Sorber, M. Van Barel, L. De Lathauwer, "Optimization-based algorithms for tensor decompositions",
    SIAM J. Optimization 23 (2013), section 4; damping: H. B. Nielsen, "Damping parameter in Marquardt's
    method", IMM-REP-1999-05, equation 2.4.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.methods.solvers.cp_als import als_sweep
from onnxdecomp.methods.solvers.cp_epc import N_SWEEPS, correct
from onnxdecomp.methods.solvers.cp_gauss_newton import GaussNewton
from onnxdecomp.methods.solvers.cp_tensor import (
    CpFit,
    Factors,
    Matrix,
    Precision,
    Target,
    balance,
    component_norms,
    grams,
    hadamard,
    revive,
)

N_STARTS = 3
"""Starts of a small tensor, where a bad one is likely to end in a poor local minimum."""
N_START_SWEEPS = 5
STAGES = ((1e-3, 6, 1e-2), (1e-4, 10, 1e-3), (1e-5, 25, 1e-5))
"""Penalty rho, most steps and least gain of each stage. Rho is that of a tensor of unit norm; a stage ends
with a step that lowers the objective by a smaller share than the least gain. The first stage finds structure
where there is some, and ends soon where there is none."""
REFINING = (1e-7, 1e-9, 1e-11, 1e-13, 1e-15)
"""Further penalties, tried while the tensor turns out to have the rank that was asked for."""
NEARLY_EXACT = 0.05
"""Relative error below which the refining penalties are tried."""
REFINED = 0.5
"""A refining stage that leaves a larger share of the error is not taken, and is the last."""
LARGEST_COMPONENT = 3.0
"""A component of this norm, the tensor's being one, is taken for degeneracy: refining ends."""
MAX_INNER_STEPS = 15
INNER_TOLERANCE = 1e-3
FIRST_DAMPING = 0.1
"""Share of the largest diagonal entry of the normal matrices; in refining stages, a multiple of rho."""
MAX_REJECTED = 6
SINGLE_ABOVE = 0.1
"""Relative error above which float32 contractions are exact enough to tell better from worse."""
SINGLE_FROM_SIZE = 1 << 15
"""Elements from which float32 saves time worth having."""


def solve_nls(
    tensor: NDArray[np.floating], rank: int, rng: np.random.Generator, enough: float = 0.0
) -> CpFit:
    """Fit `rank` components: short ALS start, Gauss-Newton stages, error-preserving correction.

    The result is a local minimum: good on weights, but no certificate that no better one exists.

    Args:
        tensor: Real array with two modes or more.
        rank: Number of components R, at least 1.
        rng: Chooses the start.
        enough: Relative error at which to stop early, without the correction.

    Returns:
        The factors ``(R, I_n)``. Components that the tensor has no use for are zero.
    """
    target = Target(tensor)
    if not target.norm:
        return target.fit([np.zeros((rank, n)) for n in target.shape], 0)
    small = target.tensor.size < SINGLE_FROM_SIZE
    precision: Precision = np.float64 if small else np.float32
    starts = [_start(target, rank, rng, precision, enough) for _ in range(N_STARTS if small else 1)]
    error, factors, n_steps = min(starts, key=lambda start: start[0])
    for rho, max_steps, least_gain in STAGES[1:]:
        if error <= enough:
            break
        seeded = revive(factors, rng)
        factors, taken = descend(target, seeded, rho, max_steps, least_gain, precision, enough)
        n_steps += taken
        error = target.rel_error(factors)
    for rho in REFINING:
        if error > NEARLY_EXACT or error <= enough:
            break
        finer, taken = descend(target, factors, rho, *STAGES[-1][1:], np.float64, enough)
        n_steps += taken
        finer_error = target.rel_error(finer)
        if finer_error > REFINED * error or float(np.max(component_norms(finer))) > LARGEST_COMPONENT:
            break
        factors, error = finer, finer_error
    if error > enough:
        factors = correct(target, factors, error)
    return target.fit(factors, n_steps)


def _start(
    target: Target, rank: int, rng: np.random.Generator, precision: Precision, enough: float
) -> tuple[float, Factors, int]:
    """Return the relative error, factors and steps of a random start after the first stage."""
    factors = target.random_start(rank, rng)
    rho, max_steps, least_gain = STAGES[0]
    for _ in range(N_START_SWEEPS):
        als_sweep(target, factors, rho, precision)
    start = revive(balance(factors), rng)
    factors, taken = descend(target, start, rho, max_steps, least_gain, precision, enough)
    return target.rel_error(factors), factors, N_START_SWEEPS + taken


def nls_flops(shape: tuple[int, ...], rank: int) -> float:
    """Return an upper estimate of the floating-point operations of `solve_nls`, refining stages left out."""
    n_starts = N_STARTS if prod(shape) < SINGLE_FROM_SIZE else 1
    later = sum(steps for _, steps, _ in STAGES[1:])
    n_steps = n_starts * (N_START_SWEEPS + STAGES[0][1]) + later
    contractions = 4.0 * prod(shape) * rank
    inner = (MAX_INNER_STEPS * 6.0 + 8.0) * rank**2 * sum(shape)
    inverses = 2.0 * len(shape) * rank**3
    correction = N_SWEEPS * (contractions + 2.0 * rank**2 * sum(shape) + 9.0 * len(shape) * rank**3)
    return n_steps * (contractions + inner + inverses) + correction


@dataclass
class Point:
    """Factors with everything the next step needs to know about them.

    Args:
        factors: ``(R, I_n)`` each.
        gram: ``U_n U_n^T``, ``(R, R)`` each.
        products: MTTKRP of each mode, ``(R, I_n)``.
        fit_error: ``||T - T'||^2``.
        value: The objective f.
    """

    factors: Factors
    gram: list[Matrix]
    products: Factors
    fit_error: float
    value: float


def evaluate(target: Target, factors: Factors, rho: float, precision: Precision = np.float64) -> Point:
    """Compute the objective and what its gradient is made of."""
    return _point(target, factors, target.mttkrp(factors, precision), rho)


def _point(target: Target, factors: Factors, products: Factors, rho: float) -> Point:
    gram = grams(factors)
    fit_error = target.squared_error(products[0], factors[0], gram)
    penalty = rho * float(sum(np.vdot(u, u) for u in factors))
    return Point(factors, gram, products, fit_error, 0.5 * (fit_error + penalty))


def gradient(point: Point, rho: float) -> Factors:
    """Return the gradient of the objective, ``(R, I_n)`` per mode."""
    return [
        (hadamard(point.gram, n) + rho * np.eye(len(u))) @ u - point.products[n]
        for n, u in enumerate(point.factors)
    ]


def _dot(left: Factors, right: Factors) -> float:
    return float(sum(np.vdot(a, b) for a, b in zip(left, right, strict=True)))


def descend(
    target: Target,
    factors: Factors,
    rho: float,
    max_steps: int,
    least_gain: float = STAGES[-1][2],
    precision: Precision = np.float64,
    enough: float = 0.0,
) -> tuple[Factors, int]:
    """Lower the objective at one penalty by damped Gauss-Newton steps.

    Args:
        target: The tensor, of unit norm.
        factors: Start, ``(R, I_n)`` each; not modified.
        rho: Penalty.
        max_steps: Most accepted and rejected steps.
        least_gain: A step that lowers the objective by a smaller share is the last.
        precision: float32 is left for float64 once the fit is close.
        enough: Relative error at which to stop early.

    Returns:
        Balanced factors whose objective is not above that of the start, and the number of steps.
    """
    point = evaluate(target, balance(factors), rho, precision)
    steepest = max(float(np.max(np.diagonal(hadamard(point.gram, n)))) for n in range(len(factors)))
    damping = FIRST_DAMPING * (steepest if rho >= STAGES[-1][0] else rho)
    growth, n_rejected, n_steps = 2.0, 0, 0
    while n_steps < max_steps and n_rejected < MAX_REJECTED and damping > 0.0:
        if precision is np.float32 and point.fit_error < SINGLE_ABOVE**2:
            precision = np.float64
            point = evaluate(target, point.factors, rho, precision)
        n_steps += 1
        slope = gradient(point, rho)
        matrix = GaussNewton(point.factors, point.gram, rho + damping, precision)
        inner, residual = matrix.solve([-g for g in slope], MAX_INNER_STEPS, INNER_TOLERANCE)
        step: Factors = [x.astype(np.float64, copy=False) for x in inner]
        # With A x = -g - r, the model falls by -g.x - 1/2 x.(A - damping) x = 1/2 x.(r - g + damping x).
        expected = 0.5 * (_dot(step, residual) - _dot(step, slope) + damping * _dot(step, step))
        moved: Factors = [u + x for u, x in zip(point.factors, step, strict=True)]
        trial = evaluate(target, moved, rho, precision)
        gain = point.value - trial.value
        if not gain > 0.0:
            damping, growth, n_rejected = damping * growth, 2.0 * growth, n_rejected + 1
            continue
        finished = gain < least_gain * point.value or trial.fit_error < enough**2
        point = _balanced(target, trial, rho)
        ratio = gain / expected if expected > 0.0 else 1.0
        damping *= max(1.0 / 3.0, 1.0 - (2.0 * ratio - 1.0) ** 3)
        growth, n_rejected = 2.0, 0
        if finished:
            break
    return point.factors, n_steps


def _balanced(target: Target, point: Point, rho: float) -> Point:
    """Balance the factors; the MTTKRPs follow by scaling, without touching the tensor."""
    even = balance(point.factors)
    ratios = []
    for old, new in zip(point.factors, even, strict=True):
        before, after = np.linalg.norm(old, axis=1), np.linalg.norm(new, axis=1)
        ratios.append(np.divide(after, before, out=np.zeros_like(after), where=before > 0))  # (R,)
    products = []
    for n, product in enumerate(point.products):
        others = np.multiply.reduce(ratios[:n] + ratios[n + 1 :])  # (R,)
        products.append(product * others[:, None])
    return _point(target, even, products, rho)
