"""What a model offers: every layer, its share of the time, and what each method would give, or why not."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxdecomp.config import Config
from onnxdecomp.errors import ModelError
from onnxdecomp.graph.find import LayerGroup
from onnxdecomp.graph.io import Model, load
from onnxdecomp.graph.weights import weight_problem
from onnxdecomp.layer import Layer, Refusal
from onnxdecomp.methods import find_methods
from onnxdecomp.methods.base import Method
from onnxdecomp.ranks.search import within_budget
from onnxdecomp.ranks.study import Study
from onnxdecomp.report.table import UNKNOWN, brief, count, percent, plain_table, shape, size, some
from onnxdecomp.runtime.machine import channel_block
from onnxdecomp.runtime.observe import node_times
from onnxdecomp.selection import OBSERVE_LIMIT_BYTES, find_with_shapes, model_inputs

PREVIEW_RATIOS = (0.5, 0.25)
"""Shares of a layer's weights at which every method shows its error."""

PREVIEW_FLOPS = 2e11
"""Most work that one preview takes unasked: a few seconds."""

TOO_SMALL_OR_COSTLY = "no rank fits, or the solve takes too long to be done unasked (name the method)"


@dataclass(frozen=True)
class Preview:
    """What one method makes of a layer at one size.

    Args:
        ratio: Share of the layer's weights that the chain may have.
        method: Full name of the best form of the method.
        ranks: Its ranks.
        error: Relative Frobenius error of the weight.
        n_params: Weights of the chain.
        n_macs: Its multiply-accumulates; None when the input's shape is unknown.
    """

    ratio: float
    method: str
    ranks: tuple[int, ...]
    error: float
    n_params: int
    n_macs: int | None


@dataclass(frozen=True)
class LayerView:
    """One layer.

    Args:
        layer: Its shapes.
        shared_by: Layers that use the same weight.
        latency_ms: Time of its node in a run of the whole model; None where it cannot be told.
        time_share: Its share of the whole run.
        previews: One per method and ratio that fits.
        refusals: Why methods cannot be used, by method.
    """

    layer: Layer
    shared_by: int
    latency_ms: float | None
    time_share: float | None
    previews: tuple[Preview, ...]
    refusals: dict[str, str]


@dataclass(frozen=True)
class Inspection:
    """A model under the lens.

    Args:
        size_bytes: Model file and external data.
        layers: Layers that can be decomposed.
        refusals: Nodes of a decomposable kind that stay as they are.
        notes: Sentences the user should read.
    """

    size_bytes: int
    layers: list[LayerView]
    refusals: list[Refusal]
    notes: list[str]

    @property
    def n_macs(self) -> int:
        """Multiply-accumulates of all layers with known input."""
        return sum(view.layer.n_macs or 0 for view in self.layers)


def inspect(
    source: str | Path | onnx.ModelProto,
    *,
    config: Config | None = None,
    track: Callable[[Sequence[LayerGroup], str], Iterable[LayerGroup]] | None = None,
) -> Inspection:
    """Look at every layer of a model without changing anything.

    Args:
        source: Path of the model, or a model in memory.
        config: `method`, `shapes`, `threads`, `seed` and `rank_multiple` count.
        track: Shows progress over the layers.

    Raises:
        ModelError: The model cannot be read.
        UsageError: A method does not exist.
    """
    config = config or Config()
    find_methods(config.method)
    model = load(source)
    found, notes = find_with_shapes(model, config)
    times, total_ms = _times(model, config, notes)
    views = []
    for group in track(found.groups, "layers") if track else found.groups:
        previews, refusals = preview(group, config)
        for site in group.sites:
            latency_ms = times.get(site.layer.key)
            share = latency_ms / total_ms if latency_ms is not None and total_ms else None
            views.append(LayerView(site.layer, len(group.sites), latency_ms, share, previews, refusals))
    return Inspection(model.size_bytes, views, found.refusals, notes)


def preview(group: LayerGroup, config: Config) -> tuple[tuple[Preview, ...], dict[str, str]]:
    """Return what every method makes of a layer, and why some cannot be used."""
    layer, weight = group.layer, group.weight()
    forms = find_methods(config.method)
    names = dict.fromkeys(form.name for form in forms)
    problem = weight_problem(weight)
    if problem:
        return (), dict.fromkeys(names, problem)
    block = config.rank_multiple or channel_block()
    study = Study(layer, weight, forms, block, config.seed, asked_for=config.method != "auto")
    previews: list[Preview] = []
    reasons: dict[str, str] = {}
    for name in names:
        usable = [form for form in forms if form.name == name and form.refusal(layer) is None]
        if not usable:
            reasons[name] = next(form.refusal(layer) or "" for form in forms if form.name == name)
        for ratio in PREVIEW_RATIOS if usable else ():
            found = [p for p in (within_ratio(study, form, ratio) for form in usable) if p]
            if found:
                previews.append(min(found, key=lambda p: p.error))
            else:
                reasons.setdefault(
                    name, f"nothing to show at {ratio:g} of the weights: {TOO_SMALL_OR_COSTLY}"
                )
    return tuple(previews), reasons


def within_ratio(study: Study, method: Method, ratio: float) -> Preview | None:
    """Return the best candidate of one form of a method with at most `ratio` of the layer's weights."""
    layer = study.layer
    cost = method.solve_flops(layer, method.rank_bounds(layer))
    if method.nested and cost > PREVIEW_FLOPS and not study.asked_for:
        return None
    budget = ratio * layer.n_params
    found = within_budget(study, method, lambda c: c.n_params <= budget)
    if found is None:
        return None
    return Preview(ratio, method.full_name, found.ranks, found.error, found.n_params, found.n_macs)


def _times(model: Model, config: Config, notes: list[str]) -> tuple[dict[str, float], float]:
    """Return the time of every node by key, and of the whole run, in milliseconds."""
    if model.size_bytes > OBSERVE_LIMIT_BYTES:
        notes.append("The model is too large to be run only to see where its time goes.")
        return {}, 0.0
    source = model.path or model.proto
    try:
        feeds = model_inputs(source, config, n_feeds=1)[0]
        times = node_times(source, feeds, config.threads)
    except ModelError as error:
        notes.append(f"The time of the layers is unknown: {error}")
        return {}, 0.0
    return times, sum(times.values())


def inspection_table(found: Inspection) -> RenderableType:
    """Return the layers, and what the methods make of them."""
    return Group(_layers_table(found), _previews_table(found), *_kept(found), *map(Text, found.notes))


def _layers_table(found: Inspection) -> Table:
    title = f"{len(found.layers)} layers, {count(found.n_macs)} MACs, {size(found.size_bytes)}"
    table = plain_table(
        title, "layer", "operator", "weight", "input", "weights", "MACs", "time", "share", left=2
    )
    for view in found.layers:
        layer = view.layer
        table.add_row(
            Text(layer.key),
            layer.op_type + (f" (weight shared by {view.shared_by})" if view.shared_by > 1 else ""),
            shape(layer.weight_shape) + (f" / {layer.group} groups" if layer.group > 1 else ""),
            shape(layer.in_shape) if layer.in_shape else UNKNOWN,
            count(layer.n_params),
            count(layer.n_macs),
            UNKNOWN if view.latency_ms is None else f"{view.latency_ms:.3g} ms",
            percent(view.time_share) or UNKNOWN,
        )
    return table


def _previews_table(found: Inspection) -> Table:
    """Show the weight error of each method where a layer keeps a share of its weights, with the ranks."""
    methods = sorted({p.method.partition("/")[0] for view in found.layers for p in view.previews})
    columns = [f"{method} at {ratio:g}" for method in methods for ratio in PREVIEW_RATIOS]
    table = plain_table("weight error (ranks) at a share of the weights", "layer", *columns)
    for view in found.layers:
        cells = {(p.method.partition("/")[0], p.ratio): p for p in view.previews}
        shown = [cells.get((method, ratio)) for method in methods for ratio in PREVIEW_RATIOS]
        texts = [f"{percent(p.error)} ({shape(p.ranks)})" if p else "-" for p in shown]
        table.add_row(Text(brief(view.layer.key)), *texts)
    return table


def _kept(found: Inspection) -> list[Table]:
    """List the nodes that no method looks at, and the methods that a layer refuses, with reasons."""
    reasons: dict[str, list[str]] = {}
    for refusal in found.refusals:
        reasons.setdefault(refusal.reason, []).append(refusal.key)
    for view in found.layers:
        for method, reason in view.refusals.items():
            reasons.setdefault(f"no {method}: {reason}", []).append(view.layer.key)
    if not reasons:
        return []
    table = plain_table("why not", "layers", "reason", left=2)
    for reason, keys in reasons.items():
        table.add_row(Text(some(keys)), Text(reason))
    return [table]
