"""What one layer may become, worked out from plain data: `workers` runs this in other processes.

Nothing here knows onnx or onnxruntime, so a worker starts at once.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from onnxdecomp.layer import Layer
from onnxdecomp.methods.base import Chain, FloatArray, Method, Ranks, recompose
from onnxdecomp.ranks.search import within_budget
from onnxdecomp.ranks.study import Candidate, Study
from onnxdecomp.weights.fit import Data, Fit
from onnxdecomp.weights.moments import Moments
from onnxdecomp.weights.refit import Metric

SHARES = (0.8, 0.65, 0.5, 0.4, 0.33, 0.27, 0.22, 0.18, 0.14, 0.11, 0.08, 0.06)
"""Shares of a layer's MACs at which every method shows its best candidate."""

SOLVED_SHARES = (0.33, 0.22, 0.14, 0.1, 0.07, 0.05, 0.035)
"""The same for methods that need a solve at each rank: CP pays at few components."""

MAX_SOLVE_FLOPS = 6e10
"""Work of one of those solves at the most: about one and a half seconds on one core."""

MIN_SOLVED_TAPS = 25
"""Kernels below this size are left to the closed forms in an automatic search: CP pays on large kernels."""

SLACK = 1.15
"""A candidate whose estimated error is above this many times the least at its cost is not looked at again.
Methods with spectra and those that need a solve are compared among themselves: the estimate is made before
steps are fitted together, by which CP gains more."""

MAX_TIMED = 24
"""Candidates of a layer with spectra, and without, that are timed."""

MAX_HELD_BYTES = 2**28
"""What the layers that chains were made of last may take together."""


@dataclass(frozen=True)
class Task:
    """A layer to be fitted to data in one way.

    Args:
        study: The layer under study, without data and without a clock.
        moments: Of its input.
        bias: What it adds to every output, ``(O,)``; None when that cannot be changed.
        fit: How to fit.
        candidates: What to fit; empty while candidates are looked for.
        largest: Largest rank that a method with one rank is analyzed for, by its full name: the last bits of
            a chain depend on it, and must not on what else is fitted.
    """

    study: Study
    moments: Moments
    bias: FloatArray | None
    fit: Fit
    candidates: Sequence[Candidate] = ()
    largest: Mapping[str, Ranks] = field(default_factory=dict)


@dataclass(frozen=True)
class Fitted:
    """A candidate's chain.

    Args:
        chain: The chain.
        error: Relative error of the layer's output on the data.
        bias: ``(O,)`` with the mean of what is lost; None keeps the layer's.
    """

    chain: Chain
    error: float
    bias: FloatArray | None


def spread(task: Task) -> list[Candidate] | str:
    """Return the candidates worth timing, those with the most MACs first, or why there are none."""
    study = replace(_with_data(task), max_solve_flops=MAX_SOLVE_FLOPS)
    assert study.data is not None
    if study.data.metric.energy <= 0:
        return "its output is constant on the calibration samples, so nothing can be fitted"
    found: dict[tuple[str, tuple[int, ...]], Candidate] = {}
    for method in study.methods:
        for share in _shares(study, method):
            candidate = within_budget(study, method, lambda c, s=share: _fits(study, c, s))  # type: ignore[misc]
            if candidate is not None and study.shrinks(candidate):
                found[method.full_name, candidate.ranks] = candidate
    nested = _promising([candidate for candidate in found.values() if candidate.method.nested])
    solved = _promising([candidate for candidate in found.values() if not candidate.method.nested])
    return sorted(nested + solved, key=_by_macs, reverse=True) or "no method makes it smaller"


def fitted(tasks: Sequence[Task]) -> list[list[Fitted]]:
    """Return the chains of tasks for one layer, fitted to the data, which is laid out once."""
    found = []
    metric = None
    for task in tasks:
        study = _with_data(task, metric)
        assert study.data is not None
        metric = study.data.metric
        found.append([_fitted(study, candidate, task) for candidate in task.candidates])
    return found


def largest_ranks(candidates: Sequence[Candidate]) -> dict[str, Ranks]:
    """Return the largest rank of each method that has one rank, by its full name."""
    found: dict[str, Ranks] = {}
    for candidate in candidates:
        if len(candidate.ranks) == 1:
            name = candidate.method.full_name
            found[name] = max(candidate.ranks, found.get(name, candidate.ranks))
    return found


class Fitter:
    """Makes chains one by one, bit for bit as `fitted` makes them together.

    What the last ones were made from is held for the next ones of the same layer and fit.

    Args:
        max_bytes: About what that may take.
    """

    def __init__(self, max_bytes: int = MAX_HELD_BYTES) -> None:
        self._max_bytes = max_bytes
        self._studies: OrderedDict[tuple[Layer, Fit], Study] = OrderedDict()

    def fitted(self, task: Task) -> Fitted:
        """Return the chain of the one candidate of a task; no two threads may ask at once."""
        key = task.study.layer, task.fit  # a layer with fewer channels has the same key
        study = self._studies.pop(key, None) or _with_data(task)
        self._studies[key] = study
        while len(self._studies) > 1 and sum(map(_held_bytes, self._studies.values())) > self._max_bytes:
            self._studies.popitem(last=False)
        (candidate,) = task.candidates
        return _fitted(study, candidate, task)


def _held_bytes(study: Study) -> int:
    """Return about what a study with data takes: a moment, a root and its inverse, and factors."""
    assert study.data is not None
    return 3 * study.data.metric.moment.nbytes + 4 * study.data.metric.weight.nbytes


def _with_data(task: Task, metric: Metric | None = None) -> Study:
    """Return the layer under study with its data, and its metric if that is not known yet."""
    weight = np.ascontiguousarray(task.study.weight)
    metric = metric or _metric(task, weight)
    return replace(task.study, weight=weight, data=Data(metric, task.fit), _analyses={})


def _metric(task: Task, weight: FloatArray) -> Metric:
    """Return how errors of the weight count."""
    return Metric.of(task.study.layer, weight, task.moments.in_order(), with_bias=task.bias is not None)


def _fitted(study: Study, candidate: Candidate, task: Task) -> Fitted:
    """Return the chain of a candidate, whatever was made before it."""
    if not candidate.method.nested:  # one solve would see the others
        study = replace(study, _analyses={})
    study.analysis(candidate.method, task.largest.get(candidate.method.full_name))
    assert study.data is not None
    bias = task.bias
    chain, error = study.chain(candidate)
    chain = replace(chain, weights=tuple(np.ascontiguousarray(weight) for weight in chain.weights))
    if bias is not None:
        whole = recompose(chain.specs, chain.weights, study.layer.group)
        bias = np.ascontiguousarray(bias + study.data.metric.bias_shift(whole))
    return Fitted(chain, error, bias)


def _by_macs(candidate: Candidate) -> tuple[int, float]:
    return candidate.n_macs or 0, candidate.error


def _promising(candidates: list[Candidate]) -> list[Candidate]:
    """Return the candidates that are not much worse than a smaller one, so many as are timed."""
    kept: list[Candidate] = []
    least = float("inf")
    for candidate in sorted(candidates, key=_by_macs):
        if candidate.error <= SLACK * least:
            kept.append(candidate)
        least = min(least, candidate.error)
    if len(kept) <= MAX_TIMED:
        return kept
    step = len(kept) / MAX_TIMED
    return [kept[int(index * step)] for index in range(MAX_TIMED)]


def _shares(study: Study, method: Method) -> tuple[float, ...]:
    if method.nested:
        return SHARES
    if prod(study.layer.kernel) < MIN_SOLVED_TAPS and not study.asked_for:
        return ()
    return SOLVED_SHARES


def _fits(study: Study, candidate: Candidate, share: float) -> bool:
    dense = study.layer.n_macs
    if dense is None or candidate.n_macs is None:
        return candidate.n_params <= share * study.layer.n_params
    return candidate.n_macs <= share * dense
