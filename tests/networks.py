"""Small networks with slack, for tests of whole conversions."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def low_rank(shape, rank, seed=0, noise=0.01):
    """Make a weight ``(O, I/G, *K)`` whose output channels span few directions."""
    rng = np.random.default_rng(seed)
    rows, columns = shape[0], int(np.prod(shape[1:]))
    signal = (
        rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns)) / np.sqrt(rank * columns)
    )
    return (
        (signal + noise * rng.standard_normal((rows, columns)) / np.sqrt(columns))
        .reshape(shape)
        .astype(np.float32)
    )


def network(*, batch="N", size=12, channels=32, rank=8):
    """Conv 3x3 + BatchNormalization + Relu, Conv 3x3 with stride 2, global pooling, Gemm, and a MatMul."""
    rng = np.random.default_rng(7)
    numbers = {
        "w1": low_rank((channels, 16, 3, 3), rank, 1),
        "scale": rng.uniform(0.5, 1.5, channels),
        "shift": rng.standard_normal(channels),
        "mean": rng.standard_normal(channels),
        "var": rng.uniform(0.5, 1.5, channels),
        "w2": low_rank((channels, channels, 3, 3), rank, 2),
        "b2": rng.standard_normal(channels),
        "w3": low_rank((48, channels), 4, 3),
        "b3": rng.standard_normal(48),
        "w4": low_rank((24, 48), 4, 4).T,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "scale", "shift", "mean", "var"], ["n1"], "norm1"),
        helper.make_node("Relu", ["n1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["g"], "fc", transB=1),
        helper.make_node("MatMul", ["g", "w4"], ["y"], "head"),
    ]
    initializers = [
        numpy_helper.from_array(np.ascontiguousarray(v, np.float32), k) for k, v in numbers.items()
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 16, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 24])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"author": "somebody"})
    onnx.checker.check_model(model)
    return model
