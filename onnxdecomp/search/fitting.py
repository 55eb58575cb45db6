"""What one layer may become, worked out from plain data: `workers` runs this in other processes.

Nothing here knows onnx or onnxruntime, so a worker starts at once.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from math import inf, prod

import numpy as np

from onnxdecomp.layer import Layer
from onnxdecomp.methods.base import Chain, FloatArray, Method, Ranks, recompose
from onnxdecomp.ranks.search import within_budget
from onnxdecomp.ranks.study import Candidate, Study
from onnxdecomp.weights.fit import Data, Fit
from onnxdecomp.weights.moments import Moments
from onnxdecomp.weights.refit import ByTap, LastStep, Metric

SHARES = (0.8, 0.65, 0.5, 0.4, 0.33, 0.27, 0.22, 0.18, 0.14, 0.11, 0.08, 0.06)
"""Shares of a layer's MACs at which every method shows its best candidate."""

SOLVED_SHARES = (0.33, 0.22, 0.14, 0.1, 0.07, 0.05, 0.035)
"""The same for methods that need a solve at each rank: CP pays at few components."""

MAX_SOLVE_FLOPS = 6e10
"""Work of one of those solves at the most: about one and a half seconds on one core."""

MIN_SOLVED_TAPS = 25
"""Kernels below this size are left to the closed forms in an automatic search: CP pays on large kernels."""

SLACK = 1.15
"""A candidate whose error is about more than this many times the least at its cost is not looked at again.
Methods with spectra and those that need a solve are compared among themselves: by fitting all steps together,
which comes later, CP gains more."""

MAX_TIMED = 24
"""Candidates of a layer with spectra, and without, that are timed."""

N_REFITTED = 6
"""Candidates of each method that are refitted to tell the errors of all."""

LEAST_ERROR = 1e-6
"""Errors below this are taken for this: their logarithm says nothing."""

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
    nested: list[Candidate] = []
    solved: list[Candidate] = []
    for method in study.methods:
        tried = (
            within_budget(study, method, partial(_fits, study, share)) for share in _shares(study, method)
        )
        own = {one.ranks: one for one in tried if one is not None and study.shrinks(one)}
        if method.nested:
            nested += _as_refitted(study, list(own.values()))
        else:
            solved += own.values()
    found = _promising(nested) + _promising(solved)
    return sorted(found, key=_by_macs, reverse=True) or "no method makes it smaller"


def _as_refitted(study: Study, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return candidates of one method with about the errors that they have after a refit.

    Estimates of methods with several ranks are bounds, by which they look worse than others. Those of
    matrices are exact. Some are refitted, in single precision; errors fall about as a power of the size.
    """
    data = study.data
    if data is None or not candidates or not data.fit.refit or prod(study.layer.kernel) == 1:
        return list(candidates)
    ordered = sorted(candidates, key=_size)
    sizes = np.log([_size(one) for one in ordered])
    shown = np.unique(np.linspace(0, len(ordered) - 1, N_REFITTED).round().astype(int))
    by_tap = ByTap.of(data.metric, ordered[0].specs[-1], np.float32)
    found = []
    for place in shown:
        chain = study.unfitted(ordered[place])
        last = LastStep.of(data.metric, chain.specs, chain.weights, by_tap)
        if last is None:  # it is depthwise, and is not refitted
            return list(candidates)
        found.append(max(last.error(last.solved()), LEAST_ERROR))
    errors = np.exp(np.interp(sizes, sizes[shown], np.log(found)))
    return [replace(one, error=float(error)) for one, error in zip(ordered, errors, strict=True)]


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


def _error(candidate: Candidate) -> float:
    return candidate.error


def _size(candidate: Candidate) -> int:
    return candidate.n_macs or candidate.n_params


def _by_macs(candidate: Candidate) -> tuple[int, float]:
    return candidate.n_macs or 0, candidate.error


def _promising(candidates: list[Candidate]) -> list[Candidate]:
    """Return the candidates that are least worse than a smaller one, so many as are timed."""
    ordered = sorted(candidates, key=_by_macs)
    least = [inf, *accumulate(map(_error, ordered), min)]  # of those that cost less
    worth = sorted((_error(one) / least[place], place) for place, one in enumerate(ordered))
    return [ordered[place] for ratio, place in worth[:MAX_TIMED] if ratio <= SLACK]


def _shares(study: Study, method: Method) -> tuple[float, ...]:
    if method.nested:
        return SHARES
    if prod(study.layer.kernel) < MIN_SOLVED_TAPS and not study.asked_for:
        return ()
    return SOLVED_SHARES


def _fits(study: Study, share: float, candidate: Candidate) -> bool:
    dense = study.layer.n_macs
    if dense is None or candidate.n_macs is None:
        return candidate.n_params <= share * study.layer.n_params
    return candidate.n_macs <= share * dense
