import json

import numpy as np
import onnx
import pytest

import onnxdecomp
from onnxdecomp.config import Config, LayerRule
from onnxdecomp.errors import ModelError, UsageError, VerificationError
from onnxdecomp.graph.emit import stored_weight
from onnxdecomp.report.as_json import report_json
from onnxdecomp.runtime.compare_chain import ChainCheck
from onnxdecomp.runtime.session import open_session, run
from onnxdecomp.selection import measure_chains
from tests.networks import network
from tests.timers import even, fast, in_place, measured, slow

EXACT = 1e-5
"""Relative error of outputs between an exact conversion and its original."""


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr("onnxdecomp.selection.measure_chains", even)
    monkeypatch.setattr("onnxdecomp.proof.compare_latency", measured(1.0, 0.1))
    monkeypatch.setattr("onnxdecomp.put_back.profile_variants", in_place())


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.onnx"
    onnx.save(network(), path)
    return path


def output(model, x):
    return run(open_session(model), {"x": x})["y"]


def rel_error(original, converted):
    x = np.random.default_rng(0).standard_normal((2, 16, 12, 12)).astype(np.float32)
    expected = output(original, x)
    return np.linalg.norm(output(converted, x) - expected) / np.linalg.norm(expected)


def statuses(report):
    return {layer.key: layer.status for layer in report.layers}


@pytest.mark.parametrize("method", ["auto", "channel-svd/output", "spatial-svd", "tucker2", "tt", "cp3/als"])
def test_at_full_rank_the_converted_model_equals_the_original(source, tmp_path, method):
    report = onnxdecomp.convert(source, tmp_path / "out.onnx", rank="full", method=method)
    assert len(report.decomposed) >= 2
    assert rel_error(source, tmp_path / "out.onnx") < EXACT
    assert report.output_error < EXACT


def test_ratio_makes_the_file_smaller_and_stays_close(source, tmp_path):
    report = onnxdecomp.convert(source, tmp_path / "out.onnx", rank="ratio:0.5")
    assert set(statuses(report).values()) == {"decomposed"}
    assert (tmp_path / "out.onnx").stat().st_size < 0.7 * source.stat().st_size
    assert rel_error(source, tmp_path / "out.onnx") < 0.1


def test_with_nothing_to_do_the_output_is_the_original(source, tmp_path):
    report = onnxdecomp.convert(source, tmp_path / "out.onnx", rank="none")
    assert (tmp_path / "out.onnx").read_bytes() == onnx.load(source).SerializeToString(deterministic=True)
    assert onnx.load(tmp_path / "out.onnx") == onnx.load(source)
    assert "Nothing was decomposed: the output is the original model." in report.notes


def test_batch_normalization_is_folded_only_behind_a_rewritten_convolution(source, tmp_path):
    onnxdecomp.convert(source, tmp_path / "a.onnx", rank="full", include=("c1",))
    onnxdecomp.convert(source, tmp_path / "b.onnx", rank="full", exclude=("c1",))
    assert "BatchNormalization" not in {n.op_type for n in onnx.load(tmp_path / "a.onnx").graph.node}
    assert "BatchNormalization" in {n.op_type for n in onnx.load(tmp_path / "b.onnx").graph.node}


@pytest.mark.parametrize("rank", ["ratio:0.5", "energy:0.9", "full"])
def test_same_input_same_seed_same_bytes(source, tmp_path, rank):
    for name in ("a.onnx", "b.onnx"):
        onnxdecomp.convert(source, tmp_path / name, rank=rank, verify="layers", seed=3, allow_slower=True)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_model_in_memory_gives_a_model_in_memory():
    model = network()
    before = model.SerializeToString()
    report = onnxdecomp.convert(model, rank="ratio:0.5")
    assert model.SerializeToString() == before
    assert rel_error(model, report.proto) < 0.1
    assert report.model["bytes"].after == report.proto.ByteSize()


def test_include_and_exclude_name_layers_by_output_or_node(source, tmp_path):
    report = onnxdecomp.convert(
        source, tmp_path / "out.onnx", rank="ratio:0.5", include=("conv*", "g"), exclude=("c1",)
    )
    assert statuses(report) == {"c1": "kept", "c2": "decomposed", "g": "decomposed", "y": "kept"}


def test_a_rule_for_one_layer_wins_over_its_type_and_the_rest(source, tmp_path):
    config = Config(
        rank="none",
        op_types={"Conv": LayerRule(rank="ratio:0.5")},
        layers={"conv1": LayerRule(rank="4", method="channel-svd/output")},
    )
    report = onnxdecomp.convert(source, tmp_path / "out.onnx", config=config)
    ranks = {layer.key: layer.ranks for layer in report.decomposed}
    assert ranks["c1"] == (4,)
    assert set(ranks) == {"c1", "c2"}


def test_unknown_sizes_are_learned_from_a_run(tmp_path):
    onnx.save(network(batch="N", size="S"), tmp_path / "in.onnx")
    report = onnxdecomp.convert(
        tmp_path / "in.onnx", tmp_path / "out.onnx", rank="ratio:0.5", shapes={"x": (1, 16, 10, 10)}
    )
    assert report.model["macs"].before == 10 * 10 * 32 * 16 * 9 + 5 * 5 * 32 * 32 * 9 + 32 * 48 + 48 * 24


def test_auto_keeps_a_layer_that_is_not_faster(source, tmp_path, monkeypatch):
    monkeypatch.setattr("onnxdecomp.selection.measure_chains", slow)
    report = onnxdecomp.convert(source, tmp_path / "out.onnx", rank="auto")
    assert report.decomposed == []
    assert any(layer.reason.startswith("not faster") for layer in report.layers)
    assert onnx.load(tmp_path / "out.onnx") == onnx.load(source)


def test_auto_takes_a_layer_that_is_faster(source, tmp_path, monkeypatch):
    monkeypatch.setattr("onnxdecomp.selection.measure_chains", fast)
    report = onnxdecomp.convert(source, tmp_path / "out.onnx", rank="auto", verify="layers")
    assert report.decomposed
    assert max(layer.weight_error for layer in report.decomposed) <= Config().max_error


@pytest.mark.parametrize("rank", ["ratio:0.5", "energy:0.9", "8", "evbmf"])
def test_a_layer_is_never_made_slower_without_being_told_to(source, tmp_path, monkeypatch, rank):
    monkeypatch.setattr("onnxdecomp.selection.measure_chains", slow)
    report = onnxdecomp.convert(source, tmp_path / "a.onnx", rank=rank, verify="layers")
    assert report.decomposed == []
    assert any(layer.reason.startswith("slower: ") for layer in report.layers)
    told = onnxdecomp.convert(source, tmp_path / "b.onnx", rank=rank, verify="layers", allow_slower=True)
    assert told.decomposed


def test_a_layer_that_is_as_fast_as_before_is_made_smaller(source, tmp_path, monkeypatch):
    monkeypatch.setattr("onnxdecomp.selection.measure_chains", even)
    report = onnxdecomp.convert(source, tmp_path / "out.onnx", rank="ratio:0.5", verify="layers")
    assert len(report.decomposed) == 4


def test_what_is_taken_was_timed_in_onnxruntime(source, tmp_path, monkeypatch):
    monkeypatch.setattr("onnxdecomp.selection.measure_chains", measure_chains)
    report = onnxdecomp.convert(source, tmp_path / "out.onnx", rank="ratio:0.5", verify="layers")
    timed = [layer.latency_ms for layer in report.decomposed]
    assert all(t.before > 0 and t.after > 0 for t in timed)
    assert len(timed) + sum(layer.reason.startswith("slower: ") for layer in report.layers) == 4


@pytest.mark.parametrize(("speedup", "spread"), [(0.5, 0.1), (1.05, 0.1)])
def test_auto_puts_everything_back_unless_the_whole_model_is_faster(
    source, tmp_path, monkeypatch, speedup, spread
):
    monkeypatch.setattr("onnxdecomp.selection.measure_chains", fast)
    monkeypatch.setattr("onnxdecomp.proof.compare_latency", measured(speedup, spread))
    report = onnxdecomp.convert(source, tmp_path / "out.onnx", rank="auto")
    assert any(layer.reason.startswith("put back: the whole model is not faster") for layer in report.layers)
    assert report.decomposed == []
    assert report.model["macs"].ratio == 1.0
    assert onnx.load(tmp_path / "out.onnx") == onnx.load(source)


NAMED = [{"rank": "ratio:0.5"}, {"rank": "none", "layers": {"fc": LayerRule(rank="4")}}]


@pytest.mark.parametrize("options", NAMED)
def test_a_model_is_never_made_slower_without_being_told_to(source, tmp_path, monkeypatch, options):
    monkeypatch.setattr("onnxdecomp.proof.compare_latency", measured(0.5, 0.1))
    report = onnxdecomp.convert(source, tmp_path / "a.onnx", **options)
    assert report.decomposed == []
    assert any("the whole model is slower (--allow-slower" in layer.reason for layer in report.layers)
    told = onnxdecomp.convert(source, tmp_path / "b.onnx", allow_slower=True, **options)
    assert told.decomposed
    assert told.latency.speedup == 0.5


@pytest.mark.parametrize("options", [*NAMED, {"rank": "full"}])
def test_a_model_that_is_as_fast_as_before_is_made_smaller(source, tmp_path, monkeypatch, options):
    monkeypatch.setattr("onnxdecomp.proof.compare_latency", measured(1.0, 0.1))
    assert onnxdecomp.convert(source, tmp_path / "out.onnx", **options).decomposed


@pytest.mark.parametrize(("on_all_cores", "is_told"), [(0.5, True), (1.0, False), (2.0, False)])
def test_a_model_that_is_faster_on_so_many_threads_and_slower_on_all_is_told_of(
    source, tmp_path, monkeypatch, on_all_cores, is_told
):
    def compare(original, converted, feeds, threads):
        return measured(on_all_cores if threads == 4 else 2.0, 0.1)(original, converted, feeds, threads)

    monkeypatch.setattr("onnxdecomp.proof.usable_cores", lambda: 4)
    monkeypatch.setattr("onnxdecomp.proof.compare_latency", compare)
    report = onnxdecomp.convert(source, tmp_path / "out.onnx", rank="ratio:0.5", threads=2)
    assert any("--threads 4 chooses for that" in note for note in report.notes) == is_told
    assert report.latency.speedup == 2.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_layer_with_weights_that_are_not_finite_is_kept_with_a_reason(tmp_path, bad):
    model = network()
    weight = onnx.numpy_helper.to_array(model.graph.initializer[5]).copy()
    weight[0, 0, 0, 0] = bad
    model.graph.initializer[5].CopyFrom(onnx.numpy_helper.from_array(weight, "w2"))
    onnx.save(model, tmp_path / "in.onnx")
    report = onnxdecomp.convert(tmp_path / "in.onnx", tmp_path / "out.onnx", rank="ratio:0.5")
    kept = {layer.key: layer.reason for layer in report.layers if layer.status == "kept"}
    assert list(kept) == ["c2"]
    assert "nan" in kept["c2"].lower() or "inf" in kept["c2"].lower()


def failing(*args, **options):
    return ChainCheck(1.0, 1.0, 1e-4, "the chain differs from the layer.")


def test_a_wrong_chain_stops_the_conversion_and_nothing_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr("onnxdecomp.proof.verify_chain", failing)
    with pytest.raises(VerificationError, match="the chain differs"):
        onnxdecomp.convert(source, tmp_path / "out.onnx", rank="ratio:0.5")
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


def test_force_writes_what_failed_and_says_so(source, tmp_path, monkeypatch):
    monkeypatch.setattr("onnxdecomp.proof.verify_chain", failing)
    report = onnxdecomp.convert(source, tmp_path / "out.onnx", rank="ratio:0.5", force=True)
    assert (tmp_path / "out.onnx").exists()
    assert any("the chain differs" in note for note in report.notes)


def test_a_wrong_model_stops_the_conversion_and_nothing_is_written(source, tmp_path, monkeypatch):
    def wrong(layer, spec, weight):
        return 1.1 * stored_weight(layer, spec, weight)

    monkeypatch.setattr("onnxdecomp.graph.rewrite.stored_weight", wrong)
    with pytest.raises(VerificationError, match="off by"):
        onnxdecomp.convert(source, tmp_path / "out.onnx", rank="full", method="svd")
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


@pytest.mark.parametrize("stage", ["onnxdecomp.decomposing.decide", "onnxdecomp.pipeline.prove_model"])
def test_an_interrupt_leaves_nothing_behind(source, tmp_path, monkeypatch, stage):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, interrupted)
    with pytest.raises(KeyboardInterrupt):
        onnxdecomp.convert(source, tmp_path / "out.onnx", rank="ratio:0.5")
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": "rato:0.5"}, "did you mean 'ratio'"),
        ({"method": "tuker2"}, "did you mean 'tucker2'"),
        ({"metric": "top"}, "did you mean 'top1'"),
        ({"verify": "modle"}, "did you mean 'model'"),
        ({"rnk": "auto"}, "did you mean 'rank'"),
        ({"include": ("nothing*",)}, "matches no layer"),
        ({"exclude": ("nothing*",)}, "matches no layer"),
        ({"rank": "0"}, "1 or more"),
        ({"rank": "4096"}, "above the largest rank of every layer"),
        ({"shapes": {"z": (1, 2)}}, "z"),
        ({"calibration": "missing.npz"}, "missing.npz"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(source, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        onnxdecomp.convert(source, tmp_path / "out.onnx", **{"rank": "ratio:0.5"} | options)
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


def test_the_input_is_never_overwritten(source):
    before = source.read_bytes()
    with pytest.raises(UsageError, match="is the input itself"):
        onnxdecomp.convert(source, source)
    assert source.read_bytes() == before


def test_an_output_folder_that_does_not_exist_is_an_error(source, tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        onnxdecomp.convert(source, tmp_path / "none" / "out.onnx", rank="none")


@pytest.mark.parametrize(("metric", "told"), [(None, True), ("agreement", False)])
def test_a_metric_that_nobody_named_and_may_not_suit_is_said(tmp_path, metric, told):
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 6, 40] x) => (float[N, 6, 40] y) { h = MatMul(x, w) y = Relu(h) }"""
    )
    weight = rng.standard_normal((40, 40)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "in.onnx")
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((64, 6, 40)).astype(np.float32))
    options = {"calibration": str(tmp_path / "x.npz"), "cache": "none", "metric": metric}
    report = onnxdecomp.convert(tmp_path / "in.onnx", tmp_path / "out.onnx", rank="ratio:0.5", **options)
    assert report.accuracy.metric == metric or (told and report.accuracy.metric in ("sqnr", "r2"))
    assert any("was taken for numbers, not for scores of 40" in note for note in report.notes) is told


def test_the_report_holds_what_other_tools_rely_on(source, tmp_path):
    entries = json.loads(report_json(onnxdecomp.convert(source, tmp_path / "out.onnx", rank="ratio:0.5")))
    assert entries["schema_version"] == 1
    assert {"command", "environment", "model", "latency", "accuracy", "layers", "stages"} <= entries.keys()
    assert entries["model"]["bytes"]["after"] == (tmp_path / "out.onnx").stat().st_size
    assert {
        "key",
        "op_type",
        "status",
        "method",
        "ranks",
        "reason",
        "weight_error",
        "output_error",
    } <= entries["layers"][0].keys()
    assert [stage["name"] for stage in entries["stages"]] == [
        *("load", "find", "decompose", "write", "in place", "verify")
    ]
    assert entries["latency"]["n_runs"] >= 5
