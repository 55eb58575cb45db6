"""The networks that are committed: what they are, and that they still do what the README says."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.evaluate import TASKS, Samples, right
from onnxdecomp.graph.find import find_layers
from onnxdecomp.graph.io import load
from onnxdecomp.runtime.samples import load_samples

MODELS = Path(__file__).parents[2] / "models"

MAX_BYTES = 6_000_000
MAX_TOGETHER_BYTES = 20_000_000

ROUNDING = 2
"""Images of 1,000 on which another processor may round to another answer."""


@dataclass(frozen=True)
class Network:
    sha256: str
    calibration_sha256: str
    evaluation_sha256: str
    n_right: int
    accuracy: str
    """On the whole test set, as the README says it."""


NETWORKS = {
    "song_mnist": Network(
        "7dabe0c9af8e37b61b6c5eeca036416871b53da9a753789143ef85b765f1f0df",
        "852e69dddab4a73b43f66b7e480fc08d5a72741fa3861e50ad7f7656867044f5",
        "b5a62e14f579f90ba2819164f5824fafe40e388584ee1174aaa9943be5443b86",
        997,
        "99.52 %",
    ),
}

every_network = pytest.mark.parametrize("name", NETWORKS)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def network_path(name: str) -> Path:
    return MODELS / f"{name}.onnx"


def evaluation(name: str) -> Samples:
    with np.load(MODELS / "evaluation" / f"{name}.npz") as arrays:
        return Samples(arrays["image"], arrays["labels"])


@pytest.mark.parametrize("pattern", ["*.onnx", "calibration/*.npz", "evaluation/*.npz", "train/*.csv"])
def test_nothing_is_committed_that_is_not_checked_here(pattern):
    assert {path.stem for path in MODELS.glob(pattern)} == NETWORKS.keys()


@every_network
def test_the_files_are_those_that_were_measured(name):
    known = NETWORKS[name]
    assert digest(network_path(name)) == known.sha256
    assert digest(MODELS / "calibration" / f"{name}.npz") == known.calibration_sha256
    assert digest(MODELS / "evaluation" / f"{name}.npz") == known.evaluation_sha256


@every_network
def test_the_model_is_valid_and_has_a_free_batch(name):
    model = onnx.load(network_path(name))
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version >= 17
    for value, axes in ((model.graph.input[0], 4), (model.graph.output[0], 2)):
        dims = value.type.tensor_type.shape.dim
        assert (dims[0].dim_param, len(dims)) == ("N", axes)


@every_network
def test_the_model_says_nothing_of_the_machine_it_was_trained_on(name):
    model = onnx.load(network_path(name))
    assert not any(part.doc_string or part.metadata_props for part in (model, *model.graph.node))


def test_the_files_are_small():
    sizes = [path.stat().st_size for path in MODELS.glob("*.onnx")]
    assert max(sizes) <= MAX_BYTES
    assert sum(sizes) <= MAX_TOGETHER_BYTES


@every_network
def test_the_model_still_recognizes_the_committed_test_images(name):
    answers = right(network_path(name), evaluation(name))
    assert len(answers) == 1000
    assert abs(int(answers.sum()) - NETWORKS[name].n_right) <= ROUNDING


@every_network
def test_the_calibration_samples_fit_the_model_and_are_not_evaluated_on(name):
    samples = load_samples(MODELS / "calibration" / f"{name}.npz", onnx.load(network_path(name)))
    assert samples.keys() == {"image"}
    calibration = {image.astype(np.uint8).tobytes() for image in samples["image"]}
    assert len(calibration) == 512
    assert not calibration & {image.tobytes() for image in evaluation(name).images}


@every_network
def test_every_network_has_a_whole_test_set(name):
    assert name in TASKS


@every_network
def test_the_readme_states_accuracy_parameters_and_work(name):
    (row,) = [
        line
        for line in (MODELS / "README.md").read_text().splitlines()
        if line.startswith(f"| `{name}` | ") and " % | " in line
    ]
    model = load(network_path(name))
    n_params = sum(int(np.prod(tensor.dims)) for tensor in model.proto.graph.initializer)
    n_macs = sum(group.layer.n_macs or 0 for group in find_layers(model).groups)
    for number in (NETWORKS[name].accuracy, f"{n_params:,}", f"{n_macs:,}", f"{model.size_bytes:,}"):
        assert f"| {number} |" in row
