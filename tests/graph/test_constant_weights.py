import numpy as np
import onnx
import pytest

from onnxdecomp.graph.constant_weights import overridable, with_constant_weights
from onnxdecomp.graph.find import find_layers
from onnxdecomp.graph.io import Model, load
from tests.graph.models import assert_close, normal, parse, run


def listed(ir=8) -> onnx.ModelProto:
    """Return a model that lists its weight as an input, as all do up to IR version 3."""
    inputs = "float[N,4] x" if ir == 3 else "float[N,4] x, float[4,6] w"
    return parse(f"g ({inputs}) => (float[N,6] y) {{ y = MatMul(x, w) }}", {"w": normal(4, 6)}, ir=ir)


def test_a_weight_with_a_default_becomes_a_constant_and_nothing_else_changes():
    proto = listed()
    found = with_constant_weights(Model(proto)).proto
    assert overridable(proto.graph) == {"w"}
    assert [value.name for value in found.graph.input] == ["x"]
    assert [value.name for value in proto.graph.input] == ["x", "w"]
    found.graph.input.append(proto.graph.input[1])
    assert found == proto


def test_its_layer_is_found_then():
    model = Model(listed())
    assert not find_layers(model).groups
    (group,) = find_layers(with_constant_weights(model)).groups
    np.testing.assert_array_equal(group.weight(), normal(4, 6).T.astype(np.float32))


@pytest.mark.parametrize("ir", [3, 8])
def test_where_nothing_may_be_overridden_the_model_is_as_it_was(ir):
    proto = listed(ir) if ir == 3 else with_constant_weights(Model(listed())).proto
    model = Model(proto)
    assert with_constant_weights(model) is model


def test_weights_in_files_come_along(tmp_path):
    onnx.save(listed(), tmp_path / "in.onnx", save_as_external_data=True, location="w", size_threshold=0)
    found = with_constant_weights(load(tmp_path / "in.onnx"))
    assert found.path is None
    assert_close(run(found.proto, {"x": normal(3, 4)})[0], normal(3, 4) @ normal(4, 6))
