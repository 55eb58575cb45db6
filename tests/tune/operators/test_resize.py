"""Resize over a grid of attributes, against onnxruntime and finite differences."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from tests.graph.models import normal
from tests.tune.checks import assert_gradients, assert_parity, one_node

MODES = ["nearest", "linear", "cubic"]
COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]
TARGETS: dict[str, tuple[str, list[float]]] = {
    "twice": ("scales", [1, 1, 2, 2]),
    "up by fractions": ("scales", [1, 1, 1.7, 2.3]),
    "down by fractions": ("scales", [1, 1, 0.6, 0.45]),
    "to sizes": ("sizes", [1, 2, 9, 4]),
    "to one": ("sizes", [1, 2, 1, 3]),
}
ROUNDINGS = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


def inputs_of(target: str, dtype: type = np.float32) -> dict[str, Any]:
    kind, numbers = TARGETS[target]
    inputs: dict[str, Any] = {
        "x": normal(1, 2, 6, 7, dtype=dtype),
        "roi": None,
        "scales": None,
        "sizes": None,
    }
    return inputs | {kind: np.array(numbers, np.float32 if kind == "scales" else np.int64)}


def resize(inputs: dict[str, Any], **attributes: Any) -> Any:
    given = dict(list(inputs.items())[: 4 if inputs["sizes"] is not None else 3])
    return one_node("Resize", given, opset=19, ir=9, **attributes)


@pytest.mark.parametrize(("mode", "coordinates", "target"), list(product(MODES, COORDINATES, TARGETS)))
def test_resize_is_that_of_onnxruntime(mode: str, coordinates: str, target: str) -> None:
    inputs = inputs_of(target)
    assert_parity(resize(inputs, mode=mode, coordinate_transformation_mode=coordinates), inputs)


@pytest.mark.parametrize(
    ("rounding", "coordinates", "target"), list(product(ROUNDINGS, COORDINATES, TARGETS))
)
def test_rounding_of_places_is_that_of_onnxruntime(rounding: str, coordinates: str, target: str) -> None:
    inputs = inputs_of(target)
    model = resize(inputs, nearest_mode=rounding, coordinate_transformation_mode=coordinates)
    assert_parity(model, inputs)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("outside", [0, 1])
def test_cubic_edges_are_those_of_onnxruntime(outside: int, target: str) -> None:
    inputs = inputs_of(target)
    assert_parity(resize(inputs, mode="cubic", exclude_outside=outside, cubic_coeff_a=-0.5), inputs)


@pytest.mark.parametrize("target", ["down by fractions", "to sizes"])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_antialias_is_that_of_onnxruntime(mode: str, target: str) -> None:
    inputs = inputs_of(target)
    assert_parity(resize(inputs, mode=mode, antialias=1), inputs)


@pytest.mark.parametrize("factors", [[1, 1, 2, 2], [1, 1, 3, 1.5]])
@pytest.mark.parametrize("op_type", ["Upsample", "Resize"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_before_operator_set_11_it_is_that_of_onnxruntime(
    mode: str, op_type: str, factors: list[float]
) -> None:
    inputs = {"x": normal(1, 2, 6, 7), "scales": np.array(factors, np.float32)}
    opset = 9 if op_type == "Upsample" else 10
    assert_parity(one_node(op_type, inputs, opset=opset, mode=mode), inputs)


@pytest.mark.parametrize(("mode", "target"), list(product(MODES, TARGETS)))
def test_gradients_are_central_differences(mode: str, target: str) -> None:
    inputs = inputs_of(target, np.float64)
    fed = {name: array for name, array in inputs.items() if array is not None}
    assert_gradients(resize(inputs, mode=mode), fed, ["x"])
