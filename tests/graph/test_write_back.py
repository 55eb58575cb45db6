"""Only the numbers of the initializers that were named change; everything else stays, byte for byte."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.external import all_tensors
from onnxdecomp.graph.io import load
from onnxdecomp.graph.write_back import NumbersWriter
from tests.graph.models import normal, parse

TEXT = "g (float[5,64] x) => (float[5,32] y) { t = MatMul(x, w) r = Relu(t) y = MatMul(r, v) }"
ARRAYS = {"w": normal(64, 48), "v": normal(48, 32)}


def noted() -> onnx.ModelProto:
    """Return a model with notes wherever a model can have some."""
    proto = parse(TEXT, ARRAYS)
    proto.doc_string = "kept"
    proto.graph.initializer[0].doc_string = "kept too"
    proto.graph.initializer[0].metadata_props.add(key="of", value="w")
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, [5, 48]))
    onnx.helper.set_model_props(proto, {"author": "somebody"})
    return proto


def written(model: Path | onnx.ModelProto, output: Path | None, values: dict) -> onnx.ModelProto:
    """Write numbers and return the result, without its external data."""
    with NumbersWriter(load(model), output) as writer:
        writer.stage_numbers(values)
        writer.publish()
        return writer.result or onnx.load(output, load_external_data=False)


def blank(proto: onnx.ModelProto) -> bytes:
    """Return the bytes of a model without the numbers of its initializers."""
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    for tensor in copied.graph.initializer:
        for name in ("raw_data", "float_data", "int32_data", "double_data"):
            tensor.ClearField(name)
    return copied.SerializeToString(deterministic=True)


def stored(array: np.ndarray, field: str) -> onnx.TensorProto:
    """Return a tensor with its numbers in a field of the message."""
    tensor = onnx.numpy_helper.from_array(array, "w")
    if field != "raw_data":
        tensor.ClearField("raw_data")
        bits = array.view(np.uint16) if field == "int32_data" else array
        getattr(tensor, field).extend(bits.reshape(-1).tolist())
    return tensor


def test_only_the_numbers_change() -> None:
    proto, new = noted(), normal(64, 48, seed=1)
    back = written(proto, None, {"w": new})
    assert blank(back) == blank(proto)
    assert back.graph.initializer[0].raw_data == new.tobytes()
    assert back.graph.initializer[1] == proto.graph.initializer[1]


def test_writing_nothing_gives_the_model_itself() -> None:
    assert written(noted(), None, {}) == noted()


@pytest.mark.parametrize(
    ("dtype", "field"),
    [
        (np.float32, "raw_data"),
        (np.float32, "float_data"),
        (np.float64, "double_data"),
        (np.float16, "raw_data"),
        (np.float16, "int32_data"),
        (ml_dtypes.bfloat16, "raw_data"),
        (ml_dtypes.bfloat16, "int32_data"),
    ],
)
def test_numbers_stay_in_their_field_and_type(dtype: type, field: str) -> None:
    proto = parse("g (float[2,3] x) => (float[2,3] y) { y = Identity(x) }")
    proto.graph.initializer.append(stored(normal(3, 4, dtype=dtype), field))
    new = normal(3, 4, seed=1)
    tensor = written(proto, None, {"w": new}).graph.initializer[0]
    assert len(getattr(tensor, field)) == len(getattr(proto.graph.initializer[0], field))
    assert np.array_equal(onnx.numpy_helper.to_array(tensor), new.astype(dtype))


def test_external_data_keeps_its_layout(tmp_path: Path) -> None:
    source, output = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(noted(), source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    data, new = (tmp_path / "weights.bin").read_bytes(), normal(48, 32, seed=1)
    before = onnx.load(source, load_external_data=False)
    after = written(source, output, {"v": new})
    entry = {e.key: e.value for e in before.graph.initializer[1].external_data}
    start, length = int(entry["offset"]), int(entry["length"])
    assert (tmp_path / "out.onnx.data").read_bytes() == data[:start] + new.tobytes() + data[start + length :]
    for tensor in after.graph.initializer:
        tensor.external_data[0].value = "weights.bin"
    assert after == before


def test_what_is_staged_last_is_written(tmp_path: Path) -> None:
    source, output = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(noted(), source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with NumbersWriter(load(source), output) as writer:
        writer.stage_numbers({"v": normal(48, 32, seed=1)})
        writer.stage_numbers({})
        writer.publish()
    assert (tmp_path / "out.onnx.data").read_bytes() == (tmp_path / "weights.bin").read_bytes()


def test_the_input_is_not_changed(tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    onnx.save(noted(), source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = source.read_bytes(), (tmp_path / "weights.bin").read_bytes()
    written(source, tmp_path / "out.onnx", {"v": normal(48, 32, seed=1)})
    assert (source.read_bytes(), (tmp_path / "weights.bin").read_bytes()) == before


def test_a_place_that_two_tensors_share_is_not_overwritten(tmp_path: Path) -> None:
    source, output = tmp_path / "in.onnx", tmp_path / "out.onnx"
    proto = parse(
        "g (float[5,64] x) => (float[5,64] y) { t = MatMul(x, w) y = MatMul(t, v) }",
        {"w": normal(64, 64), "v": normal(64, 64)},
    )
    onnx.save(proto, source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    tied = onnx.load(source, load_external_data=False)
    del tied.graph.initializer[1].external_data[:]
    tied.graph.initializer[1].external_data.extend(tied.graph.initializer[0].external_data)
    source.write_bytes(tied.SerializeToString())
    new = normal(64, 64, seed=1)
    written(source, output, {"v": new})
    w, v = (onnx.numpy_helper.to_array(t) for t in onnx.load(output).graph.initializer)
    assert np.array_equal(w, normal(64, 64))
    assert np.array_equal(v, new)


def test_in_memory_the_new_numbers_of_external_data_come_into_the_message(tmp_path: Path) -> None:
    source, new = tmp_path / "in.onnx", normal(48, 32, seed=1)
    onnx.save(noted(), source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    w, v = written(source, None, {"v": new}).graph.initializer
    assert w.data_location == onnx.TensorProto.EXTERNAL
    assert np.array_equal(onnx.numpy_helper.to_array(v), new)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"u": normal(2)}, "'u' is no initializer"),
        ({"w": normal(48, 64)}, r"'w' has shape \(64, 48\)"),
        ({"h": np.full(3, 1e6, np.float32)}, "too large for float16"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_and_nothing_is_written(
    tmp_path: Path, values: dict, message: str
) -> None:
    proto = noted()
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(3, np.float16), "h"))
    with pytest.raises(ModelError, match=message):
        written(proto, tmp_path / "out.onnx", values)
    assert list(tmp_path.iterdir()) == []


WITH_BODIES = """g (bool c, float[5,64] x) => (float[5,32] y) {
    k = Constant<value = float[2] w {1, 2}>()
    y = If (c) <then_branch = p () => (float[5,32] t) {
                    one = Constant<value = float[2] w {1, 2}>()
                    t = MatMul(x, w)
                },
                else_branch = q () => (float[5,32] e) { f = MatMul(x, both) g = Neg(f) e = MatMul(x, v) }>
}"""
THEN, ELSE = "y.then_branch/", "y.else_branch/"


def with_bodies() -> onnx.ModelProto:
    """Return a model with weights in two bodies, and constants that store one of their names."""
    held = {
        THEN: {"both": normal(64, 32, seed=2), "w": normal(64, 32)},
        ELSE: {"both": normal(64, 32, seed=3), "v": normal(64, 32, seed=4)},
    }
    proto = parse(WITH_BODIES, bodies=held)
    kept = [tensor.name for tensor in all_tensors(proto)]
    assert kept.count("w") == 3
    return proto


def of_body(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """Return the weight of a body."""
    (found,) = (t for t in all_tensors(proto) if t.name == name and len(t.dims) == 2)
    return found


def test_in_a_body_only_the_numbers_of_the_weight_change() -> None:
    new = normal(64, 32, seed=1)
    expected = with_bodies()
    of_body(expected, "w").raw_data = new.tobytes()
    assert written(with_bodies(), None, {"w": new}) == expected


def test_external_data_of_a_body_keeps_its_layout(tmp_path: Path) -> None:
    source, output, new = tmp_path / "in.onnx", tmp_path / "out.onnx", normal(64, 32, seed=1)
    proto, data = with_bodies(), b""
    for tensor in all_tensors(proto):
        raw = bytes(np.ascontiguousarray(onnx.numpy_helper.to_array(tensor)).data)
        for field in ("raw_data", "float_data"):
            tensor.ClearField(field)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "weights.bin"), ("offset", len(data)), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(value))
        data += raw
    source.write_bytes(proto.SerializeToString())
    (tmp_path / "weights.bin").write_bytes(data)
    after = written(source, output, {"w": new})
    old = normal(64, 32).tobytes()
    assert data.count(old) == 1
    assert (tmp_path / "out.onnx.data").read_bytes() == data.replace(old, new.tobytes())
    for tensor in all_tensors(after):
        tensor.external_data[0].value = "weights.bin"
    assert after == proto


def test_a_checksum_goes_with_the_numbers_it_is_of(tmp_path: Path) -> None:
    source, output = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(noted(), source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    summed = onnx.load(source, load_external_data=False)
    for tensor in summed.graph.initializer:
        tensor.external_data.add(key="checksum", value="0" * 40)
    source.write_bytes(summed.SerializeToString())
    w, v = written(source, output, {"v": normal(48, 32, seed=1)}).graph.initializer
    assert [entry.key for entry in w.external_data] == ["location", "offset", "length", "checksum"]
    assert [entry.key for entry in v.external_data] == ["location", "offset", "length"]


def test_of_several_weights_of_a_name_none_is_changed() -> None:
    with pytest.raises(ModelError, match=r"'both' is .* one of several"):
        written(with_bodies(), None, {"both": normal(64, 32)})
