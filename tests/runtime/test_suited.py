import numpy as np
import pytest

from onnxdecomp.runtime.evaluate import metric
from onnxdecomp.runtime.judge import Judge
from onnxdecomp.runtime.suited import default_metric, doubt_of_default, doubt_of_samples, suited_metrics


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize(
    ("output", "name"),
    [
        (normal(4, 3), "agreement"),
        (normal(4, 6, 3), "agreement"),
        (normal(4, 8) / np.linalg.norm(normal(4, 8), axis=1, keepdims=True), "cosine"),
        (np.eye(4, dtype=np.float32), "agreement"),
        (np.arange(4), "agreement"),
        (normal(4, 3, 8, 8), "sqnr"),
        (normal(4, 1), "sqnr"),
        (normal(4), "sqnr"),
        (0.1 * normal(4, 8), "sqnr"),
        (3 + 0.1 * normal(4, 8), "r2"),
        (3 + 0.1 * normal(4, 1), "r2"),
        ([3, 5, 2] + 0.5 * np.sin(np.arange(60)).reshape(20, 3), "r2"),
        ([3, 5, 2] + 0.5 * np.sin(np.arange(12)).reshape(4, 3), "agreement"),
        (3 + 0.1 * normal(4, 3, 8, 8), "r2"),
        (np.ones((4, 1), np.float32), "sqnr"),
        (np.eye(200, dtype=np.float32)[:4], "agreement"),
        (np.array(["a", "b"]), "sqnr"),
    ],
)
def test_the_metric_that_nobody_names_suits_the_output(output, name):
    assert default_metric({"y": output}) == name
    if np.asarray(output).dtype.kind != "U":
        assert Judge(metric(name), {"y": np.asarray(output)}, None).drop({"y": output}).value == 0.0


BOXES = np.abs(normal(4, 6, 20))
PIXELS = 200 * normal(4, 30, 20)
FOUND = np.concatenate([normal(4, 30, 19), np.random.default_rng(1).random((4, 30, 1))], axis=2)


def doubt_of(output) -> str | None:
    return doubt_of_default({"y": output}, default_metric({"y": output}))


@pytest.mark.parametrize(
    ("output", "name"),
    [
        (0.1 * normal(4, 20), "sqnr"),
        (3 + 0.1 * normal(4, 20), "r2"),
        (BOXES, "r2"),
        (np.concatenate([BOXES, 300 * BOXES[:, :1]], axis=1) - 0.1, "r2"),
        (PIXELS, "sqnr"),
        (FOUND, "sqnr"),
    ],
)
def test_what_has_the_shape_of_scores_and_is_compared_as_numbers_is_said(output, name):
    told = doubt_of(output)
    assert "was taken for numbers, not for scores of 20 classes" in told
    assert f"{name} compares them" in told


@pytest.mark.parametrize(
    "output",
    [-BOXES, BOXES / BOXES.sum(-1, keepdims=True), BOXES[:, 0], 0.1 * normal(4, 20, 6, 6)],
    ids=["logits", "probabilities", "one answer a sample", "an image"],
)
def test_there_is_no_doubt_of_what_is_plain(output):
    assert doubt_of(output) is None


def softmax(scores):
    powers = np.exp(scores)
    return powers / powers.sum(-1, keepdims=True)


def sparse(n_samples, n_places, share=0.05):
    """Return probabilities of two classes, the second at few places."""
    is_there = np.random.default_rng(4).random((n_samples, n_places)) < share
    return softmax(np.stack([np.zeros(is_there.shape), np.where(is_there, 4.0, -6.0)], axis=-1))


EMBEDDINGS = normal(20, 8) / np.linalg.norm(normal(20, 8), axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        ({"y": normal(20, 5)}, {"y": "agreement"}),
        ({"y": normal(20, 5), "e": EMBEDDINGS}, {"y": "agreement", "e": "cosine"}),
        ({"e": 3 + 0.1 * normal(20, 4), "y": np.arange(20)}, {"e": "r2", "y": "agreement"}),
        ({"p": softmax(3 * normal(20, 30, 6)), "b": 3 * normal(20, 30, 4)}, {"p": "agreement", "b": "sqnr"}),
        ({"l": 3 * normal(20, 30, 6), "b": 3 * normal(20, 31, 4)}, {"l": "agreement", "b": "agreement"}),
        ({"s": 3 * normal(20, 30), "b": 3 * normal(20, 30, 4)}, {"s": "sqnr", "b": "sqnr"}),
        ({"p": softmax(3 * normal(20, 30)), "b": 3 * normal(20, 30, 4)}, {"p": "agreement", "b": "sqnr"}),
        ({"l": 3 * normal(20, 30), "m": 3 * normal(20, 30)}, {"l": "agreement", "m": "agreement"}),
        ({"p": sparse(20, 30), "b": 3 * normal(20, 30, 4)}, {"p": "r2", "b": "sqnr"}),
        ({"y": normal(20, 5), "bad": np.full((20, 3), np.inf), "none": None}, {"y": "agreement"}),
        ({"y": normal(20, 5), "text": np.array(["a"] * 20), "empty": np.zeros((20, 0))}, {"y": "agreement"}),
    ],
)
def test_each_output_is_compared_by_what_suits_it(outputs, names):
    found = suited_metrics(outputs, None)
    assert {name: measure.name for name, measure in found.items()} == names


def test_what_is_highest_nearly_everywhere_says_little():
    """A detector that never finds anything would agree at 95 % of the places."""
    assert default_metric({"y": sparse(20, 30)}) == "r2"
    assert default_metric({"y": sparse(20, 30, share=0.4)}) == "agreement"


def test_labels_are_those_of_the_first_output():
    found = suited_metrics({"y": normal(4, 3), "z": normal(4, 3)}, np.zeros(4, np.int64))
    assert {name: measure.name for name, measure in found.items()} == {"y": "top1"}


def test_what_is_likely_numbers_is_no_classes_unless_it_is_probabilities():
    outputs = {"boundaries": 3 * normal(20, 30), "pointer": softmax(3 * normal(20, 30))}
    found = suited_metrics(outputs, None, likely_numbers={"boundaries", "pointer"})
    assert {name: measure.name for name, measure in found.items()} == {
        "boundaries": "sqnr",
        "pointer": "agreement",
    }


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ({"y": 5 + 0.001 * normal(40, 8)}, "differ by 0.02%. Check that"),
        ({"y": np.ones((4, 3), np.float32), "z": 5 + 0.001 * normal(40, 8)}, "differ by 0.02%"),
        ({"y": np.zeros(4), "z": np.array(["a", "b", "c", "d"])}, "differ by 0.00%"),
        ({"y": 5 + 0.1 * normal(40, 8)}, None),
        ({"y": np.ones((4, 3)), "z": normal(4, 8)}, None),
        ({"y": np.ones((1, 3))}, None),
        ({"y": np.ones((4, 3), int)}, None),
    ],
)
def test_samples_that_a_model_hardly_tells_apart_are_doubted(outputs, said):
    found = doubt_of_samples(outputs)
    assert found is None if said is None else said in found
