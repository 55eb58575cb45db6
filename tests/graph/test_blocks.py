"""Blocks of a model, each fed with what the others put out, make the model."""

import numpy as np
import onnx

from onnxdecomp.graph.blocks import blocks
from onnxdecomp.graph.io import load
from tests.graph.models import assert_close, normal, parse, run
from tests.networks import network

FLOAT = onnx.TensorProto.FLOAT


def with_outputs(proto: onnx.ModelProto, names: tuple[str, ...]) -> onnx.ModelProto:
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return proto


def test_blocks_one_after_the_other_compute_what_the_model_does() -> None:
    feeds = {"x": normal(2, 16, 12, 12)}
    cuts = ("c1", "c2", "g")
    truth = dict(zip(("y", *cuts), run(with_outputs(network(), cuts), feeds), strict=True))
    found = list(blocks(load(network()), dict.fromkeys(cuts, FLOAT)))
    assert [block.outputs for block in found] == [("c1",), ("c2",), ("g",), ("y",)]
    known = feeds | truth
    for block in found:
        (value,) = run(block.model.proto, {name: known[name] for name in block.reads})
        assert_close(value, truth[block.outputs[0]])


def test_a_block_holds_its_own_initializers_alone() -> None:
    found = list(blocks(load(network()), {"c1": FLOAT, "c2": FLOAT}))
    held = [[tensor.name for tensor in block.model.proto.graph.initializer] for block in found]
    assert held == [["w1"], ["scale", "shift", "mean", "var", "w2", "b2"], ["w3", "b3", "w4"]]


def test_a_block_reads_every_cut_that_reaches_it() -> None:
    proto = parse(
        """g (float[2,4] x) => (float[2,4] y)
        { a = MatMul(x, w) b = MatMul(a, v) c = Add(a, b) y = Add(c, x) }""",
        {"w": normal(4, 4), "v": normal(4, 4)},
    )
    found = list(blocks(load(proto), {"a": FLOAT, "b": FLOAT}))
    assert [set(block.reads) for block in found] == [{"x"}, {"a"}, {"x", "a", "b"}]


def test_without_cuts_the_block_is_the_model() -> None:
    (block,) = blocks(load(network()), {})
    feeds = {"x": normal(1, 16, 12, 12)}
    assert np.array_equal(run(block.model.proto, feeds)[0], run(network(), feeds)[0])
