"""Samples for models that run on one at a time only, though they do not say so."""

from collections.abc import Mapping

import numpy as np
import onnx

from onnxdecomp.errors import ModelError
from onnxdecomp.runtime.samples import LABELS, batch_sizes, batches
from onnxdecomp.runtime.session import Array, Model, open_session, read_proto, run


def as_taken(samples: Mapping[str, Array], model: Model) -> dict[str, Array]:
    """Return samples as the model takes them: as they are, or each as a whole input.

    Exporters leave the axis of samples open in models that were traced with one sample and reshape to that.
    Two samples are run to find out, and one where that fails or puts out the row of one. A model with a batch
    of its own, and samples that are whole inputs already, are not run.

    Args:
        samples: As `load_samples` returns them.
        model: The model or its path.

    Returns:
        The samples; where the model runs on a single one only, with an axis of one behind that of samples.

    Raises:
        ModelError: onnxruntime cannot run the model on one of them either.
    """
    proto = read_proto(model)
    inputs = {name: array[:2] for name, array in samples.items() if name != LABELS}
    if batch_sizes(inputs, proto, 2) != [2]:
        return dict(samples)
    session = open_session(model, threads=0)
    two, one = (next(batches(inputs, proto, size)) for size in (2, 1))
    try:
        if not _is_of_one(run(session, two), proto):
            return dict(samples)
    except ModelError:
        pass
    try:
        run(session, one)
    except ModelError as error:
        raise ModelError(
            f"{error} Where axis 0 of its inputs is not one of samples, give each sample as a whole input: "
            "arrays with one axis more than the model's inputs."
        ) from error
    return {name: array if name == LABELS else np.expand_dims(array, 1) for name, array in samples.items()}


def _is_of_one(outputs: Mapping[str, Array], proto: onnx.ModelProto) -> bool:
    """Tell whether the first output has one row, as is declared of it, whatever the number of samples."""
    declared = proto.graph.output[0].type.tensor_type.shape.dim
    is_declared = len(declared) > 1 and declared[0].dim_value == 1
    return is_declared and np.shape(next(iter(outputs.values())))[:1] == (1,)
