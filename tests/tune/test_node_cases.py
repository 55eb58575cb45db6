"""The cases that onnx brings for testing backends, those of every registered operator, as one large grid."""

import warnings
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.backend.test.case import node as node_cases

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.io import load
from onnxdecomp.tune.elements import to_torch
from onnxdecomp.tune.network import Network

TOLERANCE = {16: 1e-5, 8: 1e-5, 4: 1e-5, 2: 1e-2, 1: 0.1}
"""Largest difference relative to the largest expected magnitude, by bytes of a float."""

FEWEST = 1600
"""How many cases pass at least; newer releases of onnx bring more."""

EXCEPTIONS = {
    "test_averagepool_2d_ceil_last_window_starts_on_pad": "four digits of the result are stated",
    "test_batchnorm_epsilon_training_mode": "uses statistics of the batch",
    "test_batchnorm_example_training_mode": "uses statistics of the batch",
    "test_bitshift_left_int32_overflow": "int32 stands for uint16, the type that shifts had at first",
    "test_bitwise_not_3d": "uint16 is held in int32",
    "test_equal_string": "compares text",
    "test_not_": "is of operator set 1",
    "test_resize_downsample_scales_cubic_align_corners": "onnxruntime places corners by whole lengths",
    "test_resize_downsample_scales_linear_align_corners": "onnxruntime places corners by whole lengths",
    "test_scan_sum": "is of operator set 8, where Scan had a batch axis",
    "test_training_dropout": "drops elements, which never happens here",
}
"""Beginnings of the names of cases that differ, and why."""

NARROW = ("FLOAT8", "FLOAT4", "UINT4", "INT4", "UINT2", "INT2", "e4m3fn", "e5m2", "float4", "int4", "int2")
"""Parts of the names of cases about elements of less than a byte or float8, which are held in wider types."""

CONVERSIONS = ("test_cast", "test_quantizelinear")


def may_differ(name: str) -> bool:
    narrow = name.startswith(CONVERSIONS) and any(part in name for part in NARROW)
    return narrow or name.startswith(tuple(EXCEPTIONS))


@cache
def outcomes() -> dict[str, str]:
    """Return what was wrong with each case, empty when nothing was; without those of missing operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generators of the cases divide by zero on purpose
        cases = node_cases.collect_testcases(None)
        return {case.name: found for case in cases if (found := outcome(case)) is not None}


def outcome(case: node_cases.TestCase) -> str | None:
    try:
        network = Network(load(case.model))
    except ModelError as error:
        return None if "operators yet" in str(error) else str(error)
    names = [value.name for value in case.model.graph.input]
    for inputs, outputs in case.data_sets:
        feeds = {name: tensors_of(value) for name, value in zip(names, inputs, strict=False)}
        try:
            with torch.no_grad():
                results = network(feeds)
        except ModelError as error:
            return str(error)
        for name, wanted in zip(network.outputs, outputs, strict=False):
            if found := difference(results[name], wanted):
                return f"{name}: {found}"
    return ""


def tensors_of(value: Any) -> Any:
    if isinstance(value, list):
        return [tensors_of(v) for v in value]
    if isinstance(value, onnx.TensorProto):
        value = onnx.numpy_helper.to_array(value)
    return None if value is None or np.asarray(value).dtype.kind in "OUS" else to_torch(np.asarray(value))


def difference(got: Any, wanted: Any) -> str:
    if wanted is None or isinstance(wanted, list):
        if wanted is None or len(got) != len(wanted):
            return "" if got is wanted else "something else than a sequence of that length"
        return next(filter(None, map(difference, got, wanted)), "")
    array = onnx.numpy_helper.to_array(wanted) if isinstance(wanted, onnx.TensorProto) else np.asarray(wanted)
    exact, close = tensors_of(array), got
    if exact is None or exact.shape != close.shape:
        return f"shape {tuple(close.shape)}"
    if not (exact.is_floating_point() or exact.is_complex()):
        return "" if torch.equal(exact.long(), close.long()) else "other integers"
    exact, close = exact.double(), close.double()
    finite = torch.isfinite(exact)
    same = torch.equal(exact[~finite].nan_to_num(7), close[~finite].nan_to_num(7))
    largest = float(exact[finite].abs().max()) if finite.any() else 0.0
    off = float((exact - close)[finite].abs().max()) if finite.any() else 0.0
    return "" if same and off <= TOLERANCE[array.dtype.itemsize] * largest else f"off by {off} of {largest}"


@pytest.mark.slow
def test_every_case_of_a_registered_operator_passes() -> None:
    wrong = {name: found for name, found in outcomes().items() if found and not may_differ(name)}
    assert wrong == {}


@pytest.mark.slow
def test_there_are_as_many_cases_as_we_say() -> None:
    assert sum(not found for found in outcomes().values()) >= FEWEST


@pytest.mark.slow
def test_no_exception_is_stated_in_vain() -> None:
    differing = [name for name, found in outcomes().items() if found]
    assert [start for start in EXCEPTIONS if not any(name.startswith(start) for name in differing)] == []
