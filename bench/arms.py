"""What a user would pick to make a network faster, each within a budget of accuracy.

Ours, with and without INT8; onnxruntime's static INT8 alone; and ranks from the weights alone, by a share of
their energy or by EVBMF as other tools choose them, as strong as the budget allows. The drop that limits the
latter is measured on the labelled images that ours is given as ``--eval``, without a margin for its error.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from bench.networks import Network
from onnxdecomp import convert
from onnxdecomp.config import LayerRule
from onnxdecomp.report.outcome import Report
from onnxdecomp.runtime.int8.prepare import quiet
from onnxdecomp.runtime.samples import batches, load_samples

OURS, OURS_INT8, INT8, ENERGY, EVBMF = (
    "onnxdecomp",
    "onnxdecomp --int8",
    "onnxruntime INT8",
    "energy threshold",
    "Tucker-2, EVBMF",
)
FAMILIES = (OURS, OURS_INT8, INT8, ENERGY, EVBMF)
"""What the arms are counted as: where a family has several, the better one counts."""

FIRST_OPSET = 13
"""Scales per channel need it; below, the quantizer writes a broken model."""

N_PERCENTILE = 64
"""Samples for ranges by percentile, of which onnxruntime keeps all values in memory."""

ENERGIES = tuple(f"energy:{1 - lost:.4f}" for lost in np.geomspace(0.001, 0.7, 64))
WEAKENINGS = tuple(f"evbmf:{count / 64:.6g}" for count in range(1, 65))
"""Ranks that are tried, the weakest first; with 1 the ranks of EVBMF are taken as they are."""

SVD_FOR_MATRICES = {op_type: LayerRule(method="svd") for op_type in ("Gemm", "MatMul")}


@dataclass(frozen=True)
class Made:
    """What an arm made of a network.

    Args:
        path: The model.
        settings: What led to it.
        mac_reduction: How many times fewer MACs its Conv, Gemm and MatMul take.
        notes: Sentences of the tool.
    """

    path: Path
    settings: str
    mac_reduction: float = 1.0
    notes: tuple[str, ...] = ()


Make = Callable[[float, Path], Made]
"""(budget, path to write) -> what was made."""


def arms(network: Network, folder: Path) -> dict[tuple[str, str], Make]:
    """Return what can be tried on a network, by family and variant.

    Args:
        network: The network.
        folder: Where samples and caches are kept meanwhile.
    """
    import_module("onnxruntime.tools.symbolic_shape_infer")  # takes seconds that are not those of an arm
    samples = network.write_samples(folder)
    given = {**samples, "cache": str(folder / "cache")}
    spatial, tucker2 = {"method": "spatial-svd"}, {"method": "tucker2"}
    with_svd = {**tucker2, "op_types": SVD_FOR_MATRICES}
    int8 = {
        method: StaticInt8(network, folder, samples["calibration"], method)
        for method in (CalibrationMethod.MinMax, CalibrationMethod.Percentile)
    }
    return {
        (OURS, ""): lambda max_drop, path: ours(network, path, max_drop=max_drop, **given),
        (OURS_INT8, ""): lambda max_drop, path: ours(network, path, max_drop=max_drop, int8=True, **given),
        **{(INT8, method.name): make for method, make in int8.items()},
        (ENERGY, "any method"): Sweep(network, ENERGIES, {}),
        (ENERGY, "spatial-svd"): Sweep(network, ENERGIES, spatial),
        (EVBMF, "convolutions"): Sweep(network, WEAKENINGS, tucker2),
        (EVBMF, "and matrices by SVD"): Sweep(network, WEAKENINGS, with_svd),
    }


def ours(network: Network, path: Path, **options: Any) -> Made:
    """Convert as a user with data would."""
    report = convert(network.path, path, **options)
    settings = f"{len(report.decomposed)} layers, {len(report.int8)} nodes in INT8"
    return Made(path, settings, mac_reduction(report), tuple(report.notes))


def mac_reduction(report: Report) -> float:
    """Return how many times fewer MACs the layers of a model take."""
    return report.model["macs"].ratio or 1.0


class Sweep:
    """Ranks from the weights alone, the strongest that a budget allows, by bisection.

    Args:
        network: The network.
        ranks: Rank policies, the weakest first.
        options: Other options of `convert`.
    """

    def __init__(self, network: Network, ranks: tuple[str, ...], options: Mapping[str, Any]) -> None:
        self._network, self._ranks, self._options = network, ranks, options
        self._drops: dict[str, float] = {}

    def __call__(self, max_drop: float, path: Path) -> Made:
        """Write the strongest model within a budget; the original where there is none."""

        def drop(rank: str) -> float:
            return self._drop(rank, path)

        tried = len(self._drops)
        if drop(self._ranks[-1]) <= max_drop:
            best = len(self._ranks)
        else:
            best = bisect_right(self._ranks[:-1], max_drop, key=drop)
        tried = len(self._drops) - tried
        if not best:
            copyfile(self._network.path, path)
            return Made(path, f"none of {len(self._ranks)} holds, {tried} tried")
        report = self._convert(self._ranks[best - 1], path)
        settings = f"{self._ranks[best - 1]}, {len(report.decomposed)} layers, {tried} tried"
        return Made(path, settings, mac_reduction(report))

    def _drop(self, rank: str, path: Path) -> float:
        if rank not in self._drops:
            self._convert(rank, path)
            self._drops[rank] = self._network.given_drop(path)
        return self._drops[rank]

    def _convert(self, rank: str, path: Path) -> Report:
        return convert(
            self._network.path,
            path,
            rank=rank,
            allow_slower=True,
            verify="none",
            cache="none",
            **self._options,
        )


class StaticInt8:
    """onnxruntime's static INT8 of the whole model, whatever it loses: the same for every budget.

    Args:
        network: The network.
        folder: Where the model is kept.
        calibration: File of the samples.
        method: How ranges of activations are found.
    """

    def __init__(self, network: Network, folder: Path, calibration: str, method: CalibrationMethod) -> None:
        self._network, self._calibration, self._method = network, calibration, method
        self._path = folder / f"int8-{method.name}.onnx"
        self._prepared = folder / f"prepared-{method.name}.onnx"

    def __call__(self, max_drop: float, path: Path) -> Made:
        """Quantize in the ten lines that onnxruntime's documentation gives."""
        if not self._path.exists():
            with quiet():
                self._quantize()
        return Made(self._path, f"ranges by {self._method.name}")

    def _quantize(self) -> None:
        model = onnx.load(self._network.path)
        if next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) < FIRST_OPSET:
            model = onnx.version_converter.convert_version(model, FIRST_OPSET)
        quant_pre_process(model, self._prepared)
        quantize_static(
            self._prepared,
            self._path,
            Reader(load_samples(self._calibration, model), model, self._method),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            calibrate_method=self._method,
        )


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Samples as onnxruntime asks for them, one batch after the other."""

    def __init__(self, samples: Mapping[str, Any], model: onnx.ModelProto, method: CalibrationMethod) -> None:
        if method != CalibrationMethod.MinMax:
            samples = {name: array[:N_PERCENTILE] for name, array in samples.items()}
        self._feeds = batches(samples, model)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch; None after the last."""
        return next(self._feeds, None)
