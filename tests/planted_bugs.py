"""Wrong rewrites, each a change that a person could make by mistake; the contract must catch all of them.

Each bug names a method and a kind of layer (`tests.builders.LAYERS`) and patches one attribute.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from onnxdecomp.graph import emit
from onnxdecomp.layer import Geometry, Layer, StepSpec
from onnxdecomp.methods import find_methods
from onnxdecomp.methods.base import Method
from onnxdecomp.methods.split import SplitAnalysis, SplitMethod
from onnxdecomp.methods.tt import TensorTrain, TensorTrainAnalysis
from onnxdecomp.methods.tucker2 import Tucker2, Tucker2Analysis


@dataclass(frozen=True)
class PlantedBug:
    """One mistake.

    Args:
        claim: What is wrong.
        method: Full name of a method that shows it.
        kind: A layer that shows it.
        owner: What is patched.
        attribute: Its patched attribute.
        wrong: Takes the right attribute, returns the wrong one.
    """

    claim: str
    method: str
    kind: str
    owner: Any
    attribute: str
    wrong: Callable[[Any], Any]

    def find_method(self) -> Method:
        return find_methods(self.method)[0]


def _kept(change: Callable[[Geometry, Geometry, set[int]], Geometry]) -> Callable[[Any], Any]:
    """Return a wrong `Geometry.on_axes` that applies `change(whole, right, axes)`."""

    def wrong(right: Any) -> Any:
        def on_axes(self: Geometry, axes: Any, group: int) -> Geometry:
            axes = tuple(axes)
            return change(self, right(self, axes, group), set(axes))

        return on_axes

    return wrong


def _drop(**neutral: int) -> Callable[[Any], Any]:
    """Forget geometry fields: each is set to a neutral value on every axis."""
    return _kept(lambda _, right, __: replace(right, **{k: (v,) * right.n_axes for k, v in neutral.items()}))


def _plan(change: Callable[[Layer, tuple[StepSpec, ...]], tuple[StepSpec, ...]]) -> Callable[[Any], Any]:
    """Return a wrong `plan` that changes the right steps."""

    def wrong(right: Any) -> Any:
        return lambda self, layer, ranks: change(layer, right(self, layer, ranks))

    return wrong


def _weights(change: Callable[[list[Any]], list[Any]]) -> Callable[[Any], Any]:
    """Return wrong `weights` that changes the right arrays."""

    def wrong(right: Any) -> Any:
        return lambda self, ranks: change(right(self, ranks))

    return wrong


def _stride_before_the_kernel(layer: Layer, specs: tuple[StepSpec, ...]) -> tuple[StepSpec, ...]:
    """Let the first step, which has no kernel, skip samples that the kernel needs."""
    strides, ones = layer.geometry.strides, (1,) * layer.geometry.n_axes
    first = StepSpec(specs[0].weight_shape, replace(specs[0].geometry, strides=strides))
    return (first, *(StepSpec(s.weight_shape, replace(s.geometry, strides=ones)) for s in specs[1:]))


def _group_one_on_the_last(layer: Layer, specs: tuple[StepSpec, ...]) -> tuple[StepSpec, ...]:
    geometry = replace(specs[-1].geometry, group=1)
    return (*specs[:-1], StepSpec(specs[-1].weight_shape, geometry))


def _swap_steps(layer: Layer, specs: tuple[StepSpec, ...]) -> tuple[StepSpec, ...]:
    """Give the vertical step the horizontal geometry and the other way round."""
    first, last = specs
    return (StepSpec(first.weight_shape, last.geometry), StepSpec(last.weight_shape, first.geometry))


def _dense_everywhere(layer: Layer, specs: tuple[StepSpec, ...]) -> tuple[StepSpec, ...]:
    """Let pointwise steps of a transposed layer keep its geometry: the upsampling then happens twice."""
    return tuple(StepSpec(spec.weight_shape, replace(layer.geometry, group=layer.group)) for spec in specs)


def _bias_on_the_first(right: Any) -> Any:
    def chain_nodes(layer: Layer, specs: Any, wiring: Any) -> Any:
        nodes = right(layer, specs, wiring)
        if len(nodes) > 1 and wiring.bias:
            nodes[-1].input.remove(wiring.bias)
            nodes[0].input.append(wiring.bias)
        return nodes

    return chain_nodes


def _is_step(layer: Layer, spec: StepSpec) -> bool:
    """Tell a step of a chain from the layer itself, which the chain is compared with."""
    return spec.weight_shape != layer.weight_shape


def _symmetric_pads(right: Any) -> Any:
    def attributes(*args: Any, **kwargs: Any) -> Any:
        found = right(*args, **kwargs)
        if "pads" in found and _is_step(*args[:2]):
            begins = found["pads"][: len(found["pads"]) // 2]
            found["pads"] = begins * 2
        return found

    return attributes


def _untransposed(right: Any) -> Any:
    def stored_weight(layer: Layer, spec: StepSpec, weight: Any) -> Any:
        return weight if _is_step(layer, spec) else right(layer, spec, weight)

    return stored_weight


def _lose_a_component(weights: list[Any]) -> list[Any]:
    """Set the last channel between the steps to zero."""
    last = weights[1].copy()
    last[:, -1] = 0.0
    return [weights[0], last]


BUGS = (
    PlantedBug(
        "dropped dilation", "spatial-svd/vertical-first", "dilation", Geometry, "on_axes",
        _drop(dilations=1),
    ),
    PlantedBug("dropped stride", "channel-svd/output", "stride", Geometry, "on_axes", _drop(strides=1)),
    PlantedBug(
        "dropped begin pads", "spatial-svd/horizontal-first", "plain", Geometry, "on_axes",
        _drop(pads_begin=0),
    ),
    PlantedBug(
        "dropped output padding", "tt", "transposed strided", Geometry, "on_axes", _drop(output_padding=0)
    ),
    PlantedBug(
        "pads of the other axis", "spatial-svd/vertical-first", "asymmetric pads", Geometry, "on_axes",
        _kept(lambda _, right, __: replace(right, pads_begin=right.pads_begin[::-1])),
    ),
    PlantedBug(
        "automatic pads forgotten", "spatial-svd/vertical-first", "same upper", Geometry, "on_axes",
        _kept(lambda _, right, __: replace(right, auto_pad="NOTSET")),
    ),
    PlantedBug(
        "upper for lower", "tt", "same lower", Geometry, "on_axes",
        _kept(lambda _, right, __: replace(right, auto_pad="SAME_UPPER")),
    ),
    PlantedBug(
        "both steps stride along all axes", "spatial-svd/vertical-first", "stride", Geometry, "on_axes",
        _kept(lambda whole, right, _: replace(right, strides=whole.strides)),
    ),
    PlantedBug(
        "transposed forgotten", "channel-svd/input", "transposed strided", Geometry, "on_axes",
        _kept(lambda _, right, __: replace(right, transposed=False)),
    ),
    PlantedBug("symmetric pads only", "tucker2", "asymmetric pads", emit, "_attributes", _symmetric_pads),
    PlantedBug("bias on the first step", "tucker2", "plain", emit, "chain_nodes", _bias_on_the_first),
    PlantedBug("bias on the first step", "svd/2-steps", "Gemm", emit, "chain_nodes", _bias_on_the_first),
    PlantedBug("untransposed MatMul", "svd/2-steps", "MatMul", emit, "stored_weight", _untransposed),
    PlantedBug(
        "stride before the kernel", "channel-svd/input", "stride", SplitMethod, "plan",
        _plan(_stride_before_the_kernel),
    ),
    PlantedBug(
        "stride before the kernel", "tucker2", "1-D", Tucker2, "plan", _plan(_stride_before_the_kernel),
    ),
    PlantedBug(
        "swapped steps", "spatial-svd/vertical-first", "asymmetric pads", SplitMethod, "plan",
        _plan(_swap_steps),
    ),
    PlantedBug(
        "upsampling on the first step, before the channels", "svd/2-steps", "transposed 1x1 strided",
        SplitMethod, "plan", _plan(_dense_everywhere),
    ),
    PlantedBug(
        "group of one", "channel-svd/output", "groups", SplitMethod, "plan",
        _plan(_group_one_on_the_last),
    ),
    PlantedBug("group of one", "tucker2", "groups", Tucker2, "plan", _plan(_group_one_on_the_last)),
    PlantedBug(
        "swapped Tucker ranks", "tucker2", "plain", Tucker2, "plan",
        lambda right: lambda self, layer, ranks: right(self, layer, ranks[::-1]),
    ),
    PlantedBug(
        "swapped Tucker ranks in the weights", "tucker2", "plain", Tucker2Analysis, "weights",
        lambda right: lambda self, ranks: right(self, ranks[::-1]),
    ),
    PlantedBug(
        "kernel axes swapped in a square core", "tucker2", "plain", Tucker2Analysis, "weights",
        _weights(lambda w: [w[0], w[1].swapaxes(2, 3), w[2]]),
    ),
    PlantedBug(
        "a flipped kernel", "spatial-svd/vertical-first", "plain", SplitAnalysis, "weights",
        _weights(lambda w: [w[0][:, :, ::-1], w[1]]),
    ),
    PlantedBug(
        "singular values on both sides in full", "svd/2-steps", "1x1", SplitAnalysis, "weights",
        _weights(lambda w: [w[0], w[1] * abs(w[1]).max(axis=0)]),
    ),
    PlantedBug(
        "a lost last component", "channel-svd/input", "plain", SplitAnalysis, "weights",
        _weights(_lose_a_component),
    ),
    PlantedBug(
        "an error that is squared", "channel-svd/output", "plain", SplitAnalysis, "error",
        lambda right: lambda self, ranks: right(self, ranks) ** 2,
    ),
    PlantedBug(
        "an error that forgets the middle cut", "tt", "plain", TensorTrainAnalysis, "error",
        lambda right: lambda self, ranks: right(self, (ranks[0], 10**6, ranks[2])),
    ),
    PlantedBug(
        "half of the multiply-accumulates", "spatial-svd/vertical-first", "plain", StepSpec, "n_macs",
        lambda right: lambda self, in_shape: right(self, in_shape) // 2,
    ),
    PlantedBug(
        "rank bounds that are one too low", "tt", "plain", TensorTrain, "rank_bounds",
        lambda right: lambda self, layer: tuple(b - 1 for b in right(self, layer)),
    ),
)  # fmt: skip
"""All planted mistakes."""
