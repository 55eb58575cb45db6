"""Conversions that choose with data: budgets are kept, targets reached, and reasons given."""

import importlib
import re
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxdecomp import quantizing
from onnxdecomp.config import STEPS, LayerRule
from onnxdecomp.errors import BudgetError, ModelError, UsageError
from onnxdecomp.graph.io import load
from onnxdecomp.pipeline import convert
from onnxdecomp.runtime.evaluate import outputs_over
from onnxdecomp.runtime.int8.quantize import Quantized
from onnxdecomp.search import network as search_network
from onnxdecomp.search import work
from onnxdecomp.search.fitting import Fitter
from onnxdecomp.search.network import NOT_WORTH_LOOKS
from onnxdecomp.search.trial import NOT_COMPARED
from tests.graph.models import normal
from tests.networks import network
from tests.timers import clock_of, even, in_place_by_macs, measured, slow, stop_the_clock

N_SAMPLES = 96


@pytest.fixture(autouse=True)
def steady_clock(monkeypatch):
    stop_the_clock(monkeypatch)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(11)
    mixed = rng.standard_normal((16, 16)) * np.geomspace(1, 0.1, 16)  # channels that depend on each other
    noise = rng.standard_normal((N_SAMPLES, 16, 12, 12))
    return np.einsum("ij,njhw->nihw", mixed, noise).astype(np.float32)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "in.onnx"
    onnx.save(network(), path)
    return path


@pytest.fixture
def calibration(tmp_path, images):
    np.savez(tmp_path / "calibration.npz", x=images)
    return str(tmp_path / "calibration.npz")


@pytest.fixture
def evaluation(tmp_path, model, images):
    """New images, labelled with what the network answers."""
    new = images[:, :, ::-1].copy()
    labels = outputs_over(model, {"x": new})["y"].argmax(1)
    np.savez(tmp_path / "evaluation.npz", x=new, labels=labels)
    return str(tmp_path / "evaluation.npz")


def search(model, calibration, **options):
    return convert(model, model.with_name("out.onnx"), calibration=calibration, cache="none", **options)


def test_the_choice_keeps_its_budget_on_samples_it_did_not_see(model, calibration):
    report = search(model, calibration, metric="sqnr", max_drop=0.01)
    assert len(report.decomposed) >= 2
    assert report.accuracy.drop <= 0.01
    outputs = [
        outputs_over(path, {"x": np.load(calibration)["x"]})["y"]
        for path in (model, model.with_name("out.onnx"))
    ]
    assert np.sum(np.square(outputs[1] - outputs[0])) <= 0.02 * np.sum(np.square(outputs[0]))


@pytest.fixture
def two_outputs(tmp_path):
    """A model whose second output is that of a convolution which the first has nothing to do with."""
    proto = network()
    weight = np.random.default_rng(5).standard_normal((32, 32, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w5"))
    proto.graph.node.append(helper.make_node("Conv", ["r1", "w5"], ["z"], "conv5", pads=[1, 1, 1, 1]))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 32, 12, 12]))
    path = tmp_path / "two.onnx"
    onnx.save(proto, path)
    return path


def test_a_budget_is_kept_by_every_output(two_outputs, calibration):
    report = search(two_outputs, calibration, max_drop=0.05)
    assert report.decomposed
    before, after = (
        outputs_over(path, {"x": np.load(calibration)["x"]})["z"]
        for path in (two_outputs, two_outputs.with_name("out.onnx"))
    )
    assert np.sum(np.square(after - before)) <= 0.08 * np.sum(np.square(before))
    assert report.accuracy.drop <= 0.05
    assert report.accuracy.output in ("y", "z")
    assert any("Each output is compared by what seems to suit it" in note for note in report.notes)


def test_of_what_is_counted_the_numbers_are_compared(tmp_path, calibration):
    proto = network()
    proto.graph.node.append(helper.make_node("Greater", ["y", "b2_mean"], ["is_large"], "threshold"))
    proto.graph.node.append(helper.make_node("NonZero", ["is_large"], ["found"], "count"))
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "b2_mean"))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("found", TensorProto.INT64, [2, "K"]))
    onnx.save(proto, tmp_path / "counts.onnx")
    report = search(tmp_path / "counts.onnx", calibration, max_drop=0.05)
    assert report.decomposed
    assert report.accuracy.metric in ("sqnr", "r2")
    assert report.accuracy.drop <= 0.05
    assert any("'found': what was chosen of more" in note for note in report.notes)
    with pytest.raises(ModelError, match=r"'found' .* says nothing of single ones|cannot be joined"):
        search(tmp_path / "counts.onnx", calibration, max_drop=0.05, metric="agreement")


def test_outputs_on_samples_that_are_fitted_to_are_found_on_the_way_to_moments(
    monkeypatch, model, calibration
):
    counts, real = [], outputs_over

    def counted(model, samples, **options):
        counts.append(len(samples["x"]))
        return real(model, samples, **options)

    monkeypatch.setattr("onnxdecomp.search.trial.outputs_over", counted)
    report = search(model, calibration, metric="agreement", max_drop=0.3)
    assert report.accuracy.drop_by_margins is not None
    assert counts
    assert N_SAMPLES // 2 not in counts


def test_a_model_without_an_axis_of_samples_is_converted(tmp_path, calibration):
    """What it puts out on samples it is fitted to is told apart by samples, as what it does on others."""
    proto = network()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), "first"))
    proto.graph.node.append(helper.make_node("Squeeze", ["y", "first"], ["scores"]))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["C"]))
    onnx.save(proto, tmp_path / "single.onnx")
    report = search(tmp_path / "single.onnx", calibration, metric="agreement", max_drop=0.3)
    assert report.accuracy.drop_by_margins is not None


def test_a_metric_that_is_named_looks_at_the_first_output_and_says_so(two_outputs, calibration):
    report = search(two_outputs, calibration, max_drop=0.05, metric="agreement")
    assert report.accuracy.output == ""
    assert any("agreement looks at 'y' alone, the first output. What 'z'" in note for note in report.notes)
    assert {layer.key: layer.reason for layer in report.layers}["z"] == NOT_COMPARED


def own_metric(outputs, labels, reference):
    return -float(np.mean(np.square(outputs["z"] - reference["z"])))


def test_a_function_of_the_user_may_see_any_output(two_outputs, calibration):
    report = search(two_outputs, calibration, max_drop=1000.0, metric=f"{__name__}:own_metric")
    assert "z" in {layer.key for layer in report.decomposed}


def test_what_only_a_count_is_made_of_is_looked_at_and_what_is_made_of_it_is_not(tmp_path, calibration):
    """As in a detector of two stages: a layer behind what was found is none that could be judged."""
    proto = network()
    proto.graph.initializer.append(numpy_helper.from_array(np.full(1, -1e9, np.float32), "low"))
    proto.graph.initializer.append(numpy_helper.from_array(normal(24, 24), "w_second"))
    proto.graph.node.append(helper.make_node("Greater", ["y", "low"], ["is_large"]))
    proto.graph.node.append(helper.make_node("Compress", ["y", "first"], ["found"], axis=0))
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.int64), "at"))
    proto.graph.node.append(helper.make_node("GatherND", ["is_large", "at"], ["one"]))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "flat"))
    proto.graph.node.append(helper.make_node("Reshape", ["one", "flat"], ["first"]))
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(sorted(nodes, key=lambda node: node.op_type == "Compress"))
    proto.graph.node.append(helper.make_node("MatMul", ["found", "w_second"], ["second"], "second"))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, ["K", 24]))
    onnx.save(proto, tmp_path / "stages.onnx")
    report = search(tmp_path / "stages.onnx", calibration, max_drop=0.05)
    assert report.decomposed
    assert {layer.key: layer.reason for layer in report.layers}["second"] == NOT_COMPARED


def test_a_larger_budget_gives_a_smaller_model(model, calibration):
    sizes = [
        search(model, calibration, metric="sqnr", max_drop=budget).model["params"].after
        for budget in (1e-8, 0.3)
    ]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(("module", "limit"), [(work, "LOOK_MACS"), (search_network, "LONG_LOOKS")])
def test_where_looks_take_long_layers_that_save_little_are_not_looked_into(
    module, limit, model, calibration, monkeypatch
):
    def kept():
        report = search(model, calibration, metric="sqnr", max_drop=0.3)
        return {layer.key for layer in report.layers if layer.reason == NOT_WORTH_LOOKS}, report

    assert not kept()[0]
    monkeypatch.setattr(module, limit, 1)
    (few, _), _ = kept(), monkeypatch.setattr(search_network, "NOT_LOOKED_INTO", 0.5)
    more, report = kept()
    assert few < more
    macs = {layer.key: layer.macs.before for layer in report.layers}
    assert max(macs[key] for key in more) < max(macs.values())
    assert {layer.key for layer in report.decomposed} <= macs.keys() - more


@pytest.mark.parametrize(
    ("metric", "max_drop", "is_said"),
    [("agreement", 0.01, True), ("agreement", 0.2, False), ("sqnr", 0.01, False)],
)
def test_a_budget_of_less_than_one_answer_is_said(model, calibration, metric, max_drop, is_said):
    report = search(model, calibration, metric=metric, max_drop=max_drop)
    said = [note for note in report.notes if "A single answer of 24 is 0.042 of agreement" in note]
    assert len(said) == is_said


def test_labels_decide_where_there_are_some(model, calibration, evaluation):
    report = search(model, calibration, evaluation=evaluation, max_drop=0.2)
    assert (report.accuracy.metric, report.accuracy.before) == ("top1", 1.0)
    assert report.accuracy.n_samples == N_SAMPLES // 2


@pytest.mark.parametrize(("target", "figure"), [("target_macs", "macs"), ("target_size", "params")])
def test_a_target_is_reached(model, calibration, target, figure):
    report = search(model, calibration, **{target: 0.4})
    assert report.model[figure].after <= 0.4 * report.model[figure].before


def test_a_target_out_of_reach_is_said_and_nothing_is_written(model, calibration):
    with pytest.raises(BudgetError, match=r"--target-macs 0\.001 cannot be reached: .* Nothing was written"):
        search(model, calibration, target_macs=0.001)
    assert not model.with_name("out.onnx").exists()


def test_force_writes_the_strongest_choice_for_a_target_out_of_reach(model, calibration):
    report = search(model, calibration, target_macs=0.001, force=True)
    assert report.model["macs"].after < 0.3 * report.model["macs"].before


def test_a_target_that_costs_too_much_is_said_and_nothing_is_written(model, calibration):
    with pytest.raises(BudgetError, match="Nothing was written"):
        search(model, calibration, target_macs=0.15, max_drop=1e-6, metric="sqnr")
    assert not model.with_name("out.onnx").exists()


@pytest.mark.parametrize("timer", [slow, even])
def test_what_is_not_faster_is_kept_and_the_output_is_the_original(monkeypatch, model, calibration, timer):
    monkeypatch.setattr("onnxdecomp.selection.measure_chains", timer)
    report = search(model, calibration)
    assert not report.decomposed
    assert onnx.load(model.with_name("out.onnx")) == onnx.load(model)
    assert any("no low-rank slack" in note for note in report.notes)


def test_the_same_seed_gives_the_same_bytes_and_neither_cache_nor_jobs_change_them(
    model, calibration, tmp_path
):
    written = []
    for jobs, cache in ((1, "none"), (3, str(tmp_path / "cache")), (2, str(tmp_path / "cache"))):
        convert(model, tmp_path / "out.onnx", calibration=calibration, cache=cache, max_drop=0.2, jobs=jobs)
        written.append((tmp_path / "out.onnx").read_bytes())
    assert written[0] == written[1] == written[2]


def test_a_second_search_looks_up_what_the_first_one_measured(monkeypatch, model, calibration, tmp_path):
    convert(model, tmp_path / "out.onnx", calibration=calibration, cache=str(tmp_path / "cache"))
    runs = []
    real = outputs_over
    monkeypatch.setattr(
        "onnxdecomp.search.trial.outputs_over",
        lambda *a, **k: runs.append(len(next(iter(a[1].values())))) or real(*a, **k),
    )
    convert(model, tmp_path / "out.onnx", calibration=calibration, cache=str(tmp_path / "cache"))
    assert len(runs) <= 3  # confirmations


def test_a_second_search_with_another_budget_makes_only_the_chains_it_uses(
    monkeypatch, model, calibration, tmp_path
):
    def nothing(self, function, items):
        assert not items
        return iter(())

    options = {"calibration": calibration, "metric": "sqnr", "max_drop": 0.3}
    alone = convert(model, None, cache="none", **options)
    convert(model, None, cache=str(tmp_path / "cache"), **{**options, "max_drop": 0.01})
    made, fitted = [], Fitter.fitted
    monkeypatch.setattr("onnxdecomp.search.options.Workers.map", nothing)
    monkeypatch.setattr(Fitter, "fitted", lambda self, task: made.append(task) or fitted(self, task))
    second = convert(model, None, cache=str(tmp_path / "cache"), **options)
    assert second.proto == alone.proto
    assert made


def damaged(folder):
    """Overwrite every file of a cache with something else."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"something else")


def test_a_broken_cache_is_rebuilt_without_a_word(model, calibration, tmp_path):
    cache, reports = tmp_path / "cache", []
    for change in (lambda: None, lambda: damaged(cache), lambda: None):
        change()
        reports.append(convert(model, None, calibration=calibration, cache=str(cache), max_drop=0.2))
    assert reports[0].proto == reports[1].proto == reports[2].proto
    assert [report.notes for report in reports] == [reports[0].notes] * 3
    assert not any(path.read_bytes() == b"something else" for path in cache.rglob("*.*"))


def test_a_cache_of_another_machine_is_ignored_with_one_note(model, calibration, tmp_path):
    cache = tmp_path / "cache"
    convert(model, None, calibration=calibration, cache=str(cache), max_drop=0.2)
    (machine,) = cache.iterdir()
    machine.rename(cache / ("0" * 40))
    notes = [
        [
            note
            for note in convert(model, None, calibration=calibration, cache=str(cache), max_drop=0.2).notes
            if "entries ignored, measured anew" in note
        ]
        for _ in range(2)
    ]
    assert [len(found) for found in notes] == [1, 0]


def test_a_cache_that_cannot_be_written_is_told_of_and_nothing_else(model, calibration, tmp_path):
    (tmp_path / "cache").touch()
    report = convert(model, None, calibration=calibration, cache=str(tmp_path / "cache"), max_drop=0.2)
    assert sum("Not all could be kept in the cache folder" in note for note in report.notes) == 1


def test_a_metric_of_the_user_is_computed_anew_when_it_changes(model, calibration, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    scores = []
    for share in ("1.0", "0.0"):
        body = f"return 1.0 - {share} * float(abs(outputs['y'] - reference['y']).max() > 0)"
        (tmp_path / f"own{share[0]}.py").write_text(f"def score(outputs, labels, reference):\n    {body}\n")
        monkeypatch.setitem(sys.modules, "own", importlib.import_module(f"own{share[0]}"))
        options = {"metric": "own:score", "max_drop": 0.5, "cache": str(tmp_path / "cache")}
        scores.append(bool(convert(model, None, calibration=calibration, **options).decomposed))
    assert scores == [False, True]


@pytest.mark.parametrize("without", STEPS)
def test_every_step_of_fitting_can_be_switched_off(model, calibration, without):
    report = search(model, calibration, without=(without,), max_drop=0.2)
    assert report.decomposed
    assert without not in report.recovered


def test_named_ranks_are_fitted_to_the_data_too(model, calibration):
    fitted = search(model, calibration, rank="ratio:0.3")
    plain = convert(model, None, rank="ratio:0.3", cache="none")
    assert all(layer.fit and layer.data_error is not None for layer in fitted.decomposed)
    assert [layer.key for layer in fitted.decomposed] == [layer.key for layer in plain.decomposed]
    assert fitted.accuracy is not None
    assert fitted.accuracy.budget is None


def test_named_ranks_keep_a_budget_or_write_nothing(model, calibration):
    with pytest.raises(BudgetError, match=r"loses .* of sqnr, more than --max-drop 1e-06"):
        search(model, calibration, rank="ratio:0.1", max_drop=1e-6, metric="sqnr")
    assert not model.with_name("out.onnx").exists()


@pytest.mark.parametrize(("original_in_int8", "status"), [(2.5, "decomposed"), (4.0, "kept")])
def test_int8_is_inside_the_same_budget_and_of_the_faster_model(
    model, calibration, monkeypatch, original_in_int8, status
):
    monkeypatch.setattr("onnxdecomp.search.int8.compare_latency", clock_of(3.0, original_in_int8))
    report = search(model, calibration, int8=True, metric="sqnr", max_drop=0.05)
    assert report.int8
    assert report.accuracy.drop <= 0.05
    assert status in {layer.status for layer in report.layers if layer.key == "c2"}
    ops = {node.op_type for node in load(model.with_name("out.onnx")).proto.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= ops


@pytest.mark.parametrize(("int8_speed", "in_int8"), [(3.0, True), (1.5, False)])
def test_layers_are_chosen_by_what_they_cost_in_int8_if_that_is_faster(
    model, calibration, monkeypatch, int8_speed, in_int8
):
    monkeypatch.setattr("onnxdecomp.search.int8.compare_latency", clock_of(int8_speed, 1.5))
    plain = search(model, calibration, metric="sqnr", max_drop=0.05)
    report = search(model, calibration, int8=True, metric="sqnr", max_drop=0.05)
    chosen = {layer.key: (layer.method, layer.ranks) for layer in report.decomposed}
    assert bool(report.int8) == in_int8
    if in_int8:
        assert chosen
        assert "c1" not in chosen
    else:  # the whole budget, as without INT8
        assert "c1" in chosen
        assert chosen == {layer.key: (layer.method, layer.ranks) for layer in plain.decomposed}
        assert any(note.startswith("Kept in float") for note in report.notes)


@pytest.mark.parametrize(("spared", "n_tried"), [(False, 2), (True, 4)])
def test_where_int8_leaves_layers_in_float_milder_decompositions_are_tried_too(
    model, calibration, monkeypatch, spared, n_tried
):
    tried = []

    def quantized(of, trials, config, against):
        found = quantize(of, trials, config, against)
        found = replace(found, spared=spared and found.model is not None)
        tried.append(of)
        return found

    quantize = quantizing.quantized
    monkeypatch.setattr(quantizing, "quantized", quantized)
    monkeypatch.setattr("onnxdecomp.search.int8.compare_latency", clock_of(3.0, 1.5))
    report = search(model, calibration, int8=True, metric="sqnr", max_drop=0.05)
    assert report.int8
    assert report.decomposed
    assert len(tried) == n_tried  # the original in INT8 among them


def test_what_stays_in_float_is_said_once_for_each_reason(model, calibration, monkeypatch):
    def quantized(of, trials, config, against):
        kept = (("a", "float is faster"), *((f"n{number}", "too much is lost") for number in range(5)))
        return replace(quantize(of, trials, config, against), kept=kept, padded=("b", "c"))

    quantize = quantizing.quantized
    monkeypatch.setattr(quantizing, "quantized", quantized)
    monkeypatch.setattr("onnxdecomp.search.int8.compare_latency", clock_of(3.0, 1.5))
    report = search(model, calibration, int8=True, metric="sqnr", max_drop=0.05)
    assert report.notes[-3:] == [
        "a stays in float: float is faster",
        "n0, n1, n2 and 2 more stay in float: too much is lost",
        "b, c: channels of zero weight are added to the input, which is faster",
    ]


@pytest.mark.parametrize(("ruined", "n_tried"), [(False, 4), (True, 2)])
def test_where_int8_alone_loses_too_much_no_milder_decomposition_is_tried(
    model, calibration, monkeypatch, ruined, n_tried
):
    tried = []

    def quantized(of, trials, config, against):
        tried.append(of)
        too_much = ruined if of is trials.original else True
        return Quantized(None, reason="too much is lost", spared=too_much)

    monkeypatch.setattr(quantizing, "quantized", quantized)
    report = search(model, calibration, int8=True, metric="sqnr", max_drop=0.05)
    assert report.decomposed
    assert report.notes == ["Kept in float: too much is lost"]
    assert len(tried) == n_tried


def test_what_has_no_form_in_int8_is_decomposed_in_float(model, calibration, monkeypatch):
    def profile(layers, trials, feeds, *, in_int8=False):
        if in_int8:
            raise ModelError("it cannot be quantized")
        return in_place_by_macs(layers, trials, feeds)

    monkeypatch.setattr("onnxdecomp.search.network.costs_in_place", profile)
    monkeypatch.setattr(
        "onnxdecomp.search.int8.search_int8", lambda *args, **options: Quantized(None, reason="no form")
    )
    report = search(model, calibration, int8=True, metric="sqnr", max_drop=0.05)
    assert report.decomposed
    assert not report.int8
    assert "Kept in float: no form" in report.notes


@pytest.mark.parametrize(
    "options",
    [{"max_drop": 0.01}, {"target_macs": 0.5}, {"int8": True}, {"evaluation": "y.npz"}],
    ids=lambda o: next(iter(o)),
)
def test_budgets_need_samples(model, options):
    with pytest.raises(UsageError, match="needs samples to fit to: give --calibration"):
        convert(model, None, **options)


def test_two_targets_at_once_are_refused(model, calibration):
    with pytest.raises(UsageError, match="target_latency and target_macs cannot both"):
        search(model, calibration, target_latency=0.5, target_macs=0.5)


@pytest.fixture
def few(tmp_path, images):
    np.savez(tmp_path / "few.npz", x=images[:3])
    return str(tmp_path / "few.npz")


@pytest.mark.parametrize(
    "asked", [{"max_drop": 0.01}, {"target_macs": 0.5}, {"int8": True}, {"evaluation": "few.npz"}], ids=str
)
def test_too_few_samples_for_what_was_asked_are_said(model, few, asked):
    with pytest.raises(UsageError, match=r"few.npz has 3 samples, too few to fit .*: give 16 or more"):
        search(model, few, **asked)
    assert not model.with_name("out.onnx").exists()


@pytest.mark.parametrize("rank", ["auto", "ratio:0.3"])
def test_with_too_few_samples_and_nothing_asked_the_weights_decide(model, few, rank):
    report = search(model, few, rank=rank)
    plain = convert(model, None, rank=rank, cache="none")
    assert [(layer.key, layer.ranks, layer.fit) for layer in report.decomposed] == [
        (layer.key, layer.ranks, "") for layer in plain.decomposed
    ]
    assert sum("3 samples, too few to fit" in note for note in report.notes) == 1
    assert not any("with --calibration X.npz they are fitted" in note for note in report.notes)


def test_labels_of_another_length_are_said(model, calibration, tmp_path, images):
    np.savez(tmp_path / "bad.npz", x=images, labels=np.zeros(5, int))
    with pytest.raises(UsageError, match="different numbers of samples"):
        search(model, calibration, evaluation=str(tmp_path / "bad.npz"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(N_SAMPLES, 0.5), "labels are float64: top1 takes the number of the class"),
        (np.full(N_SAMPLES, 23), r"gets 0\.0% of the labels right, no more than chance with 24 classes"),
    ],
)
def test_labels_that_do_not_fit_the_model_are_said(model, calibration, tmp_path, images, labels, message):
    answers = outputs_over(model, {"x": images})["y"].argmax(1)
    if labels.dtype.kind == "i":
        labels = (answers + 1) % 24
    np.savez(tmp_path / "bad.npz", x=images, labels=labels)
    with pytest.raises(UsageError, match=message):
        search(model, calibration, evaluation=str(tmp_path / "bad.npz"))


def test_a_layer_with_a_rule_of_its_own_follows_it(model, calibration):
    rules = {"c2": LayerRule(rank="none"), "g": LayerRule(rank="ratio:0.3")}
    report = search(model, calibration, layers=rules, max_drop=0.3)
    by_key = {layer.key: layer for layer in report.layers}
    assert by_key["c2"].status == "kept"
    assert by_key["g"].params.after <= 0.3 * by_key["g"].params.before


def test_a_target_that_the_clock_does_not_show_is_said_and_nothing_is_written(
    monkeypatch, model, calibration
):
    monkeypatch.setattr("onnxdecomp.proof.compare_latency", measured(1.0, 0.1))
    with pytest.raises(BudgetError, match="The target is not reached: the whole model is not faster beyond"):
        search(model, calibration, target_macs=0.4)
    assert not model.with_name("out.onnx").exists()


@pytest.fixture
def slow_in_place(monkeypatch):
    """Let every chain be slower inside the model, or those of some layers."""

    def use(*keys):
        monkeypatch.setattr(
            "onnxdecomp.put_back.slower_in_place",
            lambda original, converted, held, config: {k: "put back" for k in held if k in keys or not keys},
        )

    return use


@pytest.mark.parametrize("target", ["target_macs", "target_size"])
def test_layers_chosen_for_macs_or_bytes_stay_although_slower_in_place(
    slow_in_place, model, calibration, target
):
    slow_in_place()
    assert search(model, calibration, **{target: 0.5}).decomposed


def test_a_latency_that_no_layer_in_place_brings_is_said_and_nothing_is_written(
    slow_in_place, model, calibration
):
    slow_in_place()
    with pytest.raises(BudgetError, match=r"every chain is slower in place .* Nothing was written"):
        search(model, calibration, target_latency=0.6)
    assert not model.with_name("out.onnx").exists()
    forced = search(model, calibration, target_latency=0.6, force=True)
    assert (forced.decomposed, forced.recovered) == ([], ())


def test_a_layer_put_back_leaves_the_budget_kept(slow_in_place, model, calibration):
    whole = search(model, calibration, max_drop=0.15, metric="sqnr")
    slow_in_place("c2")
    report = search(model, calibration, max_drop=0.15, metric="sqnr")
    assert {layer.key for layer in whole.decomposed} - {layer.key for layer in report.decomposed} == {"c2"}
    assert report.accuracy.drop <= 0.15
    assert report.accuracy != whole.accuracy


def test_a_slow_chain_stays_where_the_others_need_it(monkeypatch, slow_in_place, model, calibration):
    slow_in_place("c1")
    monkeypatch.setattr("onnxdecomp.decomposing._keeps", lambda *args: False)
    report = search(model, calibration, target_latency=0.4, force=True)
    assert report.recovered
    assert "c1" in {layer.key for layer in report.decomposed}
    assert any(note.startswith("The chains of c1 are slower in place") for note in report.notes)


def test_a_budget_below_the_mildest_choice_is_said_with_what_that_loses(model, calibration):
    report = search(model, calibration, metric="sqnr", max_drop=0.0)
    (note,) = (note for note in report.notes if "no low-rank slack" in note)
    lost = re.search(r"The mildest one, which saves \S+ of what the layers cost, loses (\S+) ±", note)
    assert 0 < float(lost[1]) < 0.01
    assert onnx.load(model.with_name("out.onnx")) == onnx.load(model)


def test_a_mildest_choice_within_the_budget_is_not_said_to_exceed_it(monkeypatch, model, calibration):
    monkeypatch.setattr("onnxdecomp.search.auto.Search.within_drop", lambda *args: None)
    report = search(model, calibration, metric="sqnr", max_drop=0.5)
    (note,) = (note for note in report.notes if "no low-rank slack" in note)
    assert "no choice that was tried and saves more than next to nothing loses at most 0.5" in note


def test_a_latency_that_is_measured_to_be_missed_is_said_and_nothing_is_written(model, calibration):
    problem = r"--target-latency 0\.4 is not reached: the converted model takes 0\.500 of the original's time"
    with pytest.raises(BudgetError, match=problem + ".* Nothing was written"):
        search(model, calibration, target_latency=0.4)
    assert not model.with_name("out.onnx").exists()
    forced = search(model, calibration, target_latency=0.4, force=True)
    assert forced.decomposed
    assert any(re.match(problem, note) for note in forced.notes)


def test_a_latency_within_the_noise_of_its_target_is_reached(model, calibration):
    assert search(model, calibration, target_latency=0.49).decomposed


def test_a_matrix_too_wide_for_a_moment_is_fitted_to_its_samples(tmp_path):
    rng = np.random.default_rng(5)
    n_inputs, n_outputs, n_directions = 4200, 256, 24
    directions = rng.standard_normal((n_directions, n_inputs))
    samples = rng.standard_normal((160, n_directions)) @ directions  # few of the many directions are seen
    weight = rng.standard_normal((n_inputs, n_outputs)) / n_inputs
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", size])
        for name, size in (("x", n_inputs), ("y", n_outputs))
    )
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    tensor = onnx.numpy_helper.from_array(weight.astype(np.float32), "w")
    graph = onnx.helper.make_graph([node], "g", [x], [y], [tensor])
    opset = [onnx.helper.make_opsetid("", 17)]
    path, out = tmp_path / "wide.onnx", tmp_path / "out.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    np.savez(tmp_path / "x.npz", x=samples.astype(np.float32))
    report = convert(
        path, out, calibration=str(tmp_path / "x.npz"), metric="sqnr", max_drop=0.01, cache="none"
    )
    (layer,) = report.decomposed
    assert layer.ranks[0] < n_outputs // 2  # random weights alone have no such slack
    assert report.accuracy.drop <= 0.01
