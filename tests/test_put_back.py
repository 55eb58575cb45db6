"""What is slower inside the model is put back, layer by layer."""

import re

import numpy as np
import onnx
import pytest

import onnxdecomp
from onnxdecomp import put_back as module
from onnxdecomp.config import LayerRule
from onnxdecomp.errors import ModelError
from onnxdecomp.runtime import in_place as profiler
from onnxdecomp.runtime.evaluate import outputs_over
from tests.networks import low_rank, network
from tests.timers import even, in_place, measured


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr("onnxdecomp.selection.measure_chains", even)
    monkeypatch.setattr("onnxdecomp.proof.compare_latency", measured(1.5, 0.1))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.onnx"
    onnx.save(network(), path)
    return path


@pytest.fixture
def profiled(monkeypatch):
    """Let chains take these milliseconds in place, round after round; return the models looked at."""

    def use(*rounds, **options):
        seen, profile = [], in_place(*rounds, **options)

        def watch(model, variants, *rest, **more):
            seen.append(variants[0])
            return profile(model, variants, *rest, **more)

        monkeypatch.setattr(module, "profile_variants", watch)
        return seen

    return use


HALVED = {"rank": "ratio:0.5", "op_types": {"Conv": LayerRule(method="channel-svd")}}


def halved(source):
    return onnxdecomp.convert(source, source.with_name("out.onnx"), **HALVED)


def reasons(report):
    return {layer.key: layer.reason for layer in report.layers if layer.status == "kept"}


def test_only_the_layer_whose_chain_is_slower_in_place_is_put_back(source, profiled):
    profiled({"c1": 1.31, "c2": 0.5})
    report = halved(source)
    assert reasons(report) == {"c1": "put back: 1.31 ms in place instead of 1 ms"}
    written = {node.name: node.op_type for node in onnx.load(source.with_name("out.onnx")).graph.node}
    assert {"conv1", "norm1"} <= written.keys()
    assert "conv2" not in written
    assert report.latency is not None


def test_what_was_put_back_counts_as_before(source, profiled):
    profiled({"c1": 2.0})
    layers = {layer.key: layer for layer in halved(source).layers}
    assert layers["c1"].params.ratio == layers["c1"].macs.ratio == 1.0
    assert layers["c2"].params.ratio > 1.9


@pytest.mark.parametrize(("chain_ms", "n_kept"), [(1.019, 0), (1.021, 1)])
def test_a_loss_within_the_noise_is_no_loss(source, profiled, chain_ms, n_kept):
    profiled({"c1": chain_ms}, spread_ms=0.01)
    assert len(reasons(halved(source))) == n_kept


def test_what_becomes_slower_without_its_neighbour_is_put_back_too(source, profiled):
    models = profiled({"c1": 2.0}, {"c2": 3.0}, {})
    report = halved(source)
    assert list(reasons(report)) == ["c1", "c2"]
    assert len(models) == 3


def test_the_model_is_rewritten_at_most_three_times(source, profiled):
    models = profiled({"c1": 2.0}, {"c2": 2.0}, {"g": 2.0}, {"y": 2.0})
    assert [layer.key for layer in halved(source).decomposed] == ["y"]
    assert len(models) == 3


def test_with_all_layers_put_back_the_output_is_the_original(source, profiled):
    profiled(dict.fromkeys(("c1", "c2", "g", "y"), 2.0))
    report = halved(source)
    assert not report.decomposed
    assert onnx.load(source.with_name("out.onnx")) == onnx.load(source)
    assert "Nothing was decomposed: the output is the original model." in report.notes


@pytest.mark.parametrize("options", [{"allow_slower": True}, {"rank": "full"}, {"verify": "layers"}])
def test_nothing_is_profiled_where_slower_is_no_matter(source, profiled, options):
    models = profiled({"c1": 2.0})
    report = onnxdecomp.convert(source, None, **HALVED | options)
    assert (models, reasons(report)) == ([], {})


def test_chains_of_a_large_model_are_not_held(source, profiled, monkeypatch):
    models = profiled({"c1": 2.0})
    monkeypatch.setattr(module, "HELD_BYTES", source.stat().st_size - 1)
    assert (len(halved(source).decomposed), models) == (4, [])


def test_weights_in_files_of_their_own_are_written_anew(tmp_path, profiled):
    source = tmp_path / "in.onnx"
    onnx.save(network(), source, save_as_external_data=True, location="weights", size_threshold=0)
    profiled({"c1": 2.0})
    halved(source)
    images = {"x": np.random.default_rng(0).standard_normal((2, 16, 12, 12)).astype(np.float32)}
    before, after = (outputs_over(path, images)["y"] for path in (source, tmp_path / "out.onnx"))
    assert np.linalg.norm(after - before) < 0.1 * np.linalg.norm(before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.onnx", "out.onnx", "out.onnx.data", "weights"]


def test_sites_that_share_a_weight_are_put_back_together(tmp_path, profiled):
    model = network()
    clone = onnx.helper.make_node("Conv", ["r1", "w2", "b2"], ["c3"], "conv3", pads=[1] * 4, strides=[2] * 2)
    model.graph.node.insert(4, clone)
    model.graph.output.append(onnx.helper.make_tensor_value_info("c3", onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "in.onnx")
    profiled({"c2": 0.9, "c3": 1.5})
    report = halved(tmp_path / "in.onnx")
    assert reasons(report) == dict.fromkeys(("c2", "c3"), "put back: 2.4 ms in place instead of 2 ms")


def test_a_model_that_cannot_be_profiled_is_judged_as_a_whole(source, monkeypatch):
    def broken(*args, **options):
        raise ModelError("no profile")

    monkeypatch.setattr(module, "profile_variants", broken)
    assert len(halved(source).decomposed) == 4


@pytest.fixture
def searched(source, tmp_path):
    """Convert with data."""
    rng = np.random.default_rng(11)
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((64, 16, 12, 12)).astype(np.float32))
    return lambda **options: onnxdecomp.convert(
        source, tmp_path / "out.onnx", calibration=str(tmp_path / "x.npz"), cache="none", **options
    )


def test_accuracy_is_measured_of_what_is_written(searched, profiled, tmp_path, source):
    slow = dict.fromkeys(("c1", "c2", "g"), 2.0)
    profiled(slow)
    report = searched(rank="ratio:0.2", metric="sqnr", seed=1)
    before, after = (
        outputs_over(path, {"x": np.load(tmp_path / "x.npz")["x"]})["y"]
        for path in (source, tmp_path / "out.onnx")
    )
    assert [layer.key for layer in report.decomposed] == ["y"]
    noise = np.sum(np.square(after - before)) / np.sum(np.square(before))
    assert report.accuracy.drop == pytest.approx(noise, rel=0.5)


def large_and_small():
    """Return a model of a large Gemm with slack, and beside it a Conv so small that two take longer."""
    shapes = {"large": (16, 1024), "small": (1, 16, 64, 64)}
    nodes = [
        onnx.helper.make_node(op_type, [f"x_{key}", f"w_{key}"], [key])
        for op_type, key in (("Gemm", "large"), ("Conv", "small"))
    ]
    inputs, outputs = (
        [onnx.helper.make_tensor_value_info(f"{start}{key}", 1, shape) for key, shape in shapes.items()]
        for start in ("x_", "")
    )
    weights = {"w_large": low_rank((1024, 1024), 4), "w_small": low_rank((16, 16, 1, 1), 4)}
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = onnx.helper.make_graph(nodes, "large_and_small", inputs, outputs, stored)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def test_what_the_profiler_of_onnxruntime_says_is_put_back(monkeypatch):
    """Every node takes a millisecond, and the large layer five: two steps are slower or faster than that."""
    read = profiler.read_profile

    def counted(session):
        runs = read(session)
        for events in runs:
            gemms = [event for event in events if event["args"]["op_name"] == "Gemm"]
            for event in events:
                event["dur"] = 5000 if [event] == gemms else 1000
        return runs

    monkeypatch.setattr(profiler, "read_profile", counted)
    report = onnxdecomp.convert(large_and_small(), rank="7")
    assert [layer.key for layer in report.decomposed] == ["large"]
    assert list(reasons(report)) == ["small"]
    said = re.fullmatch(r"put back: (\d) ms in place instead of (\d) ms", reasons(report)["small"])
    assert int(said[1]) > int(said[2])  # two steps, and the layout changes around them
