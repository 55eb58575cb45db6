"""Input channels go in the order in which the output misses them least, and the others make up for them."""

import numpy as np
import pytest

from onnxdecomp.layer import Layer
from onnxdecomp.weights.moments import Moments
from onnxdecomp.weights.prune import best_of_channels, removal_order, taps_of, without_channels
from onnxdecomp.weights.refit import Metric, patch_size
from tests.asserts import assert_never_rises
from tests.builders import conv_layer, matrix_layer, weight_of

LAYERS = {
    "3x3": conv_layer((6, 10, 3, 3), (1, 8, 8)),
    "1-D": conv_layer((6, 12, 4), (1, 9)),
    "matrix": matrix_layer("Gemm", 5, 16),
}
MANY = 10**9
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def patches_of(layer: Layer, seed: int = 0) -> np.ndarray:
    """Return correlated, off-centre patches ``(n, D)``."""
    rng, size = np.random.default_rng(seed), patch_size(layer)
    mixing = rng.standard_normal((size, size)) * np.geomspace(1, 0.2, size)
    return rng.standard_normal((20 * size, size)) @ mixing + 0.3


def metric_of(layer: Layer, patches: np.ndarray, *, with_bias: bool = True) -> Metric:
    second = (patches.T @ patches / len(patches))[np.newaxis]
    moments = Moments(MANY, patches.mean(0)[np.newaxis], second)
    return Metric.of(layer, weight_of(layer), moments, with_bias=with_bias)


def least_loss(metric: Metric, kept: np.ndarray) -> float:
    return without_channels(metric, kept)[1]


@every_layer
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_rest_is_the_least_squares_solution(layer, with_bias):
    patches = patches_of(layer)
    kept = np.arange(0, layer.in_channels, 2)
    weight, error = without_channels(metric_of(layer, patches, with_bias=with_bias), kept)
    seen = patches - patches.mean(0) if with_bias else patches
    wanted = seen @ weight_of(layer).reshape(layer.out_channels, -1).T
    solved, *_ = np.linalg.lstsq(seen[:, taps_of(layer, kept)], wanted, rcond=None)
    rest = wanted - seen[:, taps_of(layer, kept)] @ solved
    assert error == pytest.approx(np.linalg.norm(rest) / np.linalg.norm(wanted), rel=1e-3)
    assert weight.shape == (layer.out_channels, len(kept), *layer.kernel)


@every_layer
def test_the_channel_that_is_missed_least_goes_first(layer):
    metric = metric_of(layer, patches_of(layer))
    order = removal_order(metric, layer.in_channels - 1)
    channels = np.arange(layer.in_channels)
    losses = [least_loss(metric, np.delete(channels, channel)) for channel in channels]
    assert losses[order[0]] == pytest.approx(min(losses), rel=0.02)


@every_layer
def test_the_order_loses_less_than_most_others(layer):
    metric = metric_of(layer, patches_of(layer))
    half = layer.in_channels // 2
    gone = removal_order(metric, half)
    channels = np.arange(layer.in_channels)
    rng = np.random.default_rng(0)
    others = [np.sort(rng.permutation(channels)[:half]) for _ in range(50)]
    assert least_loss(metric, np.setdiff1d(channels, gone)) <= np.quantile(
        [least_loss(metric, kept) for kept in others], 0.05
    )


@every_layer
def test_more_channels_never_lose_more(layer):
    metric = metric_of(layer, patches_of(layer))
    gone, channels = removal_order(metric, 1), np.arange(layer.in_channels)
    numbers = range(1, layer.in_channels)
    assert_never_rises(
        [least_loss(metric, np.setdiff1d(channels, gone[: len(channels) - n])) for n in numbers]
    )


@every_layer
def test_a_channel_that_follows_from_others_is_not_missed(layer):
    patches = patches_of(layer)
    taps = [taps_of(layer, np.array([channel])) for channel in (0, 1, 2)]
    patches[:, taps[2]] = 0.5 * patches[:, taps[0]] - patches[:, taps[1]]
    metric = metric_of(layer, patches)
    (first,) = removal_order(metric, layer.in_channels - 1)
    assert first in (0, 1, 2)
    assert least_loss(metric, np.delete(np.arange(layer.in_channels), first)) < 1e-2


def test_of_many_channels_several_go_at_once_and_no_one_twice():
    layer = matrix_layer("Gemm", 4, 256)
    order = removal_order(metric_of(layer, patches_of(layer)), 32)
    assert len(set(order)) == len(order) == 224


@every_layer
def test_the_weight_itself_is_a_sum_of_channels_like_any_other(layer):
    metric = metric_of(layer, patches_of(layer))
    kept = np.arange(1, layer.in_channels, 2)
    weight, _ = without_channels(metric, kept)
    (rows,) = best_of_channels(metric, metric.weight, kept)
    assert rows == pytest.approx(weight.reshape(rows.shape), rel=1e-6, abs=1e-9)
