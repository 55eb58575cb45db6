"""Check that a network computes what onnxruntime computes, before anything is trained on it."""

from collections.abc import Mapping
from math import inf

import numpy as np
import onnx
import torch

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.io import Model
from onnxdecomp.runtime.session import Array, Feeds, open_session, run
from onnxdecomp.tune.elements import to_torch
from onnxdecomp.tune.network import Network

PARITY = 1e-4
"""Largest difference allowed to an output, relative to the largest magnitude in it."""

HALF_PARITY = 2e-2
"""The same for models that compute in 16-bit floats, which onnxruntime rounds after every node."""

NOISE_FACTOR = 10
"""How many times further than onnxruntime from itself, optimizations off and on, the network may be."""

_HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def check_forward(network: Network, model: Model, feeds: Feeds, tolerance: float | None = None) -> float:
    """Compare the float outputs of a network with those of onnxruntime, optimizations off.

    Args:
        network: The network of `model`.
        model: The model as onnxruntime runs it.
        feeds: One complete input, arrays by name.
        tolerance: Largest difference relative to an output's largest magnitude; by default `PARITY`, or
            `HALF_PARITY` for models that compute in 16-bit floats. More is allowed to a model whose results
            differ between onnxruntime's own optimization levels.

    Returns:
        The largest difference of an output, relative to its largest magnitude.

    Raises:
        ModelError: An output differs by more, or onnxruntime cannot run the model.
    """
    if tolerance is None:
        tolerance = HALF_PARITY if _computes_in_halves(model.proto) else PARITY
    reference = _run(model, feeds, optimize=False)
    with torch.no_grad():
        tensors = network({name: to_torch(np.asarray(array)) for name, array in feeds.items()})
    outputs = {name: tensors[name].numpy() for name in reference}
    name, error = _worst(reference, outputs)
    if error <= tolerance:
        return error
    _, noise = _worst(reference, _run(model, feeds, optimize=True))
    limit = max(tolerance, NOISE_FACTOR * noise if noise < inf else 0.0)
    if not error <= limit:
        raise ModelError(
            f"output '{name}' differs by {error:.3g} of its largest magnitude between onnxruntime and the "
            f"network that is to be trained, {limit:.3g} is allowed: training would not see the model's real "
            "outputs, so report this model, and do not train it"
        )
    return error


def _run(model: Model, feeds: Feeds, *, optimize: bool) -> dict[str, Array]:
    """Return the float outputs of onnxruntime."""
    session = open_session(model.path or model.proto, optimize=optimize, folder=model.base_dir)
    return {name: array for name, array in run(session, feeds).items() if _is_float(array)}


def _is_float(array: object) -> bool:
    return isinstance(array, np.ndarray) and (array.dtype.kind == "f" or array.dtype.name == "bfloat16")


def _worst(reference: Mapping[str, Array], outputs: Mapping[str, Array]) -> tuple[str, float]:
    """Return the output that is furthest off, and by how much of its largest finite magnitude."""
    errors = {name: _difference(array, outputs[name]) for name, array in reference.items()}
    name = max(errors, key=errors.__getitem__, default="")
    return name, errors.get(name, 0.0)


def _difference(expected: Array, actual: Array) -> float:
    if expected.shape != actual.shape:
        return inf
    exact, close = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(exact)
    if not np.all(np.isfinite(close[finite])):
        return inf
    distance = float(np.max(np.abs(exact - close)[finite], initial=0.0))
    largest = float(np.max(np.abs(exact)[finite], initial=0.0))
    return distance / largest if largest else (inf if distance else 0.0)


def _computes_in_halves(proto: onnx.ModelProto) -> bool:
    """Tell whether a model takes, gives or converts to 16-bit floats; stored weights alone do not count."""
    values = (*proto.graph.input, *proto.graph.output)
    weights = {tensor.name for tensor in proto.graph.initializer}
    if any(v.type.tensor_type.elem_type in _HALVES for v in values if v.name not in weights):
        return True
    casts = (node for node in proto.graph.node if node.op_type == "Cast")
    return any(attribute.i in _HALVES for node in casts for attribute in node.attribute)
