"""Losses that the original's own probabilities foretell, over simulated classifiers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.runtime.beliefs import MAX_WEIGHT, Beliefs
from onnxdecomp.runtime.divergence import log_softmax

N_CLASSES, N_SAMPLES = 10, 4000


def simulated(rng, temperature=1.0):
    """Return scores of a classifier that are right over `temperature`, and labels."""
    scores = 3.0 * rng.standard_normal((N_SAMPLES, N_CLASSES))
    right = np.exp(log_softmax(scores)).cumsum(axis=1)
    labels = np.minimum((rng.random((N_SAMPLES, 1)) > right).sum(axis=1), N_CLASSES - 1)
    return temperature * scores, labels


def drop_by_labels(scores, changed, labels) -> float:
    return np.mean(np.argmax(scores, axis=1) == labels) - np.mean(np.argmax(changed, axis=1) == labels)


def intact(scores):
    return np.zeros(len(scores), bool)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found(temperature):
    found = Beliefs(*simulated(np.random.default_rng(0), temperature)).weight
    assert found == pytest.approx(1 / temperature, rel=0.05)


@pytest.mark.parametrize("known_better", [0.0, 0.5])
def test_the_loss_is_that_by_labels_with_less_noise(known_better):
    rng, by_labels, believed, errors = np.random.default_rng(0), [], [], []
    for _ in range(40):
        truth, labels = simulated(rng)
        noise = rng.standard_normal(truth.shape)
        scores = truth + known_better * noise  # of this noise the changed model is free
        changed = truth + (0.5 + known_better) * rng.standard_normal(truth.shape)
        by_labels.append(drop_by_labels(scores, changed, labels))
        found, error = Beliefs(scores, labels).lost(changed, intact(scores))
        believed.append(found)
        errors.append(error)
    assert np.mean(believed) == pytest.approx(np.mean(by_labels), abs=3 * np.std(by_labels) / np.sqrt(40))
    assert np.std(believed) < 0.6 * np.std(by_labels)
    assert np.mean(errors) == pytest.approx(np.std(believed), rel=0.35)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(2, 6), st.integers(1, 30), st.integers(0, 1000))
def test_the_same_scores_lose_nothing_and_broken_ones_all(n_classes, n, seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.standard_normal((n, n_classes)), rng.integers(0, n_classes, n)
    beliefs = Beliefs(scores, labels)
    assert abs(beliefs.weight) <= MAX_WEIGHT
    assert beliefs.lost(scores, intact(scores)) == (0.0, 0.0)
    found, error = beliefs.lost(rng.standard_normal(scores.shape), intact(scores))
    assert np.isfinite(found)
    assert np.isfinite(error)
    assert beliefs.lost(np.full(scores.shape, np.nan), ~intact(scores))[0] > 0


def test_a_class_that_was_ruled_out_may_be_the_right_one():
    scores = np.array([[0.0, -np.inf], [1.0, 0.0], [0.0, 2.0]])
    changed = np.array([[-np.inf, 0.0], [0.0, 1.0], [0.0, 2.0]])
    assert np.all(np.isfinite(Beliefs(scores, np.array([1, 0, 1])).lost(changed, intact(scores))))
