"""Replacing keeps names, scopes, old files and everything that is not replaced."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.find import LayerGroup
from onnxdecomp.graph.io import Model, ModelWriter
from onnxdecomp.graph.rewrite import Rewriter, set_last_step
from onnxdecomp.methods.base import Chain, FloatArray
from tests.graph.models import (
    assert_rewritten_equal,
    find,
    normal,
    parse,
    rewrite,
    run,
    single_step,
    three_steps,
)

TWO_LAYERS = "g (float[5,4] x) => (float[5,3] y) { t = MatMul(x, w) r = Relu(t) y = MatMul(r, v) }"
WEIGHTS = {"w": normal(4, 6), "v": normal(6, 3)}


def test_the_bias_moves_to_the_last_step() -> None:
    proto = parse(
        "g (float[1,4,5] x) => (float[1,6,3] y) { y = Conv(x, w, b) }", {"w": normal(6, 4, 3), "b": normal(6)}
    )
    assert [len(node.input) for node in rewrite(proto).graph.node] == [2, 2, 3]
    assert list(rewrite(proto).graph.node[-1].input)[2] == "b"


def test_names_of_steps_come_from_the_node_and_those_of_weights_from_the_weight() -> None:
    proto = parse(TWO_LAYERS, WEIGHTS)
    proto.graph.node[0].name = "fc"
    rewritten = rewrite(proto)
    assert [node.name for node in rewritten.graph.node][:4] == [
        "fc/onnxdecomp/step0",
        "fc/onnxdecomp/step1",
        "fc/onnxdecomp/step2",
        "",
    ]
    assert rewritten.graph.initializer[0].name == "w/onnxdecomp/weight0"


def test_a_model_can_be_rewritten_again() -> None:
    once = rewrite(parse(TWO_LAYERS, WEIGHTS))
    assert_rewritten_equal(once, {"x": normal(5, 4)})
    names = [node.name for node in rewrite(once).graph.node if node.name]
    assert len(set(names)) == len(names) == 18


def test_nodes_of_the_same_name_get_different_steps() -> None:
    proto = parse(TWO_LAYERS, WEIGHTS)
    proto.graph.node[0].name = proto.graph.node[2].name = "same"
    rewritten = rewrite(proto)
    onnx.checker.check_model(rewritten)
    assert [rewritten.graph.node[i].name for i in (0, 4)] == [
        "same/onnxdecomp/step0",
        "same_2/onnxdecomp/step0",
    ]


def test_what_is_not_replaced_is_equal_byte_for_byte() -> None:
    proto = parse(TWO_LAYERS, WEIGHTS)
    proto.graph.node[1].doc_string = "kept"
    proto.graph.node[2].metadata_props.add(key="kept", value="too")
    proto.metadata_props.add(key="a", value="b")
    proto.graph.metadata_props.add(key="c", value="d")
    proto.graph.quantization_annotation.add(tensor_name="r")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(2), "nobody uses it"))

    def only_first(group: LayerGroup) -> bool:
        return group.layer.key == "t"

    rewritten = rewrite(proto, three_steps, select=only_first)
    restored = onnx.ModelProto()
    restored.CopyFrom(rewritten)
    del restored.graph.node[:3]
    restored.graph.node.insert(0, proto.graph.node[0])
    del restored.graph.initializer[-3:]
    restored.graph.initializer.insert(0, proto.graph.initializer[0])
    assert restored.SerializeToString(deterministic=True) == proto.SerializeToString(deterministic=True)


def test_constants_and_nodes_that_only_the_layer_used_are_dropped() -> None:
    proto = parse(
        "g (float[5,4] x) => (float[5,6] y, float[6,4] z) <float[4,6] w>"
        "{ s = Constant<value_ints=[4,6]>() u = Reshape(v, s) w = Identity(u) y = MatMul(x, w)"
        "  q = Constant<value_ints=[6,4]>() z = Reshape(other, q) }",
        {"v": normal(24), "other": normal(24)},
    )
    rewritten = rewrite(proto, single_step)
    assert [node.op_type for node in rewritten.graph.node] == ["MatMul", "Constant", "Reshape"]
    assert [tensor.name for tensor in rewritten.graph.initializer] == ["other", "v/onnxdecomp/weight0"]
    assert [value.name for value in rewritten.graph.value_info] == []
    assert_rewritten_equal(proto, {"x": normal(5, 4)})


def test_a_shape_constant_used_elsewhere_stays() -> None:
    proto = parse(
        "g (float[5,4] x, float[24] z) => (float[5,6] y, float[4,6] o)"
        "{ s = Constant<value_ints=[4,6]>() w = Reshape(v, s) y = MatMul(x, w) o = Reshape(z, s) }",
        {"v": normal(24)},
    )
    assert [node.op_type for node in rewrite(proto, single_step).graph.node] == [
        "Constant",
        "MatMul",
        "Reshape",
    ]
    assert_rewritten_equal(proto, {"x": normal(5, 4), "z": normal(24)})


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 13])
@pytest.mark.parametrize("operands", ["x, w, c", "x, w"])
def test_old_operator_sets_work(opset: int, operands: str) -> None:
    if opset < 11 and operands == "x, w":
        operands = "x, w, c"
    proto = parse(
        f"g (float[5,4] x) => (float[5,6] y) {{ y = Gemm<beta=0.5>({operands}) }}",
        {"w": normal(4, 6), **({"c": normal(6)} if "c" in operands else {})},
        opset=opset,
    )
    assert_rewritten_equal(proto, {"x": normal(5, 4)})


def test_files_of_ir_version_3_keep_their_initializers_among_the_inputs() -> None:
    proto = parse(
        "g (float[5,4] x) => (float[5,6] y) { t = Gemm(x, w, c) y = Relu(t) }",
        {"w": normal(4, 6), "c": normal(6)},
        opset=9,
        ir=3,
    )
    rewritten = rewrite(proto)
    names = [value.name for value in rewritten.graph.input]
    assert names[:2] == ["x", "c"]
    assert set(names[1:]) == {tensor.name for tensor in rewritten.graph.initializer}
    assert_rewritten_equal(proto, {"x": normal(5, 4)})


IF = """g (float[1,4,8] x, bool c) => (float[1,6,8] y) {
  y = If(c) <then_branch = a () => (float[1,6,8] o) %s { t = Conv<pads=[1,1]>(x, w) o = Relu(t) },
             else_branch = b () => (float[1,6,8] o) %s { o = Conv<pads=[1,1]>(x, w) }>
}"""


def with_body_weights(proto: onnx.ModelProto, *, nodes: bool) -> onnx.ModelProto:
    """Give each body a weight of the same name: an initializer, or a Constant node."""
    for seed, attribute in enumerate(proto.graph.node[-1].attribute):
        tensor = onnx.numpy_helper.from_array(normal(6, 4, 3, seed=seed), "w")
        if nodes:
            attribute.g.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=tensor))
        else:
            attribute.g.initializer.append(tensor)
    onnx.checker.check_model(proto)
    return proto


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("nodes", [True, False])
def test_both_branches_of_an_if_are_rewritten_in_place(condition: bool, nodes: bool) -> None:
    proto = with_body_weights(
        onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + IF.replace("%s", "")),
        nodes=nodes,
    )
    assert [group.layer.key for group in find(proto).groups] == ["y.then_branch/t", "y.else_branch/o"]
    rewritten = rewrite(proto)
    assert len(rewritten.graph.initializer) == 0
    assert [len(a.g.initializer) for a in rewritten.graph.node[0].attribute] == [3, 3]
    assert_rewritten_equal(proto, {"x": normal(1, 4, 8), "c": np.array(condition)})


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("ir", [3, 8])
def test_a_weight_of_the_outer_graph_is_replaced_there(condition: bool, ir: int) -> None:
    proto = parse(IF.replace("%s", ""), {"w": normal(6, 4, 3)}, ir=ir)
    (group,) = find(proto).groups
    assert len(group.sites) == 2
    rewritten = rewrite(proto)
    assert [tensor.name for tensor in rewritten.graph.initializer] == [
        f"w/onnxdecomp/weight{i}" for i in range(3)
    ]
    assert_rewritten_equal(proto, {"x": normal(1, 4, 8), "c": np.array(condition)})


def test_the_body_of_a_loop_is_rewritten() -> None:
    proto = parse(
        "g (int64 n, bool go, float[5,4] x) => (float[5,4] y) {"
        " y = Loop(n, go, x) <body = b (int64 i, bool c, float[5,4] s) => (bool d, float[5,4] o)"
        " { d = Identity(c) t = MatMul(s, w) o = Tanh(t) }> }",
        {"w": normal(4, 4)},
    )
    assert [group.layer.key for group in find(proto).groups] == ["y.body/t"]
    assert_rewritten_equal(proto, {"n": np.array(3), "go": np.array(True), "x": normal(5, 4)})


def test_the_body_of_a_scan_is_rewritten() -> None:
    proto = parse(
        "g (float[5,4] x) => (float[5,6] y) {"
        " y = Scan<num_scan_inputs=1, body = b (float[4] s) => (float[6] o) { o = MatMul(s, w) }>(x) }",
        {"w": normal(4, 6)},
    )
    assert [group.layer.key for group in find(proto).groups] == ["y.body/o"]
    assert_rewritten_equal(proto, {"x": normal(5, 4)})


def test_a_weight_used_in_a_body_and_outside_is_decomposed_once() -> None:
    proto = parse(
        "g (float[5,4] x, bool c) => (float[5,4] y) { t = MatMul(x, w)"
        " y = If(c) <then_branch = a () => (float[5,4] o) { o = MatMul(t, w) },"
        "            else_branch = b () => (float[5,4] o) { o = Identity(t) }> }",
        {"w": normal(4, 4)},
    )
    (group,) = find(proto).groups
    assert [site.layer.key for site in group.sites] == ["t", "y.then_branch/o"]
    assert len(rewrite(proto).graph.initializer) == 3
    assert_rewritten_equal(proto, {"x": normal(5, 4), "c": np.array(True)})


def test_the_original_is_not_modified() -> None:
    proto = parse(TWO_LAYERS, WEIGHTS)
    before = proto.SerializeToString(deterministic=True)
    rewrite(proto)
    assert proto.SerializeToString(deterministic=True) == before


def test_the_same_input_gives_the_same_bytes() -> None:
    proto = parse(TWO_LAYERS, WEIGHTS)
    first, second = (rewrite(proto).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_a_wrong_chain_is_noticed_by_these_tests() -> None:
    def halved(group: LayerGroup):
        chain = single_step(group)
        return type(chain)(chain.layer, chain.method, chain.ranks, chain.specs, (chain.weights[0] / 2,))

    proto = parse(TWO_LAYERS, WEIGHTS)
    with pytest.raises(AssertionError):
        assert_rewritten_equal(proto, {"x": normal(5, 4)}, halved)
    assert run(proto, {"x": normal(5, 4)})[0].shape == (5, 3)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("text", "arrays"),
    [
        (TWO_LAYERS, WEIGHTS),
        ("g (float[4,5] x) => (float[6,5] y) { y = MatMul(w, x) }", {"w": normal(6, 4)}),
        ("g (float[5,4] x) => (float[5,6] y) { y = Gemm(x, w, b) }", {"w": normal(4, 6), "b": normal(6)}),
        (
            "g (float[1,4,5] x) => (float[1,6,5] y) { t = Conv<pads=[1,1]>(x, w, b) y = Relu(t) }",
            {"w": normal(6, 4, 3), "b": normal(6)},
        ),
        ("g (float[1,4,5] x) => (float[1,6,7] y) { y = ConvTranspose(x, w) }", {"w": normal(4, 6, 3)}),
    ],
)
def test_other_numbers_in_a_last_step_give_the_model_that_is_written_anew(text, arrays, with_bias) -> None:
    proto = parse(text, arrays)
    model = Model(proto)
    group = find(proto).groups[0]
    has_bias = with_bias and group.layer.op_type != "MatMul"
    chain = three_steps(group)
    other = replace(chain, weights=(*chain.weights[:-1], 2.0 * chain.weights[-1]))

    def written(chain: Chain, bias: FloatArray | None) -> onnx.ModelProto:
        with ModelWriter(model, None) as writer:
            rewriter = Rewriter(model, writer.add_tensor)
            rewriter.replace(group, chain, bias)
            return rewriter.finish()

    first, second = (normal(group.layer.out_channels, seed=seed) if has_bias else None for seed in (1, 2))
    found = written(chain, first)
    set_last_step(found, group, other, second)
    assert found == written(other, second)
    assert found != written(chain, first)


def test_numbers_that_a_layer_cannot_hold_are_refused_in_a_last_step_too() -> None:
    proto = parse(
        "g (float16[5,4] x) => (float16[5,6] y) { y = MatMul(x, w) }", {"w": normal(4, 6, dtype=np.float16)}
    )
    group = find(proto).groups[0]
    chain = three_steps(group)
    too_large = replace(chain, weights=(*chain.weights[:-1], np.full_like(chain.weights[-1], 1e30)))
    with pytest.raises(ModelError, match="too large for float16"):
        set_last_step(rewrite(proto), group, too_large, None)
