"""Packed models: forms and coders lose nothing, and what was altered is refused."""

import hashlib
import io
import json
import zlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.errors import ModelError
from onnxdecomp.graph import coding, container
from onnxdecomp.graph.bitstream import WORDS, fields, pack
from onnxdecomp.graph.coding import FIELDS, HUFFMAN, LZMA, RAW, SHUFFLE, Code, decode, encode
from onnxdecomp.graph.container import MAGIC, Packed
from onnxdecomp.graph.io import load
from onnxdecomp.graph.streams import Stream
from tests.graph.container_models import clustered_model, dense_model, external_model

LONG_LENGTH_BYTES = 8
CHECKSUM_BYTES = 32
FORMS = [(RAW, 0), *((SHUFFLE, n) for n in (2, 4, 8)), *((FIELDS, width) for width in WORDS)]
CODERS = [(HUFFMAN, 0), (LZMA, 3), (LZMA, 4)]


def packed(model, path):
    """Write a model in memory to a packed file."""
    content = io.BytesIO()
    container.pack(load(model), content)
    path.write_bytes(content.getvalue())
    return path


def codes_of(path):
    """Return the codes that a packed file's streams are in."""
    return {tuple(stream["code"]) for stream in directory(path)["streams"]}


def directory(path):
    """Return the directory of a packed file."""
    body = path.read_bytes()[: -CHECKSUM_BYTES - LONG_LENGTH_BYTES]
    length = int.from_bytes(path.read_bytes()[len(body) : -CHECKSUM_BYTES], "little")
    return json.loads(zlib.decompress(body[-length:]))


def forge(path, change):
    """Change the directory of a packed file and give it the checksum that goes with that."""
    content = path.read_bytes()
    end = len(content) - CHECKSUM_BYTES - LONG_LENGTH_BYTES
    length = int.from_bytes(content[end : end + LONG_LENGTH_BYTES], "little")
    entries = json.loads(zlib.decompress(content[end - length : end]))
    change(entries)
    made = zlib.compress(json.dumps(entries).encode())
    body = content[: end - length] + made + len(made).to_bytes(LONG_LENGTH_BYTES, "little")
    path.write_bytes(body + hashlib.sha256(body).digest())


@pytest.fixture
def small(tmp_path):
    return packed(clustered_model(4), tmp_path / "small.odz")


@pytest.mark.parametrize(("coder", "context"), CODERS)
@pytest.mark.parametrize(("form", "width"), FORMS)
@given(n_units=st.integers(1, 70), seed=st.integers(0, 99), levels=st.sampled_from([1, 5, 256]))
@settings(max_examples=8, deadline=None)
def test_every_form_and_coder_gives_back_what_it_got(form, width, coder, context, n_units, seed, levels):
    code = Code(form, width, coder, context)
    shape = (code.n_planes, n_units * code.n_parts)
    block = np.random.default_rng(seed).integers(0, levels, shape, np.uint8)
    made = decode(encode(block, code), code, shape[1])
    assert made.dtype == np.uint8
    assert np.array_equal(made, block)


@pytest.mark.parametrize("width", WORDS)
def test_fields_are_what_was_packed(width):
    word = WORDS[width]
    values = np.random.default_rng(width).integers(0, 2**width, 10 * word.n_fields, np.uint8)
    assert np.array_equal(fields(pack(values, width), width).reshape(-1), values)


def test_parts_of_another_length_are_refused():
    code = Code(RAW, 0, HUFFMAN)
    with pytest.raises(ValueError, match="bytes, not"):
        decode(encode(np.zeros((1, 10), np.uint8), code), code, 11)


@pytest.mark.parametrize("code", [("raw", 1), ("shuffle", 3), ("fields", 8), ("zip", 0)])
def test_forms_that_do_not_exist_are_refused(code):
    with pytest.raises(ValueError, match="there is no form"):
        Code(*code)


def test_a_stream_finds_its_columns_plane_by_plane_across_ranges():
    stream = Stream(0, ((10, 4), (100, 5)), Code(FIELDS, 3))
    assert list(stream.places(0, 3)) == [(10, 3), (13, 1), (100, 2), (102, 3)]
    assert list(stream.places(1, 2)) == [(11, 1), (100, 1), (103, 1)]


@pytest.mark.parametrize(("bits", "width"), [(2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7)])
def test_streams_of_bits_are_coded_as_fields_of_their_width(tmp_path, bits, width):
    path = packed(clustered_model(bits), tmp_path / "x.odz")
    assert {found for form, found, *_ in codes_of(path) if form == FIELDS} == {width}


def test_weights_that_are_alike_beside_each_other_are_coded_below_their_entropy(tmp_path):
    model = clustered_model(4)
    (tensor,) = (t for t in model.graph.initializer if t.name.endswith("/indices"))
    rng = np.random.default_rng(0)
    calm = np.repeat(rng.integers(0, 2, 150), 96)[: 24 * 24 * 25]
    values = np.where(calm, rng.integers(7, 9, calm.size), rng.integers(0, 16, calm.size))
    tensor.raw_data = pack(values.astype(np.uint8), 4).tobytes()
    path = packed(model, tmp_path / "x.odz")
    shares = np.bincount(values) / values.size
    entropy_bytes = -np.sum(shares * np.log2(shares)) * values.size / 8
    assert path.stat().st_size < entropy_bytes
    assert ("fields", 4, "lzma", 3) in codes_of(path) or ("fields", 4, "lzma", 4) in codes_of(path)


def test_floats_are_coded_by_planes(tmp_path):
    path = packed(dense_model(), tmp_path / "x.odz")
    assert ("shuffle", 4, "huffman", 0) in codes_of(path)
    assert path.stat().st_size < 0.9 * len(dense_model().SerializeToString())


def test_same_input_same_bytes(tmp_path):
    first, second = (packed(clustered_model(3), tmp_path / name) for name in "ab")
    assert first.read_bytes() == second.read_bytes()


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_flipped_byte_is_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flip")
    content = bytearray(packed(clustered_model(4), folder / "x.odz").read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    (folder / "x.odz").write_bytes(content)
    with pytest.raises(ModelError):
        Packed(folder / "x.odz")


@pytest.mark.parametrize("left", [0, 1, 7, 8, 9, 10, 49, 50, 51, -1, -32, -33, -40])
def test_what_was_cut_off_is_refused(small, left):
    small.write_bytes(small.read_bytes()[:left])
    with pytest.raises(ModelError, match=r"cut off or altered|is no packed model"):
        Packed(small)


def test_bytes_behind_the_end_are_refused(small):
    small.write_bytes(small.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="its checksum is another"):
        Packed(small)


def test_a_newer_version_is_refused_by_its_number(small):
    content = bytearray(small.read_bytes())
    content[len(MAGIC)] = 7
    small.write_bytes(content)
    with pytest.raises(ModelError, match="is of version 7 and this onnxdecomp reads up to 1"):
        Packed(small)


def test_another_file_is_said_to_be_no_packed_model(tmp_path):
    onnx.save(dense_model(), tmp_path / "x.onnx")
    with pytest.raises(ModelError, match="is no packed model: make one with `onnxdecomp pack`"):
        Packed(tmp_path / "x.onnx")


def _grow(entries):
    entries["files"][0]["size"] += 1


def _overlap(entries):
    entries["streams"][0]["ranges"] *= 2


def _beyond(entries):
    entries["streams"][0]["file"] = 1


def _nameless(entries):
    entries["files"].append({"name": "", "size": 0, "sha256": ""})


def _other_key(entries):
    entries["files"][0]["mode"] = 1


def _uneven(entries):
    entries["streams"][0]["code"] = ["shuffle", 3, "huffman", 0]


@pytest.mark.parametrize("change", [_grow, _overlap, _beyond, _nameless, _other_key, _uneven])
def test_a_directory_that_makes_no_sense_is_refused(small, change):
    forge(small, change)
    with pytest.raises(ModelError, match="cut off or altered"):
        Packed(small)


def test_content_that_is_not_what_was_packed_is_refused(small, tmp_path):
    def other(entries):
        entries["files"][0]["sha256"] = "00" * 32

    forge(small, other)
    with pytest.raises(ModelError, match="is not what was packed"):
        Packed(small).restore([tmp_path / "out"])


def test_streams_in_another_code_are_refused(small, tmp_path):
    def other(entries):
        for stream in entries["streams"]:
            stream["code"] = ["raw", 0, "huffman" if stream["code"][2] == "lzma" else "lzma", 0]
            stream["code"][3] = 3 if stream["code"][2] == "lzma" else 0

    forge(small, other)
    with pytest.raises(ModelError, match="cut off or altered"):
        Packed(small).restore([tmp_path / "out"])


def test_blocks_are_read_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(coding, "BLOCK_BYTES", 1 << 12)
    source = external_model(tmp_path)
    with (tmp_path / "x.odz").open("wb") as sink:
        container.pack(load(source), sink)
    Packed(tmp_path / "x.odz").restore([tmp_path / "a", tmp_path / "b"])
    assert (tmp_path / "a").read_bytes() == source.read_bytes()
    assert (tmp_path / "b").read_bytes() == (tmp_path / "data/weights.bin").read_bytes()
