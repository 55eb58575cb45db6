"""Each comparison helper fails on what it is there to catch."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnxdecomp.layer import StepSpec
from tests import asserts
from tests.builders import CONVOLUTIONS, bias_of, dense_model, input_of, weight_of

LAYER = CONVOLUTIONS["asymmetric pads"]


@pytest.mark.parametrize(
    "actual",
    [np.array([1.0, 2.1]), np.array([1.0, np.nan]), np.array([[1.0, 2.0]]), np.array([1.0])],
    ids=["value", "nan", "shape", "length"],
)
def test_assert_close_fails_on(actual):
    with pytest.raises(AssertionError):
        asserts.assert_close(actual, np.array([1.0, 2.0]), 1e-2)


def test_assert_close_accepts_rounding():
    asserts.assert_close(np.array([1.0, 2.0 + 1e-8]), np.array([1.0, 2.0]), 1e-6)


def test_assert_models_agree_accepts_the_same_model():
    model = dense_model(LAYER, weight_of(LAYER), bias_of(LAYER))
    asserts.assert_models_agree(model, model, {"x": input_of(LAYER)}, 1e-6)


@pytest.mark.parametrize("change", ["weight", "bias", "pads"])
def test_assert_models_agree_fails_on_a_wrong(change):
    weight, bias, layer = weight_of(LAYER), bias_of(LAYER), LAYER
    right = dense_model(layer, weight, bias)
    if change == "weight":
        weight = weight * 1.001
    elif change == "bias":
        bias = bias + 0.01
    else:
        geometry = LAYER.geometry
        layer = replace(
            LAYER, geometry=replace(geometry, pads_begin=geometry.pads_end, pads_end=geometry.pads_begin)
        )
    wrong = dense_model(layer, weight, bias)
    with pytest.raises(AssertionError):
        asserts.assert_models_agree(wrong, right, {"x": input_of(LAYER)}, 1e-6)


def test_assert_models_agree_fails_on_an_invalid_model():
    right = dense_model(LAYER, weight_of(LAYER))
    wrong = onnx.ModelProto()
    wrong.CopyFrom(right)
    wrong.graph.node[0].input[1] = "nobody"
    with pytest.raises(onnx.checker.ValidationError):
        asserts.assert_models_agree(wrong, right, {"x": input_of(LAYER)}, 1e-6)


def test_assert_written_as_planned_accepts_the_layer_itself():
    asserts.assert_written_as_planned(LAYER, (LAYER.spec,), (weight_of(LAYER),))


@pytest.mark.parametrize("wrong", ["parameters", "macs"])
def test_assert_written_as_planned_fails_on_wrong(wrong):
    class Wrong(StepSpec):
        @property
        def n_params(self):
            return super().n_params + (wrong == "parameters")

        def n_macs(self, in_shape):
            return super().n_macs(in_shape) + (wrong == "macs")

    spec = Wrong(LAYER.weight_shape, LAYER.geometry)
    with pytest.raises(AssertionError):
        asserts.assert_written_as_planned(LAYER, (spec,), (weight_of(LAYER),))


def test_assert_never_rises_fails_on_a_rise():
    asserts.assert_never_rises([1.0, 0.5, 0.5, 0.0])
    with pytest.raises(AssertionError, match="rises from"):
        asserts.assert_never_rises([1.0, 0.5, 0.51])


def test_assert_same_bytes_fails_on_the_last_bit():
    value = np.array([1.0, 2.0])
    asserts.assert_same_bytes([value], [value.copy()])
    with pytest.raises(AssertionError):
        asserts.assert_same_bytes([value], [np.nextafter(value, 3.0)])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        "KeyError: 'kernel_shape' is missing here",
        "first line\nsecond line of it",
        "3 is too large now",
    ],
)
def test_assert_sentence_fails_on(text):
    with pytest.raises(AssertionError):
        asserts.assert_sentence(text)


def test_assert_sentence_accepts_a_reason():
    asserts.assert_sentence("the kernel is one sample wide, so svd is the method for it")
