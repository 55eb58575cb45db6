"""Channels between two layers: where they can go, and that nothing else changes when they do."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.graph.channels import Coupled, coupled_layers
from onnxdecomp.graph.find import LayerGroup, find_layers
from onnxdecomp.graph.io import ModelWriter, load
from onnxdecomp.graph.rewrite import Rewriter
from onnxdecomp.methods.base import Chain
from tests.asserts import assert_models_agree
from tests.graph.models import normal, parse

WEIGHTS = {
    "v": normal(8, 3, 3, 3),
    "a": normal(8),
    "w": normal(4, 8, 3, 3, seed=1),
    "b": normal(4),
    "d": normal(8, 1, 3, 3),
    "two": np.float32([2.0]),
    "six": np.float32(6.0),
    "zero": np.float32(0.0),
    "each": normal(8, 1, 1),
    "grouped": normal(8, 4, 1, 1),
    "m": normal(5, 8),
    "deep": normal(5, 8 * 6 * 6),
    "n": normal(8, 8),
    "pointwise": normal(8, 8, 1, 1),
    "square": np.abs(normal(8)) + 1,
}


def model_of(body: str, data: str = "float[1,3,8,8] x", result: str = "float[1,4,N,M] y") -> onnx.ModelProto:
    used = {name: array for name, array in WEIGHTS.items() if f" {name}" in body.replace(",", " ,")}
    return parse(f"g ({data}) => ({result}) {{ {body} }}", used)


def coupled(proto: onnx.ModelProto) -> list[list[str]]:
    model = load(proto)
    found = coupled_layers(model.proto.graph, find_layers(model).groups)
    return [[group.layer.key for group in one.groups] for one in found]


FIRST, LAST = "p = Conv( x, v, a)", "y = Conv(c, w, b)"
CHANNELWISE = {
    "nothing between": "c = Identity(p)",
    "ReLU": "c = Relu(p)",
    "ReLU6": "c = Clip(p, zero, six)",
    "pooling behind": "r = Relu(p) c = MaxPool<kernel_shape=[2,2]>(r)",
    "SiLU": "s = Sigmoid(p) c = Mul(p, s)",
    "a scalar": "s = Mul(p, two) c = Add(two, s)",
    "a constant node": "k = Constant<value_float=2.0>() c = Mul(k, p)",
}


@pytest.mark.parametrize("between", CHANNELWISE.values(), ids=CHANNELWISE)
def test_channels_can_go_where_all_are_treated_alike(between):
    assert coupled(model_of(f"{FIRST} {between} {LAST}")) == [["p", "y"]]


KEPT = {
    "a residual": "r = Relu(p) q = Conv(r, pointwise, a) c = Add(r, q)",
    "a constant for each": "r = Relu(p) c = Mul(r, each)",
    "groups": "r = Relu(p) q = Conv<group=2>(r, grouped) c = Relu(q)",
    "channels that meet": "c = Softmax<axis=1>(p)",
    "channels behind each other": "c = Concat<axis=1>(p)",
}


@pytest.mark.parametrize("between", KEPT.values(), ids=KEPT)
def test_channels_stay_where_something_else_reads_them(between):
    assert ["p", "y"] not in coupled(model_of(f"{FIRST} {between} {LAST}"))


def test_channels_stay_that_leave_the_model():
    proto = model_of(f"{FIRST} c = Relu(p) {LAST}")
    proto.graph.output.append(onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, None))
    assert coupled(proto) == []


def test_channels_stay_that_two_layers_read():
    assert coupled(model_of(f"{FIRST} c = Relu(p) q = Conv(c, w) s = Conv(c, w, b) y = Add(q, s)")) == []


def test_depthwise_layers_between_go_along():
    body = f"{FIRST} r = Relu(p) q = Conv<group=8>(r, d) c = Relu(q) {LAST}"
    assert coupled(model_of(body)) == [["p", "q", "y"]]


@pytest.mark.parametrize(("pool", "is_found"), [("GlobalAveragePool", True), ("Relu", False)])
def test_a_matrix_reads_channels_where_each_is_a_single_number(pool, is_found):
    body = f"{FIRST} r = {pool}(p) f = Flatten(r) y = Gemm<transB=1>(f, {'m' if is_found else 'deep'})"
    assert coupled(model_of(body, result="float[1,5] y")) == ([["p", "y"]] if is_found else [])


def test_matrices_lose_channels_too():
    body = "p = Gemm<transB=1>( x, n, a) c = Relu(p) y = Gemm<transB=1>(c, m)"
    assert coupled(model_of(body, "float[2,8] x", "float[2,5] y")) == [["p", "y"]]


def without(proto: onnx.ModelProto, kept: np.ndarray) -> onnx.ModelProto:
    """Return a model in which only some channels between its two layers are left."""
    model = load(proto)
    (pair,) = coupled_layers(model.proto.graph, find_layers(model).groups)
    with ModelWriter(model, None) as writer:
        rewriter = Rewriter(model, writer.add_tensor)
        for group in pair.groups:
            rewriter.replace(group, *narrowed(group, pair, kept))
        writer.commit(rewriter.finish())
    return writer.result


def narrowed(group: LayerGroup, pair: Coupled, kept: np.ndarray) -> tuple[Chain, np.ndarray | None]:
    is_last = group is pair.consumer
    weight = group.weight()[:, kept] if is_last else group.weight()[kept]
    n_groups = len(kept) if group in pair.depthwise else 1
    geometry = replace(group.layer.geometry, group=n_groups)
    layer = replace(group.layer, weight_shape=weight.shape, geometry=geometry)
    bias = group.known_bias()
    return Chain(layer, "pruned", (), (layer.spec,), (weight,)), bias if is_last else bias[kept]


def dead(proto: onnx.ModelProto, kept: np.ndarray) -> onnx.ModelProto:
    """Return the same model with nothing read of the other channels."""
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name in ("w", "m"))
    array = onnx.numpy_helper.to_array(weight).copy()
    array[:, np.setdiff1d(np.arange(8), kept)] = 0
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    return proto


@settings(max_examples=25, deadline=None)
@given(
    st.sets(st.integers(0, 7), min_size=1),
    st.sampled_from(
        [
            "c = Relu(p)",
            "s = Sigmoid(p) t = Mul(p, s) c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(t)",
            "r = Relu(p) q = Conv<group=8, pads=[1,1,1,1]>(r, d) c = Clip(q, zero, six)",
            "k = BatchNormalization(p, a, a, a, square) c = Relu(k)",
        ]
    ),
)
def test_without_channels_that_nothing_is_read_of_the_model_is_the_same(channels, between):
    kept = np.array(sorted(channels))
    body = f"{FIRST} {between} y = Conv<pads=[1,1,1,1]>(c, w, b)"
    proto = onnx.shape_inference.infer_shapes(dead(model_of(body), kept))
    pruned = without(proto, kept)
    onnx.checker.check_model(pruned, full_check=True)
    x = {"x": normal(1, 3, 8, 8)}
    assert_models_agree(proto, pruned, x, 1e-5)
    assert not pruned.graph.value_info or len(kept) == 8


def test_shapes_behind_the_next_layer_stay_known():
    kept = np.arange(4)
    body = f"{FIRST} c = Relu(p) q = Conv(c, w, b) y = Relu(q)"
    proto = onnx.shape_inference.infer_shapes(dead(model_of(body), kept))
    assert [value.name for value in without(proto, kept).graph.value_info] == ["q"]
