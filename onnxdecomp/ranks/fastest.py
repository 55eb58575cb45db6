"""``auto``: per layer the fastest chain within a weight error, kept only if it is measured to be faster.

Without data the weight error stands in for accuracy: a careful default, not a promise.
"""

from dataclasses import dataclass, replace
from typing import Self

from onnxdecomp.ranks.policy import Choice, Policy, no_argument
from onnxdecomp.ranks.search import within_error
from onnxdecomp.ranks.study import Study

MARGIN = 1.02
"""What the lower end of a speed-up's spread must exceed; a layer timed against itself may show 1.004."""

SHORTLIST = 3
"""Candidates per layer that are timed: those with the fewest MACs."""


@dataclass(frozen=True)
class Fastest(Policy):
    """Take the fastest measured chain whose weight error is at most `max_error`."""

    max_error: float = 0.1

    name = "auto"

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take no argument."""
        no_argument(cls.name, argument)
        return cls()

    def choose(self, study: Study) -> Choice:
        """Time the shortlist beside the layer and take the fastest that gains more than the noise."""
        if study.measure is None or study.layer.in_shape is None:
            return "its input shape is unknown, so nothing can be timed: give the sizes with --shape"
        found = [within_error(study, method, self.max_error) for method in study.methods]
        fitting = [candidate for candidate in found if candidate is not None]
        if not fitting:
            return f"no method stays within a weight error of {self.max_error:g} with fewer weights and MACs"
        fitting.sort(key=lambda c: (c.n_macs or 0, c.error))
        shortlist = fitting[:SHORTLIST]
        measured = study.measure(study.layer, shortlist)
        best, timing = max(zip(shortlist, measured, strict=True), key=lambda pair: pair[1].speedup)
        if timing.speedup_low <= MARGIN:
            return (
                f"not faster: {best.method.full_name} {_ranks(best.ranks)} takes {timing.chain_ms:.3g} ms, "
                f"the layer {timing.dense_ms:.3g} ms"
            )
        return replace(best, measured=timing)


def _ranks(ranks: tuple[int, ...]) -> str:
    return "R=" + ",".join(str(rank) for rank in ranks)
