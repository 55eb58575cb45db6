"""What a changed classifier is expected to lose, by what the original and itself believe of the classes.

Two models differ where the original is unsure, and what a single label says there is little more than the
toss of a coin. Probabilities that fit all labels say how often each of the two classes is right: the expected
loss, with a third to half of the noise. They come from the scores of both models, each with a weight of its
own: that of the changed one is next to nothing where the change is noise, and counts where the changed model
knows something better, as a VGG-16 does whose large matrices have become smaller.

Source: Guo et al., "On calibration of modern neural networks", ICML 2017, for calibrating by a temperature;
with two models it is logistic regression on their scores (stacking, Wolpert, Neural Networks 5, 1992).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from onnxdecomp.runtime.divergence import log_softmax
from onnxdecomp.runtime.session import Array

FloatArray = NDArray[np.float64]

MAX_WEIGHT = 20.0
"""Largest weight of a model's scores, the inverse of a temperature."""

LEAST_SCORE = -80.0
"""Logarithms of probabilities below this count as this: a class that was ruled out may be the right one."""


class Beliefs:
    """Class probabilities from the scores of the original, and of a changed model beside it.

    Args:
        logs: ``(n, C)``, logarithms of the original's probabilities, or scores that differ from them by a
            constant.
        labels: ``(n,)``, the right classes.

    Attributes:
        weight: What the original's scores are multiplied by for probabilities that fit the labels best.
    """

    def __init__(self, logs: FloatArray, labels: Array) -> None:
        self._rows, self._labels = np.arange(len(logs)), labels
        self._scores = _scores(logs)
        (self.weight,) = self._fitted([self._scores], [1.0])

    def lost(self, logs: FloatArray, broken: NDArray[np.bool_]) -> tuple[float, float]:
        """Return how much less likely the classes of a changed model are right, and the standard error.

        Args:
            logs: ``(n, C)`` of the changed model, as those of the original.
            broken: ``(n,)``, samples whose output is never right; their scores do not count.

        Returns:
            The mean over samples; its standard error over the choice of the samples, that of the weights
            included.
        """
        n = len(self._rows)
        theirs = _scores(np.where(broken[:, np.newaxis], self._scores, logs))
        both = [self._scores, theirs]
        weights = self._fitted(both, [self.weight, 0.0])
        found = _probabilities(both, weights)  # (n, C)
        own, chosen = (np.argmax(scores, axis=1) for scores in both)
        kept = np.where(broken, 0.0, found[self._rows, chosen])
        lost = found[self._rows, own] - kept  # (n,)
        centred = np.stack([scores - np.sum(found * scores, axis=1, keepdims=True) for scores in both])
        information = np.einsum("inc,nc,jnc->ij", centred, found, centred) / n
        slopes = found[self._rows, own] * centred[:, self._rows, own] - kept * centred[:, self._rows, chosen]
        slope = slopes.mean(axis=1)  # (2,) of the mean loss over the weights
        variance = float(lost.var() + slope @ np.linalg.pinv(information, hermitian=True) @ slope) / n
        return float(lost.mean()), float(np.sqrt(variance))

    def _fitted(self, models: list[FloatArray], start: list[float]) -> FloatArray:
        """Return the weights of models' scores whose probabilities fit the labels best."""
        picked = np.stack([scores[self._rows, self._labels] for scores in models])  # (models, n)

        def surprise(weights: FloatArray) -> tuple[float, FloatArray]:
            logs = log_softmax(np.tensordot(weights, models, 1))
            expected = np.stack([np.sum(np.exp(logs) * scores, axis=1) for scores in models])
            return -float(np.mean(logs[self._rows, self._labels])), np.mean(expected - picked, axis=1)

        bounds = [(-MAX_WEIGHT, MAX_WEIGHT)] * len(models)
        found = minimize(surprise, start, jac=True, method="L-BFGS-B", bounds=bounds)
        return np.asarray(found.x, np.float64)


def _scores(logs: FloatArray) -> FloatArray:
    return np.maximum(log_softmax(logs), LEAST_SCORE)


def _probabilities(models: list[FloatArray], weights: FloatArray) -> FloatArray:
    return np.asarray(np.exp(log_softmax(np.tensordot(weights, models, 1))))
