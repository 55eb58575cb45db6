"""Find the layers of a model that can be replaced; every other node of their kind gets a reason."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxdecomp.graph.external import element_type
from onnxdecomp.graph.fold import find_tail
from onnxdecomp.graph.io import Model
from onnxdecomp.graph.lens import STANDARD_DOMAINS, Lens
from onnxdecomp.graph.shapes import StaticShapes
from onnxdecomp.graph.sites import Site, is_dense, kind_refusal, read_site
from onnxdecomp.graph.walk import walk
from onnxdecomp.graph.weights import PASSING, trace
from onnxdecomp.layer import Layer, Refusal
from onnxdecomp.methods.base import FloatArray

__all__ = ["Found", "LayerGroup", "Site", "find_layers"]


class LayerGroup:
    """The sites that share one weight, usually one: it is decomposed once.

    Attributes:
        sites: The sites, in the order of the model.
        layer: The layer of the site with most multiply-accumulates, which stands for all.
        dtype: Element type that the nodes compute in.
        stored_bytes: Bytes of the weight as it is stored.
    """

    def __init__(self, model: Model, sites: tuple[Site, ...]) -> None:
        self._model = model
        self.sites = sites
        self.layer: Layer = max((site.layer for site in sites), key=lambda layer: layer.n_macs or 0)
        self.dtype = element_type(sites[0].weight.data_type)
        self.stored_bytes = sites[0].weight.stored_bytes

    @property
    def main_sites(self) -> tuple[Site, ...]:
        """The sites in the main graph: tensors in a body cannot become outputs of the model."""
        return tuple(site for site in self.sites if not site.place.scope.prefix)

    def weight(self) -> FloatArray:
        """Return the weight ``(O, I/G, *K)``, a folded tail and the alpha of a Gemm included.

        It is read anew at each call and not kept. 16-bit types come as float32, a folded weight as float64.
        """
        site = self.sites[0]
        stored: FloatArray = np.asarray(site.weight.array(self._model))
        weight = stored.astype(np.float32) if stored.dtype.itemsize == 2 else stored
        if site.alpha != 1.0:
            weight = weight * weight.dtype.type(site.alpha)
        if site.tail:
            scale, _ = site.tail.affine(self._model, len(weight))
            weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))  # (O, I/G, *K)
        return weight

    def bias(self) -> FloatArray | None:
        """Return the bias ``(O,)`` after folding; None when nothing is folded and the bias input stays."""
        site = self.sites[0]
        if not site.tail:
            return None
        scale, shift = site.tail.affine(self._model, site.layer.out_channels)
        if site.bias_constant is None:
            return shift
        return np.asarray(site.bias_constant.array(self._model), np.float64) * scale + shift  # (O,)

    def known_bias(self) -> FloatArray | None:
        """Return what all sites add to every output, ``(O,)`` in float64; None when that cannot be changed.

        That is so for a MatMul, which has no bias, for a bias that is computed or not one per channel, and
        for sites that share the weight but not the bias.
        """
        site, n_channels = self.sites[0], self.layer.out_channels
        if self.layer.op_type == "MatMul":
            return None
        if site.tail:
            return self.bias()
        if all(other.bias is None for other in self.sites):
            return np.zeros(n_channels)
        if len(self.sites) > 1 or site.bias_constant is None:
            return None
        bias = np.asarray(site.bias_constant.array(self._model), np.float64).reshape(-1)
        return np.broadcast_to(bias, n_channels) * site.beta if bias.size in (1, n_channels) else None


@dataclass
class Found:
    """What was found: groups of sites that can be replaced, and a refusal for every other relative."""

    groups: list[LayerGroup] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def find_layers(model: Model, observed: Mapping[str, tuple[int, ...]] | None = None) -> Found:
    """Find every Conv, ConvTranspose, Gemm and MatMul, in the main graph and in bodies.

    Args:
        model: The model.
        observed: Shape of a node's data input as seen in a run, by node key; used where shape inference
            does not know it.
    """
    found = Found(refusals=_in_functions(model.proto))
    try:
        lens = Lens(model)
    except ValueError as error:
        found.refusals += _everything(model.proto, str(error))
        return found
    shapes = StaticShapes(model.proto)
    sites: dict[object, list[Site]] = {}
    for place in lens.places:
        op_type, domain = place.proto.op_type, place.proto.domain
        reason = kind_refusal(op_type, domain)
        if is_dense(op_type, domain):
            site = read_site(lens, place, shapes, observed or {})
            if not isinstance(site, str):
                sites.setdefault(_sharing(site), []).append(site)
                continue
            reason = site
        if reason:
            found.refusals.append(Refusal(place.key, op_type, reason))
    for members in sites.values():
        reason = _foreign_use(lens, members)
        if reason:
            found.refusals += [Refusal(s.layer.key, s.layer.op_type, reason) for s in members]
        else:
            found.groups.append(LayerGroup(model, _with_tail(lens, members)))
    return found


def _sharing(site: Site) -> object:
    """Return what sites must agree in to be replaced by the same numbers."""
    layer = site.layer
    moves = (layer.op_type, layer.geometry, layer.weight_on_left)
    return id(site.weight.origin), site.weight.steps, site.alpha, *moves


def _foreign_use(lens: Lens, sites: list[Site]) -> str | None:
    """Return who else uses the weight, as a reason; the dense weight would have to stay for it."""
    own = {id(site.place.node) for site in sites}
    uses = list(_uses(lens, sites[0].weight.origin))
    for node in uses:
        if node is None:
            return "its weight is also an output of its graph, so the dense weight would have to stay"
        if id(node) not in own:
            place = lens.place(node)
            return (
                f"its weight is also used by '{place.key}' ({place.proto.op_type}) in another way, "
                "so the dense weight would have to stay"
            )
    return None if len(uses) == len(sites) else "its weight is used twice by the same node"


def _uses(lens: Lens, tensor: gs.Tensor) -> Iterator[gs.Node | None]:
    """Yield the nodes that use a constant, through nodes that only move its elements; None for an output."""
    if lens.is_output(tensor):
        yield None
    for node in tensor.outputs:
        proto = lens.place(node).proto
        passing = proto.op_type in PASSING and proto.domain in STANDARD_DOMAINS
        if passing and node.inputs[0] is tensor:
            yield from _uses(lens, node.outputs[0])
        else:
            yield node


def _with_tail(lens: Lens, sites: list[Site]) -> tuple[Site, ...]:
    """Add the bias where it is constant, and the nodes that can be folded.

    A weight that several sites share stays as it is.
    """
    sites = [_with_bias(lens, site) for site in sites]
    site = sites[0]
    if len(sites) > 1 or site.layer.op_type not in ("Conv", "ConvTranspose"):
        return tuple(sites)
    tail = find_tail(lens, site.place, site.layer.out_channels, site.layer.geometry.n_axes)
    foldable = site.bias is None or site.bias_constant is not None
    return (replace(site, tail=tail if foldable else None),)


def _with_bias(lens: Lens, site: Site) -> Site:
    bias = trace(lens, site.bias, site.place.scope) if site.bias is not None else ""
    return site if isinstance(bias, str) else replace(site, bias_constant=bias)


def _in_functions(proto: onnx.ModelProto) -> list[Refusal]:
    return [
        Refusal(f"{function.name}/{place.key}", place.node.op_type, "it stands inside a model-local function")
        for function in proto.functions
        for place in walk(onnx.GraphProto(node=function.node))
        if _is_related(place.node)
    ]


def _everything(proto: onnx.ModelProto, reason: str) -> list[Refusal]:
    nodes = (place for place in walk(proto.graph) if _is_related(place.node))
    return [Refusal(place.key, place.node.op_type, reason) for place in nodes]


def _is_related(node: onnx.NodeProto) -> bool:
    return is_dense(node.op_type, node.domain) or kind_refusal(node.op_type, node.domain) is not None
