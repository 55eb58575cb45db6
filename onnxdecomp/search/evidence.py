"""What a choice is expected to lose, from all choices that were evaluated.

A loss of accuracy is counted in whole samples: a few thousand tell one point from two, not from 1.2. How far
the outputs moved is known with far less noise, and where it is small accuracy falls in proportion to it: the
divergence is a square of movements, and of answers near a border that change about half become right. Answers
change in proportion to its root. So the ratio of the two is estimated from all choices evaluated on the same
samples, those with about the same divergence most, and a choice is judged by its divergence times that ratio.
Where what is lost was also told without counting (`Drop.smoothed`), the two are averaged, each as far as it
is known.
"""

from dataclasses import dataclass, field
from math import exp, isfinite, log

from onnxdecomp.runtime.drop import Drop

GROWTH = {"top1": 1.0, "agreement": 0.5}
"""Powers of the divergence that drops of these metrics are in proportion to."""

REACH = 1.0
"""Choices whose divergence differs by this factor of e count 0.6 times as much as those with the same."""


@dataclass
class Evidence:
    """Drops of accuracy and divergences on one part of the data.

    Args:
        growth: Power of the divergence that drops are in proportion to; None judges each choice by its own.
    """

    growth: float | None
    _seen: list[tuple[float, Drop]] = field(default_factory=list, repr=False)

    def add(self, drop: Drop, divergence: float) -> None:
        """Take note of an evaluated choice."""
        if 0 < divergence < float("inf") and isfinite(drop.value):
            self._seen.append((divergence, drop))

    def expected(self, drop: Drop, divergence: float) -> tuple[float, float]:
        """Return what an evaluated choice is expected to lose, and the standard error of that."""
        if self.growth is None or not (self._seen and 0 < divergence < float("inf")):
            return drop.likely()
        return drop.with_smoothed(*self._counted(drop, divergence, self.growth))

    def _counted(self, drop: Drop, divergence: float, growth: float) -> tuple[float, float]:
        """Return the same from counts and divergences alone.

        Errors of choices count as if they were the same error, since the samples are the same ones.
        """
        least = 1.0 / drop.n_samples  # no error is 0 because no sample differed
        total = lost = doubt = 0.0
        for other, seen in self._seen:
            error = max(seen.standard_error, least)
            near = exp(-0.5 * (log(other / divergence) / REACH) ** 2)
            weight = near * other**growth / error**2
            total += weight * other**growth
            lost += weight * seen.value
            doubt += weight * error
        if not (isfinite(total) and total > 0):
            return drop.value, drop.standard_error
        return divergence**growth * lost / total, divergence**growth * doubt / total
