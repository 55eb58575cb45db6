from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.runtime.compare import output_error
from onnxdecomp.runtime.evaluate import outputs_over
from onnxdecomp.runtime.int8.normalization import normalizations, to_convolutions
from onnxdecomp.runtime.int8.quantize import quantize
from onnxdecomp.runtime.session import open_session, run
from tests.graph.models import normal, parse

BEHIND_RELU = """g (float[N, 3, 12, 12] x) => (float[N, 16, ?, ?] y) {
    a = Conv(x, w)  r = Relu(a)  n = BatchNormalization(r, scale, shift, mean, var)  y = Conv(n, v) }"""
BEFORE_RELU = """g (float[N, 3, 12, 12] x) => (float[N, 16, ?, ?] y) {
    a = Conv(x, w)  p = MaxPool<kernel_shape=[2, 2]>(a)
    n = BatchNormalization<epsilon = 0.5>(p, scale, shift, mean, var)  r = Relu(n)  y = Conv(r, v) }"""


def statistics(channels: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    numbers = {
        "scale": rng.normal(size=channels),  # some are negative
        "shift": rng.normal(size=channels),
        "mean": rng.normal(size=channels),
        "var": rng.uniform(0.5, 2, channels),
    }
    return {name: np.float32(array) for name, array in numbers.items()}


def model(text: str) -> onnx.ModelProto:
    arrays = {"w": normal(16, 3, 3, 3), "v": normal(16, 16, 3, 3)}
    proto = parse(text, arrays | statistics())
    for node in proto.graph.node:
        node.name = node.output[0]
    return onnx.shape_inference.infer_shapes(proto)


def operators(proto: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in proto.graph.node}


@pytest.mark.parametrize("text", [BEHIND_RELU, BEFORE_RELU])
def test_what_stands_between_layers_in_int8_runs_in_int8(text, tmp_path):
    original, samples = model(text), {"x": normal(24, 3, 12, 12)}
    found = quantize(original, samples)
    assert found.quantized == ("a", "y")
    assert "BatchNormalization" not in operators(found.model)
    session = open_session(found.model, profile_prefix=tmp_path / "profile")
    run(session, {"x": samples["x"][:1]})
    profile = Path(session.end_profiling()).read_text()
    assert profile.count('"op_name" : "QLinearConv"') == 3
    assert '"op_name" : "BatchNormalization"' not in profile
    expected, got = (outputs_over(m, samples)["y"] for m in (original, found.model))
    assert output_error(expected, got) < 0.1
    used = {name for node in found.model.graph.node for name in node.input}
    assert {tensor.name for tensor in found.model.graph.initializer} <= used


def test_behind_a_layer_in_float_it_stays_what_it_is():
    found = quantize(
        model(BEHIND_RELU), {"x": normal(24, 3, 12, 12)}, exclude={"a": "it was asked to stay in float"}
    )
    assert found.quantized == ("y",)
    assert "BatchNormalization" in operators(found.model)


@settings(max_examples=20, deadline=None)
@given(channels=st.integers(1, 5), n_axes=st.integers(1, 3), epsilon=st.sampled_from([None, 1e-3, 0.5]))
def test_the_convolution_computes_the_same(channels, n_axes, epsilon):
    sides = ", ".join("4" * n_axes)
    option = "" if epsilon is None else f"<epsilon = {epsilon}>"
    text = f"""g (float[2, {channels}, {sides}] x) => (float[2, {channels}, {sides}] y) {{
        y = BatchNormalization{option}(x, scale, shift, mean, var) }}"""
    proto = parse(text, statistics(channels))
    proto.graph.node[0].name = "norm"
    found = normalizations(proto)
    assert found == {"norm": n_axes}
    feeds = {"x": normal(2, channels, *[4] * n_axes)}
    before = run(open_session(proto), feeds)["y"]
    to_convolutions(proto, found)
    onnx.checker.check_model(proto, full_check=True)
    assert [(node.op_type, node.name) for node in proto.graph.node] == [("Conv", "norm")]
    np.testing.assert_allclose(run(open_session(proto), feeds)["y"], before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2, 3] x) => (float[2, 3] y) { y = BatchNormalization(x, scale, shift, mean, var) }",
        """g (float[2, 3, 4] x, float[3] scale) => (float[2, 3, 4] y) {
            y = BatchNormalization(x, scale, shift, mean, var) }""",
        """g (float[2, 3, 4] x) => (float[2, 3, 4] y, float[3] m, float[3] v) {
            y, m, v = BatchNormalization<training_mode = 1>(x, scale, shift, mean, var) }""",
    ],
    ids=["no spatial axis", "a factor that is an input", "training"],
)
def test_others_are_left_alone(text):
    numbers = statistics(3)
    arrays = {name: array for name, array in numbers.items() if f"float[3] {name}" not in text}
    assert normalizations(parse(text, arrays)) == {}


def test_one_that_divides_by_zero_is_left_alone():
    text = """g (float[2, 3, 4] x) => (float[2, 3, 4] y) {
        y = BatchNormalization<epsilon = 0.0>(x, scale, shift, mean, var) }"""
    assert normalizations(parse(text, statistics(3)))
    assert not normalizations(parse(text, statistics(3) | {"var": np.zeros(3, np.float32)}))
