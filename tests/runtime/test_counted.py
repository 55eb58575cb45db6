import numpy as np
import onnx
import pytest

from onnxdecomp.runtime.counted import what_is_counted
from onnxdecomp.runtime.session import open_session, run
from tests.graph.models import normal, parse

DETECTOR = """g (float[1, 6, 4] x) => (float[K, 4] found, float[1, 6, 4] boxes) {
    boxes = Abs(x)
    sums = ReduceSum<keepdims=1>(boxes, two)
    scores = Transpose<perm=[0, 2, 1]>(sums)
    chosen = NonMaxSuppression(boxes, scores, three)
    index = Gather<axis=1>(chosen, at)
    all = Squeeze(boxes, zero)
    found = Gather<axis=0>(all, index)
}"""
NUMBERS = {"zero": np.array([0]), "two": np.array([2]), "three": np.array([3]), "at": np.array(2)}


def test_of_a_detector_that_ends_in_nms_it_is_boxes_and_scores():
    proto = parse(DETECTOR, NUMBERS)
    assert run(open_session(proto), {"x": normal(1, 6, 4)})["found"].shape[1:] == (4,)
    assert what_is_counted(proto) == {"found": ["boxes", "scores"]}


BEST = """g (float[1, 6, 4] x) => (float[1, 3] best, float[1, 3, 4] found) {{
    scores = ReduceSum<keepdims=0>(x, two)
    best, at = TopK(scores, three)
    column = Unsqueeze(at, two)
    index = Expand(column, shape)
    boxes = Abs(x)
    {last}
}}"""
LAST = "found = GatherElements<axis=1>(boxes, index)"
LAYER = "chosen = GatherElements<axis=1>(boxes, index) found = MatMul(chosen, w)"


def test_of_the_best_so_many_it_is_what_they_are_chosen_from():
    numbers = {"two": np.array([2]), "three": np.array([3]), "shape": np.array([1, 3, 4]), "w": normal(4, 4)}
    proto = parse(BEST.format(last=LAST), numbers)
    assert run(open_session(proto), {"x": normal(1, 6, 4)})["found"].shape == (1, 3, 4)
    assert what_is_counted(proto) == {"best": ["scores"], "found": ["scores", "boxes"]}
    assert what_is_counted(parse(BEST.format(last=LAYER), numbers)) == {}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Cast<to=7>(x)", {}),
        ("large = Greater(x, half) y = NonZero(large)", {"y": ["x"]}),
        ("large = Greater(x, half) small = Not(large) i = NonZero(small) y = Transpose(i)", {"y": ["x"]}),
        ("i = Cast<to=7>(x) y = NonZero(i)", {"y": ["x"]}),
        ("first = NonZero(x) y = NonZero(first)", {"y": ["x"]}),
        ("n = NonZero(half) i = Cast<to=7>(x) y = Add(i, n)", {}),
    ],
)
def test_what_is_counted_is_of_floating_point(body, expected):
    text = f"g (float[N, 4] z) => (int64[M, K] y) {{ x = Neg(z) {body} }}"
    assert what_is_counted(parse(text, {"half": np.array([0.5], np.float32)})) == expected


def test_a_model_in_a_file_is_read_too(tmp_path):
    onnx.save(parse(DETECTOR, NUMBERS), tmp_path / "in.onnx")
    assert what_is_counted(tmp_path / "in.onnx") == {"found": ["boxes", "scores"]}
