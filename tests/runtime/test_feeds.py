import numpy as np
import onnx
import pytest

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.feeds import input_specs, runnable_feeds, seeded_feeds
from onnxdecomp.runtime.session import open_session, run
from tests.graph.models import normal, parse

TensorProto = onnx.TensorProto


def model_with_inputs(*inputs: onnx.ValueInfoProto) -> onnx.ModelProto:
    """Return a model that has these inputs and does nothing with them."""
    return onnx.helper.make_model(onnx.helper.make_graph([], "g", inputs, []))


def with_input(element: int, shape: list) -> onnx.ModelProto:
    return model_with_inputs(onnx.helper.make_tensor_value_info("x", element, shape))


@pytest.mark.parametrize(
    ("element", "low", "high"),
    [
        (TensorProto.FLOAT, -6, 6),
        (TensorProto.DOUBLE, -6, 6),
        (TensorProto.FLOAT16, -6, 6),
        (TensorProto.BFLOAT16, -6, 6),
        (TensorProto.INT64, 0, 1),
        (TensorProto.INT32, 0, 1),
        (TensorProto.INT8, 0, 1),
        (TensorProto.UINT8, 0, 255),
        (TensorProto.BOOL, 0, 1),
    ],
)
def test_numbers_are_of_the_inputs_type_and_small(element, low, high):
    x = seeded_feeds(with_input(element, [4, 50]), 0)["x"]
    assert x.dtype == onnx.helper.tensor_dtype_to_np_dtype(element)
    values = x.astype(np.float64)
    assert (low <= values.min() < values.max() <= high, x.shape) == (True, (4, 50))


def test_strings_are_words():
    x = seeded_feeds(with_input(TensorProto.STRING, [3]), 0)["x"]
    assert (x.dtype, x.shape, all(isinstance(word, str) for word in x)) == (np.dtype(object), (3,), True)


@pytest.mark.parametrize(
    "element", [TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.UINT8]
)
def test_scalars_are_arrays_without_axes(element):
    x = seeded_feeds(with_input(element, []), 0)["x"]
    assert (type(x), x.shape) == (np.ndarray, ())


def test_a_lone_integer_is_one():
    assert seeded_feeds(with_input(TensorProto.INT64, []), 3)["x"] == 1


def test_the_same_seed_gives_the_same_bytes_whatever_the_other_inputs():
    one = parse("g (float[9] a) => (float[9] y) { y = Identity(a) }")
    two = parse("g (float[9] b, float[9] a) => (float[9] y) { y = Add(a, b) }")
    assert seeded_feeds(one, 7)["a"].tobytes() == seeded_feeds(two, 7)["a"].tobytes()
    assert seeded_feeds(one, 7)["a"].tobytes() != seeded_feeds(one, 8)["a"].tobytes()


def test_initializers_among_the_inputs_of_an_old_file_are_not_fed():
    model = parse("g (float[1, 4] x) => (float[1, 4] y) { y = MatMul(x, w) }", {"w": normal(4, 4)}, ir=3)
    assert list(input_specs(model)) == ["x"]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (["N", 3, "H", "W"], (1, 3, 224, 224)),
        ([None, None, None, 3], (1, 224, 224, 3)),
        (["N", "C", "H", "W"], (1, 3, 224, 224)),
        (["N", "T"], (1, 224)),
        ([-1, 8], (1, 8)),
        ([0, 8], (1, 8)),
        ([], ()),
    ],
)
def test_dynamic_axes_get_a_size(shape, expected):
    assert seeded_feeds(with_input(TensorProto.FLOAT, shape), 0)["x"].shape == expected


def test_axes_of_the_same_name_have_the_same_size():
    model = parse(
        "g (float[N, T] a, float[2, N, T] b, float[T] c) => (float[2, N, T] y) { y = Sum(a, b, c) }"
    )
    shapes = {name: x.shape for name, x in seeded_feeds(model, 0, {"c": (5,)}).items()}
    assert shapes == {"a": (1, 5), "b": (2, 1, 5), "c": (5,)}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"imagee": (1, 3)}, "did you mean 'image'"),
        ({"image": (1, 3)}, "1x3 does not fit input 'image', which is float32 Nx3xHxW"),
        ({"image": (1, 4, 8, 8)}, "does not fit"),
        ({"image": (0, 3, 8, 8)}, "does not fit"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(shapes, message):
    model = parse("g (float[N, 3, H, W] image) => (float[N, 3, H, W] y) { y = Identity(image) }")
    with pytest.raises(UsageError, match=message):
        seeded_feeds(model, 0, shapes)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (onnx.helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [1]), "sequence"),
        (onnx.ValueInfoProto(name="s"), "without a type"),
    ],
)
def test_an_input_that_is_no_tensor_is_refused_with_its_kind(value, kind):
    with pytest.raises(UsageError, match=rf"'s' is a .*{kind}"):
        seeded_feeds(model_with_inputs(value), 0)


FIXED_WIDTH = "g (float[N, 3, H, W] x) => (float[N, K] y) { f = Flatten(x) y = MatMul(f, w) }"


def test_sizes_are_tried_until_one_runs():
    model = parse(FIXED_WIDTH, {"w": normal(3 * 48 * 320, 2)})
    feeds = runnable_feeds(model, 0)
    assert feeds["x"].shape == (1, 3, 48, 320)
    assert run(open_session(model), feeds)["y"].shape == (1, 2)


def test_a_state_may_have_its_batch_on_another_axis():
    text = "g (float[N, T] x, float[2, ?, 4] h) => (float[2, 4] y) { z = Identity(x) y = Reshape(h, one) }"
    model = parse(text, {"one": np.array([2, 4])})
    assert {name: x.shape for name, x in runnable_feeds(model, 0).items()} == {"x": (1, 224), "h": (2, 1, 4)}


def test_a_table_of_one_row_is_indexed_by_zeros():
    model = parse("g (float[nodes, 4] x, int64[edges] i) => (float[E, 4] y) { y = Gather(x, i) }")
    sizes = {"x": (1, 4), "i": (3,)}
    assert runnable_feeds(model, 0, sizes)["i"].tolist() == [0, 0, 0]
    assert runnable_feeds(model, 0, {**sizes, "x": (2, 4)})["i"].any()


def test_when_no_random_input_of_a_known_size_runs_the_user_is_told_to_give_some():
    model = parse("g (int64[2] s) => (float[A, B] y) { y = Reshape(w, s) }", {"w": normal(15)})
    with pytest.raises(UsageError, match=r"give some with --calibration \(onnxruntime cannot"):
        runnable_feeds(model, 0)


def test_when_no_size_runs_the_user_is_told_which_to_pass():
    model = parse(FIXED_WIDTH, {"w": normal(3 * 7 * 11, 2)})
    with pytest.raises(UsageError, match=r"--shape x=1x3x48x320"):
        runnable_feeds(model, 0)


def test_a_given_shape_ends_the_search():
    model = parse(FIXED_WIDTH, {"w": normal(3 * 7 * 11, 2)})
    assert runnable_feeds(model, 0, {"x": (1, 3, 7, 11)})["x"].shape == (1, 3, 7, 11)
