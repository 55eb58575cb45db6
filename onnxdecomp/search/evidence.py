"""What a choice is expected to lose, from all choices that were evaluated.

A loss of accuracy is counted in whole samples: a few thousand tell one point from two, not from 1.2. How far
the outputs moved is known with far less noise, and where it is small accuracy falls in proportion to it. So
the ratio of the two is estimated from all choices evaluated on the same samples, those with about the same
divergence most, and a choice is judged by its divergence times that ratio. Where the original's own
probabilities say what is lost (`runtime.beliefs`), the two are averaged, each as far as it is known.
"""

from dataclasses import dataclass, field
from math import exp, hypot, isfinite, log

from onnxdecomp.runtime.drop import Drop

BELIEF_DOUBT = 0.2
"""By what share the original's probabilities may be wrong about a loss."""

REACH = 1.0
"""Choices whose divergence differs by this factor of e count 0.6 times as much as those with the same."""


@dataclass
class Evidence:
    """Drops of accuracy and divergences on one part of the data.

    Args:
        pooled: Whether drops are in proportion to divergences; if not, each choice is judged by its own.
    """

    pooled: bool
    _seen: list[tuple[float, Drop]] = field(default_factory=list, repr=False)

    def add(self, drop: Drop, divergence: float) -> None:
        """Take note of an evaluated choice."""
        if 0 < divergence < float("inf") and isfinite(drop.value):
            self._seen.append((divergence, drop))

    def expected(self, drop: Drop, divergence: float) -> tuple[float, float]:
        """Return what an evaluated choice is expected to lose, and the standard error of that."""
        return _with_beliefs(*self._by_labels(drop, divergence), drop)

    def _by_labels(self, drop: Drop, divergence: float) -> tuple[float, float]:
        """Return the same from labels and divergences alone.

        Errors of choices count as if they were the same error, since the samples are the same ones.
        """
        if not (self.pooled and self._seen and 0 < divergence < float("inf")):
            return drop.value, drop.standard_error
        least = 1.0 / drop.n_samples  # no error is 0 because no sample differed
        total = lost = doubt = 0.0
        for other, seen in self._seen:
            error = max(seen.standard_error, least)
            near = exp(-0.5 * (log(other / divergence) / REACH) ** 2)
            weight = near * other / error**2
            total += weight * other
            lost += weight * seen.value
            doubt += weight * error
        if not (isfinite(total) and total > 0):
            return drop.value, drop.standard_error
        return divergence * lost / total, divergence * doubt / total


def likely(drop: Drop) -> float:
    """Return what a drop comes to by itself, labels and beliefs averaged."""
    return _with_beliefs(drop.value, max(drop.standard_error, 1.0 / drop.n_samples), drop)[0]


def _with_beliefs(value: float, error: float, drop: Drop) -> tuple[float, float]:
    """Return a loss by labels and its standard error, averaged with what the original believes is lost."""
    if drop.believed is None or not (isfinite(value) and isfinite(error)):
        return value, error
    doubt = hypot(drop.believed_error, BELIEF_DOUBT * drop.believed)
    if not (error > 0 and doubt > 0):
        return value, error
    own, theirs = error**-2, doubt**-2
    return (own * value + theirs * drop.believed) / (own + theirs), (own + theirs) ** -0.5
