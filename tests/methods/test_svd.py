"""SVD of matrices and 1x1 convolutions."""

import numpy as np
import pytest

from onnxdecomp.layer import chain_macs, chain_params
from onnxdecomp.methods import find_methods
from onnxdecomp.methods.base import recompose
from tests.builders import LAYERS, conv_layer, matrix_layer, weight_of

TWO, THREE, FOUR = (find_methods(f"svd/{n}-steps")[0] for n in (2, 3, 4))


def analysis(layer, method=TWO):
    return method.analyze(layer, weight_of(layer), np.random.default_rng(0))


@pytest.mark.parametrize("kind", ["Gemm", "MatMul", "1x1 groups"])
def test_the_error_is_the_least_of_any_matrix_of_that_rank(kind):
    layer = LAYERS[kind]
    blocks = weight_of(layer).reshape(layer.group, layer.out_channels // layer.group, -1)
    values = np.linalg.svd(blocks, compute_uv=False)
    expected = [np.linalg.norm(values[:, r:]) / np.linalg.norm(values) for r in range(1, values.shape[1])]
    found = [analysis(layer).error((r,)) for r in range(1, values.shape[1])]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("kind", ["Gemm", "1x1", "1x1 groups", "transposed 1x1 strided"])
@pytest.mark.parametrize("method", [THREE, FOUR], ids=lambda m: m.variant)
def test_more_steps_give_the_same_weight(kind, method):
    layer = LAYERS[kind]
    wanted = recompose(TWO.plan(layer, (2,)), analysis(layer).weights((2,)), layer.group)
    found = recompose(method.plan(layer, (2,)), analysis(layer, method).weights((2,)), layer.group)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_singular_values_are_shared_out_evenly():
    weights = analysis(LAYERS["Gemm"], FOUR).weights((3,))
    norms = [np.linalg.norm(weights[0], axis=1), np.diag(weights[1]), np.diag(weights[2])]
    np.testing.assert_allclose(norms, np.linalg.norm(weights[3], axis=0)[None].repeat(3, 0), rtol=1e-10)


def test_parameters_of_n_steps_count_the_inner_matrices():
    layer = matrix_layer("Gemm", 7, 9)
    counts = [chain_params(method.plan(layer, (3,))) for method in (TWO, THREE, FOUR)]
    assert counts == [3 * (7 + 9), 3 * (7 + 9) + 9, 3 * (7 + 9) + 18]


def test_a_stride_saves_work_in_the_last_step():
    layer = conv_layer((8, 8, 1, 1), (1, 8, 8), strides=(2, 2))
    assert chain_macs(TWO.plan(layer, (2,)), layer.in_shape) == 2 * 8 * 16 + 8 * 2 * 16


def test_a_transposed_layer_upsamples_in_the_last_step():
    layer = conv_layer((8, 8, 1, 1), (1, 4, 4), strides=(2, 2), output_padding=())
    first, last = TWO.plan(layer, (2,))
    assert (first.geometry.transposed, last.geometry) == (False, layer.geometry)


def test_only_two_steps_are_automatic():
    assert [m.full_name for m in find_methods("svd")] == ["svd/2-steps"]


def test_a_sketch_knows_its_error(monkeypatch):
    monkeypatch.setattr("onnxdecomp.methods.solvers.gram_svd.SKETCH_SIDE", 32)
    layer = matrix_layer("Gemm", 60, 90)
    sketch = TWO.analyze(layer, weight_of(layer), np.random.default_rng(0), (8,))
    weight = recompose(TWO.plan(layer, (8,)), sketch.weights((8,)), 1)
    found = np.linalg.norm(weight_of(layer) - weight) / np.linalg.norm(weight_of(layer))
    assert sketch.error((8,)) == pytest.approx(found, rel=1e-6)
    assert analysis(layer).error((8,)) <= found
