"""The CP solvers and their algebra, on small tensors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tensorly import cp_to_tensor
from tensorly.cp_tensor import unfolding_dot_khatri_rao
from tensorly.decomposition import parafac

from onnxdecomp.methods.solvers.cp_als import als_flops, als_sweep, solve_als
from onnxdecomp.methods.solvers.cp_epc import correct
from onnxdecomp.methods.solvers.cp_gauss_newton import GaussNewton
from onnxdecomp.methods.solvers.cp_greedy import greedy_flops, solve_greedy
from onnxdecomp.methods.solvers.cp_nls import descend, evaluate, gradient, nls_flops, solve_nls
from onnxdecomp.methods.solvers.cp_tensor import (
    Factors,
    Target,
    balance,
    component_norms,
    exact_factors,
    grams,
    khatri_rao,
    reconstruct,
    revive,
    sensitivity,
    trivial_rank,
)

ROUNDING = 1e-12
SINGLE_ROUNDING = 1e-5
RECOVERED = 1e-6
FINITE_DIFFERENCE = 1e-6

SHAPES = [(7, 5), (5, 7, 4), (4, 6, 3, 3), (3, 4, 2, 3, 2)]
SOLVERS = [solve_nls, solve_als, solve_greedy]


def gaussian(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng([7, seed]).standard_normal(shape)


def gaussian_factors(shape: tuple[int, ...], rank: int, seed: int = 0) -> Factors:
    rng = np.random.default_rng([8, seed])
    return [rng.standard_normal((rank, n)) for n in shape]


def decaying(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float64]:
    """A tensor as trained weights are: components of falling size, and noise."""
    factors = gaussian_factors(shape, 24, seed)
    factors[0] = factors[0] / np.arange(1, 25)[:, None]
    return reconstruct(factors) + 0.05 * gaussian(shape, seed)


def border_rank_tensor() -> NDArray[np.float64]:
    """Rank 3, and the limit of tensors of rank 2 whose two components grow and cancel."""
    a, b = np.eye(2)
    terms = [(a, a, b), (a, b, a), (b, a, a)]
    return np.sum([np.einsum("i,j,k->ijk", *term) for term in terms], axis=0)


# --- algebra ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("precision", "tolerance"), [(np.float64, ROUNDING), (np.float32, SINGLE_ROUNDING)])
def test_mttkrp_equals_that_of_tensorly(shape, precision, tolerance):
    target = Target(gaussian(shape))
    factors = gaussian_factors(target.shape, 3)
    cp = (np.ones(3), [u.T for u in factors])
    expected = [unfolding_dot_khatri_rao(target.tensor, cp, n).T for n in range(len(shape))]
    found = target.mttkrp(factors, precision)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance * 100)


@pytest.mark.parametrize("shape", SHAPES)
def test_reconstruction_equals_that_of_tensorly(shape):
    factors = gaussian_factors(shape, 3)
    expected = cp_to_tensor((np.ones(3), [u.T for u in factors]))
    np.testing.assert_allclose(reconstruct(factors), expected, atol=ROUNDING)


@pytest.mark.parametrize("shape", SHAPES)
def test_squared_error_from_gram_matrices_equals_the_difference(shape):
    target = Target(gaussian(shape))
    factors = target.random_start(3, np.random.default_rng(0))
    products = target.mttkrp(factors)
    cheap = target.squared_error(products[1], factors[1], grams(factors))
    assert cheap == pytest.approx(target.rel_error(factors) ** 2, abs=ROUNDING)


@pytest.mark.parametrize("shape", [*SHAPES, (3, 9, 9), (1, 5, 2)])
def test_every_tensor_is_exact_at_the_trivial_rank(shape):
    tensor = gaussian(shape)
    factors = exact_factors(tensor)
    assert {len(u) for u in factors} == {trivial_rank(shape)}
    np.testing.assert_allclose(reconstruct(factors), tensor, atol=ROUNDING)


def test_balancing_keeps_the_tensor_and_makes_norms_equal():
    factors = gaussian_factors((5, 4, 3), 4)
    factors[1] = factors[1] * 1e6
    even = balance(factors)
    np.testing.assert_allclose(reconstruct(even), reconstruct(factors), rtol=ROUNDING, atol=1e-6)
    norms = [np.linalg.norm(u, axis=1) for u in even]
    np.testing.assert_allclose(norms[0], norms[1])
    np.testing.assert_allclose(norms[0], norms[2])


def test_balancing_makes_a_component_that_is_zero_in_one_mode_zero_in_all():
    factors = gaussian_factors((5, 4, 3), 4)
    factors[1][2] = 0.0
    even = balance(factors)
    assert all(np.all(u[2] == 0.0) for u in even)
    np.testing.assert_allclose(reconstruct(even), reconstruct(factors), atol=ROUNDING)


def test_dead_components_are_revived_and_living_ones_kept():
    factors = gaussian_factors((5, 4, 3), 4)
    for u in factors:
        u[1] = 0.0
    alive = revive(factors, np.random.default_rng(0))
    assert np.all(component_norms(alive) > 0)
    np.testing.assert_array_equal(alive[0][[0, 2, 3]], factors[0][[0, 2, 3]])


@pytest.mark.parametrize("shape", SHAPES)
def test_sensitivity_is_the_squared_error_that_factor_noise_adds(shape):
    factors = gaussian_factors(shape, 3)
    rng, spread, n_trials = np.random.default_rng(0), 1e-4, 4000
    exact = reconstruct(factors)
    moved = ([u + spread * rng.standard_normal(u.shape) for u in factors] for _ in range(n_trials))
    growth = np.mean([np.sum(np.square(reconstruct(m) - exact)) for m in moved]) / spread**2
    assert sensitivity(factors) == pytest.approx(growth, rel=0.05)


# --- the objective and its linearisation -----------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_gradient_equals_finite_differences(shape, rho):
    target = Target(gaussian(shape))
    factors = target.random_start(3, np.random.default_rng(1))
    slope = gradient(evaluate(target, factors, rho), rho)
    direction = gaussian_factors(target.shape, 3, seed=2)
    width = 1e-5
    ahead = evaluate(target, [u + width * d for u, d in zip(factors, direction, strict=True)], rho).value
    behind = evaluate(target, [u - width * d for u, d in zip(factors, direction, strict=True)], rho).value
    expected = sum(float(np.vdot(g, d)) for g, d in zip(slope, direction, strict=True))
    assert (ahead - behind) / (2 * width) == pytest.approx(expected, abs=FINITE_DIFFERENCE)


def jacobian(factors: Factors) -> NDArray[np.float64]:
    """Write out the derivative of the reconstruction, ``(elements, factor entries)``, column by column."""
    columns = []
    for n, u in enumerate(factors):
        for entry in np.ndindex(*u.shape):
            unit = np.zeros_like(u)
            unit[entry] = 1.0
            columns.append(reconstruct([*factors[:n], unit, *factors[n + 1 :]]).ravel())
    return np.stack(columns, axis=1)


def flattened(step: Factors) -> NDArray[np.float64]:
    return np.concatenate([x.ravel() for x in step])


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2), (3, 2, 2, 3)])
def test_gauss_newton_product_equals_the_explicit_jacobian(shape):
    factors, step, shift = gaussian_factors(shape, 2), gaussian_factors(shape, 2, seed=3), 0.7
    explicit = jacobian(factors)
    expected = explicit.T @ (explicit @ flattened(step)) + shift * flattened(step)
    matrix = GaussNewton(factors, grams(factors), shift, np.float64)
    np.testing.assert_allclose(flattened(matrix.product(step)), expected, rtol=1e-10)


@pytest.mark.parametrize("shape", [(3, 4, 2), (3, 2, 2, 3)])
def test_conjugate_gradients_solve_the_gauss_newton_system(shape):
    factors, right = gaussian_factors(shape, 2), gaussian_factors(shape, 2, seed=3)
    matrix = GaussNewton(factors, grams(factors), 0.1, np.float64)
    solution, residual = matrix.solve(right, 200, 1e-13)
    np.testing.assert_allclose(flattened(matrix.product(solution)), flattened(right), atol=1e-9)
    assert np.linalg.norm(flattened(residual)) < 1e-9


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), rho=st.sampled_from([1e-1, 1e-3, 1e-5]))
def test_descent_never_raises_the_objective(seed, rho):
    target = Target(gaussian((4, 5, 3), seed))
    start = balance(target.random_start(4, np.random.default_rng(seed)))
    end, _ = descend(target, start, rho, 5)
    assert evaluate(target, end, rho).value <= evaluate(target, start, rho).value + ROUNDING


def test_alternating_sweeps_never_raise_the_error():
    target = Target(decaying((9, 8, 7)))
    factors = target.random_start(5, np.random.default_rng(0))
    errors = [als_sweep(target, factors, 0.0) for _ in range(20)]
    assert np.all(np.diff(errors) <= ROUNDING)
    assert errors[-1] == pytest.approx(target.rel_error(factors) ** 2, abs=ROUNDING)


# --- solvers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 3])
@pytest.mark.parametrize(
    ("shape", "rank"), [((8, 7, 5), 3), ((12, 10, 9), 6), ((6, 5, 3, 3), 4), ((20, 16, 9), 12), ((5, 4), 2)]
)
def test_planted_components_are_recovered(shape, rank, seed):
    tensor = reconstruct(gaussian_factors(shape, rank, seed))
    fit = solve_nls(tensor, rank, np.random.default_rng(seed))
    assert fit.rel_error < RECOVERED
    np.testing.assert_allclose(reconstruct(fit.factors), tensor, atol=RECOVERED * np.linalg.norm(tensor))


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_a_spare_component_does_no_harm_at_any_scale(scale):
    tensor = reconstruct(gaussian_factors((8, 7, 5), 3)) * scale
    fit = solve_nls(tensor, 5, np.random.default_rng(0))
    assert [u.shape for u in fit.factors] == [(5, 8), (5, 7), (5, 5)]
    assert fit.rel_error < RECOVERED


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_reported_error_is_that_of_the_factors(solve, shape):
    tensor = gaussian(shape)
    fit = solve(tensor, 4, np.random.default_rng(0))
    error = np.linalg.norm(tensor - reconstruct(fit.factors)) / np.linalg.norm(tensor)
    assert fit.rel_error == pytest.approx(error, abs=1e-7)


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("rank", [1, 7, 19])
@pytest.mark.parametrize(
    "tensor",
    [
        np.zeros((4, 3, 5)),
        np.ones((4, 3, 5)),
        np.pad(np.ones((1, 1, 1)), ((0, 3), (0, 4), (0, 8))),
        np.eye(6)[:, :, None] * np.ones(3),
        gaussian((1, 5, 4)),
    ],
    ids=["zero", "constant", "one element", "identity", "one channel"],
)
def test_degenerate_input_gives_finite_factors(solve, rank, tensor):
    fit = solve(tensor, rank, np.random.default_rng(0))
    assert all(np.all(np.isfinite(u)) for u in fit.factors)
    assert 0.0 <= fit.rel_error <= 1.0


@pytest.mark.parametrize("shape", [(24, 20, 9), (24, 20, 3, 3), (16, 32, 5)])
@pytest.mark.parametrize("rank", [4, 12, 20])
def test_nls_is_at_least_as_good_as_als_and_greedy(shape, rank):
    tensor = decaying(shape)
    nls, als, greedy = (solve(tensor, rank, np.random.default_rng(0)).rel_error for solve in SOLVERS)
    assert nls <= 1.001 * als
    assert nls < greedy


@pytest.mark.parametrize("shape", [(24, 20, 9), (24, 20, 3, 3)])
def test_nls_is_at_least_as_good_as_fifty_sweeps_of_tensorly(shape):
    tensor = decaying(shape)
    theirs = cp_to_tensor(parafac(tensor, 12, n_iter_max=50, tol=0, init="random", random_state=0))
    error = np.linalg.norm(tensor - theirs) / np.linalg.norm(tensor)
    assert solve_nls(tensor, 12, np.random.default_rng(0)).rel_error <= error


def test_als_agrees_with_tensorly_from_the_same_start():
    target = Target(decaying((9, 8, 7)))
    factors = target.random_start(4, np.random.default_rng(0))
    start = (np.ones(4), [u.T.copy() for u in factors])
    theirs = cp_to_tensor(parafac(target.tensor, 4, n_iter_max=10, tol=0, init=start))
    for _ in range(10):
        als_sweep(target, factors, 0.0)
    np.testing.assert_allclose(reconstruct(factors), theirs, atol=1e-8)


def test_nls_is_less_sensitive_than_als_at_a_lower_error():
    tensor = decaying((24, 20, 9), seed=1)
    nls, als = (solve(tensor, 20, np.random.default_rng(0)) for solve in (solve_nls, solve_als))
    assert nls.rel_error < als.rel_error
    assert sensitivity(nls.factors) < sensitivity(als.factors)


def test_components_stay_small_where_the_best_fit_would_let_them_grow():
    tensor = border_rank_tensor()
    nls = solve_nls(tensor, 2, np.random.default_rng(0))
    target = Target(tensor)
    unpenalised = target.random_start(2, np.random.default_rng(0))
    for rho in 10.0 ** -np.arange(3, 14):
        unpenalised, _ = descend(target, unpenalised, float(rho), 50)
    assert np.max(component_norms(nls.factors)) / target.norm < 5.0
    assert np.max(component_norms(unpenalised)) > 15.0
    assert nls.rel_error < 0.01


def test_the_border_rank_tensor_is_recovered_at_its_rank():
    assert solve_nls(border_rank_tensor(), 3, np.random.default_rng(0)).rel_error < RECOVERED


def test_a_sufficient_error_ends_the_solve_early():
    tensor = decaying((24, 20, 9))
    whole = solve_nls(tensor, 12, np.random.default_rng(0))
    early = solve_nls(tensor, 12, np.random.default_rng(0), enough=1.2 * whole.rel_error)
    assert early.n_iterations < whole.n_iterations
    assert early.rel_error <= 1.2 * whole.rel_error


@pytest.mark.parametrize("shape", [(10, 8, 9), (10, 8, 3, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_correction_lowers_sensitivity_without_raising_the_error(shape, seed):
    target = Target(gaussian(shape, seed))
    factors = target.random_start(12, np.random.default_rng(seed))
    for _ in range(30):
        als_sweep(target, factors, 0.0)
    error = target.rel_error(factors)
    corrected = correct(target, factors, error)
    assert target.rel_error(corrected) <= error * (1 + 1e-9)
    assert sensitivity(corrected) < 0.95 * sensitivity(balance(factors))


def test_correction_uses_all_of_a_wider_bound():
    target = Target(gaussian((10, 8, 9)))
    factors = target.random_start(12, np.random.default_rng(0))
    for _ in range(30):
        als_sweep(target, factors, 0.0)
    error = target.rel_error(factors)
    tight, wide = (correct(target, factors, bound * error) for bound in (1.0, 1.1))
    assert target.rel_error(wide) == pytest.approx(1.1 * error, rel=1e-6)
    assert sensitivity(wide) < sensitivity(tight)


def test_correction_leaves_factors_that_miss_the_bound_alone():
    target = Target(gaussian((6, 5, 4)))
    factors = balance(target.random_start(2, np.random.default_rng(0)))
    corrected = correct(target, factors, 0.01)
    np.testing.assert_allclose(reconstruct(corrected), reconstruct(factors), atol=ROUNDING)


@pytest.mark.parametrize("solve", SOLVERS)
def test_same_seed_same_bytes(solve):
    tensor = decaying((40, 32, 9, 4)[:3])
    one, two = (solve(tensor, 6, np.random.default_rng(5)) for _ in range(2))
    assert [u.tobytes() for u in one.factors] == [u.tobytes() for u in two.factors]


def test_large_tensors_in_float32_fit_as_well_as_small_ones_in_float64():
    tensor = decaying((96, 64, 9))
    assert tensor.size >= 1 << 15
    fit = solve_nls(tensor, 24, np.random.default_rng(0))
    noise = 0.05 * np.sqrt(tensor.size) / np.linalg.norm(tensor)
    assert fit.rel_error <= 1.01 * noise


@pytest.mark.parametrize("flops", [nls_flops, als_flops, greedy_flops])
def test_estimated_work_grows_with_rank_and_size(flops):
    assert flops((64, 64, 9), 16) < flops((64, 64, 9), 32) < flops((128, 64, 9), 32)


def test_greedy_error_never_rises_with_the_rank():
    tensor = decaying((12, 10, 9))
    errors = [solve_greedy(tensor, rank, np.random.default_rng(0)).rel_error for rank in (1, 2, 4, 8, 16)]
    assert np.all(np.diff(errors) <= 0)


def test_khatri_rao_rows_are_kronecker_products():
    left, right = gaussian_factors((3, 4), 2)
    np.testing.assert_allclose(khatri_rao([left, right])[1], np.kron(left[1], right[1]))
