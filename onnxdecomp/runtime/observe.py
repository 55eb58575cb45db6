"""Watch a model run: the shapes every node saw and the time it took, by node key, bodies included.

onnxruntime's profiler names what it ran. In a copy of the model every node is given a name of its own, so
that the profile can be read back; optimizations keep that name inside the names of fused nodes.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnxruntime as ort

from onnxdecomp.graph.walk import NodePlace, walk
from onnxdecomp.runtime.session import Feeds, Model, open_session, read_proto, run

Shape = tuple[int, ...]
Event = dict[str, Any]

KERNEL_SUFFIX = "_kernel_time"
"""How the profiler marks the event of a node that ran."""

BLOCKED_NAME = re.compile(r"(?:InsertedPrecisionFreeCast_)?(?P<tensor>.*?)(?P<normalization>_bn)?_nchwc.*")
"""Name of a node in its blocked form: its output, and a mark if it was a BatchNormalization. In a model of
float16, which is computed in float32, there is a mark before it."""

MAX_FUSED_NODES = 4
"""How many nodes before the last a fused node may have swallowed: Conv, BatchNormalization, Add, Relu."""


@dataclass(frozen=True)
class NodeRun:
    """What a node did during one run of the model.

    Args:
        in_shapes: Shape of each input as the node lists them; None for an input that is missing, is no
            tensor, or cannot be told apart from those.
        out_shapes: The same for the outputs.
        duration_ms: Time of all its calls, with optimizations off.
        n_calls: How often it ran: more than once inside a Loop or a Scan. The shapes are the first call's.
        data_index: Position of the first input that is not a constant, None when all are.
    """

    in_shapes: tuple[Shape | None, ...]
    out_shapes: tuple[Shape | None, ...]
    duration_ms: float
    n_calls: int = 1
    data_index: int | None = 0

    @property
    def data_shape(self) -> Shape | None:
        """Shape of the first input that is not a constant; None when there is none or it is unknown."""
        return None if self.data_index is None else self.in_shapes[self.data_index]


def observe(model: Model, feeds: Feeds, threads: int = 1) -> dict[str, NodeRun]:
    """Run a model once, optimizations off, and return what each node that ran did.

    Args:
        model: The model or its path; not modified.
        feeds: A complete set of inputs.
        threads: Threads inside an operator.

    Returns:
        A `NodeRun` per key of `graph.walk`. The branch of an If that was not taken is missing, and so is a
        node that stands for a function, because onnxruntime runs the function's nodes instead.

    Raises:
        ModelError: onnxruntime cannot load or run the model.
    """
    proto, places = numbered(model)
    runs = _profile(model, proto, feeds, threads, 1, optimize=False)
    constants = _constants(places, proto.graph)
    events: dict[int, list[Event]] = defaultdict(list)
    for event in runs[0]:
        number = _number(event_name(event))
        if number is not None:
            events[number].append(event)
    return {
        places[number].key: _node_run(places[number], calls, constants)
        for number, calls in sorted(events.items())
    }


def node_times(model: Model, feeds: Feeds, threads: int = 1, runs: int = 10) -> dict[str, float]:
    """Return the milliseconds each node takes, with onnxruntime's optimizations on.

    A fused node counts for the node it began with: the time of Conv + Relu stands at the Conv. An If, Loop
    or Scan counts without its bodies. What no node of the model can be made out for stands under ``""``:
    reordering to and from the blocked layout, inlined functions.

    Args:
        model: The model or its path; not modified.
        feeds: A complete set of inputs.
        threads: Threads inside an operator.
        runs: Runs that count, after one that does not. The result is the median over them.

    Raises:
        ModelError: onnxruntime cannot load or run the model.
    """
    proto, places = numbered(model)
    names = FusedNames(places)
    per_run = []
    for events in _profile(model, proto, feeds, threads, runs + 1, optimize=True)[1:]:
        spent: dict[str, float] = defaultdict(float)
        for event in events:
            key = names.key(event)
            spent[key] += event["dur"] / 1e3
            owner = names.owner(event)
            if owner:
                spent[owner] -= event["dur"] / 1e3
        per_run.append(spent)
    keys = dict.fromkeys(key for spent in per_run for key in spent)
    return {key: max(0.0, median(spent.get(key, 0.0) for spent in per_run)) for key in keys}


def numbered(model: Model) -> tuple[onnx.ModelProto, list[NodePlace]]:
    """Return a copy whose nodes are named ``<0>``, ``<1>`` ... and the nodes in that order."""
    proto = read_proto(model)
    if proto is model:
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
    places = list(walk(proto.graph))
    for number, place in enumerate(places):
        place.node.name = f"<{number}>"
    return proto, places


def _number(name: str) -> int | None:
    found = re.search(r"<(\d+)>", name)
    return int(found.group(1)) if found else None


def event_name(event: Event) -> str:
    """Return the name of the node that ran, as it stands in the optimized model."""
    return str(event["name"]).removesuffix(KERNEL_SUFFIX)


def _profile(
    model: Model, proto: onnx.ModelProto, feeds: Feeds, threads: int, runs: int, *, optimize: bool
) -> list[list[Event]]:
    """Run `proto` several times and return the events of nodes, run by run."""
    folder = model.parent if isinstance(model, Path) else None
    with TemporaryDirectory() as scratch:
        session = open_session(
            proto,
            optimize=optimize,
            prepacking=optimize,
            threads=threads,
            folder=folder,
            profile_prefix=Path(scratch, "profile"),
        )
        for _ in range(runs):
            run(session, feeds)
        return read_profile(session)


def read_profile(session: ort.InferenceSession) -> list[list[Event]]:
    """End the profiling of a session and return the events of nodes, run by run."""
    with Path(session.end_profiling()).open(encoding="utf-8") as file:
        return list(_by_run(json.load(file)))


def _by_run(events: list[Event]) -> Iterator[list[Event]]:
    """Cut a profile behind every ``model_run``."""
    nodes: list[Event] = []
    for event in events:
        if event["name"] == "model_run":
            yield nodes
            nodes = []
        elif event["cat"] == "Node" and str(event["name"]).endswith(KERNEL_SUFFIX):
            nodes.append(event)


def _node_run(place: NodePlace, calls: list[Event], constants: set[str]) -> NodeRun:
    node, first = place.node, calls[0]["args"]
    names = [place.scope + name for name in node.input]
    data = (i for i, name in enumerate(node.input) if name and names[i] not in constants)
    return NodeRun(
        _aligned(list(node.input), first.get("input_type_shape", [])),
        _aligned(list(node.output), first.get("output_type_shape", [])),
        sum(call["dur"] for call in calls) / 1e3,
        len(calls),
        next(data, None),
    )


def _aligned(names: list[str], types: list[dict[str, list[int]]]) -> tuple[Shape | None, ...]:
    """Give every named tensor its shape; the profile lists only those that are there and are tensors."""
    if len(types) != sum(bool(name) for name in names):
        return (None,) * len(names)
    shapes = iter(tuple(next(iter(kind.values()))) for kind in types)
    return tuple(next(shapes) if name else None for name in names)


def _constants(places: list[NodePlace], graph: onnx.GraphProto) -> set[str]:
    """Return the tensors, with their scope before the name, that are the same in every run."""
    known: set[str] = set()
    scopes = {place.key: place.scope for place in places}
    seen: dict[str, set[str]] = {"": {tensor.name for tensor in graph.initializer}}
    for place in places:
        if place.scope not in seen:
            outer = seen[scopes[_owner(place.scope)]]
            seen[place.scope] = outer | {tensor.name for tensor in place.graph.initializer}
        here = seen[place.scope]
        known |= {place.scope + name for name in place.node.input if name in here}
        if place.node.op_type == "Constant" or (
            place.node.input and all(name in here for name in place.node.input if name)
        ):
            here.update(place.node.output)
    return known


def _owner(scope: str) -> str:
    """Return the key of the node that owns a body; "" for the main graph."""
    return scope.rpartition(".")[0]


class FusedNames:
    """Which node of the model an event of the optimized model stands for.

    Args:
        places: The nodes of a `numbered` model.
    """

    def __init__(self, places: list[NodePlace]) -> None:
        self._places = places
        self._keys: dict[str, str] = {}
        producers: dict[str, list[NodePlace]] = defaultdict(list)
        for place in places:
            for output in place.node.output:
                producers[output].append(place)
        self._producer = {name: found[0] for name, found in producers.items() if len(found) == 1}
        self._owners = {place.key: _owner(place.scope) for place in places}

    def key(self, event: Event) -> str:
        """Return the key of the node that a fused node began with; "" for what no node stands behind."""
        name = event_name(event)
        if name not in self._keys:
            self._keys[name] = self._find(name, event)
        return self._keys[name]

    def owner(self, event: Event) -> str:
        """Return the key of the node whose body the node stands in; "" for the main graph."""
        return self._owners.get(self.key(event), "")

    def _find(self, name: str, event: Event) -> str:
        number = _number(name)
        if number is not None and number < len(self._places):
            return self._places[number].key
        blocked = BLOCKED_NAME.fullmatch(name)
        last = self._producer.get(blocked["tensor"]) if blocked else None
        if blocked is None or last is None:
            return ""
        if blocked["normalization"]:
            return last.key
        return self._began_with(last, str(event["args"]["op_name"]).removeprefix("Fused")).key

    def _began_with(self, last: NodePlace, op_type: str) -> NodePlace:
        """Walk back from the last node of a fusion to the nearest one of its operator, not yet found."""
        taken = set(self._keys.values())
        front = [last]
        for _ in range(MAX_FUSED_NODES):
            for place in front:
                if place.node.op_type == op_type and place.key not in taken:
                    return place
            inputs = (name for place in front for name in place.node.input)
            front = [self._producer[name] for name in inputs if name in self._producer]
        return last
