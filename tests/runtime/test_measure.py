import numpy as np
import onnx
import pytest

from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.graph.container import packed_bytes
from onnxdecomp.graph.io import load
from onnxdecomp.runtime.latency import Speedup
from onnxdecomp.runtime.measure import BenchRow, bench, count_macs, count_params
from onnxdecomp.runtime.observe import observe
from tests.graph.codebooks import random_codebook, with_codebooks
from tests.graph.models import normal, parse


def macs_of(text: str, arrays: dict, **feeds) -> int:
    model = parse(text, arrays)
    return count_macs(model, observe(model, feeds))


@pytest.mark.parametrize(
    ("expression", "weight", "x", "expected"),
    [
        ("y = Conv(x, w)", (8, 4, 3, 3), (1, 4, 7, 7), 8 * 4 * 9 * 25),
        ("y = Conv <group = 2> (x, w)", (8, 2, 3, 3), (1, 4, 7, 7), 8 * 2 * 9 * 25),
        ("y = Conv <strides = [2, 2]> (x, w)", (8, 4, 3, 3), (2, 4, 7, 7), 2 * 8 * 4 * 9 * 9),
        ("y = ConvTranspose(x, w)", (4, 8, 3, 3), (1, 4, 7, 7), 4 * 8 * 9 * 49),
        ("y = Gemm(x, w)", (5, 3), (2, 5), 2 * 5 * 3),
        ("y = Gemm <transB = 1> (x, w)", (3, 5), (2, 5), 2 * 5 * 3),
        ("y = MatMul(x, w)", (5, 3), (4, 2, 5), 4 * 2 * 5 * 3),
        ("y = MatMul(w, x)", (3, 5), (5, 2), 2 * 5 * 3),
        ("y = Relu(x)", (1,), (4, 4), 0),
    ],
)
def test_macs_can_be_counted_by_hand(expression, weight, x, expected):
    axes = ", ".join("?" * len(x))
    text = f"g (float[{axes}] x) => (float y) {{ {expression} }}"
    model = parse(text, {"w": normal(*weight)})
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert count_macs(model, observe(model, {"x": normal(*x)})) == expected


def test_macs_inside_a_loop_count_every_time():
    text = """
    g (float[2, 4] x, int64 n, bool go) => (float[2, 4] y) {
        y = Loop (n, go, x) <
            body = step (int64 i, bool before, float[2, 4] a) => (bool after, float[2, 4] z) {
                after = Identity(before)
                z = MatMul(a, w)
            }
        >
    }
    """
    feeds = {"x": normal(2, 4), "n": np.array(3), "go": np.array(True)}
    assert macs_of(text, {"w": normal(4, 4)}, **feeds) == 3 * 2 * 4 * 4


def test_shapes_and_indices_are_no_parameters():
    text = "g (float[2, 6] x) => (float[3, 4] y) { s = Add(x, w) y = Reshape(s, to) }"
    assert count_params(parse(text, {"w": normal(2, 6), "to": np.array([3, 4])})) == 12


def save(tmp_path, name: str, width: int):
    text = "g (float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, a) y = MatMul(h, b) }"
    path = tmp_path / name
    onnx.save(parse(text, {"a": normal(8, width), "b": normal(width, 4)}), path)
    return path


def test_bench_measures_every_model_and_compares_with_the_first(tmp_path):
    paths = [save(tmp_path, "wide.onnx", 64), save(tmp_path, "narrow.onnx", 2)]
    wide, narrow = bench(paths, n_runs=6)
    assert (wide.n_params, narrow.n_params) == (64 * 12, 2 * 12)
    assert (wide.n_macs, narrow.n_macs) == (64 * 12, 2 * 12)
    assert (wide.size_bytes, narrow.size_bytes) == tuple(path.stat().st_size for path in paths)
    assert (wide.n_runs, wide.speedup, wide.verdict) == (6, None, "reference")
    assert narrow.speedup is not None
    assert min(wide.load_ms, wide.latency_ms, narrow.load_ms, narrow.latency_ms) > 0
    assert min(wide.peak_memory_bytes, narrow.peak_memory_bytes) > 2**20


def test_the_size_includes_external_data(tmp_path):
    path = save(tmp_path, "model.onnx", 64)
    onnx.save(
        onnx.load(path), tmp_path / "out.onnx", save_as_external_data=True, location="d", size_threshold=0
    )
    (row,) = bench([tmp_path / "out.onnx"], n_runs=5)
    assert row.size_bytes == (tmp_path / "out.onnx").stat().st_size + (tmp_path / "d").stat().st_size
    assert row.dense_bytes == row.size_bytes


def test_dense_and_packed_bytes_stand_apart_from_those_of_the_file(tmp_path):
    path = save(tmp_path, "dense.onnx", 512)
    clustered = with_codebooks(load(path), {"a": random_codebook((8, 512))}, out_path=tmp_path / "c.onnx")
    rows = bench([path, tmp_path / "c.onnx"], n_runs=5)
    assert rows[1].size_bytes == clustered.ByteSize() < rows[0].size_bytes
    assert rows[0].size_bytes == rows[0].dense_bytes
    assert rows[0].size_bytes - rows[1].dense_bytes in range(10)  # the head of a tensor
    assert [row.packed_bytes for row in rows] == [packed_bytes(load(row.file)) for row in rows]


@pytest.mark.parametrize(
    ("speedup", "verdict"),
    [
        (Speedup(2.0, 1.8, 2.2), "faster"),
        (Speedup(0.5, 0.4, 0.6), "slower"),
        (Speedup(1.2, 0.9, 1.4), "no difference beyond the noise"),
        (None, "reference"),
    ],
)
def test_no_speed_up_smaller_than_its_spread_is_called_one(speedup, verdict):
    assert BenchRow("m", 1, 1, 1, 1, 1, 1.0, 1.0, 0.1, 30, speedup, 1).verdict == verdict


def test_inputs_that_are_given_are_used_for_all(tmp_path):
    (row,) = bench([save(tmp_path, "model.onnx", 2)], feeds={"x": normal(5, 8)}, n_runs=5)
    assert row.n_macs == 5 * 2 * 12


def test_inputs_of_other_names_are_refused(tmp_path):
    with pytest.raises(UsageError, match="takes x and the inputs given are z"):
        bench([save(tmp_path, "model.onnx", 2)], feeds={"z": normal(5, 8)})


def test_a_model_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        bench([tmp_path / "broken.onnx"])


def test_a_model_that_cannot_run_alone_is_said_in_one_line(tmp_path):
    path = save(tmp_path, "model.onnx", 2)
    with pytest.raises(ModelError, match="cannot be measured alone") as caught:
        bench([path], feeds={"x": normal(5, 9)})
    assert "\n" not in str(caught.value)
