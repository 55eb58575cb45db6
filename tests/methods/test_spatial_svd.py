"""Spatial SVD."""

import numpy as np
import pytest

from onnxdecomp.layer import chain_macs, chain_params
from onnxdecomp.methods import find_methods
from onnxdecomp.methods.base import recompose, relative_error
from tests.builders import LAYERS, conv_layer, weight_of

VERTICAL, HORIZONTAL = (find_methods(f"spatial-svd/{v}-first")[0] for v in ("vertical", "horizontal"))


def test_the_error_is_that_of_the_recomposed_weight():
    layer = LAYERS["groups"]
    analysis = VERTICAL.analyze(layer, weight_of(layer), np.random.default_rng(0))
    weight = recompose(VERTICAL.plan(layer, (2,)), analysis.weights((2,)), layer.group)
    assert analysis.error((2,)) == pytest.approx(relative_error(weight_of(layer), weight), rel=1e-10)


def test_the_first_step_keeps_its_axis():
    layer = conv_layer((6, 4, 3, 5), (1, 9, 9), strides=(2, 3), pads=(1, 2, 0, 1), dilations=(1, 2))
    shapes = [[step.weight_shape for step in m.plan(layer, (7,))] for m in (VERTICAL, HORIZONTAL)]
    assert shapes == [[(7, 4, 3, 1), (6, 7, 1, 5)], [(7, 4, 1, 5), (6, 7, 3, 1)]]


@pytest.mark.parametrize(
    ("method", "kernels"), [(VERTICAL, [(3, 1, 1), (1, 2, 2)]), (HORIZONTAL, [(1, 2, 2), (3, 1, 1)])]
)
def test_three_axes_split_off_the_first(method, kernels):
    assert [step.weight_shape[2:] for step in method.plan(LAYERS["3-D"], (2,))] == kernels


def test_no_step_of_a_strided_layer_runs_at_full_size():
    layer = conv_layer((8, 8, 3, 3), (1, 16, 16), strides=(2, 2), pads=(1, 1, 1, 1))
    assert chain_macs(VERTICAL.plan(layer, (4,)), layer.in_shape) == 4 * 8 * 3 * 8 * 16 + 8 * 4 * 3 * 8 * 8


def test_a_depthwise_layer_becomes_two_depthwise_layers():
    layer = LAYERS["depthwise"]
    first, last = VERTICAL.plan(layer, (1,))
    assert (first.geometry.group, last.geometry.group) == (4, 4)
    assert chain_params((first, last)) == 4 * (3 + 5)


def test_a_separable_kernel_has_rank_one():
    layer = LAYERS["depthwise"]
    weight = np.einsum("ci,cj->cij", *(np.random.default_rng(0).standard_normal((4, k)) for k in (3, 5)))
    analysis = VERTICAL.analyze(layer, weight[:, None], np.random.default_rng(0))
    assert analysis.error((1,)) < 1e-12


@pytest.mark.parametrize("kind", ["1-D", "1x1", "Gemm", "a row", "a column"])
def test_one_axis_cannot_be_split(kind):
    assert "split" in VERTICAL.refusal(LAYERS[kind])
