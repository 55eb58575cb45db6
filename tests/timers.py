"""Stand-ins for what measures latency, so that a test does not depend on the clock."""

from onnxdecomp.ranks.study import Measured
from onnxdecomp.report.outcome import BeforeAfter, Latency
from onnxdecomp.runtime.in_place import InPlace
from onnxdecomp.runtime.latency import Timing
from onnxdecomp.search.goal import InPlaceCosts


def slow(layer, candidates, dtype, config):
    """Say that every chain takes twice as long as its layer."""
    return [Measured(1.0, 2.0, 0.5, 0.45, 0.55) for _ in candidates]


def even(layer, candidates, dtype, config):
    """Say that every chain takes as long as its layer."""
    return [Measured(1.0, 1.0, 1.0, 0.95, 1.05) for _ in candidates]


def fast(layer, candidates, dtype, config):
    """Say that every chain takes half as long as its layer."""
    return [Measured(2.0, 1.0, 2.0, 1.9, 2.1) for _ in candidates]


def by_macs(layer, candidates, dtype, config):
    """Say that everything takes a millisecond per million multiply-accumulates."""
    dense = layer.n_macs / 1e6
    chains = [candidate.n_macs / 1e6 for candidate in candidates]
    return [
        Measured(dense, chain, dense / chain, 0.99 * dense / chain, 1.01 * dense / chain) for chain in chains
    ]


def in_place_by_macs(layers, trials, feeds, *, in_int8=False):
    """Say that a million multiply-accumulates take a millisecond, and the first layer takes none in INT8."""
    dense_ms = {layer.key: layer.target.group.layer.n_macs / 1e6 for layer in layers}
    if in_int8:
        dense_ms["c1"] = 0.0
    option_ms = {
        (layer.key, option.candidate.method.full_name, option.candidate.ranks): option.candidate.n_macs / 1e6
        for layer in layers
        for option in next(iter(layer.options.values()))
    }
    return InPlaceCosts(dense_ms, option_ms, sum(dense_ms.values()))


def measured(speedup, spread):
    """Return a stand-in for `proof.compare_latency` that says so of every pair of models."""

    def compare(original, converted, feeds, threads):
        both = BeforeAfter(1.0, 1.0 / speedup)
        return Latency(both, both, speedup, speedup - spread, speedup + spread, n_runs=30)

    return compare


def in_place(*rounds, spread_ms=0.01):
    """Return a stand-in for `put_back.profile_variants`: milliseconds of chains by key of the layer.

    Each layer takes 1 ms, and so does each chain that is not named. Every call takes the next round; when
    there are none left, or none were given, all take the same.
    """
    waiting = iter(rounds)

    def profile(model, variants, feeds, threads, **options):
        chains = next(waiting, {})
        spreads = dict.fromkeys(chains, spread_ms)
        costs = [InPlace(ms, spreads, 1.0, Timing.of([1.0])) for ms in (dict.fromkeys(chains, 1.0), chains)]
        return costs[0], costs[1:]

    return profile
