"""Codebooks refitted to data."""

import numpy as np
import pytest

from onnxdecomp.weights.centroids import output_error, refit_codebook
from onnxdecomp.weights.cluster import cluster, input_importance
from onnxdecomp.weights.moments import Moments
from onnxdecomp.weights.refit import Metric
from onnxdecomp.weights.sixteen_bits import KINDS
from tests.asserts import assert_same_bytes
from tests.builders import conv_layer

SHAPE = (12, 6, 3, 3)
ROUNDING = 1e-3
"""What 16 bits of a centroid change of an error."""

OPTIONS = {
    "tensor": {},
    "groups": {"group_channels": 5},
    "scale": {"per_channel_scale": True},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
every_kind = pytest.mark.parametrize("kind", KINDS)


def weight_of(seed=0):
    rng = np.random.default_rng(seed)
    return (np.geomspace(1, 0.2, SHAPE[0])[:, None, None, None] * rng.laplace(size=SHAPE)).astype(np.float32)


def moment_of(groups=1, seed=0):
    """Return the moment ``(G, D, D)`` of skewed, correlated patches."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(SHAPE[1:]))
    mixing = rng.standard_normal((groups, size, size)) * np.geomspace(1, 0.05, size)
    patches = np.maximum(rng.standard_normal((groups, 30 * size, size)) @ mixing + 0.3, 0)
    return patches.swapaxes(1, 2) @ patches / (30 * size)


def dense_optimum(codebook, weight, moment):
    """Return the best centroids of one codebook for its indices, by the normal equations written out."""
    n_centroids, per_group = codebook.centroids.shape[1], len(weight) // len(moment)
    scale = np.broadcast_to(1.0 if codebook.scale is None else codebook.scale, len(weight))
    normal, wanted = np.zeros((n_centroids, n_centroids)), np.zeros(n_centroids)
    for channel, labels in enumerate(codebook.indices.reshape(len(weight), -1)):
        chosen = scale[channel] * np.eye(n_centroids)[labels]  # (D, K)
        own = moment[channel // per_group]
        normal += chosen.T @ own @ chosen
        wanted += chosen.T @ own @ weight[channel].reshape(-1).astype(np.float64)
    return np.linalg.solve(normal, wanted)


@every_kind
@every_option
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kept", ["", "keep_indices", "keep_centroids"])
def test_a_refitted_codebook_is_better_on_the_data_and_of_the_same_size(kind, options, groups, kept):
    weight, moment = weight_of(), moment_of(groups)
    before = cluster(weight, 2, centroids=kind, **options)
    after = refit_codebook(before, weight, moment, **dict.fromkeys(kept.split(), True))
    assert output_error(after.decode(), weight, moment) < output_error(before.decode(), weight, moment)
    assert after.size_bytes == before.size_bytes
    assert after.indices.dtype == before.indices.dtype


@pytest.mark.parametrize("bits", [1, 3, 5])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("scaled", [False, True])
def test_refitted_centroids_solve_the_normal_equations(bits, groups, scaled):
    weight, moment = weight_of(), moment_of(groups)
    before = cluster(weight, bits, per_channel_scale=scaled)
    after = refit_codebook(before, weight, moment, keep_indices=True)
    scale = 1.0 if before.scale is None else before.scale[:, None, None, None]
    best = dense_optimum(before, weight, moment)[before.indices] * scale
    least = output_error(best, weight, moment)
    assert output_error(after.decode(), weight, moment) == pytest.approx(least, rel=ROUNDING)


@every_option
def test_better_indices_lower_the_error_further(options):
    weight, moment = weight_of(), moment_of()
    codebook = cluster(weight, 3, **options)
    kept, moved = (refit_codebook(codebook, weight, moment, keep_indices=keep) for keep in (True, False))
    assert output_error(moved.decode(), weight, moment) < output_error(kept.decode(), weight, moment)


@pytest.mark.parametrize("seed", range(4))
def test_weighted_and_refitted_is_never_worse_on_the_data_than_plain(seed):
    weight, moment = weight_of(seed), moment_of(seed=seed)
    plain = cluster(weight, 3)
    weighted = cluster(weight, 3, importance=input_importance(moment, weight.shape))
    refitted = refit_codebook(weighted, weight, moment)
    assert output_error(refitted.decode(), weight, moment) <= output_error(plain.decode(), weight, moment)


def test_white_data_leave_the_centroids_of_plain_clustering():
    weight = weight_of()
    plain = cluster(weight, 4)
    refitted = refit_codebook(plain, weight, np.eye(54)[np.newaxis])
    found, least = (output_error(book.decode(), weight, np.eye(54)[np.newaxis]) for book in (refitted, plain))
    assert found == pytest.approx(least, rel=ROUNDING)


def test_the_error_is_that_of_the_metric_of_a_layer():
    layer = conv_layer((8, 4, 3, 3), (1, 9, 9))
    weight = np.random.default_rng(0).standard_normal(layer.weight_shape)
    size = int(np.prod(layer.weight_shape[1:]))
    moments = Moments(10**9, np.zeros((1, size)), np.eye(size)[np.newaxis] + 0.5)
    metric = Metric.of(layer, weight, moments, with_bias=False)
    decoded = cluster(weight, 3).decode()
    assert output_error(decoded, weight, metric.moment) == pytest.approx(metric.error(decoded), rel=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_weight_of_one_value_stays(value):
    weight = np.full(SHAPE, value, np.float32)
    found = refit_codebook(cluster(weight, 4), weight, moment_of())
    np.testing.assert_array_equal(found.decode(), weight)


def test_inputs_that_are_always_zero_change_nothing():
    weight = weight_of()
    codebook = cluster(weight, 4)
    found = refit_codebook(codebook, weight, np.zeros((1, 54, 54)))
    assert_same_bytes([found.decode()], [codebook.decode()])


@pytest.mark.parametrize("unit", [1e25, 1e-25])
def test_the_unit_of_the_data_does_not_matter(unit):
    weight, moment = weight_of(), moment_of()
    codebook = cluster(weight, 3)
    plain, other = (refit_codebook(codebook, weight, moment * scale**2) for scale in (1.0, unit))
    errors = [output_error(found.decode(), weight, moment) for found in (codebook, plain, other)]
    assert errors[1] == pytest.approx(errors[2], rel=ROUNDING)
    assert errors[1] < 0.95 * errors[0]


def test_the_same_input_gives_the_same_bytes():
    weight, moment = weight_of(), moment_of()
    first, second = (refit_codebook(cluster(weight, 3), weight, moment) for _ in range(2))
    assert_same_bytes([first.indices, first.centroids], [second.indices, second.centroids])
