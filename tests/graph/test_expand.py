"""Codebooks expand to the tensors they stand for; the rest of the model is as it was, byte for byte."""

import numpy as np
import onnx
import pytest

from onnxdecomp.errors import ModelError
from tests.graph.codebooks import expanded, random_codebook, with_codebooks
from tests.graph.models import normal, parse


def passing_on() -> onnx.ModelProto:
    """Return a model that multiplies by a weight `w`."""
    return parse("g (float[2,5] x) => (float[2,7] y) { y = MatMul(x, w) }", {"w": normal(5, 7)})


@pytest.mark.parametrize("ir", [3, 8])
@pytest.mark.parametrize("bits", [3, 8, 13])
def test_a_model_comes_back_byte_for_byte(bits: int, ir: int) -> None:
    proto = parse(
        "g (float[2,7] x) => (float[2,9] y) { a = MatMul(x, w) b = MatMul(a, v) y = Add(b, c) }",
        {"w": normal(7, 7), "v": normal(7, 9), "c": normal(9)},
        ir=ir,
    )
    proto.graph.initializer[1].doc_string = "kept"
    proto.graph.initializer[1].metadata_props.add(key="kept", value="too")
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [7, 7]))
    codebooks = {
        "w": random_codebook((7, 7), bits),
        "v": random_codebook((7, 9), bits, axis=1, group_size=4, scale="channel"),
    }
    for tensor in proto.graph.initializer[:2]:
        tensor.raw_data = codebooks[tensor.name].dense(np.float32).tobytes()
    back = expanded(with_codebooks(proto, codebooks))
    assert back.names == ("w", "v")
    assert back.proto.SerializeToString(deterministic=True) == proto.SerializeToString(deterministic=True)


def test_value_infos_of_the_decoding_go_with_it() -> None:
    proto = passing_on()
    inferred = onnx.shape_inference.infer_shapes(with_codebooks(proto, {"w": random_codebook((5, 7), 3)}))
    assert {value.name for value in expanded(inferred).proto.graph.value_info} <= {"w"}


def test_expanding_a_model_without_codebooks_changes_nothing() -> None:
    back = expanded(passing_on())
    assert back.names == ()
    assert back.proto == passing_on()


def test_nodes_that_are_used_elsewhere_as_well_stay() -> None:
    written = with_codebooks(passing_on(), {"w": random_codebook((5, 7), 8)})
    indices = written.graph.node[0].output[0]
    written.graph.output.append(onnx.helper.make_tensor_value_info(indices, onnx.TensorProto.INT32, [5, 7]))
    back = expanded(written).proto
    onnx.checker.check_model(back)
    assert [node.op_type for node in back.graph.node] == ["Cast", "MatMul"]


def test_tensors_are_expanded_whatever_the_decoding_looks_like() -> None:
    written = with_codebooks(passing_on(), {"w": random_codebook((5, 7), 8)})
    for tensor in written.graph.initializer:
        for node in written.graph.node:
            node.input[:] = [f"renamed {i}" if i == tensor.name else i for i in node.input]
        tensor.name = f"renamed {tensor.name}"
    back = expanded(written).proto
    assert back.graph.node == passing_on().graph.node
    assert [tensor.name for tensor in back.graph.initializer] == ["w"]


def test_a_decoding_from_an_input_is_told() -> None:
    written = with_codebooks(passing_on(), {"w": random_codebook((5, 7), 8)})
    del written.graph.initializer[0]
    with pytest.raises(ModelError, match=r"'w/onnxdecomp/indices'.*is no constant: the model was altered"):
        expanded(written)


def test_a_decoding_by_foreign_operators_is_told() -> None:
    written = with_codebooks(passing_on(), {"w": random_codebook((5, 7), 8)})
    written.graph.node[0].op_type = "Neg"
    with pytest.raises(ModelError, match="comes from Neg: the model was altered"):
        expanded(written)
