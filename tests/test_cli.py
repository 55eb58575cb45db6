import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from onnxdecomp.cli import _tracker, app
from onnxdecomp.graph.names import as_input
from tests.networks import network
from tests.timers import even, in_place, measured

WRITTEN, BAD_MODEL, BAD_USE, BUDGET, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("onnxdecomp.selection.measure_chains", even)
    monkeypatch.setattr("onnxdecomp.proof.compare_latency", measured(1.0, 0.1))
    monkeypatch.setattr("onnxdecomp.put_back.profile_variants", in_place())
    onnx.save(network(), "in.onnx")
    return tmp_path


class Screen(StringIO):
    """Text that is drawn, on a terminal or not."""

    def __init__(self, is_terminal):
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self):
        return self._is_terminal


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_one_sentence(result, exit_code, message):
    """Check the exit code, and that standard error holds one message and no traceback."""
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1


def test_convert_writes_the_model_and_the_report(folder):
    result = call("convert", "in.onnx", "out.onnx", "--rank", "ratio:0.5", "--report", "r.json")
    assert result.exit_code == WRITTEN
    assert "4 layers decomposed" in result.stdout
    assert json.loads(Path("r.json").read_text())["model"]["params"]["after"] > 0
    assert files(folder) == ["in.onnx", "out.onnx", "r.json"]


def test_quiet_prints_nothing():
    result = call("convert", "in.onnx", "out.onnx", "--rank", "ratio:0.5", "--quiet")
    assert (result.exit_code, result.output) == (WRITTEN, "")


@pytest.mark.parametrize(("quiet", "is_terminal"), [(True, True), (False, False)])
def test_progress_is_only_for_somebody_who_looks(monkeypatch, quiet, is_terminal):
    monkeypatch.setattr(sys, "stderr", Screen(is_terminal))
    assert _tracker(quiet) is None


def test_progress_is_drawn_on_standard_error_and_wiped(monkeypatch, capsys):
    screen = Screen(is_terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    track = _tracker(quiet=False)
    assert list(track("ab", "timing")) == ["a", "b"]
    assert list(track(iter("ab"), "searching")) == ["a", "b"]
    drawn = screen.getvalue()
    assert [text in drawn for text in ("timing", "1/2", "2/2", "searching", "1/?", "2/?")] == [True] * 6
    assert drawn.endswith("\x1b[2K")  # a line is erased
    assert capsys.readouterr().out == ""


def test_a_recipe_and_options_combine():
    Path("recipe.toml").write_text('rank = "none"\n[op_type.Gemm]\nrank = "4"\n')
    result = call("convert", "in.onnx", "out.onnx", "--recipe", "recipe.toml", "--verify", "layers")
    assert result.exit_code == WRITTEN
    assert "1 layer decomposed" in result.stdout


def test_inspect_shows_every_layer():
    result = call("inspect", "in.onnx")
    assert result.exit_code == WRITTEN
    assert {"c1", "c2", "g", "y"} <= set(result.stdout.split())
    assert "32x16x3x3" in result.stdout


def test_inspect_json_holds_errors_and_reasons():
    entries = json.loads(call("inspect", "in.onnx", "--json").stdout)
    first, *_, last = entries["layers"]
    assert first["layer"]["key"] == "c1"
    assert {preview["ratio"] for preview in first["previews"]} == {0.5, 0.25}
    assert "cp3" in last["refusals"]


def test_verify_shows_the_error_of_a_conversion():
    call("convert", "in.onnx", "out.onnx", "--rank", "full")
    result = call("verify", "in.onnx", "out.onnx", "--tolerance", "1e-4")
    assert result.exit_code == WRITTEN
    assert "sqnr" in result.stdout


def test_verify_fails_beyond_the_tolerance():
    call("convert", "in.onnx", "out.onnx", "--rank", "4")
    result = call("verify", "in.onnx", "out.onnx", "--tolerance", "1e-6")
    assert result.exit_code == BUDGET
    assert "off by" in result.stderr


def test_verify_takes_samples_and_labels():
    rng = np.random.default_rng(0)
    np.savez("x.npz", x=rng.standard_normal((8, 16, 12, 12)).astype(np.float32), labels=np.zeros(8, int))
    call("convert", "in.onnx", "out.onnx", "--rank", "full")
    result = call(
        "verify", "in.onnx", "out.onnx", "--calibration", "x.npz", "--metric", "agreement", "--json"
    )
    found = json.loads(result.stdout)
    assert (found["score"], found["n_samples"]) == (1.0, 8)


@pytest.mark.parametrize(("metric", "told"), [("agreement", True), ("sqnr", False)])
def test_agreement_is_told_by_margins_beside_the_count(folder, metric, told):
    samples = np.random.default_rng(11).standard_normal((64, 16, 12, 12)).astype(np.float32)
    np.savez("x.npz", x=samples)
    options = ("--rank", "ratio:0.5", "--calibration", "x.npz", "--cache", "none", "--metric", metric)
    result = call("convert", "in.onnx", "out.onnx", *options, "--report", "r.json")
    assert result.exit_code == WRITTEN
    assert ("agreement by margins" in result.stdout) is told
    accuracy = json.loads(Path("r.json").read_text(encoding="utf-8"))["accuracy"]
    assert (accuracy["drop_by_margins"] is not None) is told
    assert (accuracy["error_by_margins"] is not None) is told


def test_bench_compares_models_in_one_table():
    call("convert", "in.onnx", "out.onnx", "--rank", "ratio:0.5", "--verify", "none")
    result = call("bench", "in.onnx", "out.onnx", "--runs", "5", "--json")
    rows = json.loads(result.stdout)
    assert [Path(row["file"]).name for row in rows] == ["in.onnx", "out.onnx"]
    assert rows[1]["n_params"] < rows[0]["n_params"]
    assert rows[0]["speedup"] is None


def test_bench_prints_a_table():
    result = call("bench", "in.onnx", "--runs", "5")
    assert result.exit_code == WRITTEN
    assert "5 runs each, in turn" in result.stdout


@pytest.mark.parametrize("command", ["convert", "inspect", "verify", "bench"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.onnx", None, "does not exist"),
        ("folder.onnx", "folder", "is a folder"),
        ("random.onnx", bytes(range(256)) * 8, "not an ONNX model"),
        ("empty.onnx", b"", "no"),
        ("half.onnx", "half", "cut off"),
    ],
)
def test_a_file_that_is_no_model_is_named_in_one_sentence(folder, command, name, content, message):
    if content == "folder":
        Path(name).mkdir()
    elif content == "half":
        Path(name).write_bytes(Path("in.onnx").read_bytes()[:5000])
    elif content is not None:
        Path(name).write_bytes(content)
    before = files(folder)
    others = {"convert": ["out.onnx"], "verify": ["in.onnx"]}.get(command, [])
    assert_one_sentence(call(command, name, *others), BAD_MODEL, message)
    assert files(folder) == before


def external(change):
    """Save the network with its weights in a file of their own, and `change` where a tensor says they are."""
    onnx.save(network(), "ext.onnx", save_as_external_data=True, location="ext.bin", size_threshold=64)
    model = onnx.load("ext.onnx", load_external_data=False)
    place = {entry.key: entry for entry in model.graph.initializer[0].external_data}
    change(place)
    Path("ext.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda place: Path("ext.bin").unlink(), "does not exist"),
        (lambda place: Path("ext.bin").write_bytes(b"short"), "too short"),
        (lambda place: setattr(place["location"], "value", "../ext.bin"), "outside the model's folder"),
        (lambda place: setattr(place["location"], "value", "/etc/hostname"), "outside the model's folder"),
    ],
)
def test_external_data_that_cannot_be_used_is_named_in_one_sentence(folder, change, message):
    external(change)
    before = files(folder)
    assert_one_sentence(call("convert", "ext.onnx", "out.onnx", "--rank", "ratio:0.5"), BAD_MODEL, message)
    assert files(folder) == before


def test_a_model_with_external_data_is_written_with_external_data(folder):
    external(lambda place: None)
    result = call("convert", "ext.onnx", "out.onnx", "--rank", "ratio:0.5")
    assert result.exit_code == WRITTEN, result.output
    assert files(folder) == ["ext.bin", "ext.onnx", "in.onnx", "out.onnx", "out.onnx.data"]
    assert call("verify", "in.onnx", "out.onnx", "--tolerance", "0.2").exit_code == WRITTEN


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", "0"], "1 or more"),
        (["--rank", "999"], "above the largest rank"),
        (["--rank", "energi:0.9"], "did you mean 'energy'"),
        (["--method", "tuker2"], "did you mean 'tucker2'"),
        (["--method", "cp3/nsl"], "did you mean 'cp3/nls'"),
        (["--include", "zzz*"], "matches no layer"),
        (["--shape", "x"], "--shape"),
        (["--verify", "all"], "unknown --verify level"),
        (["--recipe", "none.toml"], "cannot be read"),
        (["--max-error", "2"], "between 0 and 1"),
        (["--calibration", "none.npz"], "none.npz"),
    ],
)
def test_an_option_that_makes_no_sense_ends_with_one_sentence(folder, options, message):
    rank = [] if "--rank" in options else ["--rank", "ratio:0.5"]
    assert_one_sentence(call("convert", "in.onnx", "out.onnx", *rank, *options), BAD_USE, message)
    assert files(folder) == ["in.onnx"]


def test_an_unknown_metric_is_refused_with_a_hint():
    assert_one_sentence(
        call("verify", "in.onnx", "in.onnx", "--metric", "cosin"), BAD_USE, "did you mean 'cosine'"
    )


@pytest.mark.parametrize(
    "arguments", [["convert", "in.onnx"], ["convrt"], ["bench"], ["inspect", "in.onnx", "--nope"]]
)
def test_wrong_usage_has_exit_code_2(arguments):
    assert call(*arguments).exit_code == BAD_USE


def test_the_input_cannot_be_the_output(folder):
    before = Path("in.onnx").read_bytes()
    assert_one_sentence(call("convert", "in.onnx", "./in.onnx"), BAD_USE, "is the input itself")
    assert Path("in.onnx").read_bytes() == before


@pytest.mark.parametrize(("output", "message"), [("none/out.onnx", "does not exist"), (".", "is a folder")])
def test_an_output_that_cannot_be_written_is_an_error(folder, output, message):
    assert_one_sentence(call("convert", "in.onnx", output, "--rank", "none"), BAD_MODEL, message)
    assert files(folder) == ["in.onnx"]


def test_an_interrupt_has_its_own_exit_code_and_leaves_nothing(folder, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxdecomp.decomposing.decide", interrupted)
    result = call("convert", "in.onnx", "out.onnx", "--rank", "ratio:0.5")
    assert_one_sentence(result, INTERRUPTED, "nothing was written")
    assert files(folder) == ["in.onnx"]


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "--help"]])
def test_help_imports_none_of_the_heavy_packages(arguments):
    code = (
        "import sys; from typer.testing import CliRunner; from onnxdecomp.cli import app;"
        f"assert CliRunner().invoke(app, {arguments!r}).exit_code == 0;"
        "print([m for m in ('numpy', 'onnx', 'onnxruntime', 'scipy', 'tensorly') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


IMAGES = np.random.default_rng(3).standard_normal((32, 16, 12, 12)).astype(np.float32)
LABELS = np.arange(32) % 24


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ({"y": IMAGES}, [], "unknown input in x.npz 'y':"),
        ({"x": IMAGES[:, :, :5]}, [], "has shape (32, 16, 5, 12), samples on axis 0, and the model takes"),
        ({"x": IMAGES.astype(complex)}, [], "is complex128, and the model takes float32: give it as float32"),
        (
            {"x": IMAGES[:5]},
            ["--max-drop", "0.1"],
            "has 5 samples, too few to fit to or to measure on: give 16",
        ),
        ({"x": np.where(IMAGES > 4, np.nan, IMAGES)}, [], "leave these samples out"),
        ({"x": IMAGES[:0]}, [], "has no samples: give one or more"),
        ({"x": IMAGES, "labels": LABELS[:9]}, ["--eval", "x.npz"], "samples: x 32, labels 9. Give as many"),
        ({"x": IMAGES, "labels": LABELS + 90}, ["--eval", "x.npz"], "Labels go up to 113, and output 'y'"),
        ({"x": IMAGES, "labels": np.eye(32)}, ["--eval", "x.npz"], "top1 takes the number of the class"),
        ({"x": IMAGES}, ["--metric", "top1"], "needs an array 'labels' beside the inputs: give such a file"),
        ({"x": IMAGES}, ["--metric", "os.path:join"], "Metric os.path:join failed with TypeError"),
        ({"x": IMAGES}, ["--metric", "os.path:nope"], "does not name a function as package.module:function"),
    ],
)
def test_samples_that_do_not_fit_end_with_one_sentence(folder, samples, options, message):
    np.savez("x.npz", **samples)
    result = call("convert", "in.onnx", "out.onnx", "--calibration", "x.npz", *options)
    assert_one_sentence(result, BAD_USE, message)
    assert files(folder) == ["in.onnx", "x.npz"]


def test_a_budget_that_cannot_be_met_has_its_own_exit_code_and_writes_nothing(folder):
    np.savez("x.npz", x=IMAGES)
    options = ["--calibration", "x.npz", "--rank", "4", "--metric", "sqnr", "--max-drop", "1e-9"]
    result = call("convert", "in.onnx", "out.onnx", *options)
    assert_one_sentence(result, BUDGET, "of sqnr, more than --max-drop 1e-09")
    assert files(folder) == ["in.onnx", "x.npz"]
    assert call("convert", "in.onnx", "out.onnx", *options, "--force").exit_code == WRITTEN


def test_clustering_and_expanding_from_the_command_line(folder):
    result = call(
        "convert", "in.onnx", "small.onnx", "--rank", "none", "--cluster", "4", "--report", "r.json"
    )
    assert result.exit_code == WRITTEN
    assert "4 weights clustered" in result.stdout
    assert {weight["bits"] for weight in json.loads(Path("r.json").read_text())["weights"]} == {4}
    result = call("expand", "small.onnx", "back.onnx")
    assert result.exit_code == WRITTEN
    assert "4 weights expanded" in result.stdout
    assert files(folder) == ["back.onnx", "in.onnx", "r.json", "small.onnx"]


def test_packing_and_unpacking_from_the_command_line(folder):
    result = call("pack", "in.onnx", "x.odz")
    assert result.exit_code == WRITTEN
    assert "in.onnx packed" in result.stdout
    result = call("unpack", "x.odz", "back.onnx")
    assert result.exit_code == WRITTEN
    assert "back.onnx unpacked" in result.stdout
    assert Path("back.onnx").read_bytes() == Path("in.onnx").read_bytes()


def test_an_altered_packed_file_ends_with_one_sentence(folder):
    call("pack", "in.onnx", "x.odz")
    Path("x.odz").write_bytes(Path("x.odz").read_bytes()[:-1])
    assert_one_sentence(call("unpack", "x.odz", "back.onnx"), BAD_MODEL, "was cut off or altered")
    assert files(folder) == ["in.onnx", "x.odz"]


def test_a_model_without_codebooks_is_said_and_written():
    result = call("expand", "in.onnx", "out.onnx")
    assert result.exit_code == WRITTEN
    assert "The model has no codebook" in result.stdout
    assert Path("out.onnx").exists()


@pytest.mark.parametrize("bits", ["0", "17", "four"])
def test_bits_that_cannot_be_are_refused(bits):
    result = call("convert", "in.onnx", "out.onnx", "--cluster", bits)
    assert_one_sentence(result, BAD_USE, f"--cluster {bits}: give 1 to 16 bits, auto or none.")


def test_a_recipe_may_cluster():
    Path("recipe.toml").write_text('rank = "none"\ncluster = 5\ncluster_group = 16\nopset = 18\n')
    result = call("convert", "in.onnx", "out.onnx", "--recipe", "recipe.toml", "--verify", "layers")
    assert result.exit_code == WRITTEN
    assert "4 weights clustered" in result.stdout
    assert onnx.load("out.onnx").opset_import[0].version == 18


def test_weights_that_are_inputs_too_are_left_alone_unless_they_are_said_to_be_constant():
    proto = onnx.load("in.onnx")
    proto.graph.input.extend(as_input(tensor) for tensor in proto.graph.initializer)
    onnx.save(proto, "listed.onnx")
    kept = call("convert", "listed.onnx", "out.onnx", "--rank", "full", "--report", "kept.json")
    assert "--constant-weights takes such weights for constants" in kept.stdout
    assert onnx.load("out.onnx") == proto
    result = call("convert", "listed.onnx", "out.onnx", "--rank", "full", "--constant-weights")
    assert result.exit_code == WRITTEN
    assert "layers decomposed" in result.stdout
    assert "weights that were inputs too are constants, before as after" in result.stdout
    assert [value.name for value in onnx.load("out.onnx").graph.input] == ["x"]
    assert call("verify", "listed.onnx", "out.onnx", "--tolerance", "1e-3").exit_code == WRITTEN


def test_models_that_end_in_a_count_are_verified_by_what_is_counted():
    proto = onnx.load("in.onnx")
    proto.graph.node.append(onnx.helper.make_node("NonZero", ["y"], ["found"], "count"))
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("found", onnx.TensorProto.INT64, [2, "K"]))
    onnx.save(proto, "counts.onnx")
    result = call("verify", "counts.onnx", "counts.onnx")
    assert result.exit_code == WRITTEN
    assert "sqnr of y on one random input" in result.stdout


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "onnxdecomp", "convert", "--help"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Usage: python -m onnxdecomp convert" in found.stdout
