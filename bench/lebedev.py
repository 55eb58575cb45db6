"""Lebedev's experiment: the second and third convolution of `char36` by CP, then fine-tuning.

    python -m bench.lebedev [--ranks 96 64 48] [--steps 1500] [-o bench/results/lebedev.json]

CP of the two weights from numbers alone, found by damped Gauss-Newton (NLS), by alternating least squares and
greedily, at the same ranks; then distilled from the original on unlabelled training images. Accuracy is that
on all test images, with the standard error of the paired difference to the original; latencies are those of
the whole network, interleaved with the original. Training stops by images of its own.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.networks import RESULTS, Network
from models.data import char36
from onnxdecomp import convert, finetune
from onnxdecomp.runtime.machine import environment
from onnxdecomp.tune.settings import Settings

LAYERS = ("/conv2*", "/conv3*")
METHODS = ("cp3", "cp3/als", "cp3/greedy")
N_HELD_OUT, BATCH = 1024, 64

Images = NDArray[np.float32]


def images(epoch: int) -> Iterator[dict[str, Images]]:
    """Yield batches of training images in an order of their own for each epoch."""
    data = char36().train_images
    order = np.random.default_rng(epoch).permutation(len(data) - N_HELD_OUT) + N_HELD_OUT
    for start in range(0, len(order) - BATCH + 1, BATCH):
        yield {"image": data[order[start : start + BATCH]].astype(np.float32)}


def held_out() -> dict[str, Images]:
    """Return images that are not among those."""
    return {"image": char36().train_images[:N_HELD_OUT].astype(np.float32)}


def row(network: Network, method: str, rank: int, steps: int, folder: Path) -> dict[str, Any]:
    """Return the figures of one decomposition, before and after fine-tuning."""
    student, tuned = folder / "student.onnx", folder / "tuned.onnx"
    report = convert(
        network.path,
        student,
        rank=str(rank),
        method=method,
        include=LAYERS,
        verify="none",
        allow_slower=True,
        cache="none",
    )
    start = perf_counter()
    settings = Settings(
        calibration="bench.lebedev:images", held_out="bench.lebedev:held_out", steps=steps, batch=BATCH
    )
    found = finetune(student, tuned, teacher=network.path, settings=settings)
    seconds = round(perf_counter() - start, 1)
    latencies = network.latencies({"after": tuned})
    return {
        "method": method,
        "rank": rank,
        "macs_ratio": report.model["macs"].ratio,
        "weight_errors": {layer.key: layer.weight_error for layer in report.decomposed},
        "speedup": {threads: entry["after"]["speedup"] for threads, entry in latencies.items()},
        "before": network.accuracy(student),
        "after": network.accuracy(tuned),
        "best_step": found.best_step,
        "seconds": seconds,
    }


def line(found: dict[str, Any]) -> str:
    """Return a row as a line."""
    before, after = (found[name]["whole_test_set"]["gain"] for name in ("before", "after"))
    return (
        f"{found['method']:12} rank {found['rank']:3}  MACs / {found['macs_ratio']:.2f}  "
        f"{100 * before:+.2f} -> {100 * after:+.2f} points  faster {found['speedup']['1']:.2f}x, "
        f"{found['speedup']['2']:.2f}x (1, 2 threads)  {found['seconds']:.0f} s"
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ranks", nargs="*", type=int, default=(96, 64, 48))
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "lebedev.json")
    arguments = parser.parse_args()
    network = Network.load("char36")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for rank, method in product(arguments.ranks, arguments.methods):
            rows.append(row(network, method, rank, arguments.steps, Path(folder)))
            print(line(rows[-1]), flush=True)
            machine = environment(1) | {"torch": version("torch")}
            result = {"environment": machine, "steps": arguments.steps, "rows": rows}
            arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
