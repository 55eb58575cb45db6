"""What layers and the chains in their place cost inside the whole model, layout changes included.

Alone, a layer pays for reordering its input and output to and from the blocked layout; inside a model it
often need not, and a chain of other channels may have to again. So whole models are profiled: the original
and variants in which chains stand for layers, interleaved.

What onnxruntime inserts has no name of its own: whose it is follows from its neighbours in the model as the
optimizations left it.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import onnx

from onnxdecomp.graph import io
from onnxdecomp.graph.sites import is_dense
from onnxdecomp.graph.walk import NodePlace, walk
from onnxdecomp.runtime.latency import Timing, time_interleaved
from onnxdecomp.runtime.observe import Event, FusedNames, event_name, numbered, read_profile
from onnxdecomp.runtime.session import Feeds, Model, open_session, read_proto, run

STEP_NAME = re.compile(r"(?P<chain>.*)/onnxdecomp/step(?P<index>\d+)")
"""Name of a node that `graph.emit` wrote."""

INSERTED = ("ReorderInput", "ReorderOutput", "Cast", "Transpose")
"""Operators that onnxruntime adds between others."""

MIN_ROUNDS = 3
"""Rounds of slow models: their medians are compared, not their quartiles."""

STEADY = 0.03
"""Models whose runs vary by no more than this share, from quartile to quartile, are not run more often."""

MAX_TOGETHER_BYTES = 2**29
"""Models of more bytes than this are not held at once, but a few after the others. Sessions that are profiled
take some six times the bytes of their models."""


class Formed(Protocol):
    """Another form of a model, such as one in INT8."""

    @property
    def model(self) -> onnx.ModelProto:
        """The model."""

    @property
    def origins(self) -> Mapping[str, str]:
        """Keys of the nodes that its nodes came from, by key."""


Form = Callable[[Model], Formed]
"""Makes another form of a model."""


@dataclass(frozen=True)
class InPlace:
    """What a model costs, by layer.

    Args:
        layers_ms: Milliseconds of each layer that a variant replaces: of its own node and what it swallows
            here, or of all steps of its chain there, with the layout changes they need. 0 when it did not
            run. Medians over the runs.
        spreads_ms: Half the interquartile range of each.
        rest_ms: Median of everything else that the profiler saw.
        wall: A whole run; the sum of the others is smaller by what the runtime and its profiler do between
            nodes.
    """

    layers_ms: dict[str, float]
    spreads_ms: dict[str, float]
    rest_ms: float
    wall: Timing

    @property
    def kernels_ms(self) -> float:
        """Milliseconds of all nodes."""
        return sum(self.layers_ms.values()) + self.rest_ms


def profile_variants(
    model: Model,
    variants: Iterable[Model],
    feeds: Feeds,
    threads: int = 1,
    *,
    n_runs: int = 20,
    seconds_each: float = 30.0,
    form: Form | None = None,
) -> tuple[InPlace, list[InPlace]]:
    """Profile a model and variants of it in which chains stand for layers, with optimizations on.

    A layout change counts once: for the layer beside it, be it dense or a chain; between two layers for the
    one that does not work on blocks; between others for the rest. Nodes that were folded into a chain count
    for the layer wherever they still stand.

    Variants are taken as they are needed, and no more of them are held than `MAX_TOGETHER_BYTES` allows, each
    time beside the model: what these cost is brought to the scale of the first ones by what it took.

    Args:
        model: The original, or its path; not modified.
        variants: Models that `graph.rewrite` made of it. External data of one in memory is that of `model`.
        feeds: A complete set of inputs.
        threads: Threads inside an operator.
        n_runs: Runs of each.
        seconds_each: As in `time_interleaved`, for each model of those that are held at once.
        form: What is profiled in place of each model.

    Returns:
        The original, with the layers of all variants, and the variants in order, each with those of all that
        were held with it.

    Raises:
        ModelError: onnxruntime cannot load or run a model.
    """
    folder = model.parent if isinstance(model, Path) else None
    original = {place.key: place for place in walk(read_proto(model).graph)}
    reformed = None if form is None else form(model)
    reference = model if reformed is None else reformed.model
    first: InPlace | None = None
    costs: list[InPlace] = []
    for batch in _batches(variants, _size_bytes(model, folder), folder):
        owners = [_owners(original, read_proto(variant)) for variant in batch]
        layers = list(dict.fromkeys(layer for found in owners for layer in found.values()))
        dense = {key: layer for found in owners for key, layer in found.items() if key in original}
        owners = [{**dense, **found} for found in owners]
        if form is not None and reformed is not None:
            formed = [form(variant) for variant in batch]
            dense = _moved(dense, reformed.origins)
            owners = [_moved(found, other.origins) for found, other in zip(owners, formed, strict=True)]
            batch[:] = [other.model for other in formed]
        watched = [(reference, dense), *zip(batch, owners, strict=True)]
        seconds = seconds_each * len(watched)
        again, *others = _profile(watched, layers, feeds, threads, folder, n_runs, seconds)
        scale = first.wall.median_ms / again.wall.median_ms if first else 1.0
        first = _with_layers_of(first, _scaled(again, scale)) if first else again
        costs += [_scaled(cost, scale) for cost in others]
        batch.clear()
        watched.clear()
    assert first is not None
    return first, costs


def _owners(original: Mapping[str, NodePlace], variant: onnx.ModelProto) -> dict[str, str]:
    """Return, by key, the layer of each step of a variant's chains and of each node a chain swallowed."""
    chains: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for place in walk(variant.graph):
        before = original.get(place.key)
        step = STEP_NAME.fullmatch(place.node.name)
        if step and (before is None or before.node.name != place.node.name):
            chains[place.scope, step["chain"]].append((int(step["index"]), place.key))
    owners: dict[str, str] = {}
    for steps in chains.values():
        end = max(steps)[1]
        swallowed = _swallowed(original, end) or [end]
        owners |= dict.fromkeys([*(key for _, key in steps), *swallowed], swallowed[0])
    return owners


def _moved(owners: Mapping[str, str], origins: Mapping[str, str]) -> dict[str, str]:
    """Return the layers of nodes in another form of a model."""
    return {**owners, **{new: owners[old] for new, old in origins.items() if old in owners}}


def _swallowed(original: Mapping[str, NodePlace], end: str) -> list[str]:
    """Return the nodes that a chain stands for, by key: the layer, then what was folded, up to `end`."""
    place = original[end]
    if is_dense(place.node.op_type, place.node.domain):
        return [end]
    for key in (place.scope + name for name in place.node.input):
        before = _swallowed(original, key) if key in original else []
        if before:
            return [*before, end]
    return []


def _batches(variants: Iterable[Model], reference_bytes: int, folder: Path | None) -> Iterator[list[Model]]:
    """Yield the models to hold at once, each time beside the reference; at least one."""
    batch: list[Model] = []
    held = reference_bytes
    for variant in variants:
        size_bytes = _size_bytes(variant, folder)
        if batch and held + size_bytes > MAX_TOGETHER_BYTES:
            yield batch
            batch, held = [], reference_bytes
        batch.append(variant)
        held += size_bytes
    yield batch


def _size_bytes(model: Model, folder: Path | None) -> int:
    return (io.load(model) if isinstance(model, Path) else io.Model(model, folder)).size_bytes


def _scaled(cost: InPlace, factor: float) -> InPlace:
    """Return a cost as it would have been measured on a machine slower by `factor`."""
    return InPlace(
        {key: ms * factor for key, ms in cost.layers_ms.items()},
        {key: ms * factor for key, ms in cost.spreads_ms.items()},
        cost.rest_ms * factor,
        Timing.of([ms * factor for ms in cost.wall.samples_ms]),
    )


def _with_layers_of(first: InPlace, again: InPlace) -> InPlace:
    """Return what a model cost, with the layers that were told apart from the rest only another time."""
    added_ms = {key: ms for key, ms in again.layers_ms.items() if key not in first.layers_ms}
    return replace(
        first,
        layers_ms={**first.layers_ms, **added_ms},
        spreads_ms={**again.spreads_ms, **first.spreads_ms},
        rest_ms=max(0.0, first.rest_ms - sum(added_ms.values())),
    )


class _Watch:
    """A model under the profiler, and how its events are charged to layers.

    Args:
        model: The model.
        owners: The layer of nodes that cost for one, by key.
        scratch: An empty folder.
        threads: Threads inside an operator.
        folder: Where the external data of a model in memory lies.
    """

    def __init__(
        self, model: Model, owners: Mapping[str, str], scratch: Path, threads: int, folder: Path | None
    ) -> None:
        proto, places = numbered(model)
        self._owners = owners
        self._names = FusedNames(places)
        self._optimized = scratch / "optimized.onnx"
        scratch.mkdir()
        self.session = open_session(
            proto,
            threads=threads,
            folder=folder,
            profile_prefix=scratch / "profile",
            optimized_path=self._optimized,
        )

    def cost(self, layers: Sequence[str], wall: Timing) -> InPlace:
        """End the profile and return what its last runs, as many as `wall` has, say."""
        runs = read_profile(self.session)[-wall.n_runs :]
        layer_of = self._charge(runs)
        samples: dict[str, list[float]] = {layer: [] for layer in layers}
        rest = []
        for events in runs:
            spent = dict.fromkeys(layers, 0.0)
            for event in events:
                layer = layer_of[event_name(event)]
                if layer:
                    spent[layer] += event["dur"] / 1e3
            for layer, ms in spent.items():
                samples[layer].append(ms)
            rest.append(_covered_ms(events) - sum(spent.values()))
        timings = {layer: Timing.of(values) for layer, values in samples.items()}
        return InPlace(
            {layer: timing.median_ms for layer, timing in timings.items()},
            {layer: timing.spread_ms for layer, timing in timings.items()},
            float(np.median(rest)),
            wall,
        )

    def _charge(self, runs: Sequence[Sequence[Event]]) -> dict[str, str]:
        """Return the layer that each node that ran is charged to, by its name in the profile; "" for none."""
        keys = {event_name(event): self._names.key(event) for events in runs for event in events}
        known = {name: self._owners.get(key, "") for name, key in keys.items()}
        graph = _Neighbours(read_proto(self._optimized).graph, known)
        return {name: known[name] if keys[name] else graph.needed_by(name) for name in keys}


class _Neighbours:
    """The optimized model, in which what was inserted stands between nodes whose layer is known.

    Args:
        graph: The optimized graph.
        layers: The layer of each node that ran, by name; "" for none.
    """

    def __init__(self, graph: onnx.GraphProto, layers: Mapping[str, str]) -> None:
        self._layers = layers
        self._named: dict[str, list[NodePlace]] = defaultdict(list)
        self._producers: dict[str, list[NodePlace]] = defaultdict(list)
        self._consumers: dict[str, list[NodePlace]] = defaultdict(list)
        for place in walk(graph):
            self._named[place.node.name].append(place)
            for name in place.node.output:
                self._producers[place.scope + name].append(place)
            for name in place.node.input:
                self._consumers[place.scope + name].append(place)

    def needed_by(self, name: str) -> str:
        """Return the layer that an inserted node serves; "" when there is none, or bodies differ in it."""
        found = {self._needed_by(place) for place in self._named[name]}
        return found.pop() if len(found) == 1 else ""

    def _needed_by(self, place: NodePlace) -> str:
        if place.node.op_type not in INSERTED:
            return ""
        # The plain side comes first: were it blocked too, nothing would have been inserted.
        plain_before = place.node.op_type == "ReorderInput"
        layers = (self._beside(place, forward=forward) for forward in (not plain_before, plain_before))
        return next(filter(None, layers), "")

    def _beside(self, place: NodePlace, *, forward: bool) -> str:
        """Return the first layer before or behind a node, with nothing but inserted nodes between."""
        names = place.node.output if forward else place.node.input
        edges = self._consumers if forward else self._producers
        for near in (near for name in names for near in edges[place.scope + name]):
            layer = self._layers.get(near.node.name, "")
            if not layer and near.node.op_type in INSERTED:
                layer = self._beside(near, forward=forward)
            if layer:
                return layer
        return ""


def _profile(
    models: Sequence[tuple[Model, Mapping[str, str]]],
    layers: Sequence[str],
    feeds: Feeds,
    threads: int,
    folder: Path | None,
    n_runs: int,
    max_seconds: float,
) -> list[InPlace]:
    """Profile models, given with the layers of their nodes, interleaved with each other."""
    runs: dict[str, Callable[[], object]] = {}
    with TemporaryDirectory() as scratch:
        watches = []
        for number, (model, owners) in enumerate(models):
            base = model.parent if isinstance(model, Path) else folder
            watch = _Watch(model, owners, Path(scratch, str(number)), threads, base)
            runs[str(number)] = partial(run, watch.session, feeds)
            watches.append(watch)
        timings = time_interleaved(
            runs, n_runs=n_runs, max_seconds=max_seconds, steady=STEADY, min_rounds=MIN_ROUNDS
        )
        return [watch.cost(layers, timings[str(number)]) for number, watch in enumerate(watches)]


def _covered_ms(events: Sequence[Event]) -> float:
    """Return the time that events cover; what lies inside another, as a body in its Loop, counts once."""
    total = end = 0.0
    for event in sorted(events, key=lambda event: float(event["ts"])):
        stop = event["ts"] + event["dur"]
        total += max(0.0, stop - max(end, event["ts"]))
        end = max(end, stop)
    return total / 1e3
