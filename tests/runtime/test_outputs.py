import numpy as np
import onnx
import pytest

from onnxdecomp.errors import ModelError
from onnxdecomp.runtime.outputs import open_outputs, unseen_from, with_outputs
from tests.graph.models import normal, parse, run
from tests.networks import network

BODY = """
g (float[N, 4] x, bool b) => (float[N, 4] y) {
    h = MatMul(x, v)
    y = If (b) <
        then_branch = yes () => (float[N, 4] o) { o = MatMul(h, w) },
        else_branch = no () => (float[N, 4] o) { o = Relu(h) }
    >
}
"""


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return network()


def test_only_what_the_outputs_need_is_left(model):
    kept = with_outputs(model, ["r1"])
    assert [node.op_type for node in kept.graph.node] == ["Conv", "BatchNormalization", "Relu"]
    assert [output.name for output in kept.graph.output] == ["r1"]


def test_nodes_that_an_output_does_not_depend_on_are_known_in_bodies_too():
    model = parse(BODY, {"v": normal(4, 4), "w": normal(4, 4, seed=1)})
    assert unseen_from(model.graph, ["y"]) == set()
    inside = {"y", "y.then_branch/o", "y.else_branch/o"}
    assert unseen_from(model.graph, ["h"]) == inside
    assert unseen_from(model.graph, []) == inside | {"h"}


def test_nodes_that_a_body_reads_are_left():
    model = parse(BODY, {"v": normal(4, 4), "w": normal(4, 4, seed=1)})
    assert with_outputs(model, ["y"]).graph.node == model.graph.node


@pytest.mark.parametrize("name", ["x", "w1", "c1", "y"])
def test_every_kind_of_tensor_can_be_put_out(model, name):
    (value,) = run(with_outputs(model, [name]), {"x": normal(20, 16, 12, 12)})
    expected = {"x": (20, 16, 12, 12), "w1": (32, 16, 3, 3), "c1": (20, 32, 12, 12), "y": (20, 24)}
    assert value.shape == expected[name]


def test_a_tensor_named_twice_is_put_out_once(model):
    assert [output.name for output in open_outputs(model, ["c1", "y", "c1"]).get_outputs()] == ["c1", "y"]


def test_the_numbers_are_those_inside_the_model(model):
    data = {"x": normal(2, 16, 12, 12)}
    (hidden,) = run(with_outputs(model, ["c1"]), data)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_allclose(
        hidden[:, :, 5, 5], np.einsum("nihw,oihw->no", data["x"][:, :, 4:7, 4:7], weight), atol=1e-4
    )


def test_a_tensor_that_is_not_there_is_an_error(model):
    with pytest.raises(ModelError, match="onnxruntime cannot load"):
        open_outputs(model, ["nothing"])
