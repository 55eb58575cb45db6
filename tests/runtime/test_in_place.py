from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import pytest

from onnxdecomp.runtime import in_place as module
from onnxdecomp.runtime.in_place import InPlace, _batches, _covered_ms, _Neighbours, profile_variants
from onnxdecomp.runtime.int8.quantize import as_fast_as_int8
from onnxdecomp.runtime.latency import Timing
from tests.graph.models import normal, parse, rewrite, single_step, three_steps

GEMMS = """
g (float[2, 8] x) => (float[2, 4] y) {
    a = Gemm(x, w0)
    b = Softmax(a)
    y = Gemm(b, w1)
}
"""
CONVS = """
g (float[1, 16, 12, 12] x) => (float[1, 16, 12, 12] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w0)
    r = Relu(a)
    b = Conv <pads = [1, 1, 1, 1]> (r, w1)
    s = Softmax <axis = 1> (b)
    c = Conv <pads = [1, 1, 1, 1]> (s, w2)
    d = Add(c, r)
    y = Relu(d)
}
"""
FOLDED = """
g (float[1, 8, 6, 6] x) => (float[1, 8, 8, 8] y) {
    t = ConvTranspose(x, w)
    n = BatchNormalization(t, one, one, one, one)
    two = Constant <value = float[1, 1, 1] {2}> ()
    m = Mul(two, n)
    y = Softmax <axis = 1> (m)
}
"""


@pytest.fixture
def unit_times(monkeypatch) -> None:
    """Let every node take one millisecond, so that milliseconds count nodes."""
    read = module.read_profile

    def counted(session):
        runs = read(session)
        for events in runs:
            for number, event in enumerate(events):
                event.update(ts=1000 * number, dur=1000)
        return runs

    monkeypatch.setattr(module, "read_profile", counted)


def gemms() -> onnx.ModelProto:
    return parse(GEMMS, {"w0": normal(8, 8), "w1": normal(8, 4)})


def convs() -> onnx.ModelProto:
    return parse(CONVS, {name: normal(16, 16, 3, 3, seed=n) for n, name in enumerate(("w0", "w1", "w2"))})


def only(*keys):
    return lambda group: group.layer.key in keys


def profile(model, *variants, shape, **options):
    options = {"n_runs": 5, "seconds_each": 30.0, **options}
    return profile_variants(model, variants, {"x": normal(*shape)}, **options)


@pytest.mark.usefixtures("unit_times")
def test_a_chain_costs_all_of_its_steps_and_the_layer_its_node():
    model = gemms()
    variants = rewrite(model, select=only("a")), rewrite(model)
    dense, (one, both) = profile(model, *variants, shape=(2, 8))
    assert dense.layers_ms == {"a": 1, "y": 1}
    assert one.layers_ms == {"a": 3, "y": 1}
    assert both.layers_ms == {"a": 3, "y": 3}
    assert [cost.rest_ms for cost in (dense, one, both)] == [1, 1, 1]


def test_a_layer_that_no_variant_replaces_belongs_to_the_rest():
    model = gemms()
    dense, (variant,) = profile(model, rewrite(model, select=only("y")), shape=(2, 8))
    assert dense.layers_ms.keys() == variant.layers_ms.keys() == {"y"}


@pytest.mark.usefixtures("unit_times")
def test_without_variants_all_is_rest():
    dense, others = profile(gemms(), shape=(2, 8))
    assert (dense.layers_ms, dense.rest_ms, others) == ({}, 3, [])


@pytest.mark.usefixtures("unit_times")
@pytest.mark.parametrize("make_chain", [single_step, three_steps])
def test_every_node_that_ran_counts_once(make_chain, monkeypatch):
    seen = []
    read = module.read_profile
    monkeypatch.setattr(module, "read_profile", lambda session: seen.append(read(session)) or seen[-1])
    model = convs()
    dense, (variant,) = profile(model, rewrite(model, make_chain), shape=(1, 16, 12, 12))
    assert [cost.kernels_ms for cost in (dense, variant)] == [len(runs[-1]) for runs in seen]
    assert dense.layers_ms.keys() == {"a", "b", "c"}
    assert all(variant.layers_ms[key] >= dense.layers_ms[key] >= 1 for key in "abc")
    assert dense.rest_ms == variant.rest_ms <= 3  # Softmax; Add and Relu where they were not fused


@pytest.mark.usefixtures("unit_times")
@pytest.mark.parametrize(("make_chain", "n_more"), [(single_step, 0), (three_steps, 2)])
def test_in_another_form_what_runs_counts_for_the_layers_of_the_model(make_chain, n_more):
    model, shape = convs(), (1, 16, 12, 12)
    form = partial(as_fast_as_int8, feeds={"x": normal(*shape)})
    dense, (variant,) = profile(model, rewrite(model, make_chain), shape=shape, form=form)
    assert dense.layers_ms.keys() == variant.layers_ms.keys() == {"a", "b", "c"}
    assert all(dense.layers_ms[key] >= 1 for key in "abc")
    assert [variant.layers_ms[key] - dense.layers_ms[key] for key in "abc"] == [n_more] * 3


RENAMED = """
g (float[2, 16] x) => (float[2, 16] y) {
    a = MatMul(x, w0)
    b = Add(a, r)
    c = Relu(b)
    y = MatMul(c, w1)
}
"""


@pytest.mark.usefixtures("unit_times")
@pytest.mark.parametrize(("make_chain", "n_more"), [(single_step, 0), (three_steps, 2)])
def test_layers_are_known_where_another_form_fuses_them_or_names_what_they_put_out(make_chain, n_more):
    arrays = {name: normal(16, 16, seed=n) for n, name in enumerate(("w0", "w1"))} | {"r": normal(16)}
    model, shape = parse(RENAMED, arrays), (2, 16)
    form = partial(as_fast_as_int8, feeds={"x": normal(*shape)})
    dense, (variant,) = profile(model, rewrite(model, make_chain), shape=shape, form=form)
    assert dense.layers_ms.keys() == variant.layers_ms.keys() == {"a", "y"}
    assert all(dense.layers_ms[key] >= 1 for key in "ay")
    assert [variant.layers_ms[key] - dense.layers_ms[key] for key in "ay"] == [n_more] * 2


@pytest.mark.usefixtures("unit_times")
def test_nodes_folded_into_a_chain_count_for_the_layer_where_they_still_stand():
    model = parse(FOLDED, {"w": normal(8, 8, 3, 3), "one": np.ones(8, np.float32)})
    variant = rewrite(model)
    assert [node.op_type for node in variant.graph.node] == ["Conv", "ConvTranspose", "Conv", "Softmax"]
    dense, (folded,) = profile(model, variant, shape=(1, 8, 6, 6))
    assert dense.layers_ms.keys() == folded.layers_ms.keys() == {"t"}
    assert dense.layers_ms["t"] >= 2  # onnxruntime may fuse the normalization, but not the Mul
    assert folded.layers_ms["t"] >= 3
    assert dense.rest_ms == folded.rest_ms == 1


@pytest.mark.usefixtures("unit_times")
def test_chains_that_the_original_had_already_are_layers_of_their_own():
    model = rewrite(gemms(), select=only("a"))
    steps = [node.output[0] for node in model.graph.node[:3]]
    dense, (variant,) = profile(model, rewrite(model, select=only(steps[1])), shape=(2, 8))
    assert dense.layers_ms == {steps[1]: 1}
    assert variant.layers_ms == {steps[1]: 3}
    assert dense.rest_ms == variant.rest_ms == 4


def test_a_layer_of_a_branch_that_was_not_taken_costs_nothing():
    text = """
    g (float[2, 4] x, bool b) => (float[2, 4] y) {
        y = If (b) <
            then_branch = small () => (float[2, 4] o) { o = MatMul(x, w) },
            else_branch = large () => (float[2, 4] o) { q = Relu(x) o = MatMul(q, v) }
        >
    }
    """
    model = parse(text, {"w": normal(4, 4), "v": normal(4, 4, seed=1)})
    feeds = {"x": normal(2, 4), "b": np.array(True)}
    dense, (variant,) = profile_variants(model, [rewrite(model)], feeds, n_runs=5)
    taken, other = "y.then_branch/o", "y.else_branch/o"
    assert dense.layers_ms.keys() == variant.layers_ms.keys() == {taken, other}
    assert (dense.layers_ms[other], variant.layers_ms[other]) == (0, 0)


def test_models_are_left_as_they_were():
    model = gemms()
    variant = rewrite(model)
    before = [m.SerializeToString(deterministic=True) for m in (model, variant)]
    profile(model, variant, shape=(2, 8))
    assert [m.SerializeToString(deterministic=True) for m in (model, variant)] == before


@pytest.mark.usefixtures("unit_times")
def test_a_model_with_external_data_comes_as_a_path_and_its_variants_refer_to_it(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(gemms(), path, save_as_external_data=True, location="weights", size_threshold=0)
    in_memory, on_disk = rewrite(path, select=only("a")), tmp_path / "variant.onnx"
    rewrite(path, select=only("a"), out_path=on_disk)
    dense, variants = profile(path, in_memory, on_disk, shape=(2, 8))
    assert [cost.layers_ms for cost in (dense, *variants)] == [{"a": 1}, {"a": 3}, {"a": 3}]


def test_only_the_runs_that_count_are_read(monkeypatch):
    read = module.read_profile

    def slow_start(session):
        runs = read(session)
        for number, events in enumerate(runs):
            for event in events:
                event["dur"] = 1000 if number >= len(runs) - 5 else 10**6
        return runs

    monkeypatch.setattr(module, "read_profile", slow_start)
    dense, _ = profile(gemms(), rewrite(gemms()), shape=(2, 8))
    assert (dense.layers_ms, dense.spreads_ms) == ({"a": 1, "y": 1}, {"a": 0, "y": 0})
    assert dense.wall.n_runs == 5


def graph_of(*nodes: tuple[str, str, str], body: onnx.GraphProto | None = None) -> onnx.GraphProto:
    """Return a graph of nodes ``(operator, inputs, output)``, each named like its output, and of a Loop."""
    protos = [onnx.helper.make_node(op, i.split(), [o], name=o) for op, i, o in nodes]
    if body is not None:
        protos.append(onnx.helper.make_node("Loop", ["n", "go"], ["end"], body=body))
    return onnx.helper.make_graph(protos, "g", [], [])


def neighbours(*nodes: tuple[str, str, str], layers: dict[str, str]) -> _Neighbours:
    return _Neighbours(graph_of(*nodes), layers)


BETWEEN = {"p": "before", "c": "behind"}


@pytest.mark.parametrize(
    ("op_type", "layers", "expected"),
    [
        ("ReorderInput", BETWEEN, "before"),  # the plain side
        ("ReorderOutput", BETWEEN, "behind"),  # the plain side
        ("Cast", BETWEEN, "behind"),
        ("Transpose", {"p": "before", "c": ""}, "before"),
        ("ReorderOutput", {"p": "before", "c": ""}, "before"),
        ("ReorderInput", {"p": "", "c": "behind"}, "behind"),
        ("ReorderInput", {"p": "", "c": ""}, ""),
        ("Attention", BETWEEN, ""),  # not inserted, only renamed
    ],
)
def test_what_was_inserted_is_charged_to_the_layer_beside_it(op_type, layers, expected):
    graph = neighbours(("Conv", "x", "p"), (op_type, "p", "i"), ("Conv", "i w", "c"), layers=layers)
    assert graph.needed_by("i") == expected


def test_two_nodes_inserted_behind_each_other_serve_the_same_layer():
    nodes = ("Conv", "x", "p"), ("ReorderOutput", "p", "i"), ("Cast", "i", "j"), ("Relu", "j", "c")
    graph = neighbours(*nodes, layers={"p": "before", "c": ""})
    assert (graph.needed_by("i"), graph.needed_by("j")) == ("before", "before")


def test_of_several_consumers_a_layer_is_found():
    nodes = ("Conv", "x", "p"), ("ReorderOutput", "p", "i"), ("Relu", "i", "q"), ("Conv", "i w", "c")
    assert neighbours(*nodes, layers={**BETWEEN, "q": ""}).needed_by("i") == "behind"


@pytest.mark.parametrize(("inside", "expected"), [("before", "before"), ("other", "")])
def test_what_has_the_same_name_in_a_body_serves_a_layer_if_it_is_the_same_one(inside, expected):
    body = graph_of(("Conv", "b", "q"), ("ReorderOutput", "q", "i"))
    graph = graph_of(("Conv", "x", "p"), ("ReorderOutput", "p", "i"), body=body)
    assert _Neighbours(graph, {"p": "before", "q": inside}).needed_by("i") == expected


def test_what_is_not_in_the_optimized_model_serves_no_layer():
    assert neighbours(("Conv", "x", "p"), layers={"p": "before"}).needed_by("i") == ""


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], 0.0),
        ([(0, 1000), (1000, 500)], 1.5),
        ([(100, 50), (0, 1000), (200, 300)], 1.0),
        ([(0, 1000), (500, 1000)], 1.5),
    ],
)
def test_time_inside_a_body_is_covered_once(spans, expected):
    assert _covered_ms([{"ts": ts, "dur": dur} for ts, dur in spans]) == pytest.approx(expected)


def test_only_so_many_models_are_held_at_once(monkeypatch):
    monkeypatch.setattr(module, "MAX_TOGETHER_BYTES", 10)
    monkeypatch.setattr(module, "_size_bytes", lambda size_bytes, folder: size_bytes)
    made: list[int] = []

    def making():
        for size_bytes in (3, 3, 3, 20, 1):
            made.append(size_bytes)
            yield size_bytes

    found = _batches(making(), 4, None)
    assert next(found) == [3, 3]
    assert made == [3, 3, 3]
    assert list(found) == [[3], [20], [1]]


def test_layers_that_other_variants_replace_are_told_of_the_original(monkeypatch):
    monkeypatch.setattr(module, "MAX_TOGETHER_BYTES", 1)

    def stand_in(models, layers, *rest):
        cost = InPlace(dict.fromkeys(layers, 1.0), {}, 5.0 - len(layers), Timing.of([6.0] * 5))
        return [cost for _ in models]

    monkeypatch.setattr(module, "_profile", stand_in)
    model = gemms()
    dense, (first, second) = profile(
        model, *(rewrite(model, select=only(key)) for key in ("a", "y")), shape=(2, 8)
    )
    assert (dense.layers_ms, dense.rest_ms) == ({"a": 1.0, "y": 1.0}, 3.0)
    assert first.layers_ms == {"a": 1.0}
    assert second.layers_ms == {"y": 1.0}
    assert dense.kernels_ms == first.kernels_ms


def test_batches_are_brought_to_one_scale_by_the_original(monkeypatch):
    monkeypatch.setattr(module, "MAX_TOGETHER_BYTES", 1)
    speeds = iter((1.0, 2.0))

    def stand_in(models, *rest):
        slow = next(speeds)
        cost = InPlace({"a": slow}, {"a": 0.1 * slow}, 2 * slow, Timing.of([3 * slow] * 5))
        return [replace(cost) for _ in models]

    monkeypatch.setattr(module, "_profile", stand_in)
    model = gemms()
    dense, (first, second) = profile(model, rewrite(model), rewrite(model), shape=(2, 8))
    assert first == second == dense
    assert second.wall.median_ms == pytest.approx(3)
