import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.runtime import power
from onnxdecomp.runtime.power import blocks, noise_powers, signal_powers

STEADY = settings(max_examples=50, deadline=None, derandomize=True)
"""The same cases in every run, and no failure because the machine is busy."""

SHAPES = st.tuples(st.integers(1, 9)) | st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(1, 5))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(power, "BLOCK", 8)


@STEADY
@given(SHAPES)
def test_powers_are_sums_of_squares_of_samples(shape):
    ours, theirs = normal(*shape), normal(*shape, seed=1)
    axes = tuple(range(1, len(shape)))
    wide = theirs.astype(np.float64)
    np.testing.assert_allclose(noise_powers(ours, theirs), np.square(ours - wide).sum(axes), rtol=1e-12)
    np.testing.assert_allclose(signal_powers(theirs), np.square(wide).sum(axes), rtol=1e-12)
    varying = np.square(wide - wide.mean(0)).sum(axes)
    np.testing.assert_allclose(signal_powers(theirs, of_variance=True), varying, rtol=1e-9, atol=1e-12)


@STEADY
@given(SHAPES)
def test_blocks_are_all_samples_once(shape):
    rows = [list(range(shape[0]))[block] for block in blocks(shape[0], int(np.prod(shape[1:])))]
    assert [row for block in rows for row in block] == list(range(shape[0]))
    size = int(np.prod(shape[1:]))
    assert all(len(block) == 1 or len(block) * size <= 8 for block in rows)


def test_entries_that_are_not_finite_may_be_left_out():
    theirs = np.array([[1.0, -np.inf, 2.0], [3.0, 5.0, 4.0]])
    ours = theirs + 1
    np.testing.assert_array_equal(noise_powers(ours, theirs, finite_only=True), [2, 3])
    np.testing.assert_array_equal(signal_powers(theirs, finite_only=True), [5, 50])
    assert np.isnan(noise_powers(ours, theirs)[0])


def test_a_mean_is_taken_off_finite_entries_alone():
    theirs = np.array([[1.0, -np.inf], [3.0, 5.0]])
    np.testing.assert_allclose(
        signal_powers(theirs, of_variance=True, finite_only=True), [1.0, 1.0 + (5.0 - 2.5) ** 2]
    )
