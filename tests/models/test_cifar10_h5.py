import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from models.cifar10_h5 import build
from onnxdecomp.runtime.session import open_session, run

TOLERANCE = 1e-4


def layer(kind: str, name: str, **config) -> dict:
    return {"class_name": kind, "config": {"name": name, **config}}


LAYERS = [
    layer("InputLayer", "in"),
    layer("Conv2D", "conv", padding="valid", strides=[1, 1], activation="relu"),
    layer("BatchNormalization", "norm", epsilon=1e-3),
    layer("MaxPooling2D", "pool", pool_size=[10, 10], strides=[10, 10]),
    layer("Flatten", "flatten"),
    layer("Dropout", "drop"),
    layer("Dense", "dense", activation="relu"),
]


def write(path: Path, layers: list[dict], weights: dict[str, dict[str, np.ndarray]]) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"config": {"layers": layers}})
        for name, parts in weights.items():
            for part, values in parts.items():
                file[f"model_weights/{name}/{name}/{part}:0"] = values
    return path


@pytest.fixture
def weights() -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    norm = {"gamma": normal(4), "beta": normal(4), "moving_mean": normal(4)}
    return {
        "conv": {"kernel": normal(3, 3, 3, 4), "bias": normal(4)},
        "norm": {**norm, "moving_variance": normal(4) ** 2 + 1},
        "dense": {"kernel": normal(36, 10), "bias": normal(10)},
    }


def as_keras_computes(images: np.ndarray, weights: dict) -> np.ndarray:
    """Compute the network on (N, 32, 32, 3) as Keras defines its layers."""
    conv, norm, dense = weights["conv"], weights["norm"], weights["dense"]
    windows = sliding_window_view(images, (3, 3), (1, 2))  # (N, 30, 30, 3, 3, 3)
    x = np.maximum(np.einsum("nhwcij,ijco->nhwo", windows, conv["kernel"]) + conv["bias"], 0)
    x = (x - norm["moving_mean"]) / np.sqrt(norm["moving_variance"] + 1e-3) * norm["gamma"] + norm["beta"]
    x = x.reshape(len(x), 3, 10, 3, 10, 4).max((2, 4))
    return np.maximum(x.reshape(len(x), -1) @ dense["kernel"] + dense["bias"], 0)


@pytest.mark.parametrize("n_images", [1, 3])
def test_the_built_network_computes_what_keras_does(tmp_path, weights, n_images):
    model = build(write(tmp_path / "net.h5", LAYERS, weights))
    images = np.random.default_rng(1).integers(0, 256, (n_images, 32, 32, 3)).astype(np.float32)
    scores = run(open_session(model), {"image": images.transpose(0, 3, 1, 2)})["scores"]
    expected = as_keras_computes(images, weights)
    assert np.linalg.norm(scores - expected) <= TOLERANCE * np.linalg.norm(expected)


def test_the_same_file_gives_the_same_bytes(tmp_path, weights):
    path = write(tmp_path / "net.h5", LAYERS, weights)
    first, second = (build(path).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("unexpected", "message"),
    [
        (layer("LSTM", "lstm"), "LSTM"),
        (layer("Conv2D", "conv", padding="same", strides=[1, 1]), "valid padding"),
        (layer("Dense", "dense", activation="swish"), "swish"),
    ],
)
def test_a_layer_that_is_not_expected_is_refused(tmp_path, weights, unexpected, message):
    path = write(tmp_path / "net.h5", [*LAYERS[:5], unexpected], weights)
    with pytest.raises(ValueError, match=message):
        build(path)
