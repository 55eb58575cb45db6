"""Models in all the ways that files hold them, for the tests of packing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from tests.graph.codebooks import random_codebook, with_codebooks
from tests.graph.models import normal, parse

SHAPE = (24, 24, 5, 5)


def dense_model() -> onnx.ModelProto:
    """Return a convolution with a large weight and a bias."""
    return parse(
        "g (float[1, 24, 8, 8] x) => (float[1, 24, 4, 4] y) { y = Conv(x, w, b) }",
        {"w": normal(*SHAPE), "b": normal(24)},
    )


def clustered_model(bits: int, opset: int = 17) -> onnx.ModelProto:
    """Return the convolution with its weight as a codebook."""
    model = dense_model()
    model.opset_import[0].version = opset
    model.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for(model.opset_import))
    codebook = random_codebook(SHAPE, bits)
    n_centroids = codebook.centroids.shape[1]
    rng = np.random.default_rng(bits)
    sizes = np.repeat(rng.uniform(0, 0.5, (24, 24)), 25).reshape(SHAPE)  # neighbours are of like size
    places = np.clip(0.5 + sizes * rng.uniform(-1, 1, SHAPE), 0, 1)
    indices = np.rint(places * (n_centroids - 1))
    return with_codebooks(model, {"w": replace(codebook, indices=indices.astype(codebook.indices.dtype))})


def external_model(folder: Path, location: str = "data/weights.bin") -> Path:
    """Write the convolution with its numbers in a file of a folder below, behind bytes of no tensor."""
    model = dense_model()
    (folder / location).parent.mkdir(parents=True, exist_ok=True)
    with (folder / location).open("wb") as data:
        data.write(b"not a tensor")
        for tensor in model.graph.initializer:
            start = data.tell()
            data.write(tensor.raw_data)
            entries = {"location": location, "offset": start, "length": len(tensor.raw_data)}
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
        data.write(np.arange(7, dtype=np.uint8).tobytes())
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path
