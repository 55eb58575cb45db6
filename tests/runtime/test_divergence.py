from math import inf, log, nan

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from onnxdecomp.runtime import divergence as divergence_module
from onnxdecomp.runtime import power
from onnxdecomp.runtime.divergence import Divergence, looks_like_class_scores

ROUNDING = 1e-9

STEADY = settings(max_examples=50, deadline=None, derandomize=True)
"""The same cases in every run, and no failure because the machine is busy."""
NO_DIVERGENCE = 1e-20  # what float64 leaves of a shift of equal scores

SCORES = st.floats(-40, 40, width=32)  # probabilities that float32 can hold


def divergence(outputs, reference) -> float:
    return Divergence({"y": np.asarray(reference)}).of({"y": np.asarray(outputs)})


def up_to_factor(outputs, reference) -> float:
    return Divergence({"y": np.asarray(reference)}, up_to_factor=True).of({"y": np.asarray(outputs)})


def score_pairs():
    """Two arrays of class scores of one shape, (n, C) or (n, steps, C)."""
    shapes = array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=6)
    return shapes.flatmap(lambda shape: st.tuples(*[arrays(np.float32, shape, elements=SCORES)] * 2))


def softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def noisy(reference, level, seed=0):
    return reference + level * np.random.default_rng(seed).standard_normal(reference.shape)


@STEADY
@given(score_pairs())
def test_the_divergence_of_scores_is_finite_and_never_negative(pair):
    assert 0.0 <= divergence(*pair) < inf


@STEADY
@given(score_pairs())
def test_the_divergence_of_scores_is_that_of_their_softmax(pair):
    q, p = (softmax(scores.astype(np.float64)) for scores in pair)
    expected = np.mean(np.sum(p * np.log(p / q), axis=-1))
    assert divergence(*pair) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@STEADY
@given(score_pairs(), st.floats(-100, 100))
def test_equal_scores_do_not_diverge_and_a_shift_does_not_count(pair, shift):
    reference = pair[0].astype(np.float64)
    assert divergence(reference, reference) == 0.0
    assert divergence(reference + shift, reference) <= NO_DIVERGENCE


@STEADY
@given(score_pairs(), st.sampled_from([1e-6, 1e-3, 1.0]))
def test_scores_that_differ_by_more_than_a_shift_diverge(pair, step):
    reference = pair[0].astype(np.float64)
    moved = reference.copy()
    moved[..., 0] += step
    assume(np.any(softmax(reference)[..., 0] * (1 - softmax(reference)[..., 0]) > 1e-6))
    assert divergence(moved, reference) > NO_DIVERGENCE


@STEADY
@given(score_pairs())
def test_probabilities_are_taken_as_they_are(pair):
    ours, theirs = (softmax(scores.astype(np.float64)) for scores in pair)
    assert divergence(ours, theirs) == pytest.approx(divergence(*pair), rel=1e-6, abs=1e-12)


@STEADY
@given(score_pairs(), st.sampled_from([0.2, 0.8, 0.99, 1.1, 3.0]))
def test_up_to_a_factor_all_scores_may_be_larger_or_smaller(pair, factor):
    reference = pair[0].astype(np.float64) / 10
    assume(divergence(factor * reference, reference) > NO_DIVERGENCE)
    assert up_to_factor(reference, reference) == 0.0
    assert up_to_factor(factor * reference, reference) < 1e-3 * divergence(factor * reference, reference)


@STEADY
@given(score_pairs())
def test_up_to_a_factor_scores_are_no_further_than_with_any_factor(pair):
    ours, theirs = (scores.astype(np.float64) / 10 for scores in pair)
    least = up_to_factor(ours, theirs)
    assert all(
        least <= divergence(factor * ours, theirs) * (1 + 1e-4) + 1e-9 for factor in np.geomspace(0.1, 10, 41)
    )


def test_up_to_a_factor_probabilities_are_taken_to_a_power():
    scores, noise = np.random.default_rng(0).normal(size=(2, 50, 8))
    ours, theirs = 0.8 * scores + 0.1 * noise, scores
    expected = up_to_factor(ours, theirs)
    assert up_to_factor(softmax(ours), softmax(theirs)) == pytest.approx(expected, rel=1e-6)
    assert expected < 0.5 * divergence(ours, theirs)


def test_a_probability_that_vanishes_is_far_but_not_infinitely_far():
    p, q = np.array([[0.5, 0.5]], np.float32), np.array([[1.0, 0.0]], np.float32)
    assert 40 < divergence(q, p) < 50


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_probabilities_are_known_as_such_in_any_precision(kind):
    p = softmax(np.random.default_rng(0).normal(size=(8, 1000)).astype(np.float64)).astype(kind)
    q = np.roll(p, 1, axis=-1)
    expected = np.mean(np.sum(p.astype(float) * np.log(p.astype(float) / q), axis=-1))
    assert divergence(q, p) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "reference",
    [
        np.random.default_rng(1).normal(size=(40, 10)),
        softmax(np.random.default_rng(1).normal(size=(40, 10))),
        np.random.default_rng(1).normal(size=(40, 3, 5, 5)),
    ],
    ids=["scores", "probabilities", "image"],
)
def test_divergence_grows_with_noise(reference):
    levels = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
    found = [divergence(np.clip(noisy(reference, level), -9, 9), reference) for level in levels]
    assert found == sorted(found)
    assert found[0] > 0


@pytest.mark.parametrize("measure", [divergence, up_to_factor])
def test_of_many_rows_some_stand_for_all(monkeypatch, measure):
    theirs = np.random.default_rng(0).normal(size=(50, 40, 6))
    ours, broken = noisy(theirs, 0.3), theirs.copy()
    whole = measure(ours, theirs)
    monkeypatch.setattr(divergence_module, "MAX_VALUES", 6 * 500)
    found = measure(ours, theirs)
    assert found != whole
    assert found == pytest.approx(whole, rel=0.15)
    broken[7, 7, 3] = nan
    assert measure(broken, theirs) == inf


def test_samples_that_count_for_more_do_so_among_some_rows_too(monkeypatch):
    theirs = np.random.default_rng(0).normal(size=(50, 40, 6))
    ours, weights = noisy(theirs, 0.3), np.linspace(0, 0.1, 50)
    whole = Divergence({"y": theirs}, weights).of({"y": ours})
    monkeypatch.setattr(divergence_module, "MAX_VALUES", 6 * 500)
    assert Divergence({"y": theirs}, weights).of({"y": ours}) == pytest.approx(whole, rel=0.15)


@pytest.mark.parametrize("block", [1, 30, 31])
def test_comparing_a_few_values_at_once_gives_the_same(monkeypatch, block):
    ours, theirs = np.random.default_rng(0).normal(size=(2, 17, 3, 5))
    whole = [measure(ours, theirs) for measure in (divergence, up_to_factor)]
    monkeypatch.setattr(power, "BLOCK", block)
    assert [measure(ours, theirs) for measure in (divergence, up_to_factor)] == pytest.approx(
        whole, rel=ROUNDING
    )


def test_a_class_ruled_out_by_both_does_not_count():
    reference = np.array([[1.0, 2.0, -inf]])
    assert divergence(reference + 3, reference) <= NO_DIVERGENCE
    assert divergence([[2.0, 1.0, -inf]], reference) == divergence([[2.0, 1.0]], [[1.0, 2.0]])
    assert up_to_factor([[0.5, 1.0, -inf]], reference) < divergence([[0.5, 1.0, -inf]], reference) / 100


BREAKABLE = {
    "scores": np.random.default_rng(0).normal(size=(4, 3)),
    "scores without a doubt": np.array([[0.0, 900.0]] * 4),
    "probabilities": softmax(np.random.default_rng(0).normal(size=(4, 3))),
    "image": np.random.default_rng(0).normal(size=(4, 3, 2, 2)),
}


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("reference", BREAKABLE.values(), ids=BREAKABLE)
def test_a_broken_output_is_infinitely_far(bad, reference):
    broken = reference.copy()
    broken[-1, 0] = bad
    assert divergence(broken, reference) == inf
    assert up_to_factor(broken, reference) == inf


def test_what_the_original_does_not_know_is_left_out():
    assert divergence([[[[1.0, 5.0]]]], [[[[2.0, nan]]]]) == pytest.approx(0.25)


def test_other_outputs_count_by_noise_power():
    assert divergence([[[[3.0, 4.5]]]], [[[[3.0, 4.0]]]]) == pytest.approx(0.01)


def test_every_output_counts_alike_whatever_its_scale():
    reference = {"boxes": np.full((2, 1, 1, 4), 500.0), "scores": np.full((2, 1, 1, 4), 0.5)}
    outputs = {"boxes": reference["boxes"] * 1.1, "scores": reference["scores"] * 1.2}
    assert Divergence(reference).of(outputs) == pytest.approx((0.01 + 0.04) / 2)


def test_whole_numbers_beside_numbers_do_not_count():
    reference = {"boxes": np.ones((2, 4, 1, 1)), "count": np.array([3, 4])}
    assert Divergence(reference).of({"boxes": np.ones((2, 4, 1, 1)), "count": np.array([0, 0])}) == 0.0


def test_whole_numbers_alone_count_by_the_share_that_differs():
    assert divergence([1, 2, 3, 4], [1, 2, 3, 0]) == 0.25


def test_noise_in_a_silent_output_counts_as_all_of_it():
    assert divergence([[[[0.5]]]], [[[[0.0]]]]) == 1.0
    assert divergence([[[[0.0]]]], [[[[0.0]]]]) == 0.0


def test_a_missing_output_or_another_shape_is_infinitely_far():
    found = Divergence({"y": np.ones((2, 3)), "z": np.ones(2)})
    assert found.of({"y": np.ones((2, 3))}) == inf
    assert found.of({"y": np.ones((2, 4)), "z": np.ones(2)}) == inf


def test_the_original_decides_what_is_compared():
    certain = np.array([[log(0.25), log(0.75)]])
    assert divergence([[0.25, 0.75]], certain) != divergence(certain, [[0.25, 0.75]])
    assert divergence([[log(0.25), log(0.75)]], certain) == 0.0


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (np.zeros((5, 2)), True),
        (np.zeros((5, 7, 10), np.float16), True),
        (np.zeros((5, 1)), False),
        (np.zeros(5), False),
        (np.zeros((5, 3, 8, 8)), False),
        (np.zeros((5, 3), np.int64), False),
        (np.array([[0.0, -inf]]), True),
        (np.array([[0.0, nan]]), False),
        (np.array([[0.0, inf]]), False),
        (np.array([[-inf, -inf]]), False),
    ],
)
def test_what_looks_like_class_scores(output, expected):
    assert looks_like_class_scores({"y": output}) is expected
