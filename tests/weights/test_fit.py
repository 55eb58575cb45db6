"""Factorizations fitted to data: whitening and the refitted last step, over every layer and method."""

from functools import cache

import numpy as np
import pytest

from onnxdecomp.layer import Layer
from onnxdecomp.methods import find_methods, registered
from onnxdecomp.methods.base import Chain, Method, decompose, recompose, relative_error
from onnxdecomp.weights.fit import FITS, MAX_ROOT, WEIGHTS, distinct_fits
from onnxdecomp.weights.moments import Moments
from onnxdecomp.weights.refit import Metric, patch_size, refitted
from onnxdecomp.weights.whiten import WhitenedAnalysis, first_axes, root_of
from tests.builders import LAYERS, MATRICES, Array, conv_layer, matrix_layer, weight_of
from tests.contract import low_ranks

EXACT = 1e-6
"""What rounding leaves of an error that is zero."""

ROUNDING = 1e-5
"""What a difference of large energies leaves of a small error."""

RIDGE_SLACK = 1e-3
"""Relative loss that the small penalty of a least-squares solution may cost."""

MANY = 10**9
"""Patches enough to believe a moment as it is."""

CASES = [
    pytest.param(method, layer, id=f"{method.full_name}-{name}")
    for name, layer in LAYERS.items()
    for method in registered()
    if method.automatic and method.refusal(layer) is None
]
every_case = pytest.mark.parametrize(("method", "layer"), CASES)


@cache
def moments_of(layer: Layer, seed: int = 0) -> Moments:
    """Return moments of skewed, correlated, off-centre patches."""
    rng = np.random.default_rng(seed)
    size, n = patch_size(layer), 40 * patch_size(layer)
    mixing = rng.standard_normal((layer.group, size, size)) * np.geomspace(1, 0.05, size)
    patches = np.maximum(rng.standard_normal((layer.group, n, size)) @ mixing + 0.3, 0)  # (G, n, D)
    second = patches.swapaxes(1, 2) @ patches / n
    return Moments(n, patches.mean(1), (second + second.swapaxes(1, 2)) / 2)


@cache
def metric_of(layer: Layer) -> Metric:
    return Metric.of(layer, weight_of(layer), moments_of(layer), with_bias=True)


@cache
def chain_of(method: Method, layer: Layer) -> Chain:
    rng = np.random.default_rng(0)
    ranks = low_ranks(method, layer)
    return decompose(method, method.analyze(layer, weight_of(layer), rng), layer, ranks)


@cache
def whitened_chain(method: Method, layer: Layer, ranks: tuple[int, ...], share: float) -> Chain:
    axes = first_axes(layer, method.plan(layer, ranks)[0])
    root = root_of(layer, metric_of(layer).moment, axes, share)
    analysis = WhitenedAnalysis(method, layer, weight_of(layer), root, np.random.default_rng(0))
    return decompose(method, analysis, layer, ranks)


def whole(chain: Chain) -> Array:
    return recompose(chain.specs, chain.weights, chain.layer.group)


@every_case
def test_a_refitted_last_step_is_never_worse_on_the_data(method, layer):
    metric, chain = metric_of(layer), chain_of(method, layer)
    before, after = metric.error(whole(chain)), metric.error(whole(refitted(chain, metric)[0]))
    assert after <= before * (1 + RIDGE_SLACK) + EXACT


@every_case
def test_nothing_near_the_refitted_last_step_is_better(method, layer):
    metric = metric_of(layer)
    chain, best = refitted(chain_of(method, layer), metric)
    assert metric.error(whole(chain)) == pytest.approx(best, abs=ROUNDING)
    rng = np.random.default_rng(1)
    shaken = chain.weights[-1] + 0.1 * np.std(chain.weights[-1]) * rng.standard_normal(
        chain.weights[-1].shape
    )
    changed = recompose(chain.specs, [*chain.weights[:-1], shaken], layer.group)
    assert metric.error(changed) >= best * (1 - RIDGE_SLACK) - EXACT


@pytest.mark.parametrize(("method", "layer"), [case for case in CASES if case.values[0].nested])
def test_whitening_at_full_rank_changes_nothing(method, layer):
    chain = whitened_chain(method, layer, method.rank_bounds(layer), 0.0)
    assert relative_error(weight_of(layer), whole(chain)) < EXACT


def error_of_any(layer: Layer, rank: int) -> float:
    """Return the least error on the data of any weight of this rank, by a plain whitened SVD."""
    metric = metric_of(layer)
    values, vectors = np.linalg.eigh(metric.moment)
    root = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]  # (G, D, D)
    tails = [np.linalg.svd(w @ r, compute_uv=False)[rank:] for w, r in zip(metric.weight, root, strict=True)]
    return float(np.sqrt(np.sum(np.square(tails)) / metric.energy))


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (MATRICES["Gemm"], "svd/2-steps"),
        (MATRICES["MatMul with the weight on the left"], "svd/2-steps"),
        (conv_layer((6, 5, 1, 1), (2, 4, 5)), "svd/2-steps"),
        (conv_layer((6, 4, 3, 3), (2, 7, 8)), "channel-svd/output"),
    ],
    ids=["Gemm", "MatMul", "1x1", "3x3"],
)
def test_whitening_finds_the_best_of_its_rank_where_the_first_step_sees_everything(layer, name, rank):
    (method,) = find_methods(name)
    chain = whitened_chain(method, layer, (rank,), 0.0)
    assert metric_of(layer).error(whole(chain)) == pytest.approx(error_of_any(layer, rank), rel=RIDGE_SLACK)


def test_full_shrinkage_is_the_factorization_of_the_weight_alone():
    layer = LAYERS["plain"]
    (method,) = find_methods("spatial-svd/vertical-first")
    chain = whitened_chain(method, layer, (3,), 1.0)
    np.testing.assert_allclose(whole(chain), whole(decompose_plain(method, layer, (3,))), atol=EXACT)


def decompose_plain(method: Method, layer: Layer, ranks: tuple[int, ...]) -> Chain:
    return decompose(method, method.analyze(layer, weight_of(layer), np.random.default_rng(0)), layer, ranks)


@pytest.mark.parametrize("name", ["plain", "groups", "1-D", "Gemm", "depthwise", "transposed strided"])
def test_the_error_is_that_of_the_outputs_and_the_bias_takes_up_the_mean(name):
    layer = LAYERS[name]
    rng = np.random.default_rng(3)
    patches = rng.standard_normal((layer.group, 200, patch_size(layer))) + 0.5  # (G, n, D)
    moments = Moments(MANY, patches.mean(1), patches.swapaxes(1, 2) @ patches / 200)
    weight = weight_of(layer)
    other = weight + 0.1 * rng.standard_normal(weight.shape)
    metric = Metric.of(layer, weight, moments, with_bias=True)
    blocks = (w.reshape(layer.group, -1, patch_size(layer)) for w in (weight, other))
    ours, theirs = (patches @ block.swapaxes(1, 2) for block in blocks)  # (G, n, O/G)
    shift = metric.bias_shift(other).reshape(layer.group, 1, -1)
    lost = np.linalg.norm(ours - (theirs + shift))
    assert metric.error(other) == pytest.approx(lost / np.linalg.norm(ours - ours.mean(1, keepdims=True)))
    np.testing.assert_allclose((theirs + shift).mean(1), ours.mean(1))


def test_without_a_bias_the_mean_counts():
    layer = MATRICES["MatMul"]
    metric = Metric.of(layer, weight_of(layer), moments_of(layer), with_bias=False)
    assert not metric.bias_shift(weight_of(layer) * 0).any()
    assert metric.error(weight_of(layer) * 0) == pytest.approx(1.0)


def test_a_layer_that_never_sees_anything_has_no_error():
    layer = MATRICES["Gemm"]
    empty = Moments(5, np.zeros((1, 9)), np.zeros((1, 9, 9)))
    metric = Metric.of(layer, weight_of(layer), empty, with_bias=True)
    chain, _ = refitted(decompose_plain(*find_methods("svd/2-steps"), layer, (2,)), metric)
    assert metric.error(whole(chain)) == 0.0
    assert all(np.isfinite(w).all() for w in chain.weights)


def test_values_that_are_all_the_same_have_no_covariance():
    rng = np.random.default_rng(2)
    patches = np.stack([1e6 + 1e-3 * rng.random(50), np.full(50, 0.1), rng.random(50), np.zeros(50)], axis=1)
    moments = Moments(50, patches.mean(0)[np.newaxis], (patches.T @ patches / 50)[np.newaxis])
    only = np.zeros((4, 4))
    only[2, 2] = patches[:, 2].var()
    np.testing.assert_allclose(moments.covariance[0], only, rtol=1e-9)


def test_a_group_whose_values_round_to_zero_is_not_whitened():
    layer = conv_layer((3, 1, 2, 2), (3, 5, 5), group=3)
    moment = np.stack([2.0 * np.eye(4), 1e-97 * (np.ones((4, 4)) - np.eye(4) / 2), np.zeros((4, 4))])
    root = root_of(layer, moment, (0, 1), 0.3)
    assert np.array_equal(root.root[1], root.root[2])
    np.testing.assert_allclose(root.root[0], np.eye(4))
    np.testing.assert_allclose(root.root @ root.inverse, np.broadcast_to(np.eye(4), (3, 4, 4)), atol=1e-12)


def test_a_step_fitted_to_few_patches_holds_on_others():
    layer = conv_layer((16, 8, 4, 4), (1, 4, 4))
    rng = np.random.default_rng(6)
    mixing = rng.standard_normal((128, 128)) * np.geomspace(1, 0.02, 128)
    few, many = (rng.standard_normal((n, 128)) @ mixing for n in (60, 20_000))  # (n, D)
    (method,) = find_methods("channel-svd/input")
    chain = decompose_plain(method, layer, (4,))
    metrics = [
        Metric.of(
            layer, weight_of(layer), Moments(n, x.mean(0)[None], (x.T @ x / len(x))[None]), with_bias=True
        )
        for n, x in ((60, few), (MANY, few), (MANY, many))
    ]
    careful, blind = (metrics[2].error(whole(refitted(chain, metric)[0])) for metric in metrics[:2])
    assert careful < blind
    assert careful < metrics[2].error(whole(chain))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (conv_layer((10, MAX_ROOT, 3), (1, 5)), ["weights", "shrunk", "whitened", "joint"]),
        (conv_layer((10, MAX_ROOT + 1, 3), (1, 5)), ["weights", "joint"]),
        (conv_layer((10, MAX_ROOT, 1), (1, 5)), ["weights", "shrunk", "whitened"]),
        (conv_layer((10, MAX_ROOT + 1, 1), (1, 5)), ["weights"]),
        (matrix_layer("Gemm", 10, MAX_ROOT), ["weights", "shrunk", "whitened"]),
        (matrix_layer("Gemm", 10, MAX_ROOT + 1), ["weights", "shrunk", "whitened"]),
    ],
)
def test_a_layer_has_no_fit_twice(layer, expected):
    assert [fit.name for fit in distinct_fits(FITS, layer)] == expected


def test_without_a_refit_the_fits_of_a_wide_layer_are_one():
    layer = conv_layer((10, MAX_ROOT + 1, 3), (1, 5))
    without = [fit.without(["refit"]) for fit in FITS[:3]]
    assert distinct_fits(without, layer) == [WEIGHTS.without(["refit"])]
