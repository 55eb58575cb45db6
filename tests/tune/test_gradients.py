"""Gradients of what decompositions and codebooks make of a layer, against finite differences."""

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch

from onnxdecomp.graph.emit import layer_model
from onnxdecomp.graph.io import load
from onnxdecomp.methods import find_methods
from onnxdecomp.tune.network import Network
from tests.builders import LAYERS, bias_of, input_of
from tests.contract import chain_of, low_ranks
from tests.graph.codebooks import random_codebook, with_codebooks, with_dense
from tests.graph.models import normal, parse
from tests.tune.checks import assert_gradients, assert_parity

CHAINS = [
    ("cp4", "plain"), ("cp4", "asymmetric pads"), ("cp3", "dilation"), ("cp3", "asymmetric pads"),
    ("tucker2", "stride"), ("tucker2", "groups"), ("tucker2", "3-D"), ("spatial-svd", "asymmetric pads"),
    ("spatial-svd", "groups"), ("channel-svd", "same upper"), ("channel-svd", "transposed strided"),
    ("tt", "plain"), ("svd", "Gemm"), ("svd", "MatMul with the weight on the left"),
]  # fmt: skip

FEW_BITS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize(("method_name", "case"), CHAINS)
def test_a_chain_has_the_gradients_of_central_differences(method_name: str, case: str) -> None:
    layer = LAYERS[case]
    method = next(m for m in find_methods(method_name) if m.refusal(layer) is None)
    chain = chain_of(method, layer, low_ranks(method, layer))
    model = layer_model(layer, chain.specs, chain.weights, bias_of(layer), np.dtype(np.float64))
    feeds = {"x": input_of(layer).astype(np.float64)}
    assert_parity(layer_model(layer, chain.specs, chain.weights, bias_of(layer)), {"x": input_of(layer)})
    assert_gradients(model, feeds)


def codebook_model(opset: int = 21) -> onnx.ModelProto:
    text = "m (float[3, 20] x) => (float[3, 12] y) { y = Gemm<transB = 1>(x, w) }"
    return parse(text, {"w": normal(12, 20)}, opset=opset, ir=10)


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("scale", ["", "tensor", "channel"])
@pytest.mark.parametrize("bits", [3, 4, 8, 11])
@pytest.mark.parametrize("dtype", FEW_BITS)
def test_a_codebook_gathers_the_gradient_of_its_dense_weight(
    dtype: str, bits: int, scale: str, opset: int
) -> None:
    source = codebook_model(opset)
    codebook = random_codebook((12, 20), bits, scale=scale, dtype=FEW_BITS[dtype])
    proto, x = with_codebooks(source, {"w": codebook}), normal(3, 20)
    assert_parity(proto, {"x": x})
    clustered, dense = Network(load(proto)), Network(load(with_dense(source, {"w": codebook})))
    for network in (clustered, dense):
        network.train_only(network.parameters)
        network({"x": torch.from_numpy(x)})["y"].square().sum().backward()
    weight_gradient = dense.parameters["w"].grad.numpy()  # (O, I)
    factor = 1.0 if codebook.scale is None else codebook.scale.reshape(-1, 1)
    expected = np.zeros(codebook.centroids.size)
    np.add.at(expected, codebook.indices, weight_gradient * factor)
    (centroids,) = [p for p in clustered.parameters.values() if p.numel() == expected.size and p.ndim == 1]
    largest = np.abs(expected).max()
    assert np.abs(centroids.grad.numpy() - expected).max() <= 1e-4 * largest


@pytest.mark.parametrize("scale", ["tensor", "channel"])
def test_the_scale_of_integer_centroids_trains(scale: str) -> None:
    codebook = random_codebook((12, 20), 4, scale=scale, dtype=np.int16)
    network = Network(load(with_codebooks(codebook_model(), {"w": codebook})))
    network.train_only(network.parameters)
    x = normal(3, 20)
    network({"x": torch.from_numpy(x)})["y"].sum().backward()
    (trained,) = network.parameters.values()
    gradient = np.broadcast_to(x.sum(0), (12, 20)) * codebook.centroids.reshape(-1)[codebook.indices]
    expected = gradient.sum(axis=1) if scale == "channel" else gradient.sum()
    off = np.abs(trained.grad.numpy().reshape(expected.shape) - expected).max()
    assert off <= 1e-4 * np.abs(expected).max()


def test_the_scale_of_a_dequantized_weight_trains() -> None:
    text = """m (double[2, 6] x) => (double[2, 4] y) {
        f = DequantizeLinear<axis = 1>(q, scale)
        w = Cast<to = 11>(f)
        y = MatMul(x, w)
    }"""
    q = np.random.default_rng(0).integers(-128, 128, (6, 4)).astype(np.int8)
    proto = parse(text, {"q": q, "scale": normal(4) + 3})
    network = Network(load(proto))
    network.train_only(["scale"])
    x = normal(2, 6, dtype=np.float64)
    network({"x": torch.from_numpy(x)})["y"].sum().backward()
    expected = (x.sum(0)[:, None] * q).sum(0)
    assert np.abs(network.parameters["scale"].grad.numpy() - expected).max() < 1e-4 * np.abs(expected).max()
