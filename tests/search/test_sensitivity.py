import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdecomp.search.sensitivity import Curve

numbers = st.floats(1e-4, 1.0)


@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5, unique_by=lambda p: p[0]), numbers, numbers
)
def test_more_error_never_means_less_divergence(points, a, b):
    errors, divergences = zip(*points, strict=True)
    curve = Curve(errors, divergences)
    low, high = sorted((a, b))
    assert curve(low) <= curve(high) * (1 + 1e-9)


def test_the_curve_goes_through_what_was_measured():
    curve = Curve([0.1, 0.4, 0.2], [0.01, 0.5, 0.03])
    assert [curve(e) for e in (0.1, 0.2, 0.4)] == pytest.approx([0.01, 0.03, 0.5])


def test_beyond_what_was_measured_the_divergence_grows_with_the_square():
    curve = Curve([0.1, 0.2], [0.01, 0.03])
    assert curve(0.05) == pytest.approx(0.01 / 4)
    assert curve(0.4) == pytest.approx(0.03 * 4)


def test_keeping_the_layer_costs_nothing():
    assert Curve([0.1], [0.2])(0.0) == 0.0


def test_a_layer_the_output_does_not_depend_on_costs_next_to_nothing():
    assert Curve([0.1, 0.3], [0.0, 0.0])(0.5) < 1e-9
    assert np.isfinite(Curve([0.1], [0.0])(1.0))
