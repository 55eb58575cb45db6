"""A last step fitted to what a ReLU lets through."""

from itertools import pairwise

import numpy as np
import pytest

from onnxdecomp.weights.through_relu import fit_through_relu

ROUNDING = 1e-9
"""What rounding moves a sum of squares by, relatively."""


def problem(group: int, *, outputs: int = 6, size: int = 8, n: int = 4000, seed: int = 0):
    """Return patches, outputs of a nonlinear teacher, and a poor last step with its bias."""
    rng = np.random.default_rng(seed)
    patches = rng.standard_normal((n, group, size)) + 0.5
    teacher = rng.standard_normal((group, outputs // group, size))
    wanted = np.einsum("ngd,god->ngo", patches, teacher)
    wanted = (wanted + 0.4 * wanted**2 * np.sign(rng.standard_normal(wanted.shape))).reshape(n, outputs) - 1
    last = (teacher + 0.5 * rng.standard_normal(teacher.shape)).reshape(outputs, size)
    return patches, wanted, last, rng.standard_normal(outputs)


def lost(patches, wanted, last, bias) -> float:
    """Return the loss that is minimized: outputs that the ReLU hides cost only where they come through."""
    group = patches.shape[1]
    blocks = last.reshape(group, -1, patches.shape[2])
    given = np.einsum("ngd,god->ngo", patches, blocks).reshape(len(patches), -1) + bias
    return float(np.sum(np.where(wanted > 0, given - wanted, np.maximum(given, 0)) ** 2))


@pytest.mark.parametrize("group", [1, 2, 6])
def test_more_rounds_are_never_worse(group):
    patches, wanted, last, bias = problem(group)
    losses = [lost(patches, wanted, *fit_through_relu(patches, wanted, last, bias, n)) for n in range(1, 8)]
    assert all(after <= before * (1 + ROUNDING) for before, after in pairwise(losses))
    assert losses[-1] < 0.9 * losses[0]


def test_one_round_is_plain_least_squares():
    patches, wanted, last, bias = problem(1)
    found = np.column_stack(fit_through_relu(patches, wanted, last, bias, 1))
    extended = np.column_stack([patches[:, 0], np.ones(len(patches))])
    exact = np.linalg.lstsq(extended, wanted, rcond=None)[0].T
    np.testing.assert_allclose(found, exact, rtol=0.05, atol=0.02)  # the penalty pulls a little


def test_outputs_that_are_all_hidden_leave_a_step_that_stays_hidden():
    patches, wanted, last, bias = problem(1)
    last, bias = fit_through_relu(patches, -np.abs(wanted) - 1, last, bias, 30)
    assert lost(patches, -np.abs(wanted) - 1, last, bias) < 1e-3 * float(np.sum(wanted**2))


def test_a_last_step_that_is_right_stays():
    patches, _, last, bias = problem(2)
    wanted = np.einsum("ngd,god->ngo", patches, last.reshape(2, 3, 8)).reshape(len(patches), 6) + bias
    found, shift = fit_through_relu(patches, wanted, last, bias)
    np.testing.assert_allclose(found, last, atol=1e-6)
    np.testing.assert_allclose(shift, bias, atol=1e-6)


def test_patches_in_float32_give_the_same_but_for_rounding():
    patches, wanted, last, bias = problem(2)
    exact = fit_through_relu(patches, wanted, last, bias)
    found = fit_through_relu(patches.astype(np.float32), wanted.astype(np.float32), last, bias)
    np.testing.assert_allclose(found[0], exact[0], atol=1e-3)
