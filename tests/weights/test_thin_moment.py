"""Thin moments: the same numbers as the matrix that they stand for, without it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.methods import find_methods
from onnxdecomp.methods.base import decompose, recompose
from onnxdecomp.weights.fit import FITS, MAX_ROOT, WEIGHTS, Data, Fit, distinct_fits
from onnxdecomp.weights.moments import Moments, is_thin
from onnxdecomp.weights.shrinkage import shrinkage, shrunk
from onnxdecomp.weights.thin_moment import ThinMoment
from tests.builders import conv_layer, matrix_layer, weight_of

N_ROWS, SIZE, N_OUTPUTS = 7, 12, 5
GEMM = matrix_layer("Gemm", N_OUTPUTS, SIZE)


def rows_of(n_rows: int, size: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return np.maximum(rng.standard_normal((n_rows, size)) @ rng.standard_normal((size, size)) + 0.3, 0)


def written_out(thin: ThinMoment):
    """Return the ``(1, D, D)`` that a thin moment stands for."""
    found = thin.rows.T * thin.weights @ thin.rows + thin.level * np.eye(thin.shape[-1])
    if thin.before is not None:
        found = np.kron(thin.before.first, thin.before.second) @ found
    if thin.after is not None:
        found = found @ np.kron(thin.after.first, thin.after.second)
    return found[np.newaxis]


def moments_of(n_rows: int, size: int, seed: int = 0) -> tuple[Moments, Moments]:
    """Return the same moments thin and written out."""
    rows = rows_of(n_rows, size, seed)
    thin = ThinMoment(rows, np.full(n_rows, 1 / n_rows))
    mean = rows.mean(axis=0, keepdims=True)
    return Moments(n_rows, mean, thin), Moments(n_rows, mean, written_out(thin))


@given(
    n_rows=st.integers(1, 9),
    size=st.integers(1, 9),
    seed=st.integers(0, 99),
    level=st.floats(0.01, 2.0),
    exponent=st.sampled_from([-1.0, -0.5, 0.5, 1.0, 2.0]),
)
@settings(deadline=None)
def test_powers_are_those_of_the_matrix(n_rows, size, seed, level, exponent):
    thin = ThinMoment(rows_of(n_rows, size, seed), np.full(n_rows, 1 / n_rows), level)
    values, vectors = np.linalg.eigh(written_out(thin)[0])
    wanted = vectors * values**exponent @ vectors.T
    (found,) = thin.powers(exponent)
    np.testing.assert_allclose(written_out(found)[0], wanted, rtol=1e-8, atol=1e-8 * np.abs(wanted).max())


def test_products_traces_and_types_are_those_of_the_matrix():
    thin = ThinMoment(rows_of(N_ROWS, SIZE), np.linspace(1, 2, N_ROWS), 0.5)
    dense = written_out(thin)
    left = np.random.default_rng(1).standard_normal((1, N_OUTPUTS, SIZE))
    np.testing.assert_allclose(left @ thin, left @ dense)
    np.testing.assert_allclose(thin.trace, np.trace(dense[0]))
    np.testing.assert_allclose(thin.squares, np.sum(dense**2))
    assert thin.shape == dense.shape
    single = left.astype(np.float32) @ thin.astype(np.float32)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, left @ dense, rtol=1e-4)


@pytest.mark.parametrize("n_rows", [N_ROWS, 4 * SIZE])
def test_covariance_and_shrinkage_are_those_of_the_matrix(n_rows):
    thin, dense = moments_of(n_rows, SIZE)
    np.testing.assert_allclose(written_out(thin.covariance), dense.covariance, atol=1e-12)
    assert shrinkage(thin.covariance, n_rows) == pytest.approx(shrinkage(dense.covariance, n_rows))
    np.testing.assert_allclose(written_out(shrunk(thin.second, n_rows)), shrunk(dense.second, n_rows))


@pytest.mark.parametrize("axes", [(3, 4), (6, 2), (2, 3, 2), (12, 1), ()])
@pytest.mark.parametrize("n_rows", [1, N_ROWS, 4 * SIZE])
def test_few_rows_are_blended_with_what_the_matrix_is(n_rows, axes):
    thin, dense = (shrunk(moments.covariance, n_rows, axes) for moments in moments_of(n_rows, SIZE))
    np.testing.assert_allclose(written_out(thin), dense, rtol=1e-8, atol=1e-8)
    left = np.random.default_rng(1).standard_normal((1, N_OUTPUTS, SIZE))
    np.testing.assert_allclose(left @ thin, left @ dense, rtol=1e-8, atol=1e-8)
    single = left.astype(np.float32) @ thin.astype(np.float32)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, left @ dense, rtol=1e-3, atol=1e-3 * np.abs(dense).max())


@pytest.mark.parametrize("axes", [(3, 4), ()])
def test_a_root_is_one_and_its_inverse_undoes_it(axes):
    thin, dense = (shrunk(moments.second, N_ROWS, axes) for moments in moments_of(N_ROWS, SIZE))
    root, inverse = (written_out(found)[0] for found in thin.root_and_inverse())
    np.testing.assert_allclose(root @ root.T, dense[0], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(root @ inverse, np.eye(SIZE), atol=1e-8)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("layer", "fit"),
    [*((GEMM, fit) for fit in distinct_fits(FITS, GEMM)), (replace(GEMM, flattened=(3, 4)), WEIGHTS)],
    ids=lambda one: one.name if isinstance(one, Fit) else f"{len(one.patch_axes)} axes",
)
def test_a_matrix_is_fitted_as_with_the_matrix(layer, fit, with_bias):
    (method,) = find_methods("svd/2-steps")
    found = []
    for moments in moments_of(N_ROWS, SIZE):
        data = Data.of(layer, weight_of(layer), moments, fit, with_bias=with_bias)
        analysis = data.analyze(method, layer, weight_of(layer), np.random.default_rng(0), None)
        chain, error = data.fitted(decompose(method, analysis, layer, (2,)))
        found.append((recompose(chain.specs, chain.weights, 1), error))
    (thin, thin_error), (dense, dense_error) = found
    np.testing.assert_allclose(thin, dense, atol=1e-6)
    assert thin_error == pytest.approx(dense_error, rel=1e-6)


def test_only_wide_matrices_are_thin():
    assert not is_thin(matrix_layer("Gemm", 4, MAX_ROOT))
    assert not is_thin(conv_layer((4, MAX_ROOT + 1, 1, 1), (1, 2, 2)))
    assert is_thin(matrix_layer("Gemm", 4, MAX_ROOT + 1))
