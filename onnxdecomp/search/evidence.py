"""What a choice is expected to lose, from all choices that were evaluated.

A loss of accuracy is counted in whole samples: a few thousand tell one point from two, not from 1.2. How far
the outputs moved is known with far less noise, and where it is small accuracy falls in proportion to it: the
divergence is a square of movements, and of answers near a border that change about half become right. Answers
change in proportion to its root. So the ratio of the two is estimated from all choices evaluated on the same
samples, those with about the same divergence most, and a choice is judged by its divergence times that ratio.
Where what is lost was also told without counting (`Drop.smoothed`), that is estimated in the same way, and
the two are averaged, each as far as it is known.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import exp, isfinite, log

from onnxdecomp.runtime.drop import SMOOTHING_DOUBT, Drop


@dataclass(frozen=True)
class Proportion:
    """What is lost at a divergence before anything was evaluated: ``ratio * divergence ** growth``.

    Args:
        ratio: Loss at a divergence of 1.
        growth: Power of the divergence that losses are in proportion to.
    """

    ratio: float = 1.0
    growth: float = 1.0

    def at(self, divergence: float) -> float:
        """Return the loss at a divergence."""
        return float(self.ratio * divergence**self.growth)


PROPORTIONS = {"top1": Proportion(0.3), "agreement": Proportion(0.2, 0.5)}
"""Those of metrics whose drops are in proportion to the divergence.

The ratios are about the median over five reference networks, of 0.2 to 0.4 and 0.1 to 0.4: where to look
first.
"""

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
        least = 1.0 / drop.n_samples  # no error is 0 because no sample differed
        counted = [(d, seen.value, max(seen.standard_error, least)) for d, seen in self._seen]
        value, error = _at(divergence, counted, self.growth) or (drop.value, drop.standard_error)
        if drop.smoothed is None:
            return value, error
        told = [
            (d, seen.smoothed, max(seen.smoothed_error, SMOOTHING_DOUBT * least))
            for d, seen in self._seen
            if seen.smoothed is not None
        ]
        smoothed, doubt = _at(divergence, told, self.growth) or (drop.smoothed, drop.smoothed_error)
        return replace(drop, smoothed=smoothed, smoothed_error=doubt).with_smoothed(value, error)


def _at(
    divergence: float, seen: Iterable[tuple[float, float, float]], growth: float
) -> tuple[float, float] | None:
    """Return what is lost at a divergence, and the standard error of that; None when nothing is known.

    Errors of choices count as if they were the same error, since the samples are the same ones.

    Args:
        divergence: How far the outputs move.
        seen: Divergence of each choice, what it lost, and the standard error of that.
        growth: Power of the divergence that losses are in proportion to.
    """
    total = lost = doubt = 0.0
    for other, value, error in seen:
        near = exp(-0.5 * (log(other / divergence) / REACH) ** 2)
        weight = near * other**growth / error**2
        total += weight * other**growth
        lost += weight * value
        doubt += weight * error
    if not (isfinite(total) and total > 0):
        return None
    return divergence**growth * lost / total, divergence**growth * doubt / total
