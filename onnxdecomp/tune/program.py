"""Bind the nodes of a graph to their functions, once, so that running them is a plain loop."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.io import Model
from onnxdecomp.graph.lens import STANDARD_DOMAINS
from onnxdecomp.tune.elements import to_torch
from onnxdecomp.tune.operators import OPERATORS
from onnxdecomp.tune.registry import Node, Operator

OLDEST_OPSET = 7
"""Operators broadcast as numpy does from this operator set on."""

Values = dict[Any, Any]
"""Tensors by name; '' stands for an input that is left out, None for an output that nobody reads."""


@dataclass(frozen=True, slots=True)
class Step:
    """A node bound to its function.

    Args:
        run: The function.
        node: What it is told.
        sources: Names of its inputs, followed by those its bodies see from outside.
        targets: Names of its outputs; None for one that nobody reads.
        dead: Names that no later step reads.
    """

    run: Operator
    node: Node
    sources: tuple[str, ...]
    targets: tuple[str | None, ...]
    dead: tuple[str | None, ...] = ()


def execute(steps: Sequence[Step], values: Values) -> None:
    """Run steps one after another, reading from and writing to `values`.

    Raises:
        ModelError: A node cannot be evaluated on these values.
    """
    values[""] = None
    for step in steps:
        try:
            result = step.run(step.node, *[values[name] for name in step.sources])
        except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError) as error:
            raise _failure(step, values, error) from error
        if type(result) is tuple:
            values.update(zip(step.targets, result, strict=False))
        else:
            values[step.targets[0]] = result
        for name in step.dead:
            values.pop(name, None)


def _failure(step: Step, values: Values, error: Exception) -> ModelError:
    shapes = [tuple(getattr(values[name], "shape", ())) for name in step.sources if name]
    return ModelError(
        f"node '{step.node.name}' ({step.node.op_type}) cannot be evaluated on inputs of shapes "
        f"{', '.join(map(str, shapes))}: {str(error).splitlines()[0] if str(error) else error!r}"
    )


def schedule(steps: Sequence[Step], wanted: Collection[str]) -> tuple[Step, ...]:
    """Return the steps that `wanted` needs, each with the names that die after it."""
    alive: set[str | None] = set(wanted)
    kept: list[Step] = []
    for step in reversed(steps):
        if alive.isdisjoint(step.targets):
            continue
        read = [name for name in dict.fromkeys(step.sources) if name and name not in alive]
        unread = [name for name in step.targets if name not in alive]
        alive.update(step.sources)
        kept.append(replace(step, dead=(*read, *unread)))
    return tuple(reversed(kept))


@dataclass(frozen=True, eq=False)
class Body:
    """A graph inside a node, or a function of the model.

    Args:
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        captured: Names that it reads from the graph around it.
        constants: Its own initializers, but not those that are parameters of the network.
        steps: Its nodes.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    captured: tuple[str, ...]
    constants: Mapping[str, Any]
    steps: tuple[Step, ...]

    def __call__(self, arguments: Sequence[Any], around: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the outputs of the graph for `arguments`, with the values `around` it by name."""
        values: Values = {**self.constants, **{name: around[name] for name in self.captured}}
        values.update(zip(self.inputs, arguments, strict=False))
        for name in self.inputs[len(arguments) :]:
            values.setdefault(name, None)
        execute(self.steps, values)
        return tuple(values[name] for name in self.outputs)


@dataclass
class Binder:
    """Binds nodes; collects what is missing on the way.

    Args:
        model: The model; tensors may be external.
        leaves: Initializers of bodies, each the only tensor of its name, that the bodies read from the graph
            around them instead of holding them.
        missing: Operators without a function, as ``domain.Name``, in the order of their appearance.
    """

    model: Model
    leaves: Collection[str] = ()
    missing: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        functions = self.model.proto.functions
        self._functions = {(f.domain, f.name, f.overload): f for f in functions}

    def opsets(self, entries: Sequence[onnx.OperatorSetIdProto]) -> dict[str, int]:
        """Return the version of each operator set; the standard one under the empty name.

        Raises:
            ModelError: The standard operator set is too old.
        """
        found = {"" if e.domain in STANDARD_DOMAINS else e.domain: e.version for e in entries}
        if found.get("", OLDEST_OPSET) < OLDEST_OPSET:
            raise ModelError(
                f"the model uses operator set {found['']}: bring it to {OLDEST_OPSET} or newer with "
                "onnx.version_converter first"
            )
        return found

    def steps(
        self,
        nodes: Sequence[onnx.NodeProto],
        opsets: Mapping[str, int],
        given: Mapping[str, Any] | None = None,
    ) -> tuple[Step, ...]:
        """Bind nodes; `given` are the attributes of the function they stand in."""
        return tuple(step for node in nodes for step in self._bind(node, opsets, given or {}))

    def body(self, graph: onnx.GraphProto, opsets: Mapping[str, int], given: Mapping[str, Any]) -> Body:
        """Bind a graph that is an attribute of a node."""
        constants = dict(initializers(self.model, graph, self.leaves))
        inputs, outputs = (tuple(value.name for value in values) for values in (graph.input, graph.output))
        steps = self.steps(graph.node, opsets, given)
        return _close(inputs, outputs, constants, steps)

    def _bind(
        self, proto: onnx.NodeProto, opsets: Mapping[str, int], given: Mapping[str, Any]
    ) -> Iterator[Step]:
        domain = "" if proto.domain in STANDARD_DOMAINS else proto.domain
        attributes = self._attributes(proto, opsets, given)
        function = self._functions.get((proto.domain, proto.op_type, proto.overload))
        if function is not None:
            inner = self.opsets(function.opset_import)
            within = replace(self, leaves=())  # names in a function are its own
            defaults = {a.name: within._value(a, inner, {}) for a in function.attribute_proto}
            steps = within.steps(function.node, inner, defaults | attributes)
            body = _close(tuple(function.input), tuple(function.output), {}, steps)
            run, attributes = _call, {"body": body}
        elif not domain and proto.op_type in OPERATORS:
            run = OPERATORS[proto.op_type]
        else:
            self.missing[f"{domain}.{proto.op_type}" if domain else proto.op_type] = None
            return
        bodies = [value for value in attributes.values() if isinstance(value, Body)]
        captured = tuple(dict.fromkeys(name for body in bodies for name in body.captured))
        name = proto.name or next(filter(None, proto.output), "")
        node = Node(proto.op_type, name, opsets.get(domain, 1), attributes, len(proto.output), captured)
        targets = tuple(name or None for name in proto.output)
        yield Step(run, node, (*proto.input, *captured), targets)

    def _attributes(
        self, proto: onnx.NodeProto, opsets: Mapping[str, int], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the attributes of a node; one that refers to one of the function takes its value."""
        found = {}
        for attribute in proto.attribute:
            if not attribute.ref_attr_name:
                found[attribute.name] = self._value(attribute, opsets, given)
            elif attribute.ref_attr_name in given:
                found[attribute.name] = given[attribute.ref_attr_name]
        return found

    def _value(
        self, attribute: onnx.AttributeProto, opsets: Mapping[str, int], given: Mapping[str, Any]
    ) -> Any:
        match attribute.type:
            case onnx.AttributeProto.TENSOR:
                if attribute.t.data_type == onnx.TensorProto.STRING:
                    return self.model.array(attribute.t)
                return to_torch(self.model.array(attribute.t))
            case onnx.AttributeProto.SPARSE_TENSOR:
                return dense(self.model, attribute.sparse_tensor)
            case onnx.AttributeProto.GRAPH:
                return self.body(attribute.g, opsets, given)
            case onnx.AttributeProto.STRING:
                return attribute.s.decode("utf-8", "replace")
            case onnx.AttributeProto.STRINGS:
                return tuple(text.decode("utf-8", "replace") for text in attribute.strings)
            case onnx.AttributeProto.INTS | onnx.AttributeProto.FLOATS:
                return tuple(onnx.helper.get_attribute_value(attribute))
            case _:
                return onnx.helper.get_attribute_value(attribute)


def initializers(
    model: Model, graph: onnx.GraphProto, but: Collection[str] = ()
) -> Iterator[tuple[str, Any]]:
    """Yield the initializers of a graph, `but` some, with their names; those stored sparsely in full."""
    for tensor in graph.initializer:
        if tensor.name not in but:
            yield tensor.name, to_torch(model.array(tensor))
    for sparse in graph.sparse_initializer:
        yield sparse.values.name, dense(model, sparse)


def dense(model: Model, sparse: onnx.SparseTensorProto) -> Any:
    """Return a sparse tensor in full."""
    values, indices = to_torch(model.array(sparse.values)), to_torch(model.array(sparse.indices)).long()
    full = values.new_zeros(tuple(sparse.dims))
    if indices.ndim == 1:
        full.view(-1)[indices] = values
    else:
        full[tuple(indices.T)] = values
    return full


def _close(
    inputs: tuple[str, ...], outputs: tuple[str, ...], constants: Mapping[str, Any], steps: tuple[Step, ...]
) -> Body:
    """Return the body of these steps, and what it needs from outside."""
    made = {*inputs, *constants, *(name for step in steps for name in step.targets), ""}
    read = [name for step in steps for name in step.sources] + list(outputs)
    captured = tuple(name for name in dict.fromkeys(read) if name not in made)
    keep = {*outputs, *constants, *inputs, *captured}
    return Body(inputs, outputs, captured, constants, schedule(steps, keep))


def _call(node: Node, *inputs: Any) -> tuple[Any, ...]:
    """Evaluate a function of the model."""
    own = len(inputs) - len(node.captured)
    around = dict(zip(node.captured, inputs[own:], strict=True))
    result: tuple[Any, ...] = node.attributes["body"](inputs[:own], around)
    return result
