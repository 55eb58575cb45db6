"""Moments of few patches: what is believed of them, and what is believed instead."""

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdecomp.weights.shrinkage import Separable, shrinkage, shrunk

ROUNDING = 1e-9
MANY = 10**9


def covariance(size, seed):
    """A positive definite matrix of trace `size`."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((size, size)) * np.geomspace(1, 0.1, size)
    found = mixing @ mixing.T + 0.01 * np.eye(size)
    return found * (size / np.trace(found))


def separable(axes, seed=0, level=3.0):
    """A moment ``(1, D, D)`` that is separable over all axes of its patches."""
    whole = np.full((1, 1), level)
    for index, size in enumerate(axes):
        whole = np.kron(whole, covariance(size, seed + index))
    return whole[np.newaxis]


def seen(truth, n, seed=7):
    """What n patches say of a moment."""
    rng = np.random.default_rng(seed)
    patches = rng.standard_normal((n, truth.shape[-1])) @ np.linalg.cholesky(truth[0]).T
    return (patches.T @ patches / n)[np.newaxis]


def test_few_patches_are_believed_less():
    rng = np.random.default_rng(5)
    shares = []
    for n in (8, 64, 512, 4096):
        patches = rng.standard_normal((n, 64)) * np.geomspace(1, 0.01, 64)
        shares.append(shrinkage((patches.T @ patches / n)[np.newaxis], n))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.3
    assert shares[-1] < 0.01


def test_white_patches_become_the_identity():
    assert shrinkage(2 * np.eye(8)[np.newaxis], 100) == 1.0


@given(axes=st.lists(st.integers(1, 5), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_a_separable_moment_is_its_own_target(axes, seed):
    truth = separable(axes, seed)
    target = Separable.of(truth, MANY, axes)
    if sum(size > 1 for size in axes) < 2:
        assert target is None
    else:
        np.testing.assert_allclose(target.written_out(), truth, rtol=1e-5, atol=1e-5 * truth.max())
        assert target.share(truth, 100) == 1.0


@pytest.mark.parametrize(
    ("axes", "parts"), [((40, 3, 3), (40, 9)), ((7, 7, 40), (49, 40)), ((3, 7, 7), (21, 7))]
)
def test_axes_are_split_where_that_leaves_the_fewest_numbers(axes, parts):
    target = Separable.of(separable(axes), MANY, axes)
    assert (target.first.shape[-1], target.second.shape[-1]) == parts


@pytest.mark.parametrize("n", [20, 60, 200])
def test_few_patches_say_more_where_their_axes_are_known(n):
    axes = (12, 3, 3)
    truth = separable(axes)
    found = seen(truth, n)
    blind, aware = shrunk(found, n), shrunk(found, n, axes)
    assert np.linalg.norm(aware - truth) < 0.9 * np.linalg.norm(blind - truth)


def test_many_patches_are_believed_whatever_the_target():
    axes = (6, 4)
    truth = covariance(24, 3)[np.newaxis]  # not separable
    target = Separable.of(truth, 100_000, axes)
    assert target.share(truth, 100_000) < 0.01
    np.testing.assert_allclose(shrunk(truth, MANY, axes), truth, atol=1e-4)


@pytest.mark.parametrize("axes", [(), (24,), (24, 1, 1), (1, 24)])
def test_patches_with_one_axis_are_shrunk_to_the_identity(axes):
    found = seen(covariance(24, 1)[np.newaxis], 30)
    share, level = shrinkage(found, 30), np.trace(found[0]) / 24
    expected = (1 - share) * found + share * level * np.eye(24)
    np.testing.assert_allclose(shrunk(found, 30, axes), expected, rtol=ROUNDING)


@given(
    axes=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    n=st.integers(1, 60),
    n_dead=st.integers(0, 4),
    n_groups=st.integers(1, 3),
)
def test_what_is_blended_is_a_moment_with_the_same_trace(axes, n, n_dead, n_groups):
    size = prod(axes)
    rng = np.random.default_rng(n)
    patches = rng.standard_normal((n_groups, n, *axes))
    patches[:, :, :n_dead] = 0.0  # channels that are never active, or none that is
    patches = patches.reshape(n_groups, n, size)
    found = patches.swapaxes(1, 2) @ patches / n
    blended = shrunk(found, n, axes)
    np.testing.assert_allclose(
        np.trace(blended, axis1=1, axis2=2), np.trace(found, axis1=1, axis2=2), rtol=1e-6, atol=1e-12
    )
    assert np.linalg.eigvalsh(blended).min() >= -ROUNDING
