"""What is compared of models, and what is said of it."""

import numpy as np
import pytest

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.compared_outputs import ComparedOutputs, described
from onnxdecomp.runtime.evaluate import Outputs, metric
from tests.graph.models import parse


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


TWO = parse("g (float[N, 5] x) => (float[N, 5] y, float[N, 5] z) { y = Neg(x) z = Abs(x) }")
COUNT = parse("""g (float[N, 5] x) => (float[N, 5] y, int64[2, K] found) {
    y = Neg(x)
    found = NonZero(y)
}""")
HIDDEN = parse("""g (int64[N, 5] x) => (int64[N, 5] y, int64[2, K] found) {
    y = Neg(x)
    found = NonZero(y)
}""")
OF_PLACES = parse("g (float[N, S] x) => (float[N, S] y) { y = Neg(x) }")
OF_ONE = parse("g (float[1, S] x) => (float[S] y) { y = ReduceSum <keepdims = 0> (x) }")
OF_OPEN = parse("g (float[M, 1, S] x) => (float[K] y) { y = ReduceSum <keepdims = 0> (x) }")
OF_SAMPLES = parse("g (float[N, S] x) => (float[M, N] y) { y = Transpose(x) }")
STATES = parse("""g (float[N, 5] x, float[N, 5] before) => (float[N, 5] y, float[N, 5] z) {
    y = Add(x, before)
    z = Sub(x, before)
}""")
OF_FRAMES = parse("g (float[N, S] x) => (float[N, F] y, float[N, F] z) { y = Neg(x) z = Abs(x) }")
NOISY = parse("g (float[N, 5] x) => (float[N, 5] y) { noise = RandomNormalLike(x) y = Add(x, noise) }")
SCORES = normal(20, 5)


def own(outputs: Outputs, labels: object, reference: Outputs) -> float:
    return 0.0


@pytest.mark.parametrize(
    ("proto", "name", "labels", "metrics", "said"),
    [
        (TWO, None, None, {"y": "agreement", "z": "agreement"}, "'y' by agreement, 'z' by agreement"),
        (TWO, "sqnr", None, {"y": "sqnr"}, "sqnr looks at 'y' alone, the first output. What 'z' loses"),
        (TWO, None, np.zeros(20, int), {"y": "top1"}, "top1 looks at 'y' alone, the first output. What 'z'"),
        (TWO, f"{__name__}:own", None, {"y": f"{__name__}:own"}, None),
        (COUNT, None, None, {"y": "sqnr"}, "'found': what was chosen of more."),
        (COUNT, "sqnr", None, {"y": "sqnr"}, "sqnr looks at 'y' alone, the first output. What 'found' loses"),
        (HIDDEN, None, None, {"y": "agreement"}, "What 'found' loses is not measured"),
        (STATES, None, None, {"y": "agreement", "z": "sqnr"}, "'y' by agreement, 'z' by sqnr"),
        (OF_FRAMES, None, None, {"y": "sqnr", "z": "sqnr"}, "'y' by sqnr, 'z' by sqnr"),
        (NOISY, None, None, {"y": "agreement"}, "The model draws random numbers (RandomNormalLike)"),
        (OF_PLACES, None, None, {"y": "sqnr"}, "'y' was taken for numbers, not for scores of 5 classes"),
        (OF_ONE, None, None, {"y": "sqnr"}, "'y' was taken for numbers, not for scores of 5 classes"),
        (OF_OPEN, None, None, {"y": "sqnr"}, "'y' was taken for numbers, not for scores of 5 classes"),
        (OF_SAMPLES, None, None, {"y": "agreement"}, None),
    ],
)
def test_what_is_compared_by_what_is_said(proto, name, labels, metrics, said):
    compared = ComparedOutputs(proto, name, has_labels=labels is not None)
    names = compared.names or [output.name for output in proto.graph.output if output.name != "found"]
    reference = {output: SCORES.round().astype(int) if proto is HIDDEN else SCORES for output in names}
    found = compared.metrics(reference, labels)
    assert {output: measure.name for output, measure in found.items()} == metrics
    notes = compared.notes(found, reference)
    assert said is None or said in notes[0]
    assert (said is None) == (not notes)


def test_of_the_best_classes_all_scores_are_compared_by_the_highest():
    text = "g (float[N, 5] x) => (float[N, 2] best, int64[N, 2] at) { p = Softmax(x) best, at = TopK(p, k) }"
    compared = ComparedOutputs(parse(text, {"k": np.array([2])}), None, has_labels=False)
    assert compared.names == ["p"]
    scores = np.exp(SCORES) / np.exp(SCORES).sum(-1, keepdims=True)
    assert compared.metrics({"p": scores}, None)["p"].name == "agreement"


@pytest.mark.parametrize(("proto", "names"), [(TWO, None), (COUNT, ["y"]), (HIDDEN, ["y"])])
def test_what_is_counted_stands_for_counts(proto, names):
    assert ComparedOutputs(proto, None, has_labels=False).names == names
    assert ComparedOutputs(proto, "sqnr", has_labels=False).names is None


def test_an_output_that_nothing_can_be_said_of_is_named():
    compared = ComparedOutputs(TWO, None, has_labels=False)
    reference = {"y": SCORES}
    (said,) = compared.notes(compared.metrics(reference, None), reference)
    assert said.startswith("What 'z' loses is not measured: it has no row for each sample")


def test_a_metric_that_needs_labels_says_so():
    with pytest.raises(UsageError, match="top1 needs an array 'labels'"):
        ComparedOutputs(TWO, "top1", has_labels=False).metrics({"y": SCORES}, None)


def test_many_outputs_are_not_all_named():
    told = described({f"y{i}": metric("sqnr") for i in range(9)})
    assert "'y3' by sqnr and 5 more" in told
    assert "y4" not in told
    assert described({"y": metric("sqnr")}) == "sqnr"
