from dataclasses import replace

import numpy as np
import pytest

from onnxdecomp.methods import find_methods
from onnxdecomp.runtime import latency_table as module
from onnxdecomp.runtime.cache import Cache
from onnxdecomp.runtime.latency import Timing
from onnxdecomp.runtime.latency_table import LatencyTable
from tests.builders import conv_layer, matrix_layer

LAYER = matrix_layer("Gemm", 256, 256)
(SVD,) = find_methods("svd")
(TUCKER2,) = find_methods("tucker2")


def chain(rank: int):
    return SVD.plan(LAYER, (rank,))


class Machine:
    """A stand-in for `time_chains`: a chain takes as many milliseconds as `ms` says of its ranks.

    Every call runs at a clock rate of its own, and every round of it at another. `noise` says by which
    share of its time a chain is slower in every other round and faster in the rest.
    """

    def __init__(self, ms=lambda *ranks: ranks[0] / 64, dense_ms=8.0, noise=lambda *ranks: 0.0) -> None:
        self.ms, self.dense_ms, self.noise = ms, dense_ms, noise
        self.calls: list[list[tuple[int, ...]]] = []

    def __call__(self, layer, chains, *, threads, seed, dtype):
        ranks = [tuple(spec.weight_shape[0] for spec in specs[:-1]) for specs in chains]
        self.calls.append(ranks)
        drift = len(self.calls) * np.linspace(1, 3, 20)
        shake = drift * (-1) ** np.arange(20)
        timings = [Timing.of(tuple(self.ms(*r) * (drift + self.noise(*r) * shake))) for r in ranks]
        return Timing.of(tuple(self.dense_ms * drift)), timings


@pytest.fixture
def machine(monkeypatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(module, "time_chains", lambda *a, **k: made(*a, **k))
    monkeypatch.setattr(module, "STEADY", 10.0)  # the drift of this machine is no reason to forget
    monkeypatch.setattr(module, "DISTURBED", 10.0)  # and no interruption
    return made


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path)


def test_only_what_is_missing_is_timed(machine, cache):
    table = LatencyTable(cache)
    table.measure(LAYER, [chain(16), chain(32)], np.float32)
    table.measure(LAYER, [chain(32), chain(48), chain(16), chain(48)], np.float32)
    assert machine.calls == [[(16,), (32,)], [(48,)]]
    assert (table.n_timed, table.n_known) == (3, 3)


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_second_table_looks_up_what_the_first_has_timed(machine, tmp_path, on_disk):
    folder = tmp_path if on_disk else None
    first = LatencyTable(Cache(folder)).measure(LAYER, [chain(16)], np.float32)
    second = LatencyTable(Cache(folder)).measure(LAYER, [chain(16)], np.float32)
    assert len(machine.calls) == (1 if on_disk else 2)
    assert (first == second) is on_disk


def test_chains_of_different_calls_are_on_one_scale(machine, cache):
    table = LatencyTable(cache)
    (small,) = table.measure(LAYER, [chain(64)], np.float32)
    large, again = table.measure(LAYER, [chain(128), chain(64)], np.float32)
    assert (small.speedup, large.speedup) == pytest.approx((8, 4))
    assert small.dense_ms == large.dense_ms
    assert large.chain_ms == pytest.approx(2 * small.chain_ms)
    assert again == small


def test_many_chains_are_timed_a_few_at_a_time(machine, cache):
    LatencyTable(cache).measure(LAYER, [chain(rank) for rank in range(1, 21)], np.float32)
    assert [len(call) for call in machine.calls] == [8, 8, 4]


@pytest.mark.parametrize(
    "change",
    [
        {"in_shape": (4,)},
        {"op_type": "MatMul"},
        {"op_type": "MatMul", "weight_on_left": True},
        {"weight_shape": (256, 128)},
    ],
)
def test_a_layer_of_another_kind_is_timed_anew(machine, cache, change):
    table = LatencyTable(cache)
    table.measure(LAYER, [chain(16)], np.float32)
    table.measure(replace(LAYER, **change), [chain(16)], np.float32)
    assert len(machine.calls) == 2


@pytest.mark.parametrize(("threads", "dtype"), [(2, np.float32), (1, np.float16)])
def test_other_threads_and_types_are_timed_anew(machine, cache, threads, dtype):
    LatencyTable(cache, threads=1).measure(LAYER, [chain(16)], np.float32)
    LatencyTable(cache, threads=threads).measure(LAYER, [chain(16)], dtype)
    assert len(machine.calls) == 2


def test_layers_that_are_alike_share_their_measurements(machine, cache):
    table = LatencyTable(cache, seed=0)
    table.measure(LAYER, [chain(16)], np.float32)
    table.measure(replace(LAYER, key="another"), [chain(16)], np.float32)
    assert len(machine.calls) == 1


def test_the_dense_layer_is_timed_again_when_only_it_was_forgotten(machine, cache):
    first = LatencyTable(cache)
    (before,) = first.measure(LAYER, [chain(16)], np.float32)
    cache._path(module.KIND, first._key(LAYER, None, np.float32), "json").unlink()
    (after,) = LatencyTable(cache).measure(LAYER, [chain(16)], np.float32)
    assert machine.calls == [[(16,)], []]
    assert (after.speedup, after.dense_ms) == pytest.approx((before.speedup, 2 * before.dense_ms))


def test_the_dense_layer_can_be_a_candidate(machine, cache):
    machine.ms = lambda *ranks: machine.dense_ms
    (measured,) = LatencyTable(cache).measure(LAYER, [(LAYER.spec,)], np.float32)
    assert (measured.speedup, measured.chain_ms) == pytest.approx((1, measured.dense_ms))


def test_what_was_measured_at_a_bad_moment_is_not_kept_on_disk(machine, cache, monkeypatch):
    monkeypatch.setattr(module, "STEADY", 0.2)
    machine.noise = lambda *ranks: 0.3
    table = LatencyTable(cache)
    first = table.measure(LAYER, [chain(16)], np.float32)
    assert table.measure(LAYER, [chain(16)], np.float32) == first
    assert len(machine.calls) == 1
    LatencyTable(cache).measure(LAYER, [chain(16)], np.float32)
    assert len(machine.calls) == 2


@pytest.mark.parametrize("of_dense", [True, False])
def test_rounds_that_were_interrupted_do_not_count(monkeypatch, cache, of_dense):
    calm, interrupted = (8.0,) * 20, (8.0,) * 6 + (40.0,) * 14
    series = (interrupted, calm) if of_dense else (calm, interrupted)
    dense, timing = map(Timing.of, series)
    monkeypatch.setattr(module, "time_chains", lambda *a, **k: (dense, [timing]))
    (measured,) = LatencyTable(cache).measure(LAYER, [chain(16)], np.float32)
    assert (measured.dense_ms, measured.speedup, measured.speedup_low, measured.speedup_high) == (8, 1, 1, 1)


def test_without_a_calm_moment_all_rounds_count():
    samples = ([1.0, *[2.0] * 9], [*[2.0] * 9, 1.0])
    assert module._undisturbed(*samples) == samples


def blocks(size: int):
    """Return a machine's milliseconds per rank when it works on blocks of channels."""
    return lambda *ranks: float(sum(-(-rank // size) * size for rank in ranks)) / 64


@pytest.mark.parametrize("size", [1, 4, 8, 16, 24])
@pytest.mark.parametrize("noise", [0.0, 0.001])
def test_ranks_at_the_ends_of_stairs_stay_whatever_the_block(machine, cache, size, noise):
    machine.ms, machine.noise = blocks(size), lambda *ranks: noise
    candidates = [(rank,) for rank in range(1, 49)]
    kept = LatencyTable(cache).staircase(LAYER, SVD, candidates, np.float32)
    assert kept == [(rank,) for rank in range(size, 49, size)]


@pytest.mark.parametrize("size", [4, 8, 16])
def test_the_step_of_ranks_is_the_block_that_the_stairs_show(machine, cache, size):
    machine.ms = blocks(size)
    assert LatencyTable(cache).rank_step(LAYER, SVD, np.float32) == size


def test_without_stairs_the_smallest_step_pays(machine, cache):
    machine.ms = lambda rank: 1 + rank
    assert LatencyTable(cache).rank_step(LAYER, SVD, np.float32) == 4


@pytest.mark.parametrize("noisy", [(16,), (32,), (16, 32)])
def test_a_difference_within_the_noise_of_either_keeps_only_the_larger_rank(machine, cache, noisy):
    machine.ms = lambda rank: 1 + rank / 1000
    machine.noise = lambda rank: 0.05 if rank in noisy else 0.0
    assert LatencyTable(cache).staircase(LAYER, SVD, [(16,), (32,)], np.float32) == [(32,)]


def test_a_rank_that_leaves_the_fast_path_is_dropped(machine, cache):
    machine.ms = lambda rank: rank / 64 * (2.0 if rank % 4 else 1.0)
    kept = LatencyTable(cache).staircase(LAYER, SVD, [(127,), (124,), (128,), (130,)], np.float32)
    assert kept == [(124,), (128,), (130,)]


def test_of_two_ranks_only_pairs_that_reach_each_other_compete(machine, cache):
    layer = conv_layer((64, 64, 3, 3), (1, 14, 14), pads=(1, 1, 1, 1))
    machine.ms = blocks(16)
    candidates = [(16, 32), (32, 16), (12, 32), (16, 16), (16, 12)]
    kept = LatencyTable(cache).staircase(layer, TUCKER2, candidates, np.float32)
    assert kept == [(16, 32), (32, 16), (16, 16)]


def test_onnxruntime_is_asked_once_and_gives_positive_times(cache):
    layer = conv_layer((8, 8, 3, 3), (1, 6, 6), pads=(1, 1, 1, 1))
    chains = [TUCKER2.plan(layer, ranks) for ranks in ((4, 4), (8, 8))]
    table = LatencyTable(cache)
    measured = table.measure(layer, chains, np.float32)
    assert min(m.chain_ms for m in measured) > 0
    assert table.measure(layer, chains, np.float32) == measured
