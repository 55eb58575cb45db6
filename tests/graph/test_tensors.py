"""Weights are found in every kind of layer, with the axis of their output channels."""

import numpy as np
import onnx
import pytest

from onnxdecomp.graph.io import load
from onnxdecomp.graph.tensors import StoredWeight, find_weights
from tests.graph.models import normal, parse


def found(text: str, **shapes: tuple[int, ...]) -> list[StoredWeight]:
    """Return the weights of a graph given as text, with initializers of these shapes."""
    arrays = {name: normal(*shape) for name, shape in shapes.items()}
    return find_weights(load(parse(text, arrays)))


@pytest.mark.parametrize(
    ("node", "rank", "axis"),
    [
        ("y = Conv(x, w)", 4, 0),
        ("y = ConvTranspose(x, w)", 4, 1),
        ("y = Gemm <transB = 1> (x, w)", 2, 0),
        ("y = Gemm(x, w)", 2, 1),
        ("y = Gemm(w, x)", 2, 0),
        ("y = Gemm <transA = 1> (w, x)", 2, 1),
        ("y = MatMul(x, w)", 2, 1),
        ("y = MatMul(x, w)", 3, 2),
        ("y = MatMul(w, x)", 3, 1),
        ("y = LSTM <hidden_size = 1> (x, w, x)", 3, 1),
        ("y = GRU <hidden_size = 1> (x, x, w)", 3, 1),
        ("y = Gather(w, x)", 2, 0),
        ("y = Gather <axis = -1> (w, x)", 2, 1),
        ("t = Transpose(w) y = MatMul(x, t)", 2, 0),
        ("t = Transpose <perm = [1, 2, 0]> (w) y = MatMul(x, t)", 3, 0),
        ("t = Transpose <perm = [1, 2, 0]> (w) u = Transpose <perm = [1, 0, 2]> (t) y = MatMul(u, x)", 3, 1),
        ("t = Identity(w) y = MatMul(x, t)", 2, 1),
    ],
)
def test_the_axis_of_channels_belongs_to_the_operator(node: str, rank: int, axis: int) -> None:
    (weight,) = found(f"g (float[N] x) => (float[M] y) {{ {node} }}", w=(2,) * rank)
    assert (weight.name, weight.scope, weight.axis) == ("w", "", axis)


@pytest.mark.parametrize(
    "node", ["y = Add(x, w)", "y = MatMul(x, v)", "y = Conv(x, x, w)", "y = Gemm(x, x, w)"]
)
def test_what_is_no_weight_is_left_out(node: str) -> None:
    assert found(f"g (float[N] x, float[N] v) => (float[M] y) {{ {node} }}", w=(2,)) == []


def test_a_shared_weight_is_found_once() -> None:
    (weight,) = found("g (float[2,2] x) => (float[2,2] y) { a = MatMul(x, w) y = Gemm(a, w) }", w=(2, 2))
    assert weight.op_type == "MatMul"


def test_whole_numbers_are_no_weights() -> None:
    proto = parse("g (int64[N] x) => (int64[M,2] y) { y = Gather(w, x) }", {"w": np.zeros((3, 2), np.int64)})
    assert find_weights(load(proto)) == []


def test_weights_of_bodies_and_those_that_bodies_see_are_found_where_they_stand() -> None:
    text = """g (bool c, float[2,2] x) => (float[2,2] y) { y = If(c) <
        then_branch = t () => (float[2,2] a) <float[2,2] v = {1,2,3,4}> { m = MatMul(x, v) a = MatMul(m, w) },
        else_branch = e () => (float[2,2] b) { k = Constant <value = float[2,2] {1,2,3,4}> ()
        b = MatMul(k, x) }> }"""
    weights = found(text, w=(2, 2))
    assert [(weight.scope, weight.name, weight.axis) for weight in weights] == [
        ("y.then_branch/", "v", 1),
        ("", "w", 1),
        ("y.else_branch/", "k", 0),
    ]


def test_operators_of_other_domains_are_left_out() -> None:
    proto = parse("g (float[2,2] x) => (float[2,2] y) { y = MatMul(x, w) }", {"w": normal(2, 2)})
    proto.graph.node[0].domain = "somebody's"
    proto.opset_import.append(onnx.helper.make_opsetid("somebody's", 1))
    assert find_weights(load(proto)) == []
