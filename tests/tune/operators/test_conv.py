"""Conv and ConvTranspose over a grid of attributes, against onnxruntime and finite differences."""

from typing import Any

import numpy as np
import pytest

from tests.graph.models import normal
from tests.tune.checks import assert_gradients, assert_parity, one_node

CONV: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 4, 7, 8), (6, 4, 3, 3), {}),
    "padded": ((1, 4, 7, 8), (6, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
    "pads that differ": ((1, 3, 6, 7), (4, 3, 3, 5), {"pads": [0, 3, 2, 1], "strides": [2, 1]}),
    "strides": ((1, 4, 9, 8), (6, 4, 3, 2), {"strides": [2, 3], "pads": [1, 0, 1, 0]}),
    "dilations": ((1, 4, 9, 9), (4, 4, 3, 2), {"dilations": [2, 3], "pads": [2, 1, 1, 2]}),
    "same upper": ((1, 4, 8, 9), (4, 4, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    "same lower": ((1, 4, 9, 8), (4, 4, 4, 3), {"auto_pad": "SAME_LOWER", "strides": [3, 2]}),
    "same upper, short": ((1, 2, 5, 6), (2, 2, 1, 2), {"auto_pad": "SAME_UPPER", "strides": [3, 3]}),
    "valid": ((1, 2, 6, 6), (2, 2, 3, 3), {"auto_pad": "VALID"}),
    "groups": ((1, 6, 6, 6), (6, 2, 3, 3), {"group": 3, "pads": [1, 0, 0, 1], "strides": [1, 2]}),
    "depthwise": ((1, 4, 7, 8), (4, 1, 3, 5), {"group": 4, "pads": [1, 2, 1, 2]}),
    "depthwise column, pads that differ": ((1, 4, 7, 4), (4, 1, 3, 1), {"group": 4, "pads": [2, 0, 1, 0]}),
    "multiplier": ((1, 3, 6, 6), (6, 1, 3, 3), {"group": 3, "pads": [1, 1, 0, 0]}),
    "1-D": ((2, 4, 11), (6, 4, 5), {"strides": [2], "pads": [2, 1], "dilations": [2]}),
    "1-D groups": ((2, 4, 9), (6, 2, 3), {"group": 2, "auto_pad": "SAME_LOWER", "strides": [2]}),
    "3-D": ((1, 3, 5, 5, 4), (4, 3, 3, 2, 2), {"pads": [1, 0, 1, 0, 1, 0], "strides": [2, 1, 1]}),
    "3-D groups": ((1, 4, 4, 5, 4), (4, 2, 2, 3, 2), {"group": 2, "dilations": [1, 1, 2]}),
}

TRANSPOSED: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 4, 4, 5), (4, 5, 3, 3), {}),
    "padded": ((1, 4, 4, 5), (4, 5, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "pads that differ": ((1, 3, 4, 3), (3, 4, 3, 4), {"strides": [2, 3], "pads": [1, 2, 0, 1]}),
    "output padding": ((1, 3, 4, 3), (3, 4, 3, 4),
                       {"strides": [2, 3], "pads": [1, 2, 0, 1], "output_padding": [1, 2]}),
    "output padding alone": ((1, 3, 4, 3), (3, 4, 3, 3), {"strides": [2, 2], "output_padding": [1, 1]}),
    "output shape": ((1, 3, 4, 3), (3, 4, 3, 3), {"strides": [2, 3], "output_shape": [9, 8]}),
    "larger output shape": ((1, 1, 3, 3), (1, 2, 3, 3), {"strides": [3, 2], "output_shape": [10, 8]}),
    "output shape, same upper": ((1, 3, 4, 3), (3, 4, 4, 4),
                                 {"strides": [2, 2], "output_shape": [8, 7], "auto_pad": "SAME_UPPER"}),
    "same upper": ((1, 3, 4, 3), (3, 4, 4, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "same lower": ((1, 3, 4, 3), (3, 4, 4, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "dilated groups": ((1, 6, 4, 4), (6, 2, 2, 3),
                       {"group": 3, "strides": [2, 1], "dilations": [1, 2], "output_padding": [1, 0]}),
    "depthwise": ((1, 4, 4, 4), (4, 1, 3, 3), {"group": 4, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "1-D": ((2, 3, 5), (3, 4, 4), {"strides": [3], "pads": [1, 2], "output_padding": [1]}),
    "3-D": ((1, 3, 3, 3, 3), (3, 2, 2, 3, 2), {"strides": [2, 1, 2], "output_padding": [1, 0, 0]}),
}  # fmt: skip


def inputs_of(op_type: str, case: str, dtype: type, *, biased: bool) -> dict[str, Any]:
    shape, weight, attributes = (CONV if op_type == "Conv" else TRANSPOSED)[case]
    channels = weight[0] if op_type == "Conv" else weight[1] * attributes.get("group", 1)
    inputs = {"x": normal(*shape, dtype=dtype), "w": normal(*weight, dtype=dtype, seed=1)}
    return inputs | ({"b": normal(channels, dtype=dtype, seed=2)} if biased else {})


@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("case", CONV)
def test_conv_is_that_of_onnxruntime(case: str, biased: bool) -> None:
    inputs = inputs_of("Conv", case, np.float32, biased=biased)
    assert_parity(one_node("Conv", inputs, **CONV[case][2]), inputs)


@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("case", TRANSPOSED)
def test_conv_transpose_is_that_of_onnxruntime(case: str, biased: bool) -> None:
    inputs = inputs_of("ConvTranspose", case, np.float32, biased=biased)
    assert_parity(one_node("ConvTranspose", inputs, **TRANSPOSED[case][2]), inputs)


@pytest.mark.parametrize("case", CONV)
def test_gradients_of_conv_are_central_differences(case: str) -> None:
    inputs = inputs_of("Conv", case, np.float64, biased=True)
    assert_gradients(one_node("Conv", inputs, **CONV[case][2]), inputs)


@pytest.mark.parametrize("case", TRANSPOSED)
def test_gradients_of_conv_transpose_are_central_differences(case: str) -> None:
    inputs = inputs_of("ConvTranspose", case, np.float64, biased=True)
    assert_gradients(one_node("ConvTranspose", inputs, **TRANSPOSED[case][2]), inputs)
