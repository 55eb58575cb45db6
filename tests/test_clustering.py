"""Conversions that store weights as codebooks, and back."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxdecomp
from onnxdecomp.config import LayerRule
from onnxdecomp.errors import BudgetError, UsageError
from onnxdecomp.report.as_json import report_json
from onnxdecomp.runtime.measure import Alone
from onnxdecomp.runtime.session import open_session, run
from tests.networks import network
from tests.timers import even, in_place, measured

SAME = 1e-6
"""Relative error of outputs between a model with codebooks and the same with dense weights."""


def alone(path, feeds, threads):
    """Load a model in as many milliseconds as it has kilobytes."""
    return Alone(path.stat().st_size / 1e3, 2**20)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr("onnxdecomp.selection.measure_chains", even)
    monkeypatch.setattr("onnxdecomp.proof.compare_latency", measured(1.0, 0.1))
    monkeypatch.setattr("onnxdecomp.put_back.profile_variants", in_place())
    monkeypatch.setattr("onnxdecomp.proof.run_alone", alone)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.onnx"
    onnx.save(network(), path)
    return path


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Write samples whose input channels differ much in size."""
    path = tmp_path_factory.mktemp("samples") / "x.npz"
    sizes = np.geomspace(0.05, 5, 16).reshape(1, -1, 1, 1)
    x = np.random.default_rng(1).standard_normal((96, 16, 12, 12)) * sizes
    np.savez(path, x=x.astype(np.float32))
    return path


def outputs(model, samples=None):
    x = np.random.default_rng(0).standard_normal((4, 16, 12, 12)).astype(np.float32)
    return run(open_session(model), {"x": np.load(samples)["x"] if samples else x})["y"]


def rel_error(original, converted, samples=None):
    expected = outputs(original, samples)
    return np.linalg.norm(outputs(converted, samples) - expected) / np.linalg.norm(expected)


def widths(report):
    return {weight.name: weight.bits for weight in report.weights}


def reasons(report):
    return {weight.name: weight.reason for weight in report.weights if weight.status == "dense"}


def with_weight(name, change):
    """Return the network after a change of one weight."""
    model = network()
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    return model


def test_sizes_are_stated_each_by_itself(source, tmp_path):
    out = tmp_path / "out.onnx"
    report = onnxdecomp.convert(source, out, rank="none", cluster=4)
    onnxdecomp.expand(out, tmp_path / "dense.onnx")
    onnxdecomp.pack(out, tmp_path / "out.odz")
    found = report.footprint
    n_head_bytes = 10
    assert (tmp_path / "dense.onnx").stat().st_size - found.dense_bytes in range(4 * n_head_bytes)
    assert found.file_bytes == out.stat().st_size == report.model["bytes"].after
    assert found.packed_bytes == (tmp_path / "out.odz").stat().st_size
    assert (found.load_ms.before, found.load_ms.after) == (
        source.stat().st_size / 1e3,
        out.stat().st_size / 1e3,
    )
    assert json.loads(report_json(report))["footprint"]["packed_bytes"] == found.packed_bytes
    assert "sizes" in [stage.name for stage in report.stages]


def test_sizes_of_a_model_in_memory_are_stated_without_running_it():
    report = onnxdecomp.convert(network(), rank="none", cluster=4)
    assert report.footprint.file_bytes == report.proto.ByteSize()
    assert report.footprint.load_ms.after is None


def test_a_model_without_codebooks_has_no_footprint(source, tmp_path):
    assert onnxdecomp.convert(source, tmp_path / "out.onnx", rank="none").footprint is None


@pytest.mark.parametrize(("bits", "error"), [(8, 0.01), (6, 0.05), (4, 0.2)])
def test_weights_become_codebooks_and_the_file_shrinks(source, tmp_path, bits, error):
    out = tmp_path / "out.onnx"
    report = onnxdecomp.convert(source, out, rank="none", cluster=bits)
    assert widths(report) == dict.fromkeys(("w1", "w2", "w3", "w4"), bits)
    assert 0 < rel_error(source, out) < error
    numbers = sum(weight.size_bytes.after for weight in report.clustered)
    dense = sum(weight.size_bytes.before for weight in report.clustered)
    n_weights = dense // 4
    assert numbers == n_weights * bits // 8 + 4 * 2 * 2**bits
    assert (
        out.stat().st_size == report.model["bytes"].after < source.stat().st_size - dense + numbers + 4 * 700
    )


def test_the_error_of_every_weight_is_reported(source, tmp_path):
    report = onnxdecomp.convert(source, tmp_path / "out.onnx", rank="none", cluster=5)
    (entry, *_) = json.loads(report_json(report))["weights"]
    assert entry["name"] == "w1"
    assert entry["bits"] == 5
    assert entry["n_centroids"] == 32
    assert 0 < entry["weight_error"] < 0.1


def test_groups_of_channels_have_codebooks_of_their_own(source, tmp_path):
    whole = onnxdecomp.convert(source, tmp_path / "a.onnx", rank="none", cluster=3)
    grouped = onnxdecomp.convert(source, tmp_path / "b.onnx", rank="none", cluster=3, cluster_group=8)
    assert [weight.n_codebooks for weight in grouped.weights] == [4, 4, 6, 3]
    assert [weight.n_codebooks for weight in whole.weights] == [1, 1, 1, 1]
    assert sum(w.weight_error for w in grouped.weights) < sum(w.weight_error for w in whole.weights)


@pytest.mark.parametrize("options", [{}, {"cluster_group": 8}])
@pytest.mark.parametrize("calibrated", [False, True])
def test_channels_of_all_sizes_share_a_codebook_when_each_has_a_scale(samples, options, calibrated):
    sizes = np.geomspace(0.01, 1, 32).astype(np.float32)
    model = with_weight("w1", lambda w: w * sizes[:, None, None, None])
    options = {"rank": "none", "cluster": 3, "include": ("conv1",), "cache": "none"} | options
    options["calibration"] = str(samples) if calibrated else None
    whole = onnxdecomp.convert(model, **options).clustered[0]
    report = onnxdecomp.convert(model, cluster_scale="channel", **options)
    (scaled,) = report.clustered
    n_scale_bytes = 4 * 32
    assert scaled.size_bytes.after == whole.size_bytes.after + n_scale_bytes
    assert scaled.weight_error != whole.weight_error
    # plain k-means spends its centroids on the large channels, which count most in the whole error
    assert relative_errors(model, report.proto, "w1").max() < 0.35


def relative_errors(original, converted, name):
    """Return the error of each channel of a weight relative to its size."""
    dense = onnxdecomp.expand(converted).proto
    wanted, found = (
        next(numpy_helper.to_array(t) for t in m.graph.initializer if t.name == name).reshape(32, -1)
        for m in (original, dense)
    )
    return np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)


def recipe(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return onnxdecomp.load_recipe(path)


def test_rules_of_a_recipe_say_how_single_weights_are_clustered(source, tmp_path):
    text = """
    rank = "none"
    cluster = 4
    [op_type.Gemm]
    cluster = 6
    cluster_scale = "channel"
    [layer.conv1]
    cluster = "none"
    [layer.conv2]
    cluster_group = 8
    cluster_centroids = "bfloat16"
    """
    report = onnxdecomp.convert(source, tmp_path / "out.onnx", config=recipe(tmp_path, text))
    assert widths(report)["w1"] is None
    assert "not to be clustered" in reasons(report)["w1"]
    assert widths(report)["w2"] == 4
    made = {weight.name: weight for weight in report.clustered}
    gemms = [weight for weight in report.clustered if weight.op_type == "Gemm"]
    assert made["w2"].n_codebooks > 1
    assert {weight.bits for weight in gemms} == {6}
    stored = {t.name: t.data_type for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert stored["w2/onnxdecomp/codebook"] == TensorProto.BFLOAT16
    assert all(f"{weight.name}/onnxdecomp/scale" in stored for weight in gemms)


def test_a_rule_alone_clusters_its_layer_and_no_other(source, tmp_path):
    config = recipe(tmp_path, 'rank = "none"\n[layer.conv2]\ncluster = 5')
    report = onnxdecomp.convert(source, tmp_path / "out.onnx", config=config)
    assert widths(report) == {"w1": None, "w2": 5, "w3": None, "w4": None}


@pytest.mark.parametrize("name", ["conv2", "c2"])
def test_steps_of_a_chain_follow_the_rule_of_their_layer(source, tmp_path, name):
    config = recipe(tmp_path, f'rank = "ratio:0.5"\ncluster = 4\n[layer.{name}]\ncluster = 7')
    report = onnxdecomp.convert(source, tmp_path / "out.onnx", config=config)
    assert widths(report)["w2/onnxdecomp/weight0"] == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cluster = 4\n[layer.conv9]\ncluster = 2", "the layer rule 'conv9' matches no weight"),
        ("cluster = 4\n[layer.conv1]\ncluster = 'auto'", "cluster = auto is for all layers"),
        ("cluster = 4\n[layer.conv1]\ncluster = 99", "--cluster 99: give 1 to 16 bits"),
        ("cluster = 4\n[layer.conv1]\ncluster_scale = 'chanel'", "did you mean 'channel'"),
        ("cluster = 4\n[layer.conv1]\ncluster_group = 'all'", "wrong type"),
        ("[layer.conv1]\ncluster_group = -4", "cluster_group is -4"),
        ("cluster_scale = 'channel'", "give --cluster too"),
    ],
)
def test_a_rule_of_codebooks_that_makes_no_sense_is_refused(source, tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        onnxdecomp.convert(source, config=recipe(tmp_path, "rank = 'none'\n" + text))


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "int16"])
def test_centroids_are_stored_as_asked(source, tmp_path, kind):
    onnxdecomp.convert(source, tmp_path / "out.onnx", rank="none", cluster=6, cluster_centroids=kind)
    stored = {t.name: t.data_type for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert stored["w1/onnxdecomp/codebook"] == getattr(TensorProto, kind.upper())
    assert rel_error(source, tmp_path / "out.onnx") < 0.05


def test_data_lowers_the_error_of_the_outputs_on_such_data(source, tmp_path, samples):
    options = {"rank": "none", "cluster": 3}
    onnxdecomp.convert(source, tmp_path / "plain.onnx", **options)
    report = onnxdecomp.convert(
        source, tmp_path / "fitted.onnx", calibration=str(samples), cache="none", **options
    )
    plain = rel_error(source, tmp_path / "plain.onnx", samples)
    assert rel_error(source, tmp_path / "fitted.onnx", samples) < 0.7 * plain
    assert all(0 < weight.data_error < weight.weight_error for weight in report.clustered)
    assert report.accuracy.n_samples == 24


def test_decomposed_models_are_clustered_too(source, tmp_path, samples):
    report = onnxdecomp.convert(
        source, tmp_path / "out.onnx", rank="ratio:0.5", cluster=8, calibration=str(samples), cache="none"
    )
    assert len(report.decomposed) == 4
    assert len(report.weights) >= 8
    assert sum("/onnxdecomp/weight" in weight.name for weight in report.clustered) >= 2
    assert all("its codebook would take about" in reason for reason in reasons(report).values())
    assert report.model["bytes"].ratio > 3


def test_weights_in_data_files_are_clustered_into_a_data_file(tmp_path):
    model = network(channels=64)
    onnx.save(model, tmp_path / "in.onnx", save_as_external_data=True, size_threshold=100)
    out = tmp_path / "out.onnx"
    report = onnxdecomp.convert(tmp_path / "in.onnx", out, rank="none", cluster=4)
    assert {weight.status for weight in report.weights} == {"clustered"}
    sizes = [path.stat().st_size for path in tmp_path.iterdir() if path.name.startswith("out.onnx")]
    assert len(sizes) == 2
    assert sum(sizes) == report.model["bytes"].after < 0.3 * report.model["bytes"].before
    assert rel_error(tmp_path / "in.onnx", out) < 0.2


def test_a_model_in_memory_gives_a_model_in_memory():
    model = network()
    report = onnxdecomp.convert(model, rank="none", cluster="8")
    assert rel_error(model, report.proto) < 0.01
    assert report.model["bytes"].after == report.proto.ByteSize()


def test_same_input_same_bytes(source, tmp_path, samples):
    for name in ("a.onnx", "b.onnx"):
        onnxdecomp.convert(
            source, tmp_path / name, rank="none", cluster=4, calibration=str(samples), cache="none"
        )
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_the_operator_set_rises_only_when_asked_for(source, tmp_path):
    onnxdecomp.convert(source, tmp_path / "a.onnx", rank="none", cluster=4)
    onnxdecomp.convert(source, tmp_path / "b.onnx", rank="none", cluster=4, opset=21)
    a, b = (onnx.load(tmp_path / name) for name in ("a.onnx", "b.onnx"))
    assert [model.opset_import[0].version for model in (a, b)] == [17, 21]
    kinds = [{t.data_type for t in model.graph.initializer} for model in (a, b)]
    assert [TensorProto.UINT4 in found for found in kinds] == [False, True]
    assert rel_error(tmp_path / "a.onnx", tmp_path / "b.onnx") < SAME


def test_small_weights_and_those_not_selected_stay_dense_with_a_reason(tmp_path):
    onnx.save(network(channels=16), tmp_path / "in.onnx")
    report = onnxdecomp.convert(
        tmp_path / "in.onnx", tmp_path / "out.onnx", rank="none", cluster=8, exclude=("conv1", "g")
    )
    found = reasons(report)
    assert found["w1"] == found["w3"] == "not selected by --include and --exclude"
    assert widths(report)["w2"] == 8
    report = onnxdecomp.convert(tmp_path / "in.onnx", tmp_path / "out.onnx", rank="none", cluster=14)
    assert "its codebook would take about" in reasons(report)["w3"]
    assert "more than 75% of the 3,072 bytes" in reasons(report)["w3"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: np.where(w > 0.05, np.nan, w), "weights are NaN or infinite"),
        (lambda w: np.where(w > 0.05, np.inf, w), "weights are NaN or infinite"),
    ],
)
def test_weights_that_are_not_finite_stay_dense(tmp_path, change, reason):
    model = with_weight("w2", lambda w: change(w).astype(np.float32))
    report = onnxdecomp.convert(model, rank="none", cluster=4, verify="none")
    assert reason in reasons(report)["w2"]
    assert widths(report) == {"w1": 4, "w2": None, "w3": 4, "w4": 4}


@pytest.mark.parametrize(("n_values", "bits"), [(1, 1), (2, 1), (5, 3)])
def test_few_distinct_weights_take_few_bits_and_lose_nothing_but_rounding(n_values, bits):
    values = np.linspace(-1, 1, n_values).astype(np.float16)
    model = with_weight("w2", lambda w: np.resize(values, w.shape).astype(np.float32))
    report = onnxdecomp.convert(model, rank="none", cluster=6, include=("conv2",))
    (found,) = report.clustered
    assert (found.bits, found.n_centroids, found.weight_error) == (bits, n_values, 0.0)
    assert rel_error(model, report.proto) < SAME


def test_centroids_beyond_float16_are_scaled_with_a_note():
    model = with_weight("w2", lambda w: 1e6 * w)
    report = onnxdecomp.convert(model, rank="none", cluster=6)
    assert any(note.startswith("w2: ") and "stored as float16 times" in note for note in report.notes)
    assert rel_error(model, report.proto) < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cluster": 0}, "--cluster 0: give 1 to 16 bits, auto or none"),
        ({"cluster": 17}, "--cluster 17: give 1 to 16 bits, auto or none"),
        ({"cluster": "few"}, "--cluster few: give 1 to 16 bits, auto or none"),
        ({"cluster": "auto"}, "--cluster auto chooses bits.*give --calibration"),
        ({"cluster": 4, "cluster_centroids": "float15"}, "did you mean 'float16'"),
        ({"cluster": 4, "cluster_group": -1}, "cluster_group is -1"),
        ({"cluster_group": 4}, "give --cluster too"),
        ({"cluster": 4, "int8": True, "calibration": "x.npz"}, "exclude each other"),
        ({"opset": 0}, "opset is 0"),
        ({"opset": 11}, "is never lowered"),
        ({"opset": 999}, "is newer than the newest that onnx knows"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(source, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        onnxdecomp.convert(source, tmp_path / "out.onnx", **{"rank": "none"} | options)
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


@pytest.mark.parametrize(("speedup", "status"), [(0.98, "clustered"), (0.8, "dense")])
def test_a_clustered_model_may_be_as_fast_but_not_slower(source, tmp_path, monkeypatch, speedup, status):
    monkeypatch.setattr("onnxdecomp.proof.compare_latency", measured(speedup, 0.01))
    report = onnxdecomp.convert(source, tmp_path / "out.onnx", rank="none", cluster=4)
    assert {weight.status for weight in report.weights} == {status}
    smaller = (tmp_path / "out.onnx").stat().st_size < source.stat().st_size
    assert smaller == (status == "clustered")


def test_a_loss_beyond_the_budget_stops_the_conversion(source, tmp_path, samples):
    options = {"rank": "none", "cluster": 1, "max_drop": 0.0, "metric": "sqnr", "cache": "none"}
    options["calibration"] = str(samples)
    with pytest.raises(BudgetError, match="more than --max-drop 0"):
        onnxdecomp.convert(source, tmp_path / "out.onnx", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


def automatic(source, tmp_path, samples, **options):
    return onnxdecomp.convert(
        source,
        tmp_path / "out.onnx",
        cluster="auto",
        calibration=str(samples),
        cache="none",
        **{"rank": "none", "metric": "sqnr", "include": ("conv1", "fc")} | options,
    )


def test_auto_keeps_the_budget(source, tmp_path, samples):
    report = automatic(source, tmp_path, samples, max_drop=1e-2)
    assert 1e-4 < report.accuracy.drop <= 1e-2
    assert {weight.status for weight in report.clustered} == {"clustered"}
    assert all(2 <= weight.bits <= 8 for weight in report.clustered)


def test_auto_leaves_widths_that_rules_name(source, tmp_path, samples):
    rules = {"conv1": LayerRule(cluster=3), "fc": LayerRule(cluster="none")}
    report = automatic(
        source, tmp_path, samples, max_drop=1e-2, layers=rules, include=("conv*", "fc"), force=True
    )
    assert widths(report)["w1"] == 3
    assert widths(report)["w4"] is None


def test_auto_reaches_a_share_of_the_bytes_of_the_weights(source, tmp_path, samples):
    report = automatic(source, tmp_path, samples, target_size=0.7)
    total = sum(weight.size_bytes.before for weight in report.weights)
    assert 0.63 * total < sum(weight.size_bytes.after for weight in report.weights) <= 0.7 * total


def test_a_share_that_no_width_reaches_is_told(source, tmp_path, samples):
    with pytest.raises(BudgetError, match=r"--target-size 0\.01 is not reached: codebooks of 2 bits take 0"):
        automatic(source, tmp_path, samples, target_size=0.01)


def tables():
    """Return a model of an embedding and an LSTM."""
    rng = np.random.default_rng(3)
    numbers = {"table": (300, 32), "w": (1, 128, 32), "r": (1, 128, 32)}
    nodes = [
        helper.make_node("Gather", ["table", "words"], ["e"], "embedding"),
        helper.make_node("LSTM", ["e", "w", "r"], ["y"], "lstm", hidden_size=32),
    ]
    graph = helper.make_graph(
        nodes,
        "tables",
        [helper.make_tensor_value_info("words", TensorProto.INT64, [7, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [7, 1, 2, 32])],
        [
            numpy_helper.from_array(0.3 * rng.standard_normal(s).astype(np.float32), n)
            for n, s in numbers.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_tables_and_recurrent_weights_are_clustered():
    model = tables()
    report = onnxdecomp.convert(model, rank="none", cluster=8)
    assert widths(report) == {"table": 8, "w": 8, "r": 8}
    words = {"words": np.arange(14).reshape(7, 2)}
    expected, got = (run(open_session(m), words)["y"] for m in (model, report.proto))
    assert np.linalg.norm(got - expected) < 0.01 * np.linalg.norm(expected)


def test_expanding_gives_dense_weights_and_equal_outputs(source, tmp_path):
    small, back = tmp_path / "small.onnx", tmp_path / "back.onnx"
    onnxdecomp.convert(source, small, rank="none", cluster=3, cluster_group=8)
    found = onnxdecomp.expand(small, back)
    assert found.names == ("w1", "w2", "w3", "w4")
    assert found.output_error < SAME
    assert rel_error(small, back) < SAME
    assert onnx.load(back).graph.node == onnx.load(source).graph.node


def test_a_model_without_codebooks_is_expanded_to_itself(source, tmp_path):
    found = onnxdecomp.expand(source, tmp_path / "out.onnx")
    assert found.names == ()
    assert found.notes == ("The model has no codebook: it is written as it is.",)
    assert onnx.load(tmp_path / "out.onnx") == onnx.load(source)


def test_expanding_never_overwrites_its_input(source):
    with pytest.raises(UsageError, match="is the input itself"):
        onnxdecomp.expand(source, source)
