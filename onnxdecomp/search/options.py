"""What each layer may become: methods and ranks over a range of costs, fitted to data and timed.

For every method one aligned candidate per share of the layer's MACs; those that another one beats in both
time and estimated error go. The rest are fitted in each way of `weights.fit`, with their exact error on the
data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from onnxdecomp.methods.base import Chain, FloatArray, Method, recompose
from onnxdecomp.ranks.search import within_budget
from onnxdecomp.ranks.study import Candidate, Measured, Study
from onnxdecomp.search.replacement import Replacement
from onnxdecomp.selection import Target
from onnxdecomp.weights.fit import FITS, SHRUNK, Data, Fit
from onnxdecomp.weights.moments import Moments
from onnxdecomp.weights.refit import Metric

SHARES = (0.8, 0.65, 0.5, 0.4, 0.33, 0.27, 0.22, 0.18, 0.14, 0.11, 0.08, 0.06)
"""Shares of a layer's MACs at which every method shows its best candidate."""

SOLVED_SHARES = (0.5, 0.33, 0.22, 0.14, 0.08)
"""The same for methods that need a solve at each rank."""

MIN_SOLVED_TAPS = 25
"""Kernels below this size are left to the closed forms in an automatic search: CP pays on large kernels."""

SLACK = 1.15
"""A candidate whose estimated error is above this many times the least at its cost is not looked at again."""

MAX_TIMED = 24
"""Candidates of a layer that are timed."""


@dataclass(frozen=True)
class Option:
    """One chain for one layer.

    Args:
        candidate: Method, ranks and what they cost; its error is the one on the data.
        fit: How it was fitted.
        chain: The chain.
        bias: ``(O,)`` with the mean of what is lost; None keeps the layer's.
        ratio: Time of the chain over that of the layer, alone in onnxruntime.
        size_bytes: What its weights take in the file.
    """

    candidate: Candidate
    fit: Fit
    chain: Chain
    bias: FloatArray | None
    ratio: float
    size_bytes: int

    @property
    def error(self) -> float:
        """Relative error of the layer's output on the data."""
        return self.candidate.error


@dataclass
class LayerOptions:
    """A layer, and what it may become.

    Args:
        target: The layer.
        weight: ``(O, I/G, *K)``.
        options: By name of the fit, cheapest last.
    """

    target: Target
    weight: FloatArray
    options: Mapping[str, list[Option]]

    @property
    def key(self) -> str:
        """Key of the layer."""
        return self.target.group.layer.key

    def replacement(self, option: Option) -> Replacement:
        """Return what an option puts in the place of the layer."""
        return Replacement(self.target.group, option.chain, option.bias)


def find_options(
    target: Target, study: Study, moments: Moments, bias: FloatArray | None, fits: Sequence[Fit] = FITS
) -> LayerOptions | str:
    """Return the options of one layer, or why it has none.

    Args:
        target: The layer.
        study: It under study, without data.
        moments: Of its input.
        bias: What it adds to every output, ``(O,)``; None when that cannot be changed.
        fits: Ways to fit.
    """
    metric = Metric.of(study.layer, study.weight, moments, with_bias=bias is not None)
    if metric.energy <= 0:
        return "its output is constant on the calibration samples, so nothing can be fitted"
    studies = {fit: replace(study, data=Data(metric, fit), _analyses={}) for fit in fits}
    guide = next((fit for fit in fits if fit.shrinkage == SHRUNK.shrinkage), fits[0])
    candidates = _spread(studies[guide])
    if not candidates:
        return "no method makes it smaller"
    timed = _timed(study, candidates)
    if not timed:
        return f"not faster: none of {len(candidates)} chains that were timed beats the layer"
    options = {
        fit.name: [_option(target, fitted, bias, *pair) for pair in timed] for fit, fitted in studies.items()
    }
    return LayerOptions(target, study.weight, options)


def _spread(study: Study) -> list[Candidate]:
    """Return the candidates worth timing, those with the most MACs first."""
    found: dict[tuple[str, tuple[int, ...]], Candidate] = {}
    for method in study.methods:
        for share in _shares(study, method):
            candidate = within_budget(study, method, lambda c, s=share: _fits(study, c, s))  # type: ignore[misc]
            if candidate is not None and study.shrinks(candidate):
                found[method.full_name, candidate.ranks] = candidate
    ordered = sorted(found.values(), key=lambda c: (c.n_macs or 0, c.error))
    kept: list[Candidate] = []
    least = float("inf")
    for candidate in ordered:
        if candidate.error <= SLACK * least:
            kept.append(candidate)
        least = min(least, candidate.error)
    return kept[-MAX_TIMED:][::-1] if len(kept) <= MAX_TIMED else _thinned(kept)[::-1]


def _thinned(kept: list[Candidate]) -> list[Candidate]:
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


def _timed(study: Study, candidates: list[Candidate]) -> list[tuple[Candidate, Measured]]:
    """Return the candidates that are faster than the layer and that none beats in time and error."""
    if study.measure is None:
        return []
    timings = study.measure(study.layer, candidates)
    faster = [(c, m) for c, m in zip(candidates, timings, strict=True) if m.speedup_low > 1.0]
    faster.sort(key=lambda pair: (pair[1].chain_ms / pair[1].dense_ms, pair[0].error))
    kept: list[tuple[Candidate, Measured]] = []
    least = float("inf")
    for candidate, timing in faster:
        if candidate.error < least:
            kept.append((candidate, timing))
            least = candidate.error
    return kept[::-1]


def _option(
    target: Target, study: Study, bias: FloatArray | None, candidate: Candidate, timing: Measured
) -> Option:
    assert study.data is not None
    chain, error = study.chain(candidate)
    if bias is not None:
        whole = recompose(chain.specs, chain.weights, study.layer.group)
        bias = bias + study.data.metric.bias_shift(whole)
    return Option(
        replace(candidate, error=error, measured=timing),
        study.data.fit,
        chain,
        bias,
        timing.chain_ms / timing.dense_ms,
        candidate.n_params * target.group.dtype.itemsize,
    )
