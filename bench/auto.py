"""Convert the reference networks within accuracy budgets, without fine-tuning, and record what came out.

    python -m bench.auto [NAME ...] [--max-drop 0.01 ...]
    python -m bench.auto --int8 -o bench/results/auto_int8.json

512 unlabelled training images are fitted to. Half of the test images, labelled, are what a user would give
as ``--eval``: the choice is made and confirmed on them. Accuracy is then measured on the whole test set and
on the half that nothing was chosen on. Latencies of original and result are interleaved, with one thread and
with two.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from models.data import cifar10
from models.evaluate import difference, enlarged, right, task
from models.fetch import cache_folder, fetch
from onnxdecomp import convert
from onnxdecomp.proof import compare_latency
from onnxdecomp.report.as_json import plain
from onnxdecomp.runtime.machine import environment

MODELS = Path(__file__).parents[1] / "models"
RESULT = Path(__file__).parent / "results" / "auto.json"
NAMES = (
    "vgg_cifar",
    "char36",
    "resnet20_cifar",
    "song_mnist",
    "cifar10_keras",
    "song_cifar",
    "vit_fashion",
)
"""Networks by default; `vgg16_cifar64`, which `models.train.vgg16_cifar64` builds, can be named."""

N_CALIBRATION = 512


def model_path(name: str) -> Path:
    """Return where a network lies."""
    if name == "cifar10_keras":
        return fetch(name)
    if name == "vgg16_cifar64":
        return cache_folder() / "reference" / f"{name}.onnx"
    return MODELS / f"{name}.onnx"


def calibration(name: str) -> np.ndarray:
    """Return unlabelled training images of a network."""
    if task(name).samples:
        with np.load(MODELS / "calibration" / f"{task(name).samples}.npz") as arrays:
            return np.asarray(arrays["image"])
    images = cifar10().train_images
    chosen = np.random.default_rng(0).choice(len(images), N_CALIBRATION, replace=False)
    return enlarged(images[chosen])


def measured(name: str, max_drop: float, int8: bool, folder: Path) -> dict[str, Any]:
    """Convert one network at one budget and return the figures."""
    path, output, test = model_path(name), folder / "out.onnx", task(name).test()
    given = np.random.default_rng(1).permutation(len(test.labels)) < len(test.labels) // 2
    np.savez(folder / "calibration.npz", image=calibration(name))
    np.savez(folder / "evaluation.npz", image=test.images[given], labels=test.labels[given])
    report = convert(
        path,
        output,
        calibration=str(folder / "calibration.npz"),
        evaluation=str(folder / "evaluation.npz"),
        max_drop=max_drop,
        int8=int8,
        cache="none",
    )
    before, after = right(path, test), right(output, test)
    feeds = {"image": test.images[:1].astype(np.float32)}
    return {
        "max_drop": max_drop,
        "int8": int8,
        "seconds": round(sum(stage.seconds for stage in report.stages), 1),
        "peak_memory_bytes": report.stages[-1].peak_memory_bytes,
        "accuracy_before": float(before.mean()),
        "accuracy_after": float(after.mean()),
        "whole_test_set": plain(difference(before, after)),
        "unseen_half": plain(difference(before[~given], after[~given])),
        "reported": plain(report.accuracy),
        "recovered": list(report.recovered),
        "int8_nodes": len(report.int8),
        "methods": {layer.key: [layer.method, list(layer.ranks), layer.fit] for layer in report.decomposed},
        "model": plain(report.model),
        "latency": {threads: plain(compare_latency(path, output, feeds, threads)) for threads in (1, 2)},
        "notes": report.notes,
    }


def summary(found: dict[str, Any]) -> str:
    """Return one conversion as a line."""
    whole, macs = found["whole_test_set"], found["model"]["macs"]
    speedups = ", ".join(f"{found['latency'][threads]['speedup']:.2f}x" for threads in (1, 2))
    return (
        f"{100 * found['accuracy_before']:.2f} -> {100 * found['accuracy_after']:.2f} % "
        f"({100 * whole['gain']:+.2f} ± {100 * whole['standard_error']:.2f})  MACs / "
        f"{macs['before'] / macs['after']:.2f}  faster {speedups} (1, 2 threads)  {found['seconds']:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--max-drop", type=float, nargs="+", default=[0.01])
    parser.add_argument("--int8", action="store_true", help="with INT8 after decomposition")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    for name in arguments.names:
        for max_drop in arguments.max_drop:
            with tempfile.TemporaryDirectory() as folder:
                found = measured(name, max_drop, arguments.int8, Path(folder))
            results.setdefault(name, []).append(found)
            print(f"{name:16}{max_drop:6}  {summary(found)}", flush=True)
            text = json.dumps({"environment": environment(1), "networks": results}, indent=1)
            arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
