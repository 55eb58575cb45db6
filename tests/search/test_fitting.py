"""Which candidates of a layer are looked into."""

from dataclasses import replace

import numpy as np
import pytest

from onnxdecomp.methods import find_methods
from onnxdecomp.ranks.study import Candidate, Study
from onnxdecomp.search import fitting
from onnxdecomp.search.fitting import MAX_TIMED, SLACK, Task, fitted, spread
from onnxdecomp.weights.fit import SHRUNK
from onnxdecomp.weights.moments import Moments
from tests.builders import conv_layer

LAYER = conv_layer((48, 48, 3, 3), (1, 12, 12), pads=(1, 1, 1, 1))
(SPATIAL,) = find_methods("spatial-svd/vertical-first")
(BOTH,) = find_methods("channel-spatial-svd/input-vertical-first")


def candidate(n_macs: int, error: float) -> Candidate:
    return Candidate(SPATIAL, (n_macs,), (), error, n_macs, n_macs)


def task(*methods) -> Task:
    """Return a layer whose weight has slowly falling spectra, on patches in which values look alike."""
    rng = np.random.default_rng(0)
    scales = (1.0 + np.arange(48)) ** -0.3
    weight = rng.standard_normal(LAYER.weight_shape) * scales[:, None, None, None] * scales[:, None, None]
    n_values = 48 * 9
    patches = rng.standard_normal((4000, n_values)) @ (np.eye(n_values) + 0.3 / np.sqrt(n_values))
    second = patches.T @ patches / len(patches)
    moments = Moments(len(patches), patches.mean(axis=0)[None], second[None])
    return Task(Study(LAYER, weight.astype(np.float32), methods, 8), moments, np.zeros(48), SHRUNK)


def test_those_that_cost_more_and_are_worse_go_first():
    good = [candidate(macs, 1 / macs) for macs in range(1, MAX_TIMED - 1)]
    close, closer = candidate(3, 0.99 * SLACK / 3), candidate(5, 0.97 * SLACK / 5)
    far = candidate(7, 1.01 * SLACK / 7)
    kept = fitting._promising([*good, close, closer, far])
    assert {one.error for one in good} <= {one.error for one in kept}
    assert {one.error for one in (close, closer)} <= {one.error for one in kept}
    assert far.error not in {one.error for one in kept}
    more = fitting._promising([*good, candidate(40, 0.001), close, closer])
    assert len(more) == MAX_TIMED
    assert close.error not in {one.error for one in more}


@pytest.mark.parametrize("method", [SPATIAL, BOTH])
def test_candidates_are_compared_by_about_their_errors_after_a_refit(method):
    one = task(method)
    found = spread(one)
    made = fitted([replace(one, candidates=found)])[0]
    np.testing.assert_allclose([c.error for c in found], [chain.error for chain in made], rtol=0.05)


def test_without_refit_the_estimates_count():
    one = replace(task(BOTH), fit=replace(SHRUNK, refit=False))
    study = fitting._with_data(one)
    assert all(c == study.candidate(c.method, c.ranks) for c in spread(one))


def test_by_bounds_some_of_the_better_method_would_be_left_out():
    one = task(SPATIAL, BOTH)
    study = fitting._with_data(one)
    found = spread(one)
    by_bounds = fitting._promising([study.candidate(c.method, c.ranks) for c in found])
    assert {c.ranks for c in by_bounds if c.method == BOTH} < {c.ranks for c in found if c.method == BOTH}
