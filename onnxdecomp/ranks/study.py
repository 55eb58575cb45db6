"""A layer under study: what each method could make of it, worked out once and on demand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np

from onnxdecomp.layer import Layer, StepSpec, chain_macs, chain_params
from onnxdecomp.methods.base import Analysis, Chain, FloatArray, Method, Ranks, decompose
from onnxdecomp.weights.fit import Data

SOLVE_FLOPS = 3e9
"""Most work that an automatic choice spends on one solve of a method without spectra: about a second."""


@dataclass(frozen=True)
class Measured:
    """A candidate's latency beside that of the dense layer, measured interleaved.

    Args:
        dense_ms: Median of the dense layer.
        chain_ms: Median of the chain.
        speedup: Median of the paired ratios dense / chain.
        speedup_low: Lower end of its spread.
        speedup_high: Upper end of its spread.
    """

    dense_ms: float
    chain_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float


@dataclass(frozen=True)
class Candidate:
    """A chain that could replace a layer.

    Args:
        method: The method.
        ranks: Its ranks.
        specs: The steps.
        error: Relative Frobenius error of the weight; of the output on the data where there is some.
        n_params: Weights of the chain.
        n_macs: Multiply-accumulates of one run; None when the input's shape is unknown.
        measured: Its latency, where it was timed.
    """

    method: Method
    ranks: Ranks
    specs: tuple[StepSpec, ...]
    error: float
    n_params: int
    n_macs: int | None
    measured: Measured | None = None


Measure = Callable[[Layer, Sequence[Candidate]], list[Measured]]
"""Times candidates of a layer; supplied by the pipeline, since policies do not know onnxruntime."""


@dataclass
class Study:
    """A layer, its weight, and the methods that may decompose it.

    Args:
        layer: The layer.
        weight: ``(O, I/G, *K)``; never modified.
        methods: Methods that did not refuse the layer.
        block: Channel block that ranks are snapped to.
        seed: With the layer's key the only source of chance, so that a layer's result does not depend on
            which other layers are studied, or in which order.
        asked_for: True when the user named the method, so that its cost is no reason to leave it out.
        measure: Times candidates; None when nothing can be timed.
        data: What samples say about the layer; None for a choice from the weight alone.
        max_solve_flops: Work of a solve that is worth it where nobody asked for the method.
    """

    layer: Layer
    weight: FloatArray
    methods: tuple[Method, ...]
    block: int
    seed: int = 0
    asked_for: bool = False
    measure: Measure | None = None
    data: Data | None = None
    max_solve_flops: float = SOLVE_FLOPS
    _analyses: dict[str, tuple[Ranks | None, Analysis]] = field(default_factory=dict, repr=False)

    def analysis(self, method: Method, max_ranks: Ranks | None = None) -> Analysis:
        """Return the method's analysis of this weight, made anew only for larger ranks than before."""
        known = self._analyses.get(method.full_name)
        if known is None or not _reaches(known[0], max_ranks):
            digest = sha256(f"{self.seed}:{self.layer.key}:{method.full_name}".encode()).digest()
            rng = np.random.default_rng(np.frombuffer(digest, np.uint32))
            analyze = self.data.analyze if self.data else _analyze
            known = max_ranks, analyze(method, self.layer, self.weight, rng, max_ranks)
            self._analyses[method.full_name] = known
        return known[1]

    def candidate(self, method: Method, ranks: Ranks, max_ranks: Ranks | None = None) -> Candidate:
        """Return the candidate of a method at `ranks`, with its error."""
        planned = self.planned(method, ranks)
        return replace(planned, error=self.analysis(method, max_ranks).error(ranks))

    def planned(self, method: Method, ranks: Ranks) -> Candidate:
        """Return the candidate of a method at `ranks` without its error (1.0), which costs no analysis."""
        specs = method.plan(self.layer, ranks)
        macs = chain_macs(specs, self.layer.in_shape)
        return Candidate(method, ranks, specs, 1.0, chain_params(specs), macs)

    def chain(self, candidate: Candidate) -> tuple[Chain, float]:
        """Return the chain of a candidate, fitted where there is data, and its error as in `Candidate`."""
        max_ranks = candidate.ranks if len(candidate.ranks) == 1 else None
        analysis = self.analysis(candidate.method, max_ranks)
        chain = decompose(candidate.method, analysis, self.layer, candidate.ranks)
        return self.data.fitted(chain) if self.data else (chain, candidate.error)

    def worth_solving(self, method: Method, ranks: Ranks) -> bool:
        """Tell whether a solve at `ranks` is affordable in an automatic choice, or was asked for by name."""
        cheap = method.nested or method.solve_flops(self.layer, ranks) <= self.max_solve_flops
        return cheap or self.asked_for

    def shrinks(self, candidate: Candidate) -> bool:
        """Tell whether a candidate has fewer weights than the layer and no more MACs."""
        dense_macs = self.layer.n_macs
        fewer_macs = candidate.n_macs is None or dense_macs is None or candidate.n_macs < dense_macs
        return candidate.n_params < self.layer.n_params and fewer_macs


def _analyze(
    method: Method, layer: Layer, weight: FloatArray, rng: np.random.Generator, max_ranks: Ranks | None
) -> Analysis:
    return method.analyze(layer, weight, rng, max_ranks)


def _reaches(known: Ranks | None, wanted: Ranks | None) -> bool:
    """Tell whether an analysis made for ranks up to `known` answers for ranks up to `wanted`; None is all."""
    if known is None or wanted is None:
        return known is None
    return all(k >= w for k, w in zip(known, wanted, strict=True))
