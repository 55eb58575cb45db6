from math import nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.runtime.rows import by_sample, part, samples_first, split_rows

STEADY = settings(max_examples=50, deadline=None, derandomize=True)
"""The same cases in every run, and no failure because the machine is busy."""


def test_a_part_has_the_same_rows_of_every_array():
    samples = {"x": np.arange(10).reshape(5, 2), "labels": np.arange(5)}
    found = part(samples, np.array([3, 1]))
    np.testing.assert_array_equal(found["x"], [[6, 7], [2, 3]])
    np.testing.assert_array_equal(found["labels"], [3, 1])


SHARES = st.lists(st.floats(0.01, 1), min_size=1, max_size=6).map(
    lambda raw: [share / max(sum(raw), 1) for share in raw]
)


@STEADY
@given(st.integers(0, 300), SHARES, st.integers(0, 5))
def test_parts_are_disjoint_rows_of_the_samples(n, shares, seed):
    parts = split_rows(n, shares, seed)
    rows = np.concatenate(parts)
    assert len(parts) == len(shares)
    assert len(np.unique(rows)) == len(rows)
    assert set(rows) <= set(range(n))


@STEADY
@given(st.integers(0, 300), SHARES)
def test_parts_are_as_large_as_their_shares_and_never_empty_without_need(n, shares):
    sizes = [len(rows) for rows in split_rows(n, shares, 0)]
    assert (min(sizes) >= 1) == (n >= len(shares))
    assert all(size <= max(1, n * share + 1) for size, share in zip(sizes, shares, strict=True))
    assert sum(sizes) >= min(n, round(n * sum(shares)))


@STEADY
@given(st.integers(3, 300))
def test_shares_of_a_whole_use_every_sample(n):
    parts = split_rows(n, (0.5, 0.25, 0.25), 1)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))


def test_too_few_samples_go_to_the_first_parts():
    assert [len(rows) for rows in split_rows(2, (0.5, 0.25, 0.25), 0)] == [1, 1, 0]


def test_the_seed_alone_decides_on_the_parts():
    first, again, other = (split_rows(100, (0.5, 0.5), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(np.stack(first), np.stack(again))
    assert not np.array_equal(np.stack(first), np.stack(other))


@pytest.mark.parametrize("shares", [(0.5, 0.0), (0.7, 0.7), (-0.1, 0.5), (nan, 0.5)])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match="Shares"):
        split_rows(10, shares, 0)


@STEADY
@given(st.integers(1, 6), st.integers(1, 5), st.lists(st.integers(1, 3), max_size=2))
def test_rows_of_one_sample_become_an_axis(n_samples, n_rows, rest):
    joined = np.arange(n_samples * n_rows * np.prod(rest, dtype=int)).reshape(n_samples * n_rows, *rest)
    found = by_sample({"y": joined}, n_samples)["y"]
    assert found.shape == ((n_samples, *rest) if n_rows == 1 else (n_samples, n_rows, *rest))
    np.testing.assert_array_equal(found.reshape(joined.shape), joined)
    np.testing.assert_array_equal(by_sample({"y": found}, n_samples)["y"], found)


def test_what_has_no_row_for_each_sample_is_left_out():
    assert list(by_sample({"scores": np.zeros((3, 2)), "anchors": np.zeros((5, 4))}, 3)) == ["scores"]


@pytest.mark.parametrize(
    ("shape", "n_samples", "expected"),
    [
        ((24, 8, 37), 8, (8, 24, 37)),
        ((24, 1, 37), 1, (1, 24, 37)),
        ((8, 8, 3), 8, (8, 8, 3)),
        ((24, 1), 1, (24, 1)),
        ((24, 5, 37), 8, (24, 5, 37)),
    ],
)
def test_samples_behind_steps_come_first(shape, n_samples, expected):
    assert samples_first(np.zeros(shape), n_samples).shape == expected
