import numpy as np
import pytest

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.evaluate import outputs_over
from onnxdecomp.runtime.samples import batches, load_function, load_samples
from onnxdecomp.runtime.session import open_session, run
from tests.graph.models import normal, parse

IMAGES = parse("g (float[N, 3, 4, 4] image) => (float[N, 48] y) { y = Flatten(image) }")
FIXED = parse("g (float[2, 3] x) => (float[2, 3] y) { y = Identity(x) }")
RECURRENT = parse(
    "g (float[1, 3] x, float[2, 1, 3] state, int64 rate) => (float[2, 1, 3] y) { y = Add(x, state) }"
)
WORDS = parse("g (string[N] x) => (string[N] y) { y = Identity(x) }")
COUNTS = parse("g (int32[N] x) => (int32[N] y) { y = Identity(x) }")


@pytest.fixture
def write(tmp_path):
    """Write an .npz and return its path."""

    def writer(**arrays) -> str:
        path = tmp_path / "samples.npz"
        np.savez(path, **arrays)
        return str(path)

    return writer


def test_an_npz_is_keyed_by_input_name(write):
    images = normal(5, 3, 4, 4)
    samples = load_samples(write(image=images), IMAGES)
    np.testing.assert_array_equal(samples["image"], images)
    assert samples.keys() == {"image"}


def test_a_folder_holds_one_npy_per_input(tmp_path):
    np.save(tmp_path / "image.npy", normal(5, 3, 4, 4))
    assert load_samples(tmp_path, IMAGES)["image"].shape == (5, 3, 4, 4)


def made_samples() -> dict:
    return {"image": normal(7, 3, 4, 4)}


def made_list() -> list:
    return []


def made_nothing() -> dict:
    raise KeyError("no data")


def test_a_function_may_make_the_samples():
    assert load_samples(f"{__name__}:made_samples", IMAGES)["image"].shape == (7, 3, 4, 4)


def test_doubles_become_the_type_of_the_input(write):
    assert (
        load_samples(write(image=normal(2, 3, 4, 4, dtype=np.float64)), IMAGES)["image"].dtype == np.float32
    )


def test_pixels_may_be_bytes(write):
    assert load_samples(write(image=np.ones((2, 3, 4, 4), np.uint8)), IMAGES)["image"].dtype == np.float32


def test_strings_are_samples_too(write):
    assert load_samples(write(x=np.array(["a", "b"])), WORDS)["x"].tolist() == ["a", "b"]


def test_labels_come_when_they_are_asked_for(write):
    path = write(image=normal(2, 3, 4, 4), labels=np.array([1, 0]))
    assert load_samples(path, IMAGES, labels=True)["labels"].tolist() == [1, 0]
    assert "labels" not in load_samples(path, IMAGES)


GOOD = normal(2, 3, 4, 4)
SPOILT = np.where(np.arange(96).reshape(2, 3, 4, 4) == 50, np.nan, GOOD)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"imgae": GOOD}, "did you mean 'image'"),
        ({}, "has no array 'image'"),
        ({"image": GOOD[:, :2]}, r"shape \(2, 2, 4, 4\).*takes float32 Nx3x4x4"),
        ({"image": np.float32(1)}, "has shape"),
        ({"image": GOOD[:0]}, "no samples"),
        ({"image": np.array([["a"]])}, "is <U1, and the model takes float32"),
        ({"image": GOOD.astype(complex)}, "is complex128, and the model takes float32"),
        ({"image": SPOILT}, "NaN or infinite, in 1 of 2 samples, the first of them number 1 counted from 0"),
        ({"image": GOOD, "labels": np.arange(3)}, "different numbers of samples: image 2, labels 3"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(write, arrays, message):
    with pytest.raises(UsageError, match=message):
        load_samples(write(**arrays), IMAGES, labels="labels" in arrays)


def test_missing_labels_are_said(write):
    with pytest.raises(UsageError, match="has no array 'labels'"):
        load_samples(write(image=GOOD), IMAGES, labels=True)


@pytest.mark.parametrize(
    ("array", "message"),
    [(np.array([0.5]), "is float64, and the model takes int32"), (np.array([2**40]), "outside of int32")],
)
def test_integers_are_not_made_of_what_does_not_fit(write, array, message):
    with pytest.raises(UsageError, match=message):
        load_samples(write(x=array), COUNTS)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.npz", "neither a file"),
        ("no_such_module:make", "no_such_module"),
        (f"{__name__}:no_such_function", "no_such_function"),
        (f"{__name__}:made_list", "not a dictionary"),
        (f"{__name__}:made_nothing", "failed with KeyError: 'no data'. Mend it first"),
    ],
)
def test_a_source_that_is_not_there_is_named(source, message):
    with pytest.raises(UsageError, match=message):
        load_samples(source, IMAGES)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"broken\.npz cannot be read .* Write it anew") as raised:
        load_samples(path, IMAGES)
    assert "pickle.load" not in str(raised.value)


def test_a_single_array_has_no_input_name(tmp_path):
    np.save(tmp_path / "one.npy", GOOD)
    with pytest.raises(UsageError, match="keyed by input name"):
        load_samples(tmp_path / "one.npy", IMAGES)


def sizes(samples, model, size=32) -> list[int]:
    return [len(next(iter(feeds.values()))) for feeds in batches(samples, model, size)]


def test_a_dynamic_batch_takes_as_many_samples_as_asked_for():
    assert sizes({"image": normal(7, 3, 4, 4)}, IMAGES, 3) == [3, 3, 1]


def test_a_fixed_batch_sets_the_size_and_drops_the_rest():
    assert sizes({"x": normal(7, 3)}, FIXED) == [2, 2, 2]


def test_too_few_samples_for_a_fixed_batch_are_refused():
    with pytest.raises(UsageError, match="batches of 2 samples and there are 1"):
        sizes({"x": normal(1, 3)}, FIXED)


def test_an_input_without_a_batch_on_its_first_axis_gets_one_entry_at_a_time(write):
    path = write(x=normal(4, 3), state=normal(4, 2, 1, 3), rate=np.arange(4))
    feeds = list(batches(load_samples(path, RECURRENT), RECURRENT))
    assert [f["rate"].tolist() for f in feeds] == [0, 1, 2, 3]
    assert {name: np.shape(x) for name, x in feeds[0].items()} == {
        "x": (1, 3),
        "state": (2, 1, 3),
        "rate": (),
    }


def test_a_single_number_for_an_input_that_takes_one_stands_for_all_samples(write):
    samples = load_samples(write(x=normal(4, 3), state=normal(4, 2, 1, 3), rate=np.array(7)), RECURRENT)
    assert samples["rate"].tolist() == [7, 7, 7, 7]


def test_an_input_of_a_single_number_or_word_is_an_array_too():
    model = parse(
        "g (float[N, 4] x, float scale, string word) => (float[N, 4] y, string z)"
        " { y = Mul(x, scale) z = Identity(word) }"
    )
    words = np.array(["a", "b", "c"], object)
    samples = {"x": np.ones((3, 4), np.float32), "scale": np.float32([1, 2, 3]), "word": words}
    feeds = list(batches(samples, model))
    assert [[array.shape for array in feed.values()] for feed in feeds] == [[(1, 4), (), ()]] * 3
    outputs = [run(open_session(model), feed) for feed in feeds]
    assert [float(output["y"].mean()) for output in outputs] == [1, 2, 3]


def test_scalar_inputs_can_be_run_over_all_samples():
    model = parse("g (float[N, 4] x, float scale) => (float[N, 4] y) { y = Mul(x, scale) }")
    samples = {"x": np.ones((3, 4), np.float32), "scale": np.float32([1, 2, 3])}
    assert outputs_over(model, samples)["y"][:, 0].tolist() == [1, 2, 3]


def test_one_complete_feed_is_passed_on():
    feed = {"x": normal(1, 3), "state": normal(2, 1, 3), "rate": np.array(1)}
    assert [f.keys() for f in batches(feed, RECURRENT)] == [feed.keys()]


def test_batches_carry_inputs_alone():
    samples = {"image": GOOD, "labels": np.arange(2)}
    assert [f.keys() for f in batches(samples, IMAGES)] == [{"image"}]


def test_a_function_is_found_by_its_name():
    assert load_function(f"{__name__}:made_list") is made_list
