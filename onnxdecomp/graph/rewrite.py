"""Exchange layers for chains in a copy of the original model; nothing else in it changes.

Before:  y = Conv(x, W, b)
After:   t = Conv(x, W0);  y = Conv(t, W1, b)

The chain stands where the layer stood and makes the tensor of the same name. Constants that only the layer
used, and the nodes that only moved them, are dropped.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnxdecomp.graph.channels import forget_shapes
from onnxdecomp.graph.emit import Wiring, chain_nodes, stored_weight
from onnxdecomp.graph.find import LayerGroup, Site
from onnxdecomp.graph.io import Model, as_stored
from onnxdecomp.graph.lens import opset
from onnxdecomp.graph.names import MARK, as_input, fresh, graphs_by_scope, remove, used_names
from onnxdecomp.graph.weights import Constant
from onnxdecomp.methods.base import Chain, FloatArray

_IR_WITHOUT_HIDDEN_CONSTANTS = 3
"""Up to this IR version an initializer has to be an input of the graph too."""

_OPSET_WITH_OPTIONAL_C = 11
"""From this operator set on a Gemm may do without its input C."""


@dataclass
class _Edits:
    """What changes in one graph: nodes by position, initializers to add, constants to drop if unused.

    Tensors that are `gone` are in no node any more; those that are `narrowed` have fewer channels.
    """

    nodes: dict[int, list[onnx.NodeProto]] = field(default_factory=dict)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    maybe_unused: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    narrowed: set[str] = field(default_factory=set)


class Rewriter:
    """Collects replacements and applies them at once.

    Args:
        model: The model as it was read; not modified.
        add_tensor: Stores an array under a name with a dtype and returns the tensor, such as
            `ModelWriter.add_tensor`.
    """

    def __init__(self, model: Model, add_tensor: Callable[..., onnx.TensorProto]) -> None:
        self._model = model
        self._add_tensor = add_tensor
        self._opset = opset(model.proto)
        self._old_ir = model.proto.ir_version <= _IR_WITHOUT_HIDDEN_CONSTANTS
        self._weight_prefixes = set(model.taken_prefixes)
        self._node_prefixes = set(self._weight_prefixes)
        self._edits: dict[str, _Edits] = {}

    def replace(self, group: LayerGroup, chain: Chain, bias: FloatArray | None = None) -> None:
        """Write the numbers of a chain once and its nodes at each site of the group.

        Args:
            group: The sites.
            chain: What replaces them. Where it has fewer channels than they have, so must the layers that
                are coupled with them (`graph.channels`).
            bias: ``(O,)`` in place of what the sites add to every output; None keeps that.
        """
        source = group.sites[0].weight
        home = "" if self._old_ir else source.scope.prefix
        prefix = fresh(source.origin.name, self._weight_prefixes) + MARK
        names = []
        for index, (spec, weight) in enumerate(zip(chain.specs, chain.weights, strict=True)):
            names.append(f"{prefix}weight{index}")
            self._add(home, names[-1], stored_weight(chain.layer, spec, weight), group.dtype)
        zero = None
        if group.layer.op_type == "Gemm" and self._opset < _OPSET_WITH_OPTIONAL_C:
            zero = f"{prefix}zero"
            self._add(home, zero, np.zeros(1), group.dtype)
        if bias is None:
            bias = group.bias()
        bias_name = None
        if bias is not None:
            bias_name = f"{prefix}bias"
            self._add(home, bias_name, bias, group.dtype)
        for site in group.sites:
            self._replace_site(site, chain, tuple(names), bias_name, zero)

    def finish(self) -> onnx.ModelProto:
        """Return the rewritten model; without replacements it equals the original."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._model.proto)
        graphs = graphs_by_scope(proto)
        for prefix, edits in self._edits.items():
            _exchange_nodes(graphs[prefix], edits)
        for prefix, edits in self._edits.items():
            graph = graphs[prefix]
            graph.initializer.extend(edits.initializers)
            if edits.narrowed:
                forget_shapes(graph, edits.narrowed)
            if self._old_ir:
                graph.input.extend(as_input(tensor) for tensor in edits.initializers)
        # bodies first: a constant of an outer graph may be used up by a node inside
        for prefix in sorted(self._edits, key=len, reverse=True):
            _drop_unused(graphs[prefix], self._edits[prefix], inputs_too=self._old_ir)
        return proto

    def _replace_site(
        self, site: Site, chain: Chain, weights: tuple[str, ...], bias: str | None, zero: str | None
    ) -> None:
        original = site.place.proto
        name = fresh(original.name or original.output[0], self._node_prefixes)
        beta = 1.0 if bias else site.beta
        if bias is None and site.bias is not None:
            bias = site.bias.name
        elif site.bias_constant:
            self._may_drop(site.bias_constant)
        wiring = Wiring(site.data, site.output, weights, bias or zero, name, site.trans_a, beta)
        nodes = chain_nodes(chain.layer, chain.specs, wiring)
        for node in nodes:
            if original.domain:
                node.domain = original.domain
            if zero and len(node.input) < 3:
                node.input.append(zero)
        edits = self._edit(site.place.scope.prefix)
        edits.nodes[site.place.index] = nodes
        if chain.specs[-1].weight_shape[0] < site.layer.out_channels:
            edits.narrowed.add(site.output)
        if site.tail:
            edits.gone.add(original.output[0])
            for fold in site.tail.folds:
                edits.nodes[fold.place.index] = []
                if fold is not site.tail.folds[-1]:
                    edits.gone.add(fold.place.proto.output[0])
        for constant in _constants(site):
            self._may_drop(constant)

    def _may_drop(self, constant: Constant) -> None:
        for place in constant.nodes:
            self._edit(place.scope.prefix).maybe_unused.add(place.proto.output[0])
        for scope, name in constant.initializers:
            self._edit(scope.prefix).maybe_unused.add(name)

    def _edit(self, prefix: str) -> _Edits:
        return self._edits.setdefault(prefix, _Edits())

    def _add(self, home: str, name: str, array: np.ndarray, dtype: np.dtype) -> None:
        self._edit(home).initializers.append(self._add_tensor(name, array, dtype))


def set_last_step(proto: onnx.ModelProto, group: LayerGroup, chain: Chain, bias: FloatArray | None) -> None:
    """Give the last step of a chain other numbers.

    Args:
        proto: A model of `Rewriter`, its weights inside, with such a chain in place of the group; modified.
        group: The layers, one of them in the main graph.
        chain: The chain, alike but for the numbers of its last step.
        bias: ``(O,)`` in place of the one there; None leaves that.

    Raises:
        ModelError: A value does not fit into the element type of the layers.
    """
    output = group.main_sites[0].output
    step = next(node for node in proto.graph.node if output in node.output)
    weight = stored_weight(chain.layer, chain.specs[-1], chain.weights[-1])
    numbers = {step.input[0 if chain.layer.weight_on_left else 1]: weight}
    if bias is not None:
        numbers[step.input[2]] = bias
    for tensor in proto.graph.initializer:
        if tensor.name in numbers:
            array = as_stored(tensor.name, numbers[tensor.name], group.dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _constants(site: Site) -> Iterator[Constant]:
    """Yield the constants that a replaced site no longer uses."""
    yield site.weight
    if site.tail:
        for fold in site.tail.folds:
            yield from fold.constants


def _exchange_nodes(graph: onnx.GraphProto, edits: _Edits) -> None:
    for index in sorted(edits.nodes, reverse=True):
        del graph.node[index]
        for node in reversed(edits.nodes[index]):
            graph.node.insert(index, node)


def _drop_unused(graph: onnx.GraphProto, edits: _Edits, *, inputs_too: bool) -> None:
    """Remove the constants of `edits` that nothing uses any more, and what else names them."""
    used = Counter(used_names(graph))
    dropped = set(edits.gone)
    for index in range(len(graph.node) - 1, -1, -1):
        node = graph.node[index]
        own = set(node.output)
        if own and own <= edits.maybe_unused and not any(used[name] for name in own):
            used.subtract(node.input)
            dropped |= own
            del graph.node[index]
    constants = {name for name in edits.maybe_unused if not used[name]}
    remove(graph.initializer, constants)
    dropped |= constants
    if inputs_too:
        remove(graph.input, constants)
    remove(graph.value_info, dropped)
    for index in range(len(graph.quantization_annotation) - 1, -1, -1):
        if graph.quantization_annotation[index].tensor_name in dropped:
            del graph.quantization_annotation[index]
