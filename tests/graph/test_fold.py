"""What follows a convolution and only scales or shifts its channels becomes part of it."""

import numpy as np
import onnx
import pytest

from tests.graph.models import assert_rewritten_equal, find, normal, parse, rewrite, single_step

CONSTANTS = {
    "w": normal(6, 4, 3, 3),
    "b": normal(6),
    "gamma": normal(6, seed=1),
    "beta": normal(6, seed=2),
    "mean": normal(6, seed=3),
    "var": np.abs(normal(6, seed=4)) + 0.1,
    "channel": normal(6, 1, 1),
    "batch": normal(1, 6, 1, 1),
    "one": normal(1),
    "scalar": np.float32(1.5).reshape(()),
    "column": normal(6, 8, 8),
    "row": normal(8),
    "transposed": normal(4, 6, 3, 3),
}
FEEDS = {"x": normal(1, 4, 8, 8)}
BN = "t, gamma, beta, mean, var"
CONV = "Conv<pads=[1,1,1,1]>"


def model(body: str, *, opset: int = 17, more_outputs: str = "") -> onnx.ModelProto:
    used = {
        name: array
        for name, array in CONSTANTS.items()
        if name in body.replace("(", " ").replace(",", " ").replace(")", " ").split()
    }
    return parse(f"g (float[1,4,8,8] x) => (float[1,6,8,8] y{more_outputs}) {{ {body} }}", used, opset=opset)


FOLDED = {
    "batch normalization": f"t = {CONV}(x, w, b) y = BatchNormalization<epsilon=0.1>({BN})",
    "without a bias": f"t = {CONV}(x, w) y = BatchNormalization({BN})",
    "mul per channel": f"t = {CONV}(x, w, b) y = Mul(t, channel)",
    "mul from the left": f"t = {CONV}(x, w, b) y = Mul(batch, t)",
    "mul by a number": f"t = {CONV}(x, w, b) y = Mul(t, scalar)",
    "add per channel": f"t = {CONV}(x, w) y = Add(t, channel)",
    "add one number": f"t = {CONV}(x, w, b) y = Add(one, t)",
    "all of them": (
        f"t = {CONV}(x, w, b) u = Mul(t, channel) v = BatchNormalization(u, gamma, beta, mean, var)"
        " z = Add(v, batch) y = Mul(z, scalar)"
    ),
    "transposed convolution": (
        f"t = ConvTranspose<pads=[1,1,1,1]>(x, transposed, b) y = BatchNormalization({BN})"
    ),
    "a constant behind nodes": (
        f"t = {CONV}(x, w, b) a = Constant<value_ints=[1,2]>() c = Unsqueeze(gamma, a) y = Mul(t, c)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("opset", [7, 9, 13, 17])
@pytest.mark.parametrize("case", FOLDED)
def test_what_scales_or_shifts_channels_is_folded(case: str, opset: int) -> None:
    if case == "a constant behind nodes":
        opset = max(opset, 13)
    proto = model(FOLDED[case], opset=opset)
    rewritten = rewrite(proto, single_step)
    assert [node.op_type for node in rewritten.graph.node] == [proto.graph.node[0].op_type]
    assert list(rewritten.graph.node[0].output) == ["y"]
    assert len(rewritten.graph.initializer) == 2
    assert_rewritten_equal(proto, FEEDS)


KEPT = {
    "operand per pixel": f"t = {CONV}(x, w, b) y = Add(t, column)",
    "operand per column": f"t = {CONV}(x, w, b) y = Add(t, row)",
    "operand that is computed": f"t = {CONV}(x, w, b) s = ReduceMean(x) y = Mul(t, s)",
    "two users": f"t = {CONV}(x, w, b) r = Relu(t) u = Mul(t, channel) y = Add(u, r)",
    "used twice by one node": f"t = {CONV}(x, w, b) y = Mul(t, t)",
    "something between": f"t = {CONV}(x, w, b) r = Relu(t) y = Mul(r, channel)",
    "bias that is computed": f"s = Relu(b) t = {CONV}(x, w, s) y = Mul(t, channel)",
    "shared weight": f"t = {CONV}(x, w, b) u = {CONV}(x, w) v = Mul(t, channel) y = Add(v, u)",
    "operand of higher rank": f"t = {CONV}(x, w, b) y = Div(t, channel)",
}


@pytest.mark.parametrize("case", KEPT)
def test_anything_else_stays_behind_the_chain(case: str) -> None:
    proto = model(KEPT[case])
    rewritten = rewrite(proto, single_step)
    assert [node.op_type for node in rewritten.graph.node] == [node.op_type for node in proto.graph.node]
    assert_rewritten_equal(proto, FEEDS)


def test_an_output_of_the_model_is_not_folded_away() -> None:
    proto = model(f"t = {CONV}(x, w, b) y = Mul(t, channel)", more_outputs=", float[1,6,8,8] t")
    assert [output.name for output in rewrite(proto).graph.output] == ["y", "t"]
    assert_rewritten_equal(proto, FEEDS)


def test_a_batch_normalization_that_trains_is_not_folded() -> None:
    body = f"t = {CONV}(x, w, b) y, m, v = BatchNormalization<training_mode=1>(t, gamma, beta, mean, var)"
    (group,) = find(model(body)).groups
    assert group.sites[0].tail is None


def test_a_constant_of_the_tail_stays_when_another_node_uses_it() -> None:
    proto = model(f"t = {CONV}(x, w, b) u = Mul(t, channel) r = Relu(u) y = Add(r, channel)")
    assert "channel" in [tensor.name for tensor in rewrite(proto).graph.initializer]
    assert_rewritten_equal(proto, FEEDS)


def test_the_folded_bias_is_handed_out_and_an_untouched_one_is_not() -> None:
    (folded,) = find(model(f"t = {CONV}(x, w, b) y = Mul(t, scalar)")).groups
    (plain,) = find(model(f"y = {CONV}(x, w, b)")).groups
    np.testing.assert_allclose(folded.bias(), 1.5 * CONSTANTS["b"].astype(np.float64))
    assert plain.bias() is None


def test_a_layer_that_is_not_replaced_keeps_its_batch_normalization() -> None:
    proto = model(FOLDED["batch normalization"])
    assert rewrite(proto, None) == proto
