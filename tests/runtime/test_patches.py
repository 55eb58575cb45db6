"""A patch times the weight is the output: this proves the order of its values and each rule of geometry."""

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.layer import Layer
from onnxdecomp.runtime.patches import PatchSums, PlaceSampler, Reader
from tests.builders import LAYERS, bias_of, conv_layer, dense_model, input_of, weight_of
from tests.graph.models import normal, run

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""Outputs of order one, summed in float32 in another order."""


def outputs_by_patches(layer: Layer, data: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the outputs ``(n, O)`` at some places: as weight times patch, and as onnxruntime has them."""
    weight, bias = weight_of(layer), bias_of(layer)
    (expected,) = run(dense_model(layer, weight, bias), {"x": data})
    reader = Reader(layer.spec, columns=layer.weight_on_left)
    places = np.unravel_index(numbers, reader.shape(data))
    patches = reader.patches(data, places)  # (n, G, D)
    blocks = weight.reshape(layer.group, layer.out_channels // layer.group, -1)  # (G, O/G, D)
    made = np.einsum("ngd,god->ngo", patches, blocks).reshape(len(numbers), -1)
    return made + (0.0 if bias is None else bias), reader.outputs(expected, places)


def all_numbers(layer: Layer, data: np.ndarray) -> np.ndarray:
    return np.arange(prod(Reader(layer.spec, columns=layer.weight_on_left).shape(data)))


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_weight_times_patch_is_the_output(layer):
    data = input_of(layer)
    made, expected = outputs_by_patches(layer, data, all_numbers(layer, data))
    np.testing.assert_allclose(made, expected, **CLOSE)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_there_are_as_many_places_as_outputs(layer):
    data = input_of(layer)
    (output,) = run(dense_model(layer, weight_of(layer)), {"x": data})
    assert len(all_numbers(layer, data)) * layer.out_channels == output.size


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_some_places_are_read_as_all_are(layer):
    data = input_of(layer)
    reader = Reader(layer.spec, columns=layer.weight_on_left)
    numbers = all_numbers(layer, data)
    everything = reader.patches(data, np.unravel_index(numbers, reader.shape(data)))
    some = reader.patches(data, np.unravel_index(numbers[1::3], reader.shape(data)))
    np.testing.assert_array_equal(some, everything[1::3])


@st.composite
def convolutions(draw) -> Layer:
    n_axes = draw(st.integers(1, 3))

    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=n_axes, max_size=n_axes)))

    kernel, strides, dilations = per_axis(1, 4), per_axis(1, 3), per_axis(1, 2)
    auto_pad = draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER"]))
    same = auto_pad != "NOTSET"
    if same:
        dilations = (1,) * n_axes  # onnxruntime does not run SAME with dilations

    group, multiplier, inputs = (draw(st.integers(1, 3)) for _ in range(3))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    in_shape = tuple(s + extra for s, extra in zip(spans, per_axis(0, 4), strict=True))
    return conv_layer(
        (group * multiplier, inputs, *kernel),
        (draw(st.integers(1, 2)), *in_shape),
        group=group,
        strides=strides,
        dilations=dilations,
        pads=() if same else per_axis(0, 2) + per_axis(0, 2),
        auto_pad=auto_pad,
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(convolutions())
def test_weight_times_patch_is_the_output_of_any_convolution(layer):
    data = input_of(layer)
    made, expected = outputs_by_patches(layer, data, all_numbers(layer, data))
    np.testing.assert_allclose(made, expected, **CLOSE)


@pytest.mark.parametrize(
    ("dtype", "kept"), [(np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64)]
)
def test_patches_are_in_single_precision_unless_the_data_is_in_double(dtype, kept):
    layer = LAYERS["plain"]
    data = input_of(layer).astype(dtype)
    places = np.unravel_index(np.arange(3), Reader(layer.spec).shape(data))
    assert Reader(layer.spec).patches(data, places).dtype == kept


@pytest.mark.parametrize("columns", [False, True])
def test_leading_axes_are_rows(columns):
    data = normal(2, 3, 4, 5)
    reader = Reader(LAYERS["MatMul"].spec, columns=columns)
    shape = reader.shape(data)
    patches = reader.patches(data, np.unravel_index(np.arange(prod(shape)), shape))
    expected = data.swapaxes(-1, -2) if columns else data
    np.testing.assert_array_equal(patches[:, 0], expected.reshape(-1, expected.shape[-1]))


@pytest.mark.parametrize("columns", [False, True])
def test_a_vector_is_one_row(columns):
    data = normal(6)
    reader = Reader(LAYERS["MatMul"].spec, columns=columns)
    patches = reader.patches(data, np.unravel_index(np.arange(1), reader.shape(data)))
    np.testing.assert_array_equal(patches, data[np.newaxis, np.newaxis])


def drawn(sampler: PlaceSampler, shape: tuple[int, ...], n_samples: int) -> np.ndarray:
    """Return the places ``(n, axes)`` that are drawn."""
    return np.concatenate([np.stack(places, axis=1) for places in sampler.draw(shape, n_samples)])


def test_few_places_are_all_drawn():
    expected = np.stack(np.unravel_index(np.arange(30), (5, 3, 2)), axis=1)
    np.testing.assert_array_equal(drawn(PlaceSampler(0, "y", 60, 10), (5, 3, 2), 5), expected)


def test_about_the_wanted_number_is_drawn_without_doubles():
    sampler = PlaceSampler(0, "y", 100, 8)
    places = np.concatenate([drawn(sampler, (4, 30, 20), 4) for _ in range(2)])
    assert 96 <= len(places) <= 104
    assert len(np.unique(places[:48], axis=0)) == 48
    assert places.max(axis=0)[1:].tolist() >= [28, 18]


def test_every_sample_has_its_share():
    places = drawn(PlaceSampler(0, "y", 80, 8), (8, 30, 20), 8)
    assert np.bincount(places[:, 0]).tolist() == [10] * 8


def test_of_samples_with_one_place_some_are_drawn():
    places = drawn(PlaceSampler(0, "y", 100, 1000), (1000,), 1000)
    assert 70 < len(places) < 130


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_batches_do_not_change_what_is_drawn(batch):
    sampler = PlaceSampler(0, "y", 100, 12)
    starts = range(0, 12, batch)
    parts = [drawn(sampler, (batch, 30, 20), batch) + np.array([start, 0, 0]) for start in starts]
    np.testing.assert_array_equal(
        np.concatenate(parts), drawn(PlaceSampler(0, "y", 100, 12), (12, 30, 20), 12)
    )


def test_windows_of_a_sample_are_its_places():
    places = drawn(PlaceSampler(0, "y", 60, 2), (8, 100), 2)
    assert len(places) == 60
    assert (places[:, 0] < 4).sum() == 30


def test_a_first_axis_that_is_not_the_batch_is_drawn_from_as_a_whole():
    assert len(drawn(PlaceSampler(0, "y", 60, 4), (7, 100), 4)) == 60


def test_places_come_in_chunks():
    chunks = [len(places[0]) for places in PlaceSampler(0, "y", 10**6, 1).draw((1, 5000), 1)]
    assert chunks == [2048, 2048, 904]


@pytest.mark.parametrize(("seed", "key", "same"), [(1, "y", True), (2, "y", False), (1, "z", False)])
def test_what_is_drawn_depends_on_seed_and_layer(seed, key, same):
    expected = drawn(PlaceSampler(1, "y", 10, 1), (1, 1000), 1)
    actual = drawn(PlaceSampler(seed, key, 10, 1), (1, 1000), 1)
    assert np.array_equal(actual, expected) == same


def test_sums_become_means():
    z, y = normal(700, 2, 3).astype(np.float64), normal(700, 4).astype(np.float64)
    sums = PatchSums(2, 3, 4)
    for start in (0, 300, 600):
        sums.add(z[start : start + 300], y[start : start + 300])
    pair = sums.pair_moments()
    assert pair is not None
    assert pair.n_patches == 700
    np.testing.assert_allclose(pair.mean_z, z.mean(axis=0))
    np.testing.assert_allclose(pair.second_zz, np.einsum("ngi,ngj->gij", z, z) / 700)
    np.testing.assert_allclose(pair.mean_y, y.mean(axis=0))
    np.testing.assert_allclose(pair.energy_y, np.square(y).mean(axis=0))
    np.testing.assert_allclose(pair.cross_yz[:2], y[:, :2].T @ z[:, 0] / 700)
    np.testing.assert_allclose(pair.cross_yz[2:], y[:, 2:].T @ z[:, 1] / 700)


def test_second_moments_are_symmetric_in_every_bit():
    sums = PatchSums(3, 40)
    sums.add(normal(900, 3, 40))
    second = sums.moments().second
    np.testing.assert_array_equal(second, second.swapaxes(1, 2))


def test_sums_are_taken_in_double_precision():
    sums = PatchSums(1, 1)
    for _ in range(40):
        sums.add(np.full((1000, 1, 1), 1.0 + 2**-20, np.float32))
    assert sums.moments().mean[0, 0] == pytest.approx(1.0 + 2**-20, abs=1e-12)


@pytest.mark.parametrize("held_means", [1, 2, 64])
def test_what_hardly_varies_keeps_its_covariance(monkeypatch, held_means):
    monkeypatch.setattr("onnxdecomp.runtime.patches.HELD_MEANS", held_means)
    z = normal(3000, 1, 6) @ normal(6, 6) + 1000.0 * (1.0 + np.arange(6, dtype=np.float32))
    sums = PatchSums(1, 6)
    for start in range(0, 3000, 100):
        sums.add(z[start : start + 100])
    expected = np.cov(z[:, 0], rowvar=False, bias=True, dtype=np.float64)
    np.testing.assert_allclose(sums.moments().covariance[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_no_moments_of_values_that_are_not_finite(value):
    sums = PatchSums(1, 2)
    sums.add(np.array([[[value, -1]], [[1, 1]], [[-value, 1]]], np.float32))
    assert sums.moments() is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_pair_moments_of_outputs_that_are_not_finite(value):
    sums = PatchSums(1, 2, 1)
    sums.add(normal(3, 1, 2), np.full((3, 1), value, np.float32))
    assert sums.pair_moments() is None


def test_no_moments_of_nothing():
    assert PatchSums(1, 2).moments() is None
