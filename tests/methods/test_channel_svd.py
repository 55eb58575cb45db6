"""Channel SVD."""

import numpy as np
import pytest

from onnxdecomp.layer import chain_params
from onnxdecomp.methods import find_methods
from onnxdecomp.methods.base import recompose, relative_error
from tests.builders import LAYERS, conv_layer, weight_of

OUTPUT, INPUT = (find_methods(f"channel-svd/{side}")[0] for side in ("output", "input"))


@pytest.mark.parametrize("method", [OUTPUT, INPUT], ids=lambda m: m.variant)
@pytest.mark.parametrize("kind", ["plain", "groups", "1-D", "3-D"])
def test_the_error_is_that_of_the_recomposed_weight(method, kind):
    layer = LAYERS[kind]
    analysis = method.analyze(layer, weight_of(layer), np.random.default_rng(0))
    weight = recompose(method.plan(layer, (1,)), analysis.weights((1,)), layer.group)
    assert analysis.error((1,)) == pytest.approx(relative_error(weight_of(layer), weight), rel=1e-10)


def test_the_side_says_which_step_has_no_kernel():
    layer = conv_layer((6, 4, 3, 5), (1, 9, 9), strides=(2, 3))
    shapes = [[step.weight_shape for step in m.plan(layer, (2,))] for m in (OUTPUT, INPUT)]
    assert shapes == [[(2, 4, 3, 5), (6, 2, 1, 1)], [(2, 4, 1, 1), (6, 2, 3, 5)]]


def test_the_kernel_keeps_the_whole_geometry():
    layer = LAYERS["transposed strided"]
    first, last = INPUT.plan(layer, (2,))
    assert (first.geometry.transposed, last.geometry) == (False, layer.geometry)


def test_parameters_are_as_in_the_formula():
    layer = conv_layer((16, 8, 3, 3), (1, 9, 9))
    assert [chain_params(m.plan(layer, (5,))) for m in (OUTPUT, INPUT)] == [
        5 * (8 * 9 + 16),
        5 * (8 + 16 * 9),
    ]


@pytest.mark.parametrize(
    ("kind", "method"), [("depthwise", OUTPUT), ("depthwise", INPUT), ("one input channel", INPUT)]
)
def test_a_single_channel_is_refused(kind, method):
    assert "single" in method.refusal(LAYERS[kind])


def test_a_depthwise_layer_with_a_multiplier_shares_kernels():
    assert OUTPUT.refusal(LAYERS["depthwise with a multiplier"]) is None
