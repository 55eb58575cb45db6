"""Convert the reference networks with and without taking channels out, and record what both bring.

    python -m bench.pruning [NAME ...] [--max-drop 0.005 0.01 0.02]

512 unlabelled training images are fitted to, half of the labelled test images are what a user would give as
``--eval``, accuracy is then measured on the whole test set. All models of a network are timed in turn in one
run, on one thread and on two. Conversions of a network share a cache. At the end: speed-up with over speed-up
without, in geometric mean, and the points lost by both, on average. Networks already in the file of results
stay there unless they are named.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.networks import N_CALIBRATION, RESULTS, Network, record, recorded
from onnxdecomp import convert

NAMES = ("vgg_cifar", "cifar10_keras", "song_cifar", "char36", "resnet20_cifar")
WAYS: Mapping[str, tuple[str, ...]] = {"with": (), "without": ("pruning",)}

Found = dict[str, Any]


def converted(network: Network, budgets: Sequence[float], folder: Path) -> list[Found]:
    """Convert a network at some budgets in both ways and return the figures."""
    samples = network.write_samples(folder, N_CALIBRATION)
    outputs, found = {}, []
    for max_drop in budgets:
        for way, left_out in WAYS.items():
            label = f"{way} {max_drop:g}"
            outputs[label] = folder / f"{label}.onnx"
            report = convert(
                network.path,
                outputs[label],
                max_drop=max_drop,
                without=left_out,
                cache=str(folder / "cache"),
                **samples,
            )
            pruned = {layer.key: list(layer.pruned_shape) for layer in report.layers if layer.pruned_shape}
            figures = {"max_drop": max_drop, "way": way, "label": label, "pruned": pruned}
            found.append({**figures, **network.accuracy(outputs[label])})
    latencies = network.latencies(outputs)
    for one in found:
        one["latency"] = {threads: timed[one["label"]] for threads, timed in latencies.items()}
        whole, speedup = one["whole_test_set"], one["latency"]["1"]["speedup"]
        points = f"({100 * whole['gain']:+.2f} ± {100 * whole['standard_error']:.2f})"
        print(f"{network.name:16}{one['label']:14} {points}  {speedup:.2f}x  {one['pruned']}", flush=True)
    return found


def summary(networks: Mapping[str, Sequence[Found]]) -> Found:
    """Return, by budget, how much faster the models with fewer channels are, and what both lose."""
    every = [(name, one) for name, found in networks.items() for one in found]
    told = {}
    for budget in sorted({one["max_drop"] for _, one in every}):
        by_way = {
            way: {name: one for name, one in every if (one["max_drop"], one["way"]) == (budget, way)}
            for way in WAYS
        }
        ratios = [
            one["latency"]["1"]["speedup"] / by_way["without"][name]["latency"]["1"]["speedup"]
            for name, one in by_way["with"].items()
        ]
        lost = {
            way: float(-np.mean([one["whole_test_set"]["gain"] for one in found.values()]))
            for way, found in by_way.items()
        }
        told[f"{budget:g}"] = {"faster": float(np.exp(np.mean(np.log(ratios)))), "mean_drop": lost}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--max-drop", type=float, nargs="+", default=[0.005, 0.01, 0.02], metavar="DROP")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "pruning.json")
    arguments = parser.parse_args()
    results = recorded(arguments.output, to_extend=True)
    for name in arguments.names:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = converted(Network.load(name), arguments.max_drop, Path(folder))
        record(arguments.output, results, summary=summary(results))
    for budget, told in summary(results).items():
        lost = ", ".join(f"{100 * drop:.2f} points {way}" for way, drop in told["mean_drop"].items())
        print(f"At {budget}: {told['faster']:.3f} times as fast, {lost}")


if __name__ == "__main__":
    main()
