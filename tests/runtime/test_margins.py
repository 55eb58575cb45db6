"""Answers that change, told by margins, over simulated classifiers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.runtime.margins import Margins

N_CLASSES, N_DRAWS = 10, 200


def drawn(rng, n, growth=0.0):
    """Return scores, and scores that moved the further the larger the margin is, by a power of it."""
    scores = 3.0 * rng.standard_normal((n, N_CLASSES))
    second, first = np.sort(scores, axis=1)[:, -2:].T
    moved = 0.2 * (first - second)[:, None] ** growth
    return scores, scores + moved * rng.standard_normal(scores.shape)


def counted(scores, changed):
    return float(np.mean(np.argmax(scores, axis=1) != np.argmax(changed, axis=1)))


@pytest.mark.parametrize("growth", [0.0, 0.5])
def test_the_share_is_that_counted_with_less_noise(growth):
    rng, by_count, by_margins, errors = np.random.default_rng(0), [], [], []
    for _ in range(N_DRAWS):
        scores, changed = drawn(rng, 128, growth)
        share, error = Margins(scores).changed(changed)
        by_count.append(counted(scores, changed))
        by_margins.append(share)
        errors.append(error)
    noise = np.std(by_count) / np.sqrt(N_DRAWS)
    assert np.mean(by_margins) == pytest.approx(np.mean(by_count), abs=4 * noise)
    assert np.std(by_margins) < 0.75 * np.std(by_count)
    assert np.mean(errors) == pytest.approx(np.std(by_margins), rel=0.3)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 30), st.integers(0, 1000), st.floats(0, 5))
def test_a_share_is_one_and_of_one_sample_it_is_its_own_answer(n, seed, size):
    rng = np.random.default_rng(seed)
    before = np.abs(rng.standard_normal(n))
    after = before - size * rng.standard_normal(n)
    share, error = Margins(two_classes(before)).changed(two_classes(after))
    assert 0 <= share <= 1
    assert 0 <= error <= 1
    if n == 1:
        assert share == float(after[0] < 0)


def two_classes(margins):
    return np.stack([margins, np.zeros_like(margins)], axis=1)


def test_each_movement_is_put_on_each_margin():
    before, fallen = np.array([1.0, 1.0, 4.0, 4.0]), np.array([2.0, 0.1, 2.0, 0.1])
    share, error = Margins(two_classes(before)).changed(two_classes(before - fallen))
    assert share == 0.25  # half of the margins, by half of the movements
    shares = np.array([[0.5, 0.5, 0.0, 0.0], [0.5, 0.0, 0.5, 0.0]])  # by margin, by movement
    assert error == pytest.approx(np.sqrt(np.square(shares.sum(axis=0) - 0.5).sum()) / 4)


def test_more_samples_add_their_margins():
    rng, alone, beside, errors = np.random.default_rng(0), [], [], []
    for _ in range(N_DRAWS):
        (scores, changed), (more, _) = drawn(rng, 128), drawn(rng, 256)
        alone.append(Margins(scores).changed(changed)[0])
        share, error = Margins(scores, more).changed(changed)
        beside.append(share)
        errors.append(error)
    assert np.mean(beside) == pytest.approx(np.mean(alone), abs=4 * np.std(alone) / np.sqrt(N_DRAWS))
    assert np.std(beside) < 0.85 * np.std(alone)
    assert np.mean(errors) == pytest.approx(np.std(beside), rel=0.3)


def test_equal_scores_change_nothing():
    scores = np.random.default_rng(0).standard_normal((20, 3))
    assert Margins(scores).changed(scores) == (0.0, 0.0)


def test_a_class_may_be_ruled_out():
    scores = np.array([[0.0, -np.inf, -np.inf], [1.0, 0.5, -np.inf]])
    share, error = Margins(scores).changed(np.array([[0.0, -np.inf, -np.inf], [0.5, 1.0, -np.inf]]))
    assert 0 < share <= 0.5
    assert np.isfinite(error)


def test_rows_that_are_no_numbers_are_other_answers():
    scores = 5.0 * np.eye(4)
    broken = scores.copy()
    broken[0] = np.nan
    assert Margins(scores).changed(broken)[0] == 0.25
