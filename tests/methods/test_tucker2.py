"""Tucker-2."""

import numpy as np
import pytest

from onnxdecomp.layer import chain_macs, chain_params
from onnxdecomp.methods import find_methods
from onnxdecomp.methods.base import recompose, relative_error
from tests.builders import LAYERS, conv_layer, weight_of

(TUCKER2,) = find_methods("tucker2")


def test_the_first_rank_is_the_output_side():
    layer = conv_layer((6, 4, 3, 5), (1, 9, 9))
    shapes = [step.weight_shape for step in TUCKER2.plan(layer, (5, 2))]
    assert shapes == [(2, 4, 1, 1), (5, 2, 3, 5), (6, 5, 1, 1)]


def test_parameters_and_work_are_as_in_the_formulas():
    layer = conv_layer((16, 8, 3, 3), (1, 12, 12), strides=(2, 2), pads=(1, 1, 1, 1))
    specs = TUCKER2.plan(layer, (6, 4))
    assert chain_params(specs) == 8 * 4 + 9 * 4 * 6 + 16 * 6
    assert chain_macs(specs, layer.in_shape) == 8 * 4 * 144 + (9 * 4 * 6 + 16 * 6) * 36


@pytest.mark.parametrize("kind", ["plain", "groups", "3-D"])
def test_the_error_is_a_bound_that_the_weights_come_close_to(kind):
    layer = LAYERS[kind]
    analysis = TUCKER2.analyze(layer, weight_of(layer), np.random.default_rng(0))
    ranks = tuple(bound - 1 for bound in TUCKER2.rank_bounds(layer))
    weight = recompose(TUCKER2.plan(layer, ranks), analysis.weights(ranks), layer.group)
    found = relative_error(weight_of(layer), weight)
    assert 0.8 * analysis.error(ranks) <= found <= analysis.error(ranks)


@pytest.mark.parametrize("index", [0, 1])
def test_with_one_side_whole_the_error_is_that_of_an_svd(index):
    layer = LAYERS["plain"]
    bounds = list(TUCKER2.rank_bounds(layer))
    bounds[index] = 3
    analysis = TUCKER2.analyze(layer, weight_of(layer), np.random.default_rng(0))
    spectrum = analysis.spectra[index]
    assert analysis.error(tuple(bounds)) == pytest.approx(
        np.sqrt(spectrum.tail(3) / spectrum.energy), rel=1e-9
    )


def test_a_rank_is_bounded_by_what_the_rest_can_fill():
    assert TUCKER2.rank_bounds(LAYERS["more inputs than the rest can fill"]) == (2, 8)


def test_the_norms_of_the_steps_are_balanced():
    layer = LAYERS["plain"]
    analysis = TUCKER2.analyze(layer, 1e4 * weight_of(layer), np.random.default_rng(0))
    norms = [np.linalg.norm(w) for w in analysis.weights((3, 2))]
    assert max(norms) < 5 * min(norms)
