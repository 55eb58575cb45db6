"""Tensor train."""

import numpy as np
import pytest

from onnxdecomp.layer import chain_params
from onnxdecomp.methods import find_methods
from onnxdecomp.methods.base import decompose, recompose, relative_error
from tests.builders import LAYERS, conv_layer, weight_of

(TT,) = find_methods("tt")
LAYER = conv_layer((8, 6, 3, 4), (1, 9, 9))


def analysis_of(layer, weight=None, max_ranks=None):
    return TT.analyze(
        layer, weight_of(layer) if weight is None else weight, np.random.default_rng(0), max_ranks
    )


def test_ranks_run_from_the_input_to_the_output():
    shapes = [step.weight_shape for step in TT.plan(LAYER, (2, 5, 3))]
    assert shapes == [(2, 6, 1, 1), (5, 2, 3, 1), (3, 5, 1, 4), (8, 3, 1, 1)]
    assert chain_params(TT.plan(LAYER, (2, 5, 3))) == 6 * 2 + 2 * 5 * 3 + 5 * 3 * 4 + 3 * 8


def test_the_middle_rank_is_lowered_to_what_the_others_leave():
    assert [step.weight_shape for step in TT.plan(LAYER, (1, 9, 3))][1] == (3, 1, 3, 1)
    found = decompose(TT, analysis_of(LAYER), LAYER, (1, 9, 3))
    lower = decompose(TT, analysis_of(LAYER), LAYER, (1, 3, 3))
    assert found.specs == lower.specs


@pytest.mark.parametrize("ranks", [(2, 4, 2), (6, 5, 8), (3, 18, 8), (6, 18, 2)])
@pytest.mark.parametrize("sketched", [False, True])
def test_the_error_bounds_the_recomposed_one(ranks, sketched):
    analysis = analysis_of(LAYER, max_ranks=ranks if sketched else None)
    weight = recompose(TT.plan(LAYER, ranks), analysis.weights(ranks), 1)
    assert relative_error(weight_of(LAYER), weight) <= analysis.error(ranks) + 1e-9


def test_with_whole_sides_the_error_is_that_of_the_spatial_svd():
    (spatial,) = find_methods("spatial-svd/vertical-first")
    expected = spatial.analyze(LAYER, weight_of(LAYER), np.random.default_rng(0)).error((5,))
    assert analysis_of(LAYER).error((6, 5, 8)) == pytest.approx(expected, rel=1e-9)


def test_a_weight_that_is_a_train_is_found_exactly():
    ranks = (2, 3, 2)
    rng = np.random.default_rng(0)
    specs = TT.plan(LAYER, ranks)
    weight = recompose(specs, [rng.standard_normal(spec.weight_shape) for spec in specs], 1)
    analysis = analysis_of(LAYER, weight)
    assert analysis.error(ranks) < 1e-12
    assert relative_error(weight, recompose(specs, analysis.weights(ranks), 1)) < 1e-12


@pytest.mark.parametrize("kind", ["1-D", "3-D", "a row", "1x1", "Gemm", "depthwise"])
def test_other_layers_are_refused(kind):
    assert TT.refusal(LAYERS[kind])
