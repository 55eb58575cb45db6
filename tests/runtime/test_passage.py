"""A model that changes from front to back, run on from where it did not change."""

import numpy as np
import onnx
import pytest

from onnxdecomp.runtime import outputs
from onnxdecomp.runtime.outputs import open_outputs
from onnxdecomp.runtime.passage import Passage
from onnxdecomp.runtime.session import run
from tests.graph.models import normal
from tests.networks import network
from tests.runtime.test_suffix import BRANCHES, doubled

FEEDS = [{"x": normal(4, 4)}, {"x": normal(3, 4, seed=1)}]
IMAGES = [{"x": normal(4, 16, 12, 12)}, {"x": normal(2, 16, 12, 12, seed=1)}]


def index_of(proto: onnx.ModelProto, name: str) -> int:
    return next(i for i, node in enumerate(proto.graph.node) if name in node.output)


def directly(proto, names, feeds):
    session = open_outputs(proto, names)
    return [run(session, feed) for feed in feeds]


def assert_equal_batches(found, expected):
    assert [list(batch) for batch in found] == [list(batch) for batch in expected]
    for batch, other in zip(found, expected, strict=True):
        for name, array in batch.items():
            np.testing.assert_allclose(array, other[name], rtol=1e-5, atol=1e-6)


@pytest.fixture
def started(monkeypatch):
    """Return the operators of each part of a model that was loaded."""
    parts = []
    real = outputs.open_session

    def recording(proto, **options):
        parts.append([node.op_type for node in proto.graph.node])
        return real(proto, **options)

    monkeypatch.setattr(outputs, "open_session", recording)
    return parts


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_model_changed_behind_the_place_gives_what_a_whole_run_gives(jobs):
    walk = Passage(FEEDS, jobs=jobs)
    first = list(walk.run(BRANCHES, ["early"], index_of(BRANCHES, "b")))
    assert_equal_batches(first, directly(BRANCHES, ["early"], FEEDS))
    changed = doubled(BRANCHES, "w2")
    names = ["late", "chosen"]
    found = list(walk.run(changed, names, len(changed.graph.node)))
    assert_equal_batches(found, directly(changed, names, FEEDS))


def test_nothing_before_the_place_runs_again(started):
    model = network()
    walk = Passage(IMAGES)
    list(walk.run(model, ["c1"], index_of(model, "c2")))
    list(walk.run(model, ["c2"], index_of(model, "c2") + 1))
    assert "Conv" in started[0]
    assert started[1].count("Conv") == 1


def test_a_tensor_before_the_place_is_made_from_the_start(started):
    model = network()
    walk = Passage(IMAGES)
    list(walk.run(model, ["c2"], index_of(model, "c2") + 1))
    found = list(walk.run(model, ["c1"], index_of(model, "c2")))
    assert_equal_batches(found, directly(model, ["c1"], IMAGES))


def test_what_takes_too_much_memory_is_not_kept(started):
    model = network()
    walk = Passage(IMAGES, max_bytes=1000)
    list(walk.run(model, ["c1"], index_of(model, "c2")))
    found = list(walk.run(model, ["c2"], index_of(model, "c2") + 1))
    assert started[1].count("Conv") == 2
    assert_equal_batches(found, directly(model, ["c2"], IMAGES))


def test_an_input_can_be_asked_for():
    (first, *_) = Passage(FEEDS).run(BRANCHES, ["x", "a"], 1)
    np.testing.assert_array_equal(first["x"], FEEDS[0]["x"])
