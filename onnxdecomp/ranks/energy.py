"""``energy:X``: every layer keeps at least the share X of the energy of its weight."""

from dataclasses import dataclass
from math import sqrt
from typing import Self

from onnxdecomp.ranks.policy import Choice, Policy, share
from onnxdecomp.ranks.search import within_error
from onnxdecomp.ranks.study import Study


@dataclass(frozen=True)
class Energy(Policy):
    """Keep at least `energy`, the share of the squared Frobenius norm of the weight."""

    energy: float

    name = "energy"

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Read a share between 0 and 1."""
        return cls(share(cls.name, argument))

    def choose(self, study: Study) -> Choice:
        """Take the method that needs the fewest weights."""
        found = [within_error(study, method, sqrt(1.0 - self.energy)) for method in study.methods]
        smaller = [candidate for candidate in found if candidate is not None]
        if not smaller:
            return f"no method keeps {self.energy:g} of the energy with fewer weights and MACs"
        return min(smaller, key=lambda c: (c.n_params, c.error))
