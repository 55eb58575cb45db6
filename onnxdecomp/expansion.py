"""`expand`: dense weights in place of codebooks, for runtimes without the operators that decode them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onnxdecomp.config import Config
from onnxdecomp.errors import ModelError, UsageError, VerificationError
from onnxdecomp.graph.expand import expand as expand_proto
from onnxdecomp.graph.io import Model, ModelWriter, load
from onnxdecomp.proof import EXACT_ERROR, VERIFIED_FEEDS
from onnxdecomp.report.outcome import BeforeAfter
from onnxdecomp.runtime.compare import verify_models
from onnxdecomp.runtime.session import Model as RuntimeModel
from onnxdecomp.selection import model_inputs


@dataclass
class Expansion:
    """What `expand` did.

    Args:
        names: The weights that are dense again; none where the model holds no codebook.
        size_bytes: Of the model with its data.
        output_error: Largest relative error of an output against the model with codebooks; None when
            nothing was expanded or the models could not be run.
        notes: Sentences the user should read.
        proto: The expanded model, when there was no output path.
    """

    names: tuple[str, ...]
    size_bytes: BeforeAfter
    output_error: float | None = None
    notes: tuple[str, ...] = ()
    proto: Any = None


def expand(
    source: str | Path | onnx.ModelProto, output: str | Path | None = None, *, config: Config | None = None
) -> Expansion:
    """Write a model with dense weights in place of its codebooks; the outputs are equal.

    A model without codebooks is written as it is.

    Args:
        source: Path of the model, or a model in memory.
        output: Path to write; None keeps the result in `Expansion.proto`.
        config: `calibration`, `shapes`, `threads` and `seed` count, for the comparison of the outputs.

    Raises:
        ModelError: The model cannot be read or written, or its codebooks were altered.
        UsageError: The output is the input itself, or samples do not fit.
        VerificationError: The outputs differ; nothing was written.
    """
    model = load(source)
    if output is not None and model.path and model.path.resolve() == Path(output).resolve():
        raise UsageError(f"'{output}' is the input itself: give the output another name.")
    with ModelWriter(model, output) as writer:
        found = expand_proto(model, writer.add_tensor)
        staged = writer.stage(found.proto)
        size = BeforeAfter(model.size_bytes, writer.size_bytes)
        error: float | None = None
        notes: tuple[str, ...] = ("The model has no codebook: it is written as it is.",)
        if found.names:
            error, notes = _compared(model, staged, config or Config())
        writer.publish()
        return Expansion(found.names, size, error, notes, writer.result)


def _compared(model: Model, expanded: RuntimeModel, config: Config) -> tuple[float | None, tuple[str, ...]]:
    """Return the largest relative error of an output; or why there is none, as a note."""
    source = model.path or model.proto
    try:
        feeds = model_inputs(source, config, VERIFIED_FEEDS)
        check = verify_models(source, expanded, feeds, tolerance=EXACT_ERROR, threads=config.threads)
    except ModelError as error:
        return None, (f"The models were not run: {error}",)
    if not check.passed:
        raise VerificationError(" ".join([*check.problems, "Nothing was written."]))
    return check.worst, ()
