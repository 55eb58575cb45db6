"""Which samples are for what: to fit, to choose, and to confirm the choice on."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from onnxdecomp.config import Config
from onnxdecomp.errors import TooFewSamplesError, UsageError
from onnxdecomp.runtime.rows import part, split_rows
from onnxdecomp.runtime.samples import LABELS, load_samples
from onnxdecomp.runtime.session import Array, Model, read_proto
from onnxdecomp.runtime.single import as_taken

Samples = Mapping[str, Array]

SHARES = (0.5, 0.25, 0.25)
"""Shares of the calibration samples to fit, to choose and to confirm, when no others are given."""

CHOOSING_SHARE, FEW_TO_CHOOSE = 1 / 3, 1000
"""Share of the evaluation samples to choose on; half of them where that share would be fewer than so many.

A choice is told from others by what many choices show together, and is confirmed by what it loses itself.
"""

MIN_SAMPLES = 16
"""Fewer calibration samples do not say anything."""

BATCH, MIN_BATCHES = 8, 4
"""Samples run at once, fewer where that leaves too few batches: as fast as more on one thread, little memory,
and something for each job to do."""


@dataclass(frozen=True)
class Parts:
    """Samples in disjoint parts.

    Args:
        fit: What factorizations are fitted to; no labels.
        choose: What candidates are compared on.
        confirm: What the choice is confirmed on.
        description: For reports: where the numbers of accuracy come from.
        are_alike: Whether all parts are of one draw.
    """

    fit: Samples
    choose: Samples
    confirm: Samples
    description: str
    are_alike: bool = False


def read_parts(config: Config, model: Model) -> Parts:
    """Read and part the samples that a configuration names.

    With evaluation samples all calibration samples are fitted to; without, half of them.

    Raises:
        TooFewSamplesError: There are fewer than `MIN_SAMPLES`.
        UsageError: The samples do not fit the model.
        ModelError: onnxruntime cannot run the model on one of them.
    """
    assert config.calibration is not None
    proto = read_proto(model)
    calibration = load_samples(config.calibration, proto)
    n_samples = count(calibration)
    if n_samples < MIN_SAMPLES:
        raise TooFewSamplesError(
            f"{config.calibration} has {n_samples} samples, too few to fit to or to measure on: give "
            f"{MIN_SAMPLES} or more, better a few hundred."
        )
    calibration = as_taken(calibration, model)
    if config.evaluation is None:
        fit, choose, confirm = split_rows(n_samples, SHARES, config.seed)
        return Parts(
            part(calibration, fit),
            part(calibration, choose),
            part(calibration, confirm),
            f"{len(choose)} and {len(confirm)} calibration samples set aside",
            are_alike=True,
        )
    labelled = as_taken(load_evaluation(config.evaluation, proto), model)
    n = count(labelled)
    share = max(CHOOSING_SHARE, min(0.5, FEW_TO_CHOOSE / n))
    choose, confirm = split_rows(n, (share, 1.0 - share), config.seed)
    return Parts(
        calibration,
        part(labelled, choose),
        part(labelled, confirm),
        f"{len(choose)} and {len(confirm)} evaluation samples",
    )


def needs_samples(config: Config) -> bool:
    """Tell whether something was asked for that cannot be told without samples."""
    asked = (config.max_drop, config.evaluation)
    chosen = config.has_target or config.int8 or config.cluster == "auto"
    return chosen or any(value is not None for value in asked)


def load_evaluation(source: str, model: onnx.ModelProto) -> dict[str, Array]:
    """Return evaluation samples, with their labels if there are any.

    Raises:
        UsageError: They do not fit the model, or the labels are not as many as the samples.
    """
    try:
        return load_samples(source, model, labels=True)
    except UsageError as error:
        if f"no array '{LABELS}'" not in str(error):
            raise
    return load_samples(source, model)


def without_labels(samples: Samples) -> Samples:
    """Return what a model is given of samples."""
    return {name: array for name, array in samples.items() if name != LABELS}


def batch_of(samples: Samples) -> int:
    """Return how many of some samples are run at once."""
    return min(BATCH, max(1, count(samples) // MIN_BATCHES))


def count(samples: Samples) -> int:
    """Return the number of samples."""
    return len(next(iter(samples.values())))
