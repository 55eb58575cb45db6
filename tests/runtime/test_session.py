from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxdecomp.errors import ModelError
from onnxdecomp.runtime import session
from onnxdecomp.runtime.session import open_session, read_proto, run
from tests.graph.models import normal, parse

DOUBLE = "g (float[2] x) => (float[2] y) { y = Add(x, x) }"


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weight lies in a file of its own."""
    model = parse("g (float[1, 64] x) => (float[1, 64] y) { y = MatMul(x, w) }", {"w": normal(64, 64)})
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    return path


@pytest.mark.parametrize("optimize", [False, True])
def test_outputs_come_by_name(optimize):
    outputs = run(open_session(parse(DOUBLE), optimize=optimize), {"x": np.array([1, 2], np.float32)})
    assert {name: y.tolist() for name, y in outputs.items()} == {"y": [2, 4]}


def test_a_path_brings_its_external_data(external):
    x = normal(1, 64)
    expected = x @ normal(64, 64)
    np.testing.assert_allclose(run(open_session(external), {"x": x})["y"], expected, rtol=1e-4, atol=1e-5)


def test_a_model_in_memory_finds_external_data_in_the_folder(external):
    in_memory = open_session(read_proto(external), folder=external.parent)
    x = normal(1, 64)
    np.testing.assert_array_equal(run(in_memory, {"x": x})["y"], run(open_session(external), {"x": x})["y"])


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float16, np.float64])
def test_every_float_type_goes_in_and_comes_out(dtype):
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x, y = (onnx.helper.make_tensor_value_info(name, element, [2, 2]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    values = np.array([[0.5, 1], [-2, 4]], dtype)
    result = run(open_session(model), {"x": values})["y"]
    assert result.dtype == values.dtype
    assert result.astype(float).tolist() == values.astype(float).tolist()


def test_strings_go_in_and_come_out():
    model = parse("g (string[2] x) => (string[2] y) { y = Identity(x) }")
    assert run(open_session(model), {"x": np.array(["a", "b"], object)})["y"].tolist() == ["a", "b"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"none\.onnx is not a file"):
        open_session(tmp_path / "none.onnx")


@pytest.mark.parametrize("content", [b"", b"this is no model"])
@pytest.mark.parametrize("read", [open_session, lambda path: open_session(read_proto(path))])
def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path, content, read):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert "ONNXRuntimeError" not in str(caught.value)


def test_an_operator_nobody_knows_is_named():
    model = parse(DOUBLE)
    model.graph.node[0].op_type = "Frobnicate"
    with pytest.raises(ModelError, match="Frobnicate"):
        open_session(model)


def test_inputs_that_do_not_fit_are_named_with_their_shape():
    with pytest.raises(ModelError, match=r"x 3:"):
        run(open_session(parse(DOUBLE)), {"x": np.zeros(3, np.float32)})


def test_a_model_beyond_the_limit_of_protobuf_is_refused(monkeypatch):
    monkeypatch.setattr(session, "MAX_PROTO_BYTES", 10)
    with pytest.raises(ModelError, match="external data"):
        open_session(parse(DOUBLE))
