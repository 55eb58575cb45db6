"""The check that comes before training."""

import numpy as np
import onnx
import pytest
import torch

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.io import load
from onnxdecomp.tune.network import Network
from onnxdecomp.tune.parity import HALF_PARITY, PARITY, check_forward
from onnxdecomp.tune.registry import OPERATORS
from tests.asserts import assert_sentence
from tests.graph.models import normal, parse

TEXT = """m (float[2, 4] x) => (float[2, 5] y, int64[2] best) {
    y = MatMul(x, w)
    best = ArgMax<axis = 1, keepdims = 0>(y)
}"""
FEEDS = {"x": normal(2, 4)}


def model(dtype: str = "float") -> onnx.ModelProto:
    array = normal(4, 5).astype(np.float16 if dtype == "float16" else np.float32)
    return parse(TEXT.replace("float[", f"{dtype}["), {"w": array})


def test_a_network_that_agrees_says_by_how_much() -> None:
    source = load(model())
    assert 0 <= check_forward(Network(source), source, FEEDS) <= PARITY


@pytest.mark.parametrize("off", [1.001, float("nan")])
def test_a_network_that_does_not_agree_is_refused(off: float, monkeypatch: pytest.MonkeyPatch) -> None:
    product = OPERATORS["MatMul"]
    monkeypatch.setitem(OPERATORS, "MatMul", lambda node, a, b: off * product(node, a, b))
    source = load(model())
    with pytest.raises(ModelError, match="output 'y' differs by") as caught:
        check_forward(Network(source), source, FEEDS)
    assert_sentence(str(caught.value))


def test_another_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS, "MatMul", lambda node, a, b: (a @ b)[:1])
    source = load(model())
    with pytest.raises(ModelError, match="differs by inf"):
        check_forward(Network(source), source, FEEDS)


def test_trained_numbers_are_no_longer_those_of_the_model() -> None:
    source = load(model())
    network = Network(source)
    with torch.no_grad():
        network.parameters["w"].mul_(1.01)
    with pytest.raises(ModelError, match="differs"):
        check_forward(network, source, FEEDS)


def test_a_model_in_float16_may_differ_by_its_rounding() -> None:
    source = load(model("float16"))
    error = check_forward(Network(source), source, {"x": FEEDS["x"].astype(np.float16)})
    assert 0 < error <= HALF_PARITY
