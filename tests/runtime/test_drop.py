from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.runtime.drop import Drop


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 5000))
def test_no_differing_sample_is_no_proof_of_no_drop(n):
    upper = Drop(0.0, 0.0, 1.0, 1.0, n, counted=True).upper()
    assert upper == pytest.approx(1.64 * sqrt(2) / (n + 2))


def test_a_thousand_equal_samples_leave_a_quarter_of_a_point_open():
    assert 0.0023 < Drop(0.0, 0.0, 1.0, 1.0, 1000, counted=True).upper() < 0.0024


def test_the_upper_bound_holds_about_as_often_as_it_says():
    rng, rate, n, n_draws = np.random.default_rng(0), 0.02, 100, 2000
    held = 0
    for _ in range(n_draws):
        lost = (rng.random(n) < rate).astype(float)
        error = float(lost.std()) / sqrt(n)
        held += Drop(float(lost.mean()), error, 1.0, 0.0, n, counted=True).upper() >= rate
    assert held / n_draws > 0.93


def test_measures_without_counts_add_nothing_to_their_error():
    assert Drop(0.1, 0.02, 1.0, 0.9, 10).upper(2.0) == pytest.approx(0.14)


def test_a_bound_is_never_less_than_what_was_measured():
    by_labels = Drop(0.01, 0.003, 1.0, 0.99, 1000)
    assert by_labels.bound == pytest.approx(0.013)
    assert replace(by_labels, believed=0.011, believed_error=0.001).bound == pytest.approx(0.012)
    assert replace(by_labels, believed=0.002, believed_error=0.001).bound == pytest.approx(0.01)
    assert replace(by_labels, believed=0.02, believed_error=0.001).bound == pytest.approx(0.013)


def test_what_is_held_counts_unseen_samples_as_they_are_and_all_with_their_error():
    decided, unseen = Drop(0.004, 0.003, 0.9, 0.896, 1000), Drop(0.012, 0.003, 0.9, 0.888, 1000)
    assert unseen.held(decided) == pytest.approx(0.012)
    assert decided.held(unseen) == pytest.approx(0.008 + 0.003 / 2**0.5)


def test_beliefs_are_pooled_where_both_are_known():
    one = Drop(0.01, 0.003, 1.0, 0.99, 1000, believed=0.02, believed_error=0.001)
    whole = one.pooled(replace(one, n_samples=3000, believed=0.04))
    assert whole.believed == pytest.approx(0.035)
    assert whole.believed_error == pytest.approx(0.001 * sqrt(0.25**2 + 0.75**2))
    assert one.pooled(replace(one, believed=None)).believed is None
