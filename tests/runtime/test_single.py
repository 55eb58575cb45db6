"""Models that run on one sample at a time, though they leave the axis of samples open."""

import numpy as np
import pytest

from onnxdecomp.errors import ModelError
from onnxdecomp.runtime.evaluate import outputs_over
from onnxdecomp.runtime.samples import LABELS
from onnxdecomp.runtime.single import as_taken
from tests.graph.models import parse

MANY = parse("g (float[N, 6] x) => (float[N, 6] y) { y = Neg(x) }")
SINGLE = parse("""g (float[N, 6] x) => (float[N, 2, 3] y) <int64[3] shape = {1, 2, 3}> {
    y = Reshape(x, shape)
}""")
MERGING = parse(
    """g (float[N, 6] x) => (float[1, M] y) <int64[2] shape = {1, -1}> { y = Reshape(x, shape) }"""
)
FRAMES = parse("g (float[T, 6] x) => (float[2, 12] y) <int64[2] shape = {2, 12}> { y = Reshape(x, shape) }")
SAMPLES = {"x": np.arange(24, dtype=np.float32).reshape(4, 6), LABELS: np.arange(4)}


def test_samples_are_handed_on_as_they_are_where_the_model_takes_two():
    assert as_taken(SAMPLES, MANY)["x"] is SAMPLES["x"]


def test_each_sample_is_a_whole_input_where_the_model_takes_one():
    taken = as_taken(SAMPLES, SINGLE)
    assert taken["x"].shape == (4, 1, 6)
    assert taken[LABELS] is SAMPLES[LABELS]
    outputs = outputs_over(SINGLE, taken)["y"]
    assert np.array_equal(outputs, SAMPLES["x"].reshape(4, 2, 3))
    assert as_taken(taken, SINGLE)["x"].shape == (4, 1, 6)


def test_a_model_that_makes_one_row_of_several_samples_is_given_one_at_a_time():
    taken = as_taken(SAMPLES, MERGING)
    assert taken["x"].shape == (4, 1, 6)
    assert np.array_equal(outputs_over(MERGING, taken)["y"], SAMPLES["x"])


def test_where_axis_0_is_not_one_of_samples_the_error_says_what_to_give():
    with pytest.raises(ModelError, match="Where axis 0 of its inputs is not one of samples, give each"):
        as_taken(SAMPLES, FRAMES)
    whole = {"x": np.zeros((3, 4, 6), np.float32)}
    assert as_taken(whole, FRAMES)["x"] is whole["x"]
