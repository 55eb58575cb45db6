"""Channels between layers are taken out where that brings more than ranks do, and only where they may be."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxdecomp.graph.io import load
from onnxdecomp.pipeline import convert
from onnxdecomp.ranks.knapsack import Option as Item
from onnxdecomp.ranks.knapsack import choose
from onnxdecomp.runtime.evaluate import outputs_over
from onnxdecomp.runtime.machine import channel_block
from onnxdecomp.runtime.session import read_proto
from onnxdecomp.search import pruning
from onnxdecomp.search.auto import Ballot
from onnxdecomp.search.pruning import joined
from tests.networks import low_rank, network
from tests.timers import clock_of, in_place, stop_the_clock

CHANNELS = 4 * channel_block()


@pytest.fixture(autouse=True)
def steady_clock(monkeypatch):
    stop_the_clock(monkeypatch)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).standard_normal((96, 16, 12, 12)).astype(np.float32)


@pytest.fixture
def model(tmp_path):
    """A network of full rank in which half of the channels between two convolutions repeat the others."""
    proto = network(channels=CHANNELS, rank=9 * CHANNELS)
    half = CHANNELS // 2
    for tensor in proto.graph.initializer:
        if tensor.name in ("w1", "scale", "shift", "mean", "var"):
            array = numpy_helper.to_array(tensor).copy()
            array[half:] = array[:half]
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    path = tmp_path / "in.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture
def calibration(tmp_path, images):
    np.savez(tmp_path / "calibration.npz", x=images)
    return str(tmp_path / "calibration.npz")


def search(model, calibration, **options):
    given = {"metric": "sqnr", "max_drop": 1e-5, "cache": "none", **options}
    return convert(model, model.with_name("out.onnx"), calibration=calibration, **given)


def pruned_shapes(report):
    return {layer.key: layer.pruned_shape for layer in report.layers if layer.pruned_shape}


BOTH = {"c1": (CHANNELS // 2, 16, 3, 3), "c2": (CHANNELS, CHANNELS // 2, 3, 3)}


def test_channels_that_repeat_others_go(model, calibration, images):
    report = search(model, calibration)
    assert pruned_shapes(report) == BOTH
    assert report.model["macs"].after <= 0.52 * report.model["macs"].before
    assert report.accuracy.drop <= 1e-5
    outputs = [outputs_over(path, {"x": images})["y"] for path in (model, model.with_name("out.onnx"))]
    assert np.abs(outputs[1] - outputs[0]).max() <= 0.01 * np.abs(outputs[0]).max()
    onnx.checker.check_model(onnx.load(model.with_name("out.onnx")), full_check=True)


def test_the_norm_behind_the_first_layer_is_folded_into_what_is_left(model, calibration):
    search(model, calibration)
    kinds = [node.op_type for node in onnx.load(model.with_name("out.onnx")).graph.node]
    assert "BatchNormalization" not in kinds


@pytest.mark.parametrize(
    "options",
    [{"without": ("pruning",)}, {"exclude": ("c1",)}, {"exclude": ("c2",)}, {"method": "spatial-svd"}],
    ids=str,
)
def test_channels_stay_where_that_was_asked_for(model, calibration, options):
    assert pruned_shapes(search(model, calibration, **options)) == {}


@pytest.mark.parametrize(("target", "share"), [("target_macs", 0.5), ("target_size", 0.6)])
def test_targets_count_what_the_layer_before_saves(model, calibration, target, share):
    report = search(model, calibration, max_drop=None, **{target: share})
    assert pruned_shapes(report) == BOTH
    figure = report.model["macs" if target == "target_macs" else "params"]
    assert figure.after <= share * figure.before


@pytest.mark.parametrize(("second_ms", "is_kept"), [(0.9, True), (1.7, False)])
def test_layers_that_lost_channels_together_are_put_back_together(
    monkeypatch, model, calibration, second_ms, is_kept
):
    monkeypatch.setattr("onnxdecomp.put_back.profile_variants", in_place({"c1": 0.5, "c2": second_ms}))
    report = search(model, calibration)
    assert set(pruned_shapes(report)) == ({"c1", "c2"} if is_kept else set())
    converted = outputs_over(model.with_name("out.onnx"), {"x": np.zeros((1, 16, 12, 12), np.float32)})
    assert np.isfinite(converted["y"]).all()


@pytest.mark.parametrize("after", [{"int8": True, "max_drop": 1e-3}, {"cluster": "8"}], ids=str)
def test_what_comes_after_takes_a_model_with_fewer_channels(monkeypatch, model, calibration, after):
    monkeypatch.setattr("onnxdecomp.search.int8.compare_latency", clock_of(3.0, 1.5))
    report = search(model, calibration, **after)
    assert set(pruned_shapes(report)) == {"c1", "c2"}
    assert report.int8 or report.clustered


def test_a_second_search_finds_the_same_in_the_cache(model, calibration, tmp_path):
    made = []
    for _ in range(2):
        search(model, calibration, cache=str(tmp_path / "cache"))
        made.append(read_proto(model.with_name("out.onnx")))
    assert made[0] == made[1]


def test_any_number_of_jobs_finds_the_same(model, calibration):
    made = []
    for jobs in (1, 2):
        search(model, calibration, jobs=jobs)
        made.append(load(model.with_name("out.onnx")).proto)
    assert made[0] == made[1]


def test_joined_choices_are_those_of_each_or_a_form_of_all():
    first = Ballot([(), ("a",)], [Item(0.0, 2.0), Item(1.0, 1.0)])
    second = Ballot([(), ("b",), ("c",)], [Item(0.0, 3.0), Item(0.5, 2.0), Item(4.0, 1.0)])
    forms = [(("f", "g"), Item(0.6, 3.5)), (("h", "i"), Item(9.0, 7.0))]
    found = joined([first, second], 6.0, forms)
    assert found.alternatives[0] == ()
    assert found.items[0] == Item(0.0, 6.0)
    assert ("f", "g") in found.alternatives
    assert ("h", "i") not in found.alternatives
    assert ("a", "c") in found.alternatives
    costs = [item.cost for item in found.items]
    errors = [item.error for item in found.items]
    assert costs == sorted(costs, reverse=True)
    assert errors == sorted(errors)


def test_layers_timed_together_as_faster_than_apart_cost_nothing_at_the_least():
    first = Ballot([(), ("a",)], [Item(0.0, 3.0), Item(0.5, 0.1)])
    second = Ballot([(), ("b",)], [Item(0.0, 4.0), Item(0.5, 0.2)])
    found = joined([first, second], 6.0, [])
    assert min(item.cost for item in found.items) == pytest.approx(0.1 + 0.2)
    assert choose([found.items], 1.0) is not None


@pytest.mark.parametrize("budget", [6.0, 5.0, 4.0, 3.2, 3.0])
def test_a_joined_choice_is_never_worse_than_those_of_each(budget):
    first = Ballot([(), ("a",)], [Item(0.0, 2.0), Item(1.0, 1.0)])
    second = Ballot([(), ("b",), ("c",)], [Item(0.0, 3.0), Item(0.5, 2.0), Item(4.0, 1.0)])
    apart, together = [first.items, second.items], joined([first, second], 6.0, []).items
    least = sum(own[index].error for own, index in zip(apart, choose(apart, budget - 1.0), strict=True))
    assert together[choose([together], budget)[0]].error == pytest.approx(least)


@pytest.fixture
def matrices(tmp_path):
    """Two matrices: half of what the first puts out repeats the rest, and the second is of low rank."""
    rng = np.random.default_rng(5)
    first = rng.standard_normal((2 * CHANNELS, 24)).astype(np.float32)
    first[CHANNELS:] = 2 * first[:CHANNELS]
    numbers = {
        "v": first,
        "a": np.zeros(2 * CHANNELS, np.float32),
        "w": low_rank((2 * CHANNELS, 2 * CHANNELS), 4, noise=0.1),
        "b": rng.standard_normal(2 * CHANNELS).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "v", "a"], ["p"], transB=1),
        helper.make_node("Relu", ["p"], ["r"]),
        helper.make_node("Gemm", ["r", "w", "b"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "matrices",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2 * CHANNELS])],
        [numpy_helper.from_array(array, name) for name, array in numbers.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "matrices.onnx")
    np.savez(tmp_path / "rows.npz", x=rng.standard_normal((4000, 24)).astype(np.float32))
    return tmp_path / "matrices.onnx", str(tmp_path / "rows.npz")


@pytest.mark.parametrize("without", [(), ("bias",)])
def test_a_matrix_of_fewer_channels_keeps_its_factors(matrices, without):
    model, rows = matrices
    report = search(model, rows, max_drop=0.02, without=without)
    assert set(pruned_shapes(report)) == {"p", "y"}
    (second,) = (layer for layer in report.layers if layer.key == "y")
    assert (second.method, second.ranks) == ("svd/2-steps", (4,))
    assert second.pruned_shape[1] <= CHANNELS
    assert second.data_error < 0.15
    x = {"x": np.load(rows)["x"]}
    before, after = (outputs_over(path, x)["y"] for path in (model, model.with_name("out.onnx")))
    assert np.linalg.norm(after - before) <= 0.15 * np.linalg.norm(before)


@pytest.mark.parametrize(
    ("gain", "looks_are_long", "n_chosen"), [(0.03, False, 1), (0.03, True, 0), (0.06, True, 1)]
)
def test_where_looks_are_long_a_form_has_to_save_more(monkeypatch, gain, looks_are_long, n_chosen):
    monkeypatch.setattr(pruning, "_gain", lambda *_: gain)
    monkeypatch.setattr(pruning, "divergence", lambda *_, **__: 0.0)
    form = SimpleNamespace(keys=frozenset("a"), layer=None, whole=None)
    trials = SimpleNamespace(looks_are_long=looks_are_long)
    ballots = {"a": Ballot([()], [Item(0.0, 1.0)])}
    assert len(pruning.worth_decomposing([form], ballots, lambda *_: 1.0, trials)) == n_chosen
