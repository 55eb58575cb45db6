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
    n_right: int
    """Of the committed test images."""
    accuracy: str
    """On the whole test set, as the README says it."""


NETWORKS = {
    "char36": Network("677bf27eb96d5f83a88f9fece310103f77a5e7bf9564b277ece5053ea218ab6a", 928, "93.28 %"),
    "resnet20_cifar": Network(
        "eb8098467d8f11face737cc2d849da34be1da3f64e558b4f16b4caebc24f43aa", 897, "90.78 %"
    ),
    "resnet20_cifar_bn": Network(
        "454230f371c02b7a9dcb8a8507538bf674c16cb4587ed79423b98eed801cdc2b", 897, "90.78 %"
    ),
    "song_cifar": Network("37e05593aa2fc5af21567d9109858db31a77c1935442dc19ef06b01a1d7ebb2b", 730, "76.41 %"),
    "song_mnist": Network("7dabe0c9af8e37b61b6c5eeca036416871b53da9a753789143ef85b765f1f0df", 997, "99.52 %"),
    "vgg_cifar": Network("99ffa999dd3f98912806b137ef9a8a09474ea02f114db99e4247eda2e4405df8", 915, "92.07 %"),
    "vit_fashion": Network(
        "2f55871b8475314005f7baa30ce411bf3acb2e1b4b012ab4a5044c71033895f7", 880, "86.07 %"
    ),
}

SAMPLES = {
    "char36": (
        "5946efce7e4d9221b0be8eb4390296b94cd7050c518ae81089cde62fcf3b329a",
        "3c79496655ebdaf3a43878e6ce7d8d3b5b9705034ecdbcfe87d8b69bc00d6f02",
    ),
    "cifar10": (
        "ce22c6d03b2cc254e8dee627f8cc6dffb22fe9969992f4f8c6b67c3914f8b0f9",
        "7245e2cf46e53ae30ea9982964c1435abf974a6c9852f31496df6186ccac3590",
    ),
    "cifar10_crops": (
        "ef976b655b0c19d267734f6bd0bd5ccf2aa7b9aeba5e483750644f9f081ab862",
        "1503b01698035cccdf586532e40397b7e1946ee3672cb84c523c974e8c70a923",
    ),
    "fashion_mnist": (
        "1a573f01dc1471d3572cd416814c3e16f72d1acf915185e9373bc953bee909ec",
        "22ab9d9594283b40ece7d002f70e762a2fa6b08fc881a0525a21b927eb4db53f",
    ),
    "mnist": (
        "852e69dddab4a73b43f66b7e480fc08d5a72741fa3861e50ad7f7656867044f5",
        "b5a62e14f579f90ba2819164f5824fafe40e388584ee1174aaa9943be5443b86",
    ),
}
"""SHA-256 of calibration and evaluation samples."""

every_network = pytest.mark.parametrize("name", NETWORKS)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def network_path(name: str) -> Path:
    return MODELS / f"{name}.onnx"


def samples_name(name: str) -> str:
    return TASKS[name.removesuffix("_bn")].samples


def evaluation(name: str) -> Samples:
    """Return the committed test images of a network."""
    with np.load(MODELS / "evaluation" / f"{samples_name(name)}.npz") as arrays:
        return Samples(arrays["image"], arrays["labels"])


def test_no_network_is_committed_that_is_not_checked_here():
    assert {path.stem for path in MODELS.glob("*.onnx")} == NETWORKS.keys()
    assert {path.stem for path in MODELS.glob("train/*.csv")} == {n.removesuffix("_bn") for n in NETWORKS}


@pytest.mark.parametrize("folder", ["calibration", "evaluation"])
def test_no_samples_are_committed_that_are_not_checked_here(folder):
    assert {path.stem for path in MODELS.glob(f"{folder}/*.npz")} == SAMPLES.keys()
    assert {samples_name(name) for name in NETWORKS} == SAMPLES.keys()


@every_network
def test_the_network_is_the_one_that_was_measured(name):
    assert digest(network_path(name)) == NETWORKS[name].sha256


@pytest.mark.parametrize("name", SAMPLES)
def test_the_samples_are_those_that_were_measured_on(name):
    files = (MODELS / "calibration" / f"{name}.npz", MODELS / "evaluation" / f"{name}.npz")
    assert tuple(map(digest, files)) == SAMPLES[name]


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
    samples = load_samples(
        MODELS / "calibration" / f"{samples_name(name)}.npz", onnx.load(network_path(name))
    )
    assert samples.keys() == {"image"}
    calibration = {image.astype(np.uint8).tobytes() for image in samples["image"]}
    assert len(calibration) == 512
    assert not calibration & {image.tobytes() for image in evaluation(name).images}


@every_network
def test_every_network_has_a_whole_test_set(name):
    assert name.removesuffix("_bn") in TASKS


@pytest.mark.parametrize("name", [name for name in NETWORKS if f"{name}_bn" in NETWORKS])
def test_batch_normalization_is_folded_in_one_file_and_kept_in_the_other(name):
    folded, kept = (
        {node.op_type for node in onnx.load(network_path(n)).graph.node} for n in (name, f"{name}_bn")
    )
    assert "BatchNormalization" in kept
    assert kept - folded <= {"BatchNormalization", "Identity"}
    answers = [right(network_path(n), evaluation(n)) for n in (name, f"{name}_bn")]
    assert np.mean(answers[0] == answers[1]) >= 1 - ROUNDING / 1000


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
