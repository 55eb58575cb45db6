"""``ratio:X``: every layer keeps at most the share X of its weights, at the least weight error."""

from dataclasses import dataclass
from typing import Self

from onnxdecomp.ranks.policy import Choice, Policy, share
from onnxdecomp.ranks.search import within_budget
from onnxdecomp.ranks.study import Study


@dataclass(frozen=True)
class Ratio(Policy):
    """Keep at most `ratio` of a layer's weights."""

    ratio: float

    name = "ratio"

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Read a share between 0 and 1."""
        return cls(share(cls.name, argument))

    def choose(self, study: Study) -> Choice:
        """Take the method with the least error among those that fit and do not add MACs."""
        budget = self.ratio * study.layer.n_params
        found = []
        for method in study.methods:
            candidate = within_budget(study, method, lambda c: c.n_params <= budget)
            if candidate is not None and study.shrinks(candidate):
                found.append(candidate)
        if not found:
            return f"no method fits into {self.ratio:g} of its {study.layer.n_params:,} weights"
        return min(found, key=lambda c: (c.error, c.n_params))
