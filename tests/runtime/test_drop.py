from dataclasses import replace
from math import hypot, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.runtime.drop import SMOOTHING_DOUBT, Drop


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


@pytest.mark.parametrize(("smoothed", "bound"), [(None, 0.013), (0.011, 0.012), (0.002, 0.01), (0.02, 0.013)])
def test_a_ceiling_may_only_lower_a_bound_and_never_below_what_was_measured(smoothed, bound):
    found = Drop(0.01, 0.003, 1.0, 0.99, 1000, smoothed=smoothed, smoothed_error=0.001, is_ceiling=True)
    assert found.bound == pytest.approx(bound)


@pytest.mark.parametrize(("smoothed", "least", "most"), [(0.002, 0.01, 0.01), (0.02, 0.013, 0.02)])
def test_what_is_no_ceiling_may_raise_a_bound_too(smoothed, least, most):
    found = Drop(0.01, 0.003, 1.0, 0.99, 1000, smoothed=smoothed, smoothed_error=0.001)
    assert least <= found.bound <= most


def test_answers_that_did_not_change_do_not_rule_out_that_some_do():
    lucky = Drop(0.0, 0.0, 1.0, 1.0, 64, counted=True, smoothed=0.03, smoothed_error=0.005)
    assert 0.02 < lucky.bound < 0.04
    assert replace(lucky, smoothed=None).bound == 0


def test_what_is_lost_counted_and_smoothed_is_averaged_as_far_as_each_is_known():
    doubtful = Drop(0.01, 0.003, 1.0, 0.99, 1000, smoothed=0.006, smoothed_error=0.001)
    value, error = doubtful.likely()
    assert 0.006 < value < 0.008
    assert error < hypot(0.001, SMOOTHING_DOUBT * 0.006)
    assert replace(doubtful, smoothed=None).likely() == (0.01, 0.003)


def test_what_is_held_counts_unseen_samples_as_they_are_and_all_with_their_error():
    decided, unseen = Drop(0.004, 0.003, 0.9, 0.896, 1000), Drop(0.012, 0.003, 0.9, 0.888, 1000)
    assert unseen.held(decided) == pytest.approx(0.012)
    assert decided.held(unseen) == pytest.approx(0.008 + 0.003 / 2**0.5)


def test_smoothed_losses_are_pooled_where_both_are_known():
    one = Drop(0.01, 0.003, 1.0, 0.99, 1000, smoothed=0.02, smoothed_error=0.001)
    whole = one.pooled(replace(one, n_samples=3000, smoothed=0.04))
    assert whole.smoothed == pytest.approx(0.035)
    assert whole.smoothed_error == pytest.approx(0.001 * sqrt(0.25**2 + 0.75**2))
    assert one.pooled(replace(one, smoothed=None)).smoothed is None
    assert replace(one, is_ceiling=True).pooled(one).is_ceiling
