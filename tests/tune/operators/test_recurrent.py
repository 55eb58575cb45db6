"""Recurrent layers over a grid of attributes, against onnxruntime and finite differences."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from tests.graph.models import normal
from tests.tune.checks import assert_gradients, assert_parity, one_node

TIME, BATCH, INPUT, HIDDEN = 5, 3, 4, 2
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
PLAIN: dict[str, Any] = {}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "RNN": [PLAIN, {"clip": 0.3}],
    "GRU": [PLAIN, {"clip": 0.3}, {"linear_before_reset": 1}],
    "LSTM": [PLAIN, {"clip": 0.3}, {"input_forget": 1}],
}
OTHER_FUNCTIONS = {
    "RNN": ["Relu"], "GRU": ["HardSigmoid", "Softsign"], "LSTM": ["HardSigmoid", "ScaledTanh", "Relu"],
}  # fmt: skip


def inputs_of(op_type: str, n: int, dtype: type = np.float32, *, optional: bool = True) -> dict[str, Any]:
    rows = GATES[op_type] * HIDDEN
    inputs: dict[str, Any] = {
        "x": normal(TIME, BATCH, INPUT, dtype=dtype),
        "w": normal(n, rows, INPUT, dtype=dtype),
        "r": normal(n, rows, HIDDEN, dtype=dtype),
    }
    if optional:
        inputs |= {
            "b": normal(n, 2 * rows, dtype=dtype),
            "lengths": np.array([5, 2, 4], np.int32),
            "h": normal(n, BATCH, HIDDEN, dtype=dtype, seed=3),
        }
        if op_type == "LSTM":
            inputs |= {
                "c": normal(n, BATCH, HIDDEN, dtype=dtype, seed=4),
                "p": normal(n, 3 * HIDDEN, dtype=dtype),
            }
    return inputs


def layer(op_type: str, inputs: dict[str, Any], direction: str, **attributes: Any) -> Any:
    outputs = 3 if op_type == "LSTM" else 2
    return one_node(
        op_type, inputs, opset=14, outputs=outputs, hidden_size=HIDDEN, direction=direction, **attributes
    )


@pytest.mark.parametrize(
    ("op_type", "variant"), [(op_type, n) for op_type, v in VARIANTS.items() for n in range(len(v))]
)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_recurrent_layer_is_that_of_onnxruntime(op_type: str, variant: int, direction: str) -> None:
    inputs = inputs_of(op_type, DIRECTIONS[direction])
    assert_parity(layer(op_type, inputs, direction, **VARIANTS[op_type][variant]), inputs)


@pytest.mark.parametrize(("op_type", "direction"), list(product(GATES, DIRECTIONS)))
def test_optional_inputs_may_be_left_out(op_type: str, direction: str) -> None:
    inputs = inputs_of(op_type, DIRECTIONS[direction], optional=False)
    assert_parity(layer(op_type, inputs, direction), inputs)


@pytest.mark.parametrize("op_type", GATES)
def test_other_activations_are_those_of_onnxruntime(op_type: str) -> None:
    inputs = inputs_of(op_type, 2)
    names = OTHER_FUNCTIONS[op_type] * 2
    numbers = {"activation_alpha": [0.3] * 4, "activation_beta": [0.4] * 4} if op_type != "RNN" else {}
    assert_parity(layer(op_type, inputs, "bidirectional", activations=names, **numbers), inputs)


@pytest.mark.parametrize(("op_type", "direction"), list(product(GATES, DIRECTIONS)))
def test_gradients_are_central_differences(op_type: str, direction: str) -> None:
    inputs = inputs_of(op_type, DIRECTIONS[direction], np.float64)
    assert_gradients(layer(op_type, inputs, direction), inputs)
