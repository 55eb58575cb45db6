"""Comparisons that say what differs; each has a test that it fails on a planted wrong model."""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxdecomp.graph.emit import layer_model
from onnxdecomp.layer import Layer, StepSpec, chain_macs, chain_params

Array = NDArray[np.floating]

TOLERANCES = {
    "float32 output": 1e-5,  # of two ways to compute the same in float32, relative to the largest output
    "exact": 1e-6,  # full rank, as weights in float64
    "error": 1e-6,  # a promised error against the recomposed one
    "rounding": 1e-9,  # by how much a curve that falls may seem to rise
}
"""What "equal" means, by what is compared."""


def run_model(model: onnx.ModelProto, feeds: dict[str, Array], *, optimize: bool) -> list[Array]:
    """Run a model in onnxruntime on one thread."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, feeds)
    return outputs


def assert_close(actual: Array, expected: Array, tolerance: float) -> None:
    """Fail unless shapes agree and no entry is off by more than `tolerance` of the largest expected one."""
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    assert np.all(np.isfinite(actual)), "not all entries are finite"
    if expected.size == 0:
        return
    distance = float(np.max(np.abs(np.asarray(actual, np.float64) - expected)))
    largest = float(np.max(np.abs(expected)))
    assert distance <= tolerance * largest, f"off by {distance:.2e}, where the largest value is {largest:.2e}"


def assert_models_agree(
    actual: onnx.ModelProto, expected: onnx.ModelProto, feeds: dict[str, Array], tolerance: float
) -> None:
    """Fail unless `actual` is valid and gives the outputs of `expected`, with optimizations off and on."""
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(actual, strict_mode=True))
    reference = run_model(expected, feeds, optimize=False)
    for optimize in (False, True):
        for got, wanted in zip(run_model(actual, feeds, optimize=optimize), reference, strict=True):
            assert_close(got, wanted, tolerance)


def assert_written_as_planned(layer: Layer, specs: Sequence[StepSpec], weights: Sequence[Array]) -> None:
    """Fail unless the emitted model stores the planned parameters and its steps have the planned shapes.

    The intermediate shapes are those that onnx infers, and the planned MACs must follow from them.
    """
    model = onnx.shape_inference.infer_shapes(layer_model(layer, specs, weights), strict_mode=True)
    written = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    assert written == chain_params(specs), f"{written} parameters written, {chain_params(specs)} planned"
    assert len(model.graph.node) == len(specs), f"{len(model.graph.node)} nodes for {len(specs)} steps"
    assert layer.in_shape is not None
    assert _macs_of(model, layer) == chain_macs(specs, layer.in_shape)


def _macs_of(model: onnx.ModelProto, layer: Layer) -> int:
    """Count multiply-accumulates from inferred shapes: weights times the positions each is used at."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    macs = 0
    for node in model.graph.node:
        weight = next(name for name in node.input if name in sizes)
        data = next(name for name in node.input if name not in sizes)
        counted = shapes[data if node.op_type == "ConvTranspose" else node.output[0]]
        positions = counted[1:] if layer.weight_on_left else [counted[0], *counted[2:]]
        macs += sizes[weight] * int(np.prod(positions))
    return macs


def assert_never_rises(values: Sequence[float]) -> None:
    """Fail if any value is larger than the one before it."""
    for index, (before, after) in enumerate(pairwise(values)):
        assert after <= before + TOLERANCES["rounding"], f"rises from {before} to {after} at {index + 1}"


def assert_same_bytes(actual: Sequence[Array], expected: Sequence[Array]) -> None:
    """Fail unless all arrays are equal to the last bit."""
    assert len(actual) == len(expected)
    for got, wanted in zip(actual, expected, strict=True):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        assert got.tobytes() == wanted.tobytes(), "the bytes differ"


def assert_sentence(text: str) -> None:
    """Fail unless `text` reads as a reason: several words on one line, nothing of a traceback."""
    assert re.match(r"[A-Za-z]", text), f"starts with no letter: {text!r}"
    assert len(text.split()) >= 4, f"too short to be a reason: {text!r}"
    assert "\n" not in text, f"more than one line: {text!r}"
    assert not re.search(r"Traceback|Error|Exception|assert|NoneType|<[a-z]", text), f"leaks code: {text!r}"
