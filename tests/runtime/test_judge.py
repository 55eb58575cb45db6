from math import inf, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.evaluate import difference
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.divergence import log_softmax
from onnxdecomp.runtime.drop import Drop
from onnxdecomp.runtime.evaluate import LIMIT_DB, METRICS, Metric, metric
from onnxdecomp.runtime.judge import Judge

ROUNDING = 1e-12

STEADY = settings(max_examples=50, deadline=None, derandomize=True)
"""The same cases in every run, and no failure because the machine is busy."""

N_CLASSES = 4
COUNTED = ["agreement", "top1"]


def judge(name, reference, labels=None) -> Judge:
    return Judge(metric(name), {"y": np.asarray(reference)}, labels)


def drop(name, outputs, reference, labels=None) -> Drop:
    return judge(name, reference, labels).drop({"y": np.asarray(outputs)})


def one_hot(classes):
    return np.eye(N_CLASSES, dtype=np.float32)[classes]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@st.composite
def answers(draw):
    """Answers of the original, those of a changed model and labels, each (n,)."""
    n = draw(st.integers(1, 40))
    return tuple(draw(arrays(np.int64, n, elements=st.integers(0, N_CLASSES - 1))) for _ in range(3))


@STEADY
@given(answers())
def test_the_drop_of_top1_has_the_paired_standard_error(found):
    theirs, ours, labels = found
    expected = difference(theirs == labels, ours == labels)
    lost = drop("top1", one_hot(ours), one_hot(theirs), labels)
    assert lost.value == pytest.approx(-expected.gain, abs=ROUNDING)
    assert lost.standard_error == pytest.approx(expected.standard_error, abs=1e-8)


@STEADY
@given(answers())
def test_the_drop_of_agreement_is_what_changed(found):
    theirs, ours, _ = found
    lost = drop("agreement", one_hot(ours), one_hot(theirs))
    changed = np.mean(ours != theirs)
    assert lost.value == pytest.approx(changed, abs=ROUNDING)
    assert lost.standard_error == pytest.approx(sqrt(changed * (1 - changed) / len(ours)), abs=1e-8)


@STEADY
@given(answers())
def test_before_and_after_are_the_scores_of_the_metric(found):
    theirs, ours, labels = found
    lost = drop("top1", one_hot(ours), one_hot(theirs), labels)
    score = METRICS["top1"].score
    assert lost.before == pytest.approx(score({"y": one_hot(theirs)}, labels, {}))
    assert lost.after == pytest.approx(score({"y": one_hot(ours)}, labels, {}))
    assert lost.n_samples == len(labels)


@pytest.mark.parametrize("name", ["agreement", "cosine", "psnr"])
def test_drop_is_before_minus_after(name):
    reference, outputs = normal(50, 6), normal(50, 6) + 0.5 * normal(50, 6, seed=1)
    lost = drop(name, outputs, reference)
    assert lost.before == METRICS[name].score({"y": reference}, None, {"y": reference})
    assert lost.after == pytest.approx(METRICS[name].score({"y": outputs}, None, {"y": reference}))
    assert lost.value == pytest.approx(lost.before - lost.after)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_the_original_itself_loses_nothing_for_certain(name):
    reference = normal(30, 5)
    lost = drop(name, reference, reference, np.argmax(reference, 1) if name == "top1" else None)
    assert (lost.value, lost.standard_error) == (0.0, 0.0)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_more_noise_loses_more(name):
    reference = normal(300, 8)
    labels = np.argmax(reference, 1) if name == "top1" else None
    found = [drop(name, reference + level * normal(300, 8, seed=1), reference, labels) for level in (0.1, 3)]
    assert 0 < found[0].value < found[1].value


def test_a_better_model_has_a_negative_drop():
    labels = np.array([0, 1, 2, 3])
    assert drop("top1", one_hot(labels), one_hot([0, 1, 0, 0]), labels).value == -0.5


def test_positions_of_a_sequence_count_as_parts_of_their_sample():
    theirs = np.zeros((4, 5), np.int64)
    ours = theirs.copy()
    ours[0] = 1
    lost = drop("agreement", one_hot(ours), one_hot(theirs))
    assert lost.value == 0.25
    assert lost.standard_error == pytest.approx(sqrt(0.25 * 0.75 / 4))


def test_the_drop_of_sqnr_is_the_share_of_noise_power():
    lost = drop("sqnr", [[3.0, 4.5], [3.0, 4.0]], [[3.0, 4.0], [3.0, 4.0]])
    assert lost.value == pytest.approx(0.25 / 50)
    assert lost.before == LIMIT_DB
    assert lost.after == pytest.approx(-10 * np.log10(lost.value))


def test_the_drop_of_r2_is_the_share_of_the_variance_that_changed():
    theirs, ours = np.array([[3.0, 4.0], [5.0, 4.0]]), np.array([[3.0, 4.5], [5.0, 4.0]])
    lost = drop("r2", ours, theirs)
    assert (lost.before, lost.value) == (1.0, pytest.approx(0.25 / 2))
    assert lost.after == pytest.approx(1 - lost.value)
    assert judge("r2", theirs).divergence({"y": ours}) == pytest.approx(lost.value)


def test_an_infinite_entry_of_another_output_leaves_the_variance_of_the_rest():
    theirs = {"y": normal(8, 3), "mask": np.where(normal(8, 4) > 1, -inf, normal(8, 4))}
    ours = {name: array + 0.1 for name, array in theirs.items()}
    of_both = Judge(metric("r2"), theirs, None).divergence(ours)
    of_first = judge("r2", theirs["y"]).divergence({"y": ours["y"]})
    assert of_first / 2 < of_both < of_first / 2 + 0.1


def test_where_nothing_varies_any_change_is_all_of_it():
    theirs = np.ones((4, 3))
    assert drop("r2", theirs, theirs).value == 0.0
    assert drop("r2", theirs + 1e-3, theirs).value == 1.0


def test_psnr_drops_against_the_labels_where_there_are_some():
    truth = np.array([[0.0, 10.0], [10.0, 0.0]])
    lost = drop("psnr", truth + 0.2, truth + 0.1, truth)
    assert lost.value == pytest.approx(20 * np.log10(2))
    assert drop("psnr", truth, truth + 0.1, truth).value < 0


def spread_over_draws(name, with_labels, n=40, n_draws=120):
    """Return the spread of drops over draws of samples, and the root mean square of their errors."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(n_draws):
        reference = rng.normal(size=(n, 8)) * rng.uniform(0.7, 1.5, (n, 1))
        outputs = reference + 0.3 * rng.normal(size=(n, 8)) * rng.uniform(0.2, 1.0, (n, 1))
        truth = reference + 0.2 * rng.normal(size=(n, 8))
        found.append(drop(name, outputs, reference, truth if with_labels else None))
    return np.std([lost.value for lost in found]), np.sqrt(
        np.mean([lost.standard_error**2 for lost in found])
    )


@pytest.mark.parametrize(
    ("name", "with_labels"),
    [
        ("sqnr", False),
        ("psnr", True),
        ("cosine", False),
        ("agreement", False),
        (f"{__name__}:closeness", False),
    ],
)
def test_the_standard_error_is_the_spread_over_draws_of_the_samples(name, with_labels):
    spread, error = spread_over_draws(name, with_labels)
    assert error == pytest.approx(spread, rel=0.25)


def closeness(outputs, labels, reference) -> float:
    return -float(np.sqrt(np.mean(np.square(outputs["y"] - reference["y"]))))


def test_a_function_of_ones_own_is_told_labels_and_reference():
    labels, reference = np.arange(6), normal(6, 3)

    def seen(outputs, labels, reference):
        return float(np.sum(labels) + np.sum(outputs["y"] == reference["y"]))

    lost = Judge(Metric("own:seen", seen), {"y": reference}, labels).drop({"y": reference + 1})
    assert (lost.before, lost.after, lost.value) == (33.0, 15.0, 18.0)


def test_the_order_of_samples_does_not_matter_to_a_function_of_ones_own():
    reference, name = normal(200, 3), f"{__name__}:closeness"
    by_size = np.argsort(np.abs(normal(200, 3, seed=1)).sum(1))
    noise = normal(200, 3, seed=1)
    errors = [
        drop(name, reference[rows] + noise[rows], reference[rows]).standard_error
        for rows in (np.arange(200), by_size)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=0.5)


def test_a_function_whose_outputs_cannot_be_parted_has_no_known_error():
    reference = {"y": normal(6, 3), "boxes": normal(11, 4)}
    lost = Judge(metric(f"{__name__}:closeness"), reference, None).drop(reference)
    assert (lost.value, lost.standard_error) == (0.0, inf)


@pytest.mark.parametrize("name", ["psnr", "sqnr", f"{__name__}:closeness"])
def test_one_sample_says_nothing_about_others(name):
    assert drop(name, normal(1, 4) + 0.1, normal(1, 4)).standard_error == inf


def test_the_same_outputs_give_the_same_drop():
    reference, outputs = normal(77, 3), normal(77, 3, seed=1)
    name = f"{__name__}:closeness"
    assert drop(name, outputs, reference) == drop(name, outputs, reference)


@pytest.mark.parametrize("name", COUNTED)
def test_a_sample_with_nan_is_lost(name):
    labels = np.array([0, 1, 2, 3])
    broken = one_hot(labels)
    broken[0, 2] = nan  # numpy takes NaN for the largest
    broken[1, 1] = nan
    assert drop(name, broken, one_hot(labels), labels).value == 0.5


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("name", ["psnr", "sqnr"])
def test_noise_without_bounds_is_an_infinite_drop(name, bad):
    broken = normal(5, 3)
    broken[2, 1] = bad
    lost = drop(name, broken, normal(5, 3))
    assert (lost.value, lost.standard_error, lost.upper()) == (inf, 0.0, inf)


def test_a_broken_sample_has_no_cosine():
    broken = normal(4, 3)
    broken[2, 1] = nan
    assert drop("cosine", broken, normal(4, 3)).value == pytest.approx(0.25)


def test_a_function_that_returns_nan_has_an_infinite_drop():
    def score(outputs, labels, reference):
        return float(np.mean(outputs["y"]))

    found = Judge(Metric("own:score", score), {"y": np.ones((4, 1))}, None)
    assert found.drop({"y": np.full((4, 1), nan)}).value == inf


@STEADY
@given(answers(), st.floats(0, 3))
def test_the_upper_bound_is_never_below_the_plain_one(found, z):
    theirs, ours, labels = found
    lost = drop("top1", one_hot(ours), one_hot(theirs), labels)
    assert lost.upper(z) >= lost.value + z * lost.standard_error


@STEADY
@given(answers())
def test_the_upper_bound_adds_a_sample_to_either_side(found):
    theirs, ours, labels = found
    lost = np.append((theirs == labels).astype(float) - (ours == labels), [1.0, -1.0])
    plain = drop("top1", one_hot(ours), one_hot(theirs), labels)
    expected = max(plain.standard_error, np.std(lost) / sqrt(len(lost)))
    assert plain.upper(1.0) - plain.value == pytest.approx(expected)


def test_divergence_needs_no_labels():
    found = judge("top1", normal(8, 3))
    assert found.divergence({"y": normal(8, 3)}) == 0.0
    assert found.divergence({"y": normal(8, 3, seed=1)}) > 0.0


@pytest.mark.parametrize(("name", "counts"), [("agreement", False), ("cosine", True)])
def test_a_factor_for_all_scores_counts_where_more_is_asked_for_than_the_highest(name, counts):
    reference = normal(50, 3)
    whole = judge(name, reference).divergence({"y": -reference})
    found = judge(name, reference).divergence({"y": 0.8 * reference})
    assert (found > 1e-3 * whole) == counts


def test_a_drop_that_needs_labels_says_so():
    with pytest.raises(UsageError, match="top1 needs an array 'labels'"):
        judge("top1", normal(8, 3)).drop({"y": normal(8, 3)})


@pytest.mark.parametrize("n_labels", [7, 9])
@pytest.mark.parametrize("name", ["top1", "agreement", "cosine"])
def test_labels_of_another_length_are_refused(name, n_labels):
    with pytest.raises(UsageError, match=f"{n_labels} labels for 8 samples"):
        judge(name, normal(8, 3), np.zeros(n_labels, np.int64))


@pytest.mark.parametrize(
    ("name", "output", "labels", "said"),
    [
        ("top1", normal(4, 1), np.zeros(4, np.int64), "one number where metric top1 needs one for each"),
        ("agreement", normal(4, 1), None, "one number where metric agreement needs one for each"),
        ("top1", normal(4, 3), np.array([0, 1, 2, 3]), "Labels go up to 3, and .* 3 classes"),
        (
            "top1",
            normal(4, 5, 3),
            np.zeros(4, np.int64),
            r"Labels of shape \(4,\) do not fit the model's \(4, 5\)",
        ),
        ("psnr", normal(4, 3), np.zeros(4), "4 true values for 12"),
        ("sqnr", np.array(["a", "b"]), None, "no tensor of numbers"),
        ("cosine", [{"a": 1.0}], None, "no tensor of numbers"),
        ("sqnr", np.array([[1.0, inf]]), None, "NaN or infinite"),
        ("sqnr", np.zeros((0, 3)), None, "at least one"),
    ],
)
def test_a_metric_that_does_not_fit_the_output_is_refused(name, output, labels, said):
    with pytest.raises(UsageError, match=said):
        Judge(metric(name), {"y": output}, labels)


@pytest.mark.parametrize("name", ["agreement", "cosine", "psnr", "sqnr"])
def test_outputs_of_another_shape_are_refused(name):
    with pytest.raises(UsageError, match=r"\(4, 3\), that of the original \(5, 3\)"):
        drop(name, normal(4, 3), normal(5, 3))


@pytest.mark.parametrize(("answer", "said"), [("good", "returned a str"), (nan, "nan for the original")])
def test_a_function_that_returns_no_number_is_refused(answer, said):
    with pytest.raises(UsageError, match=said):
        Judge(Metric("own:score", lambda outputs, labels, reference: answer), {"y": normal(4, 3)}, None)


def test_parts_pooled_are_what_all_samples_together_show():
    rng = np.random.default_rng(3)
    labels, theirs = rng.integers(0, 5, 300), rng.standard_normal((300, 5))
    ours = theirs + 0.5 * rng.standard_normal((300, 5))
    drops = [
        Judge(METRICS["top1"], {"y": theirs[rows]}, labels[rows]).drop({"y": ours[rows]})
        for rows in (slice(0, 100), slice(100, 300), slice(0, 300))
    ]
    pooled, whole = drops[0].pooled(drops[1]), drops[2]
    assert (pooled.value, pooled.before, pooled.n_samples) == pytest.approx((whole.value, whole.before, 300))
    assert pooled.standard_error == pytest.approx(whole.standard_error, rel=0.02)


def test_what_moves_no_answer_is_not_held_to_lose_more_than_what_moves_some():
    scores = 3 * normal(32, 4)
    bounds = [
        drop("agreement", scores + level * normal(32, 4, seed=1), scores).bound for level in (1e-7, 0.05)
    ]
    assert 0 < bounds[0] < 0.001 < bounds[1] < 1 / 32


def test_top1_of_scores_says_what_the_original_believes():
    reference, labels = 3 * normal(500, N_CLASSES), np.random.default_rng(1).integers(0, N_CLASSES, 500)
    changed = reference + normal(500, N_CLASSES, seed=2)
    found = drop("top1", changed, reference, labels)
    assert found.smoothed is not None
    assert found.smoothed > 0 < found.smoothed_error < found.standard_error
    assert drop("top1", reference, reference, labels).smoothed == 0
    assert found.is_ceiling
    labels[0] = -1  # of no class
    assert drop("top1", changed, reference, labels).smoothed is None


def test_a_broken_output_is_believed_to_be_wrong():
    reference, labels = 5 * one_hot(np.arange(40) % N_CLASSES), np.arange(40) % N_CLASSES
    broken = reference.copy()
    broken[:10] = nan
    found = drop("top1", broken, reference, labels)
    assert found.smoothed == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    "make", [lambda z: z, lambda z: np.exp(log_softmax(z))], ids=["scores", "probabilities"]
)
def test_agreement_of_scores_says_how_much_changes_by_margins(make):
    reference = 3 * normal(500, N_CLASSES)
    changed = reference + 0.3 * normal(500, N_CLASSES, seed=2)
    found = drop("agreement", make(changed), make(reference))
    assert found.smoothed == pytest.approx(found.value, abs=2 * found.standard_error)
    assert 0 < found.smoothed_error < found.standard_error
    assert not found.is_ceiling
    assert drop("agreement", make(reference), make(reference)).smoothed == 0


def test_agreement_of_answers_without_scores_is_counted_alone():
    reference = np.arange(40) % N_CLASSES
    assert drop("agreement", reference[::-1], reference).smoothed is None
    assert drop("agreement", normal(40, 3, N_CLASSES), normal(40, 3, N_CLASSES)).smoothed is None


def test_a_broken_output_is_another_answer():
    reference = 50 * one_hot(np.arange(40) % N_CLASSES)
    broken = reference.copy()
    broken[:10] = nan
    assert drop("agreement", broken, reference).smoothed == pytest.approx(0.25)


@pytest.mark.parametrize("name", ["cosine", "sqnr", "psnr", "r2"])
def test_numbers_are_compared_as_such_whatever_they_look_like(name):
    scores = normal(6, 5)
    moved = scores + 1.0  # no softmax of them changes
    assert judge(name, scores).divergence({"y": moved}) > 0.1
    assert judge("agreement", scores).divergence({"y": moved}) == pytest.approx(0.0, abs=1e-9)
