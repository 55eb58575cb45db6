"""The part of a model behind some tensors, run on what was kept of the rest."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxdecomp.runtime import outputs
from onnxdecomp.runtime.evaluate import outputs_over
from onnxdecomp.runtime.suffix import Suffix
from tests.graph.models import normal, parse
from tests.networks import network

SAMPLES = {"x": normal(11, 4)}

BRANCHES = parse("""g (float[N, 4] x) => (float[N, 4] early, float[N, 4] late, float[N, 4] chosen)
<float[4, 4] w1 = {1,2,0,0, 0,1,0,3, 1,0,1,0, 0,0,2,1}, float[4, 4] w2 = {1,0,0,1, 0,2,0,0, 0,1,1,0, 3,0,0,1}>
{
    a = MatMul(x, w1)
    early = Relu(a)
    half = Constant <value_float = 0.5> ()
    scale = Neg(half)
    b = MatMul(early, w2)
    scaled = Mul(b, scale)
    late = Add(scaled, x)
    total = ReduceSum <keepdims = 0> (a)
    zero = Sub(half, half)
    is_large = Greater(total, zero)
    chosen = If (is_large) <
        then_branch = t () => (float[N, 4] t_out) { t_out = Add(b, a) },
        else_branch = e () => (float[N, 4] e_out) { e_out = Sub(b, a) }
    >
}""")
"""A residual, an output before the layer, constants that are computed, and a body that reads from outside."""


def doubled(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return a copy of a model with one weight doubled."""
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    (weight,) = (entry for entry in copied.graph.initializer if entry.name == name)
    weight.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weight), name))
    return copied


def suffix_of(proto, tensor, samples, **options) -> Suffix | None:
    return Suffix.of(proto, [tensor], samples, outputs_over(proto, samples, batch=4), batch=4, **options)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    ("proto", "tensor", "weight", "samples"),
    [
        (BRANCHES, "a", "w1", SAMPLES),
        (BRANCHES, "b", "w2", SAMPLES),
        (network(), "c1", "w1", {"x": normal(11, 16, 12, 12)}),
        (network(), "c2", "w2", {"x": normal(11, 16, 12, 12)}),
        (network(), "y", "w4", {"x": normal(11, 16, 12, 12)}),
        (network(batch=2), "c2", "w2", {"x": normal(8, 16, 12, 12)}),
    ],
)
def test_a_changed_layer_gives_the_outputs_of_the_whole_model(proto, tensor, weight, samples, jobs):
    suffix = suffix_of(proto, tensor, samples, jobs=jobs)
    changed = doubled(proto, weight)
    found, expected = suffix.run(changed, jobs), outputs_over(changed, samples, batch=4)
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)
    assert not np.allclose(found[list(found)[-1]], outputs_over(proto, samples)[list(found)[-1]])


def test_nothing_before_the_layer_is_run_again():
    suffix = suffix_of(BRANCHES, "b", SAMPLES)
    assert set(suffix.frontier[0]) == {"early", "x", "a", "is_large"}
    assert suffix.outputs == ("late", "chosen")
    assert list(suffix.others) == ["early"]


def test_no_more_memory_is_taken_than_allowed():
    assert suffix_of(BRANCHES, "b", SAMPLES, max_bytes=100) is None


def test_a_tensor_that_no_output_depends_on_has_no_suffix():
    assert suffix_of(BRANCHES, "scale", SAMPLES) is None


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    ("proto", "first", "then", "samples"),
    [
        (BRANCHES, "a", "b", SAMPLES),
        (BRANCHES, "b", "b", SAMPLES),
        (network(), "c1", "c2", {"x": normal(11, 16, 12, 12)}),
        (network(), "c1", "y", {"x": normal(11, 16, 12, 12)}),
    ],
)
def test_what_was_kept_is_run_on_to_a_later_layer(proto, first, then, samples, jobs):
    reference = outputs_over(proto, samples, batch=4)
    start = suffix_of(proto, first, samples)
    found = Suffix.of(proto, [then], {}, reference, batch=4, jobs=jobs, start=start)  # no samples are read
    expected = suffix_of(proto, then, samples)
    assert (found.outputs, found.order) == (expected.outputs, expected.order)
    for feed, wanted in zip(found.frontier, expected.frontier, strict=True):
        assert list(feed) == list(wanted)
        for name, array in wanted.items():
            np.testing.assert_allclose(feed[name], array, rtol=1e-5, atol=1e-5)


def test_an_earlier_layer_is_reached_from_the_samples():
    start = suffix_of(BRANCHES, "b", SAMPLES)
    found = suffix_of(BRANCHES, "a", SAMPLES, start=start)
    assert list(found.frontier[0]) == list(suffix_of(BRANCHES, "a", SAMPLES).frontier[0])


def test_only_the_changed_part_is_loaded_for_each_model(monkeypatch):
    loaded = []
    real = outputs.open_session
    monkeypatch.setattr(
        outputs,
        "open_session",
        lambda part, **kwargs: loaded.append(len(part.graph.node)) or real(part, **kwargs),
    )
    suffix = suffix_of(BRANCHES, "b", SAMPLES)
    del loaded[:]
    for _ in range(3):
        suffix.run(doubled(BRANCHES, "w2"))
    assert loaded == [1, len(BRANCHES.graph.node) - 6, 1, 1]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_tensor_in_between_may_have_another_shape(jobs):
    """The chain of another form: fewer channels between two layers that are replaced together."""
    proto = parse(
        "g (float[N, 4] x) => (float[N, 4] y) { a = MatMul(x, v) r = Relu(a) b = MatMul(r, w) y = Neg(b) }",
        {"v": normal(4, 6), "w": normal(6, 4, seed=1)},
    )
    suffix = Suffix.of(proto, ["a", "b"], SAMPLES, outputs_over(proto, SAMPLES, batch=4), batch=4)
    for width in (5, 3):
        narrow = onnx.ModelProto()
        narrow.CopyFrom(proto)
        for tensor, shape in zip(narrow.graph.initializer, ((4, width), (width, 4)), strict=True):
            tensor.CopyFrom(numpy_helper.from_array(normal(*shape, seed=width), tensor.name))
        found = suffix.run(narrow, jobs)["y"]
        np.testing.assert_allclose(found, outputs_over(narrow, SAMPLES)["y"], rtol=1e-5, atol=1e-5)
