import numpy as np
import onnx
import pytest

from onnxdecomp.graph.walk import walk
from onnxdecomp.runtime.observe import node_times, observe
from onnxdecomp.runtime.session import open_session, run
from tests.graph.models import normal, parse

CONV_RELU = """
g (float[1, 8, 16, 16] x) => (float[1, 8, 16, 16] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w)
    r = Relu(c)
    d = Conv <pads = [1, 1, 1, 1]> (r, w)
    s = Add(d, x)
    y = Relu(s)
}
"""

BRANCHES = """
g (float[1, 4, 8, 8] x, bool b) => (float[N, M, H, W] y) {
    y = If (b) <
        then_branch = small () => (float[N, M, H, W] o) { q = Conv(x, w) o = Relu(q) },
        else_branch = large () => (float[N, M, H, W] o) { q = Conv <pads = [1, 1, 1, 1]> (x, w) o = Relu(q) }
    >
}
"""

LOOP = """
g (float[2, 4] x, int64 n, bool go) => (float[2, 4] y) {
    y = Loop (n, go, x) <
        body = step (int64 i, bool before, float[2, 4] a) => (bool after, float[2, 4] z) {
            after = Identity(before)
            z = MatMul(a, w)
        }
    >
}
"""


def feeds(**scalars) -> dict:
    return {name: np.asarray(value) for name, value in scalars.items()}


@pytest.fixture
def branches() -> onnx.ModelProto:
    return parse(BRANCHES, {"w": normal(5, 4, 3, 3)})


def test_shapes_are_those_of_the_run():
    runs = observe(parse(CONV_RELU, {"w": normal(8, 8, 3, 3)}), {"x": normal(1, 8, 16, 16)})
    assert runs.keys() == set("crdsy")
    assert runs["c"].in_shapes == ((1, 8, 16, 16), (8, 8, 3, 3))
    assert runs["c"].out_shapes == ((1, 8, 16, 16),)
    assert runs["c"].data_shape == (1, 8, 16, 16)


@pytest.mark.parametrize(("taken", "size"), [("then_branch", 6), ("else_branch", 8)])
def test_only_the_branch_that_ran_is_seen(branches, taken, size):
    runs = observe(branches, {"x": normal(1, 4, 8, 8), **feeds(b=taken == "then_branch")})
    assert runs.keys() == {"y", f"y.{taken}/q", f"y.{taken}/o"}
    assert runs[f"y.{taken}/q"].out_shapes == ((1, 5, size, size),)


def test_a_loop_runs_its_body_many_times():
    model = parse(LOOP, {"w": normal(4, 4)})
    seen = observe(model, {"x": normal(2, 4), **feeds(n=np.int64(3), go=True)})["y.body/z"]
    assert (seen.n_calls, seen.in_shapes, seen.out_shapes) == (3, ((2, 4), (4, 4)), ((2, 4),))


def test_a_missing_input_has_no_shape_and_shifts_no_other():
    text = "g (float[4] x) => (float[4] y) { y = Clip(x, , top) }"
    runs = observe(parse(text, {"top": np.float32(1).reshape(())}), {"x": normal(4)})
    assert runs["y"].in_shapes == ((4,), None, ())


@pytest.mark.parametrize(
    ("expression", "arrays", "shape"),
    [
        ("y = MatMul(w, x)", {"w": normal(3, 4)}, (4, 2)),
        ("t = Transpose(w) y = MatMul(t, x)", {"w": normal(4, 3)}, (4, 2)),
        ("c = Constant <value = float[1, 4] {1, 2, 3, 4}> () y = MatMul(c, x)", {}, (4, 2)),
        ("t = Transpose(x) y = MatMul(t, w)", {"w": normal(4, 3)}, (2, 4)),
        ("t = Identity(w) y = Add(t, w)", {"w": normal(4, 3)}, None),
    ],
)
def test_the_data_of_a_node_is_its_first_input_that_is_not_constant(expression, arrays, shape):
    model = parse(f"g (float[4, 2] x) => (float[N, M] y) {{ {expression} }}", arrays)
    assert observe(model, {"x": normal(4, 2)})["y"].data_shape == shape


def test_a_weight_of_the_outer_graph_is_constant_inside_a_body(branches):
    runs = observe(branches, {"x": normal(1, 4, 8, 8), **feeds(b=True)})
    assert runs["y.then_branch/q"].data_index == 0


def test_nodes_of_the_same_name_are_told_apart():
    model = parse(CONV_RELU, {"w": normal(8, 8, 3, 3)})
    for node in model.graph.node:
        node.name = "twin"
    assert observe(model, {"x": normal(1, 8, 16, 16)}).keys() == set("crdsy")


@pytest.mark.parametrize("look", [observe, node_times])
def test_looking_does_not_change_the_model(branches, look):
    before = branches.SerializeToString(deterministic=True)
    look(branches, {"x": normal(1, 4, 8, 8), **feeds(b=True)})
    assert branches.SerializeToString(deterministic=True) == before


def test_a_model_with_external_data_is_observed_from_its_path(tmp_path):
    path = tmp_path / "model.onnx"
    model = parse(CONV_RELU, {"w": normal(8, 8, 3, 3)})
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    assert observe(path, {"x": normal(1, 8, 16, 16)})["d"].in_shapes[1] == (8, 8, 3, 3)


def test_time_of_a_fused_node_stands_at_the_layer_it_began_with():
    times = node_times(parse(CONV_RELU, {"w": normal(8, 8, 3, 3)}), {"x": normal(1, 8, 16, 16)}, runs=3)
    assert times["c"] > 0
    assert times["d"] > 0
    assert times.keys() <= {"c", "d", "s", "y", ""}  # the Relu r is always inside c


def test_a_float16_layer_that_is_computed_in_float32_keeps_its_time():
    text = "g (float16[1, 16, 8, 8] x) => (float16[1, 16, 6, 6] y) { c = Conv(x, w) y = Relu(c) }"
    model = parse(text, {"w": normal(16, 16, 3, 3, dtype=np.float16)})
    times = node_times(model, {"x": normal(1, 16, 8, 8, dtype=np.float16)}, runs=3)
    assert times["c"] > 0


def test_a_batch_normalization_behind_relu_keeps_its_own_time():
    text = """
    g (float[1, 8, 16, 16] x) => (float[1, 16, 14, 14] y) {
        c = Conv(x, w)
        r = Relu(c)
        n = BatchNormalization(r, s, b, m, v)
        y = Sigmoid(n)
    }
    """
    ones = dict.fromkeys("sbmv", np.ones(16, np.float32))
    times = node_times(parse(text, {"w": normal(16, 8, 3, 3), **ones}), {"x": normal(1, 8, 16, 16)}, runs=3)
    assert times["c"] > 0
    assert times["n"] > 0


def test_a_gemm_made_of_matmul_and_add_counts_for_the_matmul():
    text = "g (float[2, 8] x) => (float[2, 6] y) { p = MatMul(x, w) y = Add(p, b) }"
    times = node_times(parse(text, {"w": normal(8, 6), "b": normal(6)}), {"x": normal(2, 8)}, runs=3)
    assert times.keys() == {"p"}


def test_layers_of_a_branch_have_times_and_the_if_keeps_only_its_own(branches):
    inputs = {"x": normal(1, 4, 8, 8), **feeds(b=True)}
    times = node_times(branches, inputs, runs=5)
    assert times.keys() <= {"y", "y.then_branch/q", ""}
    assert times["y.then_branch/q"] > 0


def test_every_observed_key_is_a_key_of_walk(branches):
    runs = observe(branches, {"x": normal(1, 4, 8, 8), **feeds(b=False)})
    assert runs.keys() <= {place.key for place in walk(branches.graph)}


def test_the_observed_copy_computes_what_the_model_does():
    model = parse(LOOP, {"w": normal(4, 4)})
    inputs = {"x": normal(2, 4), **feeds(n=np.int64(2), go=True)}
    w, x = normal(4, 4), inputs["x"]
    np.testing.assert_allclose(run(open_session(model), inputs)["y"], x @ w @ w, rtol=1e-4)
