"""A classifier of two layers, the same with a layer cut to a low rank, and samples for both."""

from pathlib import Path

import numpy as np
import onnx

from tests.graph.models import normal, parse

N_SAMPLES = 256

TEACHER = (
    "g (float[N,16] x) => (float[N,5] y) { h = MatMul(x, w) c = Add(h, b) r = Relu(c) y = MatMul(r, v) }"
)
STUDENT = """g (float[N,16] x) => (float[N,5] y)
    { t = MatMul(x, w0) h = MatMul(t, w1) c = Add(h, b) r = Relu(c) y = MatMul(r, v) }"""


def teacher() -> onnx.ModelProto:
    """Return the original."""
    return parse(TEACHER, {"w": _weight(), "b": normal(24), "v": normal(24, 5)})


def student(rank: int = 4) -> onnx.ModelProto:
    """Return the original with its first matrix cut to a rank, by its singular values alone."""
    left, values, right = np.linalg.svd(_weight(), full_matrices=False)
    roots = np.sqrt(values[:rank])
    factors = {"w0": left[:, :rank] * roots, "w1": roots[:, None] * right[:rank]}
    arrays = {name: array.astype(np.float32) for name, array in factors.items()}
    return parse(STUDENT, {**arrays, "b": normal(24), "v": normal(24, 5)})


def samples(n: int = N_SAMPLES) -> dict[str, np.ndarray]:
    """Return inputs and what the teacher would say of them."""
    x = normal(n, 16) * np.linspace(0.1, 2, 16, dtype=np.float32)
    y = np.maximum(x @ _weight() + normal(24), 0) @ normal(24, 5)
    return {"x": x, "labels": y.argmax(1)}


def write(folder: Path) -> None:
    """Write both models and the samples, without and with labels."""
    onnx.save(teacher(), folder / "teacher.onnx")
    onnx.save(student(), folder / "student.onnx")
    found = samples()
    np.savez(folder / "x.npz", x=found["x"])
    np.savez(folder / "labelled.npz", **found)


def _weight() -> np.ndarray:
    return normal(16, 24) / np.float32(4)
