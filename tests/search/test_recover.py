"""Which layers are recovered through the ReLU behind them."""

import onnx
import pytest

from onnxdecomp.search.recover import _before_relu


def graph(*nodes: tuple[str, str, str], outputs: tuple[str, ...] = ("end",)) -> onnx.ModelProto:
    """Return a model of nodes (operator, inputs, output), whose tensors have no numbers."""
    made = [onnx.helper.make_node(kind, names.split(), [out]) for kind, names, out in nodes]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    return onnx.helper.make_model(onnx.helper.make_graph(made, "g", [], ends))


CONV = ("Conv", "x w", "y")


@pytest.mark.parametrize(
    ("model", "hidden"),
    [
        (graph(CONV, ("Relu", "y", "end")), True),
        (graph(CONV, ("Relu", "y", "r"), ("Relu", "y", "end")), True),
        (graph(CONV, ("Relu", "y", "r"), ("Add", "y r", "end")), False),
        (graph(CONV, ("LeakyRelu", "y", "end")), False),
        (graph(CONV, ("Relu", "y", "end"), outputs=("end", "y")), False),
    ],
    ids=["a ReLU", "two ReLUs", "also an Add", "a leaky one", "also an output"],
)
def test_only_what_nothing_but_relus_read_is_hidden(model, hidden):
    assert ("y" in _before_relu(model)) == hidden


def test_a_body_that_reads_a_tensor_sees_its_negative_values():
    body = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["y"], ["b"])], "b", [], [])
    model = graph(CONV, ("Relu", "y", "end"))
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body))
    assert "y" not in _before_relu(model)
