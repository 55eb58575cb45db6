"""Inputs that a model is run on to see whether it works."""

import numpy as np
import onnx
import pytest

from onnxdecomp import selection
from onnxdecomp.config import Config
from onnxdecomp.graph.io import load
from onnxdecomp.selection import find_with_shapes, model_inputs, plan_targets

ROWS = np.arange(40, dtype=np.float32).reshape(10, 4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx.parser.parse_model(HEAD + "m (float[N, 4] x) => (float[N, 4] y) { y = Neg(x) }"), "a.onnx")
    text = HEAD + "m (float[N, 4] x, float s) => (float[N, 4] y) { y = Mul(x, s) }"
    onnx.save(onnx.parser.parse_model(text), "b.onnx")
    np.savez("a.npz", x=ROWS)
    np.savez("b.npz", x=ROWS[:, None], s=np.full(10, 2, np.float32))
    return tmp_path


HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'


@pytest.mark.parametrize(("limit", "sizes"), [(10**6, [6, 4]), (8, [2, 2]), (1, [1, 1])])
def test_large_samples_are_run_a_few_at_once(folder, monkeypatch, limit, sizes):
    monkeypatch.setattr(selection, "MAX_FEED_VALUES", limit)
    feeds = model_inputs(folder / "a.onnx", Config(calibration="a.npz"), n_feeds=2, batch=6)
    assert [len(feed["x"]) for feed in feeds] == sizes


def test_a_scalar_input_makes_every_sample_a_feed_of_its_own(folder):
    feeds = model_inputs(folder / "b.onnx", Config(calibration="b.npz"), n_feeds=4)
    assert [feed["s"].shape for feed in feeds] == [()] * 4


def reason_for(text: str, *shape: int) -> str:
    """Return why the only layer of a model, whose weight is called w, is not looked at."""
    model = onnx.parser.parse_model(HEAD + text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), "w"))
    found, _ = find_with_shapes(load(model), Config())
    (target,) = plan_targets(found, Config())
    return target.reason


def test_methods_that_a_layer_refuses_for_the_same_reason_are_named_together():
    reason = reason_for("m (float[1, 1, 9] x) => (float[1, 1, 7] y) { y = Conv(x, w) }", 1, 1, 3)
    assert "cp3, cp4: the layer is depthwise" in reason
    assert reason.count("the layer is depthwise") == 1


def test_of_a_matrix_without_a_rank_to_cut_that_alone_is_said():
    reason = reason_for("m (float[2, 8] x) => (float[2, 1] y) { y = MatMul(x, w) }", 8, 1)
    assert reason == "svd: the weight is a 1x8 matrix, which has rank 1 already"
