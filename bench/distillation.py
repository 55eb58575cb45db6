"""Networks at a third of their MACs: what conversion leaves, and what `onnxdecomp finetune` wins back.

    python -m bench.distillation [--networks resnet20_cifar vgg_cifar] [--ways ...] [--steps 4000]
                                 [--threads 2] [--folder DIR] [-o bench/results/distillation.json]

A network is converted to a share of its MACs: from weights alone, fitted to data, and recovered. The last is
fine-tuned towards the original, without labels: on the 512 samples it was fitted to, or on all other training
images, mirrored and shifted; there also towards what the original of each replaced layer puts out; and with
labels in addition. Conversion measures on 1,000 test images, training sees none. Accuracy is that on all
10,000 test images, with the standard error of the paired difference to the original. Conversions that stand
in the folder are not made again.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.networks import MODELS, RESULTS, Network
from models.data import cifar10
from onnxdecomp import convert, finetune
from onnxdecomp.report.as_json import report_json
from onnxdecomp.runtime.machine import environment
from onnxdecomp.tune.settings import Settings

NETWORKS = ("resnet20_cifar", "vgg_cifar")
CALIBRATION = MODELS / "calibration" / "cifar10.npz"
EVALUATION = MODELS / "evaluation" / "cifar10.npz"

SHARES = (0.33,)
"""Shares of the MACs."""

LATER = ("bias", "relu", "asymmetric", "affine")
"""Steps of recovery."""

CONVERSIONS = {
    "weights only": ("whitening", "refit", "joint", *LATER),
    "fitted to data": ("refit", "joint", *LATER),
    "converted": (),
}
"""What is left out of fitting; the last one is fine-tuned. Layers and ranks are chosen with data in each."""

N_HELD_OUT = 256
"""Images that training stops by. Conversion was not fitted to them: on those it was, nothing looks better."""

BATCH, THREADS = 32, 2
MAX_SHIFT = 4

WAYS: dict[str, dict[str, Any]] = {
    "512 images": {"calibration": str(CALIBRATION)},
    "augmented": {
        "calibration": "bench.distillation:augmented",
        "held_out": "bench.distillation:held_out",
    },
    "augmented, matched": {
        "calibration": "bench.distillation:augmented",
        "held_out": "bench.distillation:held_out",
        "match": ("auto",),
    },
    "augmented, labels": {
        "calibration": "bench.distillation:labelled",
        "held_out": "bench.distillation:labelled_held_out",
        "loss": ("kl", "cross-entropy:0.5"),
    },
}

Images = NDArray[np.uint8]


@cache
def training_images() -> tuple[Images, NDArray[np.int64], NDArray[np.int64]]:
    """Return training images, their labels, and which of them conversions were not fitted to, shuffled."""
    data = cifar10()
    with np.load(CALIBRATION) as arrays:
        known = {image.tobytes() for image in arrays["image"]}
    new = [row for row, image in enumerate(data.train_images) if image.tobytes() not in known]
    return data.train_images, data.train_labels, np.random.default_rng(0).permutation(new)


def augmented(epoch: int) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield batches of images, mirrored and shifted by chance."""
    for batch in labelled(epoch):
        del batch["labels"]
        yield batch


def labelled(epoch: int) -> Iterator[dict[str, Any]]:
    """Yield the same with their labels."""
    images, labels, new = training_images()
    rng = np.random.default_rng(epoch)
    rows = rng.permutation(new[N_HELD_OUT:])
    for start in range(0, len(rows) - BATCH + 1, BATCH):
        chosen = rows[start : start + BATCH]
        moved = np.stack([_moved(image, rng) for image in images[chosen]])
        yield {"image": moved.astype(np.float32), "labels": labels[chosen]}


def held_out() -> dict[str, NDArray[np.float32]]:
    """Return images that are not among those."""
    return {"image": labelled_held_out()["image"]}


def labelled_held_out() -> dict[str, Any]:
    """Return the same with their labels."""
    images, labels, new = training_images()
    rows = new[:N_HELD_OUT]
    return {"image": images[rows].astype(np.float32), "labels": labels[rows]}


def _moved(image: Images, rng: np.random.Generator) -> Images:
    """Mirror an image or not, and shift it, reflected at its border."""
    side = image.shape[-1]
    padded = np.pad(image, ((0, 0), (MAX_SHIFT, MAX_SHIFT), (MAX_SHIFT, MAX_SHIFT)), "reflect")
    top, left = rng.integers(0, 2 * MAX_SHIFT + 1, 2)
    cut = padded[:, top : top + side, left : left + side]
    return cut[:, :, ::-1] if rng.random() < 0.5 else cut


def converted(network: Network, share: float, student: Path, without: tuple[str, ...]) -> dict[str, Any]:
    """Convert a network unless that was done before, and return what to know of it."""
    told = student.with_suffix(".json")
    if not student.exists():
        samples = {"calibration": str(CALIBRATION), "evaluation": str(EVALUATION)}
        options: dict[str, Any] = {**samples, "without": without}
        report = convert(
            network.path, student, target_macs=share, max_drop=1.0, verify="none", jobs=1, **options
        )
        told.write_text(report_json(report), encoding="utf-8")
    report = json.loads(told.read_text(encoding="utf-8"))
    return {"network": network.name, "share": share, "macs": report["model"]["macs"]}


def measured(network: Network, model: Path) -> dict[str, Any]:
    """Return the accuracy of a model and of the original on all test images."""
    found = network.accuracy(model)
    return {key: found[key] for key in ("accuracy_before", "accuracy_after", "whole_test_set")}


def rows(
    name: str, share: float, ways: Sequence[str], steps: int, threads: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """Yield the figures of a network: converted with more and more of fitting, then fine-tuned."""
    network = Network.load(name)
    for conversion, without in CONVERSIONS.items():
        student = folder / f"{name}-{share}-{conversion.replace(' ', '-')}.onnx"
        about = converted(network, share, student, without)
        yield {**about, "way": conversion, **measured(network, student)}
    for way in ways:
        options = WAYS[way]
        output = folder / "out.onnx"
        settings = Settings(steps=steps, batch=BATCH, threads=threads, **options)
        start = perf_counter(), process_time()
        found = finetune(student, output, teacher=network.path, settings=settings)
        took = perf_counter() - start[0], process_time() - start[1]
        yield {
            **about,
            "way": way,
            "seconds": round(took[0], 1),
            "cpu_seconds": round(took[1], 1),
            "threads": threads,
            "temperature": settings.temperature,
            "loss": found.loss,
            "steps": found.n_steps,
            "best_step": found.best_step,
            "held_out": {"before": found.held_out.before, "after": found.held_out.after},
            "notes": list(found.notes),
            **measured(network, output),
        }


def line(row: dict[str, Any]) -> str:
    """Return a row as a line."""
    return (
        f"{row['network']:16} {row['share']:.2f} {row['way']:40} {row['accuracy_before']:.2%} -> "
        f"{row['accuracy_after']:.2%} {row.get('seconds', 0):7.0f} s"
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    parser.add_argument("--shares", nargs="*", type=float, default=SHARES)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=tuple(WAYS))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--folder", type=Path, help="Keeps the conversions.")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "distillation.json")
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for name, share in product(arguments.networks, arguments.shares):
            for row in rows(name, share, arguments.ways, arguments.steps, arguments.threads, folder):
                found.append(row)
                print(line(row), flush=True)
                machine = environment(arguments.threads) | {"torch": version("torch")}
                result = {"environment": machine, "rows": found}
                arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
