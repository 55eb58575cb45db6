"""A tensor written as a codebook decodes to the same bits in every runtime, and is folded at load."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.graph import io
from onnxdecomp.graph.bitstream import WORDS, pack
from onnxdecomp.graph.codebook import CodebookWriter, StoredCodebook
from onnxdecomp.graph.expand import expand
from onnxdecomp.graph.io import ModelWriter, load
from tests.graph.codebooks import (
    expanded,
    ir_of,
    outputs,
    random_codebook,
    session,
    with_codebooks,
    with_dense,
)
from tests.graph.models import normal, parse

RUNTIMES = ("off", "all", "reference")
SHAPE = (5, 7, 3)
"""105 elements: no whole number of words at any width."""


def newest_opset() -> int:
    """Return the newest operator set that onnxruntime loads."""
    for version in range(onnx.defs.onnx_opset_version(), 7, -1):
        try:
            session(identity(version), "off")
        except (ort.capi.onnxruntime_pybind11_state.Fail, RuntimeError):
            continue
        return version
    raise AssertionError("onnxruntime loads nothing")


def identity(opset: int, element: str = "float", shape: tuple[int, ...] = SHAPE) -> onnx.ModelProto:
    """Return a model that gives a weight `w` away as its output `y`."""
    dtype = {"float": "float32", "double": "float64"}.get(element, element)
    size = ",".join(map(str, shape))
    w = np.zeros(shape, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    text = f"g (bool c) => ({element}[{size}] y) {{ y = Identity(w) }}"
    return parse(text, {"w": w}, opset=opset, ir=ir_of(opset))


FEED = {"c": np.array(True)}
OPSETS = (7, 9, 10, 11, 17, 21, 25, newest_opset())


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("bits", range(1, 17))
def test_all_widths_decode_exactly_at_every_operator_set(bits: int, opset: int) -> None:
    codebook = random_codebook(SHAPE, bits)
    written = with_codebooks(identity(opset), {"w": codebook})
    expected = [codebook.dense(np.float32).tobytes()]
    assert [outputs(written, FEED, runtime) for runtime in RUNTIMES] == [expected] * 3
    assert written.opset_import[0].version == opset


@pytest.mark.parametrize("opset", [7, 17])
@pytest.mark.parametrize("scale", ["", "tensor", "channel"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.int16])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_groups_scales_and_types_of_centroids_decode_exactly(
    axis: int, dtype: type, scale: str, opset: int
) -> None:
    codebook = random_codebook(SHAPE, 3, axis=axis, group_size=2, scale=scale, dtype=dtype)
    written = with_codebooks(identity(opset), {"w": codebook})
    expected = [codebook.dense(np.float32).tobytes()]
    assert [outputs(written, FEED, runtime) for runtime in RUNTIMES] == [expected] * 3


@pytest.mark.parametrize("scale", ["", "tensor", "channel"])
@pytest.mark.parametrize("element", ["float16", "double", "bfloat16"])
@pytest.mark.parametrize("bits", [4, 8, 11])
def test_models_of_other_float_types_keep_their_type(bits: int, element: str, scale: str) -> None:
    codebook = random_codebook(SHAPE, bits, scale=scale, group_size=3)
    proto = identity(17, element)
    written = with_codebooks(proto, {"w": codebook})
    dtype = onnx.helper.tensor_dtype_to_np_dtype(proto.graph.initializer[0].data_type)
    expected = [codebook.dense(dtype).tobytes()]
    assert outputs(written, FEED, "reference") == expected
    assert expanded(written).proto.graph.initializer[0].raw_data == expected[0]
    if element != "bfloat16":  # onnxruntime's Python interface has no bfloat16 outputs
        assert [outputs(written, FEED, level) for level in ("off", "all")] == [expected] * 2


OPERATORS = {
    "Conv": ("float[1,7,9] x", "float[1,5,7] y", "y = Conv(x, w)", (5, 7, 3), 0),
    "ConvTranspose": ("float[1,5,4] x", "float[1,7,6] y", "y = ConvTranspose(x, w)", (5, 7, 3), 1),
    "Gemm": ("float[2,7] x", "float[2,5] y", "y = Gemm <transB = 1> (x, w, b)", (5, 7), 0),
    "MatMul": ("float[2,7] x", "float[2,5] y", "y = MatMul(x, w)", (7, 5), 1),
    "MatMul on the left": ("float[7,2] x", "float[5,2] y", "y = MatMul(w, x)", (5, 7), 0),
    "LSTM": ("float[3,1,7] x", "float[3,1,1,2] y", "y = LSTM <hidden_size = 2> (x, w, r)", (1, 8, 7), 1),
    "GRU": ("float[3,1,7] x", "float[3,1,1,2] y", "y = GRU <hidden_size = 2> (x, w, r)", (1, 6, 7), 1),
    "Gather": ("int64[2,3] x", "float[2,3,7] y", "y = Gather(w, x)", (11, 7), 0),
}  # fmt: skip


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_compute_the_same_as_with_dense_weights(operator: str, bits: int, opset: int) -> None:
    x, y, node, shape, axis = OPERATORS[operator]
    arrays = {"w": normal(*shape)}
    if "b)" in node:
        arrays["b"] = normal(5)
    if "r)" in node:
        arrays["r"] = normal(shape[0], shape[1], 2)
    proto = parse(f"g ({x}) => ({y}) {{ {node} }}", arrays, opset=opset, ir=ir_of(opset))
    codebook = {"w": random_codebook(shape, bits, axis=axis, group_size=2)}
    written, dense = with_codebooks(proto, codebook), with_dense(proto, codebook)
    shape_of_x = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    feed = {"x": np.arange(6).reshape(2, 3) if operator == "Gather" else normal(*shape_of_x)}
    runtimes = ("off", "basic", "all")
    assert [outputs(written, feed, r) for r in runtimes] == [outputs(dense, feed, r) for r in runtimes]


IN_A_BODY = """g (bool c, float[2,7] x) => (float[2,5] y) {
    y = If(c) <
        then_branch = t () => (float[2,5] a) <float[7,5] w = {%s}, float[7,5] v = {%s}> {
            m = MatMul(x, w) n = MatMul(x, v) a = Add(m, n)
        },
        else_branch = e () => (float[2,5] b) { k = Constant <value = float[7,5] {%s}> () b = MatMul(x, k) }
    >
}"""
THEN, ELSE = "y.then_branch/", "y.else_branch/"


def in_a_body() -> onnx.ModelProto:
    """Return a model whose weights stand in the branches of an If, one of them in a Constant node."""
    return parse(IN_A_BODY % tuple(",".join(map(str, normal(35, seed=s))) for s in range(3)))


@pytest.mark.parametrize("bits", [3, 8, 10])
@pytest.mark.parametrize(("scope", "name", "branch"), [(THEN, "w", True), (ELSE, "k", False)])
def test_weights_in_bodies_decode_there(scope: str, name: str, branch: bool, bits: int) -> None:
    proto, codebook = in_a_body(), random_codebook((7, 5), bits, axis=1, group_size=2)
    written = with_codebooks(proto, {name: codebook}, scope)
    back = expanded(written)
    assert back.names == (scope + name,)
    feed = {"c": np.array(branch), "x": normal(2, 7)}
    expected = outputs(back.proto, feed, "off")
    assert expected != outputs(proto, feed, "off")
    assert [outputs(written, feed, runtime) for runtime in ("off", "all")] == [
        expected,
        outputs(back.proto, feed, "all"),
    ]
    assert outputs(written, feed | {"c": np.array(not branch)}, "off") == outputs(
        proto, feed | {"c": np.array(not branch)}, "off"
    )


@pytest.mark.parametrize("branch", [True, False])
def test_weights_of_the_main_graph_and_of_bodies_are_written_in_one_go(branch: bool) -> None:
    text = """g (bool c, float[2,5] x) => (float[2,5] z) {
        r = MatMul(x, u)
        y = If(c) <
            then_branch = t () => (float[2,5] a) <float[5,5] w = {%s}> { a = MatMul(r, w) },
            else_branch = e () => (float[2,5] b) <float[5,5] w = {%s}> { b = MatMul(r, w) }
        >
        z = Add(y, r)
    }"""
    zeros = ",".join(["0"] * 25)
    proto = parse(text % (zeros, zeros), {"u": normal(5, 5)})
    keys = [("", "u"), (THEN, "w"), (ELSE, "w")]
    books = {key: random_codebook((5, 5), 3, seed=seed) for seed, key in enumerate(keys)}
    model = load(proto)
    with ModelWriter(model, None) as output:
        writer = CodebookWriter(model, output.add_tensor)
        for (scope, name), codebook in books.items():
            writer.store(name, codebook, scope)
        written = writer.finish()
    onnx.checker.check_model(written, full_check=True)
    u, then, other = (codebook.dense(np.float32) for codebook in books.values())
    feed = {"c": np.array(branch), "x": normal(2, 5)}
    result = session(expanded(written).proto, "off").run(None, feed)[0]
    hidden = feed["x"] @ u
    np.testing.assert_allclose(result, hidden @ (then if branch else other) + hidden, rtol=1e-4, atol=1e-4)
    assert outputs(written, feed, "off") == [result.tobytes()]
    assert expanded(written).names == ("u", f"{THEN}w", f"{ELSE}w")


@pytest.mark.parametrize("opset", [9, 17, 25])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16])
@pytest.mark.parametrize("level", ["basic", "all"])
def test_onnxruntime_folds_the_whole_decoding_at_load(
    tmp_path: Path, level: str, bits: int, opset: int
) -> None:
    proto = parse(
        "g (float[1,16,6,6] x) => (float[1,16,6,6] y) { y = Conv <pads = [1,1,1,1]> (x, w) }",
        {"w": normal(16, 16, 3, 3)},
        opset=opset,
        ir=ir_of(opset),
    )
    codebook = random_codebook((16, 16, 3, 3), bits, group_size=4, scale="channel")
    session(with_codebooks(proto, {"w": codebook}), level, tmp_path / "optimized.onnx")
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert sum(node.op_type == "Conv" for node in optimized.graph.node) == 1
    assert {node.op_type for node in optimized.graph.node} <= {"Conv", "ReorderInput", "ReorderOutput"}
    assert sorted(codebook.dense(np.float32).reshape(-1)) == sorted(
        np.concatenate([onnx.numpy_helper.to_array(t).reshape(-1) for t in optimized.graph.initializer])
    )


@pytest.mark.parametrize("bits", [3, 8])
def test_onnxruntime_folds_the_decoding_in_bodies_too(tmp_path: Path, bits: int) -> None:
    codebook = random_codebook((7, 5), bits, axis=1, group_size=2)
    session(with_codebooks(in_a_body(), {"w": codebook}, THEN), "basic", tmp_path / "optimized.onnx")
    optimized = onnx.load(tmp_path / "optimized.onnx")
    branch = next(a.g for a in optimized.graph.node[0].attribute if a.name == "then_branch")
    assert {node.op_type for node in branch.node} <= {"Add", "MatMul", "Gemm"}


@pytest.mark.parametrize(
    ("bits", "opset", "n_nodes"),
    [(8, 7, 3), (16, 7, 3), (4, 21, 4), (2, 25, 4), (4, 17, 7), (3, 17, 9), (12, 17, 9)],
)
def test_the_decoding_has_few_nodes(bits: int, opset: int, n_nodes: int) -> None:
    written = with_codebooks(identity(opset, shape=(16, 3)), {"w": random_codebook((16, 3), bits)})
    assert len(written.graph.node) - 1 == n_nodes


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("opset", [11, 25])
def test_the_file_is_as_large_as_its_indices_and_codebook(bits: int, opset: int) -> None:
    shape = (64, 64, 3, 3)
    written = with_codebooks(identity(opset, shape=shape), {"w": random_codebook(shape, bits)})
    expected = 64 * 64 * 9 * bits / 8 + 2 * min(2**bits, 3000)
    assert expected < written.ByteSize() < expected + 2000


@given(values=st.data(), width=st.integers(1, 7), size=st.integers(0, 40))
def test_a_stream_holds_its_fields_one_after_another(values: st.DataObject, width: int, size: int) -> None:
    fields = values.draw(st.lists(st.integers(0, 2**width - 1), min_size=size, max_size=size))
    planes = pack(np.array(fields, np.uint8), width)
    n_bytes, n_words = planes.shape
    words = [sum(int(planes[b, i]) << (8 * b) for b in range(n_bytes)) for i in range(n_words)]
    read = [word >> (width * j) & (2**width - 1) for j in range(WORDS[width].n_fields) for word in words]
    assert read[:size] == fields
    assert not any(read[size:])
    assert n_bytes * n_words < size * width / 8 + n_bytes


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_shape_axis_and_grouping_is_stored_exactly(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple))
    axis = data.draw(st.integers(0, len(shape) - 1))
    codebook = random_codebook(
        shape,
        data.draw(st.integers(1, 16)),
        axis=axis,
        group_size=data.draw(st.integers(0, 7)),
        scale=data.draw(st.sampled_from(["", "tensor", "channel"])),
    )
    written = with_codebooks(identity(data.draw(st.sampled_from(OPSETS)), shape=shape), {"w": codebook})
    expected = codebook.dense(np.float32).tobytes()
    assert outputs(written, FEED, "off") == [expected]
    assert expanded(written).proto.graph.initializer[0].raw_data == expected


@pytest.mark.parametrize("scale", ["", "channel"])
@pytest.mark.parametrize("group_size", [0, 2])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_tensor_beyond_the_folding_limit_is_decoded_in_pieces(
    axis: int, group_size: int, scale: str
) -> None:
    proto = identity(17, shape=(20, 30))
    codebook = random_codebook((20, 30), 5, axis=axis, group_size=group_size, scale=scale)
    written = with_codebooks(proto, {"w": codebook}, limit_bytes=2400)
    assert sum(node.op_type == "Concat" for node in written.graph.node) == 1
    inferred = onnx.shape_inference.infer_shapes(written, data_prop=True)
    sizes = {
        v.name: np.prod([d.dim_value for d in v.type.tensor_type.shape.dim])
        * onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).itemsize
        for v in inferred.graph.value_info
    }
    assert max(sizes.values()) <= 2400
    expected = [codebook.dense(np.float32).tobytes()]
    assert [outputs(written, FEED, runtime) for runtime in RUNTIMES] == [expected] * 3
    assert expanded(written).proto.graph.initializer[0].raw_data == expected[0]


def test_pieces_are_folded_below_a_limit_that_stops_the_whole(tmp_path: Path) -> None:
    proto, codebook = identity(17, shape=(20, 30)), random_codebook((20, 30), 5)
    options = ort.SessionOptions()
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", "2400")
    options.log_severity_level = 4
    left = {}
    for limit in (2400, 1 << 30):
        options.optimized_model_filepath = str(tmp_path / f"{limit}.onnx")
        written = with_codebooks(proto, {"w": codebook}, limit_bytes=limit)
        ort.InferenceSession(written.SerializeToString(), options, providers=["CPUExecutionProvider"])
        left[limit] = {node.op_type for node in onnx.load(tmp_path / f"{limit}.onnx").graph.node}
    assert left[2400] <= {"Identity"}
    assert "BitShift" in left[1 << 30]


def test_a_weight_that_two_layers_share_is_written_once() -> None:
    proto = parse(
        "g (float[2,7] x) => (float[2,7] y) { a = MatMul(x, w) y = MatMul(a, w) }", {"w": normal(7, 7)}
    )
    codebook = {"w": random_codebook((7, 7), 6)}
    written, feed = with_codebooks(proto, codebook), {"x": normal(2, 7)}
    assert sum(tensor.name.endswith("indices") for tensor in written.graph.initializer) == 1
    assert outputs(written, feed, "off") == outputs(with_dense(proto, codebook), feed, "off")


def test_streams_of_one_width_share_their_constants() -> None:
    proto = parse(
        "g (float[2,7] x) => (float[2,9] y) { a = MatMul(x, w) y = MatMul(a, v) }",
        {"w": normal(7, 7), "v": normal(7, 9)},
    )
    written = with_codebooks(proto, {"w": random_codebook((7, 7), 6), "v": random_codebook((7, 9), 6)})
    assert sum("left" in tensor.name for tensor in written.graph.initializer) == 1


def test_a_model_that_has_codebooks_can_get_more() -> None:
    proto = parse(
        "g (float[2,7] x) => (float[2,9] y) { a = MatMul(x, w) y = MatMul(a, v) }",
        {"w": normal(7, 7), "v": normal(7, 9)},
    )
    codebooks = {"w": random_codebook((7, 7), 6), "v": random_codebook((7, 9), 6)}
    twice = with_codebooks(with_codebooks(proto, {"w": codebooks["w"]}), {"v": codebooks["v"]})
    names = [tensor.name for tensor in twice.graph.initializer]
    assert len(set(names)) == len(names)
    assert expanded(twice).proto == with_dense(proto, codebooks)


def test_a_constant_node_becomes_a_codebook() -> None:
    constant = "w = Constant <value = float[3,2] {1,2,3,4,5,6}> ()"
    proto = parse(f"g (float[2,3] x) => (float[2,2] y) {{ {constant} y = MatMul(x, w) }}")
    codebook = random_codebook((3, 2), 2)
    written = with_codebooks(proto, {"w": codebook})
    assert "Constant" not in {node.op_type for node in written.graph.node}
    assert expanded(written).proto.graph.initializer[0].raw_data == codebook.dense(np.float32).tobytes()


@pytest.mark.parametrize("opset", [7, 11])
def test_initializers_that_old_files_list_as_inputs_go_from_there(opset: int) -> None:
    proto = parse(
        "g (float[2,7] x) => (float[2,5] y) { y = MatMul(x, w) }", {"w": normal(7, 5)}, opset=opset, ir=3
    )
    codebook = {"w": random_codebook((7, 5), 3, axis=1, group_size=2)}
    written, feed = with_codebooks(proto, codebook), {"x": normal(2, 7)}
    assert {t.name for t in written.graph.initializer} == {i.name for i in written.graph.input} - {"x"}
    assert outputs(written, feed, "off") == outputs(with_dense(proto, codebook), feed, "off")
    assert expanded(written).proto == with_dense(proto, codebook)


def test_a_weight_that_is_an_output_of_the_model_too_stays_one() -> None:
    proto = parse(
        "g (float[2,7] x) => (float[2,5] y, float[7,5] w) { y = MatMul(x, w) }", {"w": normal(7, 5)}
    )
    codebook, feed = {"w": random_codebook((7, 5), 3)}, {"x": normal(2, 7)}
    written, dense = with_codebooks(proto, codebook), with_dense(proto, codebook)
    assert [outputs(written, feed, r) for r in RUNTIMES] == [outputs(dense, feed, r) for r in RUNTIMES]


@pytest.mark.parametrize("opset", [17, 21, 25])
@pytest.mark.parametrize("bits", [2, 3, 4, 8, 9])
def test_indices_may_stand_in_a_data_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, opset: int
) -> None:
    monkeypatch.setattr(io, "INLINE_LIMIT_BYTES", 0)
    shape, path = (96, 98), tmp_path / "out.onnx"
    codebook = random_codebook(shape, bits)
    with_codebooks(identity(opset, shape=shape), {"w": codebook}, out_path=path)
    assert (tmp_path / "out.onnx.data").stat().st_size >= 96 * 98 * bits // 8
    expected = [codebook.dense(np.float32).tobytes()]
    assert [outputs(path, FEED, level) for level in ("off", "all")] == [expected] * 2
    model = load(path)
    with ModelWriter(model, tmp_path / "back.onnx") as output:
        output.commit(expand(model, output.add_tensor).proto)
    assert outputs(tmp_path / "back.onnx", FEED, "off") == expected


def test_nothing_stored_changes_nothing() -> None:
    proto = in_a_body()
    assert with_codebooks(proto, {}).SerializeToString() == proto.SerializeToString()


def refusal(proto: onnx.ModelProto, name: str = "w", scope: str = "", **options: int) -> str:
    """Return why a tensor cannot be written as a codebook."""
    model = load(proto)
    with ModelWriter(model, None) as output:
        writer = CodebookWriter(model, output.add_tensor, **options)
        reason = writer.refusal(name, scope)
        assert reason is not None
        with pytest.raises(ValueError, match="w: "):
            writer.store(name, random_codebook(SHAPE), scope)
    return reason


def test_old_operator_sets_are_refused_and_never_raised() -> None:
    proto = identity(7)
    proto.opset_import[0].version = 6
    assert "--opset 7" in refusal(proto)


def test_a_weight_that_a_caller_may_override_is_refused() -> None:
    proto = identity(17)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, SHAPE))
    assert "override" in refusal(proto)


def test_a_sparse_weight_is_refused() -> None:
    proto = identity(17)
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(normal(2), "w"))
    del proto.graph.initializer[:]
    assert "sparse" in refusal(proto)


def test_whole_numbers_are_refused() -> None:
    proto = identity(17)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.zeros(SHAPE, np.int64), "w"))
    assert "float" in refusal(proto)


def test_a_tensor_that_is_no_constant_is_refused() -> None:
    assert "no dense constant" in refusal(parse("g (float[2] w) => (float[2] y) { y = Relu(w) }"))


def test_a_tensor_that_onnxruntime_would_not_fold_is_refused() -> None:
    assert "every run" in refusal(identity(17), limit_bytes=100)


def test_a_body_of_a_model_of_ir_version_3_is_refused() -> None:
    proto = in_a_body()
    proto.ir_version = 3
    assert "IR version 3" in refusal(proto, "w", THEN)


def test_weights_of_training_are_refused() -> None:
    proto = identity(17)
    proto.training_info.add()
    assert "training" in refusal(proto)


def test_storing_a_tensor_twice_or_in_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match="its shape is"):
        with_codebooks(identity(17), {"w": random_codebook((2, 3))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 0}, "1 to 16 bits"),
        ({"bits": 17}, "1 to 16 bits"),
        ({"bits": 3}, "beyond"),
        ({"axis": 3}, "no axis 3"),
        ({"group_size": 2}, "groups of 2"),
        ({"centroids": np.zeros((1, 16), np.float32)}, "16 bits"),
        ({"centroids": np.zeros((1, 9), np.float16)}, "beyond"),
        ({"indices": np.zeros(SHAPE, np.int64)}, "uint8 or uint16"),
        ({"scale": np.zeros(4, np.float32)}, "scale"),
    ],
)
def test_numbers_that_do_not_go_together_are_told(change: dict[str, object], message: str) -> None:
    good = random_codebook(SHAPE, 4)
    parts = {"indices": good.indices, "centroids": good.centroids, "bits": 4} | change
    with pytest.raises(ValueError, match=message):
        StoredCodebook(**parts)  # type: ignore[arg-type]
