"""What a changed classifier is expected to lose, by what the original believes of the classes.

Two models differ where the original is unsure, and what a single label says there is little more than the
toss of a coin. Its class probabilities, calibrated on all labels, say how often it is right with its own
class and how often it would be with the other one: the expected loss, with a third to half of the noise. They
do not know what the changed model may know better, so it comes out somewhat too high.

Source: Guo et al., "On calibration of modern neural networks", ICML 2017, for calibrating by a temperature.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from onnxdecomp.runtime.divergence import log_softmax
from onnxdecomp.runtime.session import Array

FloatArray = NDArray[np.float64]

TEMPERATURES = (0.05, 20.0)
"""Temperatures that are tried."""

LEAST_SCORE = -80.0
"""Logarithms of probabilities below this count as this: a class that was ruled out may be the right one."""


class Beliefs:
    """Class probabilities of the original.

    Args:
        logs: ``(n, C)``, logarithms of its probabilities, or scores that differ from them by a constant.
        labels: ``(n,)``, the right classes.

    Attributes:
        temperature: What the scores are divided by for probabilities that fit the labels best.
    """

    def __init__(self, logs: FloatArray, labels: Array) -> None:
        self._rows = np.arange(len(logs))
        scores = np.maximum(log_softmax(logs), LEAST_SCORE)

        def surprise(log_temperature: float) -> float:
            return -float(np.mean(log_softmax(scores / np.exp(log_temperature))[self._rows, labels]))

        found = minimize_scalar(surprise, bounds=np.log(TEMPERATURES), method="bounded")
        self.temperature = float(np.exp(found.x))
        self._probabilities = np.exp(log_softmax(scores / self.temperature))
        self._own = self._probabilities[self._rows, np.argmax(scores, axis=1)]

    def lost(self, chosen: NDArray[np.integer]) -> FloatArray:
        """Return how much less likely chosen classes ``(n,)`` are right than the original's own, ``(n,)``.

        A class of -1 is never right.
        """
        return np.asarray(self._own - np.where(chosen < 0, 0.0, self._probabilities[self._rows, chosen]))
