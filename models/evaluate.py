"""Measure how many test images a network classifies correctly, and compare with its original.

    python -m models.evaluate song_mnist models/song_mnist.onnx
    python -m models.evaluate song_mnist small.onnx --reference models/song_mnist.onnx

The network gets raw pixels 0..255 as (n, channels, height, width); the largest entry of its first output is
its answer. With a reference the difference is printed with its paired standard error: both networks see the
same images, so only those that one gets right and the other wrong make it uncertain.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models import data
from models.command import exit_code
from onnxdecomp.errors import ModelError, UsageError, unknown_name
from onnxdecomp.runtime.evaluate import outputs_over
from onnxdecomp.runtime.feeds import input_specs
from onnxdecomp.runtime.session import read_proto

__all__ = ["TASKS", "Difference", "Samples", "Task", "centre", "difference", "enlarged", "right", "task"]

BATCH = 100
"""Images run at once where the network allows it."""


@dataclass(frozen=True)
class Samples:
    """Labelled images.

    Args:
        images: ``(n, channels, height, width)`` uint8.
        labels: ``(n,)`` int64.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Difference:
    """How much better one network is than another on the same samples.

    Args:
        gain: Share of right answers minus that of the other; negative when it is worse.
        standard_error: Of `gain`, over the choice of the samples.
    """

    gain: float
    standard_error: float


def centre(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Cut the middle out of images: (n, c, h, w) -> (n, c, side, side)."""
    top, left = ((size - side) // 2 for size in images.shape[2:])
    return images[:, :, top : top + side, left : left + side]


def enlarged(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Double the size of images by linear interpolation: (n, c, h, w) -> (n, c, 2 h, 2 w)."""
    pixels = images.astype(np.float32)
    for axis in (2, 3):
        padding = [(1, 1) if number == axis else (0, 0) for number in range(4)]
        before, here, after = (
            np.take(np.pad(pixels, padding, "edge"), range(start, start + pixels.shape[axis]), axis)
            for start in range(3)
        )
        halves = np.stack([0.75 * here + 0.25 * before, 0.75 * here + 0.25 * after], axis + 1)
        shape = [size * (2 if number == axis else 1) for number, size in enumerate(pixels.shape)]
        pixels = halves.reshape(shape)
    return np.rint(pixels).astype(np.uint8)


@dataclass(frozen=True)
class Task:
    """What a network is for.

    Args:
        images: Loads the data set.
        samples: Name of the committed samples, which networks of one task share; empty for none.
        seen: What the network is given of its images.
    """

    images: Callable[[], data.DataSet]
    samples: str = ""
    seen: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = lambda images: images

    def test(self) -> Samples:
        """Return the labelled test images."""
        found = self.images()
        return Samples(self.seen(found.test_images), found.test_labels)


TASKS: dict[str, Task] = {
    "char36": Task(data.char36, "char36"),
    "cifar10_keras": Task(data.cifar10, "cifar10"),
    "resnet20_cifar": Task(data.cifar10, "cifar10"),
    "song_cifar": Task(data.cifar10, "cifar10_crops", partial(centre, side=24)),
    "song_mnist": Task(data.mnist, "mnist"),
    "vgg16_cifar64": Task(data.cifar10, "", enlarged),
    "vgg_cifar": Task(data.cifar10, "cifar10"),
    "vit_fashion": Task(data.fashion_mnist, "fashion_mnist"),
}
"""Tasks by the network they are for."""


def task(name: str) -> Task:
    """Return the task of a network.

    Raises:
        UsageError: There is no such network.
    """
    if name not in TASKS:
        raise unknown_name("network", name, TASKS)
    return TASKS[name]


def right(model: Path, samples: Samples, *, threads: int = 1) -> NDArray[np.bool_]:
    """Return which samples a network classifies correctly, ``(n,)``.

    Raises:
        UsageError: The network takes larger batches than there are samples.
        ModelError: The network cannot run on the images, or does not give one score per class.
    """
    specs = input_specs(read_proto(model))
    if len(specs) != 1:
        raise ModelError(f"{model} has {len(specs)} inputs, {', '.join(specs)}: one image is expected.")
    ((name, spec),) = specs.items()
    feeds = {name: samples.images.astype(spec.dtype)}
    scores = next(iter(outputs_over(model, feeds, threads=threads, batch=BATCH).values()))
    if scores.ndim != 2 or scores.shape[1] <= samples.labels.max():
        raise ModelError(
            f"{model} answers with {scores.shape}: one score for each of {samples.labels.max() + 1} classes "
            "is expected."
        )
    labels = samples.labels[: len(scores)]  # the last samples may not have filled a fixed batch
    return np.asarray(np.argmax(scores, axis=1) == labels)


def difference(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Difference:
    """Return what `after` gains over `before`, given which of the same n samples each gets right.

    The standard error is ``sqrt((p10 + p01 - gain**2) / n)``, where p10 and p01 are the shares of samples
    that one gets right and the other wrong. Equal answers have the error 0.

    Raises:
        UsageError: There are not as many answers of the one as of the other, or none.

    >>> difference(np.array([True, True, True, False]), np.array([True, True, False, False]))
    Difference(gain=-0.25, standard_error=0.21650635094610965)
    """
    if before.shape != after.shape or not before.size:
        raise UsageError(f"Answers to {before.size} and to {after.size} samples cannot be compared.")
    gain = float(np.mean(after) - np.mean(before))
    discordant = float(np.mean(before != after))
    return Difference(gain, float(np.sqrt(max(discordant - gain**2, 0.0) / before.size)))


def _line(model: Path, answers: NDArray[np.bool_]) -> str:
    return f"{model}: {np.mean(answers):.2%} ({np.sum(answers):,} of {answers.size:,} test images)"


def main(arguments: list[str] | None = None) -> int:
    """Print the accuracy of a network and its difference to a reference; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m models.evaluate", description="Top-1 accuracy on the test images of a network."
    )
    parser.add_argument("name", metavar="NAME", help=f"whose test images: {', '.join(TASKS)}")
    parser.add_argument("model", metavar="MODEL.onnx", type=Path)
    parser.add_argument("--reference", metavar="ORIGINAL.onnx", type=Path, help="compare with this network")
    parser.add_argument("--threads", type=int, default=1, help="threads inside an operator (default 1)")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _report(options))


def _report(options: argparse.Namespace) -> None:
    samples = task(options.name).test()
    after = right(options.model, samples, threads=options.threads)
    print(_line(options.model, after))
    if options.reference is not None:
        before = right(options.reference, samples, threads=options.threads)
        found = difference(before, after)
        print(_line(options.reference, before))
        print(f"difference: {100 * found.gain:+.2f} ± {100 * found.standard_error:.2f} percentage points")


if __name__ == "__main__":
    sys.exit(main())
