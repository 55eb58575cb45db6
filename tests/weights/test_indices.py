"""Indices chosen for data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.weights.indices import BLOCK, DAMPING, Chooser, choose_in_turn, sweep

LEVELS = np.array([[-1.5, -0.5, 0.25, 1.0], [-2.0, -0.7, 0.4, 2.5]])
STEADY = settings(max_examples=30, deadline=None, derandomize=True)
STEP = 0.1
FINE = Chooser(np.arange(-80, 80, STEP)[None], np.zeros(6, int), np.ones(6))
BOTH = pytest.mark.parametrize("choose", [choose_in_turn, sweep], ids=lambda choose: choose.__name__)


def problem_of(n_inputs, seed=0, n_channels=6):
    """Return weights, the moment of correlated inputs, a chooser and the nearest labels."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((n_inputs, n_inputs)) * np.geomspace(1, 0.1, n_inputs)
    rows = np.arange(n_channels) * len(LEVELS) // n_channels
    chooser = Chooser(LEVELS, rows, rng.uniform(0.5, 2, n_channels))
    weight = rng.standard_normal((n_channels, n_inputs))
    labels = np.stack([chooser(column) for column in weight.T], axis=1)
    return weight, (mixing.T @ mixing).astype(np.float32), chooser, labels


def lost(labels, weight, moment, chooser):
    errors = weight - chooser.decoded(labels)
    return float(np.sum((errors @ moment.astype(np.float64)) * errors))


def improved(choose, weight, moment, chooser, labels):
    found = labels.copy()
    choose(found, weight, moment, chooser)
    return found


def test_the_chooser_finds_the_nearest_of_each_channels_own_centroids():
    weight, _, chooser, labels = problem_of(50)
    for channel, row in enumerate(chooser.rows):
        own = LEVELS[row] * chooser.scale[channel]
        nearest = np.argmin(np.abs(weight[channel][:, None] - own), axis=1)
        np.testing.assert_array_equal(chooser.decoded(labels)[channel], own[nearest])


@BOTH
def test_inputs_that_do_not_go_together_get_the_nearest_centroids(choose):
    weight, _, chooser, labels = problem_of(40)
    moment = np.diag(np.geomspace(1, 1e-3, 40)).astype(np.float32)
    np.testing.assert_array_equal(improved(choose, weight, moment, chooser, np.zeros_like(labels)), labels)


@STEADY
@given(n_inputs=st.integers(1, 2 * BLOCK + 3), seed=st.integers(0, 20))
def test_a_sweep_lowers_the_loss(n_inputs, seed):
    weight, moment, chooser, labels = problem_of(n_inputs, seed)
    found = improved(sweep, weight, moment, chooser, labels)
    assert lost(found, weight, moment, chooser) <= lost(labels, weight, moment, chooser) * (1 + 1e-4)


@STEADY
@given(n_inputs=st.integers(BLOCK // 2, 2 * BLOCK + 3), seed=st.integers(0, 20))
def test_chosen_in_turn_beats_what_sweeps_end_at_from_the_nearest(n_inputs, seed):
    weight, moment, _, _ = problem_of(n_inputs, seed)
    nearest = np.stack([FINE(column) for column in weight.T], axis=1)
    chosen = improved(choose_in_turn, weight, moment, FINE, nearest)
    swept = nearest
    for _ in range(5):
        swept = improved(sweep, weight, moment, FINE, swept)
    assert lost(chosen, weight, moment, FINE) < 0.8 * lost(swept, weight, moment, FINE)


@STEADY
@given(n_inputs=st.integers(10, 2 * BLOCK + 3), seed=st.integers(0, 20))
def test_what_is_lost_is_what_is_left_of_each_input_once_the_smaller_ones_are_known(n_inputs, seed):
    weight, moment, _, _ = problem_of(n_inputs, seed)
    found = improved(choose_in_turn, weight, moment, FINE, np.zeros(weight.shape, int))
    order = np.argsort(np.diagonal(moment), kind="stable")
    level = DAMPING * np.mean(np.diagonal(moment))
    root = np.linalg.cholesky(moment[np.ix_(order, order)].astype(np.float64) + level * np.eye(n_inputs))
    most = np.sum(np.square(np.diagonal(root))) * (STEP / 2) ** 2  # of each channel
    assert lost(found, weight, moment, FINE) <= 1.001 * most * len(weight)


@BOTH
def test_inputs_that_are_always_zero_are_harmless(choose):
    weight, moment, chooser, labels = problem_of(30)
    moment[5], moment[:, 5] = 0, 0
    found = improved(choose, weight, moment, chooser, labels)
    np.testing.assert_array_equal(found[:, 5], labels[:, 5])
    nothing = np.zeros_like(moment)
    np.testing.assert_array_equal(improved(choose, weight, nothing, chooser, labels), labels)
