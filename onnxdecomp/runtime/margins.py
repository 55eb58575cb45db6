"""How often a changed classifier chooses otherwise, told by margins instead of counted.

An answer changes where the margin of the original's class moves by more than itself. Which samples lie near
a border, and which of those happen to move far, is chance: a count of answers has a good part of its noise
from there. So each sample's margin is compared with the movements of all samples, not with its own alone;
and samples that the changed model was fitted to have margins too, which it had no part in. Movements are
larger where margins are, by a power that is fitted, and are compared in proportion to it.

That takes movements to be alike, at a margin, for all samples. Where they are smaller near the borders than
elsewhere it says more changed answers than there are.
"""

from math import sqrt

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

LEAST_MARGIN, MOST_MARGIN = 1e-6, 80.0
"""Margins, in logarithms of probabilities, below and above these count as these: a class may be ruled out."""


class Margins:
    """The original's margins on samples.

    Args:
        logs: ``(n, C)``, logarithms of its class probabilities, or scores that differ from them by a constant
            of the row; C is 2 or more.
        more_logs: ``(k, C)``, the same of more samples like these, of which only the margins count.
    """

    def __init__(self, logs: FloatArray, more_logs: FloatArray | None = None) -> None:
        self._own = np.argmax(logs, axis=1)
        self._margins = _ahead(logs, self._own)  # (n,)
        more = [] if more_logs is None else [_ahead(more_logs, np.argmax(more_logs, axis=1))]
        self._all = np.concatenate([self._margins, *more])  # (m,), m = n + k

    def changed(self, logs: FloatArray) -> tuple[float, float]:
        """Return the share of answers that changes, and its standard error over the choice of the samples.

        The share is the mean over all pairs of a margin and a movement, a statistic of two samples that are
        in part the same one. Its error is that of its projection onto single samples.

        Source: Hoeffding, "A class of statistics with asymptotically normal distribution", Annals of
        Mathematical Statistics 19 (1948).

        Args:
            logs: ``(n, C)``, the same of the changed model. A row with NaN is another answer.
        """
        fallen = self._margins - _ahead(logs, self._own)  # (n,), margin that was lost
        growth = _growth(self._margins, fallen)
        fallen = fallen / np.maximum(self._margins, LEAST_MARGIN) ** growth
        margins = self._all / np.maximum(self._all, LEAST_MARGIN) ** growth  # (m,)
        n, m = len(fallen), len(margins)
        by_margin = 1.0 - np.searchsorted(np.sort(fallen), margins, side="right") / n  # (m,)
        by_movement = np.searchsorted(np.sort(margins), fallen, side="left") / m  # (n,)
        share = float(by_margin.mean())
        influence = (by_margin - share) / m
        influence[:n] += (by_movement - share) / n
        return share, sqrt(float(influence @ influence))


def _ahead(logs: FloatArray, chosen: NDArray[np.intp]) -> FloatArray:
    """Return by how much a chosen class is ahead of the best of the others, ``(n,)``."""
    rows, others = np.arange(len(logs)), logs.copy()
    others[rows, chosen] = -np.inf
    ahead = logs[rows, chosen] - others.max(axis=1)
    return np.clip(np.where(np.isnan(logs).any(axis=1), -MOST_MARGIN, ahead), -MOST_MARGIN, MOST_MARGIN)


def _growth(margins: FloatArray, fallen: FloatArray) -> float:
    """Return by which power of the margin movements grow, between 0 and 1, by least squares of logarithms."""
    moved = (fallen != 0) & (margins > LEAST_MARGIN)
    if not np.any(moved):
        return 0.0
    x, y = np.log(margins[moved]), np.log(np.abs(fallen[moved]))
    x -= x.mean()
    spread = float(x @ x)
    return min(max(float(x @ y) / spread, 0.0), 1.0) if spread > 0 else 0.0
