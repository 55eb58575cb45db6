"""Small models, exact chains and the rewriting of whole models, for the tests of `onnxdecomp.graph`."""

from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxdecomp.graph.find import Found, LayerGroup, find_layers
from onnxdecomp.graph.io import Model, ModelWriter, load
from onnxdecomp.graph.names import graphs_by_scope
from onnxdecomp.graph.rewrite import Rewriter
from onnxdecomp.layer import Geometry, Layer, StepSpec
from onnxdecomp.methods.base import Chain

TOLERANCE = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 2e-5, np.dtype(np.float16): 5e-3}
"""Largest error relative to the largest output, per element type; sums are taken in another order."""

Arrays = Mapping[str, NDArray[np.generic]]
MakeChain = Callable[[LayerGroup], Chain]


def parse(
    text: str,
    arrays: Arrays | None = None,
    *,
    opset: int = 17,
    ir: int = 8,
    bodies: Mapping[str, Arrays] | None = None,
) -> onnx.ModelProto:
    """Return a model from ONNX text without header, with initializers in its main graph and in bodies.

    `bodies` are known by their key prefix.
    """
    proto = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]> {text}')
    for name, array in (arrays or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        if ir < 4:
            element = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, element, array.shape))
    for scope, held in (bodies or {}).items():
        body = graphs_by_scope(proto)[scope]
        body.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in held.items())
    onnx.checker.check_model(proto)
    return proto


def normal(*shape: int, dtype: type | np.dtype = np.float32, seed: int = 0) -> NDArray[np.generic]:
    """Return normal numbers of a seed that also depends on the shape."""
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def single_step(group: LayerGroup) -> Chain:
    """Return the layer itself as a chain."""
    layer = group.layer
    return Chain(layer, "itself", (1,), (layer.spec,), (group.weight(),))


def three_steps(group: LayerGroup) -> Chain:
    """Return the layer between two pointwise identities: three steps, no error."""
    layer, weight = group.layer, group.weight()
    axes = (1,) * len(layer.kernel)
    before = np.concatenate([np.eye(weight.shape[1])] * layer.group).reshape(layer.in_channels, -1, *axes)
    after = np.eye(layer.out_channels).reshape(layer.out_channels, -1, *axes)
    specs = (
        StepSpec(before.shape, Geometry.pointwise(len(axes), layer.group)),
        layer.spec,
        StepSpec(after.shape, Geometry.pointwise(len(axes))),
    )
    return Chain(layer, "between identities", (1, 1), specs, (before, weight, after))


def rewrite(
    source: onnx.ModelProto | Model | str | Path,
    make_chain: MakeChain | None = three_steps,
    out_path: Path | None = None,
    select: Callable[[LayerGroup], bool] = lambda group: True,
) -> onnx.ModelProto | None:
    """Replace every selected layer that can be replaced; none when `make_chain` is None."""
    model = source if isinstance(source, Model) else load(source)
    with ModelWriter(model, out_path) as writer:
        rewriter = Rewriter(model, writer.add_tensor)
        for group in filter(select, find_layers(model).groups if make_chain else ()):
            rewriter.replace(group, make_chain(group))
        writer.commit(rewriter.finish())
    return writer.result


def find(proto: onnx.ModelProto) -> Found:
    """Return what is found in a model in memory."""
    return find_layers(load(proto))


def only_layer(proto: onnx.ModelProto) -> Layer:
    """Return the layer of a model that has exactly one, and no refusal."""
    found = find(proto)
    assert found.refusals == []
    (group,) = found.groups
    return group.layer


def only_reason(proto: onnx.ModelProto) -> str:
    """Return the reason of a model with exactly one refusal and no layer."""
    found = find(proto)
    assert found.groups == []
    (refusal,) = found.refusals
    return refusal.reason


def run(model: onnx.ModelProto | Path, feeds: Arrays) -> list[NDArray[np.generic]]:
    """Run a model in onnxruntime, graph optimizations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def assert_close(actual: NDArray[np.generic], expected: NDArray[np.generic]) -> None:
    """Compare relative to the largest expected value, with the tolerance of the element type."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    tolerance = TOLERANCE.get(expected.dtype, 0.05 if expected.dtype == ml_dtypes.bfloat16 else 0.0)
    scale = float(np.max(np.abs(expected.astype(np.float64)), initial=1e-30))
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    assert float(np.max(difference, initial=0.0)) <= tolerance * scale


def assert_rewritten_equal(
    proto: onnx.ModelProto, feeds: Arrays, make_chain: MakeChain = three_steps
) -> None:
    """Check that the rewritten model is another one, valid, and computes the same."""
    rewritten = rewrite(proto, make_chain)
    assert rewritten is not None
    assert rewritten != proto
    onnx.checker.check_model(rewritten)
    for actual, expected in zip(run(rewritten, feeds), run(proto, feeds), strict=True):
        assert_close(actual, expected)
