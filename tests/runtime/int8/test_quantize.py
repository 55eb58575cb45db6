import logging
from collections import Counter
from math import ceil, inf, log2
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.runtime import machine
from onnxdecomp.runtime.compare import output_error, verify_models
from onnxdecomp.runtime.evaluate import outputs_over
from onnxdecomp.runtime.int8 import build as int8_build
from onnxdecomp.runtime.int8 import ranges as int8_ranges
from onnxdecomp.runtime.int8.quantize import Quantized, as_fast_as_int8, quantize, search_int8
from onnxdecomp.runtime.session import open_session, read_proto, run
from tests.graph.models import normal, parse
from tests.networks import network

INT8_ERROR = 0.1
"""Relative output error that a few layers in INT8 stay below on normal data."""

SIDE = 8
ONE_CONV = "g (float[N, 3, 8, 8] x) => (float[N, 4, ?, ?] y) { y = Conv(x, w) }"
CONV_ARRAYS = {"w": normal(4, 3, 3, 3)}


def images(n: int = 24, channels: int = 3, side: int = SIDE, seed: int = 0):
    return {"x": normal(n, channels, side, side, seed=seed)}


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def reasons(found: Quantized) -> dict[str, str]:
    return dict(found.kept)


def error(found: Quantized, model, samples) -> float:
    assert found.model is not None, found.reason
    expected, got = outputs_over(model, samples), outputs_over(found.model, samples)
    return max(output_error(expected[name], got[name]) for name in expected)


def assert_works(found: Quantized, model, samples, limit: float = INT8_ERROR) -> None:
    assert error(found, model, samples) < limit
    assert not verify_models(model, found.model, [dict(samples)], agreement_tolerance=limit).problems


def test_every_layer_of_a_network_runs_in_int8():
    model, samples = network(), images(channels=16, side=12)
    found = quantize(model, samples)
    assert (found.quantized, found.kept, found.reason) == (("c1", "c2", "g", "y"), (), "")
    assert_works(found, model, samples)


def test_batch_normalization_is_folded_so_that_layers_stay_in_int8():
    found = quantize(network(), images(channels=16, side=12))
    assert not {"BatchNormalization", "Relu"} & kinds(found.model).keys()


def test_onnxruntime_runs_kernels_in_int8(tmp_path):
    found = quantize(network(), images(channels=16, side=12))
    session = open_session(found.model, profile_prefix=tmp_path / "profile")
    run(session, images(1, channels=16, side=12))
    profile = Path(session.end_profiling()).read_text()
    names = ("Conv", "Gemm", "MatMul", "QLinearConv", "QGemm")
    ran = {name for name in names if f'"op_name" : "{name}"' in profile}
    assert ran == {"QLinearConv", "QGemm"}


@pytest.mark.parametrize(("saturates", "largest"), [(False, 127), (True, 64)])
def test_weights_have_a_scale_per_channel(monkeypatch, saturates, largest):
    monkeypatch.setattr("onnxdecomp.runtime.int8.build.int8_saturates", lambda: saturates)
    sizes = np.float32([1, 10, 100, 1000]).reshape(4, 1, 1, 1)
    found = quantize(parse(ONE_CONV, {"w": normal(4, 3, 3, 3) * sizes}), images())
    stored = {t.name: numpy_helper.to_array(t) for t in found.model.graph.initializer}
    weight, scale = stored["w_quantized"], stored["w_scale"]
    assert (weight.dtype, scale.shape) == (np.int8, (4,))
    assert np.all(np.abs(weight).max(axis=(1, 2, 3)) == largest)


def test_the_float_model_is_not_touched():
    model = network()
    before = model.SerializeToString(deterministic=True)
    quantize(model, images(channels=16, side=12))
    assert model.SerializeToString(deterministic=True) == before


def test_names_metadata_and_opsets_are_the_float_models():
    model = network()
    found = quantize(model, images(channels=16, side=12)).model
    assert {"conv1", "conv2", "fc", "head"} <= {node.name for node in found.graph.node}
    assert found.metadata_props == model.metadata_props
    assert found.opset_import == model.opset_import
    assert (found.graph.input, found.graph.output) == (model.graph.input, model.graph.output)


def test_same_samples_same_bytes():
    model, samples = network(), images(96, channels=16, side=12)
    first, second = (quantize(model, samples, seed=3).model for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_it_is_silent_and_leaves_logging_alone(capfd):
    handlers, disabled = list(logging.getLogger().handlers), logging.root.manager.disable
    assert quantize(network(), images(channels=16, side=12)).model is not None
    assert tuple(capfd.readouterr()) == ("", "")
    assert (logging.getLogger().handlers, logging.root.manager.disable) == (handlers, disabled)


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 21])
def test_old_opsets_are_raised_to_the_one_with_scales_per_channel(opset):
    text = """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
        a = Conv<pads=[1, 1, 1, 1]>(x, w)  b = Relu(a)  c = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(b)
        d = Flatten(c)  e = Gemm(d, v, u)  y = Softmax(e) }"""
    model = parse(text, CONV_ARRAYS | {"v": normal(64, 5) / 8, "u": normal(5)}, opset=opset)
    found = quantize(model, images())
    assert found.quantized == ("a", "e")
    assert found.model.opset_import[0].version == max(opset, 13)
    assert_works(found, model, images())


def test_initializers_that_old_files_list_as_inputs_are_weights():
    model = parse(ONE_CONV, CONV_ARRAYS, opset=8, ir=3)
    found = quantize(model, images())
    assert found.quantized == ("y",)
    assert [value.name for value in found.model.graph.input] == ["x"]
    assert error(found, model, images()) < INT8_ERROR


@pytest.mark.parametrize(
    "nodes",
    [
        "v = Identity(w)  y = Conv(x, v)",
        "v = Transpose<perm=[1, 0, 2, 3]>(t)  y = Conv(x, v)",
        "v = Reshape(f, s)  y = Conv(x, v)",
        "v = Cast<to=1>(h)  y = Conv(x, v)",
        "v = Constant<value=float[4, 3, 1, 1] {1,2,3,4,-5,6,-7,8,9,1,2,3}>()  y = Conv(x, v)",
    ],
    ids=lambda nodes: nodes.split("(")[0].split("= ")[1],
)
def test_weights_behind_other_nodes_are_quantized(nodes):
    w = normal(4, 3, 3, 3)
    arrays = {"w": w, "t": w.transpose(1, 0, 2, 3).copy(), "f": w.ravel(), "h": w.astype(np.float16)}
    arrays = {name: a for name, a in arrays.items() if f"({name}" in nodes} | {"s": np.array([4, 3, 3, 3])}
    text = f"g (float[N, 3, 8, 8] x) => (float[N, 4, ?, ?] y) {{ {nodes} }}"
    model = parse(text, arrays)
    found = quantize(model, images())
    assert found.quantized == ("y",)
    assert_works(found, model, images())


def test_several_inputs_and_dynamic_axes():
    text = """g (float[N, 3, H, W] x, float[N, 4, H, W] z) => (float[N, 4, H, W] y) {
        a = Conv<pads=[1, 1, 1, 1]>(x, w)  b = Conv<pads=[1, 1, 1, 1]>(z, v)  y = Add(a, b) }"""
    model = parse(text, CONV_ARRAYS | {"v": normal(4, 4, 3, 3)})
    samples = images() | {"z": normal(24, 4, SIDE, SIDE)}
    found = quantize(model, samples)
    assert found.quantized == ("a", "b")
    assert_works(found, model, samples)


@pytest.mark.parametrize(
    ("nodes", "arrays", "reason"),
    [
        ("y = Gemm<transA=1>(x, w)", {"w": normal(6, 4)}, "transposed"),
        ("y = Gemm<alpha=2.0>(x, w)", {"w": normal(6, 4)}, "alpha or beta"),
        ("y = Gemm<beta=0.5>(x, w, b)", {"w": normal(6, 4), "b": normal(4)}, "alpha or beta"),
        ("y = Gemm(x, w, b)", {"w": normal(6, 4), "b": normal(6, 4)}, "shape [6, 4]"),
        ("y = Gemm(x, w, x)", {"w": normal(6, 6)}, "bias is not a constant"),
        ("y = MatMul(w, x)", {"w": normal(4, 6)}, "left operand"),
        ("y = MatMul(x, x)", {}, "not a constant"),
        ("y = MatMul(x, w)", {"w": normal(2, 6, 4)}, "3 axes"),
        ("y = MatMul(x, w)", {"w": np.full((6, 4), np.nan, np.float32)}, "NaN"),
    ],
)
def test_layers_that_stay_in_float_have_a_reason(nodes, arrays, reason):
    model = parse(f"g (float[6, 6] x) => (float y) {{ {nodes} }}", arrays)
    found = quantize(model, {"x": normal(6, 6)})
    assert found.model is None
    assert found.reason == "No node of the model can be quantized."
    assert reason in reasons(found)["y"]


@pytest.mark.parametrize(
    "nodes",
    ["y = Gemm<transB=1>(x, w, b)", "t = MatMul(x, v)  y = Add(t, b)", "t = MatMul(x, v)  y = Add(t, r)"],
)
def test_matrices_are_quantized_either_way_round(nodes):
    arrays = {"w": normal(4, 6), "v": normal(6, 4), "b": normal(4), "r": normal(1, 4)}
    arrays = {name: a for name, a in arrays.items() if f"{name}," in nodes or f"{name})" in nodes}
    model = parse(f"g (float[N, 6] x) => (float[N, 4] y) {{ {nodes} }}", arrays)
    found = quantize(model, {"x": normal(24, 6)})
    assert len(found.quantized) == 1
    assert kinds(found.model)["Gemm"] == 1
    assert_works(found, model, {"x": normal(24, 6)})


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_float_types_are_left_alone(kind):
    element = {np.float16: "float16", np.float64: "double"}[kind]
    text = f"g ({element}[N, 6] x) => ({element}[N, 4] y) {{ y = MatMul(x, w) }}"
    found = quantize(parse(text, {"w": normal(6, 4, dtype=kind)}), {"x": normal(24, 6, dtype=kind)})
    assert found.model is None
    assert reasons(found) == {"y": "it is not of type float32"}


def test_a_quantized_model_is_left_alone():
    first = quantize(parse(ONE_CONV, CONV_ARRAYS), images())
    again = quantize(first.model, images())
    assert again.model is None
    assert "already quantized" in again.reason


def test_a_model_to_be_timed_has_the_nodes_of_the_quantized_one():
    model, samples = network(), images(channels=16, side=12)
    timed = as_fast_as_int8(model, {"x": samples["x"][:1]})
    assert kinds(timed.model) == kinds(quantize(model, samples).model)


@pytest.mark.parametrize("text", ["y = Relu(x)", "q = QuantizeLinear(x, s)  y = DequantizeLinear(q, s)"])
def test_a_model_that_has_no_form_in_int8_cannot_be_timed_in_it(text):
    model = parse(f"g (float[N, 4] x) => (float[N, 4] y) {{ {text} }}", {"s": np.array(0.1, np.float32)})
    with pytest.raises(ModelError, match=r"has no Conv|already quantized"):
        as_fast_as_int8(model, {"x": normal(1, 4)})


def test_a_model_without_layers_is_left_alone():
    found = quantize(parse("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"), {"x": normal(8, 4)})
    assert found.reason == "The model has no Conv, Gemm or MatMul."


BRANCHING = """g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
    s = ReduceSum<keepdims=0>(x)  c = Less(s, zero)  a = Conv(x, w)
    b = If (c) <then_branch = t () => (float[N, 4, 6, 6] p) { p = Conv(a, v) },
                else_branch = e () => (float[N, 4, 6, 6] q) { q = Relu(a) }>
    y = Conv(b, v) }"""


def test_bodies_stay_in_float():
    arrays = CONV_ARRAYS | {"v": normal(4, 4, 1, 1), "zero": np.float32(0)}
    model = parse(BRANCHING, {name: np.asarray(array) for name, array in arrays.items()})
    found = quantize(model, images())
    assert found.quantized == ("a", "y")
    assert "body of an If" in reasons(found)["b.then_branch/p"]
    assert_works(found, model, images())


def test_transposed_convolutions_stay_in_float():
    text = "g (float[N, 3, 8, 8] x) => (float[N, 2, ?, ?] y) { a = Conv(x, w)  y = ConvTranspose(a, v) }"
    model = parse(text, CONV_ARRAYS | {"v": normal(4, 2, 3, 3)})
    found = quantize(model, images())
    assert found.quantized == ("a",)
    assert "no INT8 kernel" in reasons(found)["y"]
    assert_works(found, model, images())


SHARED = """g (float[N, 6] x) => (float[N, 6] y, float[N, 6] z) {
    a = Relu(x)  y = MatMul(x, w)  z = MatMul(a, w) }"""


def test_an_excluded_layer_stays_in_float_with_its_weight():
    model, samples = parse(SHARED, {"w": normal(6, 6)}), {"x": normal(24, 6)}
    found = quantize(model, samples, exclude={"z": "it was asked to stay in float"})
    assert found.quantized == ("y",)
    assert reasons(found) == {"z": "it was asked to stay in float"}
    multiplied = {node.output[0]: node for node in found.model.graph.node if node.op_type == "MatMul"}
    assert multiplied["z"].input[1] == "w"
    assert_works(found, model, samples)


def test_layers_may_share_a_weight():
    model, samples = parse(SHARED, {"w": normal(6, 6)}), {"x": normal(24, 6)}
    found = quantize(model, samples)
    assert found.quantized == ("y", "z")
    assert_works(found, model, samples)


def test_an_unknown_node_to_exclude_gets_a_suggestion():
    with pytest.raises(UsageError, match="did you mean 'y'"):
        quantize(parse(ONE_CONV, CONV_ARRAYS), images(), exclude={"yy": "it was asked to stay in float"})


def test_too_few_samples_for_a_fixed_batch():
    fixed = parse(ONE_CONV.replace("float[N, 3", "float[8, 3"), CONV_ARRAYS)
    with pytest.raises(UsageError, match="batches of 8 samples and there are 5"):
        quantize(fixed, images(5))


def test_a_file_that_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"none\.onnx"):
        quantize(tmp_path / "none.onnx", images())


def test_external_weights_are_read_from_a_path(tmp_path):
    model, path = parse(ONE_CONV, CONV_ARRAYS), tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="data", size_threshold=0)
    found = quantize(path, images())
    assert_works(found, parse(ONE_CONV, CONV_ARRAYS), images())
    with pytest.raises(ModelError, match="load the model from its path"):
        quantize(onnx.load(path, load_external_data=False), images())


def test_tensors_that_are_not_finite_stay_in_float():
    text = """g (float[N, 6] x) => (float[N, 6] y) {
        a = MatMul(x, w)  b = Mul(a, l)  c = Mul(b, l)  y = MatMul(c, w) }"""
    found = quantize(parse(text, {"w": normal(6, 6), "l": np.float32(-1e30)}), {"x": normal(24, 6)})
    assert "not finite" in reasons(found)["y"]


def test_rare_outliers_do_not_take_the_steps_of_the_bulk(monkeypatch):
    text = ONE_CONV.replace("8", "32")
    model, samples, typical = parse(text, CONV_ARRAYS), images(64, side=32), images(8, side=32, seed=1)
    samples["x"][5, 1, 2, 3] = 60.0
    with_percentiles = error(quantize(model, samples), model, typical)
    monkeypatch.setattr(int8_ranges, "PERCENTAGES", (int8_ranges.ALL,))
    assert with_percentiles < error(quantize(model, samples), model, typical) / 3


def test_seven_bits_where_products_of_eight_saturate(monkeypatch):
    monkeypatch.setattr(int8_build, "int8_saturates", lambda: True)
    found = quantize(parse(ONE_CONV, CONV_ARRAYS), images())
    weight = next(t for t in found.model.graph.initializer if list(t.dims) == [4, 3, 3, 3])
    assert np.abs(numpy_helper.to_array(weight)).max() <= 64


@pytest.mark.parametrize(
    ("processor", "flags", "features", "saturates"),
    [
        ("x86_64", {"avx2"}, {"AVX512F": True}, True),
        ("x86_64", {"avx2", "avx_vnni"}, {}, False),
        ("x86_64", {"avx512_vnni"}, {}, False),
        ("AMD64", set(), {"AVX512VNNI": True}, False),
        ("AMD64", set(), {}, True),
        ("aarch64", set(), {}, False),
    ],
)
def test_products_saturate_on_x86_without_vnni(monkeypatch, processor, flags, features, saturates):
    monkeypatch.setattr(machine.platform, "machine", lambda: processor)
    monkeypatch.setattr(machine, "_cpu_flags", lambda: flags)
    monkeypatch.setattr(machine, "_cpu_features", lambda: features)
    assert machine.int8_saturates() is saturates


def test_a_model_that_comes_out_broken_is_not_handed_out(monkeypatch):
    def broken(self, names, percentage):
        built = build(self, names, percentage)
        scale = next(t for t in built.model.graph.initializer if t.name == "y_scale")
        scale.CopyFrom(numpy_helper.from_array(np.float32(np.nan), "y_scale"))
        return built

    build = int8_build.Int8Builder.build
    monkeypatch.setattr(int8_build.Int8Builder, "build", broken)
    found = quantize(parse(ONE_CONV, CONV_ARRAYS), images())
    assert found.model is None
    assert "not finite" in found.reason
    assert reasons(found) == {"y": "the quantized model does not work"}


N_CHAIN = 9
CHAIN = (
    "g (float[N, 6] x) => (float[N, 6] y) {"
    + "".join(f"t{i + 1} = MatMul({f't{i}' if i else 'x'}, w{i})  " for i in range(N_CHAIN - 1))
    + f"y = MatMul(t{N_CHAIN - 1}, w{N_CHAIN - 1}) }}"
)


def chain() -> onnx.ModelProto:
    """Make nine matrices; the fifth has a huge column, which the sixth takes out again."""
    rng = np.random.default_rng(0)
    weights = [np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32) for _ in range(N_CHAIN)]
    weights[4][:, 0] *= 1e3
    weights[5][0] *= 1e-3
    return parse(CHAIN, {f"w{i}": w for i, w in enumerate(weights)})


class Loss:
    """The error of a model's outputs, counting its calls."""

    def __init__(self, model, samples) -> None:
        self.calls: list[float] = []
        self._samples = samples
        self._expected = outputs_over(model, samples)["y"]

    def __call__(self, model: onnx.ModelProto) -> float:
        self.calls.append(output_error(self._expected, outputs_over(model, self._samples)["y"]))
        return self.calls[-1]


VECTORS, HELD_OUT = {"x": normal(64, 6)}, {"x": normal(64, 6, seed=1)}


def test_search_takes_everything_within_the_budget_at_once():
    loss = Loss(chain(), HELD_OUT)
    found = search_int8(chain(), VECTORS, loss, inf)
    assert (len(found.quantized), len(loss.calls)) == (N_CHAIN, 1)


def test_search_leaves_the_sensitive_layers_in_float():
    loss = Loss(chain(), HELD_OUT)
    found = search_int8(chain(), VECTORS, loss, INT8_ERROR)
    assert loss.calls[0] > INT8_ERROR
    assert Loss(chain(), HELD_OUT)(found.model) <= INT8_ERROR
    assert {"t5", "t6"} <= reasons(found).keys()
    assert "beyond 0.1" in reasons(found)["t5"]
    assert len(found.quantized) + len(found.kept) == N_CHAIN
    assert len(found.quantized) >= N_CHAIN - 4


@pytest.mark.parametrize("budget", [0.0, 0.02, 0.05, 0.3])
def test_search_bounds_its_evaluations_and_keeps_its_budget(budget):
    loss = Loss(chain(), HELD_OUT)
    found = search_int8(chain(), VECTORS, loss, budget)
    assert len(loss.calls) <= 1 + ceil(log2(N_CHAIN))
    assert found.model is None or Loss(chain(), HELD_OUT)(found.model) <= budget


@pytest.mark.parametrize("jobs", [2, 3])
def test_the_model_is_the_same_for_any_number_of_jobs(jobs):
    def loss(model):
        return float(sum(node.op_type == "QuantizeLinear" for node in model.graph.node) > 2)

    alone, beside = (search_int8(chain(), VECTORS, loss, 0.5, jobs=n) for n in (1, jobs))
    assert alone.kept
    assert alone == beside


def test_search_says_what_is_lost_when_no_layer_fits():
    found = search_int8(chain(), VECTORS, lambda model: 0.25, 0.1)
    assert found.model is None
    assert found.reason == "INT8 loses at least 0.25 and the budget is 0.1."
    assert len(found.kept) == N_CHAIN


def test_search_takes_nothing_that_is_not_faster():
    seen: list[onnx.ModelProto] = []
    found = search_int8(
        chain(), VECTORS, lambda model: 0.0, 0.1, faster=lambda quick, slow: bool(seen.append(quick))
    )
    assert found.model is None
    assert found.reason == "With 9 of 9 nodes in INT8 the model is not faster."
    assert found.quantized == ()


def once_within():
    """Return a loss that is within the budget the first time only."""
    losses = iter([0.0])
    return lambda model: next(losses, 1.0)


def test_nodes_that_are_faster_in_float_stay_there_while_the_budget_holds(monkeypatch):
    monkeypatch.setattr("onnxdecomp.runtime.int8.quantize.MAX_TRIMMED", 2)

    def n_quantizers(model) -> int:
        return sum(node.op_type == "QuantizeLinear" for node in read_proto(model).graph.node)

    def fewer(quick, slow) -> bool:  # a clock for which every quantizer costs, and float is slow
        return n_quantizers(slow) == 0 or n_quantizers(quick) < n_quantizers(slow)

    found = search_int8(chain(), VECTORS, lambda model: 0.0, 0.1, faster=fewer)
    trimmed = [key for key, reason in found.kept if reason == "float is faster"]
    assert len(trimmed) == 2
    assert len(found.quantized) == N_CHAIN - 2
    spent = search_int8(chain(), VECTORS, once_within(), 0.1, faster=fewer)
    assert len(spent.quantized) == N_CHAIN


def test_search_hands_on_why_a_model_cannot_be_quantized():
    relu = parse("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    found = search_int8(relu, {"x": normal(8, 4)}, lambda model: 0.0, 0.1)
    assert found.reason == "The model has no Conv, Gemm or MatMul."


def test_a_trained_network_keeps_its_accuracy_at_a_quarter_of_its_size():
    folder = Path(__file__).parents[3] / "models"
    model = onnx.load(folder / "song_mnist.onnx")
    with np.load(folder / "calibration" / "mnist.npz") as file:
        samples = {"image": file["image"].astype(np.float32)}
    with np.load(folder / "evaluation" / "mnist.npz") as file:
        held_out, labels = {"image": file["image"].astype(np.float32)}, file["labels"]
    found = quantize(model, samples)
    before, after = (
        np.mean(outputs_over(m, held_out)["scores"].argmax(1) == labels) for m in (model, found.model)
    )
    assert len(found.quantized) == 4
    assert after >= before - 0.003
    assert found.model.ByteSize() < 0.26 * model.ByteSize()
