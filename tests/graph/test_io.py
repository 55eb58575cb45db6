"""Models are read without their external data and written completely or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxdecomp.errors import ModelError
from onnxdecomp.graph import io
from onnxdecomp.graph.find import find_layers
from onnxdecomp.graph.io import Model, ModelWriter, load, with_data_inside
from tests.graph.models import assert_close, normal, parse, rewrite, run

TEXT = "g (float[5,64] x) => (float[5,32] y) { t = MatMul(x, w) r = Relu(t) y = MatMul(r, v) }"
ARRAYS = {"w": normal(64, 48), "v": normal(48, 32)}


def saved_externally(folder: Path, name: str = "model.onnx") -> Path:
    """Write the model of two weights with both in one data file."""
    path = folder / name
    onnx.save(parse(TEXT, ARRAYS), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def change_entry(path: Path, key: str, value: str) -> None:
    """Set one entry of the external data of the first initializer."""
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value
    path.write_bytes(proto.SerializeToString())


def outside_by_symlink(path: Path) -> None:
    outside = path.parent.parent / "elsewhere.bin"
    (path.parent / "weights.bin").rename(outside)
    (path.parent / "weights.bin").symlink_to(outside)


def write_random(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def truncate(path: Path) -> None:
    path.write_bytes(parse(TEXT, ARRAYS).SerializeToString()[:-1000])


def without_nodes(path: Path) -> None:
    proto = parse(TEXT, ARRAYS)
    del proto.graph.node[:]
    path.write_bytes(proto.SerializeToString())


def without_opset(path: Path) -> None:
    proto = parse(TEXT, ARRAYS)
    del proto.opset_import[:]
    path.write_bytes(proto.SerializeToString())


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "does not exist"),
    "a folder": (Path.mkdir, "is a folder"),
    "empty file": (Path.touch, "has no nodes"),
    "random bytes": (write_random, "not an ONNX model"),
    "truncated": (truncate, "not an ONNX model, or it was cut off"),
    "no nodes": (without_nodes, "has no nodes"),
    "no operator set": (without_opset, "names no operator set"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_is_no_model_ends_in_one_sentence(case: str, tmp_path: Path) -> None:
    make, message = UNREADABLE[case]
    path = tmp_path / "model.onnx"
    make(path)
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


BROKEN_DATA: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: (path.parent / "weights.bin").unlink(), "does not exist"),
    "too short": (lambda path: os.truncate(path.parent / "weights.bin", 100), "too short"),
    "offset behind the end": (lambda path: change_entry(path, "offset", "999999"), "too short"),
    "negative offset": (lambda path: change_entry(path, "offset", "-5"), "too short"),
    "length too small": (lambda path: change_entry(path, "length", "10"), "10 announced"),
    "no number": (lambda path: change_entry(path, "offset", "far"), "make no sense"),
    "parent folder": (lambda path: change_entry(path, "location", "../weights.bin"), "outside"),
    "absolute": (lambda path: change_entry(path, "location", "/etc/passwd"), "outside"),
    "drive letter": (lambda path: change_entry(path, "location", "C:\\weights.bin"), "outside"),
    "no location": (lambda path: change_entry(path, "location", ""), "outside"),
    "symbolic link": (outside_by_symlink, "outside"),
}


@pytest.mark.parametrize("case", BROKEN_DATA)
def test_external_data_that_cannot_be_used_ends_in_one_sentence(case: str, tmp_path: Path) -> None:
    spoil, message = BROKEN_DATA[case]
    (tmp_path / "inner").mkdir()
    path = saved_externally(tmp_path / "inner")
    spoil(path)
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    path = saved_externally(tmp_path)
    (tmp_path / "weights.bin").rename(tmp_path / "real.bin")
    (tmp_path / "weights.bin").symlink_to("real.bin")
    assert len(find_layers(load(path)).groups) == 2


def test_external_data_of_a_model_in_memory_cannot_be_reached(tmp_path: Path) -> None:
    proto = onnx.load(saved_externally(tmp_path), load_external_data=False)
    with pytest.raises(ModelError, match="load the model from its path"):
        load(proto)


def test_external_data_is_mapped_not_read(tmp_path: Path) -> None:
    model = load(saved_externally(tmp_path))
    arrays = [model.array(tensor) for tensor in model.proto.graph.initializer]
    assert all(isinstance(array, np.memmap) for array in arrays)
    np.testing.assert_array_equal(arrays[0], ARRAYS["w"])
    np.testing.assert_array_equal(arrays[1], ARRAYS["v"])


def test_a_weight_of_external_data_is_still_mapped_in_the_normal_form(tmp_path: Path) -> None:
    (first, _) = find_layers(load(saved_externally(tmp_path))).groups
    weight = first.weight()
    assert not weight.flags.owndata
    np.testing.assert_array_equal(weight, ARRAYS["w"].T)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.int8, ml_dtypes.int4])
@pytest.mark.parametrize("shape", [(3, 5), (), (0, 4)])
def test_arrays_of_every_type_and_shape_are_mapped(
    dtype: type, shape: tuple[int, ...], tmp_path: Path
) -> None:
    array = np.ones(shape, dtype)
    tensor = onnx.numpy_helper.from_array(array, "t")
    (tmp_path / "data").write_bytes(b"\0" * 3 + tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="data")
    tensor.external_data.add(key="offset", value="3")
    found = Model(onnx.ModelProto(), tmp_path).array(tensor)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_the_size_counts_the_external_data_once(tmp_path: Path) -> None:
    path = saved_externally(tmp_path)
    expected = path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    assert load(path).size_bytes == expected
    proto = parse(TEXT, ARRAYS)
    assert load(proto).size_bytes == proto.ByteSize()


def test_a_model_with_external_data_is_written_with_external_data(tmp_path: Path) -> None:
    path, out = saved_externally(tmp_path), tmp_path / "out.onnx"
    rewrite(path, out_path=out)
    onnx.checker.check_model(str(out))
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "out.onnx", "out.onnx.data", "weights.bin"]
    proto = onnx.load(out, load_external_data=False)
    assert all(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer)
    feeds = {"x": normal(5, 64)}
    assert_close(run(out, feeds)[0], run(path, feeds)[0])


def test_untouched_external_tensors_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "_CHUNK_BYTES", 1000)
    path, out = saved_externally(tmp_path), tmp_path / "other" / "out.onnx"
    out.parent.mkdir()
    rewrite(path, out_path=out, select=lambda group: group.layer.key == "t")
    (tmp_path / "weights.bin").unlink()
    copied = next(t for t in onnx.load(out).graph.initializer if t.name == "v")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(copied), ARRAYS["v"])


def test_a_range_that_two_tensors_use_is_copied_once(tmp_path: Path) -> None:
    path, out = saved_externally(tmp_path), tmp_path / "out.onnx"
    proto = onnx.load(path, load_external_data=False)
    twin = proto.graph.initializer.add()
    twin.CopyFrom(proto.graph.initializer[0])
    twin.name = "twin"
    path.write_bytes(proto.SerializeToString())
    rewrite(path, None, out)
    assert (tmp_path / "out.onnx.data").stat().st_size < 1.5 * (tmp_path / "weights.bin").stat().st_size


def test_a_large_result_gets_a_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = parse(TEXT, ARRAYS)
    monkeypatch.setattr(io, "INLINE_LIMIT_BYTES", proto.ByteSize() + 5000)
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(proto, path)
    rewrite(path, out_path=out)
    assert (tmp_path / "out.onnx.data").stat().st_size > 5000
    feeds = {"x": normal(5, 64)}
    assert_close(run(out, feeds)[0], run(path, feeds)[0])


def test_a_result_too_large_for_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = parse(TEXT, ARRAYS)
    monkeypatch.setattr(io, "INLINE_LIMIT_BYTES", proto.ByteSize() + 5000)
    with pytest.raises(ModelError, match="name an output file"):
        rewrite(proto)


def test_a_small_result_is_one_file(tmp_path: Path) -> None:
    onnx.save(parse(TEXT, ARRAYS), tmp_path / "model.onnx")
    rewrite(tmp_path / "model.onnx", out_path=tmp_path / "out.onnx")
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "out.onnx"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("external", [True, False])
def test_an_interrupted_conversion_leaves_nothing(
    error: type[BaseException], external: bool, tmp_path: Path
) -> None:
    path = saved_externally(tmp_path)
    if not external:
        onnx.save(parse(TEXT, ARRAYS), path)
    before = sorted(os.listdir(tmp_path))
    model = load(path)

    def convert() -> None:
        with ModelWriter(model, tmp_path / "out.onnx") as writer:
            writer.add_tensor("new", normal(64, 64), np.float32)
            assert len(os.listdir(tmp_path)) == len(before) + external
            raise error

    with pytest.raises(error):
        convert()
    assert sorted(os.listdir(tmp_path)) == before


def test_leaving_without_commit_keeps_an_older_output(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"older")
    with ModelWriter(load(saved_externally(tmp_path)), out) as writer:
        writer.add_tensor("new", normal(64, 64), np.float32)
    assert out.read_bytes() == b"older"


def test_a_failing_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved_externally(tmp_path)

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ModelError, match="No space left on device"):
        rewrite(path, out_path=tmp_path / "out.onnx")
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "weights.bin"]


def test_the_output_may_not_be_the_input_or_its_data(tmp_path: Path) -> None:
    path = saved_externally(tmp_path)
    model = load(path)
    for out in (path, tmp_path / "weights.bin"):
        with pytest.raises(ModelError, match="would overwrite"):
            ModelWriter(model, out)
    (tmp_path / "weights.bin").rename(tmp_path / "out.onnx.data")
    for index in range(2):
        tensor = model.proto.graph.initializer[index]
        next(entry for entry in tensor.external_data if entry.key == "location").value = "out.onnx.data"
    with pytest.raises(ModelError, match=r"would overwrite .*out\.onnx\.data"):
        ModelWriter(model, tmp_path / "out.onnx")


def test_an_output_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    model = load(parse(TEXT, ARRAYS))
    with pytest.raises(ModelError, match=r"the folder '.*missing' does not exist"):
        ModelWriter(model, tmp_path / "missing" / "out.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        ModelWriter(model, tmp_path)


def test_a_value_too_large_for_the_type_is_an_error() -> None:
    with (
        ModelWriter(load(parse(TEXT, ARRAYS)), None) as writer,
        pytest.raises(ModelError, match="too large for float16"),
    ):
        writer.add_tensor("big", np.array([1e6]), np.float16)


def test_a_model_in_memory_stays_in_memory() -> None:
    proto = parse(TEXT, ARRAYS)
    result = rewrite(proto)
    assert result is not None
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in result.graph.initializer)


def test_external_data_in_attributes_and_bodies_is_copied_too(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(normal(4, 4).tobytes() * 2)

    def refer(tensor: onnx.TensorProto, offset: int) -> None:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "data"), ("offset", str(offset)), ("length", "64")):
            tensor.external_data.add(key=key, value=value)

    proto = parse(
        "g (float[5,4] x, bool c) => (float[5,4] y) {"
        " y = If(c) <then_branch = a () => (float[5,4] o) { o = MatMul(x, v) },"
        "           else_branch = b () => (float[5,4] o) { o = Identity(x) }> }",
        {"v": normal(4, 4)},
    )
    body = proto.graph.node[0].attribute[0].g
    body.initializer.append(proto.graph.initializer[0])
    body.initializer[0].name = "v"
    del proto.graph.initializer[:]
    constant = onnx.helper.make_node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(normal(4, 4)))
    proto.graph.node.insert(0, constant)
    refer(body.initializer[0], 0)
    refer(proto.graph.node[0].attribute[0].t, 64)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    rewrite(tmp_path / "model.onnx", None, tmp_path / "out.onnx")
    (tmp_path / "data").unlink()
    written = load(tmp_path / "out.onnx")
    np.testing.assert_array_equal(written.array(written.proto.graph.node[0].attribute[0].t), normal(4, 4))
    (group,) = find_layers(written).groups
    np.testing.assert_array_equal(group.weight(), normal(4, 4).T)


def test_external_data_goes_into_the_message_only_where_it_is_small(tmp_path: Path) -> None:
    model = load(saved_externally(tmp_path))
    inside = with_data_inside(model, model.size_bytes)
    assert inside.data_files == set()
    assert inside.proto == with_data_inside(inside, 0).proto
    assert (
        run(inside.proto, {"x": normal(5, 64)})[0].tolist()
        == run(model.path, {"x": normal(5, 64)})[0].tolist()
    )
    assert with_data_inside(model, model.size_bytes - 1) is model
    assert model.data_files


def test_small_external_tensors_leave_no_pages_empty_and_large_ones_begin_at_one(tmp_path: Path) -> None:
    nodes = "a = Add(x, s) b = MatMul(a, w) c = Add(b, t) y = Add(c, u)"
    text = f"g (float[1,512] x) => (float[1,512] y) {{ {nodes} }}"
    arrays = {"s": normal(512), "w": normal(512, 512), "t": normal(512), "u": normal(512)}
    source = tmp_path / "in.onnx"
    onnx.save(
        parse(text, arrays), source, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    with ModelWriter(load(source), tmp_path / "out.onnx") as writer:
        writer.commit(load(source).proto)
    written = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    offsets = {
        tensor.name: int(entry.value)
        for tensor in written.graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    }
    assert offsets["w"] % 4096 == 0
    assert all(offset % 64 == 0 for offset in offsets.values())
    size_bytes = (tmp_path / "out.onnx.data").stat().st_size
    assert size_bytes < sum(array.nbytes for array in arrays.values()) + 4096
