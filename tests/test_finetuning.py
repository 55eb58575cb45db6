"""`finetune`: what is written, what is refused, and what is said."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import onnxdecomp
from onnxdecomp import finetuning
from onnxdecomp.cli import app
from onnxdecomp.errors import ModelError, UsageError, VerificationError
from onnxdecomp.graph.names import named_initializers
from tests.graph.codebooks import random_codebook, with_codebooks
from tests.graph.models import normal, parse, run
from tests.tune.cut import samples, student, teacher, write

WRITTEN, BAD_MODEL, BAD_USE = 0, 1, 2
"""Exit codes."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    return tmp_path


def finetune(output="out.onnx", *, student="student.onnx", **options):
    given = {"teacher": "teacher.onnx", "calibration": "x.npz", "steps": 40, "learning_rate": 0.02, **options}
    return onnxdecomp.finetune(student, output, **given)


def call(*arguments):
    return CliRunner().invoke(app, ["finetune", *map(str, arguments)])


def blank(path: str | onnx.ModelProto, names: tuple[str, ...]) -> onnx.ModelProto:
    """Return a model without the numbers of some initializers."""
    proto = onnx.load(path, load_external_data=False) if isinstance(path, str) else path
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    for tensor in copied.graph.initializer:
        if tensor.name in names:
            tensor.ClearField("raw_data")
    return copied


def in_half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that computes in float16."""
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return proto


def test_distillation_writes_the_student_with_other_numbers_in_its_factors() -> None:
    found = finetune()
    assert found.names == ("w0", "w1")
    assert found.held_out.after < 0.9 * found.held_out.before
    assert blank("out.onnx", found.names) == blank("student.onnx", found.names)
    assert onnx.load("out.onnx") != onnx.load("student.onnx")


def test_the_same_command_gives_the_same_bytes(folder) -> None:
    finetune("a.onnx")
    finetune("b.onnx")
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()


def test_an_interrupted_command_goes_on_to_the_same_bytes(folder) -> None:
    def interrupted(items, _):
        for step in items:
            yield step
            if step == 20:
                raise KeyboardInterrupt

    finetune("whole.onnx")
    with pytest.raises(KeyboardInterrupt):
        finetune("cut.onnx", checkpoint="c.pt", track=interrupted)
    assert not (folder / "cut.onnx").exists()
    finetune("cut.onnx", checkpoint="c.pt")
    assert (folder / "cut.onnx").read_bytes() == (folder / "whole.onnx").read_bytes()


def test_a_student_that_training_only_harms_is_written_as_it_is(folder) -> None:
    found = finetune(learning_rate=1e4)
    assert found.best_step == 0
    assert "the student is written as it is" in found.notes[-1]
    assert onnx.load("out.onnx") == onnx.load("student.onnx")


def test_a_gain_that_may_be_chance_is_not_written(monkeypatch) -> None:
    monkeypatch.setattr(finetuning, "CERTAIN", 1e6)
    found = finetune()
    assert found.best_step == 0
    assert "may be chance" in found.notes[-1]
    assert onnx.load("out.onnx") == onnx.load("student.onnx")


def test_a_loss_that_is_not_finite_is_told() -> None:
    assert "no longer finite" in finetune(learning_rate=1e30).notes[0]


def test_external_data_stay_outside(folder) -> None:
    onnx.save(student(), "ext.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    before = (folder / "w.bin").read_bytes()
    found = finetune(student="ext.onnx")
    assert (folder / "w.bin").read_bytes() == before
    assert (folder / "out.onnx.data").stat().st_size == len(before)
    kept = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load("out.onnx").graph.initializer}
    assert np.array_equal(kept["v"], normal(24, 5))
    assert found.held_out.after < found.held_out.before


def test_external_data_that_nothing_serves_better_are_copied(folder, monkeypatch) -> None:
    monkeypatch.setattr(finetuning, "CERTAIN", 1e6)
    onnx.save(student(), "ext.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    finetune(student="ext.onnx")
    assert (folder / "out.onnx.data").read_bytes() == (folder / "w.bin").read_bytes()


def test_float16_trains_in_float32_and_is_cast_back(folder) -> None:
    onnx.save(in_half(student()), "half.onnx")
    onnx.save(in_half(teacher()), "whole.onnx")
    np.savez("half.npz", x=samples()["x"].astype(np.float16))
    found = finetune(student="half.onnx", teacher="whole.onnx", calibration="half.npz")
    assert found.names == ("w0", "w1")
    assert blank("out.onnx", found.names) == blank("half.onnx", found.names)
    assert found.held_out.after < 0.9 * found.held_out.before


def test_centroids_train_and_indices_stay() -> None:
    codebook = random_codebook((16, 24), 3)
    onnx.save(with_codebooks(teacher(), {"w": codebook}), "clustered.onnx")
    found = finetune(student="clustered.onnx")
    kinds = {t.name: t.data_type for t in onnx.load("clustered.onnx").graph.initializer}
    assert [kinds[name] for name in found.names] == [onnx.TensorProto.FLOAT16]
    assert blank("out.onnx", found.names) == blank("clustered.onnx", found.names)
    assert found.held_out.after < 0.9 * found.held_out.before


def test_evaluation_tells_of_teacher_student_and_result() -> None:
    found = finetune(evaluation="labelled.npz", train="all", steps=80)
    quality = found.quality
    assert quality.metric == "top1"
    assert quality.teacher == 1.0
    assert quality.after.after > quality.before.after


def test_blocks_are_trained_alone_and_written_together() -> None:
    found = finetune(block_wise=True, train="all", match=("r",))
    assert set(found.names) == {"w0", "w1", "b", "v"}
    assert found.held_out.after < 0.9 * found.held_out.before
    assert blank("out.onnx", found.names) == blank("student.onnx", found.names)


BRANCHES = """g (float[N,16] x) => (float[N,5] y) {
    s = ReduceSum<keepdims = 0>(x)
    c = Greater(s, zero)
    h = If (c) <then_branch = p () => (float[N,24] t) { THEN },
                else_branch = q () => (float[N,24] e) { e = MatMul(x, other) }>
    a = Add(h, b)
    r = Relu(a)
    y = MatMul(r, v)
}"""


def in_a_branch(proto: onnx.ModelProto, nodes: str) -> onnx.ModelProto:
    """Return a model with its first layer in the branch for samples that are positive together."""
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    main = {"zero": np.zeros((), np.float32), "b": arrays.pop("b"), "v": arrays.pop("v")}
    bodies = {"h.then_branch/": arrays, "h.else_branch/": {"other": normal(16, 24)}}
    return parse(BRANCHES.replace("THEN", nodes), main, bodies=bodies)


@pytest.mark.parametrize("options", [{}, {"block_wise": True, "match": ("r",)}])
def test_what_is_decomposed_in_a_branch_trains_by_the_batches_that_take_it(options: dict) -> None:
    onnx.save(in_a_branch(teacher(), "t = MatMul(x, w)"), "teacher.onnx")
    onnx.save(in_a_branch(student(), "u = MatMul(x, w0) t = MatMul(u, w1)"), "student.onnx")
    found = finetune(**options)
    assert found.names == ("w0", "w1")
    x = samples()["x"]
    x = x[x.sum(1) > 0]
    whole, before, after = (run(onnx.load(f"{n}.onnx"), {"x": x})[0] for n in ("teacher", "student", "out"))
    assert np.square(after - whole).sum() < 0.9 * np.square(before - whole).sum()
    written, given = onnx.load("out.onnx"), onnx.load("student.onnx")
    for proto in (written, given):
        for name in found.names:
            named_initializers(proto)[name].ClearField("raw_data")
    assert written == given


def test_labels_need_no_teacher() -> None:
    found = finetune(teacher=None, calibration="labelled.npz", evaluation="labelled.npz")
    assert found.loss == "cross-entropy"
    assert found.names == ("w0", "w1", "b", "v")
    assert found.quality.teacher is None
    assert found.quality.before.value == 0.0


def test_a_loader_of_the_user_yields_the_batches(monkeypatch) -> None:
    def batches(epoch):
        rng = np.random.default_rng(epoch)
        for rows in np.arange(256).reshape(32, 8):
            yield {"x": (samples()["x"][rows] + 0.01 * rng.normal(size=(8, 16))).astype(np.float32)}

    module = ModuleType("loader")
    module.batches = batches
    monkeypatch.setitem(sys.modules, "loader", module)
    found = finetune(calibration="loader:batches", held_out="x.npz")
    assert found.held_out.after < 0.9 * found.held_out.before


def test_models_in_memory_come_back_in_memory() -> None:
    found = finetune(None, student=student(), teacher=teacher())
    assert blank(found.proto, found.names) == blank(student(), found.names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": None}, "--calibration"),
        ({"steps": -1}, "steps is -1"),
        ({"train": "conv*"}, "matches none"),
        ({"teacher": "student.onnx"}, "nothing is decomposed"),
        ({"teacher": None}, "no array 'labels'"),
        ({"teacher": None, "train": "decomposed"}, "give it with --teacher"),
        ({"teacher": None, "train": "all", "loss": ("kl",)}, "no array|give it with --teacher"),
        ({"teacher": None, "match": ("h",), "calibration": "labelled.npz"}, "--match compares"),
        ({"teacher": None, "block_wise": True, "calibration": "labelled.npz"}, "--block-wise compares"),
        ({"loss": ("cross-entropy",)}, "no array 'labels'"),
        ({"evaluation": "nowhere.npz"}, "neither a file"),
        ({"evaluation": "labelled.npz", "metric": "top"}, "did you mean 'top1'"),
        ({"checkpoint": "nowhere/c.pt"}, "in a folder that exists"),
    ],
)
def test_bad_use_is_refused_and_nothing_is_written(folder, options: dict, message: str) -> None:
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UsageError, match=message):
        finetune(**options)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_labels_out_of_range_are_refused() -> None:
    np.savez("bad.npz", x=samples()["x"], labels=np.arange(256))
    with pytest.raises(UsageError, match="the model has 5 classes"):
        finetune(teacher=None, calibration="bad.npz")


def test_a_model_with_a_data_file_needs_an_output() -> None:
    onnx.save(student(), "ext.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(UsageError, match="name an output"):
        finetune(None, student="ext.onnx")


@pytest.mark.parametrize("output", ["student.onnx", "teacher.onnx"])
def test_the_inputs_are_not_overwritten(output: str) -> None:
    with pytest.raises((UsageError, ModelError), match="would overwrite"):
        finetune(output)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g (float[N,16] z) => (float[N,5] y) { y = MatMul(z, w) }", "other inputs than the student: z"),
        (
            "g (float[N,8] x) => (float[N,5] y) { y = MatMul(x, w) }",
            r"other inputs than the student: x \(float \[\?, 8\]\) and not x \(float \[\?, 16\]\)",
        ),
        ("g (float[N,16] x) => (float[N,5] u) { u = MatMul(x, w) }", "other outputs than the student: u"),
    ],
)
def test_a_teacher_with_another_interface_is_refused(text: str, message: str) -> None:
    onnx.save(parse(text, {"w": normal(16, 5)}), "other.onnx")
    with pytest.raises(UsageError, match=message):
        finetune(teacher="other.onnx")


def test_a_written_model_with_another_loss_is_not_published(folder, monkeypatch) -> None:
    plain = finetuning.NumbersWriter.stage_numbers
    monkeypatch.setattr(
        finetuning.NumbersWriter,
        "stage_numbers",
        lambda self, values: plain(self, {name: 0 * value for name, value in values.items()}),
    )
    with pytest.raises(VerificationError, match="Nothing was written"):
        finetune()
    assert not (folder / "out.onnx").exists()


def test_without_torch_one_sentence_names_the_extra(monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(finetuning, "find_spec", lambda name: None if name == "torch" else find(name))
    result = call("missing.onnx", "out.onnx", "--calibration", "x.npz")
    assert result.exit_code == BAD_USE
    assert "onnxdecomp[finetune]" in result.stderr
    assert "pip install torch==2.13.0" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_command_says_what_it_did(folder: Path) -> None:
    result = call(
        *("student.onnx", "out.onnx", "--teacher", "teacher.onnx", "--calibration", "x.npz"),
        *("--eval", "labelled.npz", "--steps", 40, "--loss", "kl:0.7", "--match", "auto", "--seed", 3),
        *("--learning-rate", "auto", "--train", "w*", "--checkpoint", "c.pt"),
    )
    assert result.exit_code == WRITTEN, result.output
    assert "2 initializers trained, 160 numbers" in result.stdout
    assert "0.7 x kl + 1 tensors matched" in result.stdout
    assert "top1" in result.stdout
    assert (folder / "out.onnx").exists()


def test_the_command_may_be_quiet() -> None:
    result = call(
        "student.onnx", "o.onnx", "--teacher", "teacher.onnx", "--calibration", "x.npz", "--steps", 2, "-q"
    )
    assert (result.exit_code, result.output) == (WRITTEN, "")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("missing.onnx", "o.onnx"), BAD_MODEL, "does not exist"),
        (("student.onnx", "o.onnx", "--learning-rate", "fast"), BAD_USE, "'fast' is no number"),
        (("student.onnx", "o.onnx", "--steps", "0"), BAD_USE, "steps is 0"),
    ],
)
def test_the_command_refuses_in_one_sentence(arguments: tuple, exit_code: int, message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_torch_is_not_imported_with_the_package() -> None:
    code = "import onnxdecomp, onnxdecomp.finetuning, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
