"""How fast chains are beside their layers, each timed once per machine and then looked up.

Milliseconds of two runs of a program cannot be compared: the clock rate and the load were different. What is
kept is therefore how many times faster a chain is than the dense layer it was interleaved with, and the
milliseconds of the dense layer once. The rest follows, so that all chains of a layer are on one scale.
Rounds in which something else interrupted the machine are left out.
"""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from onnxdecomp.layer import Layer, StepSpec
from onnxdecomp.methods.base import Method, Ranks
from onnxdecomp.ranks.study import Measured
from onnxdecomp.runtime.cache import Cache, Key, canonical
from onnxdecomp.runtime.latency import MIN_ROUNDS, Timing, paired_speedup, time_chains
from onnxdecomp.runtime.machine import usable_cores

KIND = "latency"
"""The kind of these values in the cache."""

TOGETHER = 8
"""Chains that are timed in one interleaving: more would need memory for more sessions at once."""

STEADY = 0.2
"""Widest spread, from quartile to quartile, as a share of the median, of what is kept on disk: what was
measured at a bad moment is measured again by the next run of the program."""

DISTURBED = 1.5
"""A sample this many times the fastest of its kind was interrupted by something else on the machine."""

STEPS = (4, 8, 16)
"""Channel blocks of the processors known: ranks that are multiples of one may end a stair."""

STAIRS_EXPLAINED = 0.75
"""Share of the stairs that have to end on multiples of a step: noise makes one of its own now and then."""

Chain = Sequence[StepSpec]


class LatencyTable:
    """Measured latencies of chains beside their dense layers.

    Layers that are alike in shape, geometry and operator share their measurements, whatever their weights.

    Args:
        cache: Where measurements are kept between runs of the program.
        threads: Threads inside an operator.
        seed: Seed of the random weights that are timed.

    Attributes:
        n_timed: Chains that were timed because they were not known.
        n_known: Chains that were looked up.
    """

    def __init__(self, cache: Cache, threads: int = 1, seed: int = 0) -> None:
        self.n_timed = 0
        self.n_known = 0
        self._cache = cache
        self._threads = threads
        self._seed = seed
        self._known: dict[str, dict[str, float]] = {}

    def measure(self, layer: Layer, chains: Sequence[Chain], dtype: np.dtype | type) -> list[Measured]:
        """Return the latency of each chain beside the layer; only what is not known is timed.

        Args:
            layer: The layer, with a known `in_shape`.
            chains: The steps of each chain; the same chain may come twice.
            dtype: Element type of weights and data.

        Raises:
            ValueError: The input's shape is unknown.
            ModelError: onnxruntime cannot run the layer in this element type.
        """
        keys = [self._key(layer, chain, dtype) for chain in chains]
        missing = {canonical(k): (k, c) for k, c in zip(keys, chains, strict=True) if self._find(k) is None}
        self.n_timed += len(missing)
        self.n_known += len(keys) - len(missing)
        waiting = list(missing.values())
        for start in range(0, len(waiting), TOGETHER):
            self._time(layer, waiting[start : start + TOGETHER], dtype)
        return [_measured(self._dense(layer, dtype), self._known[canonical(key)]) for key in keys]

    def staircase(
        self, layer: Layer, method: Method, candidates: Sequence[Ranks], dtype: np.dtype | type
    ) -> list[Ranks]:
        """Return the candidates worth considering: larger ranks always cost time beyond the noise.

        A runtime works on blocks of channels, so that latency over rank is a staircase; at the end of a
        stair accuracy is highest for its latency. Where the stairs are is measured, not known beforehand:
        going down from the largest ranks, a candidate stays only if its chain is faster, quartile against
        quartile of the paired speed-ups, than those of all larger ones that stay.

        Args:
            layer: The layer, with a known `in_shape`.
            method: A method that does not refuse it.
            candidates: Ranks within the method's bounds.
            dtype: Element type of weights and data.

        Returns:
            Those that stay, in the order they came; the largest ones are always among them.

        Raises:
            ValueError: The input's shape is unknown.
            ModelError: onnxruntime cannot run the layer in this element type.
        """
        ranks = list(dict.fromkeys(candidates))
        measured = self.measure(layer, [method.plan(layer, r) for r in ranks], dtype)
        stays: dict[Ranks, Measured] = {}
        for own, latency in sorted(zip(ranks, measured, strict=True), key=lambda pair: -sum(pair[0])):
            larger = [kept for other, kept in stays.items() if _reaches(other, own)]
            if all(latency.speedup_low > kept.speedup_high for kept in larger):
                stays[own] = latency
        return [r for r in ranks if r in stays]

    def rank_step(self, layer: Layer, method: Method, dtype: np.dtype | type) -> int | None:
        """Return the largest of `STEPS` on whose multiples the stairs of a method with one rank end.

        Args:
            layer: The layer, with a known `in_shape`, large enough to be timed.
            method: A method with one rank that does not refuse it.
            dtype: Element type of weights and data.

        Returns:
            None where no step explains `STAIRS_EXPLAINED` of the stairs, as on a machine that was disturbed.

        Raises:
            ValueError, ModelError: As `staircase`.
        """
        (bound,) = method.rank_bounds(layer)
        candidates = [(rank,) for rank in range(STEPS[-1], min(bound, 4 * STEPS[-1]) + 1, STEPS[0])]
        stairs = self.staircase(layer, method, candidates, dtype)
        for step in reversed(STEPS):
            if np.mean([rank % step == 0 for (rank,) in stairs]) >= STAIRS_EXPLAINED:
                return step
        return None

    def _time(self, layer: Layer, chains: Sequence[tuple[Key, Chain]], dtype: np.dtype | type) -> None:
        """Time chains beside the dense layer and keep the speed-ups; the dense milliseconds only once."""
        dense, others = time_chains(
            layer, [chain for _, chain in chains], threads=self._threads, seed=self._seed, dtype=dtype
        )
        key = self._key(layer, None, dtype)
        if self._find(key) is None:
            alone = Timing.of(*_undisturbed(dense.samples_ms))
            steady = 2 * alone.spread_ms <= STEADY * alone.median_ms
            self._keep(key, {"median_ms": alone.median_ms}, steady=steady)
        for (key, _), chain in zip(chains, others, strict=True):
            found = paired_speedup(*_undisturbed(dense.samples_ms, chain.samples_ms))
            steady = found.high - found.low <= STEADY * found.ratio
            self._keep(key, {"ratio": found.ratio, "low": found.low, "high": found.high}, steady=steady)

    def _dense(self, layer: Layer, dtype: np.dtype | type) -> float:
        """Return the milliseconds of the dense layer, which all of its chains are compared with."""
        key = self._key(layer, None, dtype)
        if self._find(key) is None:
            self._time(layer, [], dtype)
        return self._known[canonical(key)]["median_ms"]

    def _key(self, layer: Layer, chain: Chain | None, dtype: np.dtype | type) -> Key:
        """Return what a latency depends on; no chain stands for the milliseconds of the dense layer."""
        return {
            "op_type": layer.op_type,
            "layer": asdict(layer.spec),
            "in_shape": layer.in_shape,
            "weight_on_left": layer.weight_on_left,
            "dtype": np.dtype(dtype).name,
            "chain": None if chain is None else [asdict(spec) for spec in chain],
            "threads": self._threads,
            "usable_cores": usable_cores(),
        }

    def _find(self, key: Key) -> dict[str, float] | None:
        name = canonical(key)
        if name not in self._known:
            stored = self._cache.get(KIND, key)
            if stored is None:
                return None
            self._known[name] = stored
        return self._known[name]

    def _keep(self, key: Key, value: dict[str, float], *, steady: bool) -> None:
        self._known[canonical(key)] = value
        if steady:
            self._cache.put(KIND, key, value)


def _undisturbed(*series: Sequence[float]) -> tuple[list[float], ...]:
    """Return paired samples without the rounds in which one took far longer than its fastest.

    A process that has to wait for others to finish waits for as long again as it ran, or longer, and a long
    run more often than a short one: medians of disturbed rounds would flatter short runs. Without
    `MIN_ROUNDS` undisturbed ones all are returned, and their spread says what they are worth.
    """
    limits = [DISTURBED * min(samples) for samples in series]
    rounds = list(zip(*series, strict=True))
    calm = [r for r in rounds if all(ms <= limit for ms, limit in zip(r, limits, strict=True))]
    return tuple(map(list, zip(*(calm if len(calm) >= MIN_ROUNDS else rounds), strict=True)))


def _measured(dense_ms: float, chain: dict[str, float]) -> Measured:
    return Measured(dense_ms, dense_ms / chain["ratio"], chain["ratio"], chain["low"], chain["high"])


def _reaches(ranks: Ranks, wanted: Ranks) -> bool:
    return all(own >= other for own, other in zip(ranks, wanted, strict=True))
