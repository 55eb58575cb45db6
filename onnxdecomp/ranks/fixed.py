"""Ranks that need no search: keep everything, decompose exactly, or one number for all layers."""

from dataclasses import dataclass
from typing import Self

from onnxdecomp.errors import UsageError
from onnxdecomp.ranks.policy import Choice, Policy, no_argument
from onnxdecomp.ranks.study import Study


class Keep(Policy):
    """``none``: decompose nothing."""

    name = "none"

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take no argument."""
        no_argument(cls.name, argument)
        return cls()

    def choose(self, study: Study) -> Choice:
        """Keep every layer."""
        return "rank is none"


class Full(Policy):
    """``full``: decompose everything exactly, for proofs; chains may be larger than their layers."""

    name = "full"
    guarded = False

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take no argument."""
        no_argument(cls.name, argument)
        return cls()

    def choose(self, study: Study) -> Choice:
        """Take the method whose exact chain has the fewest weights."""
        planned = [study.planned(m, m.rank_bounds(study.layer)) for m in study.methods]
        smallest = min(planned, key=lambda c: (c.n_params, c.method.full_name))
        return study.candidate(smallest.method, smallest.ranks)


@dataclass(frozen=True)
class Fixed(Policy):
    """A number: every rank of every layer takes this value, as far as the layer has that many."""

    rank: int

    name = "N"

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Read a positive number."""
        if not argument.isdigit() or int(argument) < 1:
            raise UsageError(f"--rank {argument}: a rank is a whole number of 1 or more.")
        return cls(int(argument))

    def choose(self, study: Study) -> Choice:
        """Take the most accurate method that shrinks the layer at this rank."""
        bounds = {m: m.rank_bounds(study.layer) for m in study.methods}
        largest = max(max(b) for b in bounds.values())
        if self.rank > largest:
            return f"rank {self.rank} is above the largest rank of this layer, {largest}"
        planned = [
            study.planned(method, tuple(min(self.rank, b) for b in bound))
            for method, bound in bounds.items()
            if self.rank <= max(bound)
        ]
        smaller = [c for c in planned if study.shrinks(c) and study.worth_solving(c.method, c.ranks)]
        if not smaller:
            return f"at rank {self.rank} no method makes this layer smaller"
        found = [study.candidate(c.method, c.ranks, max_ranks=c.ranks) for c in smaller]
        return min(found, key=lambda c: (c.error, c.n_params))
