"""Channel and spatial SVD, one after the other."""

import numpy as np
import pytest

from onnxdecomp.layer import chain_params
from onnxdecomp.methods import find_methods
from onnxdecomp.methods.base import decompose, recompose, relative_error
from tests.builders import LAYERS, conv_layer, weight_of

FORMS = {method.variant: method for method in find_methods("channel-spatial-svd")}
INPUT, OUTPUT = FORMS["input-vertical-first"], FORMS["output-horizontal-first"]
LAYER = conv_layer((8, 6, 3, 4), (1, 9, 9))
GROUPED = conv_layer((8, 3, 3, 4), (1, 9, 9), group=2)


def analysis_of(method, layer, weight=None):
    return method.analyze(layer, weight_of(layer) if weight is None else weight, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("variant", "shapes"),
    [
        ("input-vertical-first", [(2, 6, 1, 1), (5, 2, 3, 1), (8, 5, 1, 4)]),
        ("input-horizontal-first", [(2, 6, 1, 1), (5, 2, 1, 4), (8, 5, 3, 1)]),
        ("output-vertical-first", [(5, 6, 3, 1), (2, 5, 1, 4), (8, 2, 1, 1)]),
        ("output-horizontal-first", [(5, 6, 1, 4), (2, 5, 3, 1), (8, 2, 1, 1)]),
    ],
)
def test_one_side_of_the_channels_and_then_both_axes(variant, shapes):
    assert [step.weight_shape for step in FORMS[variant].plan(LAYER, (2, 5))] == shapes


def test_the_rank_between_the_axes_is_lowered_to_what_the_core_has():
    assert FORMS["input-vertical-first"].plan(LAYER, (1, 9)) == INPUT.plan(LAYER, (1, 3))
    analysis = analysis_of(INPUT, LAYER)
    assert analysis.error((1, 9)) == analysis.error((1, 3))
    assert decompose(INPUT, analysis, LAYER, (1, 9)).specs[1].weight_shape == (3, 1, 3, 1)


@pytest.mark.parametrize("variant", FORMS)
@pytest.mark.parametrize("layer", [LAYER, GROUPED], ids=["whole", "groups"])
@pytest.mark.parametrize("ranks", [(1, 2), (2, 4), (3, 9)])
def test_the_error_bounds_the_recomposed_one(variant, layer, ranks):
    method = FORMS[variant]
    analysis = analysis_of(method, layer)
    weight = recompose(method.plan(layer, ranks), analysis.weights(ranks), layer.group)
    assert relative_error(weight_of(layer), weight) <= analysis.error(ranks) + 1e-9


@pytest.mark.parametrize("variant", FORMS)
@pytest.mark.parametrize("layer", [LAYER, GROUPED], ids=["whole", "groups"])
def test_with_whole_channels_it_is_the_spatial_svd(variant, layer):
    method = FORMS[variant]
    (spatial,) = find_methods(f"spatial-svd/{method.spatial.variant}")
    whole = method.rank_bounds(layer)[0]
    weight = recompose(
        method.plan(layer, (whole, 4)), analysis_of(method, layer).weights((whole, 4)), layer.group
    )
    expected = recompose(spatial.plan(layer, (4,)), analysis_of(spatial, layer).weights((4,)), layer.group)
    np.testing.assert_allclose(weight, expected, atol=1e-10)


@pytest.mark.parametrize("variant", FORMS)
def test_a_weight_of_this_form_is_found_exactly(variant):
    method, ranks = FORMS[variant], (2, 3)
    rng = np.random.default_rng(0)
    specs = method.plan(LAYER, ranks)
    weight = recompose(specs, [rng.standard_normal(spec.weight_shape) for spec in specs], 1)
    analysis = analysis_of(method, LAYER, weight)
    assert analysis.error(ranks) < 1e-7
    assert relative_error(weight, recompose(specs, analysis.weights(ranks), 1)) < 1e-12


@pytest.mark.parametrize("variant", FORMS)
def test_channels_of_no_weight_stay_zero(variant):
    weight = weight_of(LAYER).copy()
    weight[2:] = 0
    weight[:, 3:] = 0
    method = FORMS[variant]
    ranks = method.rank_bounds(LAYER)
    made = recompose(method.plan(LAYER, ranks), analysis_of(method, LAYER, weight).weights(ranks), 1)
    np.testing.assert_allclose(made, weight, atol=1e-12)


def test_a_wide_layer_needs_fewer_weights_than_a_spatial_svd_of_the_same_rank():
    layer = conv_layer((64, 64, 3, 3), (1, 8, 8))
    (spatial,) = find_methods("spatial-svd/vertical-first")
    assert chain_params(INPUT.plan(layer, (16, 16))) == 64 * 16 + 16 * 16 * 3 + 16 * 64 * 3
    assert chain_params(spatial.plan(layer, (16,))) == 2 * 64 * 16 * 3


@pytest.mark.parametrize("kind", ["1-D", "a row", "1x1", "Gemm", "depthwise"])
def test_other_layers_are_refused(kind):
    assert INPUT.refusal(LAYERS[kind])
    assert OUTPUT.refusal(LAYERS[kind])
