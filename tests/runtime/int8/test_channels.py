from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.runtime.int8.channels import CHANNEL_BLOCK, pad_channels
from onnxdecomp.runtime.int8.quantize import quantize, search_int8
from onnxdecomp.runtime.session import open_session, run
from tests.graph.models import normal, parse

ONE_STEP = 1 / 127
"""What the rounding of a value to 8 bits may come to, of the largest."""


def quantized(text: str, arrays, samples) -> onnx.ModelProto:
    model = parse(text, arrays)
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}{number}"
    found = quantize(model, samples)
    assert found.model is not None, found.reason
    return found.model


def with_padded_channels(model: onnx.ModelProto) -> tuple[onnx.ModelProto, set[str]]:
    padded = onnx.ModelProto()
    padded.CopyFrom(model)
    return padded, pad_channels(padded)


def weight_channels(model: onnx.ModelProto) -> list[int]:
    """Return the input channels of the weights in INT8."""
    return [
        t.dims[1] for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 2
    ]


def assert_same_outputs(model: onnx.ModelProto, padded: onnx.ModelProto, feeds) -> None:
    onnx.checker.check_model(padded, full_check=True)
    for optimize in (False, True):
        expected, got = (run(open_session(m, optimize=optimize), feeds) for m in (model, padded))
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, atol=ONE_STEP * np.abs(value).max())


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 9),
    outputs=st.sampled_from([1, 4, 6, 16]),
    kernel=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
)
def test_outputs_stay_the_same(channels, outputs, kernel, stride, dilation, padding):
    n_axes = len(kernel)
    attributes = {
        "strides": [stride] * n_axes,
        "dilations": [dilation] * n_axes,
        "pads": [padding] * 2 * n_axes,
    }
    options = ", ".join(f"{name}={values}" for name, values in attributes.items())
    sides = ", ".join("9" * n_axes)
    text = f"""g (float[N, {channels}, {sides}] x) => (float[N, {outputs}, {", ".join("?" * n_axes)}] y) {{
        y = Conv<{options}>(x, w, b) }}"""
    samples = {"x": normal(8, channels, *[9] * n_axes)}
    model = quantized(text, {"w": normal(outputs, channels, *kernel), "b": normal(outputs)}, samples)
    padded, names = with_padded_channels(model)
    assert bool(names) == (channels % CHANNEL_BLOCK > 0)
    assert weight_channels(padded) == [-(-channels // CHANNEL_BLOCK) * CHANNEL_BLOCK]
    assert_same_outputs(model, padded, samples)


SIDES = "8, 8"
TWO_READERS = f"""g (float[N, 3, {SIDES}] x) => (float[N, 16, ?, ?] y, float[N, 16, ?, ?] z) {{
    y = Conv(x, w)  z = Conv<pads=[1, 1, 1, 1]>(x, v) }}"""


@pytest.mark.parametrize("shared", [False, True])
def test_convolutions_may_share_their_input_and_their_weight(shared):
    text = TWO_READERS.replace("(x, v)", "(x, w)") if shared else TWO_READERS
    arrays = {name: normal(16, 3, 3, 3, seed=seed) for seed, name in enumerate("w" if shared else "wv")}
    samples = {"x": normal(8, 3, 8, 8)}
    model = quantized(text, arrays, samples)
    padded, names = with_padded_channels(model)
    assert len(names) == 2
    assert weight_channels(padded) == [CHANNEL_BLOCK, CHANNEL_BLOCK]
    assert_same_outputs(model, padded, samples)


def test_what_else_reads_the_input_sees_it_as_it_was():
    text = """g (float[N, 3, 8, 8] x) => (float[N, 3, ?, ?] z, float[N, 16, ?, ?] y) {
        a = Conv(x, v)  b = Conv(a, w)  z = MaxPool<kernel_shape=[2, 2]>(a)  y = Relu(b) }"""
    samples = {"x": normal(8, 3, 8, 8)}
    model = quantized(text, {"v": normal(3, 3, 1, 1), "w": normal(16, 3, 3, 3)}, samples)
    padded, names = with_padded_channels(model)
    assert len(names) == 2
    assert_same_outputs(model, padded, samples)


@pytest.mark.parametrize(
    ("options", "weight"), [("", (16, 8, 3, 3)), ("group=2", (16, 3, 3, 3)), ("group=6", (6, 1, 3, 3))]
)
def test_blocks_and_groups_are_left_alone(options, weight):
    channels = 8 if not options else 6
    conv = f"Conv<{options}>" if options else "Conv"
    text = f"g (float[N, {channels}, 8, 8] x) => (float[N, {weight[0]}, ?, ?] y) {{ y = {conv}(x, w) }}"
    model = quantized(text, {"w": normal(*weight)}, {"x": normal(8, channels, 8, 8)})
    padded, names = with_padded_channels(model)
    assert not names
    assert padded == model


def test_names_are_new():
    samples = {"x": normal(8, 3, 8, 8)}
    model = quantized(TWO_READERS, {"w": normal(16, 3, 3, 3), "v": normal(16, 3, 3, 3, seed=1)}, samples)
    pad = next(node for node in with_padded_channels(model)[0].graph.node if node.op_type == "Pad")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), pad.output[0]))
    padded, _ = with_padded_channels(model)
    made = Counter(name for n in padded.graph.node for name in n.output)
    made.update(t.name for t in padded.graph.initializer)
    assert max(made.values()) == 1
    assert max(Counter(n.name for n in padded.graph.node).values()) == 1


def kinds(model) -> set[str]:
    return {node.op_type for node in model.graph.node} if isinstance(model, onnx.ModelProto) else set()


@pytest.mark.parametrize("is_faster", [False, True])
def test_search_pads_where_that_is_faster(is_faster):
    def faster(quick, slow) -> bool:  # a clock for which anything in INT8 is fast
        if "QuantizeLinear" not in kinds(slow):
            return True
        return is_faster and "Pad" in kinds(quick) - kinds(slow)

    text = "g (float[N, 3, 8, 8] x) => (float[N, 16, ?, ?] y) { y = Conv(x, w) }"
    model, samples = parse(text, {"w": normal(16, 3, 3, 3)}), {"x": normal(24, 3, 8, 8)}
    found = search_int8(model, samples, lambda model: 0.0, 0.1, faster=faster)
    assert ("Pad" in kinds(found.model)) == is_faster
    assert found.padded == (("y",) if is_faster else ())
