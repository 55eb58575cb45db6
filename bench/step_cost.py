"""What a step of fine-tuning costs beside the same network written natively in torch.

    python -m bench.step_cost [--networks vgg_cifar resnet20_cifar song_cifar] [--threads 1 2]
                              [-o bench/results/step_cost.json]

A step is forward, cross-entropy, backward and AdamW on all weights, with a batch of random images. The native
network is the module that the reference network was trained as, BatchNormalization folded into convolutions
as it is in the file. Both take turns.
"""

import argparse
import json
from collections import OrderedDict
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from bench.networks import RESULTS, model_path
from models.train.training import as_deployed
from onnxdecomp.graph.io import load
from onnxdecomp.runtime.latency import paired_speedup, time_interleaved
from onnxdecomp.runtime.machine import environment
from onnxdecomp.tune.network import Network
from onnxdecomp.tune.train import computing

NETWORKS = ("vgg_cifar", "resnet20_cifar", "song_cifar")
BATCH = 32
N_RUNS, MAX_SECONDS = 40, 120.0


def native(name: str) -> nn.Module:
    """Return the untrained network as it is exported, without BatchNormalization."""
    network: nn.Sequential = import_module(f"models.train.{name}").network()
    plain = nn.Sequential(OrderedDict((key, as_deployed(part)) for key, part in network.named_children()))
    found: nn.Module = fuse(plain.eval())
    return found


def stepping(score: Callable[[], Tensor], parameters: list[Tensor], labels: Tensor) -> Callable[[], None]:
    """Return what takes one step."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(score(), labels).backward()
        optimizer.step()

    return step


def measured(name: str, threads: int) -> dict[str, Any]:
    """Return milliseconds of a step of both, and their ratio."""
    model = load(model_path(name))
    (image,), (scores,) = model.proto.graph.input, model.proto.graph.output
    shape = [axis.dim_value for axis in image.type.tensor_type.shape.dim][1:]
    images, labels = 255 * torch.rand(BATCH, *shape), torch.zeros(BATCH, dtype=torch.int64)
    interpreted, module = Network(model), native(name)
    interpreted.train_only(interpreted.parameters)
    own, theirs = list(interpreted.parameters.values()), list(module.parameters())
    sizes = [sum(tensor.numel() for tensor in tensors) for tensors in (own, theirs)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{name} has {sizes[0]} weights, its module {sizes[1]}: they are not the same network"
        )
    with computing(threads):
        steps = {
            "native": stepping(lambda: module(images), theirs, labels),
            "interpreted": stepping(lambda: interpreted({image.name: images})[scores.name], own, labels),
        }
        found = time_interleaved(steps, n_runs=N_RUNS, max_seconds=MAX_SECONDS)
    ratio = paired_speedup(found["interpreted"].samples_ms, found["native"].samples_ms)
    return {
        "network": name,
        "threads": threads,
        "batch": BATCH,
        **{f"{way}_ms": {"median": one.median_ms, "spread": one.spread_ms} for way, one in found.items()},
        "interpreted_over_native": {"ratio": ratio.ratio, "low": ratio.low, "high": ratio.high},
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    parser.add_argument("--threads", nargs="*", type=int, default=(1, 2))
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "step_cost.json")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.networks:
        for threads in arguments.threads:
            rows.append(measured(name, threads))
            ratio = rows[-1]["interpreted_over_native"]
            milliseconds = [rows[-1][f"{way}_ms"]["median"] for way in ("native", "interpreted")]
            print(
                f"{name:16} {threads} threads  native {milliseconds[0]:.1f} ms, interpreted "
                f"{milliseconds[1]:.1f} ms: {ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
                flush=True,
            )
    result = {"environment": environment(1) | {"torch": version("torch")}, "rows": rows}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
