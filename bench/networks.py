"""What the benchmarks of accuracy share: networks, samples for a tool, and how a result is measured.

Half of the test images, labelled, are what a user would give as ``--eval``; accuracy is measured on all of
them and on the half that nothing was chosen on. Unlabelled samples to fit to come from the training images.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data import cifar10
from models.evaluate import Samples, difference, enlarged, right, task
from models.fetch import cache_folder, fetch
from onnxdecomp.report.as_json import plain
from onnxdecomp.runtime.latency import paired_speedup, time_interleaved
from onnxdecomp.runtime.machine import environment
from onnxdecomp.runtime.session import open_session, run

MODELS = Path(__file__).parents[1] / "models"
RESULTS = Path(__file__).parent / "results"

VGG_LIKE = ("vgg_cifar", "vgg16_cifar64", "cifar10_keras", "song_cifar", "char36")
"""Plain chains of convolutions, whose time is that of their multiplications."""

NAMES = (*VGG_LIKE, "resnet20_cifar", "song_mnist", "vit_fashion")
"""The reference networks."""

N_CALIBRATION = 512

THREADS = 2
"""Threads that accuracy is measured with."""

TIMED_RUNS = 300
TIMED_SECONDS = 90.0
"""Rounds of an interleaved timing, and its most time for one number of threads."""

TIMED_SAMPLE_MS = 2.0
"""A small network runs again and again until a sample takes this long, so that what ran before it matters
less."""


def model_path(name: str) -> Path:
    """Return where a network lies; `models.train.vgg16_cifar64` puts the one that is not committed there."""
    if name == "cifar10_keras":
        return fetch(name)
    if name == "vgg16_cifar64":
        return cache_folder() / "reference" / f"{name}.onnx"
    return MODELS / f"{name}.onnx"


def calibration(name: str, n_images: int = N_CALIBRATION) -> NDArray[np.uint8]:
    """Return unlabelled training images of a network; those of most are committed, and no more of them."""
    if task(name).samples and n_images == N_CALIBRATION:
        with np.load(MODELS / "calibration" / f"{task(name).samples}.npz") as arrays:
            return np.asarray(arrays["image"])
    if task(name).samples:
        raise ValueError(f"{name} has {N_CALIBRATION} images to fit to, not {n_images}")
    images = cifar10().train_images
    chosen = np.random.default_rng(0).choice(len(images), n_images, replace=False)
    return enlarged(images[chosen])


@dataclass(frozen=True)
class Network:
    """A network with its test images.

    Args:
        name: Its name.
        path: Where it lies.
        test: All test images.
        given: Which of them a tool may see, ``(n,)``.
        before: Which of them the network classifies correctly, ``(n,)``.
    """

    name: str
    path: Path
    test: Samples
    given: NDArray[np.bool_]
    before: NDArray[np.bool_]

    @classmethod
    def load(cls, name: str) -> "Network":
        """Load a network by name and measure it."""
        path, test = model_path(name), task(name).test()
        given = np.random.default_rng(1).permutation(len(test.labels)) < len(test.labels) // 2
        return cls(name, path, test, given, right(path, test, threads=THREADS))

    def write_samples(self, folder: Path, n_calibration: int = N_CALIBRATION) -> dict[str, Any]:
        """Write what a tool is given and return it as options of `convert`."""
        files = {name: str(folder / f"{name}.npz") for name in ("calibration", "evaluation")}
        np.savez(files["calibration"], image=calibration(self.name, n_calibration))
        images, labels = self.test.images[self.given], self.test.labels[self.given]
        np.savez(files["evaluation"], image=images, labels=labels)
        return files

    def given_drop(self, model: Path) -> float:
        """Return what a model loses on the images that a tool may see."""
        seen = Samples(self.test.images[self.given], self.test.labels[self.given])
        return float(np.mean(self.before[self.given]) - np.mean(right(model, seen, threads=THREADS)))

    def accuracy(self, model: Path) -> dict[str, Any]:
        """Return how a model does on all test images, and on the halves that were and were not given."""
        after = right(model, self.test, threads=THREADS)
        parts: dict[str, Any] = {
            "whole_test_set": slice(None),
            "given_half": self.given,
            "unseen_half": ~self.given,
        }
        return {
            "accuracy_before": float(self.before.mean()),
            "accuracy_after": float(after.mean()),
            **{name: plain(difference(self.before[part], after[part])) for name, part in parts.items()},
        }

    def latencies(self, models: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
        """Time models against the original, all of them in turn in one run, with one thread and with two."""
        return {str(threads): self._latencies(models, threads) for threads in (1, 2)}

    def _latencies(self, models: Mapping[str, Path], threads: int) -> dict[str, Any]:
        feeds = {"image": self.test.images[:1].astype(np.float32)}
        sessions = [open_session(path, threads=threads) for path in (self.path, *models.values())]
        runs = {str(number): partial(run, session, feeds) for number, session in enumerate(sessions)}
        original, *others = time_interleaved(
            runs, n_runs=TIMED_RUNS, max_seconds=TIMED_SECONDS, min_sample_ms=TIMED_SAMPLE_MS
        ).values()
        found = {}
        for name, timing in zip(models, others, strict=True):
            speedup = paired_speedup(original.samples_ms, timing.samples_ms)
            found[name] = {
                "median_ms": {"before": original.median_ms, "after": timing.median_ms},
                "spread_ms": {"before": original.spread_ms, "after": timing.spread_ms},
                "speedup": speedup.ratio,
                "speedup_low": speedup.low,
                "speedup_high": speedup.high,
                "n_runs": timing.n_runs,
            }
        return found


def recorded(path: Path, *, to_extend: bool = False) -> dict[str, Any]:
    """Return what a file of results holds of each network.

    Args:
        path: The file; it need not be there.
        to_extend: Return nothing when another machine or other versions wrote the file.
    """
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return {} if to_extend and found["environment"] != environment(1) else dict(found["networks"])


def record(path: Path, networks: Mapping[str, Any], **more: Any) -> None:
    """Write results by network, with machine and versions."""
    text = json.dumps({"environment": environment(1), **more, "networks": networks}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
