"""Losses that the original's own probabilities foretell, over simulated classifiers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.runtime.beliefs import TEMPERATURES, Beliefs
from onnxdecomp.runtime.divergence import log_softmax

N_CLASSES, N_SAMPLES = 10, 4000


def simulated(rng, temperature=1.0):
    """Return scores of a classifier that are right over `temperature`, and labels."""
    scores = 3.0 * rng.standard_normal((N_SAMPLES, N_CLASSES))
    right = np.exp(log_softmax(scores)).cumsum(axis=1)
    labels = np.minimum((rng.random((N_SAMPLES, 1)) > right).sum(axis=1), N_CLASSES - 1)
    return temperature * scores, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found(temperature):
    found = Beliefs(*simulated(np.random.default_rng(0), temperature)).temperature
    assert found == pytest.approx(temperature, rel=0.05)


def test_the_loss_is_that_by_labels_with_less_noise():
    rng, by_labels, believed = np.random.default_rng(0), [], []
    for _ in range(40):
        scores, labels = simulated(rng)
        chosen = np.argmax(scores + 0.5 * rng.standard_normal(scores.shape), axis=1)
        by_labels.append(np.mean(np.argmax(scores, axis=1) == labels) - np.mean(chosen == labels))
        believed.append(np.mean(Beliefs(scores, labels).lost(chosen)))
    assert np.mean(believed) == pytest.approx(np.mean(by_labels), abs=3 * np.std(by_labels) / np.sqrt(40))
    assert np.std(believed) < 0.5 * np.std(by_labels)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(2, 6), st.integers(1, 30), st.integers(0, 1000))
def test_the_own_class_loses_nothing_and_none_gains(n_classes, n, seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.standard_normal((n, n_classes)), rng.integers(0, n_classes, n)
    beliefs = Beliefs(scores, labels)
    assert TEMPERATURES[0] <= beliefs.temperature <= TEMPERATURES[1]
    assert np.all(beliefs.lost(np.argmax(scores, axis=1)) == 0)
    assert np.all(beliefs.lost(rng.integers(0, n_classes, n)) >= 0)
    assert np.all(beliefs.lost(np.full(n, -1)) >= 1 / n_classes - 1e-12)


def test_a_class_that_was_ruled_out_may_be_the_right_one():
    scores = np.array([[0.0, -np.inf], [1.0, 0.0], [0.0, 2.0]])
    lost = Beliefs(scores, np.array([1, 0, 1])).lost(np.array([1, 1, 1]))
    assert np.all(np.isfinite(lost))
    assert lost[2] == 0 < lost[1]
