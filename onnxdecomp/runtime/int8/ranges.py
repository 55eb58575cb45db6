"""Find the range of every tensor to quantize, by the calibrators of `onnxruntime.quantization`.

One pass finds smallest and largest values, a second one histograms between them. Ranges that leave out the
rarest values are read off the histograms: a single outlier otherwise takes the steps of all other values.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import (
    HistogramCollector,
    MinMaxCalibrater,
    PercentileCalibrater,
    TensorsData,
)

from onnxdecomp.runtime.session import Array, Feeds, open_session

ALL = 100.0
"""Percentage of the values that lie inside a range from the smallest to the largest."""

PERCENTAGES = (ALL, 99.999, 99.99)
"""Percentages of the values inside the ranges that are offered. None of them is best for all networks."""

N_BINS = 2048
"""Bins of a histogram, from minus to plus the largest absolute value."""

Ranges = dict[str, tuple[Array, Array]]
"""Lower and upper end by tensor, scalars in float32."""


class _Reader:
    """A `CalibrationDataReader` of feeds."""

    def __init__(self, feeds: Iterable[Feeds]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        feeds = next(self._feeds, None)
        return None if feeds is None else dict(feeds)


def find_ranges(
    proto: onnx.ModelProto, tensors: Iterable[str], feeds: Sequence[Feeds], threads: int = 1
) -> dict[float, Ranges]:
    """Return the ranges of tensors over all feeds, for each of `PERCENTAGES`.

    Memory holds the tensors of one feed. Tensors that are not float, or not finite, are missing.

    Args:
        proto: The model, with inferred types.
        tensors: Names of tensors.
        feeds: Inputs to run, each complete.
        threads: Threads inside an operator.

    Raises:
        ModelError: onnxruntime cannot run the model with these tensors as outputs.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        onnx.save(proto, path)
        chosen = set(tensors)
        whole = _min_max(path, chosen, feeds, threads)
        collector = _histograms(path, whole, feeds, threads)
    ranges = {ALL: whole}
    for percentage in PERCENTAGES:
        if percentage != ALL and whole:
            collector.percentile = percentage
            found = collector.compute_collection_result()
            ranges[percentage] = {
                name: (_scalar(low), _scalar(high)) for name, (low, high, *_) in found.items()
            }
    return ranges


def tensors_data(ranges: Ranges) -> TensorsData:
    """Return ranges as the quantizer takes them; it changes what it is given."""
    return TensorsData(CalibrationMethod.MinMax, dict(ranges))


def _min_max(path: Path, tensors: set[str], feeds: Sequence[Feeds], threads: int) -> Ranges:
    calibrator = _opened(MinMaxCalibrater, path, tensors, threads)
    for feed in feeds:
        calibrator.collect_data(_Reader([feed]))
    found = {name: data.range_value for name, data in calibrator.compute_data().items()}
    ranges = {name: (_scalar(low), _scalar(high)) for name, (low, high) in found.items()}
    return {name: pair for name, pair in ranges.items() if np.all(np.isfinite(pair))}


def _histograms(path: Path, whole: Ranges, feeds: Sequence[Feeds], threads: int) -> HistogramCollector:
    """Return histograms of the tensors over their whole ranges.

    The calibrator by itself starts from the first feed and adds bins of the same width for what lies outside,
    any number of them.
    """
    calibrator = _opened(PercentileCalibrater, path, set(whole), threads)
    collector = HistogramCollector("percentile", False, N_BINS, N_BINS, ALL, "same")
    for name, (low, high) in whole.items():
        limit = np.maximum(np.abs(low), np.abs(high))
        edges = np.linspace(-limit, limit, N_BINS + 1, dtype=np.float32)
        collector.histogram_dict[name] = (np.zeros(N_BINS, np.int64), edges, low, high, limit)
    calibrator.collector = collector
    for feed in feeds if whole else ():
        calibrator.collect_data(_Reader([feed]))
    return collector


def _opened(kind: Callable[..., Any], path: Path, tensors: set[str], threads: int) -> Any:
    """Return a calibrator of `tensors` alone, with a session that is silent and keeps to `threads`."""
    augmented = path.with_name(f"{kind.__name__}.onnx")
    calibrator = kind(path, augmented_model_path=str(augmented))
    select = calibrator.select_tensors_to_calibrate

    def selected(model: onnx.ModelProto) -> tuple[list[str], Any]:
        found, values = select(model)
        return sorted(tensors & found), values

    calibrator.select_tensors_to_calibrate = selected
    calibrator.augment_graph()
    calibrator.infer_session = open_session(augmented, optimize=False, threads=threads)
    return calibrator


def _scalar(value: Array) -> Array:
    return np.asarray(value, np.float32).reshape(())
