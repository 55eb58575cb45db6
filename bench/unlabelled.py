"""Convert the reference networks with unlabelled samples alone, and see how many answers really change.

    python -m bench.unlabelled [NAME ...] [--max-drop 0.01 ...] [--seed 0 ...]
                               [-o bench/results/unlabelled.json]

512 images without labels are all that a tool is given: half are fitted to, a quarter is chosen on, a quarter
confirms. So a budget is one of agreement with the original, of which 256 images tell. They are test images,
drawn anew for each seed, since of images that a network was trained on fewer answers change; how many do is
then counted on the other test images. Latencies of original and result are interleaved, on one thread. The
budgets of a network and seed share a cache that the first of them finds empty. Networks already in the file
of results stay there unless they are named.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.networks import N_CALIBRATION, NAMES, RESULTS, THREADS, Network, record, recorded
from onnxdecomp import convert
from onnxdecomp.errors import OnnxdecompError
from onnxdecomp.report.as_json import plain
from onnxdecomp.runtime.evaluate import outputs_over

Found = dict[str, Any]


def answers(model: Path, network: Network) -> NDArray[np.intp]:
    """Return the class that a model names for each test image, ``(n,)``."""
    samples = {"image": network.test.images.astype(np.float32)}
    (scores, *_) = outputs_over(model, samples, threads=THREADS).values()
    return np.asarray(np.argmax(scores, axis=1))


def measured(network: Network, original: NDArray[np.intp], max_drop: float, seed: int, folder: Path) -> Found:
    """Convert a network at one budget and return the figures, or why nothing was written.

    Args:
        network: The network.
        original: Its answers.
        max_drop: The budget of agreement.
        seed: Of the draw of the samples, and of which of them are for what.
        folder: Where samples, cache and result are put.
    """
    output, labels = folder / "out.onnx", network.test.labels
    given = np.zeros(len(labels), bool)
    given[np.random.default_rng(seed).choice(len(labels), N_CALIBRATION, replace=False)] = True
    samples = folder / f"samples-{seed}.npz"
    np.savez(samples, image=network.test.images[given])
    options = {"calibration": str(samples), "cache": str(folder / f"cache-{seed}")}
    start = perf_counter()
    try:
        report = convert(network.path, output, max_drop=max_drop, seed=seed, **options)
    except OnnxdecompError as error:
        return {"max_drop": max_drop, "seed": seed, "error": str(error)}
    seconds = round(perf_counter() - start, 1)
    before, after = original[~given], answers(output, network)[~given]
    changed, labels = float(np.mean(before != after)), labels[~given]
    return {
        "max_drop": max_drop,
        "seed": seed,
        "seconds": seconds,
        "changed": changed,
        "standard_error": sqrt(changed * (1 - changed) / len(labels)),
        "lost_top1": float(np.mean(before == labels) - np.mean(after == labels)),
        "reported": plain(report.accuracy),
        "macs": plain(report.model)["macs"],
        "latency": network.latencies({"after": output})["1"]["after"],
        "notes": report.notes,
    }


def line(found: Found) -> str:
    """Return one conversion as a line."""
    if "error" in found:
        return str(found["error"])
    return (
        f"budget {100 * found['max_drop']:.1f}, seed {found['seed']}: "
        f"{100 * found['changed']:.2f} ± {100 * found['standard_error']:.2f} % of the answers change, "
        f"{100 * found['lost_top1']:+.2f} points of top-1 lost, {found['latency']['speedup']:.2f}x faster, "
        f"{found['seconds']:.0f} s"
    )


def summary(networks: Mapping[str, Sequence[Found]]) -> dict[str, Found]:
    """Return by budget which conversions exceed it by more than the standard error, the most answers that
    change, and the geometric mean of the speed-ups.
    """
    every = [(name, found) for name, several in networks.items() for found in several if "error" not in found]
    return {
        str(budget): {
            "n_conversions": len(these),
            "exceeding": [
                [name, found["seed"], found["changed"], found["standard_error"]]
                for name, found in these
                if found["changed"] - found["standard_error"] > budget
            ],
            "most_changed": max(found["changed"] for _, found in these),
            "speedup": float(np.exp(np.mean([np.log(found["latency"]["speedup"]) for _, found in these]))),
        }
        for budget in sorted({found["max_drop"] for _, found in every})
        if (these := [(name, found) for name, found in every if found["max_drop"] == budget])
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--max-drop", type=float, nargs="+", default=[0.01, 0.02])
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "unlabelled.json")
    arguments = parser.parse_args()
    networks = recorded(arguments.output, to_extend=True)
    for name in arguments.names or [name for name in NAMES if name != "vgg16_cifar64"]:
        network, found = Network.load(name), []
        original = answers(network.path, network)
        with tempfile.TemporaryDirectory() as folder:
            for seed in arguments.seed:
                for max_drop in arguments.max_drop:
                    found.append(measured(network, original, max_drop, seed, Path(folder)))
                    print(f"{name}: {line(found[-1])}", flush=True)
        networks[name] = found
        record(arguments.output, networks, summary=summary(networks))
    for budget, told in summary(networks).items():
        print(
            f"Budget {budget}: {len(told['exceeding'])} of {told['n_conversions']} conversions exceed it by "
            f"more than the standard error; {100 * told['most_changed']:.2f} % change at the most; "
            f"{told['speedup']:.2f}x faster in geometric mean"
        )


if __name__ == "__main__":
    main()
