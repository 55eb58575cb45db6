"""Prove a conversion: chains against their layers, the whole model against the original, and the clock."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from onnxdecomp.config import Config
from onnxdecomp.errors import ModelError, VerificationError
from onnxdecomp.graph.container import packed_bytes
from onnxdecomp.graph.expand import dense_bytes
from onnxdecomp.graph.io import load
from onnxdecomp.report.outcome import BeforeAfter, Footprint, Latency
from onnxdecomp.runtime.compare import verify_models
from onnxdecomp.runtime.compare_chain import ChainCheck, verify_chain
from onnxdecomp.runtime.latency import paired_speedup, time_interleaved
from onnxdecomp.runtime.machine import usable_cores
from onnxdecomp.runtime.measure import run_alone
from onnxdecomp.runtime.session import Array, Model, open_session, run
from onnxdecomp.selection import Decision, Target, model_inputs, timed_inputs

EXACT_ERROR = 1e-4
"""Relative output error allowed to a conversion whose chains are all exact."""

INT8_AGREEMENT = 0.1
"""Relative difference between optimizations off and on that is allowed to a model in INT8."""

MODEL_TIMING_SECONDS = 6.0
"""Most time that the comparison of two models' latency takes."""

VERIFIED_FEEDS = 4
"""Batches of samples on which outputs are compared."""

TIMED_RUNS = 30
"""Runs of each model, if time allows."""


def prove_chain(target: Target, decision: Decision, config: Config) -> ChainCheck | None:
    """Check a chain alone in onnxruntime; None when there is none or nothing is to be verified.

    Raises:
        VerificationError: The chain computes something else than it should, and `force` is off.
    """
    if config.verify == "none" or decision.chain is None or decision.weight is None:
        return None
    group = target.group
    bias = group.bias() if decision.bias is None else decision.bias
    check = verify_chain(decision.weight, bias, decision.chain, group.dtype, seed=config.seed)
    if check.problem and not config.force:
        raise VerificationError(f"{check.problem} Nothing was written.")
    return check


def failure_note(problem: str) -> str:
    """Return what the report says of a problem that did not stop a forced conversion."""
    return f"Verification failed: {problem}"


@dataclass(frozen=True)
class ModelProof:
    """What running the original and the converted model has shown.

    Args:
        output_error: Largest relative error of an output; None when the models were not run.
        latency: Both in turn; None when they were not timed.
        notes: Sentences the user should read.
    """

    output_error: float | None = None
    latency: Latency | None = None
    notes: tuple[str, ...] = ()


def prove_model(
    original: Model, converted: Model, config: Config, *, exact: bool, int8: bool = False
) -> ModelProof:
    """Check the whole of a converted model against the original and time both.

    Args:
        original: The original model, or its path.
        converted: The converted model, or its path.
        config: `shapes`, `threads`, `seed` and `force` count.
        exact: True when all chains are exact, so that the outputs must be equal.
        int8: True when the converted model computes in INT8, which fused nodes round otherwise.

    Raises:
        VerificationError: The converted model is wrong, and `force` is off.
    """
    try:
        feeds = model_inputs(original, config, VERIFIED_FEEDS)
        tolerance = EXACT_ERROR if exact else None
        check = verify_models(
            original,
            converted,
            feeds,
            tolerance=tolerance,
            agreement_tolerance=INT8_AGREEMENT if int8 else None,
            threads=config.threads,
        )
    except ModelError as error:
        return ModelProof(notes=(f"The whole model was not run, its layers were: {error}",))
    if not check.passed and not config.force:
        raise VerificationError(" ".join([*check.problems, "Nothing was written."]))
    failed = tuple(failure_note(problem) for problem in check.problems)
    if failed:
        return ModelProof(check.worst, None, failed)
    timed = timed_inputs(original, config)
    latency = compare_latency(original, converted, timed, config.threads)
    notes = _slower_on_all_cores(original, converted, timed, config) if latency.speedup_low > 1.0 else ()
    return ModelProof(check.worst, latency, notes)


def _slower_on_all_cores(
    original: Model, converted: Model, feeds: dict[str, Array], config: Config
) -> tuple[str, ...]:
    """Return what to say where a thread for every core, as runtimes start by themselves, loses the gain."""
    n_threads = usable_cores()
    if n_threads == config.threads:
        return ()
    latency = compare_latency(original, converted, feeds, n_threads)
    if latency.speedup_high >= 1.0:
        return ()
    took = f"{latency.median_ms.after:.4g} ms instead of {latency.median_ms.before:.4g} ms"
    return (
        f"With {n_threads} threads the model is slower than the original: {took}. It was chosen for "
        f"{config.threads}; --threads {n_threads} chooses for that.",
    )


def footprint(original: Model, converted: Model, config: Config) -> Footprint:
    """Return the sizes of a converted model, and what loading it takes in a process of its own.

    Args:
        original: The original model, or its path.
        converted: The converted model, or its path; only files are run.
        config: `calibration`, `shapes`, `threads`, `seed` and `verify` count.

    Raises:
        ModelError: A file cannot be read.
    """
    model = load(converted)
    nothing = BeforeAfter(None, None)
    found = Footprint(dense_bytes(model), model.size_bytes, packed_bytes(model), nothing, nothing)
    if config.verify != "model" or not isinstance(original, Path) or not isinstance(converted, Path):
        return found
    try:
        feeds = timed_inputs(original, config)
        before, after = (run_alone(path, feeds, config.threads) for path in (original, converted))
    except ModelError:  # said already by the proof of the whole model
        return found
    return replace(
        found,
        load_ms=BeforeAfter(before.load_ms, after.load_ms),
        memory_bytes=BeforeAfter(before.peak_memory_bytes, after.peak_memory_bytes),
    )


def compare_latency(original: Model, converted: Model, feeds: dict[str, Array], threads: int) -> Latency:
    """Time two models in turn on the same input."""
    sessions = {
        "before": open_session(original, threads=threads),
        "after": open_session(converted, threads=threads),
    }
    runs = {name: partial(run, session, feeds) for name, session in sessions.items()}
    timings = time_interleaved(runs, n_runs=TIMED_RUNS, max_seconds=MODEL_TIMING_SECONDS)
    before, after = timings["before"], timings["after"]
    speedup = paired_speedup(before.samples_ms, after.samples_ms)
    return Latency(
        BeforeAfter(before.median_ms, after.median_ms),
        BeforeAfter(before.spread_ms, after.spread_ms),
        speedup.ratio,
        speedup.low,
        speedup.high,
        before.n_runs,
    )
