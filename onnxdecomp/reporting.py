"""What a conversion did, put down as its report says it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx

from onnxdecomp.config import Config
from onnxdecomp.graph.find import Found, Site
from onnxdecomp.graph.io import Model, ModelWriter
from onnxdecomp.layer import chain_macs
from onnxdecomp.methods.base import Chain, recompose, relative_error
from onnxdecomp.report.outcome import BeforeAfter, LayerOutcome, Report, Stage
from onnxdecomp.runtime.machine import environment, peak_memory_bytes
from onnxdecomp.selection import Decision, open_cache

Source = str | Path | onnx.ModelProto


class Clock:
    """Seconds and peak memory of the stages; one that comes again adds to what it took before."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._peak_bytes: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what runs meanwhile."""
        start = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start
        self._peak_bytes[name] = peak_memory_bytes()

    @property
    def stages(self) -> list[Stage]:
        """The stages, in the order in which they were first entered."""
        return [
            Stage(name, round(seconds, 3), self._peak_bytes[name]) for name, seconds in self._seconds.items()
        ]


def begun(
    model: Model, source: Source, output: str | Path | None, config: Config, notes: list[str]
) -> Report:
    """Return the report of a conversion that has not done anything yet."""
    name = "model in memory" if isinstance(source, onnx.ModelProto) else str(source)
    command = {"source": name, "output": str(output) if output else None, **asdict(config)}
    size = BeforeAfter(model.size_bytes, None)
    return Report(command, environment(config.threads), {"bytes": size}, [], notes=list(notes))


def outcome_of(site: Site, decision: Decision, output_error: float | None) -> LayerOutcome:
    """Return what became of a node; `output_error` is that of its chain alone, where it was measured."""
    layer, chain = site.layer, decision.chain
    before = LayerOutcome(
        layer.key,
        layer.op_type,
        "kept",
        decision.reason,
        weight_shape=layer.weight_shape,
        params=BeforeAfter(layer.n_params, layer.n_params),
        macs=BeforeAfter(layer.n_macs, layer.n_macs),
    )
    if chain is None or decision.candidate is None:
        return before
    timing = decision.candidate.measured
    return replace(
        before,
        status="decomposed",
        method=chain.method,
        ranks=chain.ranks,
        pruned_shape=() if chain.layer.weight_shape == layer.weight_shape else chain.layer.weight_shape,
        weight_error=_weight_error(decision, chain),
        output_error=output_error,
        data_error=decision.candidate.error if decision.fit else None,
        fit=decision.fit,
        params=BeforeAfter(layer.n_params, chain.n_params),
        macs=BeforeAfter(layer.n_macs, chain_macs(chain.specs, layer.in_shape)),
        latency_ms=BeforeAfter(timing.dense_ms, timing.chain_ms) if timing else BeforeAfter(None, None),
    )


def _weight_error(decision: Decision, chain: Chain) -> float | None:
    """Return the relative error of the weight; a fitted chain's own error is that of the output on data."""
    if not decision.fit and decision.candidate is not None:
        return decision.candidate.error
    assert decision.weight is not None
    return relative_error(decision.weight, recompose(chain.specs, chain.weights, chain.layer.group))


def finished(report: Report, found: Found, writer: ModelWriter, clock: Clock) -> Report:
    """Fill in what is only known at the end."""
    before = report.model["bytes"].before
    report.model["bytes"] = BeforeAfter(before, writer.size_bytes)
    shared = {
        site.layer.key for group in found.groups for site in group.sites[1:]
    }  # their weight counts once
    for name in ("params", "macs"):
        figures = [
            getattr(layer, name) for layer in report.layers if name == "macs" or layer.key not in shared
        ]
        known = [figure for figure in figures if figure.before is not None]
        report.model[name] = BeforeAfter(sum(f.before for f in known), sum(f.after for f in known))
    if not report.changed:
        report.notes.append(_nothing_changed(report.command))
    elif report.decomposed and report.command["rank"] == "auto" and report.command["calibration"] is None:
        report.notes.append(
            "Ranks were chosen from the weights alone: with --calibration X.npz they are fitted to your "
            "data, chosen by what they do to the outputs, and go further at the same accuracy."
        )
    report.notes += open_cache(report.command["cache"]).settle()
    report.stages = clock.stages
    report.proto = writer.result
    return report


def _nothing_changed(command: dict[str, Any]) -> str:
    """Return what is said when the output computes what the input does."""
    done = "decomposed" if command["cluster"] is None else "decomposed or clustered"
    opset = "" if command["opset"] is None else f" at operator set {command['opset']}"
    constant = ", its weights constants" if command["constant_weights"] else ""
    return f"Nothing was {done}: the output is the original model{opset}{constant}."
