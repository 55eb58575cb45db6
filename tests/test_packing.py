"""`pack` and `unpack`: the same bytes, all files or none."""

import numpy as np
import onnx
import pytest

import onnxdecomp
from onnxdecomp import packing
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.graph.container import packed_bytes
from onnxdecomp.graph.io import load
from tests.graph.codebooks import random_codebook, with_codebooks
from tests.graph.container_models import SHAPE, clustered_model, dense_model, external_model
from tests.graph.models import normal, parse
from tests.graph.test_container import forge


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(model, path):
    path.write_bytes(model.SerializeToString())
    return path


def with_constants():
    """Return a model with numbers in attributes, in typed fields and of several types."""
    model = parse(
        "g (float[300] x) => (float[300] y) { c = Constant<value = float[1] {1.0}>() y = Mul(x, c) }",
        {"h": normal(400, dtype=np.float16), "d": normal(99, dtype=np.float64), "s": np.arange(500)},
    )
    model.graph.node[0].attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(normal(300), "c"))
    values = normal(500)
    typed = onnx.helper.make_tensor("t", onnx.TensorProto.FLOAT, values.shape, values.tolist())
    model.graph.initializer.append(typed)
    model.metadata_props.add(key="made", value="by hand " * 100)
    return model


MODELS = {
    "dense": dense_model,
    "constants": with_constants,
    "uint4": lambda: clustered_model(4, opset=21),
    "uint16": lambda: clustered_model(16),
    **{f"{bits} bits": lambda bits=bits: clustered_model(bits) for bits in (1, 2, 3, 4, 5, 6, 7, 8, 11)},
}


@pytest.mark.parametrize("name", MODELS)
def test_an_unpacked_model_has_the_same_bytes(folder, name):
    source = saved(MODELS[name](), folder / "in.onnx")
    made = onnxdecomp.pack(source, folder / "x.odz")
    back = onnxdecomp.unpack(folder / "x.odz", folder / "out/back.onnx")
    assert (folder / "out/back.onnx").read_bytes() == source.read_bytes()
    assert made.size_bytes.before == back.size_bytes.after == source.stat().st_size
    assert made.size_bytes.after == back.size_bytes.before == (folder / "x.odz").stat().st_size
    assert made.files == ("in.onnx",)
    assert sorted(path.name for path in folder.iterdir()) == ["in.onnx", "out", "x.odz"]


def test_packed_bytes_are_those_of_the_file(folder):
    model = clustered_model(3)
    packing.pack(saved(model, folder / "in.onnx"), folder / "x.odz")
    assert packed_bytes(load(folder / "in.onnx")) == (folder / "x.odz").stat().st_size


def test_models_in_memory_are_counted_too():
    assert 0 < packed_bytes(load(dense_model())) < len(dense_model().SerializeToString())


def test_data_files_come_back_with_their_names(folder):
    source = external_model(folder)
    made = packing.pack(source, "x.odz")
    back = packing.unpack("x.odz", "out/other.onnx")
    assert (folder / "out/other.onnx").read_bytes() == source.read_bytes()
    data = (folder / "data/weights.bin").read_bytes()
    assert (folder / "out/data/weights.bin").read_bytes() == data
    assert made.size_bytes.before == source.stat().st_size + len(data)
    assert back.files == ("other.onnx", "data/weights.bin")


def test_codebooks_in_data_files_come_back(folder):
    source = external_model(folder)
    with_codebooks(load(source), {"w": random_codebook(SHAPE, 3)}, out_path=folder / "c.onnx")
    packing.pack("c.onnx", "x.odz")
    packing.unpack("x.odz", "out/c.onnx")
    for name in ("c.onnx", "c.onnx.data"):
        assert (folder / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_unpacking_again_over_the_same_data_is_fine(folder):
    packing.pack(external_model(folder), "x.odz")
    packing.unpack("x.odz", "out/a.onnx")
    packing.unpack("x.odz", "out/a.onnx")
    assert (folder / "out/a.onnx").exists()


def test_other_data_is_not_overwritten(folder):
    packing.pack(external_model(folder), "x.odz")
    (folder / "out/data").mkdir()
    (folder / "out/data/weights.bin").write_bytes(b"mine")
    with pytest.raises(ModelError, match="is there already with other content"):
        packing.unpack("x.odz", "out/a.onnx")
    assert (folder / "out/data/weights.bin").read_bytes() == b"mine"
    assert [path.name for path in (folder / "out").iterdir()] == ["data"]


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "a/../../evil", "C:\\evil", "..\\evil", "link/evil", "."]
)
def test_files_outside_the_folder_are_refused(folder, name):
    (folder / "out/link").symlink_to(folder)
    packing.pack(external_model(folder), "x.odz")

    def rename(entries):
        entries["files"][1]["name"] = name

    forge(folder / "x.odz", rename)
    with pytest.raises(ModelError, match="outside the folder"):
        packing.unpack("x.odz", "out/a.onnx")
    assert [path.name for path in (folder / "out").iterdir()] == ["link"]


def test_a_model_cannot_take_the_name_of_its_data(folder):
    packing.pack(external_model(folder, "weights.bin"), "x.odz")
    with pytest.raises(ModelError, match="give the output another name"):
        packing.unpack("x.odz", "out/weights.bin")


def test_nothing_is_written_from_an_altered_file(folder):
    packing.pack(saved(clustered_model(4), folder / "in.onnx"), "x.odz")
    content = bytearray((folder / "x.odz").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "x.odz").write_bytes(content)
    (folder / "out/a.onnx").write_bytes(b"before")
    with pytest.raises(ModelError, match="its checksum is another"):
        packing.unpack("x.odz", "out/a.onnx")
    assert (folder / "out/a.onnx").read_bytes() == b"before"
    assert len(list((folder / "out").iterdir())) == 1


def test_a_model_is_not_packed_over_itself(folder):
    source = external_model(folder)
    with pytest.raises(UsageError, match="give the output another name"):
        packing.pack(source, source)
    with pytest.raises(UsageError, match="give the output another name"):
        packing.pack(source, "data/weights.bin")
    packing.pack(source, "x.odz")
    with pytest.raises(UsageError, match="give the output another name"):
        packing.unpack("x.odz", "x.odz")


@pytest.mark.parametrize("output", ["out", "nowhere/x.odz"])
def test_places_that_cannot_be_written_are_named(folder, output):
    source = saved(dense_model(), folder / "in.onnx")
    with pytest.raises(ModelError, match=r"is a folder|does not exist"):
        packing.pack(source, output)


def test_what_is_no_model_is_not_packed(folder):
    (folder / "in.onnx").write_bytes(b"\x80 no model")
    with pytest.raises(ModelError, match="is not an ONNX model"):
        packing.pack("in.onnx", "x.odz")
    assert not (folder / "x.odz").exists()
