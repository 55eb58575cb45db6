"""Pools over a grid of attributes, against onnxruntime and finite differences."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from tests.graph.models import normal
from tests.tune.checks import assert_gradients, assert_parity, one_node

WINDOWS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 3, 7, 8), {"kernel_shape": [3, 2]}),
    "strides": ((1, 2, 9, 8), {"kernel_shape": [2, 3], "strides": [2, 3]}),
    "padded": ((1, 2, 7, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "pads that differ": ((1, 2, 6, 7), {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [0, 2, 1, 1]}),
    "pads of one end": ((1, 2, 6, 7), {"kernel_shape": [2, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    "same upper": ((1, 2, 8, 9), {"kernel_shape": [3, 4], "strides": [2, 3], "auto_pad": "SAME_UPPER"}),
    "same lower": ((1, 2, 8, 9), {"kernel_shape": [3, 4], "strides": [2, 3], "auto_pad": "SAME_LOWER"}),
    "dilations": ((1, 2, 9, 9), {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [1, 1, 1, 1]}),
    "1-D": ((2, 3, 10), {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    "3-D": ((1, 2, 5, 5, 6), {"kernel_shape": [2, 3, 2], "strides": [2, 2, 3], "pads": [1, 1, 0, 0, 1, 1]}),
}
ROUNDING = {"floor": {}, "ceil": {"ceil_mode": 1}}
COUNTED = {"pads do not count": {}, "pads count": {"count_include_pad": 1}}


@pytest.mark.parametrize(("case", "rounding"), list(product(WINDOWS, ROUNDING)))
def test_max_pool_is_that_of_onnxruntime(case: str, rounding: str) -> None:
    shape, attributes = WINDOWS[case]
    inputs = {"x": normal(*shape)}
    assert_parity(one_node("MaxPool", inputs, **attributes, **ROUNDING[rounding]), inputs)


@pytest.mark.parametrize("storage_order", [0, 1])
@pytest.mark.parametrize("case", ["plain", "padded", "pads that differ", "pads of one end", "3-D"])
def test_places_of_the_largest_are_those_of_onnxruntime(case: str, storage_order: int) -> None:
    shape, attributes = WINDOWS[case]
    inputs = {"x": normal(*shape)}
    model = one_node("MaxPool", inputs, outputs=2, storage_order=storage_order, **attributes)
    assert_parity(model, inputs)


@pytest.mark.parametrize(("case", "rounding", "counted"), list(product(WINDOWS, ROUNDING, COUNTED)))
def test_average_pool_is_that_of_onnxruntime(case: str, rounding: str, counted: str) -> None:
    shape, attributes = WINDOWS[case]
    inputs = {"x": normal(*shape)}
    model = one_node(
        "AveragePool", inputs, opset=19, ir=9, **attributes, **ROUNDING[rounding], **COUNTED[counted]
    )
    assert_parity(model, inputs)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("case", WINDOWS)
def test_lp_pool_is_that_of_onnxruntime(case: str, p: int) -> None:
    shape, attributes = WINDOWS[case]
    inputs = {"x": normal(*shape)}
    assert_parity(one_node("LpPool", inputs, p=p, **attributes), inputs)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 5, 4), (1, 2, 3, 4, 3)], ids=["1-D", "2-D", "3-D"])
@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
def test_global_pools_are_those_of_onnxruntime(op_type: str, shape: tuple[int, ...]) -> None:
    inputs = {"x": normal(*shape)}
    assert_parity(one_node(op_type, inputs), inputs)


@pytest.mark.parametrize(("case", "rounding"), list(product(WINDOWS, ROUNDING)))
@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool"])
def test_gradients_are_central_differences(op_type: str, case: str, rounding: str) -> None:
    shape, attributes = WINDOWS[case]
    inputs = {"x": normal(*shape, dtype=np.float64)}
    assert_gradients(one_node(op_type, inputs, opset=19, ir=9, **attributes, **ROUNDING[rounding]), inputs)
