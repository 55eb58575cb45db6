import numpy as np
import pytest

from onnxdecomp.runtime.evaluate import metric
from onnxdecomp.runtime.judge import Judge
from onnxdecomp.runtime.suited import default_metric, doubt_of_default


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize(
    ("output", "labels", "name"),
    [
        (normal(4, 3), np.zeros(4), "top1"),
        (normal(4, 3), None, "agreement"),
        (normal(4, 6, 3), None, "agreement"),
        (normal(4, 8) / np.linalg.norm(normal(4, 8), axis=1, keepdims=True), None, "cosine"),
        (np.eye(4, dtype=np.float32), None, "agreement"),
        (np.arange(4), None, "agreement"),
        (normal(4, 3, 8, 8), None, "sqnr"),
        (normal(4, 1), None, "sqnr"),
        (normal(4), None, "sqnr"),
        (0.1 * normal(4, 8), None, "sqnr"),
        (3 + 0.1 * normal(4, 8), None, "r2"),
        (3 + 0.1 * normal(4, 1), None, "r2"),
        ([3, 5, 2] + 0.5 * np.sin(np.arange(60)).reshape(20, 3), None, "r2"),
        ([3, 5, 2] + 0.5 * np.sin(np.arange(12)).reshape(4, 3), None, "agreement"),
        (3 + 0.1 * normal(4, 3, 8, 8), None, "r2"),
        (np.ones((4, 1), np.float32), None, "sqnr"),
        (np.eye(200, dtype=np.float32)[:4], None, "agreement"),
        (np.array(["a", "b"]), None, "sqnr"),
    ],
)
def test_the_metric_that_nobody_names_suits_labels_and_output(output, labels, name):
    assert default_metric({"y": output}, labels) == name
    if np.asarray(output).dtype.kind != "U":
        assert Judge(metric(name), {"y": np.asarray(output)}, labels).drop({"y": output}).value == 0.0


BOXES = np.abs(normal(4, 6, 20))


def doubt_of(output) -> str | None:
    return doubt_of_default({"y": output}, default_metric({"y": output}, None))


@pytest.mark.parametrize(
    ("scores", "is_doubtful"),
    [(BOXES, True), (-BOXES, False), (BOXES / BOXES.sum(-1, keepdims=True), False), (BOXES[:, 0], False)],
    ids=["boxes", "logits", "probabilities", "one answer a sample"],
)
def test_what_may_be_boxes_is_said_to_be_taken_for_classes(scores, is_doubtful):
    told = doubt_of(scores)
    assert (told is not None) is is_doubtful
    assert not is_doubtful or "scores of 20 classes at 6 places" in told


@pytest.mark.parametrize(("offset", "name"), [(0.0, "sqnr"), (3.0, "r2")])
def test_what_has_the_shape_of_scores_and_is_compared_as_numbers_is_said(offset, name):
    told = doubt_of(offset + 0.1 * normal(4, 20))
    assert "20 numbers, not for scores of as many classes" in told
    assert f"{name} compares them" in told
    assert doubt_of(offset + 0.1 * normal(4, 20, 6, 6)) is None
