"""What the interpreter promises, apart from what single operators compute."""

import gc
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.graph.io import load
from onnxdecomp.tune.network import Network
from onnxdecomp.tune.registry import OPERATORS, operator
from tests.asserts import assert_sentence
from tests.graph.models import normal, parse
from tests.tune.checks import assert_gradients, assert_parity, evaluate

TWO_LAYERS = """m (float[2, 4] x) => (float[2, 3] y) {
    a = MatMul(x, w)
    b = Relu(a)
    c = MatMul(b, v)
    y = Tanh(c)
}"""
WEIGHTS = {"w": normal(4, 5), "v": normal(5, 3)}
X = torch.from_numpy(normal(2, 4))


def two_layers() -> Network:
    return Network(load(parse(TWO_LAYERS, WEIGHTS)))


def test_parameters_are_leaves_under_their_names_that_do_not_train_yet() -> None:
    network = two_layers()
    assert set(network.parameters) == {"w", "v"}
    assert all(p.is_leaf and not p.requires_grad for p in network.parameters.values())
    assert (network.inputs, network.outputs) == (("x",), ("y",))


def test_train_only_trains_exactly_what_is_named() -> None:
    network = two_layers()
    network.train_only(["v"])
    network({"x": X})["y"].sum().backward()
    assert network.parameters["v"].grad is not None
    assert network.parameters["w"].grad is None
    network.train_only([])
    assert not network({"x": X})["y"].requires_grad


def test_any_tensor_can_be_wanted_and_nodes_behind_it_do_not_run() -> None:
    text = TWO_LAYERS.replace("y = Tanh(c)", "y = Reshape(c, wrong)")
    proto = parse(text, WEIGHTS | {"wrong": np.array([7, 7])})
    outputs = Network(load(proto))({"x": X}, ["b", "x", "w"])
    assert list(outputs) == ["b", "x", "w"]
    assert torch.equal(outputs["b"], torch.relu(X @ torch.from_numpy(WEIGHTS["w"])))


def test_a_tensor_is_let_go_of_after_its_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    relu, tanh = OPERATORS["Relu"], OPERATORS["Tanh"]

    def remember(node: object, x: torch.Tensor) -> torch.Tensor:
        alive.append(weakref.ref(x))
        return relu(node, x)

    def look(node: object, x: torch.Tensor) -> torch.Tensor:
        gc.collect()
        assert alive[0]() is None
        return tanh(node, x)

    monkeypatch.setitem(OPERATORS, "Relu", remember)
    monkeypatch.setitem(OPERATORS, "Tanh", look)
    network = two_layers()
    with torch.no_grad():
        network({"x": X})
    assert len(alive) == 1


def test_all_missing_operators_are_named_before_anything_runs() -> None:
    text = """m (float[2] x) => (float[2] y) {
        a = ai.onnx.ml.Scaler(x)
        b = Multinomial(a)
        y = RandomNormalLike(b)
    }"""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]> {text}')
    with pytest.raises(ModelError, match=r"ai\.onnx\.ml\.Scaler, Multinomial, RandomNormalLike") as caught:
        Network(load(proto))
    assert_sentence(str(caught.value))


def test_a_missing_operator_inside_a_body_is_named() -> None:
    text = """m (bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = a () => (float[2] t) { t = Bernoulli(x) },
                    else_branch = b () => (float[2] e) { e = Identity(x) }>
    }"""
    with pytest.raises(ModelError, match="Bernoulli"):
        Network(load(parse(text)))


@pytest.mark.parametrize("opset", [6])
def test_an_operator_set_that_is_too_old_is_refused(opset: int) -> None:
    proto = parse("m (float[2] x) => (float[2] y) { y = Relu(x) }", opset=opset)
    with pytest.raises(ModelError, match="operator set 6"):
        Network(load(proto))


def test_unknown_names_are_answered_with_the_nearest_one() -> None:
    network = Network(
        load(parse(TWO_LAYERS.replace("v)", "value)"), {"w": WEIGHTS["w"], "value": WEIGHTS["v"]}))
    )
    with pytest.raises(UsageError, match="did you mean 'value'"):
        network.train_only(["valeu"])
    with pytest.raises(UsageError, match="unknown tensor"):
        network({"x": X}, ["nothing"])
    with pytest.raises(UsageError, match="unknown input"):
        network({"x": X, "w": X})
    with pytest.raises(ModelError, match="inputs too: x"):
        network({})


def test_a_node_that_fails_is_named_with_its_shapes() -> None:
    with pytest.raises(
        ModelError, match=r"\(MatMul\) cannot be evaluated on inputs of shapes \(2, 9\), \(4, 5\)"
    ):
        two_layers()({"x": torch.zeros(2, 9)})


def test_registering_an_operator_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="Conv is registered twice"):
        operator("Conv")(lambda node, x: x)


def test_there_are_operators_enough() -> None:
    assert len(OPERATORS) >= 130


CODED = """m (float[2, 4] x) => (float[2, 5] y) {
    half = Cast<to = 1>(table)
    w = Gather(half, indices)
    y = MatMul(x, w)
}"""
CODED_ARRAYS = {"table": normal(6, dtype=np.float16), "indices": np.arange(20).reshape(4, 5) % 6}


def test_what_follows_from_fixed_numbers_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    gather = OPERATORS["Gather"]
    monkeypatch.setitem(OPERATORS, "Gather", lambda *a: (calls.append(1), gather(*a))[1])
    network = Network(load(parse(CODED, CODED_ARRAYS)))
    first, second = (network({"x": X})["y"] for _ in range(2))
    assert len(calls) == 1
    assert torch.equal(first, second)


def test_numbers_that_change_are_computed_anew() -> None:
    network = Network(load(parse(CODED, CODED_ARRAYS)))
    before = network({"x": X})["y"]
    with torch.no_grad():
        network.parameters["table"].mul_(2)
    assert torch.allclose(network({"x": X})["y"], 2 * before)
    network.train_only(["table"])
    with torch.no_grad():
        network.parameters["table"].mul_(2)
    y = network({"x": X})["y"]
    assert torch.allclose(y, 4 * before)
    y.sum().backward()
    assert network.parameters["table"].grad is not None


def test_sixteen_bit_floats_are_held_and_computed_in_float32() -> None:
    text = """m (float16[2, 4] x) => (float16[2, 3] y) {
        a = MatMul(x, w)
        k = Cast<to = 1>(a)
        s = Sqrt(one)
        t = Cast<to = 10>(s)
        b = Add(a, t)
        y = MatMul(b, v)
    }"""
    halves = {name: array.astype(np.float16) for name, array in WEIGHTS.items()}
    proto = parse(text, halves | {"one": np.ones((), np.float32)})
    network = Network(load(proto))
    assert {p.dtype for p in network.parameters.values()} == {torch.float32}
    network.train_only(["w", "v", "one"])
    y = network({"x": X.half()})["y"]
    y.sum().backward()
    assert y.dtype == torch.float32
    assert all(p.grad is not None for p in network.parameters.values())
    exact = (X.half().float() @ network.parameters["w"] + 1) @ network.parameters["v"]
    assert torch.allclose(y, exact, atol=1e-6)


def test_float64_stays_float64() -> None:
    proto = parse(
        "m (double[2, 4] x) => (double[2, 5] y) { y = MatMul(x, w) }", {"w": normal(4, 5, dtype=np.float64)}
    )
    assert Network(load(proto))({"x": X.double()})["y"].dtype == torch.float64


def test_initializers_that_are_inputs_too_are_initializers() -> None:
    network = Network(load(parse(TWO_LAYERS, WEIGHTS, opset=8, ir=3)))
    assert network.inputs == ("x",)
    assert set(network.parameters) == {"w", "v"}


def test_external_data_is_read_and_never_shared(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(parse(TWO_LAYERS, WEIGHTS), path, save_as_external_data=True, size_threshold=0)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert len(before) == 2
    network = Network(load(path))
    assert torch.equal(network({"x": X})["y"], two_layers()({"x": X})["y"])
    with torch.no_grad():
        network.parameters["w"].zero_()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_an_optional_input_in_the_middle_may_be_left_out() -> None:
    text = 'm (float[3] x, float h) => (float[3] y) { y = Clip(x, "", h) }'
    proto = parse(text.replace('""', ""), opset=13)
    x = np.array([-5, 0.2, 5], np.float32)
    assert evaluate(proto, {"x": x, "h": np.float32(1)})[0].tolist() == [-5, np.float32(0.2), 1]


@pytest.mark.parametrize("condition", [True, False])
def test_branches_see_the_graph_around_them_and_pass_gradients(condition: bool) -> None:
    text = """m (bool c, float[2, 4] x) => (float[2, 5] y) {
        a = Identity(w)
        y = If (c) <then_branch = p () => (float[2, 5] t) { t = MatMul(x, a) },
                    else_branch = q () => (float[2, 5] e) { f = MatMul(x, a) e = Neg(f) }>
    }"""
    proto = parse(text, {"w": WEIGHTS["w"]})
    assert_parity(proto, {"c": np.array(condition), "x": X.numpy()})
    network = Network(load(proto))
    network.train_only(["w"])
    network({"c": torch.tensor(condition), "x": X})["y"].sum().backward()
    sign = 1 if condition else -1
    assert torch.allclose(network.parameters["w"].grad, sign * X.sum(0)[:, None].expand(4, 5))


LOOP = """m (int64 n, float[4] x) => (float[4] last, float[k, 4] all) {
    go = Constant<value_int = 1>()
    keep = Cast<to = 9>(go)
    last, all = Loop (n, keep, x) <
        body = b (int64 i, bool c, float[4] s) => (bool d, float[4] t, float[4] u) {
            d = Identity(c)
            t = Mul(s, w)
            u = Add(t, x)
        }>
}"""


@pytest.mark.parametrize("scope", ["", "last.body/"], ids=["outside", "in its body"])
def test_a_loop_carries_stacks_and_gathers_the_gradients_of_all_turns(scope: str) -> None:
    held = {"w": normal(4)}
    proto = parse(LOOP, bodies={scope: held}) if scope else parse(LOOP, held)
    assert_parity(proto, {"n": np.array(3), "x": normal(4, seed=1)})
    network = Network(load(proto))
    network.train_only(["w"])
    x = torch.from_numpy(normal(4, seed=1))
    network({"n": torch.tensor(3), "x": x})["last"].sum().backward()
    assert torch.allclose(network.parameters["w"].grad, 3 * x * network.parameters["w"].detach() ** 2)


def test_a_function_of_the_model_is_evaluated_with_its_attributes() -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "own": 1]>
    m (float[2, 4] x) => (float[2, 4] y) { y = own.scaled<factor = 3.0, slope = 0.5>(x) }
    <domain: "own", opset_import: ["": 17]>
    scaled <factor, slope> (x) => (y) {
        f = Constant<value_float: float = @factor>()
        a = LeakyRelu<alpha: float = @slope>(x)
        y = Mul(a, f)
    }"""
    proto = onnx.parser.parse_model(text)
    (y,) = evaluate(proto, {"x": X.numpy()})
    assert np.allclose(y, 3 * np.where(X < 0, 0.5 * X, X))


TWO_BRANCHES = """m (bool c, double[2, 4] x) => (double[2, 5] y) {
    a = Neg(x)
    y = If (c) <then_branch = p () => (double[2, 5] t) { f = MatMul(a, w) t = Tanh(f) },
                else_branch = q () => (double[2, 5] e) { e = MatMul(a, v) }>
}"""
THEN, ELSE = "y.then_branch/", "y.else_branch/"
W, V = (normal(4, 5, dtype=np.float64, seed=seed) for seed in (1, 2))
X64 = normal(2, 4, dtype=np.float64)


@pytest.mark.parametrize(("condition", "ran", "other"), [(True, "w", "v"), (False, "v", "w")])
def test_a_weight_in_the_branch_that_runs_gathers_its_gradient(condition: bool, ran: str, other: str) -> None:
    proto = parse(TWO_BRANCHES, bodies={THEN: {"w": W}, ELSE: {"v": V}})
    feeds = {"c": np.array(condition), "x": X64}
    assert_parity(proto, feeds)
    assert_gradients(proto, feeds, {ran})
    network = Network(load(proto))
    network.train_only(["w", "v"])
    network({name: torch.from_numpy(array) for name, array in feeds.items()})["y"].sum().backward()
    assert network.parameters[other].grad is None


@pytest.mark.parametrize("condition", [True, False])
def test_weights_of_equal_names_in_two_branches_stay_constant(condition: bool) -> None:
    proto = parse(TWO_BRANCHES.replace("v)", "w)"), bodies={THEN: {"w": W}, ELSE: {"w": V}})
    assert Network(load(proto)).parameters == {}
    assert_parity(proto, {"c": np.array(condition), "x": X64})


@pytest.mark.parametrize("condition", [True, False])
def test_a_weight_whose_name_another_branch_computes_stays_constant(condition: bool) -> None:
    text = TWO_BRANCHES.replace("f = MatMul(a, w) t = Tanh(f)", "v = MatMul(a, w) t = Tanh(v)")
    proto = parse(text, bodies={THEN: {"w": W}, ELSE: {"v": V}})
    assert set(Network(load(proto)).parameters) == {"w"}
    assert_parity(proto, {"c": np.array(condition), "x": X64})


def test_a_weight_that_a_body_also_takes_as_an_input_stays_constant() -> None:
    text = LOOP.replace("float[4] s)", "float[4] s, float[4] w)")
    proto = parse(text, bodies={"last.body/": {"w": normal(4)}})
    network = Network(load(proto))
    assert network.parameters == {}
    x = torch.from_numpy(normal(4, seed=1))
    last = network({"n": torch.tensor(2), "x": x})["last"]
    assert torch.allclose(last, x * torch.from_numpy(normal(4)) ** 2)


SCAN = """(double[4] start, double[3, 4] x) => (double[4] last, double[3, 4] all) {
    last, all = Scan <num_scan_inputs = 1, body = b (double[4] s, double[4] r) => (double[4] t, double[4] u) {
        p = Gather(w, order)
        k = Mul(s, p)
        t = Add(k, r)
        u = Tanh(t)
    }> (start, x)
}"""
SCANNED = {"w": normal(4, dtype=np.float64), "order": np.array([2, 0, 1, 3])}


def test_a_weight_in_the_body_of_a_scan_has_the_gradient_of_central_differences() -> None:
    proto = parse(f"m {SCAN}", bodies={"last.body/": SCANNED})
    feeds = {"start": normal(4, dtype=np.float64, seed=1), "x": normal(3, 4, dtype=np.float64)}
    assert set(Network(load(proto)).parameters) == {"w"}
    assert_parity(proto, feeds)
    assert_gradients(proto, feeds, {"w"})


def test_a_weight_two_bodies_deep_has_the_gradient_of_central_differences() -> None:
    inner = SCAN[SCAN.index("{") :]
    text = f"""m (bool c, double[4] start, double[3, 4] x) => (double[4] y, double[3, 4] z) {{
        y, z = If (c) <then_branch = p () => (double[4] last, double[3, 4] all) {inner},
                       else_branch = q () => (double[4] e, double[3, 4] f) {{ e = Neg(start) f = Neg(x) }}>
    }}"""
    proto = parse(text, bodies={"y.then_branch/last.body/": SCANNED})
    feeds = {"start": normal(4, dtype=np.float64, seed=1), "x": normal(3, 4, dtype=np.float64)}
    feeds["c"] = np.array(True)
    assert_parity(proto, feeds)
    assert_gradients(proto, feeds, {"w"})


IN_A_FUNCTION = """<ir_version: 8, opset_import: ["": 17, "own": 1]>
m (bool c, float[2] x) => (float[2] y) {
    z = If (c) <then_branch = p () => (float[2] t) <float[2] w = {1, 2}> { t = Mul(x, w) },
                else_branch = q () => (float[2] e) { e = Neg(x) }>
    y = own.scaled(c, z)
}
<domain: "own", opset_import: ["": 17]>
scaled (c, x) => (y) {
    y = If (c) <then_branch = g () => (float[2] t) <float[2] w = {3, 5}> { t = Mul(x, w) },
                else_branch = h () => (float[2] e) { e = Neg(x) }>
}"""


def test_weights_in_the_functions_of_a_model_stay_constant() -> None:
    network = Network(load(onnx.parser.parse_model(IN_A_FUNCTION)))
    network.train_only(["w"])
    x = torch.tensor([1.0, 1.0])
    y = network({"c": torch.tensor(True), "x": x})["y"]
    y.sum().backward()
    assert y.tolist() == [3, 10]
    assert network.parameters["w"].grad.tolist() == [3, 5]


def test_a_body_that_is_given_to_a_function_keeps_its_weights() -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "own": 1]>
    m (bool c, float[2] x) => (float[2] y) {
        y = own.either <branch = p () => (float[2] t) <float[2] w = {1, 2}> { t = Mul(x, w) }> (c, x)
    }
    <domain: "own", opset_import: ["": 17]>
    either <branch> (c, a) => (y) {
        y = If (c) <then_branch: graph = @branch, else_branch = h () => (float[2] e) { e = Neg(a) }>
    }"""
    network = Network(load(onnx.parser.parse_model(text)))
    network.train_only(["w"])
    y = network({"c": torch.tensor(True), "x": torch.tensor([3.0, 4.0])})["y"]
    y.sum().backward()
    assert y.tolist() == [3, 8]
    assert network.parameters["w"].grad.tolist() == [3, 4]
