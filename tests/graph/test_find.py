"""Which nodes are layers, what their normal form is, and why the others are none."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnxdecomp.graph.find import find_layers
from onnxdecomp.graph.io import load
from onnxdecomp.graph.weights import weight_problem
from tests.graph.models import (
    assert_close,
    assert_rewritten_equal,
    find,
    normal,
    only_layer,
    only_reason,
    parse,
    rewrite,
    run,
    three_steps,
)

CONVOLUTIONS = {
    "1-D": ("", (2, 4, 9), (6, 4, 3)),
    "2-D": ("", (2, 4, 8, 9), (6, 4, 3, 3)),
    "3-D": ("", (1, 2, 5, 6, 7), (4, 2, 3, 2, 1)),
    "strides": ("<strides=[2,3]>", (1, 4, 9, 9), (6, 4, 3, 3)),
    "dilations": ("<dilations=[2,1]>", (1, 4, 9, 9), (6, 4, 3, 3)),
    "asymmetric pads": ("<pads=[1,0,2,3]>", (1, 4, 8, 8), (6, 4, 3, 3)),
    "groups": ("<group=2, pads=[1,1,1,1]>", (1, 4, 8, 8), (6, 2, 3, 3)),
    "depthwise": ("<group=4>", (1, 4, 8, 8), (8, 1, 3, 3)),
    "valid": ('<auto_pad="VALID", strides=[2,2]>', (1, 4, 8, 8), (6, 4, 3, 3)),
    "same upper": ('<auto_pad="SAME_UPPER", strides=[2,2]>', (1, 4, 9, 8), (6, 4, 3, 4)),
    "same lower": ('<auto_pad="SAME_LOWER", strides=[1,2]>', (1, 4, 9, 8), (6, 4, 2, 3)),
    "kernel shape given": ("<kernel_shape=[3,3]>", (1, 4, 8, 8), (6, 4, 3, 3)),
}

TRANSPOSED = {
    "1-D": ("", (2, 4, 5), (4, 3, 3)),
    "2-D strides": ("<strides=[2,2]>", (1, 4, 5, 6), (4, 3, 3, 3)),
    "3-D": ("<strides=[2,1,2]>", (1, 2, 3, 4, 5), (2, 3, 2, 3, 1)),
    "groups": ("<group=2, strides=[2,1]>", (1, 4, 5, 5), (4, 3, 3, 2)),
    "output padding": ("<strides=[3,2], output_padding=[2,1], pads=[1,0,0,1]>", (1, 4, 5, 5), (4, 3, 3, 3)),
    "dilations": ("<dilations=[2,3]>", (1, 4, 5, 5), (4, 3, 3, 2)),
    "same upper": ('<auto_pad="SAME_UPPER", strides=[2,1]>', (1, 4, 5, 6), (4, 3, 5, 4)),
    "same lower": ('<auto_pad="SAME_LOWER", strides=[2,1]>', (1, 4, 5, 6), (4, 3, 5, 4)),
    "same with output padding": (
        '<auto_pad="SAME_UPPER", strides=[2,3], output_padding=[1,1]>',
        (1, 4, 5, 6),
        (4, 3, 4, 3),
    ),
    "same and a kernel below the stride": (
        '<auto_pad="SAME_UPPER", strides=[3,3]>',
        (1, 4, 5, 6),
        (4, 3, 2, 1),
    ),
    "valid": ('<auto_pad="VALID", strides=[2,2]>', (1, 4, 5, 5), (4, 3, 3, 3)),
}


def convolution(
    op_type: str, attributes: str, in_shape: tuple[int, ...], weight: tuple[int, ...]
) -> onnx.ModelProto:
    rank = ",".join("abcdefg"[: len(in_shape)])
    text = f"g (float{list(in_shape)} x) => (float[{rank}] y) {{ y = {op_type}{attributes}(x, w, b) }}"
    group = int(attributes.partition("group=")[2][:1] or 1)
    out_channels = weight[1] * group if op_type == "ConvTranspose" else weight[0]
    return parse(text, {"w": normal(*weight), "b": normal(out_channels)})


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_conv_is_found_and_its_chain_computes_the_same(case: str) -> None:
    attributes, in_shape, weight = CONVOLUTIONS[case]
    proto = convolution("Conv", attributes, in_shape, weight)
    layer = only_layer(proto)
    assert layer.weight_shape == weight
    assert layer.in_shape == (in_shape[0], *in_shape[2:])
    assert layer.spec.out_shape(layer.in_shape)[1:] == run(proto, {"x": normal(*in_shape)})[0].shape[2:]
    assert_rewritten_equal(proto, {"x": normal(*in_shape)})


@pytest.mark.parametrize("case", TRANSPOSED)
def test_a_conv_transpose_is_found_and_its_chain_computes_the_same(case: str) -> None:
    attributes, in_shape, weight = TRANSPOSED[case]
    proto = convolution("ConvTranspose", attributes, in_shape, weight)
    layer = only_layer(proto)
    assert layer.weight_shape == (weight[1] * layer.group, weight[0] // layer.group, *weight[2:])
    assert layer.spec.out_shape(layer.in_shape)[1:] == run(proto, {"x": normal(*in_shape)})[0].shape[2:]
    assert_rewritten_equal(proto, {"x": normal(*in_shape)})


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("factors", ["", ", alpha=0.5, beta=-2.0"])
@pytest.mark.parametrize("bias", [None, (), (1,), (6,), (5, 1), (5, 6)])
def test_a_gemm_is_found_and_its_chain_computes_the_same(
    trans_a: int, trans_b: int, factors: str, bias: tuple[int, ...] | None
) -> None:
    x, w = (4, 5) if trans_a else (5, 4), (6, 4) if trans_b else (4, 6)
    arrays = {"w": normal(*w)} | ({} if bias is None else {"c": normal(*bias)})
    attributes = f"<transA={trans_a}, transB={trans_b}{factors}>"
    operands = "x, w" if bias is None else "x, w, c"
    proto = parse(f"g (float{list(x)} x) => (float[a,b] y) {{ y = Gemm{attributes}({operands}) }}", arrays)
    layer = only_layer(proto)
    assert (layer.weight_shape, layer.in_shape) == ((6, 4), (5,))
    assert_rewritten_equal(proto, {"x": normal(*x)})


def test_the_bias_of_a_gemm_may_be_computed() -> None:
    proto = parse(
        "g (float[5,4] x, float[6] c) => (float[5,6] y) { y = Gemm<beta=3.0>(x, w, c) }", {"w": normal(4, 6)}
    )
    assert_rewritten_equal(proto, {"x": normal(5, 4), "c": normal(6)})


@pytest.mark.parametrize("in_shape", [(4,), (5, 4), (3, 5, 4), (2, 3, 5, 4)])
def test_a_matmul_with_a_constant_on_the_right_is_found(in_shape: tuple[int, ...]) -> None:
    rank = ",".join("abcd"[: len(in_shape)])
    proto = parse(
        f"g (float{list(in_shape)} x) => (float[{rank}] y) {{ y = MatMul(x, w) }}", {"w": normal(4, 6)}
    )
    layer = only_layer(proto)
    assert (layer.weight_shape, layer.weight_on_left) == ((6, 4), False)
    assert layer.in_shape == (int(np.prod(in_shape[:-1])),)
    assert_rewritten_equal(proto, {"x": normal(*in_shape)})


FLATTENED = {
    "flatten": ("f = Flatten(x)", (2, 6, 3, 4), (6, 3, 4)),
    "an open number of samples": ("f = Flatten(x)", ("n", 6, 3, 4), (6, 3, 4)),
    "reshape": ("s = Constant<value_ints=[2,-1]>() f = Reshape(x, s)", (2, 3, 4, 6), (3, 4, 6)),
    "heads of an attention": (
        "s = Constant<value_ints=[2,5,-1]>() f = Reshape(x, s)",
        (2, 5, 8, 9),
        (8, 9),
    ),
    "with nodes between": ("e = Relu(x) g = Flatten(e) h = Relu(g) f = Dropout(h)", (2, 8, 3, 3), (8, 3, 3)),
    "a node that mixes": ("g = Flatten(x) f = Softmax(g)", (2, 8, 3, 3), ()),
    "unknown": ("f = Flatten(x)", (2, 8, "h", 3), ()),
    "one axis": ("f = Identity(x)", (2, 72), ()),
}


@pytest.mark.parametrize("case", FLATTENED)
def test_a_matrix_knows_the_axes_that_were_flattened_before_it(case):
    nodes, shape, axes = FLATTENED[case]
    sizes = ",".join(map(str, shape))
    weight = np.ones((72, 5), np.float32)
    model = parse(
        f"agraph (float[{sizes}] x) => (float[y0,y1] y) {{ {nodes} y = MatMul(f, w) }}", {"w": weight}
    )
    (layer,) = [group.layer for group in find(model).groups]
    assert layer.flattened == axes
    assert layer.patch_axes == (axes or (72,))


@pytest.mark.parametrize("in_shape", [(4,), (4, 5), (3, 4, 5), (2, 3, 4, 5)])
def test_a_matmul_with_a_constant_on_the_left_is_found(in_shape: tuple[int, ...]) -> None:
    rank = ",".join("abcd"[: len(in_shape)])
    proto = parse(
        f"g (float{list(in_shape)} x) => (float[{rank}] y) {{ y = MatMul(w, x) }}", {"w": normal(6, 4)}
    )
    layer = only_layer(proto)
    assert (layer.weight_shape, layer.weight_on_left) == ((6, 4), True)
    assert layer.in_shape == (int(np.prod(in_shape)) // 4,)
    assert_rewritten_equal(proto, {"x": normal(*in_shape)})


WEIGHT_PATHS = {
    "transpose": ("w = Transpose(v)", (4, 6)[::-1]),
    "identity": ("w = Identity(v)", (4, 6)),
    "two transposes": ("u = Transpose(v) t = Transpose(u) w = Identity(t)", (4, 6)),
    "reshape": ("s = Constant<value_ints=[0,-1]>() w = Reshape(v, s)", (4, 3, 2)),
    "squeeze": ("a = Constant<value_ints=[1]>() w = Squeeze(v, a)", (4, 1, 6)),
    "squeeze all": ("w = Squeeze(v)", (1, 4, 1, 6)),
    "unsqueeze": (
        "a = Constant<value_ints=[-2]>() b = Constant<value_int=0>() u = Unsqueeze(v, a) w = Squeeze(u)",
        (4, 6),
    ),
    "flatten": ("w = Flatten(v)", (4, 2, 3)),
    "cast": ("u = Cast<to=11>(v) w = Cast<to=1>(u)", (4, 6)),
}


@pytest.mark.parametrize("case", WEIGHT_PATHS)
def test_a_weight_is_found_behind_nodes_that_move_it(case: str) -> None:
    path, stored = WEIGHT_PATHS[case]
    proto = parse(f"g (float[5,4] x) => (float[5,6] y) {{ {path} y = MatMul(x, w) }}", {"v": normal(*stored)})
    assert only_layer(proto).weight_shape == (6, 4)
    assert_rewritten_equal(proto, {"x": normal(5, 4)})


@pytest.mark.parametrize(
    "value", ["value = float[4,2] {1,2,3,4,5,6,7,8.5}", "value_floats=[1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.5]"]
)
def test_a_weight_is_found_in_a_constant_node(value: str) -> None:
    proto = parse(
        f"g (float[5,4] x) => (float[5,2] y) {{ v = Constant<{value}>() s = Constant<value_ints=[4,2]>()"
        " w = Reshape(v, s) y = MatMul(x, w) }"
    )
    assert only_layer(proto).weight_shape == (2, 4)
    assert_rewritten_equal(proto, {"x": normal(5, 4)})


NUMPY_TYPES = {
    "float16": np.dtype(np.float16),
    "double": np.dtype(np.float64),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@pytest.mark.parametrize("dtype", NUMPY_TYPES)
def test_other_float_types_are_found(dtype: str) -> None:
    numpy_type = NUMPY_TYPES[dtype]
    proto = parse(
        f"g ({dtype}[5,4] x) => ({dtype}[5,6] y) {{ y = MatMul(x, w) }}",
        {"w": normal(4, 6, dtype=numpy_type)},
    )
    (group,) = find(proto).groups
    assert group.dtype == numpy_type
    assert group.stored_bytes == 24 * numpy_type.itemsize
    np.testing.assert_array_equal(group.weight(), normal(4, 6, dtype=numpy_type).T.astype(np.float64))


@pytest.mark.parametrize("dtype", ["float16", "double", "bfloat16"])
def test_chains_of_other_float_types_compute_the_same(dtype: str) -> None:
    element = NUMPY_TYPES[dtype]
    proto = parse(
        f"g ({dtype}[5,4] x) => (float[5,6] y) {{ t = MatMul(x, w) y = Cast<to=1>(t) }}",
        {"w": normal(4, 6, dtype=element)},
    )
    rewritten = rewrite(proto)
    onnx.checker.check_model(rewritten)
    feeds = {"x": normal(5, 4, dtype=element)}
    expected = feeds["x"].astype(np.float64) @ normal(4, 6, dtype=element).astype(np.float64)
    tolerance = {"float16": 5e-3, "double": 1e-6, "bfloat16": 5e-2}[dtype]
    (actual,) = ReferenceEvaluator(rewritten).run(None, feeds)
    np.testing.assert_allclose(actual, expected, atol=tolerance * np.abs(expected).max())


def test_a_weight_stored_smaller_keeps_its_bytes_and_computes_in_the_wider_type() -> None:
    proto = parse(
        "g (float[5,4] x) => (float[5,6] y) { w = Cast<to=1>(v) y = MatMul(x, w) }",
        {"v": normal(4, 6, dtype=np.float16)},
    )
    (group,) = find(proto).groups
    assert (group.dtype, group.stored_bytes) == (np.float32, 48)


MATMUL = "g (float[5,4] x) => (float[5,6] y) {{ {} }}"
CONV = "g (float[1,4,8,8] x) => (float[a,b,c,d] y) {{ {} }}"

REFUSALS = {
    "dynamic weight": (
        "g (float[5,4] x, float[4,6] w) => (float[5,6] y) { y = MatMul(x, w) }",
        {},
        "input of its graph",
    ),
    "computed weight": (
        MATMUL.format("w = Relu(v) y = MatMul(x, w)"),
        {"v": (4, 6)},
        "computed when the model runs (by Relu)",
    ),
    "three axes": (
        "g (float[2,5,4] x) => (float[2,5,6] y) { y = MatMul(x, w) }",
        {"w": (2, 4, 6)},
        "shape [2, 4, 6] is no matrix",
    ),
    "gemm on the left": (
        "g (float[4,6] x) => (float[5,6] y) { y = Gemm(w, x) }",
        {"w": (5, 4)},
        "left operand of a Gemm",
    ),
    "output shape": (
        CONV.format("y = ConvTranspose<output_shape=[10,10]>(x, w)"),
        {"w": (4, 3, 3, 3)},
        "output_shape",
    ),
    "graph output": (
        "g (float[5,4] x) => (float[5,6] y, float[4,6] w) { y = MatMul(x, w) }",
        {"w": (4, 6)},
        "also an output",
    ),
    "used by another": (
        "g (float[5,4] x) => (float[5,6] y, float[4,6] z) { y = MatMul(x, w) z = Relu(w) }",
        {"w": (4, 6)},
        "also used by 'z' (Relu)",
    ),
    "used twice": (
        "g (float[5,4] x) => (float[4,4] y) { y = MatMul(w, w) }",
        {"w": (4, 4)},
        "twice by the same node",
    ),
    "empty": ("g (float[5,0] x) => (float[5,6] y) { y = MatMul(x, w) }", {"w": (0, 6)}, "is empty"),
    "kernel shape": (
        CONV.format("y = Conv<kernel_shape=[2,2]>(x, w)"),
        {"w": (6, 4, 3, 3)},
        "kernel_shape differs",
    ),
    "cast to integer": (
        "g (int32[5,4] x) => (int32[5,6] y) { w = Cast<to=6>(v) y = MatMul(x, w) }",
        {"v": (4, 6)},
        "no float",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_node_that_cannot_be_replaced_gets_a_reason(case: str) -> None:
    text, shapes, reason = REFUSALS[case]
    assert reason in only_reason(parse(text, {name: normal(*shape) for name, shape in shapes.items()}))


@pytest.mark.parametrize(
    "node",
    [
        "y = ConvInteger(x, w)",
        "y = MatMulInteger(x, w)",
        "y = QLinearConv(x, s, z, w, s, z, s, z)",
        "y = QLinearMatMul(x, s, z, w, s, z, s, z)",
    ],
)
def test_quantized_operators_get_a_reason(node: str) -> None:
    text = f"g (uint8[1,1,4,4] x, uint8[1,1,4,4] w, float s, uint8 z) => (int32[a,b,c,d] y) {{ {node} }}"
    assert only_reason(parse(text)) == "it is already quantized"


@pytest.mark.parametrize("op_type", ["QGemm", "MatMulNBits", "FusedConv"])
def test_operators_that_onnxruntime_made_get_a_reason(op_type: str) -> None:
    proto = parse("g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }")
    proto.graph.node[0].op_type, proto.graph.node[0].domain = op_type, "com.microsoft"
    assert only_reason(proto).startswith("it ")


def test_a_dequantized_weight_gets_a_reason() -> None:
    proto = parse(
        MATMUL.format("w = DequantizeLinear(q, s) y = MatMul(x, w)"),
        {"q": np.zeros((4, 6), np.int8), "s": np.float32(1).reshape(())},
    )
    assert "quantized" in only_reason(proto)


def test_an_integer_matmul_gets_a_reason() -> None:
    proto = parse("g (int32[5,4] x) => (int32[5,6] y) { y = MatMul(x, w) }", {"w": np.ones((4, 6), np.int32)})
    assert "float type" in only_reason(proto)


def test_an_operator_of_another_domain_is_none_of_ours() -> None:
    proto = parse(MATMUL.format("y = MatMul(x, w)"), {"w": normal(4, 6)})
    proto.graph.node[0].domain = "my.own"
    assert find(proto) == find(parse(MATMUL.format("y = Relu(x)")))


def test_the_long_name_of_the_standard_domain_is_known() -> None:
    proto = parse(MATMUL.format("y = MatMul(x, w)"), {"w": normal(4, 6)})
    (expected,) = run(proto, {"x": normal(5, 4)})
    proto.graph.node[0].domain = proto.opset_import[0].domain = "ai.onnx"
    assert only_layer(proto).weight_shape == (6, 4)
    rewritten = rewrite(proto)
    assert {node.domain for node in rewritten.graph.node} == {"ai.onnx"}
    assert_close(run(rewritten, {"x": normal(5, 4)})[0], expected)


def test_a_weight_that_a_caller_may_override_gets_a_reason() -> None:
    proto = parse(
        "g (float[5,4] x, float[4,6] w) => (float[5,6] y) { y = MatMul(x, w) }", {"w": normal(4, 6)}
    )
    assert "a caller may override: --constant-weights" in only_reason(proto)


def test_a_gemm_older_than_opset_7_gets_a_reason() -> None:
    proto = parse(
        "g (float[5,4] x) => (float[5,6] y) { y = Gemm(x, w, c) }",
        {"w": normal(4, 6), "c": normal(5, 6)},
        opset=6,
        ir=3,
    )
    assert "operator set 6" in only_reason(proto)


def test_a_node_inside_a_function_gets_a_reason() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "own" : 1]>'
        "g (float[5,4] x) => (float[5,6] y) <float[4,6] w> { y = own.dense(x, w) }"
        '<domain: "own", opset_import: ["" : 17]> dense (a, b) => (c) { c = MatMul(a, b) }'
    )
    assert only_reason(proto) == "it stands inside a model-local function"


def test_a_model_that_graphsurgeon_cannot_import_is_refused_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: onnx.ModelProto) -> None:
        raise RuntimeError("no such type")

    monkeypatch.setattr("onnx_graphsurgeon.import_onnx", fail)
    assert only_reason(parse(MATMUL.format("y = MatMul(x, w)"), {"w": normal(4, 6)})) == (
        "onnx-graphsurgeon cannot import the model: no such type"
    )


def test_a_model_that_trains_is_refused_as_a_whole() -> None:
    proto = parse(MATMUL.format("y = MatMul(x, w)"), {"w": normal(4, 6)})
    proto.training_info.add()
    assert "training information" in only_reason(proto)


def test_a_model_with_a_list_of_graphs_is_refused_as_a_whole() -> None:
    proto = parse(MATMUL.format("t = MatMul(x, w) y = Relu(t)"), {"w": normal(4, 6)})
    proto.graph.node[1].domain = "my.own"
    proto.graph.node[1].attribute.add(name="bodies", type=onnx.AttributeProto.GRAPHS).graphs.add()
    assert "holds a list of graphs" in only_reason(proto)


def test_a_sparse_weight_gets_a_reason() -> None:
    proto = parse(MATMUL.format("y = MatMul(x, w)"), {"w": normal(4, 6)})
    values = onnx.numpy_helper.from_array(normal(2), "w")
    indices = onnx.numpy_helper.from_array(np.array([1, 5]), "i")
    del proto.graph.initializer[:]
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [4, 6]))
    assert only_reason(proto) == "its weight is stored as a sparse tensor"


def test_a_name_that_stands_for_two_tensors_gets_a_reason() -> None:
    proto = parse(
        "g (float[5,4] x, bool c) => (float[5,4] y) { t = MatMul(x, w)"
        " y = If(c) <then_branch = a () => (float[5,4] o) { o = MatMul(t, w) },"
        "            else_branch = b () => (float[5,4] o) { o = Identity(t) }> }",
        {"w": normal(4, 4)},
    )
    shadow = onnx.numpy_helper.from_array(normal(4, 4, seed=1), "w")
    proto.graph.node[1].attribute[0].g.initializer.append(shadow)
    found = find(proto)
    assert found.groups == []
    assert "stands for two tensors" in {r.key: r.reason for r in found.refusals}["y.then_branch/o"]
    assert "used by 'y.then_branch/o'" in {r.key: r.reason for r in found.refusals}["t"]


def test_one_weight_used_in_two_ways_is_refused_for_both() -> None:
    proto = parse(
        "g (float[4,4] x) => (float[4,4] y) { t = MatMul(x, w) y = Gemm<alpha=2.0>(t, w) }",
        {"w": normal(4, 4)},
    )
    assert [refusal.key for refusal in find(proto).refusals] == ["t", "y"]
    assert find(proto).groups == []


def test_sites_that_share_a_weight_make_one_group_led_by_the_largest() -> None:
    proto = parse(
        "g (float[1,4,8,8] x, float[1,4,16,16] z) => (float[1,4,8,8] y, float[1,4,16,16] u)"
        "{ y = Conv<pads=[1,1,1,1]>(x, w) u = Conv<pads=[1,1,1,1]>(z, w, b) }",
        {"w": normal(4, 4, 3, 3), "b": normal(4)},
    )
    (group,) = find(proto).groups
    assert [site.layer.key for site in group.sites] == ["y", "u"]
    assert group.layer.key == "u"
    assert_rewritten_equal(proto, {"x": normal(1, 4, 8, 8), "z": normal(1, 4, 16, 16)})


@pytest.mark.parametrize(
    ("declared", "observed", "expected"),
    [
        ("2,4,8,8", {}, (2, 8, 8)),
        ("N,4,8,8", {}, (1, 8, 8)),
        ("N,4,8,8", {"y": (3, 4, 8, 8)}, (3, 8, 8)),
        ("N,4,H,W", {}, None),
        ("N,4,H,W", {"y": (3, 4, 6, 7)}, (3, 6, 7)),
        ("2,4,8,8", {"y": (3, 4, 6, 7)}, (2, 8, 8)),
    ],
)
def test_the_input_shape_comes_from_inference_then_from_a_run(
    declared: str, observed: dict[str, tuple[int, ...]], expected: tuple[int, ...] | None
) -> None:
    proto = parse(
        f"g (float[{declared}] x) => (float[a,b,c,d] y) {{ t = Relu(x) y = Conv(t, w) }}",
        {"w": normal(6, 4, 3, 3)},
    )
    (group,) = find_layers(load(proto), observed).groups
    assert group.layer.in_shape == expected


def test_a_tensor_of_nan_is_a_problem_with_a_sentence() -> None:
    weight = normal(3, 4)
    assert weight_problem(weight) is None
    weight[1, 2] = np.nan
    weight[0, 0] = np.inf
    assert weight_problem(weight) == "2 of the 12 weights are NaN or infinite"


def test_finding_does_not_change_the_model() -> None:
    proto = parse(MATMUL.format("y = MatMul(x, w)"), {"w": normal(4, 6)})
    before = proto.SerializeToString(deterministic=True)
    model = load(proto)
    three_steps(find_layers(model).groups[0])
    assert model.proto.SerializeToString(deterministic=True) == before
