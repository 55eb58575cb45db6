import numpy as np
import pytest

from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.runtime.evaluate import LIMIT_DB, METRICS, evaluate, metric, outputs_over, sqnr
from tests.graph.models import normal, parse
from tests.networks import network

SCORES = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
LABELS = np.array([1, 0, 0, 0])
LINEAR = parse("g (float[N, 4] x) => (float[N, 3] y) { y = MatMul(x, w) }", {"w": normal(4, 3)})


def score(name: str, outputs, reference, labels=None) -> float:
    return metric(name).score({"y": np.asarray(outputs)}, labels, {"y": np.asarray(reference)})


def test_top1_is_the_share_of_right_classes():
    assert score("top1", SCORES, SCORES, LABELS) == 0.75


def test_agreement_is_the_share_of_equal_classes():
    assert score("agreement", SCORES, SCORES[:, ::-1]) == 0.0
    assert score("agreement", SCORES, np.round(SCORES)) == 1.0


@pytest.mark.parametrize(("shape", "axis"), [((5, 3), 1), ((5, 3, 4, 4), 1), ((5, 7, 3), 2)])
def test_classes_lie_where_networks_put_them(shape, axis):
    scores = normal(*shape)
    assert score("agreement", scores, np.argmax(scores, axis)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([[1.0, 0], [0, 2]], 1.0),
        ([[2.0, 0], [0, 3]], 1.0),
        ([[0.0, 1], [0, 1]], 0.5),
        ([[-1.0, 0], [0, 1]], 0.0),
    ],
)
def test_cosine_is_the_mean_over_samples(outputs, expected):
    assert score("cosine", outputs, [[1.0, 0], [0, 2]]) == pytest.approx(expected)


def test_cosine_of_two_silent_samples_is_one():
    assert score("cosine", [[0.0, 0]], [[0.0, 0]]) == 1.0


def test_psnr_counts_from_the_range_of_the_truth():
    assert score("psnr", [[0.0, 9.0]], [[0.0, 10.0]]) == pytest.approx(10 * np.log10(100 / 0.5))


def test_psnr_prefers_true_pixels():
    truth = np.array([[0.0, 10.0]])
    assert score("psnr", [[0.0, 9.0]], [[5.0, 5.0]], truth) == pytest.approx(10 * np.log10(100 / 0.5))


def test_psnr_refuses_labels_of_another_size():
    with pytest.raises(UsageError, match="1 true values for 2"):
        score("psnr", [[0.0, 9.0]], [[5.0, 5.0]], np.array([1]))


def test_sqnr_leaves_out_what_is_not_finite_in_the_original():
    reference = {"y": np.array([[3.0, np.nan], [np.inf, 4.0]])}
    assert sqnr(reference, None, reference) == LIMIT_DB
    assert sqnr({"y": np.array([[3.0, 1.0], [1.0, 4.5]])}, None, reference) == pytest.approx(20.0)
    assert sqnr({"y": np.array([[np.nan, 1.0], [1.0, 4.0]])}, None, reference) == -LIMIT_DB


def test_sqnr_is_signal_over_what_changed():
    assert score("sqnr", [[3.0, 4.5]], [[3.0, 4.0]]) == pytest.approx(10 * np.log10(25 / 0.25))


@pytest.mark.parametrize(
    ("name", "best"), [("agreement", 1), ("cosine", 1), ("psnr", LIMIT_DB), ("sqnr", LIMIT_DB)]
)
def test_the_original_itself_has_the_best_score_and_it_is_finite(name, best):
    assert score(name, SCORES, SCORES) == best


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_worse_output_never_scores_better(name):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(200, 10))
    labels = np.argmax(scores, 1) if name == "top1" else None
    found = [
        score(name, scores + noise * rng.normal(size=scores.shape), scores, labels) for noise in (0, 0.3, 3)
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[2]


def test_an_unknown_metric_gets_a_suggestion():
    with pytest.raises(UsageError, match="did you mean 'cosine'"):
        metric("cosin")


def largest_difference(outputs, labels, reference) -> float:
    return -float(np.abs(outputs["y"] - reference["y"]).max())


def test_a_metric_may_be_a_function_of_ones_own():
    assert score(f"{__name__}:largest_difference", [[1.0]], [[3.0]]) == -2.0


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_outputs_are_joined_over_batches(batch):
    x = normal(7, 4)
    joined = outputs_over(LINEAR, {"x": x}, batch=batch)["y"]
    np.testing.assert_allclose(joined, x @ normal(4, 3), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("jobs", [2, 3])
def test_outputs_are_the_same_bits_for_any_number_of_jobs(jobs):
    model, samples = network(), {"x": normal(70, 16, 12, 12)}
    expected = outputs_over(model, samples, batch=8)["y"]
    np.testing.assert_array_equal(outputs_over(model, samples, batch=8, jobs=jobs)["y"], expected)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_batch_that_cannot_be_run_is_the_same_error_for_any_number_of_jobs(jobs):
    gathered = parse("g (float[N, 4] x, int64[N] i) => (float[M, 4] y) { y = Gather(x, i) }")
    samples = {"x": normal(9, 4), "i": np.array([0, 1, 2] * 2 + [0, 7, 1])}
    with pytest.raises(ModelError, match=r"on inputs x 3x4, i 3: .*out of data bounds"):
        outputs_over(gathered, samples, batch=3, jobs=jobs)


def test_evaluate_runs_the_model_and_scores_it():
    samples = {"x": normal(6, 4), "labels": np.argmax(normal(6, 4) @ normal(4, 3), 1)}
    reference = outputs_over(LINEAR, samples)
    assert evaluate(LINEAR, samples, metric("top1"), reference=reference) == 1.0


def test_labels_beyond_the_last_full_batch_are_left_out():
    fixed = parse("g (float[2, 4] x) => (float[2, 3] y) { y = MatMul(x, w) }", {"w": normal(4, 3)})
    samples = {"x": normal(7, 4), "labels": np.argmax(normal(7, 4) @ normal(4, 3), 1)}
    assert evaluate(fixed, samples, metric("top1"), reference={}) == 1.0


def test_a_metric_that_needs_labels_says_so():
    with pytest.raises(UsageError, match="top1 needs an array 'labels'"):
        evaluate(LINEAR, {"x": normal(6, 4)}, metric("top1"), reference={})


def test_outputs_of_different_shapes_cannot_be_joined():
    text = "g (float[N] x) => (float[?, N] y) { y = Reshape(x, row) }"
    model = parse(text, {"row": np.array([1, -1])})
    with pytest.raises(ModelError, match="'y' cannot be joined"):
        outputs_over(model, {"x": normal(5)}, batch=3)


def test_other_outputs_that_cannot_be_joined_are_left_out():
    text = "g (float[N] x) => (float[N] z, float[?, N] y) { z = Neg(x) y = Reshape(x, row) }"
    model = parse(text, {"row": np.array([1, -1])})
    assert list(outputs_over(model, {"x": normal(5)}, batch=3)) == ["z"]


def test_places_of_a_single_sample_are_no_samples():
    text = """g (float[1, 6] x) => (float[3, 2] y, float z) {
        y = Reshape(x, rows)
        z = ReduceSum<keepdims=0>(x)
    }"""
    model, x = parse(text, {"rows": np.array([3, 2])}), normal(4, 6).astype(np.float32)
    found = outputs_over(model, {"x": x})
    np.testing.assert_array_equal(found["y"], x.reshape(4, 3, 2))
    np.testing.assert_allclose(found["z"], x.sum(1), rtol=1e-5)


def test_a_first_output_without_a_row_for_each_sample_says_what_to_do():
    model = parse("g (float[N] x) => (int64[1, K] y) { y = NonZero(x) }")
    transposed = parse("g (float[N] x) => (int64[K, 1] y) { i = NonZero(x) y = Transpose(i) }")
    samples = {"x": np.array([1, 0, 2, 3, 0], np.float32)}
    with pytest.raises(ModelError, match="'y' has 3 rows for 5 samples, which says nothing of single ones"):
        outputs_over(transposed, samples, batch=2)
    with pytest.raises(ModelError, match="'y' cannot be joined"):
        outputs_over(model, samples, batch=2)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_samples_on_axis_1_are_samples(batch):
    model = parse("g (float[N, 3, 4] x) => (float[3, N, 4] y) { y = Transpose<perm=[1, 0, 2]>(x) }")
    x = normal(5, 3, 4).astype(np.float32)
    np.testing.assert_array_equal(outputs_over(model, {"x": x}, batch=batch)["y"], x)


def test_other_tensors_may_be_put_out_instead():
    model = parse("g (float[N, 4] x) => (float[N, 4] y) { z = Neg(x) y = Abs(z) }")
    x = normal(5, 4).astype(np.float32)
    found = outputs_over(model, {"x": x}, names=["z"], batch=2)
    assert list(found) == ["z"]
    np.testing.assert_array_equal(found["z"], -x)


def fails(outputs, labels, reference):
    return outputs["nothing"]


def test_a_metric_of_the_user_that_fails_is_named_in_one_sentence():
    own = metric(f"{__name__}:fails")
    with pytest.raises(UsageError, match=r":fails failed with KeyError: 'nothing'. It is called with"):
        own.score({}, None, {})
