from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from models import evaluate
from models.data import DataSet
from models.evaluate import Difference, Samples, Task, centre, difference, enlarged, main, right, task
from onnxdecomp.errors import ModelError, UsageError

FLOAT = onnx.TensorProto.FLOAT
TOLERANCE = 1e-12


def brightest_pixel(path: Path, *, batch: int | str = "N", n_scores: int = 4, offset: float = 0.0) -> Path:
    """Write a network that answers with the place of the brightest of four pixels.

    `offset` is added to the score of class 0.
    """
    bias = np.zeros(n_scores, np.float32)
    bias[0] = offset
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["scores"]),
        ],
        "brightest_pixel",
        [helper.make_tensor_value_info("image", FLOAT, [batch, 1, 2, 2])],
        [helper.make_tensor_value_info("scores", FLOAT, [batch, n_scores])],
        [
            onnx.numpy_helper.from_array(np.eye(4, n_scores, dtype=np.float32), "weight"),
            onnx.numpy_helper.from_array(bias, "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def pixels(n: int) -> Samples:
    """Images whose brightest pixel is at the label, but for every fifth."""
    images = np.random.default_rng(0).integers(0, 200, (n, 1, 2, 2)).astype(np.uint8)
    labels = np.arange(n) % 4
    shown = np.where(np.arange(n) % 5 == 0, (labels + 1) % 4, labels)
    images.reshape(n, 4)[np.arange(n), shown] = 255
    return Samples(images, labels)


@pytest.mark.parametrize("n", [1, 10, 100, 250])
def test_the_right_answers_are_found_whatever_the_number_of_samples(tmp_path, n):
    answers = right(brightest_pixel(tmp_path / "m.onnx"), pixels(n))
    np.testing.assert_array_equal(answers, np.arange(n) % 5 != 0)


def test_a_fixed_batch_drops_the_samples_that_do_not_fill_it(tmp_path):
    answers = right(brightest_pixel(tmp_path / "m.onnx", batch=4), pixels(10))
    np.testing.assert_array_equal(answers, np.arange(8) % 5 != 0)


def test_a_network_with_too_few_scores_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"answers with \(10, 3\): one score for each of 4 classes"):
        right(brightest_pixel(tmp_path / "m.onnx", n_scores=3), pixels(10))


def test_a_network_with_two_inputs_is_refused(tmp_path):
    model = onnx.load(brightest_pixel(tmp_path / "m.onnx"))
    model.graph.input.append(helper.make_tensor_value_info("mask", FLOAT, ["N"]))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="has 2 inputs, image, mask"):
        right(tmp_path / "m.onnx", pixels(10))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_the_paired_error_is_that_of_the_mean_of_the_differences(pairs):
    before, after = np.array(pairs).T
    found = difference(before, after)
    single = after.astype(float) - before.astype(float)
    assert found.gain == pytest.approx(single.mean(), abs=TOLERANCE)
    assert found.standard_error**2 == pytest.approx(single.var() / len(single), abs=TOLERANCE)


def test_one_percent_of_discordant_answers_to_10000_images_is_a_tenth_of_a_point():
    before, after = np.ones(10_000, bool), np.ones(10_000, bool)
    before[:50] = after[50:100] = False
    assert difference(before, after) == Difference(0.0, pytest.approx(0.001, rel=1e-3))


@pytest.mark.parametrize(("n_before", "n_after"), [(3, 2), (0, 0)])
def test_answers_to_different_samples_are_not_compared(n_before, n_after):
    with pytest.raises(UsageError, match="cannot be compared"):
        difference(np.ones(n_before, bool), np.ones(n_after, bool))


def test_the_centre_of_an_image_is_cut_out():
    image = np.arange(36, dtype=np.uint8).reshape(1, 1, 6, 6)
    np.testing.assert_array_equal(centre(image, 2), [[[[14, 15], [20, 21]]]])


def test_doubling_the_size_keeps_flat_areas_and_lies_between_neighbours_elsewhere():
    image = np.array([[[[0, 0, 200], [0, 0, 200]]]], np.uint8)
    np.testing.assert_array_equal(enlarged(image)[0, 0], [[0, 0, 0, 50, 150, 200]] * 4)


def test_an_unknown_network_gets_a_suggestion():
    with pytest.raises(UsageError, match="did you mean 'song_mnist'"):
        task("song_minst")


@pytest.fixture
def tiny_task(monkeypatch) -> None:
    shown = pixels(100)
    images = DataSet(shown.images[:0], shown.labels[:0], shown.images, shown.labels)
    monkeypatch.setitem(evaluate.TASKS, "tiny", Task(lambda: images))


def test_the_command_line_prints_accuracies_and_the_difference(tiny_task, tmp_path, capsys):
    good = brightest_pixel(tmp_path / "good.onnx")
    bad = brightest_pixel(tmp_path / "bad.onnx", offset=1000.0)  # answers 0 to everything
    assert main(["tiny", str(bad), "--reference", str(good)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{bad}: 25.00% (25 of 100 test images)"
    assert lines[1] == f"{good}: 80.00% (80 of 100 test images)"
    assert lines[2] == "difference: -55.00 ± 5.89 percentage points"


@pytest.mark.parametrize(("name", "exit_code"), [("tinny", 2), ("tiny", 1)])
def test_the_command_line_ends_with_the_errors_exit_code(tiny_task, tmp_path, capsys, name, exit_code):
    assert main([name, str(tmp_path / "gone.onnx")]) == exit_code
    assert capsys.readouterr().err
