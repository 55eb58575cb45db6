"""Which samples tell most about a divergence, and what each of them counts for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.runtime.divergence import Divergence
from onnxdecomp.runtime.importance import draw, inclusion, unsureness

STEADY = settings(max_examples=50, deadline=None, derandomize=True)
"""The same cases in every run, and no failure because the machine is busy."""


def scores(n: int = 400, n_classes: int = 5, seed: int = 0):
    """Return scores of a classifier that is sure of most samples."""
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((n, n_classes))
    found[np.arange(n), rng.integers(n_classes, size=n)] += rng.exponential(8.0, n)
    return found


def moved(reference, seed: int = 1):
    return reference + 0.3 * np.random.default_rng(seed).standard_normal(reference.shape)


def found_divergence(drawn, reference, changed) -> float:
    judge = Divergence({"y": reference[drawn.rows]}, drawn.weights)
    return judge.of({"y": changed[drawn.rows]})


@STEADY
@given(st.integers(1, 60), st.integers(2, 60), st.integers(0, 5))
def test_as_many_samples_are_drawn_as_asked_for_each_once(n_drawn, n, seed):
    drawn = draw({"y": scores(n)}, n_drawn, seed)
    assert len(set(drawn.rows.tolist())) == len(drawn.rows) == min(n_drawn, n)
    assert np.all(np.diff(drawn.rows) > 0)
    assert np.all(drawn.weights > 0)


@STEADY
@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=40), st.data())
def test_chances_sum_to_what_is_drawn_and_none_is_above_one(sizes, data):
    n_drawn = data.draw(st.integers(1, len(sizes) - 1))
    chances = inclusion(np.array(sizes), n_drawn)
    assert chances.sum() == pytest.approx(n_drawn)
    assert np.all((chances > 0) & (chances <= 1 + 1e-12))


def test_unsure_samples_are_drawn_more_often_and_count_less():
    reference = scores()
    drawn = draw({"y": reference}, 50, 0)
    unsure = unsureness({"y": reference})
    assert unsure[drawn.rows].mean() > 2 * unsure.mean()
    order = np.argsort(unsure[drawn.rows])
    assert np.all(np.diff(drawn.weights[order]) <= 1e-12)


def test_the_divergence_is_the_same_on_average_with_less_noise():
    reference = scores()
    changed = moved(reference)
    truth = Divergence({"y": reference}).of({"y": changed})
    drawn = [found_divergence(draw({"y": reference}, 40, seed), reference, changed) for seed in range(200)]
    rng = np.random.default_rng(0)
    plain = [
        Divergence({"y": reference[rows]}).of({"y": changed[rows]})
        for rows in (rng.choice(len(reference), 40, replace=False) for _ in range(200))
    ]
    assert np.mean(drawn) == pytest.approx(truth, rel=0.05)
    assert np.std(drawn) < 0.7 * np.std(plain)


def test_all_samples_count_alike_where_there_are_no_more():
    reference = scores(7)
    drawn = draw({"y": reference}, 20, 0)
    np.testing.assert_array_equal(drawn.rows, np.arange(7))
    np.testing.assert_allclose(drawn.weights, 1 / 7)


def test_outputs_that_are_no_class_scores_are_drawn_alike():
    drawn = draw({"y": np.ones((9, 2, 2, 2), np.float32)}, 4, 0)
    np.testing.assert_array_equal(drawn.rows, np.arange(4))
    np.testing.assert_allclose(drawn.weights, 1 / 4)


def test_an_original_that_is_sure_of_everything_has_no_samples_that_tell_more():
    sure = np.where(np.eye(3)[np.arange(30) % 3] > 0, 500.0, -500.0)
    drawn = draw({"y": sure}, 10, 0)
    np.testing.assert_allclose(drawn.weights, 1 / 10)


def test_the_weights_sum_to_one_on_average():
    sums = [draw({"y": scores()}, 40, seed).weights.sum() for seed in range(2000)]
    assert np.mean(sums) == pytest.approx(1.0, abs=0.03)


def test_probabilities_are_as_sure_as_their_scores():
    reference = scores()
    powers = np.exp(reference - reference.max(1, keepdims=True))
    of_scores = unsureness({"y": reference})
    np.testing.assert_allclose(unsureness({"y": powers / powers.sum(1, keepdims=True)}), of_scores, atol=1e-9)


def test_positions_of_a_sample_count_together():
    steps = scores(12).reshape(4, 3, 5)
    expected = unsureness({"y": steps.reshape(12, 5)}).reshape(4, 3).mean(1)
    np.testing.assert_allclose(unsureness({"y": steps}), expected)


def test_weighted_positions_of_a_sample_weigh_alike():
    reference, weights = scores(12).reshape(4, 3, 5), np.array([0.7, 0.1, 0.1, 0.1])
    changed = moved(reference)
    alone = [Divergence({"y": reference[[i]]}).of({"y": changed[[i]]}) for i in range(4)]
    found = Divergence({"y": reference}, weights).of({"y": changed})
    assert found == pytest.approx(weights @ alone)
