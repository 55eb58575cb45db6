"""Training lowers the loss on samples it does not see, keeps the best weights, and can be interrupted."""

from itertools import islice

import numpy as np
import onnx
import pytest
import torch

from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.graph.io import load
from onnxdecomp.graph.trainable import decomposed_of
from onnxdecomp.runtime.session import run
from onnxdecomp.tune import teacher as teacher_module
from onnxdecomp.tune.batches import open_source
from onnxdecomp.tune.checkpoint import Checkpoint
from onnxdecomp.tune.course import Course
from onnxdecomp.tune.settings import Settings
from onnxdecomp.tune.teacher import Teacher
from onnxdecomp.tune.train import PATIENCE, SMALLEST, Training, schedule, tensor_size
from tests.graph.models import parse
from tests.tune.cut import student, teacher, write

SAME_LOSS = 1e-5
"""Relative; the same weights, once as they were kept and once put back."""

SAME_COURSE = 1e-2
"""Relative; the optimizer adds a small number to what it divides by, whatever the size of a gradient."""

STEPS, RATE = 60, 0.02
"""A small network on few samples takes longer steps than the default."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    return tmp_path


def untracked(items, _):
    return items


def interrupted(after: int):
    """Return a track after whose so many steps somebody interrupts."""

    def track(items, _):
        yield from islice(items, after)
        raise KeyboardInterrupt

    return track


def course(names: tuple[str, ...] = (), **options) -> Course:
    model, original = load("student.onnx"), load("teacher.onnx")
    settings = Settings(calibration="x.npz", **{"steps": STEPS, "learning_rate": RATE, **options})
    return Course(model, original, names or decomposed_of(model, original), settings)


def assert_same(values: dict, expected: dict) -> None:
    assert values.keys() == expected.keys()
    assert all(np.array_equal(values[name], expected[name]) for name in values)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": ("mse",)},
        {"loss": ("kl:0.5", "mse:2")},
        {"optimizer": "sgd"},
        {"match": ("auto",)},
        {"loss": ("mse",), "match": ("r:0.5", "h")},
        {"train": "all"},
    ],
    ids=str,
)
def test_distillation_lowers_the_loss_on_samples_set_aside(options: dict) -> None:
    found = course(**options).train(untracked)
    assert found.held_out[1] < 0.9 * found.held_out[0]


def test_blocks_train_one_after_the_other_and_those_without_anything_to_train_not_at_all() -> None:
    titles = []

    def track(items, what):
        titles.append(what())
        return items

    found = course(block_wise=True).train(track)
    assert titles == ["block 1 of 2"]
    assert found.values.keys() == {"w0", "w1"}
    assert not np.array_equal(found.values["w1"], onnx.numpy_helper.to_array(student().graph.initializer[1]))


def test_the_last_block_trains_on_the_loss_of_the_outputs() -> None:
    made = course(("w0", "w1", "v"), block_wise=True, match=("r",))
    before = made.loss_of(student()).mean
    found = made.train(untracked)
    trained = student()
    for tensor in trained.graph.initializer:
        if tensor.name in found.values:
            tensor.raw_data = found.values[tensor.name].tobytes()
    assert found.values.keys() == {"w0", "w1", "v"}
    assert made.loss_of(trained).mean < 0.9 * before


def test_blocks_go_on_from_their_checkpoints() -> None:
    options = {"block_wise": True, "match": ("r",), "checkpoint": "c.pt"}
    whole = course(("w0", "v"), **{**options, "checkpoint": "whole.pt"}).train(untracked)
    with pytest.raises(KeyboardInterrupt):
        course(("w0", "v"), **options).train(interrupted(10))
    assert_same(course(("w0", "v"), **options).train(untracked).values, whole.values)


def test_labels_alone_train_as_well() -> None:
    settings = Settings(calibration="labelled.npz", steps=STEPS, learning_rate=RATE)
    found = Course(load("student.onnx"), None, ("w0", "w1", "b", "v"), settings).train(untracked)
    assert found.held_out[1] < 0.95 * found.held_out[0]


def test_only_what_was_chosen_trains() -> None:
    assert course(("w1",)).train(untracked).values.keys() == {"w1"}


def test_the_same_seed_gives_the_same_numbers_and_another_others() -> None:
    first = course().train(untracked).values
    assert_same(course().train(untracked).values, first)
    assert not np.array_equal(course(seed=1).train(untracked).values["w1"], first["w1"])


def test_the_best_of_all_looks_is_kept(monkeypatch) -> None:
    looks = []
    plain = Training.held_out_loss

    def noted(self) -> float:
        looks.append(plain(self))
        return looks[-1]

    monkeypatch.setattr(Training, "held_out_loss", noted)
    made = course(learning_rate=0.3)
    found = made.train(untracked)
    assert found.held_out == (looks[0], min(looks))
    (training,) = made._trainings
    network = training._network
    with torch.no_grad():
        for name, value in found.values.items():
            network.parameters[name].copy_(torch.from_numpy(value))
    assert plain(training) == pytest.approx(min(looks), rel=SAME_LOSS)


def test_training_stops_when_nothing_has_long_been_better() -> None:
    found = course(learning_rate=50.0, clip=1e6).train(untracked)
    assert found.n_steps < STEPS
    assert "nothing was better" in found.stopped or "no longer finite" in found.stopped


def test_the_weights_the_model_had_are_kept_when_training_only_harms() -> None:
    found = course(learning_rate=1e4, steps=2 * PATIENCE).train(untracked)
    assert found.best_step == 0
    assert found.held_out[0] == found.held_out[1]


def test_steps_that_only_harm_are_taken_back_and_made_smaller() -> None:
    found = course(learning_rate=50.0).train(untracked)
    assert found.held_out[1] < 0.9 * found.held_out[0]


def test_an_interrupted_training_goes_on_with_its_smaller_steps() -> None:
    whole = course(learning_rate=50.0, checkpoint="whole.pt").train(untracked)
    with pytest.raises(KeyboardInterrupt):
        course(learning_rate=50.0, checkpoint="cut.pt").train(interrupted(20))
    assert_same(course(learning_rate=50.0, checkpoint="cut.pt").train(untracked).values, whole.values)


def test_a_loss_that_is_not_finite_stops_training_and_the_best_is_kept() -> None:
    found = course(learning_rate=1e30).train(untracked)
    assert "no longer finite" in found.stopped
    assert found.n_steps < STEPS
    assert all(np.all(np.isfinite(value)) for value in found.values.values())


@pytest.mark.parametrize("after", [3, 20, 59])
def test_an_interrupted_training_goes_on_to_the_same_numbers(after: int) -> None:
    whole = course(checkpoint="whole.pt").train(untracked)
    with pytest.raises(KeyboardInterrupt):
        course(checkpoint="cut.pt").train(interrupted(after))
    rest = course(checkpoint="cut.pt").train(untracked)
    assert_same(rest.values, whole.values)
    assert rest.held_out == whole.held_out


def test_a_finished_training_is_not_repeated(monkeypatch) -> None:
    whole = course(checkpoint="c.pt").train(untracked)
    monkeypatch.setattr(Training, "_step", None)
    assert_same(course(checkpoint="c.pt").train(untracked).values, whole.values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.5}, "learning_rate 0.02 and not 0.5"),
        ({"steps": 61}, "steps 60 and not 61"),
        ({"loss": ("mse",)}, "made with loss"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(options: dict, message: str) -> None:
    course(checkpoint="c.pt").train(untracked)
    with pytest.raises(UsageError, match=message):
        course(checkpoint="c.pt", **options)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ((student(3), teacher()), "of another student"),
        ((student(), student()), "of another teacher"),
        ((student(), None), "of another teacher"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(models: tuple, message: str) -> None:
    settings = Settings(calibration="x.npz")
    Checkpoint("c.pt", load(student()), load(teacher()), settings).save({})
    ours, theirs = models
    with pytest.raises(UsageError, match=message):
        Checkpoint("c.pt", load(ours), load(theirs) if theirs else None, settings).load()


def test_a_file_that_is_no_checkpoint_is_refused(folder) -> None:
    (folder / "c.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UsageError, match="cannot be read as a checkpoint"):
        course(checkpoint="c.pt")


def test_what_no_gradient_reaches_is_refused() -> None:
    model = parse(
        "g (float[N,16] x) => (float[N,5] y) { t = MatMul(x, w) i = Cast<to = 7>(t) y = Cast<to = 1>(i) }",
        {"w": np.ones((16, 5), np.float32)},
    )
    made = Course(load(model), None, ("w",), Settings(calibration="labelled.npz", steps=2))
    with pytest.raises(ModelError, match="no gradient reaches w"):
        made.train(untracked)


def test_the_teacher_says_the_same_kept_or_not() -> None:
    source = open_source(Settings(calibration="x.npz"), student(), labels=False)
    kept, anew = (Teacher(teacher(), ["y"], stored=stored) for stored in (source.stored, None))
    batches = list(source.epoch(0))
    kept(batches[0])
    assert kept._kept is not None
    for batch in batches:
        torch.testing.assert_close(kept(batch)["y"], anew(batch)["y"])


@pytest.mark.parametrize(("wanted", "n_runs"), [(["y"], 2), (["y", "h"], 4)])
def test_the_teacher_runs_once_on_a_batch_that_comes_again(monkeypatch, wanted, n_runs) -> None:
    settings = Settings(calibration="x.npz", held_out="x.npz", batch=8)
    batches = tuple(open_source(settings, student(), labels=False).held_out)[:2]
    again, anew = (Teacher(teacher(), wanted, again=known) for known in (batches, ()))
    runs = []
    monkeypatch.setattr(teacher_module, "run", lambda *seen: runs.append(seen) or run(*seen))
    found = [again(batch)["y"] for batch in (*batches, *batches)]
    assert len(runs) == n_runs
    assert all(batch.rows is None for batch in batches)
    for batch, one in zip((*batches, *batches), found, strict=True):
        torch.testing.assert_close(one, anew(batch)["y"])


def test_an_unknown_tensor_to_match_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"tensor to match in the student 'hh'.*did you mean 'h'"):
        course(match=("hh",))


def test_a_tensor_the_teacher_does_not_have_cannot_be_matched() -> None:
    with pytest.raises(UsageError, match="tensor to match in the teacher 't'"):
        course(match=("t",))


def test_a_teacher_with_other_shapes_is_refused() -> None:
    other = parse(
        "g (float[N,16] x) => (float[N,C] y) { y = MatMul(x, w) }", {"w": np.ones((16, 7), np.float32)}
    )
    with pytest.raises(UsageError, match=r"'y' has shape \(32, 7\) in the teacher and \(32, 5\)"):
        Course(load("student.onnx"), load(other), ("w0",), Settings(calibration="x.npz"))


def test_a_student_that_is_not_finite_is_refused() -> None:
    model = student()
    model.graph.initializer[0].raw_data = np.full((16, 4), 1e30, np.float32).tobytes()
    model.graph.initializer[1].raw_data = np.full((4, 24), -1e30, np.float32).tobytes()
    with pytest.raises(ModelError, match="not finite"):
        Course(load(model), load("teacher.onnx"), ("w0",), Settings(calibration="x.npz")).train(untracked)


def test_factors_that_are_scaled_against_each_other_train_alike() -> None:
    scaled = student()
    for tensor, factor in zip(scaled.graph.initializer, (64, 1 / 64), strict=False):
        array = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.raw_data = array.astype(np.float32).tobytes()
    settings = Settings(calibration="x.npz", steps=STEPS, learning_rate=RATE, clip=1e6)
    found, expected = (
        Course(load(model), load(teacher()), ("w0", "w1"), settings).train(untracked).held_out
        for model in (scaled, student())
    )
    assert found == pytest.approx(expected, rel=SAME_COURSE)


def test_the_rate_rises_then_falls() -> None:
    rates = [schedule(step, 100) for step in range(100)]
    assert rates[4] == max(rates) == 1.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_a_tensor_of_zeros_still_moves() -> None:
    assert tensor_size(torch.zeros(3)) == SMALLEST
    assert tensor_size(torch.full((4,), -2.0)) == 2.0
