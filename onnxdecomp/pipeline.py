"""The flow of a conversion, one line per stage:

load -> find layers -> choose method and ranks -> rewrite -> put back what is slower -> fine-tune ->
cluster or quantize -> verify -> time -> write -> report.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import onnx

from onnxdecomp.config import Config
from onnxdecomp.decomposing import Run, decider, decomposed_within
from onnxdecomp.errors import TooFewSamplesError, UsageError, unknown_name
from onnxdecomp.graph.constant_weights import with_constant_weights
from onnxdecomp.graph.io import Model, ModelWriter, load
from onnxdecomp.graph.opset import raise_opset
from onnxdecomp.proof import footprint, prove_model
from onnxdecomp.put_back import Staged, put_all_back, stop_unless_forced
from onnxdecomp.quantizing import in_int8
from onnxdecomp.report.outcome import LayerOutcome, Report
from onnxdecomp.reporting import Clock, Source, begun, finished
from onnxdecomp.runtime.evaluate import metric
from onnxdecomp.runtime.session import Model as RuntimeModel
from onnxdecomp.search.cluster import cluster_model
from onnxdecomp.search.goal import is_for_int8
from onnxdecomp.search.parts import needs_samples
from onnxdecomp.search.run import measured, open_trials
from onnxdecomp.search.track import Track, untracked
from onnxdecomp.search.trial import Trials
from onnxdecomp.selection import Target, find_with_shapes, plan_targets
from onnxdecomp.tuned import check_trainable

EXACT_WEIGHT = 1e-6
"""A chain with a smaller relative weight error counts as exact."""


def convert(
    source: Source,
    output: str | Path | None = None,
    *,
    config: Config | None = None,
    track: Track | None = None,
    **options: Any,
) -> Report:
    """Rewrite the layers of a model as chains of smaller nodes.

    Args:
        source: Path of the model, or a model in memory.
        output: Path to write; None keeps the result in `Report.proto`.
        config: How to convert; the default is ``Config()``.
        track: Shows how far each stage is.
        **options: Fields of `Config` by name, such as ``rank="ratio:0.5"``; they win over `config`.

    Returns:
        What was done, layer by layer, with reasons for what was not.

    Raises:
        ModelError: The model cannot be read or the output cannot be written.
        UsageError: An option makes no sense for this model.
        BudgetError: A budget is not met; nothing was written unless ``force``.
        VerificationError: The converted model is wrong; nothing was written unless ``force``.
    """
    config, track = configure(config, options), track or untracked
    _refuse_overwriting(source, output)
    clock = Clock()
    with clock.stage("load"):
        model = load(source)
        if config.opset is not None:
            model = raise_opset(model, config.opset)
        n_inputs = len(model.proto.graph.input)
        if config.constant_weights:
            model = with_constant_weights(model)
        if config.finetune is not None:
            check_trainable(model)
    with clock.stage("find"):
        found, notes = find_with_shapes(model, config)
        targets = plan_targets(found, config)
    report = begun(model, source, output, config, notes)
    n_constant = n_inputs - len(model.proto.graph.input)
    if n_constant:
        report.notes.append(
            f"{n_constant} weights that were inputs too are constants, before as after: both are timed so."
        )
    report.layers = [LayerOutcome(r.key, r.op_type, "kept", r.reason) for r in found.refusals]
    with ExitStack() as stack:
        trials = None
        if config.calibration is not None:
            with clock.stage("calibrate"):
                trials = _open_trials(model, targets, stack, report, config)
        with clock.stage("decompose"):
            decide_for = decider(model, targets, trials, config, track)
        run = Run(model, output, trials, stack, report, clock, track)
        blank = replace(report)  # the lists of a report are exchanged, not changed, when layers are decided
        in_float = replace(config, int8=False) if is_for_int8(config) else config
        staged = decomposed_within(run, decide_for, in_float)
        if config.clusters:
            with clock.stage("cluster"):
                staged = _clustered(run, staged, config)
        if config.int8 and trials:
            staged, report = in_int8(run, trials, staged, blank, decide_for, config)
        writer, converted = staged.writer, staged.model
        with clock.stage("verify"):
            _prove(model, converted, report, config)
            _measure(trials, converted, report, config)
        if not put_all_back(report, config):
            if report.clustered:
                with clock.stage("sizes"):
                    report.footprint = footprint(model.path or model.proto, converted, config)
            writer.publish()
            return finished(report, found, writer, clock)
    with ModelWriter(model, output) as writer:
        writer.stage(model.proto)
        writer.publish()
        return finished(report, found, writer, clock)


def configure(config: Config | None, options: dict[str, Any]) -> Config:
    """Return `config` with single fields replaced.

    Raises:
        UsageError: A field does not exist or has a value that makes no sense.
    """
    known = [f.name for f in fields(Config)]
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known)
    changed = replace(config or Config(), **{k: v for k, v in options.items() if v is not None})
    if changed.metric is not None:
        metric(changed.metric)
    return changed


def _refuse_overwriting(source: Source, output: str | Path | None) -> None:
    if output is None or isinstance(source, onnx.ModelProto):
        return
    if Path(source).resolve() == Path(output).resolve():
        raise UsageError(
            f"'{output}' is the input itself: give the output another name, so that nothing is lost."
        )


def _open_trials(
    model: Model, targets: Sequence[Target], stack: ExitStack, report: Report, config: Config
) -> Trials | None:
    """Return the original run on the samples; None where they are too few and nothing depends on them.

    Raises:
        UsageError: The samples do not fit the model, or are too few for what was asked for.
    """
    try:
        trials = stack.enter_context(open_trials(model, targets, config))
    except TooFewSamplesError as error:
        if needs_samples(config):
            raise
        report.notes.append(f"The weights alone decided, since {error}")
        return None
    report.notes += trials.notes
    return trials


def _prove(model: Model, converted: RuntimeModel, report: Report, config: Config) -> None:
    """Run and time the whole model, as far as asked for, and note what came out."""
    if config.verify != "model" or not report.changed:
        return
    exact = not (report.int8 or report.clustered) and all(
        (layer.weight_error or 0.0) < EXACT_WEIGHT and not layer.pruned_shape for layer in report.decomposed
    )
    proof = prove_model(model.path or model.proto, converted, config, exact=exact, int8=bool(report.int8))
    report.output_error, report.latency = proof.output_error, proof.latency
    report.notes += proof.notes


def _clustered(run: Run, staged: Staged, config: Config) -> Staged:
    """Return the model with its weights as codebooks, staged in files of its own."""
    made, report = staged.model, run.report
    base = load(made) if isinstance(made, Path) else Model(made, run.model.base_dir)
    writer = run.stack.enter_context(ModelWriter(base, run.output))
    found = cluster_model(base, run.model, writer.add_tensor, run.trials, config, run.track)
    report.weights = found.outcomes
    report.notes += found.notes + [f"{w.name}: {w.note}" for w in report.clustered if w.note]
    return Staged(writer, writer.stage(found.proto)) if report.clustered else staged


def _measure(trials: Trials | None, converted: RuntimeModel, report: Report, config: Config) -> None:
    """Measure what the converted model loses, and stop where that is more than allowed."""
    if trials is None or not report.changed:
        return
    report.accuracy = found = measured(trials, converted, config)
    if found.budget is None or found.drop <= found.budget:
        return
    problem = (
        f"The converted model loses {found.drop:.4g} ± {found.standard_error:.2g} of {found.metric}, more "
        f"than --max-drop {found.budget:g}."
    )
    stop_unless_forced(report, config, problem, "allow more")
