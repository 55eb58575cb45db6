"""Find the channels that can be taken out of a model: those between two layers that nothing else reads.

Before:  y = Conv(x, V, a);  r = Relu(y);  z = Conv(r, W, b)          V (O, I, *K), W (M, O, *K)
After:   y = Conv(x, V', a');  r = Relu(y);  z = Conv(r, W', b')      V' (C, I, *K), W' (M, C, *K)

Between them stand nodes that treat every channel alike, and depthwise convolutions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx

from onnxdecomp.graph.find import LayerGroup
from onnxdecomp.graph.lens import STANDARD_DOMAINS
from onnxdecomp.graph.names import reads, remove
from onnxdecomp.graph.sites import is_dense

CHANNELWISE = frozenset(
    [
        "Abs",
        "AveragePool",
        "Celu",
        "Clip",
        "Dropout",
        "Elu",
        "Erf",
        "Exp",
        "Flatten",
        "Gelu",
        "GlobalAveragePool",
        "GlobalLpPool",
        "GlobalMaxPool",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "LpPool",
        "MaxPool",
        "Mish",
        "Neg",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
    ]
)
"""Operators that do the same to every channel of their first input; what else they read is single numbers.

Flatten leaves the channels as they are where each is a single number.
"""

COMBINING = frozenset(["Add", "Div", "Mul", "Sub"])
"""Operators that do the same to every channel of two inputs, or of one and a single number."""


@dataclass(frozen=True, eq=False)
class Coupled:
    """Layers that lose a channel together.

    Args:
        producer: The layer that makes the channels: it loses rows.
        depthwise: Convolutions between the two, each channel by itself: they lose rows too.
        consumer: The only layer that reads them: it loses columns.
    """

    producer: LayerGroup
    depthwise: tuple[LayerGroup, ...]
    consumer: LayerGroup

    @property
    def groups(self) -> tuple[LayerGroup, ...]:
        """All of them, in the order of the model."""
        return self.producer, *self.depthwise, self.consumer


def coupled_layers(graph: onnx.GraphProto, groups: Sequence[LayerGroup]) -> list[Coupled]:
    """Return the layers of a main graph between which channels can be taken out, in their order.

    Args:
        graph: The main graph of the model.
        groups: Its layers, as `find_layers` found them.
    """
    own = {_node_output(group): group for group in groups if len(group.sites) == 1 and group.main_sites}
    single = _single_numbers(graph)
    found = (_coupled(graph, group, own, single) for group in own.values())
    return [coupled for coupled in found if coupled is not None]


def forget_shapes(graph: onnx.GraphProto, outputs: Iterable[str]) -> None:
    """Remove the stored shapes of tensors that have fewer channels now, and of those made from them.

    Args:
        graph: The graph, which is changed.
        outputs: What layers with fewer channels put out.
    """
    changed = set(outputs)
    for node in graph.node:
        if not is_dense(node.op_type, node.domain) and not changed.isdisjoint(reads(node)):
            changed.update(node.output)
    remove(graph.value_info, changed)


def _node_output(group: LayerGroup) -> str:
    return str(group.sites[0].place.proto.output[0])


def _coupled(
    graph: onnx.GraphProto, producer: LayerGroup, own: Mapping[str, LayerGroup], single: frozenset[str]
) -> Coupled | None:
    """Return the layers that lose channels with a producer; None where they cannot be lost."""
    (site,) = producer.sites
    if not _has_channels_of_its_own(producer):
        return None
    channels, depthwise, consumers = {site.output}, list[LayerGroup](), list[LayerGroup]()
    for node in graph.node[site.place.index + 1 :]:
        read = [name for name in reads(node) if name]
        if channels.isdisjoint(read):
            continue
        group = own.get(node.output[0]) if node.output else None
        if group is not None and group.sites[0].data in channels and read.count(group.sites[0].data) == 1:
            if _is_depthwise(group, producer.layer.out_channels):
                depthwise.append(group)
                channels.add(group.sites[0].output)
                continue
            consumers.append(group)
            continue
        if not _treats_channels_alike(node, channels, single):
            return None
        channels.add(node.output[0])
    if len(consumers) != 1 or any(output.name in channels for output in graph.output):
        return None
    (consumer,) = consumers
    fits = _has_channels_of_its_own(consumer) and consumer.layer.in_channels == producer.layer.out_channels
    return Coupled(producer, tuple(depthwise), consumer) if fits else None


def _has_channels_of_its_own(group: LayerGroup) -> bool:
    """Tell whether all channels of a layer are weighted sums of all before, and stand where ours do."""
    layer, site = group.layer, group.sites[0]
    return layer.op_type in ("Conv", "Gemm") and layer.group == 1 and not site.trans_a


def _is_depthwise(group: LayerGroup, n_channels: int) -> bool:
    layer = group.layer
    return layer.op_type == "Conv" and layer.group == n_channels == layer.out_channels


def _treats_channels_alike(node: onnx.NodeProto, channels: set[str], single: frozenset[str]) -> bool:
    if node.domain not in STANDARD_DOMAINS or len(node.output) != 1:
        return False
    others = [name for name in node.input if name and name not in channels]
    if any(name not in single for name in others):
        return False
    if node.op_type == "Flatten":
        return all(attribute.i == 1 for attribute in node.attribute if attribute.name == "axis")
    if node.op_type in COMBINING:
        return True
    return node.op_type in CHANNELWISE and node.input[0] in channels


def _single_numbers(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the constants of a graph that are single numbers."""
    found = {tensor.name for tensor in graph.initializer if prod(tensor.dims) == 1}
    found -= {value.name for value in graph.input}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in STANDARD_DOMAINS:
            found |= {
                name
                for attribute in node.attribute
                for name in node.output
                if attribute.name in ("value_float", "value_int")
                or (attribute.name == "value" and prod(attribute.t.dims) == 1)
            }
    return frozenset(found)
