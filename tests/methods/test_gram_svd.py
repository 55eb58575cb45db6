"""The singular value decomposition against LAPACK, in each of its ways."""

import numpy as np
import pytest

from onnxdecomp.methods.solvers import gram_svd

SHAPES = {"LAPACK": (40, 60), "Gram, wide": (130, 200), "Gram, tall": (300, 90)}


def matrix_of(shape, decay, seed=0, dtype=np.float64):
    """Return a matrix with singular values about ``k ** -decay``, in random directions."""
    rng = np.random.default_rng(seed)
    scaled = rng.standard_normal(shape) * np.arange(1, shape[1] + 1.0) ** -decay
    return (scaled @ np.linalg.qr(rng.standard_normal((shape[1], shape[1])))[0]).astype(dtype)


@pytest.fixture
def _sketch_soon(monkeypatch):
    monkeypatch.setattr(gram_svd, "SKETCH_SIDE", 64)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("decay", [0.0, 1.0, 4.0])
def test_values_are_those_of_lapack(shape, decay):
    matrix = matrix_of(shape, decay)
    found = gram_svd.leading_subspace(matrix, np.random.default_rng(0))
    expected = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(found.values, expected, atol=1e-7 * expected[0])
    assert found.energy == pytest.approx(np.sum(np.square(matrix)))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_projection_has_the_least_error(shape):
    matrix, rank = matrix_of(shape, 0.5), 20
    found = gram_svd.project(matrix, gram_svd.leading_subspace(matrix, np.random.default_rng(0)), rank)
    error = np.linalg.norm(matrix - (found.left * found.values) @ found.right)
    assert error == pytest.approx(np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:]), rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("decay", [0.0, 8.0])
def test_full_rank_is_exact_however_small_the_values(shape, decay):
    matrix = matrix_of(shape, decay)
    subspace = gram_svd.leading_subspace(matrix, np.random.default_rng(0))
    found = gram_svd.project(matrix, subspace, min(shape))
    np.testing.assert_allclose(
        (found.left * found.values) @ found.right, matrix, atol=1e-13 * found.values[0]
    )


@pytest.mark.usefixtures("_sketch_soon")
@pytest.mark.parametrize("shape", [(400, 150), (150, 400)], ids=["tall", "wide"])
@pytest.mark.parametrize("rank", [8, 24], ids=["through the matrix", "through its Gram matrix"])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_a_sketch_is_within_one_percent_of_the_least_error(shape, rank, decay):
    matrix = matrix_of(shape, decay)
    assert gram_svd.is_sketched(min(shape), rank)
    found = gram_svd.project(matrix, gram_svd.leading_subspace(matrix, np.random.default_rng(0), rank), rank)
    error = np.linalg.norm(matrix - (found.left * found.values) @ found.right)
    least = np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:])
    assert least <= error <= 1.01 * least


@pytest.mark.usefixtures("_sketch_soon")
@pytest.mark.parametrize("true_rank", [0, 1, 10])
@pytest.mark.parametrize("empty_columns", [0, 130])
def test_a_sketch_of_fewer_dimensions_than_its_columns_stays_orthonormal(true_rank, empty_columns):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((400, true_rank)) @ rng.standard_normal((true_rank, 150))
    matrix[:, 150 - empty_columns :] = 0.0
    found = gram_svd.leading_subspace(matrix, rng, 24)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(24), atol=1e-9)
    assert np.sum(np.square(found.values)) == pytest.approx(found.energy, rel=1e-9, abs=1e-12)


@pytest.mark.usefixtures("_sketch_soon")
def test_the_seed_decides_a_sketch():
    matrix = matrix_of((400, 150), 0.0)
    first, again, other = (
        gram_svd.leading_subspace(matrix, np.random.default_rng(seed), 24).vectors for seed in (1, 1, 2)
    )
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_a_large_float32_matrix_is_multiplied_in_float32(monkeypatch):
    monkeypatch.setattr(gram_svd, "DOUBLE_SIZE", 1000)
    assert gram_svd.working_dtype(np.zeros((40, 40), np.float32)) is np.float32
    assert gram_svd.working_dtype(np.zeros((40, 40), np.float64)) is np.float64
    assert gram_svd.working_dtype(np.zeros((4, 4), np.float16)) is np.float64


def test_blocks_do_not_change_the_gram_matrix(monkeypatch):
    matrix = matrix_of((30, 500), 0.0, dtype=np.float32)
    monkeypatch.setattr(gram_svd, "BLOCK_SIZE", 30 * 64)
    expected = matrix.astype(np.float64) @ matrix.T.astype(np.float64)
    np.testing.assert_allclose(gram_svd.gram(matrix), expected, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(gram_svd.gram(matrix.T), expected, rtol=1e-12, atol=1e-10)
    assert gram_svd.squared_norm(matrix) == pytest.approx(np.trace(expected), rel=1e-12)
