"""The preservation promise, over every model that onnx brings for testing backends.

With nothing to do a model comes back byte for byte; with every convolution and matrix product replaced by
exact chains it passes the checker where it did before, computes what the test case expects, and everything
that was not replaced is equal.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.backend.test.case import node as node_cases
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, NotImplemented  # noqa: A004

from onnxdecomp.graph.find import LayerGroup, find_layers
from onnxdecomp.graph.io import load
from onnxdecomp.graph.sites import DENSE
from onnxdecomp.layer import Layer
from onnxdecomp.methods import registered
from onnxdecomp.methods.base import Chain, Method, decompose
from tests.graph.models import MakeChain, assert_close, normal, rewrite, run, single_step, three_steps

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
STORED = sorted(DATA.rglob("*.onnx"))
FOLDERS = {"light": 9, "pytorch-converted": 82, "pytorch-operator": 35, "simple": 23}
"""How many models there are at least; newer releases of onnx may bring more."""

N_NODE_CASES = 1800
"""How many node tests there are at least."""

WITHOUT_KERNEL = ("test_Linear", "test_operator_addmm", "test_operator_mm", "test_causal_conv_with_state")
"""Beginnings of the names of cases whose original onnxruntime does not run: Gemm of operator set 6, and
operator set 27. They are compared with their originals, but not executed."""

METHODS = registered()
"""Every registered method; at full rank each is exact by construction."""


@dataclass(frozen=True)
class Case:
    """A model with inputs and the outputs that are expected."""

    name: str
    model: onnx.ModelProto
    feeds: dict[str, NDArray[np.generic]]
    expected: list[NDArray[np.generic]]


@cache
def all_node_cases() -> list[node_cases.TestCase]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generators divide by zero on purpose
        return list(node_cases.collect_testcases(None))


def changed_by_doing_nothing(models: Iterator[tuple[str, onnx.ModelProto | Path]]) -> list[str]:
    changed = []
    for name, source in models:
        original = load(source).proto.SerializeToString(deterministic=True)
        if rewrite(source, None).SerializeToString(deterministic=True) != original:
            changed.append(name)
    return changed


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_stored_model_comes_back_unchanged(folder: str) -> None:
    models = [path for path in STORED if folder in path.parts]
    assert len(models) >= FOLDERS[folder]
    assert changed_by_doing_nothing((str(path), path) for path in models) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_stored_model_is_written_as_it_was(folder: str, tmp_path: Path) -> None:
    changed = []
    for path in (path for path in STORED if folder in path.parts):
        rewrite(path, None, tmp_path / "out.onnx")
        if onnx.load(tmp_path / "out.onnx") != onnx.load(path):
            changed.append(path)
    assert changed == []


def test_a_model_of_a_node_test_comes_back_unchanged() -> None:
    assert len(all_node_cases()) >= N_NODE_CASES
    assert changed_by_doing_nothing((case.name, case.model) for case in all_node_cases()) == []


def test_every_node_of_a_kind_we_replace_is_a_layer_or_has_a_reason() -> None:
    silent = []
    for case in all_node_cases():
        found = find_layers(load(case.model))
        keys = {site.layer.key for group in found.groups for site in group.sites}
        keys |= {refusal.key for refusal in found.refusals if refusal.reason}
        nodes = case.model.graph.node
        silent += [n.output[0] for n in nodes if n.op_type in DENSE and n.output[0] not in keys]
    assert silent == []


def frozen_node_cases(op_type: str, side: int) -> Iterator[Case]:
    """Yield the node tests of an operator with the operand number `side` turned into an initializer."""
    for case in all_node_cases():
        names = {node.input[side] for node in case.model.graph.node if node.op_type == op_type}
        inputs, outputs = case.data_sets[0]
        values = dict(zip([i.name for i in case.model.graph.input], inputs, strict=True))
        weights = names & values.keys()
        if weights:
            feeds = {name: value for name, value in values.items() if name not in weights}
            yield Case(
                case.name, freeze(case.model, {name: values[name] for name in weights}), feeds, outputs
            )


def freeze(proto: onnx.ModelProto, values: dict[str, NDArray[np.generic]]) -> onnx.ModelProto:
    """Turn inputs into initializers."""
    frozen = onnx.ModelProto()
    frozen.CopyFrom(proto)
    kept = [value for value in proto.graph.input if value.name not in values]
    del frozen.graph.input[:]
    frozen.graph.input.extend(kept)
    frozen.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in sorted(values.items())
    )
    return frozen


def stored_cases(folder: str) -> Iterator[Case]:
    """Yield the stored models that have inputs and expected outputs beside them."""
    for path in (path for path in STORED if folder in path.parts):
        model = onnx.load(path)
        data = path.parent / "test_data_set_0"
        constants = {tensor.name for tensor in model.graph.initializer}
        names = [value.name for value in model.graph.input if value.name not in constants]
        if any(node.op_type in DENSE for node in model.graph.node):
            feeds = {name: read_tensor(data / f"input_{i}.pb") for i, name in enumerate(names)}
            expected = [read_tensor(data / f"output_{i}.pb") for i in range(len(model.graph.output))]
            yield Case(path.parent.name, model, feeds, expected)


def read_tensor(path: Path) -> NDArray[np.generic]:
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


def full_rank(method: Method) -> Callable[[LayerGroup], Chain]:
    """Return a maker of chains by a method at full rank; a layer it refuses stays whole."""

    def make(group: LayerGroup) -> Chain:
        layer: Layer = group.layer
        if method.refusal(layer):
            return single_step(group)
        analysis = method.analyze(layer, group.weight(), np.random.default_rng(0))
        return decompose(method, analysis, layer, method.rank_bounds(layer))

    return make


MAKERS: dict[str, MakeChain] = {
    "itself": single_step,
    "three steps": three_steps,
    **{method.full_name: full_rank(method) for method in METHODS},
}


def passes_checker(proto: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError:
        return False
    return True


def what_else_changed(original: onnx.ModelProto, rewritten: onnx.ModelProto) -> list[str]:
    """Return which parts of a model changed although no layer stood there."""
    changed = []
    before = iter(node.SerializeToString(deterministic=True) for node in original.graph.node)
    kept, made, used = set(), set(), set()
    for node in rewritten.graph.node:
        used.update(node.input)
        if "/onnxdecomp/step" in node.name:
            made.update(node.output)
        elif (content := node.SerializeToString(deterministic=True)) in before:  # in the old order
            kept.add(content)
        else:
            changed.append(f"node {node.name}")
    for node in original.graph.node:
        needed = set(node.output) & used - made
        if needed and node.SerializeToString(deterministic=True) not in kept:
            changed.append(f"lost {needed}")
    tensors = {tensor.name: tensor for tensor in original.graph.initializer}
    for tensor in rewritten.graph.initializer:
        if "/onnxdecomp/" not in tensor.name and tensor != tensors[tensor.name]:
            changed.append(f"initializer {tensor.name}")
    return changed + ([] if frame(original) == frame(rewritten) else ["the frame"])


def frame(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without its nodes and weights."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inputs = [value for value in model.graph.input if value.name not in initializers(model)]
    for field in ("node", "initializer", "input", "value_info"):
        copy.graph.ClearField(field)
    copy.graph.input.extend(inputs)
    return copy


def initializers(model: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


def complaints(case: Case, make_chain: MakeChain) -> Iterator[str]:
    """Yield what is wrong with a case after rewriting."""
    rewritten = rewrite(case.model, make_chain)
    if passes_checker(case.model) and not passes_checker(rewritten):
        yield "does not pass the checker any more"
    yield from what_else_changed(case.model, rewritten)
    try:
        run(case.model, case.feeds)
    except (Fail, NotImplemented) as error:
        if not case.name.startswith(WITHOUT_KERNEL):
            yield f"the original does not run: {error}"
        return
    for actual, expected in zip(run(rewritten, case.feeds), case.expected, strict=True):
        try:
            assert_close(actual, expected)
        except AssertionError as error:
            yield f"computes something else: {error}"


def all_complaints(cases: list[Case], make_chain: MakeChain) -> dict[str, list[str]]:
    found = {case.name: list(complaints(case, make_chain)) for case in cases}
    return {name: texts for name, texts in found.items() if texts}


FAMILIES = {("Conv", 1): 6, ("ConvTranspose", 1): 9, ("Gemm", 1): 11, ("MatMul", 1): 1, ("MatMul", 0): 1}
"""In how many node tests at least an operator is replaced when that operand is a constant."""

REFUSED = (
    "test_causal_conv_with_state",  # the shape of the weight is taken too
    "test_convtranspose_output_shape",
    "test_convtranspose_kernel_shape",  # also has an output_shape
    "test_matmul_3d",
    "test_matmul_4d",
    "test_matmul_bcast",
    "test_matmul_1d",
)
"""Beginnings of the names of node tests whose weight cannot be replaced."""


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_the_weights_of_the_node_tests_are_found(family: tuple[str, int]) -> None:
    found = {case.name: find_layers(load(case.model)).groups for case in frozen_node_cases(*family)}
    assert [name for name in found if not found[name] and not name.startswith(REFUSED)] == []
    assert sum(map(bool, found.values())) >= FAMILIES[family]


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_rewritten_node_tests_give_the_expected_outputs(family: tuple[str, int], maker: str) -> None:
    assert all_complaints(list(frozen_node_cases(*family)), MAKERS[maker]) == {}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(("folder", "n_models"), [("pytorch-converted", 30), ("pytorch-operator", 4)])
def test_rewritten_stored_models_give_the_expected_outputs(folder: str, n_models: int, maker: str) -> None:
    cases = list(stored_cases(folder))
    assert len(cases) >= n_models
    assert all_complaints(cases, MAKERS[maker]) == {}


def with_random_weights(path: Path) -> onnx.ModelProto:
    """Turn the weights that a light model fills with one number into random initializers."""
    proto = onnx.load(path)
    shapes = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for index in range(len(proto.graph.node) - 1, -1, -1):
        node = proto.graph.node[index]
        if node.op_type == "ConstantOfShape":
            shape = tuple(int(n) for n in shapes[node.input[0]])
            scale = np.float32(1 / np.sqrt(max(1, np.prod(shape[1:]))))
            array = np.abs(normal(*shape)) if len(shape) == 1 else normal(*shape) * scale
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, node.output[0]))
            proto.graph.input.append(
                onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, shape)
            )
            del proto.graph.node[index]
    return proto


@pytest.mark.parametrize(
    ("name", "make_chain"),
    [("squeezenet", three_steps), ("shufflenet", three_steps), ("densenet121", single_step)],
)
def test_rewritten_networks_compute_the_same(name: str, make_chain: MakeChain) -> None:
    proto = with_random_weights(DATA / "light" / f"light_{name}.onnx")
    assert passes_checker(proto)
    constants = initializers(proto)
    (data,) = [value for value in proto.graph.input if value.name not in constants]
    feeds = {data.name: normal(*[d.dim_value for d in data.type.tensor_type.shape.dim])}
    case = Case(name, proto, feeds, run(proto, feeds))
    assert all_complaints([case], make_chain) == {}
    assert len(constants) > 50
    assert sum(node.op_type in DENSE for node in proto.graph.node) == sum(
        len(group.sites) for group in find_layers(load(proto)).groups
    )


def spoil_attribute(proto: onnx.ModelProto) -> None:
    next(node for node in proto.graph.node if node.op_type == "Concat").attribute[0].i = 0


def swap_nodes(proto: onnx.ModelProto) -> None:
    proto.graph.node.insert(0, proto.graph.node.pop())


def lose_a_node(proto: onnx.ModelProto) -> None:
    index = next(i for i, node in enumerate(proto.graph.node) if node.op_type == "Relu")
    del proto.graph.node[index]


def lose_metadata(proto: onnx.ModelProto) -> None:
    proto.ClearField("producer_name")


def spoil_a_bias(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].name, proto.graph.initializer[1].name = (
        proto.graph.initializer[1].name,
        proto.graph.initializer[0].name,
    )


@pytest.mark.parametrize("spoil", [spoil_attribute, swap_nodes, lose_a_node, lose_metadata, spoil_a_bias])
def test_a_change_beside_the_layers_is_noticed(spoil: Callable[[onnx.ModelProto], None]) -> None:
    proto = with_random_weights(DATA / "light" / "light_squeezenet.onnx")
    rewritten = rewrite(proto)
    assert what_else_changed(proto, rewritten) == []
    spoil(rewritten)
    assert what_else_changed(proto, rewritten) != []
