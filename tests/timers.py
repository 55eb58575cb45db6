"""Stand-ins for what measures latency, so that a test does not depend on the clock."""

from onnxdecomp.ranks.study import Measured
from onnxdecomp.report.outcome import BeforeAfter, Latency
from onnxdecomp.runtime.in_place import InPlace
from onnxdecomp.runtime.latency import Timing
from onnxdecomp.runtime.machine import channel_block
from onnxdecomp.runtime.session import read_proto
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
    dense_ms = {layer.name: sum(group.layer.n_macs for group in layer.groups) / 1e6 for layer in layers}
    if in_int8:
        dense_ms["c1"] = 0.0
    option_ms = {
        (layer.name, option.candidate.method.full_name, option.candidate.ranks): sum(
            part.candidate.n_macs for _, part in layer.parts(option)
        )
        / 1e6
        for layer in layers
        for option in next(iter(layer.options.values()))
    }
    groups = {group.layer.key: group for layer in layers for group in layer.groups}
    total_ms = sum(dense_ms.get(key, group.layer.n_macs / 1e6) for key, group in groups.items())
    return InPlaceCosts(dense_ms, option_ms, total_ms)


def measured(speedup, spread):
    """Return a stand-in for `proof.compare_latency` that says so of every pair of models."""

    def compare(original, converted, feeds, threads):
        both = BeforeAfter(1.0, 1.0 / speedup)
        return Latency(both, both, speedup, speedup - spread, speedup + spread, n_runs=30)

    return compare


def clock_of(in_int8, original_in_int8):
    """Return a clock for models where chains, in INT8 or not, and the original in INT8 have these speeds."""

    def speed(model):
        nodes = read_proto(model).graph.node
        quantized = any(node.op_type == "QuantizeLinear" for node in nodes)
        if any("/onnxdecomp/" in name for node in nodes for name in node.input):
            return in_int8 if quantized else 2.0
        return original_in_int8 if quantized else 1.0

    def compare(slow, quick, feeds, threads):
        return measured(speed(quick) / speed(slow), 0.01)(slow, quick, feeds, threads)

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


def stop_the_clock(monkeypatch):
    """Let all that a search measures follow from multiply-accumulates, and be steady."""
    monkeypatch.setattr("onnxdecomp.selection.measure_chains", by_macs)
    monkeypatch.setattr("onnxdecomp.search.network.costs_in_place", in_place_by_macs)
    monkeypatch.setattr("onnxdecomp.search.network.rank_step", lambda config: channel_block())
    monkeypatch.setattr("onnxdecomp.proof.compare_latency", measured(2.0, 0.1))
    monkeypatch.setattr("onnxdecomp.put_back.profile_variants", in_place())
    monkeypatch.setattr("onnxdecomp.search.int8.compare_latency", measured(2.0, 0.1))
