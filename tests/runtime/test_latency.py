import numpy as np
import pytest

from onnxdecomp.layer import Geometry, Layer, StepSpec
from onnxdecomp.runtime import latency
from onnxdecomp.runtime.latency import Timing, paired_speedup, time_chains, time_interleaved

SAME_PADS = Geometry((1, 1), (1, 1), (1, 1), (1, 1), output_padding=(0, 0))


def tracers(names: str) -> tuple[dict, list[str]]:
    """Return callables that write down their name, and what they wrote."""
    calls: list[str] = []
    return {name: lambda name=name: calls.append(name) for name in names}, calls


def test_runs_are_interleaved_never_in_blocks():
    runs, calls = tracers("ABC")
    time_interleaved(runs, n_runs=7, warmup=2)
    assert "".join(calls) == "ABC" * 9


def test_warm_up_runs_do_not_count():
    runs, _ = tracers("A")
    assert time_interleaved(runs, n_runs=6, warmup=4)["A"].n_runs == 6


class Clock:
    """A clock that only moves when a run takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def taking(self, *seconds: float):
        left = iter(seconds)
        return lambda: setattr(self, "now", self.now + next(left))


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(latency, "perf_counter", lambda: made.now)
    return made


def test_samples_are_milliseconds_of_one_run(clock):
    timing = time_interleaved({"A": clock.taking(9, 0.003, 0.001, 0.002)}, n_runs=3, warmup=1)["A"]
    assert timing.samples_ms == pytest.approx((3, 1, 2))
    assert (timing.median_ms, timing.min_ms) == pytest.approx((2, 1))


def test_a_short_run_is_repeated_within_a_sample(clock):
    run = clock.taking(*[0.001] * 100)
    timing = time_interleaved({"A": run}, n_runs=5, warmup=1, min_sample_ms=10)["A"]
    assert (clock.now, timing.n_runs) == (pytest.approx(0.001 * (1 + 5 * 10)), 5)
    assert timing.median_ms == pytest.approx(1)


def test_when_the_time_is_up_all_have_the_same_few_rounds(clock):
    runs = {name: clock.taking(*[10.0] * 100) for name in "AB"}
    timings = time_interleaved(runs, n_runs=50, warmup=3, max_seconds=130)
    assert [timings[name].n_runs for name in "AB"] == [latency.MIN_ROUNDS] * 2


@pytest.mark.parametrize(("second", "n_runs"), [(1.0, latency.MIN_ROUNDS), (1.2, 40)])
def test_what_is_steady_is_not_timed_longer(clock, second, n_runs):
    runs = {"A": clock.taking(*[1.0, second] * 50), "B": clock.taking(*[1.0] * 100)}
    assert time_interleaved(runs, n_runs=40, warmup=1, steady=0.02)["B"].n_runs == n_runs


def test_the_spread_is_half_the_interquartile_range():
    assert Timing.of([8, 1, 2, 3, 4]).spread_ms == pytest.approx((4 - 2) / 2)


def test_drift_that_hits_both_leaves_the_paired_ratio_alone():
    drift = np.linspace(1, 3, 30)
    speedup = paired_speedup(4 * drift, 2 * drift)
    assert (speedup.ratio, speedup.low, speedup.high) == pytest.approx((2, 2, 2))


@pytest.mark.parametrize(
    ("b", "faster", "slower"),
    [
        ([1.0] * 8, True, False),
        ([4.0] * 8, False, True),
        ([1.0, 3.0] * 4, False, False),
        ([2.0] * 8, False, False),
    ],
)
def test_only_what_lies_beyond_the_noise_is_a_difference(b, faster, slower):
    speedup = paired_speedup([2.0] * 8, b)
    assert (speedup.is_faster, speedup.is_slower) == (faster, slower)


def test_samples_of_different_rounds_are_not_paired():
    with pytest.raises(ValueError, match="longer"):
        paired_speedup([1.0], [1.0, 2.0])


def gemm(*shape: int) -> StepSpec:
    return StepSpec(shape, Geometry())


LAYERS = {
    "Conv": (Layer("k", "Conv", (8, 8, 3, 3), SAME_PADS, (1, 9, 9)), [StepSpec((8, 8, 3, 3), SAME_PADS)]),
    "Gemm": (Layer("k", "Gemm", (16, 8), Geometry(), (2,)), [gemm(2, 8), gemm(16, 2)]),
    "MatMul": (Layer("k", "MatMul", (16, 8), Geometry(), (2,)), [gemm(2, 8), gemm(16, 2)]),
    "MatMul, left": (
        Layer("k", "MatMul", (16, 8), Geometry(), (2,), weight_on_left=True),
        [gemm(2, 8), gemm(16, 2)],
    ),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("layer", "chain"), LAYERS.values(), ids=LAYERS)
def test_every_kind_of_layer_can_be_timed_against_its_chains(layer, chain, dtype):
    dense, chains = time_chains(layer, [chain, chain], dtype=dtype, n_runs=5)
    assert [timing.n_runs for timing in (dense, *chains)] == [5, 5, 5]
    assert all(timing.min_ms > 0 for timing in (dense, *chains))


def test_random_numbers_are_neither_denormal_nor_infinite():
    weights = latency.random_numbers((64, 128, 3, 3), 128 * 9, np.random.default_rng(0), np.float16)
    assert np.all(np.isfinite(weights))
    assert np.std(weights) == pytest.approx(1 / np.sqrt(128 * 9), rel=0.05)


def test_a_layer_of_unknown_input_cannot_be_timed():
    with pytest.raises(ValueError, match="k: the shape"):
        time_chains(Layer("k", "Gemm", (2, 2), Geometry()), [])
