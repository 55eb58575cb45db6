"""The operator set is raised by onnx's converter, only upwards, and nothing is lost on the way."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.graph.io import load
from onnxdecomp.graph.opset import raise_opset
from tests.graph.codebooks import outputs
from tests.graph.models import normal, parse
from tests.networks import network


def raised(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Return a model in memory at another operator set."""
    return raise_opset(load(proto), version).proto


@pytest.mark.parametrize("version", [18, 21, 25])
def test_a_raised_model_computes_the_same(version: int) -> None:
    proto, feed = network(batch=1), {"x": normal(1, 16, 12, 12)}
    newer = raised(proto, version)
    assert newer.opset_import[0].version == version
    assert newer.ir_version >= onnx.helper.find_min_ir_version_for(newer.opset_import)
    assert outputs(newer, feed, "off") == outputs(proto, feed, "off")


def test_nodes_change_where_their_operator_did() -> None:
    proto = parse("g (float[2] x) => (float[1,2] y) { y = Unsqueeze <axes = [0]> (x) }", opset=11)
    assert len(raised(proto, 13).graph.node[-1].input) == 2


def test_notes_and_names_survive() -> None:
    proto = network()
    proto.graph.metadata_props.add(key="a", value="graph")
    proto.graph.node[1].metadata_props.add(key="a", value="node")
    proto.graph.initializer[2].doc_string = "tensor"
    proto.graph.initializer[2].metadata_props.add(key="a", value="tensor")
    proto.graph.quantization_annotation.add(tensor_name="r1")
    newer = raised(proto, 21)
    assert newer.metadata_props == proto.metadata_props
    assert newer.graph.metadata_props == proto.graph.metadata_props
    assert newer.graph.node == proto.graph.node
    assert newer.graph.initializer == proto.graph.initializer
    assert newer.graph.quantization_annotation == proto.graph.quantization_annotation


def test_weights_in_a_data_file_stay_there(tmp_path: Path) -> None:
    proto = parse("g (float[2,40] x) => (float[2,30] y) { y = MatMul(x, w) }", {"w": normal(40, 30)})
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    newer = raise_opset(load(tmp_path / "m.onnx"), 21)
    assert newer.array(newer.proto.graph.initializer[0]).tobytes() == normal(40, 30).tobytes()


def test_constants_that_old_files_list_as_inputs_cannot_be_overridden_afterwards() -> None:
    proto = parse(
        "g (float[2,4] x) => (float[2,3] y) { y = MatMul(x, w) }", {"w": normal(4, 3)}, opset=9, ir=3
    )
    newer = raised(proto, 21)
    assert [value.name for value in newer.graph.input] == ["x"]
    feed = {"x": normal(2, 4)}
    assert outputs(newer, feed, "off") == outputs(proto, feed, "off")


def test_the_same_operator_set_changes_nothing() -> None:
    model = load(network())
    assert raise_opset(model, 17) is model


def test_an_operator_set_is_never_lowered() -> None:
    with pytest.raises(UsageError, match="operator set 17, which is never lowered"):
        raised(network(), 13)


def test_an_operator_set_that_does_not_exist_is_told() -> None:
    with pytest.raises(UsageError, match="operator set 99 is newer"):
        raised(network(), 99)


def test_functions_which_the_converter_drops_are_refused() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 17]> f (a) => (b) { b = Add(a, a) }"""
    )
    with pytest.raises(ModelError, match="drops functions such as 'f'"):
        raised(proto, 21)


def test_what_the_converter_cannot_do_is_told() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="cannot bring operator set 17 to 21"):
        raised(proto, 21)


def test_an_invalid_result_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
        result = onnx.ModelProto()
        result.CopyFrom(proto)
        result.graph.node[0].input[0] = "nobody makes this"
        return result

    monkeypatch.setattr(onnx.version_converter, "convert_version", broken)
    with pytest.raises(ModelError, match="is not valid"):
        raised(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }"), 21)


def test_bodies_are_raised_too() -> None:
    proto = parse(
        """g (bool c, float[2] x) => (float[1,2] y) { y = If(c) <
            then_branch = t () => (float[1,2] a) { a = Unsqueeze <axes = [0]> (x) },
            else_branch = e () => (float[1,2] b) { n = Neg(x) b = Unsqueeze <axes = [0]> (n) }> }""",
        opset=11,
    )
    feed = {"c": np.array(False), "x": normal(2)}
    assert outputs(raised(proto, 21), feed, "off") == outputs(proto, feed, "off")
