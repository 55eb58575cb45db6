"""Drops expected from divergences, over simulated choices."""

from dataclasses import replace
from math import hypot, inf, isclose, nan

import numpy as np
import pytest

from onnxdecomp.runtime.drop import SMOOTHING_DOUBT, Drop
from onnxdecomp.search.evidence import Evidence

RATIO = 0.5
"""Drop over divergence of the simulated network."""


def drop(value: float, error: float) -> Drop:
    return Drop(value, error, 0.9, 0.9 - value, 2000, counted=True)


def observed(rng: np.random.Generator, divergence: float) -> Drop:
    error = 0.02 * np.sqrt(divergence)
    return drop(RATIO * divergence + error * rng.standard_normal(), error)


def test_alone_a_choice_is_judged_by_its_own_drop():
    evidence = Evidence(1.0)
    evidence.add(drop(0.01, 0.003), 0.02)
    value, error = evidence.expected(drop(0.01, 0.003), 0.02)
    assert isclose(value, 0.01)
    assert isclose(error, 0.003)


def test_other_choices_make_the_expectation_better():
    rng, own, expected = np.random.default_rng(0), [], []
    for _ in range(200):
        evidence = Evidence(1.0)
        seen = [(observed(rng, d), d) for d in np.geomspace(0.005, 0.1, 8)]
        for one, divergence in seen:
            evidence.add(one, divergence)
        here, divergence = seen[3]
        own.append(here.value - RATIO * divergence)
        expected.append(evidence.expected(here, divergence)[0] - RATIO * divergence)
    assert np.std(expected) < 0.7 * np.std(own)
    assert abs(np.mean(expected)) < np.std(expected)


def test_what_is_far_away_hardly_counts():
    evidence = Evidence(1.0)
    evidence.add(drop(0.01, 0.003), 0.02)
    evidence.add(drop(0.5, 0.01), 20.0)
    assert evidence.expected(drop(0.01, 0.003), 0.02)[0] == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("divergence", [0.0, inf])
def test_no_divergence_or_no_end_of_it_leaves_the_drop(divergence):
    evidence = Evidence(1.0)
    evidence.add(drop(0.0, 0.0), 0.01)
    evidence.add(drop(0.2, 0.01), divergence)
    evidence.add(drop(nan, 0.01), 0.01)
    assert evidence.expected(drop(0.2, 0.01), divergence) == (0.2, 0.01)


def test_samples_that_do_not_differ_are_no_proof():
    evidence = Evidence(1.0)
    evidence.add(drop(0.0, 0.0), 0.01)
    assert evidence.expected(drop(0.0, 0.0), 0.01) == (0.0, 1 / 2000)


def test_metrics_that_do_not_fall_in_proportion_are_not_pooled():
    evidence = Evidence(None)
    evidence.add(drop(0.05, 0.01), 0.02)
    assert evidence.expected(drop(0.01, 0.003), 0.02) == (0.01, 0.003)


def test_what_the_original_believes_is_averaged_with_what_labels_say():
    evidence = Evidence(1.0)
    doubtful = replace(drop(0.01, 0.003), smoothed=0.006, smoothed_error=0.001)
    evidence.add(doubtful, 0.02)
    value, error = evidence.expected(doubtful, 0.02)
    assert 0.006 < value < 0.008
    assert error < hypot(0.001, SMOOTHING_DOUBT * 0.006)


def test_what_it_believes_of_other_choices_counts_too():
    evidence = Evidence(1.0)
    for smoothed in (0.008, 0.008, 0.005):
        evidence.add(replace(drop(0.01, 0.003), smoothed=smoothed, smoothed_error=0.001), 0.02)
    lucky = replace(drop(0.01, 0.003), smoothed=0.005, smoothed_error=0.001)
    assert evidence.expected(lucky, 0.02)[0] == pytest.approx(
        evidence.expected(replace(lucky, smoothed=0.008), 0.02)[0]
    )
    assert evidence.expected(lucky, 0.02)[0] > replace(lucky, smoothed=0.005).likely()[0]


def test_where_nothing_is_expected_to_be_lost_nothing_is_averaged():
    certain = replace(drop(0.01, 0.003), smoothed=0.0)
    assert Evidence(None).expected(certain, 0.02) == (0.01, 0.003)


def test_a_drop_may_be_in_proportion_to_a_power_of_the_divergence():
    evidence = Evidence(0.5)
    evidence.add(drop(0.03, 0.003), 0.09)
    evidence.add(drop(0.03, 0.003), 0.09)
    evidence.add(drop(0.005, 0.003), 0.04)
    value, _ = evidence.expected(drop(0.005, 0.003), 0.04)
    assert 0.01 < value < 0.02  # the others would have lost 0.02 there
