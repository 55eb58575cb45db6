"""Costs inside the whole model: profiled once, unless the moment was a bad one."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from onnxdecomp.config import Config
from onnxdecomp.graph.io import load
from onnxdecomp.layer import Geometry, StepSpec
from onnxdecomp.methods import find_methods
from onnxdecomp.ranks.study import Candidate
from onnxdecomp.runtime.cache import Cache
from onnxdecomp.runtime.in_place import InPlace
from onnxdecomp.runtime.latency import Timing
from onnxdecomp.search import goal
from onnxdecomp.search.goal import costs_in_place, counted
from onnxdecomp.search.memory import Memory
from onnxdecomp.search.options import LayerOptions
from tests.networks import network

STEADY_MS, SHAKY_MS = (10.0, 10.1, 10.2), (10.0, 15.0, 20.0)
MATRIX = Geometry.pointwise(0)
(SVD,) = find_methods("svd/2-steps")


def layer(key, *ranks):
    """Return a layer whose options have no chains yet."""
    own = SimpleNamespace(key=key, out_channels=64)
    candidates = [
        Candidate(SVD, (r,), (StepSpec((r, 64), MATRIX), StepSpec((64, r), MATRIX)), 0.5, 1, 1) for r in ranks
    ]
    target = SimpleNamespace(group=SimpleNamespace(layer=own, sites=[SimpleNamespace(layer=own)]))
    options = [SimpleNamespace(candidate=candidate) for candidate in candidates]
    return LayerOptions(target, lambda: np.zeros((64, 64)), {"weights": options}, {})


def built(replaced):
    """Return, in place of a model, the ranks in it."""
    for replacement in replaced.values():
        for step, weight in zip(replacement.chain.specs, replacement.chain.weights, strict=True):
            assert weight.shape == step.weight_shape
    return {key: replacement.chain.ranks[0] for key, replacement in replaced.items()}


@pytest.fixture
def trials(tmp_path):
    onnx.save(network(), tmp_path / "in.onnx")
    memory = Memory(Cache(tmp_path / "cache"), load(tmp_path / "in.onnx"), [], {})

    def side_by_side(many):
        return nullcontext([built(replaced) for replaced in many])

    return SimpleNamespace(
        memory=memory, original={}, threads=1, side_by_side=side_by_side, looks_are_long=False
    )


@pytest.fixture
def profiles(monkeypatch):
    """Say that a chain takes a hundredth of a millisecond a rank, a quarter in INT8; count the profiles."""
    seen = []

    def use(wall_ms):
        def profile(original, variants, feeds, threads, *, form, **options):
            seen.append(variants)
            wall = Timing.of(list(wall_ms))
            dense = InPlace({"a": 3.0, "b": 5.0}, {}, 1.0, wall)
            ranks_a_ms = 400 if form else 100
            costs = [{key: rank / ranks_a_ms for key, rank in variant.items()} for variant in variants]
            return dense, [InPlace(cost, {}, 1.0, wall) for cost in costs]

        monkeypatch.setattr(goal, "profile_variants", profile)
        return seen

    return use


FEEDS = {"x": np.zeros((1, 16, 12, 12), np.float32)}


def test_the_nth_model_has_the_nth_option_of_every_layer(trials, profiles):
    seen = profiles(STEADY_MS)
    found = costs_in_place([layer("a", 32, 8), layer("b", 16)], trials, FEEDS)
    assert seen == [[{"a": 32, "b": 16}, {"a": 8, "b": 16}]]
    assert found.dense_ms == {"a": 3.0, "b": 5.0}
    assert found.option_ms == {
        ("a", SVD.full_name, (32,)): 0.32,
        ("a", SVD.full_name, (8,)): 0.08,
        ("b", SVD.full_name, (16,)): 0.16,
    }
    assert found.total_ms == 9.0


@pytest.mark.parametrize(("wall_ms", "n_profiles"), [(STEADY_MS, 1), (SHAKY_MS, 2)])
def test_a_second_search_profiles_again_only_after_a_bad_moment(trials, profiles, wall_ms, n_profiles):
    seen, layers = profiles(wall_ms), [layer("a", 32, 8), layer("b", 16)]
    assert costs_in_place(layers, trials, FEEDS) == costs_in_place(layers, trials, FEEDS)
    assert len(seen) == n_profiles


def test_costs_in_int8_are_their_own(trials, profiles):
    seen, layers = profiles(STEADY_MS), [layer("a", 32)]
    found = [costs_in_place(layers, trials, FEEDS, in_int8=in_int8) for in_int8 in (False, True) * 2]
    assert [next(iter(costs.option_ms.values())) for costs in found] == [0.32, 0.08] * 2
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("ranks", "threads", "n_samples"), [((32, 16), 1, 1), ((32, 8), 2, 1), ((32, 8), 1, 4)]
)
def test_other_options_threads_and_inputs_are_profiled_on_their_own(
    trials, profiles, ranks, threads, n_samples
):
    seen = profiles(STEADY_MS)
    costs_in_place([layer("a", 32, 8)], trials, FEEDS)
    trials.threads = threads
    costs_in_place([layer("a", *ranks)], trials, {"x": np.repeat(FEEDS["x"], n_samples, axis=0)})
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"max_drop": 0.01}, None),
        ({"cluster": "4"}, None),
        ({"cluster": "auto"}, "size"),
        ({"cluster": "auto", "target_size": 0.1}, "size"),
        ({"cluster": "auto", "target_latency": 0.5}, "latency"),
        ({"cluster": "auto", "target_macs": 0.5}, "macs"),
        ({"target_size": 0.5}, "size"),
    ],
    ids=str,
)
def test_ranks_are_chosen_by_bytes_where_the_fewest_are_looked_for(options, expected):
    assert counted(Config(calibration="x.npz", **options)) == expected
