"""Put back what costs time: layers whose chains are slower inside the model, at the last resort all of them.

A chain that is faster alone can be slower in its place, where the layer need not reorder its input. So the
model is profiled in one piece beside the original, rewritten without what is slower, and profiled again.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from onnxdecomp.config import Config
from onnxdecomp.errors import BudgetError, ModelError
from onnxdecomp.graph.find import LayerGroup
from onnxdecomp.graph.io import Model, ModelWriter
from onnxdecomp.graph.rewrite import Rewriter
from onnxdecomp.report.outcome import BeforeAfter, LayerOutcome, Report, WeightOutcome
from onnxdecomp.runtime.in_place import InPlace, profile_variants
from onnxdecomp.runtime.session import Model as RuntimeModel
from onnxdecomp.search.goal import is_for_int8
from onnxdecomp.search.replacement import Replacements
from onnxdecomp.selection import timed_inputs

HELD_BYTES = 2**30
"""The chains of a model up to this size are held, so that it can be rewritten without some of them. Of a
larger model only one layer is in memory at a time; it is put back as a whole or not at all."""

SAME_SPEED = 0.97
"""Speed-up above which a model whose weights alone are clustered is not slower."""

PROFILES = 3
"""Times that a model is profiled at most: without a slow chain its neighbours may cost something else."""

PROFILE_SECONDS = 20.0
"""Most time that each profile takes."""


@dataclass(frozen=True)
class Staged:
    """A converted model that stands complete and is not published yet.

    Args:
        writer: What publishes it.
        model: It, or where it stands.
    """

    writer: ModelWriter
    model: RuntimeModel


def puts_back(config: Config) -> bool:
    """Tell whether what is measured to be slower is put back: the model is timed and must not be slower."""
    return config.verify == "model" and not config.allow_slower and "full" not in _ranks(config)


def puts_layers_back(model: Model, config: Config) -> bool:
    """Tell whether single layers are put back, so that their chains are to be held.

    Where MACs or bytes are to be reached, or speed in INT8, the layers that were chosen for that stay.
    """
    asked = config.target_macs is not None or config.target_size is not None or is_for_int8(config)
    return puts_back(config) and not asked and model.size_bytes <= HELD_BYTES


def rewritten(model: Model, output: str | Path | None, stack: ExitStack, replaced: Replacements) -> Staged:
    """Return the model with these replacements, staged in files of its own."""
    writer = stack.enter_context(ModelWriter(model, output))
    rewriter = Rewriter(model, writer.add_tensor)
    for replacement in replaced.values():
        rewriter.replace(replacement.group, replacement.chain, replacement.bias)
    return Staged(writer, writer.stage(rewriter.finish()))


def put_layers_back(
    model: Model,
    staged: Staged,
    held: Replacements,
    report: Report,
    config: Config,
    rewrite: Callable[[Replacements], Staged],
    keeps_budget: Callable[[RuntimeModel], bool],
) -> Staged:
    """Return the converted model without the layers whose chains are slower in place, noted in the report.

    Args:
        model: The original.
        staged: The converted model.
        held: What is replaced in it, one layer or more.
        report: Its layers that are put back become kept, with both times.
        config: Options.
        rewrite: Makes a converted model.
        keeps_budget: Tells whether a model is as accurate as it has to be. Chains that were solved behind a
            layer that is put back need not fit any more.

    Raises:
        BudgetError: Nothing is left, and a latency was to be reached.
    """
    for _ in range(PROFILES):
        slower = slower_in_place(model.path or model.proto, staged.model, held, config)
        if not slower:
            break
        left = {key: replacement for key, replacement in held.items() if key not in slower}
        without = rewrite(left)
        if left and report.recovered and not keeps_budget(without.model):
            report.notes.append(
                f"The chains of {', '.join(slower)} are slower in place than the layers and stay: without "
                "them the others, which were fitted behind them, lose more than the budget."
            )
            break
        reasons = {site.layer.key: slower[key] for key in slower for site in held[key].group.sites}
        report.layers = [
            kept(layer, reasons[layer.key]) if layer.key in reasons else layer for layer in report.layers
        ]
        held, staged = left, without
    if not held:
        report.recovered = ()
        if config.has_target and not config.force:
            raise BudgetError(
                "The target is not reached: every chain is slower in place than its layer. Nothing was "
                "written; --force writes the original."
            )
    return staged


def slower_in_place(
    original: RuntimeModel, converted: RuntimeModel, held: Replacements, config: Config
) -> dict[str, str]:
    """Return the layers whose chains take longer inside the whole model beyond the noise, with both times.

    Layers that lost channels together count together.
    Beyond the noise means that the lower quartile of the chain lies above the upper quartile of the layer.
    A model that cannot be profiled has none.
    """
    if not held:
        return {}
    try:
        feeds = timed_inputs(original, config)
        before, (after,) = profile_variants(
            original, [converted], feeds, config.threads, seconds_each=PROFILE_SECONDS / 2
        )
    except ModelError:  # the proof that follows says why
        return {}
    found = {}
    for key, replacement in held.items():
        groups = [replacement.group, *(held[other].group for other in replacement.beside)]
        (dense_ms, dense_spread), (chain_ms, chain_spread) = (
            _spent(cost, groups) for cost in (before, after)
        )
        if chain_ms - chain_spread > dense_ms + dense_spread:
            found[key] = f"put back: {chain_ms:.3g} ms in place instead of {dense_ms:.3g} ms"
    return found


def put_all_back(report: Report, config: Config) -> bool:
    """Tell whether the original is to be written after all, and note it in the report.

    Under ``auto`` a model must be measured to be faster. Under named ranks it must not be slower, unless
    `allow_slower` or ``full`` says that this is no matter; nor must a model whose weights are clustered,
    which is done for its size. That alone computes what dense weights do once they are decoded at load, so
    that a difference up to `SAME_SPEED` is where the memory lies.

    Raises:
        BudgetError: So a target is not reached, and `force` is off.
    """
    _check_latency(report, config)
    if report.latency is None or not puts_back(config):
        return False
    is_auto = not report.clustered and (_ranks(config) <= {"auto", "none"} or config.int8)
    slower_below = SAME_SPEED if report.clustered and not report.decomposed else 1.0
    if report.latency.speedup_low > 1.0 or (not is_auto and report.latency.speedup_high >= slower_below):
        return False
    timing, median = report.latency, report.latency.median_ms
    verdict = "not faster beyond the noise" if is_auto else "slower (--allow-slower takes it all the same)"
    reason = (
        f"put back: the whole model is {verdict}, {median.after:.4g} ms instead of {median.before:.4g} ms "
        f"(quartiles of the ratio {timing.speedup_low:.2f} to {timing.speedup_high:.2f})"
    )
    if config.has_target and not config.force:
        raise BudgetError(
            f"The target is not reached: {reason.removeprefix('put back: ')}. Nothing was written."
        )
    keep_all(report, reason)
    report.latency = report.output_error = report.accuracy = None
    report.int8 = ()
    report.weights = [
        WeightOutcome(w.name, w.op_type, "dense", w.shape, w.reason or reason, size_bytes=_dense(w))
        for w in report.weights
    ]
    return True


def _check_latency(report: Report, config: Config) -> None:
    """Stop, or note where that is forced, when the clock does not show a latency that was to be reached."""
    timing, target = report.latency, config.target_latency
    if timing is None or target is None or timing.speedup_low <= 1.0 or 1 / timing.speedup_high <= target:
        return
    problem = (
        f"--target-latency {target:g} is not reached: the converted model takes {1 / timing.speedup:.3f} of "
        f"the original's time (quartiles {1 / timing.speedup_high:.3f} to {1 / timing.speedup_low:.3f})."
    )
    stop_unless_forced(report, config, problem, "ask for less")


def stop_unless_forced(report: Report, config: Config, problem: str, advice: str) -> None:
    """Stop with what is wrong and what to do, or note it where the output is written all the same.

    Raises:
        BudgetError: `force` is off.
    """
    if not config.force:
        raise BudgetError(f"{problem} Nothing was written: {advice}, or --force writes it.")
    report.notes.append(problem)


def keep_all(report: Report, reason: str) -> None:
    """Let all layers that were decomposed be kept."""
    report.layers = [
        kept(layer, reason) if layer.status == "decomposed" else layer for layer in report.layers
    ]
    report.recovered = ()


def _dense(weight: WeightOutcome) -> BeforeAfter:
    return BeforeAfter(weight.size_bytes.before, weight.size_bytes.before)


def kept(layer: LayerOutcome, reason: str) -> LayerOutcome:
    """Return the outcome of a layer that was decomposed and put back."""
    return replace(
        layer,
        status="kept",
        reason=reason,
        pruned_shape=(),
        params=BeforeAfter(layer.params.before, layer.params.before),
        macs=BeforeAfter(layer.macs.before, layer.macs.before),
    )


def _ranks(config: Config) -> set[str]:
    """Return every rank policy that is named."""
    rules = (*config.op_types.values(), *config.layers.values())
    return {config.rank, *(rule.rank for rule in rules if rule.rank is not None)}


def _spent(cost: InPlace, groups: Sequence[LayerGroup]) -> tuple[float, float]:
    """Return the milliseconds of all sites of some groups, and half their interquartile range at most."""
    keys = [site.layer.key for group in groups for site in group.sites]
    return (
        sum(cost.layers_ms.get(key, 0.0) for key in keys),
        sum(cost.spreads_ms.get(key, 0.0) for key in keys),
    )
