"""Time things against each other so that a slow moment of the machine hits all of them alike.

Runs are interleaved, A B A B ..., never A A A B B B, and compared round by round: a ratio of two runs that
followed each other is free of drift in clock rate and load. Spreads are quartiles throughout.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, prod
from time import perf_counter

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from onnxdecomp.graph.emit import data_shape, layer_model
from onnxdecomp.layer import Layer, StepSpec
from onnxdecomp.runtime.session import open_session, run

MIN_ROUNDS = 5
"""Rounds that are run even when the time is up, unless told otherwise: fewer have no quartiles."""

MAX_REPEATS = 1000
"""Most calls behind one sample."""

LAYER_SAMPLE_MS = 0.5
"""A small layer is run again and again until one sample takes this long, to rise above the clock's noise."""

STEADY = 0.05
"""Chains whose samples vary by no more than this share, from quartile to quartile, are not timed longer."""

BLOCK = 4093
"""Random numbers behind a timed weight; a prime, so that rows do not repeat in step with the channels."""


@dataclass(frozen=True)
class Timing:
    """How long something takes.

    Args:
        median_ms: Median of the samples.
        spread_ms: Half the interquartile range of the samples.
        n_runs: Number of samples.
        min_ms: The fastest sample.
        samples_ms: The samples in the order they were taken; the same position is the same round in
            every `Timing` of one `time_interleaved`.
    """

    median_ms: float
    spread_ms: float
    n_runs: int
    min_ms: float
    samples_ms: tuple[float, ...] = field(repr=False, compare=False)

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> "Timing":
        """Summarize samples in milliseconds.

        >>> Timing.of([1.0, 2.0, 3.0, 4.0, 5.0])
        Timing(median_ms=3.0, spread_ms=1.0, n_runs=5, min_ms=1.0)
        """
        low, median, high = np.quantile(samples_ms, (0.25, 0.5, 0.75))
        return cls(
            float(median), float(high - low) / 2, len(samples_ms), float(min(samples_ms)), tuple(samples_ms)
        )


@dataclass(frozen=True)
class Speedup:
    """How many times faster B is than A: the quartiles of the ratios of paired runs.

    Args:
        ratio: Median of ``a / b``; above 1 when B is faster.
        low: First quartile.
        high: Third quartile.
    """

    ratio: float
    low: float
    high: float

    @property
    def is_faster(self) -> bool:
        """Whether B was faster beyond the noise: in at least three quarters of the rounds."""
        return self.low > 1.0

    @property
    def is_slower(self) -> bool:
        """Whether B was slower beyond the noise: in at least three quarters of the rounds."""
        return self.high < 1.0


def paired_speedup(samples_a: Sequence[float], samples_b: Sequence[float]) -> Speedup:
    """Return how many times faster B is than A, from samples of the same rounds.

    Raises:
        ValueError: The samples are not paired.

    >>> paired_speedup([2.0, 4.0, 2.0, 4.0, 2.0], [1.0, 2.0, 1.0, 2.0, 1.0])
    Speedup(ratio=2.0, low=2.0, high=2.0)
    """
    ratios = [a / b for a, b in zip(samples_a, samples_b, strict=True)]
    low, median, high = (float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
    return Speedup(median, low, high)


def time_interleaved(
    runs: Mapping[str, Callable[[], object]],
    *,
    n_runs: int = 30,
    warmup: int = 3,
    max_seconds: float = 120.0,
    min_sample_ms: float = 0.0,
    steady: float = 0.0,
    min_rounds: int = MIN_ROUNDS,
) -> dict[str, Timing]:
    """Time every callable once per round, round after round.

    Args:
        runs: What to time, by name.
        n_runs: Rounds at most.
        warmup: Rounds that do not count.
        max_seconds: Stop after this time with fewer rounds; the warm-up takes at most a quarter of it beyond
            its first round.
        min_sample_ms: Call something shorter than this several times per sample.
        steady: Stop once the interquartile range of each is at most this share of its median.
        min_rounds: Rounds before time may be up; what is steady has `MIN_ROUNDS`.

    Returns:
        A `Timing` per name, of a single call, with the same number of samples in each.
    """
    start = perf_counter()
    longest: dict[str, float] = {}
    for number in range(max(warmup, 1)):
        if number and perf_counter() - start > max_seconds / 4:
            break
        for name, call in runs.items():
            longest[name] = _time_ms(call, 1)
    repeats = {name: _repeats(ms, min_sample_ms) for name, ms in longest.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(n_runs):
        is_late = number >= min_rounds and perf_counter() - start > max_seconds
        if is_late or (number >= MIN_ROUNDS and _are_steady(samples.values(), steady)):
            break
        for name, call in runs.items():
            samples[name].append(_time_ms(call, repeats[name]))
    return {name: Timing.of(values) for name, values in samples.items()}


def time_chains(
    layer: Layer,
    candidates: Sequence[Sequence[StepSpec]],
    *,
    threads: int = 1,
    seed: int = 0,
    dtype: np.dtype | type = np.float32,
    n_runs: int = 20,
    max_seconds: float = 1.5,
) -> tuple[Timing, list[Timing]]:
    """Time a layer and chains that could replace it, each alone in onnxruntime, interleaved.

    Weights are random: the time of a dense layer does not depend on its numbers as long as none of them
    is denormal or infinite.

    Args:
        layer: The layer, with a known `in_shape`.
        candidates: The steps of each chain.
        threads: Threads inside an operator.
        seed: Seed of weights and input.
        dtype: Element type of weights and data.
        n_runs: Rounds.
        max_seconds: As in `time_interleaved`.

    Returns:
        The timing of the layer, and one per candidate. `paired_speedup` of their samples is the gain.

    Raises:
        ValueError: The input's shape is unknown.
        ModelError: onnxruntime cannot run the layer in this element type.
    """
    if layer.in_shape is None:
        raise ValueError(f"{layer.key}: the shape of the input is unknown")
    rng = np.random.default_rng(seed)
    source = random_numbers(data_shape(layer, layer.in_shape), 1, rng, dtype)
    chains = [(layer.spec,), *(tuple(chain) for chain in candidates)]
    runs = {str(n): _bound_run(layer, chain, source, threads, rng) for n, chain in enumerate(chains)}
    timings = time_interleaved(
        runs, n_runs=n_runs, max_seconds=max_seconds, min_sample_ms=LAYER_SAMPLE_MS, steady=STEADY
    )
    dense, *others = timings.values()
    return dense, others


def _bound_run(
    layer: Layer,
    chain: Sequence[StepSpec],
    source: NDArray[np.floating],
    threads: int,
    rng: np.random.Generator,
) -> Callable[[], object]:
    """Return a call that runs `chain` on `source` with its buffers bound, so that nothing is copied."""
    dtype = source.dtype
    weights = [random_numbers(spec.weight_shape, prod(spec.weight_shape[1:]), rng, dtype) for spec in chain]
    bias = None if layer.op_type == "MatMul" else random_numbers((layer.out_channels,), 1, rng, dtype)
    session = open_session(layer_model(layer, chain, weights, bias, dtype), threads=threads)
    result = run(session, {"x": source})["y"]
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(source))
    binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(result))
    return lambda: session.run_with_iobinding(binding)


def random_numbers(
    shape: tuple[int, ...], fan_in: float, rng: np.random.Generator, dtype: np.dtype | type
) -> NDArray[np.floating]:
    """Return numbers of standard deviation ``1 / sqrt(fan_in)``, made by repeating a block."""
    block = rng.standard_normal(BLOCK) / np.sqrt(fan_in)
    return np.resize(block.astype(dtype), shape)


def _repeats(sample_ms: float, min_sample_ms: float) -> int:
    if sample_ms >= min_sample_ms:
        return 1
    return min(MAX_REPEATS, ceil(min_sample_ms / max(sample_ms, 1e-6)))


def _are_steady(samples: Iterable[Sequence[float]], share: float) -> bool:
    if share <= 0:
        return False
    timings = map(Timing.of, samples)
    return all(2 * timing.spread_ms <= share * timing.median_ms for timing in timings)


def _time_ms(call: Callable[[], object], repeats: int) -> float:
    start = perf_counter()
    for _ in range(repeats):
        call()
    return (perf_counter() - start) * 1e3 / repeats
