"""Options of layers: the same for any number of jobs."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxdecomp.config import Config
from onnxdecomp.graph.find import find_layers
from onnxdecomp.graph.io import load
from onnxdecomp.runtime.activations import gather_moments
from onnxdecomp.runtime.cache import Cache
from onnxdecomp.search import options, workers
from onnxdecomp.search.forms import find_forms
from onnxdecomp.search.memory import Memory
from onnxdecomp.search.options import LayerOptions, find_options
from onnxdecomp.search.subject import Subject
from onnxdecomp.search.workers import Workers
from onnxdecomp.selection import new_study, plan_targets
from onnxdecomp.weights.fit import FITS, SHRUNK, WEIGHTS, distinct_fits
from tests.networks import network
from tests.timers import by_macs, slow


@pytest.fixture
def started(monkeypatch):
    """Count the processes that are started."""
    processes, start = [], workers._started
    monkeypatch.setattr(workers, "_started", lambda: processes.append(start()) or processes[-1])
    return processes


@pytest.fixture
def subjects(monkeypatch, tmp_path):
    monkeypatch.setattr("onnxdecomp.selection.measure_chains", by_macs)
    return subjects_of(network(), tmp_path / "in.onnx")


def subjects_of(proto: onnx.ModelProto, path: Path) -> list[Subject]:
    """Return the layers of a network, with data of chance."""
    onnx.save(proto, path)
    model = load(path)
    targets = plan_targets(find_layers(model), Config())
    samples = {"x": np.random.default_rng(3).standard_normal((40, 16, 12, 12)).astype(np.float32)}
    moments = gather_moments(path, [target.group for target in targets], samples)
    return [
        Subject(
            target,
            new_study(target, target.group.weight(), Config()),
            moments[target.group.layer.key],
            target.group.known_bias(),
        )
        for target in targets
    ]


def digest(found) -> str:
    """Return a digest of every bit of the options of all layers."""
    whole = sha256()
    for layer in found:
        for name, made in layer.options.items():
            for option in made:
                candidate = option.candidate
                whole.update(f"{layer.key} {name} {candidate.method.full_name} {candidate.ranks}".encode())
                whole.update(f"{option.error!r} {option.ratio!r} {option.size_bytes}".encode())
                for array in (*option.chain.weights, option.bias):
                    whole.update(b"" if array is None else array.tobytes())
    return whole.hexdigest()


def test_options_are_the_same_bits_for_any_number_of_jobs(monkeypatch, subjects, started):
    monkeypatch.setattr(options, "MIN_SHARED_MACS", 0)
    digests = {digest(find_options(subjects[1:3], [SHRUNK], jobs=jobs)) for jobs in (1, 2, 3)}
    assert len(digests) == 1
    assert len(started) == 2 + 3
    assert all(process.returncode is not None for process in started)


def test_little_work_starts_no_process(subjects, started):
    found = find_options(subjects[2:], jobs=2)
    tried = [distinct_fits(FITS, subject.study.layer) for subject in subjects[2:]]
    assert [set(layer.options) for layer in found] == [{fit.name for fit in fits} for fits in tried]
    assert len(found) == 2
    assert not started


@pytest.fixture
def memory(tmp_path):
    model = load(tmp_path / "in.onnx")
    return Memory(Cache(tmp_path / "cache"), model, [], {})


@pytest.mark.parametrize("order", [1, -1])
def test_a_second_search_makes_the_same_bits_of_what_is_asked_for(monkeypatch, subjects, memory, order):
    first = find_options(subjects, memory=memory)
    monkeypatch.setattr(Workers, "map", _only_nothing)
    second = find_options(subjects, memory=memory)
    made = [option for layer in second for options in layer.options.values() for option in options]
    assert len([option.chain for option in made[::order]]) > 20
    assert digest(second) == digest(first)
    assert [option.identity for option in made] == [
        option.identity for layer in first for options in layer.options.values() for option in options
    ]


def test_other_candidates_than_before_are_fitted_beside_those_that_are_known(monkeypatch, subjects, memory):
    whole = find_options(subjects[1:2], [WEIGHTS])
    monkeypatch.setattr("onnxdecomp.selection.measure_chains", _only_small_ones_are_fast)
    find_options(subjects[1:2], [WEIGHTS], memory=memory)
    monkeypatch.setattr("onnxdecomp.selection.measure_chains", by_macs)
    assert digest(find_options(subjects[1:2], [WEIGHTS], memory=memory)) == digest(whole)


def test_a_reason_is_remembered(monkeypatch, subjects, memory):
    dead = [Subject(s.target, s.study, _constant(s.moments), s.bias) for s in subjects[:1]]
    reasons = find_options(dead, memory=memory)
    monkeypatch.setattr(Workers, "map", _only_nothing)
    assert find_options(dead, memory=memory) == reasons


def test_what_a_chain_follows_from_tells_it_from_all_others(subjects):
    found = find_options(subjects)
    made = [option for layer in found for options in layer.options.values() for option in options]
    assert len({option.identity for option in made}) == len(made)


def test_each_layer_without_options_has_its_reason_in_its_place(monkeypatch, subjects):
    flat = [subject.study.layer.key for subject in subjects][1]
    dead = [
        Subject(s.target, s.study, _constant(s.moments), s.bias) if s.study.layer.key == flat else s
        for s in subjects
    ]
    found = find_options(dead, [WEIGHTS])
    assert [isinstance(one, LayerOptions) for one in found] == [True, False, True, True]
    assert "constant on the calibration samples" in found[1]


def test_chains_that_are_not_faster_are_no_options(monkeypatch, subjects):
    monkeypatch.setattr("onnxdecomp.selection.measure_chains", slow)
    slowed = [
        Subject(s.target, new_study(s.target, s.study.weight, Config()), s.moments, s.bias) for s in subjects
    ]
    assert ["not faster" in reason for reason in find_options(slowed)] == [True] * len(subjects)


def test_large_kernels_may_become_cp_too_and_small_ones_are_not_solved_for_it(monkeypatch, tmp_path):
    monkeypatch.setattr("onnxdecomp.selection.measure_chains", by_macs)
    weight = np.random.default_rng(0).standard_normal((32, 16, 5, 5)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "large", pads=[2, 2, 2, 2])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 16, 12, 12])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    large = subjects_of(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "large.onnx",
    )
    small = subjects_of(network(), tmp_path / "small.onnx")
    names = [
        {
            option.candidate.method.name
            for layer in find_options(found, [WEIGHTS])
            for option in layer.options["weights"]
        }
        for found in (large, small)
    ]
    assert {"cp3", "cp4", "spatial-svd"} <= names[0]
    assert not {"cp3", "cp4"} & names[1]


def test_progress_is_shown_stage_by_stage(subjects):
    seen = []

    def track(items, what):
        seen.append((what, len(items)))
        return items

    find_options(subjects, [WEIGHTS], track=track)
    assert seen == [(what, len(subjects)) for what in ("factorizing", "timing", "fitting")]


def _only_nothing(self, function, items):
    assert not items
    return iter(())


def _only_small_ones_are_fast(layer, candidates, dtype, config):
    timings = by_macs(layer, candidates, dtype, config)
    return [
        t if t.speedup > 4 else slow(layer, [c], dtype, config)[0]
        for c, t in zip(candidates, timings, strict=True)
    ]


def _constant(moments):
    """Return moments of an input that never changes."""
    return type(moments)(moments.n_patches, 0 * moments.mean, 0 * moments.second)


def test_forms_of_one_layer_do_not_meet_in_the_cache(subjects, memory, tmp_path):
    targets = [subject.target for subject in subjects]
    forms = find_forms(load(tmp_path / "in.onnx"), targets, subjects[1:2], Config(), 8, memory)
    made = [find_options([form.subject() for form in forms], [SHRUNK], memory=memory) for _ in range(2)]
    assert digest(made[0]) == digest(made[1])
    for form, layer in zip(forms, made[1], strict=True):
        (options,) = layer.options.values()
        for option in options:
            assert {option.chain.layer.in_channels} == {form.number}
            assert [w.shape for w in option.chain.weights] == [
                step.weight_shape for step in option.candidate.specs
            ]
