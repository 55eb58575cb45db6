"""Steps fitted together: over every layer and method, from where the method and the refit left them."""

import numpy as np
import pytest

from onnxdecomp.methods import find_methods
from onnxdecomp.weights import joint
from onnxdecomp.weights.joint import jointly_fitted
from onnxdecomp.weights.refit import LastStep, refitted
from tests.builders import LAYERS, MATRICES
from tests.weights.test_fit import (
    CASES,
    RIDGE_SLACK,
    ROUNDING,
    chain_of,
    decompose_plain,
    error_of_any,
    every_case,
    metric_of,
    whole,
)

SLOPE = 1e-2
"""Relative error of a slope by finite differences, the small penalty of the last step included."""

SINGLE_FLOOR = 1e-3
"""Relative error below which single precision tells no better from worse."""


@every_case
def test_a_joint_fit_is_better_than_the_refit_or_says_that_it_is_not(method, layer):
    metric = metric_of(layer)
    chain, before = refitted(chain_of(method, layer), metric)
    found = jointly_fitted(chain, before, metric)
    after, error = (chain, before) if found is None else found
    assert error <= before
    assert metric.error(whole(after)) == pytest.approx(error, abs=ROUNDING)
    assert [w.shape for w in after.weights] == [s.weight_shape for s in after.specs]


@pytest.mark.parametrize(
    ("method", "layer"),
    [
        case
        for case in CASES
        if LastStep.of(
            metric_of(case.values[1]), (c := chain_of(*case.values)).specs, c.weights
        )  # a depthwise last step is no matrix
    ],
)
def test_the_gradient_is_the_slope_of_the_value(method, layer):
    problem = joint._Problem(chain_of(method, layer), metric_of(layer))
    rng = np.random.default_rng(7)
    at = problem.start()
    at = at + 0.3 * np.std(at) * rng.standard_normal(at.shape)
    way = rng.standard_normal(at.shape) * np.std(at)
    value, gradient = problem.value_and_gradient(at)
    step = 1e-4
    ahead, behind = (problem.value_and_gradient(at + s * step * way)[0] for s in (1, -1))
    assert gradient @ way == pytest.approx((ahead - behind) / (2 * step), rel=SLOPE, abs=SLOPE * value)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_from_a_plain_factorization_of_a_matrix_it_finds_the_best_of_its_rank(rank, monkeypatch):
    monkeypatch.setattr(joint, "N_STEPS", 60)
    layer = MATRICES["Gemm"]
    (method,) = find_methods("svd/2-steps")
    start = refitted(decompose_plain(method, layer, (rank,)), metric_of(layer))
    found = jointly_fitted(*start, metric_of(layer))
    assert found is not None
    assert found[1] == pytest.approx(error_of_any(layer, rank), rel=10 * RIDGE_SLACK)


def test_two_kernels_are_better_fitted_together_than_one_after_the_other():
    layer = LAYERS["plain"]
    (method,) = find_methods("spatial-svd/vertical-first")
    chain, before = refitted(decompose_plain(method, layer, (2,)), metric_of(layer))
    found = jointly_fitted(chain, before, metric_of(layer))
    assert found is not None
    assert found[1] < 0.99 * before


@every_case
def test_steps_searched_in_single_precision_come_out_about_as_good(method, layer, monkeypatch):
    metric = metric_of(layer)
    start = refitted(chain_of(method, layer), metric)
    double = jointly_fitted(*start, metric) or start
    monkeypatch.setattr(joint, "SINGLE_FROM_SIZE", 1)
    single = jointly_fitted(*start, metric) or start
    assert single[1] == pytest.approx(double[1], rel=SLOPE, abs=SINGLE_FLOOR)
    assert metric.error(whole(single[0])) == pytest.approx(single[1], abs=ROUNDING)


def test_work_that_is_too_much_is_not_begun(monkeypatch):
    layer = LAYERS["plain"]
    monkeypatch.setattr(joint, "MAX_FLOPS", 1.0)
    (method,) = find_methods("spatial-svd/vertical-first")
    start = refitted(decompose_plain(method, layer, (2,)), metric_of(layer))
    assert jointly_fitted(*start, metric_of(layer)) is None
