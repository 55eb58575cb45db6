"""Compare finished models: `verify` two of them, `bench` any number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from onnxdecomp.config import Config
from onnxdecomp.graph.io import load
from onnxdecomp.proof import VERIFIED_FEEDS
from onnxdecomp.report.table import count, percent, plain_table, relative, size
from onnxdecomp.runtime import measure
from onnxdecomp.runtime.compare import ModelCheck, verify_models
from onnxdecomp.runtime.compared_outputs import ComparedOutputs
from onnxdecomp.runtime.evaluate import evaluate, metric, outputs_over
from onnxdecomp.runtime.samples import load_samples
from onnxdecomp.runtime.session import Array, read_proto
from onnxdecomp.runtime.single import as_taken
from onnxdecomp.selection import model_inputs

DEFAULT_METRIC = "sqnr"
"""How outputs are compared when nothing else is asked for."""


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Args:
        check: The comparison of checker, interface and outputs.
        metric: Name of the metric, and of what it compares where that is not the first output.
        score: What it says of the converted model, the original being the reference.
        n_samples: Samples it was taken over; 0 for one random input.
    """

    check: ModelCheck
    metric: str
    score: float
    n_samples: int


def verify(
    original: str | Path,
    converted: str | Path,
    *,
    tolerance: float | None = None,
    config: Config | None = None,
) -> Verification:
    """Compare two models: validity, interface, and outputs with onnxruntime's optimizations off and on.

    Args:
        original: Path of the reference.
        converted: Path of the model that should do the same.
        tolerance: Largest relative error of any output; None only reports it.
        config: `calibration`, `shapes`, `threads`, `seed` and `metric` count.

    Raises:
        ModelError: A model cannot be read, or the original cannot be run.
        UsageError: The samples do not fit, or the metric does not exist.
    """
    config = config or Config()
    measure = metric(config.metric or DEFAULT_METRIC)
    first, second = Path(original), Path(converted)
    for path in (first, second):
        load(path)
    feeds = model_inputs(first, config, VERIFIED_FEEDS)
    check = verify_models(first, second, feeds, tolerance=tolerance, threads=config.threads)
    samples: Mapping[str, Array] = feeds[0]
    if config.calibration:
        samples = as_taken(load_samples(config.calibration, read_proto(first)), first)
    if not check.passed:
        return Verification(check, measure.name, float("nan"), 0)
    names = ComparedOutputs(first, config.metric, has_labels=False).names
    reference = outputs_over(first, samples, names=names, threads=config.threads)
    score = evaluate(second, samples, measure, reference=reference, names=names, threads=config.threads)
    n_samples = len(next(iter(samples.values()))) if config.calibration else 0
    of = next(iter(reference)) if names else ""
    return Verification(check, f"{measure.name} of {of}" if of else measure.name, score, n_samples)


def verification_table(found: Verification) -> Table:
    """Return the errors of every output, and the score."""
    table = plain_table("outputs", "output", "relative error")
    for name, error in found.check.rel_errors.items():
        table.add_row(name, relative(error))
    table.add_row("optimizations off and on", percent(found.check.agreement))
    over = f"over {found.n_samples} samples" if found.n_samples else "on one random input"
    table.add_row(f"{found.metric} {over}", f"{found.score:.4g}")
    return table


def bench(
    models: Sequence[str | Path], *, n_runs: int = 30, config: Config | None = None
) -> list[measure.BenchRow]:
    """Time models in turn in one run; the first is what the others are compared with.

    Args:
        models: Paths.
        n_runs: Runs of each model.
        config: `calibration`, `shapes`, `threads` and `seed` count.

    Raises:
        ModelError: A model cannot be read or run.
        UsageError: The samples or the shapes do not fit.
    """
    config = config or Config()
    feeds = model_inputs(Path(models[0]), config, n_feeds=1)[0] if config.calibration else None
    return measure.bench(
        models, feeds=feeds, shapes=config.shapes, threads=config.threads, seed=config.seed, n_runs=n_runs
    )


def bench_table(rows: Sequence[measure.BenchRow]) -> Table:
    """Return one row per model; a speed-up within its own spread is not called one."""
    columns = ("latency", "speed-up", "load", "dense", "file", "packed", "weights", "MACs", "peak memory")
    table = plain_table(f"{rows[0].n_runs} runs each, in turn", "model", *columns)
    for row in rows:
        speedup = "" if row.speedup is None else f"{row.speedup.ratio:.2f}x"
        if row.speedup is not None and row.verdict not in ("faster", "slower"):
            speedup = "same within noise"
        table.add_row(
            row.file,
            f"{row.latency_ms:.4g} ± {row.latency_spread_ms:.2g} ms",
            speedup,
            f"{row.load_ms:.4g} ms",
            size(row.dense_bytes),
            size(row.size_bytes),
            size(row.packed_bytes),
            count(row.n_params),
            count(row.n_macs),
            size(row.peak_memory_bytes),
        )
    return table
