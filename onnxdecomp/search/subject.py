"""A layer whose options are wanted, and its candidates as they are remembered."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from onnxdecomp.methods.base import FloatArray
from onnxdecomp.ranks.study import Candidate, Study
from onnxdecomp.search.fitting import Task, largest_ranks
from onnxdecomp.selection import Target
from onnxdecomp.weights.fit import Fit
from onnxdecomp.weights.moments import Moments


@dataclass(frozen=True)
class Subject:
    """A layer whose options are wanted.

    Args:
        target: The layer.
        study: It under study, without data.
        moments: Of its input.
        bias: What it adds to every output, ``(O,)``; None when that cannot be changed.
    """

    target: Target
    study: Study
    moments: Moments
    bias: FloatArray | None

    def task(self, fit: Fit, candidates: Sequence[Candidate] = (), spread: Sequence[Candidate] = ()) -> Task:
        """Return the work of a fit to some candidates of a spread, as plain data."""
        study = replace(self.study, measure=None)
        return Task(study, self.moments, self.bias, fit, candidates, largest_ranks(spread))

    def key(self, guide: Fit) -> dict[str, object]:
        """Return what the spread of the layer follows from, given model, samples and settings."""
        layer, study = self.study.layer, self.study
        return {
            "layer": layer.key,
            "spec": asdict(layer.spec),
            "in_shape": layer.in_shape,
            "methods": [method.full_name for method in study.methods],
            "asked_for": study.asked_for,
            "block": study.block,
            "seed": study.seed,
            "with_bias": self.bias is not None,
            "guide": asdict(guide),
        }


def name_of(candidate: Candidate) -> str:
    """Return what tells a candidate from the others of its layer.

    >>> name_of(candidate)  # doctest: +SKIP
    'tucker2 16,24'
    """
    return f"{candidate.method.full_name} {','.join(map(str, candidate.ranks))}"


def told(candidates: list[Candidate] | str) -> dict[str, object]:
    """Return a spread as JSON can express it."""
    if isinstance(candidates, str):
        return {"reason": candidates}
    return {"candidates": [(c.method.full_name, c.ranks, c.error) for c in candidates]}


def recalled(study: Study, told: Mapping[str, Any]) -> list[Candidate] | str:
    """Return the spread that `told` told of."""
    if "reason" in told:
        return str(told["reason"])
    methods = {method.full_name: method for method in study.methods}
    return [
        replace(study.planned(methods[name], tuple(ranks)), error=error)
        for name, ranks, error in told["candidates"]
    ]
