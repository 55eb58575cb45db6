"""What every method promises for every layer it does not refuse, as checks that take a method and a layer."""

from functools import cache

import numpy as np

from onnxdecomp.graph.emit import layer_model
from onnxdecomp.layer import Layer
from onnxdecomp.methods.base import Analysis, Chain, Method, Ranks, decompose, recompose, relative_error
from tests.asserts import (
    TOLERANCES,
    Array,
    assert_models_agree,
    assert_never_rises,
    assert_same_bytes,
    assert_written_as_planned,
)
from tests.builders import bias_of, dense_model, input_of, weight_of

SEED = 7

MAX_LOW_RANK = 3
"""Solvers that iterate take long at high ranks."""


def locked_weight(layer: Layer) -> Array:
    """Return a weight that raises when a method writes to it."""
    weight = weight_of(layer)
    weight.flags.writeable = False
    return weight


def new_analysis(method: Method, layer: Layer, max_ranks: Ranks | None = None) -> Analysis:
    """Analyze anew."""
    return method.analyze(layer, locked_weight(layer), np.random.default_rng(SEED), max_ranks)


def low_ranks(method: Method, layer: Layer) -> Ranks:
    """Return small ranks that differ from each other where that is possible."""
    bounds = method.rank_bounds(layer)
    return tuple(max(1, min(MAX_LOW_RANK, bound // (2 + index % 2))) for index, bound in enumerate(bounds))


@cache
def analysis_of(method: Method, layer: Layer) -> Analysis:
    """Return the one analysis that all checks share: some methods take a second for it."""
    return new_analysis(method, layer)


@cache
def chain_of(method: Method, layer: Layer, ranks: Ranks) -> Chain:
    """Return the one chain of these ranks that all checks share."""
    return decompose(method, analysis_of(method, layer), layer, ranks)


def forget() -> None:
    """Forget shared results, after a method was changed."""
    analysis_of.cache_clear()
    chain_of.cache_clear()


def check_full_rank_equals_the_layer(method: Method, layer: Layer) -> None:
    """At the rank bounds the chain gives what the layer gives."""
    _check_output(layer, chain_of(method, layer, method.rank_bounds(layer)), weight_of(layer))


def check_chain_equals_its_recomposed_weight(method: Method, layer: Layer) -> None:
    """At low ranks the chain moves as the layer moves: only the weight is another one."""
    chain = chain_of(method, layer, low_ranks(method, layer))
    _check_output(layer, chain, recompose(chain.specs, chain.weights, layer.group))


def check_planned_is_written(method: Method, layer: Layer) -> None:
    """The planned parameters and multiply-accumulates are those of the emitted nodes."""
    chain = chain_of(method, layer, low_ranks(method, layer))
    assert_written_as_planned(layer, chain.specs, chain.weights)


def check_error_is_kept(method: Method, layer: Layer) -> None:
    """The weight is no farther off than `error` says, with and without a limit on the ranks."""
    ranks = low_ranks(method, layer)
    for analysis in (analysis_of(method, layer), new_analysis(method, layer, max_ranks=ranks)):
        promised = analysis.error(ranks)
        chain = decompose(method, analysis, layer, ranks)
        found = relative_error(weight_of(layer), recompose(chain.specs, chain.weights, layer.group))
        assert 0.0 <= promised <= 1.0
        assert found <= promised + TOLERANCES["error"], f"promised {promised}, found {found}"


def check_full_rank_error_is_zero(method: Method, layer: Layer) -> None:
    """At the rank bounds `error` is 0 and the weight is the layer's."""
    bounds = method.rank_bounds(layer)
    analysis, chain = analysis_of(method, layer), chain_of(method, layer, bounds)
    found = relative_error(weight_of(layer), recompose(chain.specs, chain.weights, layer.group))
    assert analysis.error(bounds) <= TOLERANCES["exact"]
    assert found <= TOLERANCES["exact"], f"off by {found} at full rank"


def check_error_never_rises(method: Method, layer: Layer) -> None:
    """More of any rank is never worse."""
    analysis = analysis_of(method, layer)
    bounds, low = method.rank_bounds(layer), low_ranks(method, layer)
    for index, bound in enumerate(bounds):
        steps = sorted({1, low[index], bound})
        assert_never_rises([analysis.error((*low[:index], r, *low[index + 1 :])) for r in steps])


def check_same_seed_same_bytes(method: Method, layer: Layer) -> None:
    """The same seed gives the same bytes, whatever else the analysis was asked before."""
    ranks = low_ranks(method, layer)
    first = chain_of(method, layer, ranks).weights
    again = new_analysis(method, layer)
    again.error(ranks)
    assert_same_bytes(again.weights(ranks), first)
    assert_same_bytes(again.weights(ranks), first)


CHECKS = (
    check_full_rank_equals_the_layer,
    check_chain_equals_its_recomposed_weight,
    check_planned_is_written,
    check_error_is_kept,
    check_full_rank_error_is_zero,
    check_error_never_rises,
    check_same_seed_same_bytes,
)


def _check_output(layer: Layer, chain: Chain, weight: Array) -> None:
    bias = bias_of(layer)
    actual = layer_model(layer, chain.specs, chain.weights, bias)
    expected = dense_model(layer, weight, bias)
    assert_models_agree(actual, expected, {"x": input_of(layer)}, TOLERANCES["float32 output"])
