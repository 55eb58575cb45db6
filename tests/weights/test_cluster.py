"""Codebooks: what is stored, what it decodes to, and what it costs."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.errors import UsageError
from onnxdecomp.weights.cluster import Codebook, cluster, curve, input_importance, weight_error
from onnxdecomp.weights.sixteen_bits import KINDS, rounded, stored
from tests.asserts import assert_same_bytes, assert_sentence

CURVE = 1e-5
"""What float32 arithmetic of the decoded weight changes of an error."""

every_kind = pytest.mark.parametrize("kind", KINDS)
OPTIONS = {
    "tensor": {},
    "groups": {"group_channels": 4},
    "scale": {"per_channel_scale": True},
    "groups and scale": {"group_channels": 4, "per_channel_scale": True},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def weight_of(shape=(10, 6, 3, 3), seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    levels = np.geomspace(1, 0.1, shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
    return (levels * rng.laplace(scale=0.05, size=shape)).astype(dtype)


def decoded_by_operators(codebook: Codebook):
    """Return what Gather, Cast and Mul compute from what is stored."""
    held = codebook.stored
    if codebook.kind == "bfloat16":
        held = (held.astype(np.uint32) << np.uint32(16)).view(np.float32)
    table = held.astype(np.float32)
    rows = np.moveaxis(codebook.indices, codebook.axis, 0)
    groups = np.arange(len(rows)) // codebook.group_channels
    weight = table[groups.reshape(-1, *(1,) * (rows.ndim - 1)), rows]
    if codebook.scale is not None:
        weight = weight * codebook.scale.reshape(-1, *(1,) * (rows.ndim - 1))
    return np.moveaxis(weight, 0, codebook.axis)


@every_kind
@every_option
@pytest.mark.parametrize("axis", [0, 1])
def test_a_codebook_decodes_to_what_its_stored_numbers_say(kind, options, axis):
    codebook = cluster(weight_of(), 4, centroids=kind, axis=axis, **options)
    assert codebook.stored.dtype.itemsize == 2
    assert codebook.indices.dtype == np.uint8
    assert_same_bytes([codebook.decode()], [np.ascontiguousarray(decoded_by_operators(codebook))])


@every_kind
@every_option
def test_every_index_names_the_nearest_centroid_that_is_stored(kind, options):
    weight = weight_of()
    codebook = cluster(weight, 3, centroids=kind, **options)
    scale = np.ones(1) if codebook.scale is None else codebook.scale.astype(np.float64)
    groups = np.arange(len(weight)) // codebook.group_channels
    choices = codebook.centroids[groups].astype(np.float64) * scale[:, np.newaxis]  # (O, K)
    distances = np.abs(weight[..., np.newaxis] - choices[:, np.newaxis, np.newaxis, np.newaxis])
    found = np.abs(codebook.decode() - weight)
    np.testing.assert_allclose(found, np.min(distances, axis=-1), atol=1e-6)


@every_kind
@every_option
@pytest.mark.parametrize("weighted", [False, True])
def test_the_curve_tells_error_and_size_of_each_codebook(kind, options, weighted):
    weight = weight_of()
    importance = np.linspace(0, 2, 9).reshape(1, 1, 3, 3) if weighted else None
    points = curve(weight, [1, 3, 8], importance=importance, centroids=kind, **options)
    books = [cluster(weight, p.bits, importance=importance, centroids=kind, **options) for p in points]
    assert [p.size_bytes for p in points] == [book.size_bytes for book in books]
    errors = [weight_error(book, weight, importance) for book in books]
    np.testing.assert_allclose([p.error for p in points], errors, rtol=CURVE, atol=1e-6)


@every_option
def test_the_error_never_rises_with_the_bits(options):
    errors = [p.error for p in curve(weight_of(), range(1, 13), **options)]
    rounding = 2.0**-12  # of a centroid in float16
    assert all(after <= before + rounding for before, after in pairwise(errors))


@pytest.mark.parametrize(
    ("options", "n_centroids", "n_scales"),
    [({}, 8, 0), ({"group_channels": 4}, 24, 0), ({"per_channel_scale": True}, 8, 10)],
)
def test_the_size_is_that_of_packed_indices_centroids_and_scales(options, n_centroids, n_scales):
    codebook = cluster(weight_of((10, 7)), 3, **options)
    assert codebook.size_bytes == 27 + 2 * n_centroids + 4 * n_scales  # 210 bits


def test_groups_lose_less_than_the_whole_and_scales_less_than_none():
    weight = weight_of((32, 4, 3, 3))
    whole, groups, scale = (
        weight_error(cluster(weight, 3, **OPTIONS[name]), weight) for name in ("tensor", "groups", "scale")
    )
    assert groups < whole
    assert scale < whole


def test_importance_lowers_the_error_that_it_weighs():
    weight = weight_of()
    importance = np.geomspace(1, 1e-3, 54).reshape(1, 6, 3, 3)
    plain, weighted = cluster(weight, 3), cluster(weight, 3, importance=importance)
    assert weight_error(weighted, weight, importance) < weight_error(plain, weight, importance)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_importance_of_a_weight_is_the_moment_of_its_input(groups):
    moment = np.random.default_rng(0).random((groups, 12, 12))
    importance = np.broadcast_to(input_importance(moment, (4, 3, 2, 2)), (4, 3, 2, 2))
    assert importance[3, 2, 1, 0] == moment[-1, 10, 10]
    assert importance[0, 1, 0, 1] == moment[0, 5, 5]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@every_kind
def test_few_distinct_weights_have_only_the_error_of_rounding(kind, dtype):
    weight = np.random.default_rng(0).choice(np.array([-0.75, 0.0, 0.5], dtype), (8, 5))
    codebook = cluster(weight, 4, centroids=kind)
    assert codebook.centroids.shape == (1, 3)
    np.testing.assert_allclose(codebook.decode(), weight, atol=0.75 / 32767 / 2)


def test_a_weight_of_one_value_has_one_centroid():
    codebook = cluster(np.zeros((3, 4), np.float32), 8)
    assert codebook.centroids.shape == (1, 1)
    assert not codebook.decode().any()


@pytest.mark.parametrize("factor", [1e6, 1e-6, 1e-30, 1e30])
def test_what_float16_cannot_hold_is_scaled_and_said(factor):
    weight = weight_of(dtype=np.float64)
    expected = weight_error(cluster(weight, 4), weight)
    codebook = cluster((weight * factor).astype(np.float32), 4)
    assert_sentence(codebook.note)
    assert codebook.scale is not None
    assert weight_error(codebook, weight * factor) == pytest.approx(expected, rel=1e-2)


def test_bfloat16_needs_no_scale():
    codebook = cluster(weight_of() * np.float32(1e9), 4, centroids="bfloat16")
    assert codebook.scale is None
    assert codebook.note == ""


@settings(max_examples=50, deadline=None)
@given(
    numbers=st.lists(st.floats(-3.4e38, 3.4e38), min_size=1, max_size=5).map(np.array),
    kind=st.sampled_from(KINDS),
)
def test_what_16_bits_hold_is_near_and_comes_back(numbers, kind):
    found = rounded(numbers, kind)
    again = rounded(found.values.astype(np.float64), kind) if kind == "bfloat16" else found
    step = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "int16": 1 / 32767}[kind]
    largest = max(float(np.max(np.abs(numbers))), 1e-30)
    assert np.all(np.isfinite(found.values))
    assert np.max(np.abs(found.values.astype(np.float64) * found.factor - numbers)) <= step * largest
    assert_same_bytes([stored(again.values, kind)], [stored(found.values, kind)])


def test_bfloat16_rounds_like_the_type_itself():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    numbers = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    expected = numbers.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert_same_bytes([rounded(numbers.astype(np.float64), "bfloat16").values], [expected])


def test_the_same_weight_gives_the_same_bytes():
    first, second = (cluster(weight_of(), 5, group_channels=3) for _ in range(2))
    assert_same_bytes([first.indices, first.centroids], [second.indices, second.centroids])


@pytest.mark.parametrize("bits", [0, 17, -1])
def test_bits_outside_1_to_16_are_refused(bits):
    with pytest.raises(UsageError, match="give 1 to 16"):
        cluster(weight_of(), bits)


def test_a_group_of_no_channels_is_refused():
    with pytest.raises(UsageError, match="give 1 or more"):
        cluster(weight_of(), 4, group_channels=0)


def test_an_unknown_type_of_centroids_is_refused():
    with pytest.raises(UsageError, match="did you mean 'float16'"):
        cluster(weight_of(), 4, centroids="flaot16")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(np.nan, "not a number"), (np.inf, "infinite"), (1e300, "beyond the range of float32")],
)
@every_option
def test_weights_that_cannot_be_stored_are_refused(bad, reason, options):
    weight = weight_of(dtype=np.float64)
    weight[3, 2, 1, 0] = bad
    with pytest.raises(ValueError, match=reason):
        cluster(weight, 4, **options)


@every_option
def test_an_empty_weight_is_refused(options):
    with pytest.raises(ValueError, match="there are none"):
        cluster(np.empty((0, 3), np.float32), 4, **options)
