"""Convert the reference networks within accuracy budgets, without fine-tuning, and record what came out.

    python -m bench.auto [NAME ...] [--max-drop 0.01 ...]
    python -m bench.auto --max-drop 0.005 0.01 0.02 -o bench/results/budgets.json
    python -m bench.auto --int8 -o FILE
    python -m bench.auto --cluster -o bench/results/compound.json

512 unlabelled training images are fitted to, or as many as ``--images`` says. Half of the test images,
labelled, are what a user would give as ``--eval``: the choice is made and confirmed on them. Accuracy is then
measured on the whole test set and on the half that nothing was chosen on. Latencies of original and result
are interleaved, with one thread and with two. The budgets of a network share a cache that the first of them
finds empty. Networks already in the file of results stay there unless they are named. At the end: where the
drop exceeded its budget, and how much of the reduction of the layers' MACs arrived as speed.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench.networks import N_CALIBRATION, NAMES, RESULTS, VGG_LIKE, Network, record, recorded
from onnxdecomp import convert
from onnxdecomp.errors import OnnxdecompError
from onnxdecomp.report.as_json import plain

Found = dict[str, Any]


def measured(
    network: Network, max_drop: float, after: Mapping[str, Any], folder: Path, samples: Mapping[str, Any]
) -> Found:
    """Convert a network at one budget and return the figures, or why nothing was written.

    Args:
        network: The network.
        max_drop: The budget.
        after: Options of `convert` that say what follows the decomposition: training, INT8 or codebooks.
        folder: Where the cache and the result are put.
        samples: Options of `convert` that name the samples.
    """
    output, cache = folder / "out.onnx", folder / "cache"
    was_empty = not cache.exists()
    start = perf_counter()
    try:
        report = convert(network.path, output, max_drop=max_drop, cache=str(cache), **after, **samples)
    except OnnxdecompError as error:
        return {"max_drop": max_drop, **after, "error": str(error)}
    seconds = round(perf_counter() - start, 1)
    latency = {threads: found["after"] for threads, found in network.latencies({"after": output}).items()}
    return {
        "max_drop": max_drop,
        **after,
        "seconds": seconds,
        "from_empty_cache": was_empty,
        "stages": {stage.name: stage.seconds for stage in report.stages},
        "peak_memory_bytes": report.stages[-1].peak_memory_bytes,
        **network.accuracy(output),
        "reported": plain(report.accuracy),
        "recovered": list(report.recovered),
        "int8_nodes": len(report.int8),
        "methods": {layer.key: [layer.method, list(layer.ranks), layer.fit] for layer in report.decomposed},
        "model": plain(report.model),
        "bits": {weight.name: weight.bits for weight in report.clustered},
        "footprint": plain(report.footprint),
        "latency": latency,
        "notes": report.notes,
    }


def line(found: Found) -> str:
    """Return one conversion as a line."""
    if "error" in found:
        return str(found["error"])
    whole = found["whole_test_set"]
    speedups = ", ".join(f"{found['latency'][threads]['speedup']:.2f}x" for threads in ("1", "2"))
    cache = "empty" if found["from_empty_cache"] else "filled"
    return (
        f"{100 * found['accuracy_before']:.2f} -> {100 * found['accuracy_after']:.2f} % "
        f"({100 * whole['gain']:+.2f} ± {100 * whole['standard_error']:.2f})  "
        f"MACs / {mac_reduction(found):.2f}  faster {speedups} (1, 2 threads)  {sizes(found)}"
        f"{found['seconds']:.0f} s from {cache} cache"
    )


def sizes(found: Found) -> str:
    """Return how many times smaller a file with codebooks is, and packed."""
    if not found["bits"]:
        return ""
    file = found["model"]["bytes"]
    times, packed = (file["before"] / n for n in (file["after"], found["footprint"]["packed_bytes"]))
    return f"{times:.2f}x smaller, {packed:.2f}x packed  "


def mac_reduction(found: Found) -> float:
    """Return how many times fewer MACs the Conv, Gemm and MatMul of the model take."""
    macs = found["model"]["macs"]
    return float(macs["before"] / macs["after"])


def summary(networks: Mapping[str, Sequence[Found]]) -> Found:
    """Return what holds over all conversions.

    A drop exceeds its budget when it does so by more than its standard error on the whole test set. The share
    of the MAC reduction that is measured as speed is the geometric mean over the VGG-like networks of which
    anything was decomposed, on one thread, by budget; INT8 changes no MACs, so it is left out there.
    """
    all_of_them = [(name, found) for name, conversions in networks.items() for found in conversions]
    every = [(name, found) for name, found in all_of_them if "error" not in found]
    shares: dict[float, list[float]] = {}
    for name, found in every:
        if name in VGG_LIKE and found["methods"] and not found.get("int8"):
            share = found["latency"]["1"]["speedup"] / mac_reduction(found)
            shares.setdefault(found["max_drop"], []).append(share)
    lowest = {
        threads: min((found["latency"][threads]["speedup"], name) for name, found in every)
        for threads in (("1", "2") if every else ())
    }
    return {
        "n_conversions": len(every),
        "failed": [[name, found["max_drop"]] for name, found in all_of_them if "error" in found],
        "exceeding": list(_exceeding(every)),
        "speed_per_mac_reduction": {
            str(budget): float(np.exp(np.mean(np.log(found)))) for budget, found in sorted(shares.items())
        },
        "lowest_speedup": {threads: list(found) for threads, found in lowest.items()},
    }


def _exceeding(every: Sequence[tuple[str, Found]]) -> Iterator[list[Any]]:
    for name, found in every:
        whole = found["whole_test_set"]
        if -whole["gain"] - found["max_drop"] > whole["standard_error"]:
            yield [name, found["max_drop"], -whole["gain"], whole["standard_error"]]


def print_summary(found: Found) -> None:
    exceeding = "; ".join(
        f"{name} at {budget:g}: {drop:.4f} ± {error:.4f}" for name, budget, drop, error in found["exceeding"]
    )
    print(
        f"The drop exceeds its budget by more than its standard error in {len(found['exceeding'])} of "
        f"{found['n_conversions']} conversions{': ' if exceeding else ''}{exceeding}"
    )
    for name, budget in found["failed"]:
        print(f"Nothing was written for {name} at {budget:g}")
    for budget, share in found["speed_per_mac_reduction"].items():
        print(f"Speed-up over MAC reduction at {budget}, VGG-like, geometric mean: {share:.2f}")
    for threads, (speedup, name) in found["lowest_speedup"].items():
        print(f"Lowest speed-up with {threads} thread(s): {speedup:.2f}x ({name})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--max-drop", type=float, nargs="+", default=[0.01], metavar="DROP")
    parser.add_argument("--int8", action="store_true", help="with INT8 after decomposition")
    parser.add_argument("--cluster", action="store_true", help="with codebooks after decomposition")
    parser.add_argument("--finetune", type=int, metavar="STEPS", help="with so many steps of training")
    parser.add_argument("--images", type=int, default=N_CALIBRATION, help="unlabelled images to fit to")
    parser.add_argument("--summary", action="store_true", help="only summarize the file of results")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "auto.json")
    arguments = parser.parse_args()
    after: dict[str, Any] = {"int8": True} if arguments.int8 else {}
    after |= {"cluster": "auto"} if arguments.cluster else {}
    after |= {"finetune": arguments.finetune} if arguments.finetune else {}
    results = recorded(arguments.output, to_extend=not arguments.summary)
    for name in () if arguments.summary else arguments.names:
        results[name] = []
        network = Network.load(name)
        with tempfile.TemporaryDirectory() as folder:
            samples = network.write_samples(Path(folder), arguments.images)
            for max_drop in arguments.max_drop:
                found = measured(network, max_drop, after, Path(folder), samples)
                results[name].append({"n_images": arguments.images, **found})
                print(f"{name:16}{max_drop:6}  {line(found)}", flush=True)
                record(arguments.output, results, summary=summary(results))
    print_summary(summary(results))


if __name__ == "__main__":
    main()
