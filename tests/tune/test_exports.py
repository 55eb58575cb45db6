"""Nine architectures as torch's exporters write them: forward as onnxruntime, backward as autograd."""

import io
import warnings
from functools import cache

import numpy as np
import onnx
import pytest
import torch

from onnxdecomp.graph.io import load
from onnxdecomp.tune.network import Network
from onnxdecomp.tune.parity import check_forward
from tests.tune.architectures import ARCHITECTURES, build
from tests.tune.export_dynamo import EXPORTS

FORWARD = 1e-5
"""Largest difference of an output from onnxruntime's, relative to its largest magnitude."""

BACKWARD = 1e-4
"""Largest difference of a gradient from autograd's, relative to its largest magnitude."""

EXPORTERS = ["TorchScript, opset 11, as written", "TorchScript, opset 17, folded", "dynamo, folded"]

FEWEST = {"TorchScript, opset 17, folded": 2, "dynamo, folded": 2}
"""How many parameters survive folding with their numbers at least; as written, all do."""


@cache
def export(name: str, exporter: str) -> onnx.ModelProto:
    if exporter.startswith("dynamo"):
        return onnx.load(EXPORTS / f"{name}.onnx")
    module, inputs = build(name)
    buffer = io.BytesIO()
    opset = 11 if "11" in exporter else 17
    options = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the exporter is deprecated, and what it says of itself is no claim here
        torch.onnx.export(
            module, inputs, buffer, opset_version=opset, dynamo=False, **(options if opset == 11 else {})
        )
    return onnx.load_from_string(buffer.getvalue())


def loss_of(y: torch.Tensor) -> torch.Tensor:
    return (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum()


def native_gradients(name: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return the numbers and gradients of parameters and of the image by name."""
    module, inputs = build(name)
    leaves = dict(module.named_parameters())
    if inputs[0].is_floating_point():
        leaves["image"] = inputs[0].requires_grad_(True)
    loss_of(module(*inputs)).backward()
    return {key: (leaf.detach(), leaf.grad) for key, leaf in leaves.items()}


def interpreted_gradients(name: str, exporter: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the numbers and gradients of all parameters and of the image."""
    _, inputs = build(name)
    network = Network(load(export(name, exporter)))
    network.train_only(network.parameters)
    leaves = list(network.parameters.values())
    if inputs[0].is_floating_point():
        leaves.append(inputs[0].requires_grad_(True))
    (y,) = network(dict(zip(network.inputs, inputs, strict=True))).values()
    loss_of(y).backward()
    return [(leaf.detach(), leaf.grad) for leaf in leaves if leaf.grad is not None]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.numel() == b.numel() > 1 and bool(torch.allclose(a.flatten(), b.flatten(), rtol=0, atol=1e-7))


def gradient_error(
    numbers: torch.Tensor, gradient: torch.Tensor, found: list[tuple[torch.Tensor, torch.Tensor]]
) -> float | None:
    """Return by how much the gradient of the tensor with these numbers is off; None when it was folded."""
    for other, got in found:
        for turned in (False, True):
            if same(numbers, other.T if turned and other.ndim == 2 else other):
                aligned = (got.T if turned and got.ndim == 2 else got).reshape(numbers.shape)
                return float((aligned - gradient).abs().max() / gradient.abs().max())
    return None


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_forward_pass_is_that_of_onnxruntime(name: str, exporter: str) -> None:
    model = load(export(name, exporter))
    network = Network(model)
    _, inputs = build(name)
    feeds = {key: np.asarray(x) for key, x in zip(network.inputs, inputs, strict=True)}
    assert check_forward(network, model, feeds, FORWARD) <= FORWARD


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_backward_pass_is_that_of_autograd(name: str, exporter: str) -> None:
    native, found = native_gradients(name), interpreted_gradients(name, exporter)
    errors = {key: gradient_error(*pair, found) for key, pair in native.items()}
    compared = {key: error for key, error in errors.items() if error is not None}
    assert {key: error for key, error in compared.items() if not error <= BACKWARD} == {}
    assert len(compared) >= FEWEST.get(exporter, len(native))
    assert "image" in compared or name == "BERT"
