"""The weights of a model as codebooks: which can be, how data weighs their errors, and one weight's codebook.

A weight becomes a codebook where that takes at most `MAX_SHARE` of its bytes, the nodes that decode it
included. What the data says of a layer's input weighs the errors of its weight: the second moment of each
input, and in place of that diagonal the whole moment when centroids are refitted.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnxdecomp.config import CodebookRule, Config, matches
from onnxdecomp.errors import UsageError
from onnxdecomp.graph.external import tensor_bytes
from onnxdecomp.graph.find import LayerGroup, find_layers
from onnxdecomp.graph.io import Model
from onnxdecomp.graph.names import MARK
from onnxdecomp.graph.stored import StoredCodebook
from onnxdecomp.graph.tensors import Key, StoredWeight, find_weights
from onnxdecomp.graph.weights import apply_steps, weight_problem
from onnxdecomp.methods.base import FloatArray
from onnxdecomp.report.outcome import BeforeAfter, WeightOutcome
from onnxdecomp.search.trial import NOT_COMPARED
from onnxdecomp.weights.centroids import output_error, refit_codebook
from onnxdecomp.weights.cluster import Codebook, cluster, codebook_bytes, input_importance, weight_error
from onnxdecomp.weights.moments import Moment, Moments
from onnxdecomp.weights.shrinkage import shrunk

NODE_BYTES = 700
"""What the nodes that decode a weight take in a file, and the names of their constants, at about the most."""

MAX_SHARE = 0.75
"""Share of a weight's bytes that its codebook may take, the nodes included: else it stays dense."""

REFIT_OPERATIONS = 3e10
"""Operations of a step of refitting, ``2 O D^2``, above which indices alone are chosen and centroids stay."""

LEAST_BITS = 2
"""Of the widths that are chosen from."""

NOT_ASKED = "its rule, or the general one, says that it is not to be clustered"

ROUNDING = 1e-6
"""A scale that is this close to 1 is 1."""

Order = NDArray[np.intp]


@dataclass(frozen=True)
class Clusterable:
    """A weight that may become a codebook.

    Args:
        stored: The weight as it is stored.
        group: The layers that use it, where they are known; None for tables, recurrent layers and the like.
        rule: What was asked for.
    """

    stored: StoredWeight
    group: LayerGroup | None
    rule: CodebookRule

    @property
    def name(self) -> str:
        """Its name; in a body behind the key of its graph."""
        return self.stored.scope + self.stored.name

    @property
    def size_bytes(self) -> int:
        """Bytes of the dense numbers."""
        return tensor_bytes(self.stored.tensor)

    def outcome(self, reason: str) -> WeightOutcome:
        """Return what the report says of it when it stays dense."""
        size = BeforeAfter(self.size_bytes, self.size_bytes)
        shape = tuple(self.stored.tensor.dims)
        return WeightOutcome(self.name, self.stored.op_type, "dense", shape, reason, size_bytes=size)


@dataclass(frozen=True)
class Metric:
    """How data weighs the errors of a stored weight.

    Args:
        importance: What each squared error counts, in the shape of the stored weight.
        moment: ``(G, D, D)``, second moment of the patches.
        order: ``(O, D)``, where the weights of a patch stand among the stored ones.
        scale: ``(O,)``, what is done to each channel behind the layer.
        by_channels: Whether the stored channel axis counts the rows of `order`.
    """

    importance: FloatArray
    moment: Moment
    order: Order
    scale: NDArray[np.float64]
    by_channels: bool


def clusterable(
    model: Model, config: Config, refusal: Callable[[str, str], str | None], unseen: Collection[str] = ()
) -> tuple[list[Clusterable], list[WeightOutcome]]:
    """Return the weights of a model that may become codebooks, and what is said of the others.

    Args:
        model: The model.
        config: `include`, `exclude`, and what it says of codebooks count.
        refusal: Tells why a tensor of that name and scope cannot be written as a codebook.
        unseen: Keys of nodes that nothing that is compared depends on.

    Raises:
        UsageError: A layer rule matches no weight.
    """
    groups = _groups(model)
    found, dense = [], []
    named = _named(find_weights(model))
    _check_patterns([name for _, name in named], config)
    for stored, name in named:
        rule = config.codebook_rule(*name, stored.op_type)
        weight = Clusterable(stored, groups.get((stored.scope, stored.name)), rule)
        reason = _not_selected(stored, config) or (NOT_ASKED if rule.dense else None)
        reason = reason or (NOT_COMPARED if stored.key in unseen else None)
        reason = reason or refusal(stored.name, stored.scope) or _too_small(weight)
        if reason:
            dense.append(weight.outcome(reason))
        else:
            found.append(weight)
    return found, dense


def _groups(model: Model) -> dict[Key, LayerGroup]:
    """Return the layers that use a weight, by where it is stored."""
    found = find_layers(model).groups
    return {(g.sites[0].weight.scope.prefix, g.sites[0].weight.origin.name): g for g in found}


def _named(weights: Sequence[StoredWeight]) -> list[tuple[StoredWeight, tuple[str, str]]]:
    """Return weights with key and node name that rules know them by: in a chain those of the layer."""
    layers = [weight.node_name.partition(MARK)[0] for weight in weights]
    last = {layer: w.key for layer, w in zip(layers, weights, strict=True) if MARK in w.node_name}
    return [
        (weight, (last[layer] if MARK in weight.node_name else weight.key, layer))
        for layer, weight in zip(layers, weights, strict=True)
    ]


def _check_patterns(names: Sequence[tuple[str, str]], config: Config) -> None:
    for pattern, rule in config.layers.items():
        if rule.says_how_to_cluster and not any(matches(pattern, *name) for name in names):
            shown = ", ".join(key for key, _ in names[:5]) or "none"
            raise UsageError(f"the layer rule '{pattern}' matches no weight; their layers are: {shown}, ...")


def _not_selected(stored: StoredWeight, config: Config) -> str | None:
    """Return why a weight is not looked at; those of the nodes of a chain follow the layer they replace."""
    if MARK in stored.node_name or config.selects(stored.key, stored.node_name):
        return None
    return "not selected by --include and --exclude"


def _too_small(weight: Clusterable) -> str | None:
    bits = weight.rule.bits or LEAST_BITS
    shape = tuple(weight.stored.tensor.dims)
    if 0 in shape:
        return f"its shape {list(shape)} is empty"
    size_bytes = estimated_bytes(shape, weight.stored.axis, bits, weight.rule)
    if size_bytes <= MAX_SHARE * weight.size_bytes:
        return None
    return (
        f"its codebook would take about {size_bytes:,} bytes with the nodes that decode it, more than "
        f"{MAX_SHARE:.0%} of the {weight.size_bytes:,} bytes that are there"
    )


def estimated_bytes(shape: Sequence[int], axis: int, bits: int, rule: CodebookRule) -> int:
    """Return the bytes of a codebook of full length and of the nodes that decode it."""
    n_weights, n_channels = prod(shape), shape[axis]
    n_groups = -(-n_channels // rule.group) if rule.group else 1
    n_centroids = n_groups * min(1 << bits, -(-n_weights // n_groups))
    return codebook_bytes(n_weights, bits, n_centroids, n_channels if rule.scaled else 0) + NODE_BYTES


def numbers(model: Model, weight: Clusterable) -> FloatArray | str:
    """Return the stored numbers, 16-bit ones as float32; or why they cannot be clustered."""
    array: FloatArray = np.asarray(model.array(weight.stored.tensor))
    array = array.astype(np.float32) if array.dtype.itemsize == 2 else array
    problem = weight_problem(array)
    if problem is None and float(np.max(np.abs(array))) > np.finfo(np.float32).max:
        problem = "it has values beyond the range of float32"
    return problem or array


def metric_of(model: Model, weight: Clusterable, moments: Moments | None) -> Metric | None:
    """Return how data weighs the errors of a weight; None where it does not reach it."""
    group = weight.group
    if moments is None or group is None:
        return None
    site, shape = group.sites[0], group.layer.weight_shape
    steps = [step for step in site.weight.steps if step[0] != "cast"]
    stored_shape = tuple(weight.stored.tensor.dims)
    places = np.arange(prod(stored_shape)).reshape(stored_shape)
    order: Order = np.asarray(apply_steps(places, steps), np.intp).reshape(shape[0], -1)  # (O, D)
    scale = np.ones(shape[0])
    if site.tail:
        factor = np.abs(site.tail.affine(model, shape[0])[0])
        scale = np.maximum(factor, np.finfo(np.float32).eps * max(float(np.max(factor)), 1e-30))
    moment = shrunk(moments.second, moments.n_patches, group.layer.patch_axes)
    assert isinstance(moment, np.ndarray)
    by_input = input_importance(moment, shape).reshape(-1, order.shape[1])  # (1 or O, D)
    importance = np.empty(order.size)
    importance[order] = by_input * np.square(scale)[:, np.newaxis]  # (O, D)
    by_channels = all(step[0] == "transpose" for step in steps)
    return Metric(importance.reshape(stored_shape), moment, order, scale, by_channels)


def codebook_of(array: FloatArray, weight: Clusterable, bits: int, metric: Metric | None) -> Codebook:
    """Return the codebook of a weight, fitted to data where there is some.

    Errors counted by the size of the input alone leave out how inputs go together, and may lose more than
    errors that all count the same: the better of the two is refitted. Indices have as few bits as the
    centroids take.
    """

    def clustered(importance: FloatArray | None) -> Codebook:
        found = cluster(
            array,
            bits,
            importance=importance,
            group_channels=weight.rule.group or None,
            per_channel_scale=weight.rule.scaled,
            centroids=weight.rule.centroids,
            axis=weight.stored.axis,
        )
        needed = max((found.centroids.shape[1] - 1).bit_length(), 1)
        return replace(found, bits=min(bits, needed))

    plain = clustered(None)
    if metric is None:
        return plain
    weighed = clustered(metric.importance)
    best = min(weighed, plain, key=lambda codebook: _data_error(codebook, array, metric))
    return _refitted(best, array, metric)


def _data_error(codebook: Codebook, array: FloatArray, metric: Metric) -> float:
    """Return the relative error of the layer's output on the data."""
    scale = metric.scale[:, np.newaxis]
    decoded, wanted = (dense.reshape(-1)[metric.order] * scale for dense in (codebook.decode(), array))
    return output_error(decoded, wanted, metric.moment)


def _refitted(codebook: Codebook, array: FloatArray, metric: Metric) -> Codebook:
    """Return a codebook refitted to the whole moment, where that can be done."""
    order, n_codebooks = metric.order, len(codebook.centroids)
    own = np.ones(1) if codebook.scale is None else codebook.scale.astype(np.float64)
    if (n_codebooks > 1 or own.size > 1) and not metric.by_channels:
        return codebook
    scale = (own * metric.scale).astype(np.float32)  # (O,)
    indices = codebook.indices.reshape(-1)[order]  # (O, D)
    group_channels = codebook.group_channels if n_codebooks > 1 else len(order)
    normal = replace(codebook, indices=indices, axis=0, scale=scale, group_channels=group_channels)
    wanted = array.reshape(-1)[order] * metric.scale[:, np.newaxis]  # (O, D)
    is_large = 2.0 * order.size * order.shape[1] > REFIT_OPERATIONS
    fitted = refit_codebook(normal, wanted, metric.moment, keep_centroids=is_large)
    stored = np.empty_like(codebook.indices).reshape(-1)
    stored[order] = fitted.indices
    return replace(
        codebook,
        indices=stored.reshape(codebook.indices.shape),
        centroids=fitted.centroids,
        scale=_own_scale(fitted.scale, metric.scale, n_scales=own.size),
    )


def _own_scale(
    fitted: NDArray[np.float32] | None, scale: NDArray[np.float64], *, n_scales: int
) -> NDArray[np.float32] | None:
    """Return the scales of a codebook: what is left of its channels' without those behind the layer."""
    assert fitted is not None
    own = (fitted[:n_scales].astype(np.float64) / scale[:n_scales]).astype(np.float32)
    return None if np.all(np.abs(own - 1) < ROUNDING) else own


def stored_form(codebook: Codebook) -> StoredCodebook:
    """Return a codebook as it is written to a model."""
    centroids: NDArray[np.generic] = codebook.stored
    if codebook.kind == "bfloat16":
        centroids = centroids.view(ml_dtypes.bfloat16)
    scale = codebook.scale
    if scale is not None and scale.size == 1:
        scale = scale.reshape(())
    group_size = codebook.group_channels if len(centroids) > 1 else 0
    return StoredCodebook(codebook.indices, centroids, codebook.bits, codebook.axis, group_size, scale)


def clustered_outcome(
    weight: Clusterable, array: FloatArray, codebook: Codebook, metric: Metric | None
) -> WeightOutcome:
    """Return what the report says of a weight that became a codebook."""
    data_error = _data_error(codebook, array, metric) if metric else None
    n_codebooks, n_centroids = codebook.centroids.shape
    return replace(
        weight.outcome(""),
        status="clustered",
        bits=codebook.bits,
        n_centroids=n_centroids,
        n_codebooks=n_codebooks,
        weight_error=weight_error(codebook, array),
        data_error=data_error,
        note=codebook.note,
        size_bytes=BeforeAfter(weight.size_bytes, codebook.size_bytes),
    )


def stored_bytes(model: Model) -> int:
    """Return the bytes of all weights of a model."""
    return sum(_sizes(find_weights(model)))


def _sizes(weights: Iterable[StoredWeight]) -> Iterable[int]:
    return (tensor_bytes(weight.tensor) for weight in weights)
