"""Codebooks on whole networks: accuracy, sizes, load time and latency, beside 8-bit weight-only rivals.

    python -m bench.codebooks [NAME ...] [--bits 6 4 3] [--ways WAY ...] [-o bench/results/codebooks.json]

Nothing is decomposed and nothing is trained. Weights become codebooks of each width three times: fitted to
the unlabelled calibration images, so with a scale for each output channel, and from the weights alone. The
rivals are onnx-shrink-ray (``pip install onnx-shrink-ray``; left out where it is missing), whose weights are
8-bit numbers decoded at load, and onnxruntime's dynamic quantization, which computes with 8-bit weights,
and its MatMulNBits, for networks with MatMul, which decodes blocks of 8-bit weights as it goes.

Accuracy is that on the whole test set, with the paired standard error of the drop. Sizes are stated each by
itself: of the file, packed by `onnxdecomp pack`, and the least that a file of such codebooks can have, which
is ``n bits / 8``, centroids, scales and all else. Models of a network are timed in turn in one run on one
thread; load time and memory come from a fresh process each. Results are written after every network.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx

from bench.networks import RESULTS, Network, calibration, record, recorded
from onnxdecomp.pipeline import convert
from onnxdecomp.runtime.measure import bench

NETWORKS = ("resnet20_cifar", "vgg_cifar", "cifar10_keras")
WAYS = ("fitted", "fitted, channels scaled", "from weights alone")
TIMED_RUNS = 100

Row = dict[str, Any]


def ours(network: Network, folder: Path, bits: int, how: str, path: Path) -> Row:
    """Write a model with codebooks and return what the report says of its sizes."""
    options: dict[str, Any] = {"rank": "none", "cluster": bits, "verify": "none", "cache": "none", "jobs": 1}
    if how != "from weights alone":
        options["calibration"] = str(folder / "calibration.npz")
    if how == "fitted, channels scaled":
        options["cluster_scale"] = "channel"
    report = convert(network.path, path, **options)
    saved = sum(weight.size_bytes.before - weight.size_bytes.after for weight in report.clustered)
    return {"least_bytes": network.path.stat().st_size - saved, "n_clustered": len(report.clustered)}


def shrink_ray(network: Network, path: Path) -> Row:
    """Write the model of onnx-shrink-ray's 8-bit weights."""
    from onnx_shrink_ray.shrink import quantize_weights

    onnx.save(quantize_weights(onnx.load(network.path)), path)
    return {}


def dynamic(network: Network, path: Path) -> Row:
    """Write the model of onnxruntime's dynamic quantization."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(network.path, path, weight_type=QuantType.QUInt8)
    return {}


def n_bits(network: Network, path: Path) -> Row:
    """Write the model of onnxruntime's weight-only MatMul with 8 bits in blocks of 32."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(network.path), bits=8, block_size=32, is_symmetric=True)
    quantizer.process()
    onnx.save(quantizer.model.model, path)
    return {}


def arms(
    network: Network, folder: Path, widths: Sequence[int], ways: Sequence[str]
) -> Iterator[tuple[str, Callable[[Path], Row]]]:
    """Yield what is compared, by name."""
    for bits in widths:
        for how in ways:
            yield (
                f"{bits} bits, {how}",
                lambda path, bits=bits, how=how: ours(network, folder, bits, how, path),
            )
    if find_spec("onnx_shrink_ray"):
        yield "onnx-shrink-ray, 8 bits", partial(shrink_ray, network)
    yield "onnxruntime dynamic, 8 bits", partial(dynamic, network)
    if any(node.op_type == "MatMul" for node in onnx.load(network.path).graph.node):
        yield "onnxruntime MatMulNBits, 8 bits", partial(n_bits, network)


def measured(name: str, widths: Sequence[int], ways: Sequence[str], folder: Path) -> list[Row]:
    """Return a row for every arm of a network."""
    network = Network.load(name)
    np.savez(folder / "calibration.npz", image=calibration(name))
    rows: list[Row] = []
    paths: list[Path] = []
    for arm, make in arms(network, folder, widths, ways):
        path, start = folder / f"{name}{len(paths)}.onnx", perf_counter()
        try:
            row = {"arm": arm, **make(path), "seconds": round(perf_counter() - start, 1)}
            row |= network.accuracy(path)
        except Exception as error:  # noqa: BLE001 - a rival may fail in any way
            print(f"{name}: {arm} failed: {error}", flush=True)
            rows.append({"arm": arm, "failed": str(error).partition("\n")[0]})
            continue
        rows.append(row)
        paths.append(path)
        drop = row["whole_test_set"]
        print(f"{name}: {arm:34} {row['accuracy_after']:.4f}  {drop}", flush=True)
    original, *others = bench([network.path, *paths], n_runs=TIMED_RUNS)
    for row, found in zip((row for row in rows if "failed" not in row), others, strict=True):
        row |= {
            "file_bytes": found.size_bytes,
            "packed_bytes": found.packed_bytes,
            "times_smaller": original.size_bytes / found.size_bytes,
            "load_ms": {"before": original.load_ms, "after": found.load_ms},
            "latency_ms": {"before": original.latency_ms, "after": found.latency_ms},
            "speedup": found.speedup.ratio if found.speedup else None,
            "memory_bytes": {"before": original.peak_memory_bytes, "after": found.peak_memory_bytes},
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NETWORKS)
    parser.add_argument("--bits", nargs="*", type=int, default=[6, 4, 3])
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "codebooks.json")
    options = parser.parse_args()
    networks = recorded(options.output, to_extend=True)
    for name in options.names:
        with tempfile.TemporaryDirectory() as folder:
            networks[name] = measured(name, options.bits, options.ways, Path(folder))
        record(options.output, networks)


if __name__ == "__main__":
    main()
