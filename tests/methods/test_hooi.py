"""Tucker-2 against tensorly and its own bounds."""

import numpy as np
import pytest
from tensorly.decomposition import partial_tucker

from onnxdecomp.methods.solvers import hooi
from onnxdecomp.methods.solvers.balance import balance


def stack_of(shape=(9, 24, 20), seed=0):
    """Return ``(D, O, I)`` with decaying spectra in both modes."""
    rng = np.random.default_rng(seed)
    stack = rng.standard_normal(shape)
    for axis in (1, 2):
        size = shape[axis]
        mix = np.linalg.qr(rng.standard_normal((size, size)))[0] * np.exp(-np.arange(size) / (0.4 * size))
        stack = np.moveaxis(np.moveaxis(stack, axis, -1) @ mix.T, -1, axis)
    return stack


def error_of(stack, ranks, sweeps=hooi.MAX_SWEEPS):
    out_basis, core, in_basis = hooi.tucker2(stack, hooi.hosvd(stack), ranks)
    return np.linalg.norm(stack - out_basis @ core @ in_basis.T) / np.linalg.norm(stack)


@pytest.mark.parametrize("ranks", [(10, 8), (4, 12), (24, 5), (1, 1)])
def test_the_error_is_within_a_thousandth_of_tensorly(ranks):
    stack = stack_of()
    _, errors = partial_tucker(stack, rank=list(ranks), modes=[1, 2], n_iter_max=100, tol=1e-6)
    assert error_of(stack, ranks) <= 1.001 * errors[-1]


@pytest.mark.parametrize("ranks", [(10, 8), (4, 12), (24, 5), (1, 1), (24, 20)])
def test_sweeps_only_lower_the_error_of_the_hosvd(ranks):
    stack = stack_of()
    bases = hooi.hosvd(stack)
    kept = np.sum(hooi.core_energies(stack, bases)[: ranks[0], : ranks[1]])
    bound = np.sqrt(max(0.0, 1 - kept / bases.energy))
    assert error_of(stack, ranks) <= bound + 1e-9


def test_more_sweeps_never_hurt(monkeypatch):
    stack, errors = stack_of(), []
    monkeypatch.setattr(hooi, "MIN_GAIN", 0.0)
    for sweeps in (1, 2, 4, 8):
        monkeypatch.setattr(hooi, "MAX_SWEEPS", sweeps)
        errors.append(error_of(stack, (6, 6)))
    assert errors == sorted(errors, reverse=True)


def test_bases_are_orthonormal_and_balancing_keeps_the_product():
    stack = stack_of()
    out_basis, core, in_basis = hooi.tucker2(stack, hooi.hosvd(stack), (7, 5))
    np.testing.assert_allclose(out_basis.T @ out_basis, np.eye(7), atol=1e-12)
    np.testing.assert_allclose(in_basis.T @ in_basis, np.eye(5), atol=1e-12)
    first, middle, last = balance([in_basis.T, core.transpose(1, 2, 0), out_basis])
    product = np.einsum("oa,abk,bi->koi", last, middle, first)
    np.testing.assert_allclose(product, out_basis @ core @ in_basis.T, atol=1e-12)


def test_balanced_channels_enter_and_leave_with_about_equal_norm():
    rng = np.random.default_rng(0)
    skewed = [
        rng.standard_normal((5, 8)) * 1e4,
        rng.standard_normal((6, 5, 9)),
        rng.standard_normal((7, 6)) * 1e-3,
    ]
    first, middle, last = balance(skewed)
    leaving = [np.linalg.norm(first, axis=1), np.linalg.norm(middle, axis=(1, 2))]
    entering = [np.linalg.norm(middle, axis=(0, 2)), np.linalg.norm(last, axis=0)]
    np.testing.assert_allclose(np.concatenate(leaving), np.concatenate(entering), rtol=0.2)


def test_a_dead_channel_becomes_zero_on_both_sides():
    first, last = balance([np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0]])])
    np.testing.assert_array_equal(first[1], 0.0)
    np.testing.assert_array_equal(last[:, 1], 0.0)


def test_fewer_kept_vectors_give_the_same_leading_block():
    stack = stack_of()
    whole, part = hooi.hosvd(stack), hooi.hosvd(stack, (6, 4))
    assert (part.out_basis.shape, part.in_basis.shape) == ((24, 6), (20, 4))
    np.testing.assert_allclose(
        hooi.core_energies(stack, part), hooi.core_energies(stack, whole)[:6, :4], atol=1e-10
    )
