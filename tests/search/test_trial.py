"""Looks at models are counted, not timed: how many samples they take is the same in each run."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxdecomp.config import Config
from onnxdecomp.graph.find import find_layers
from onnxdecomp.graph.io import load
from onnxdecomp.methods import find_methods
from onnxdecomp.methods.base import decompose
from onnxdecomp.runtime import judge
from onnxdecomp.runtime.evaluate import METRICS, outputs_over
from onnxdecomp.runtime.importance import unsureness
from onnxdecomp.runtime.margins import Margins
from onnxdecomp.search import looks as looking
from onnxdecomp.search import trial, work
from onnxdecomp.search.replacement import Replacement
from onnxdecomp.search.run import open_trials
from onnxdecomp.search.track import watched
from onnxdecomp.search.work import n_answers_each
from onnxdecomp.selection import plan_targets
from tests.graph.models import normal
from tests.networks import network

N_SAMPLES = 96
"""A quarter of them decides."""


@pytest.fixture
def opened(tmp_path):
    """Open trials, with other samples to choose and to confirm on where they are `apart`."""
    path, samples = tmp_path / "in.onnx", tmp_path / "x.npz"
    onnx.save(network(), path)
    onnx.save(
        network(), tmp_path / "apart.onnx", save_as_external_data=True, location="weights", size_threshold=0
    )
    images = np.random.default_rng(3).standard_normal((N_SAMPLES, 16, 12, 12))
    images[::2] *= 40.0  # of these the network is sure
    np.savez(samples, x=images.astype(np.float32))

    def open_with(*, apart=False, name="in.onnx"):
        model = load(tmp_path / name)
        evaluation = str(samples) if apart else None
        config = Config(calibration=str(samples), evaluation=evaluation, cache="none", jobs=2)
        return open_trials(model, plan_targets(find_layers(model), config), config)

    return open_with


@pytest.fixture
def n_run(monkeypatch):
    """Collect the number of samples of each run."""
    counts = []

    def counted(model, samples, **options):
        counts.append(len(samples["x"]))
        return outputs_over(model, samples, **options)

    monkeypatch.setattr(looking, "outputs_over", counted)
    return counts


@pytest.mark.parametrize(
    ("looks", "roughly", "expected"),
    [(0, False, 6), (20, False, 20), (1000, False, 24), (6, True, 6), (20, True, 16), (1000, True, 24)],
)
def test_the_work_of_a_look_sets_its_number_of_samples(monkeypatch, opened, n_run, looks, roughly, expected):
    n_macs = sum(group.layer.n_macs for group in find_layers(load(network())).groups)
    monkeypatch.setattr(work, "LOOK_MACS", looks * n_macs)
    with opened() as trials:
        del n_run[:]
        assert trials.divergence({}, roughly=roughly) == pytest.approx(0.0, abs=1e-9)
    assert n_run == [expected]


def test_fits_are_told_apart_on_few_samples_where_each_says_much(monkeypatch, opened, n_run):
    n_macs = sum(group.layer.n_macs for group in find_layers(load(network())).groups)
    monkeypatch.setattr(work, "LOOK_MACS", 20 * n_macs)
    monkeypatch.setattr(work, "MANY_ANSWERS", 1)
    with opened() as trials:
        n_run.clear()
        trials.divergence({}, roughly=True)
    assert n_run == [5]  # instead of 16


def test_answers_are_counted_for_each_sample():
    outputs = {"scores": normal(5, 3, 7), "map": normal(5, 2, 4, 4), "choice": np.zeros((5, 6), np.int64)}
    counted = {"scores": 3, "map": 32, "choice": 6}
    metrics = {"scores": METRICS["agreement"], "map": METRICS["sqnr"], "choice": METRICS["agreement"]}
    for name, n_answers in counted.items():
        assert n_answers_each({name: metrics[name]}, outputs) == n_answers
    assert n_answers_each(metrics, outputs) == 3


def test_every_run_of_a_model_is_a_step_of_progress(opened):
    seen = []

    def track(items, what):
        try:
            for item in items:
                seen.append((what, item))
                yield item
        finally:
            seen.append("closed")

    with opened() as trials:
        with watched(trials, track, "searching"):
            trials.compared({})
            trials.divergence({})
        trials.compared({})
    on_fitted = 1  # for margins, where no moments were gathered on the way to which they are found
    assert seen == [*(("searching", number) for number in range(3 + on_fitted)), "closed"]


def test_the_samples_of_a_look_are_those_the_original_is_unsure_of(monkeypatch, opened):
    n_macs = sum(group.layer.n_macs for group in find_layers(load(network())).groups)
    monkeypatch.setattr(work, "LOOK_MACS", 8 * n_macs)
    seen = []

    def kept(model, samples, **options):
        outputs = outputs_over(model, samples, **options)
        seen.append(unsureness(outputs))
        return outputs

    for module in (trial, looking):
        monkeypatch.setattr(module, "outputs_over", kept)
    with opened() as trials:
        trials.divergence({})
    of_all, of_few = seen[0], seen[-1]
    assert (len(of_all), len(of_few)) == (24, 8)
    assert of_few.mean() > 1.1 * of_all.mean()


@pytest.mark.parametrize(("apart", "n_margins"), [(False, [24 + 24, 24 + 24]), (True, [48, 48])])
def test_samples_that_are_fitted_to_lend_their_margins_where_all_are_of_one_draw(
    opened, n_margins, apart, monkeypatch
):
    seen = []

    class Counted(Margins):
        def changed(self, logs):
            seen.append(len(self._all))
            return super().changed(logs)

    monkeypatch.setattr(judge, "Margins", Counted)
    with opened(apart=apart) as trials:
        trials.compared({})
        trials.confirmed(trials.original)
    assert seen == n_margins


@pytest.mark.parametrize("max_inside_bytes", [0, 1 << 20])
def test_weights_in_a_file_of_their_own_change_nothing_of_what_is_seen(opened, max_inside_bytes, monkeypatch):
    monkeypatch.setattr(trial, "MAX_INSIDE_BYTES", max_inside_bytes)

    def seen(name):
        with opened(name=name) as trials:
            replaced = [{"c2": of_rank(rank, trials)} for rank in (4, 2)]
            with trials.side_by_side(replaced) as made:
                models = list(made)
                images = {"x": normal(3, 16, 12, 12)}
                outputs = [outputs_over(model, images)["y"] for model in models]
            assert not any(isinstance(model, Path) and model.exists() for model in models)
            return isinstance(models[0], Path), outputs, [trials.divergence(one) for one in replaced]

    (is_path, *found), (_, *expected) = seen("apart.onnx"), seen("in.onnx")
    assert is_path == (max_inside_bytes == 0)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-3)
    assert expected[1][1] > 1.01 * expected[1][0] > 0


def of_rank(rank, trials) -> Replacement:
    """Return a chain of this rank in place of the second convolution of the network."""
    groups = find_layers(load(trials.original)).groups
    (group,) = (group for group in groups if group.layer.key == "c2")
    (method,) = find_methods("channel-svd/output")
    analysis = method.analyze(group.layer, group.weight(), np.random.default_rng(0))
    return Replacement(group, decompose(method, analysis, group.layer, (rank,)))
