"""Samples for a model from a file, a folder or a function, checked before anything runs."""

import zlib
from collections.abc import Iterator, Mapping
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxdecomp.errors import UsageError, unknown_name
from onnxdecomp.runtime.feeds import InputSpec, input_specs, written
from onnxdecomp.runtime.session import Array

LABELS = "labels"
"""Name of the array of labels beside the inputs in a file of samples."""


def load_samples(source: str | Path, model: onnx.ModelProto, *, labels: bool = False) -> dict[str, Array]:
    """Read samples for every input of a model.

    Each array is ``(n, ...)``: either axis 0 is the model's own batch axis, or, for inputs whose batch is
    not on axis 0, each entry is a whole input. `batches` tells them apart.

    Args:
        source: An ``.npz`` keyed by input name, a folder of ``.npy`` named by input, or
            ``package.module:function`` that returns such a dictionary.
        model: The model the samples are for.
        labels: Also return the array ``labels``, which must then be there.

    Raises:
        UsageError: The source cannot be read, or a name, a shape, a type or a value does not fit.
    """
    return check_samples(_read_arrays(source), source, model, labels=labels)


def check_samples(
    arrays: Mapping[str, Array], source: str | Path, model: onnx.ModelProto, *, labels: bool = False
) -> dict[str, Array]:
    """Return arrays for every input of a model, in its element types; see `load_samples`.

    Args:
        arrays: The arrays by input name.
        source: Where they come from, for messages.
        model: The model the samples are for.
        labels: Also return the array ``labels``, which must then be there.

    Raises:
        UsageError: A name, a shape, a type or a value does not fit.
    """
    specs = input_specs(model)
    wanted = [*specs, LABELS] if labels else list(specs)
    for name in arrays:
        if name not in specs and name != LABELS:
            raise unknown_name(f"input in {source}", name, wanted)
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise UsageError(f"{source} has no array '{missing[0]}': it needs {', '.join(wanted)}.")
    arrays = _repeated(arrays, specs)
    samples = {name: _fitting(arrays[name], spec, source) for name, spec in specs.items()}
    if labels and LABELS not in specs:
        samples[LABELS] = arrays[LABELS]
    counts = {name: len(array) for name, array in samples.items()}
    if len(set(counts.values())) > 1:
        raise UsageError(
            f"{source} has different numbers of samples: {_listed(counts)}. Give as many of each, in the "
            "same order; where axis 0 of an input is not one of samples, whole inputs on an axis before it."
        )
    if not all(counts.values()):
        raise UsageError(f"{source} has no samples: give one or more, better a few hundred.")
    return samples


def batches(
    samples: Mapping[str, Array], model: onnx.ModelProto, size: int = 32
) -> Iterator[dict[str, Array]]:
    """Yield complete feeds, in order, of at most `size` samples each.

    A fixed batch axis sets the size; samples that do not fill a last batch of it are dropped. Where any
    array has one axis more than its input, every feed is one entry. Arrays of different lengths, which no
    file of samples has, are one feed as they are.

    Raises:
        UsageError: There are fewer samples than the model's fixed batch.
    """
    specs = input_specs(model)
    sizes = batch_sizes(samples, model, size)
    if sizes is None:
        yield {name: samples[name] for name in specs}
        return
    whole, start = _whole(samples, specs), 0
    for step in sizes:
        yield {n: samples[n][start, ...] if n in whole else samples[n][start : start + step] for n in specs}
        start += step


def batch_sizes(samples: Mapping[str, Array], model: onnx.ModelProto, size: int = 32) -> list[int] | None:
    """Return how many samples are in each feed of `batches`; None where arrays have different lengths.

    Raises:
        UsageError: There are fewer samples than the model's fixed batch.
    """
    specs = input_specs(model)
    lengths = {len(samples[name]) if np.ndim(samples[name]) else None for name in specs}
    n_samples = lengths.pop() if len(lengths) == 1 else None
    if n_samples is None:
        return None
    if _whole(samples, specs):
        return [1] * n_samples
    fixed = _fixed_batch(specs)
    if fixed and n_samples < fixed:
        raise UsageError(f"The model takes batches of {fixed} samples and there are {n_samples}.")
    step = fixed or size
    rest = 0 if fixed else n_samples % step
    return [step] * (n_samples // step) + [rest] * bool(rest)


def _whole(samples: Mapping[str, Array], specs: Mapping[str, InputSpec]) -> set[str]:
    """Return the inputs that take one entry of their array as it is."""
    return {name for name, spec in specs.items() if samples[name].ndim > len(spec.shape)}


def _fixed_batch(specs: Mapping[str, InputSpec]) -> int:
    """Return the size of the batch that a model is fixed to, 0 where it is not."""
    sizes = (spec.shape[0] for spec in specs.values() if spec.shape)
    return max((size for size in sizes if isinstance(size, int)), default=0)


def load_function(reference: str) -> Any:
    """Return the function that ``package.module:function`` names.

    Raises:
        UsageError: The module or the function does not exist.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"'{reference}' does not name a function as package.module:function: {error}."
        ) from error


def call_function(reference: str, **given: Any) -> Any:
    """Return what the function returns that ``package.module:function`` names.

    Args:
        reference: The function.
        **given: Handed to those of its parameters that have these names.

    Raises:
        UsageError: The function does not exist, or it raised an exception.
    """
    function = load_function(reference)
    try:
        known = {name: value for name, value in given.items() if name in signature(function).parameters}
        return function(**known)
    except UsageError:
        raise
    except Exception as error:  # whatever a function of the user raises
        raise function_failed(reference, error) from error


def function_failed(reference: str, error: Exception) -> UsageError:
    """Return the error for a function of the user that raised an exception."""
    return UsageError(f"{reference} failed with {type(error).__name__}: {error}. Mend it first.")


def _read_arrays(source: str | Path) -> dict[str, Array]:
    path = Path(source)
    if path.is_dir():
        return {file.stem: _only(file) for file in sorted(path.glob("*.npy"))}
    if path.is_file():
        return _load(path)
    if ":" in str(source):
        made = call_function(str(source))
        if isinstance(made, Mapping):
            return {name: np.asarray(array) for name, array in made.items()}
        raise UsageError(
            f"{source} returned {type(made).__name__}, not a dictionary of arrays by input name."
        )
    raise UsageError(f"{source} is neither a file, a folder nor package.module:function: check the path.")


def _repeated(arrays: Mapping[str, Array], specs: Mapping[str, InputSpec]) -> dict[str, Array]:
    """Return arrays where a single number for an input that takes one stands for all samples."""
    n_samples = max((len(arrays[name]) for name in specs if np.ndim(arrays[name])), default=1)
    alone = {name for name, spec in specs.items() if not spec.shape and not np.ndim(arrays[name])}
    return {name: np.full(n_samples, a) if name in alone else a for name, a in arrays.items()}


def _only(path: Path) -> Array:
    """Return the array of an ``.npy``."""
    (array,) = _load(path, single=True).values()
    return array


def _load(path: Path, *, single: bool = False) -> dict[str, Array]:
    """Return the arrays of an ``.npz`` by name; with `single` that of an ``.npy`` under an empty name."""
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {n: loaded[n] for n in loaded.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        reason = str(error).partition(". ")[0]  # numpy goes on with advice on unpickling
        raise UsageError(
            f"{path} cannot be read as numpy arrays: {reason}. Write it anew with numpy.savez."
        ) from error
    if single != ("" in arrays):
        raise UsageError(
            f"{path} holds {'several arrays' if single else 'one array'}: write an .npz keyed by input name, "
            "or a folder with one .npy per input."
        )
    return arrays


def _fitting(array: Array, spec: InputSpec, source: str | Path) -> NDArray[Any]:
    """Return `array` in the element type of the input, after checking type, shape and values."""
    where = f"Array '{spec.name}' of {source}"
    if spec.dtype.kind == "O":
        array = array.astype(object) if array.dtype.kind in "US" else array
    if spec.dtype.kind != array.dtype.kind and not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise UsageError(
            f"{where} is {array.dtype}, and the model takes {spec.dtype}: give it as {spec.dtype}."
        )
    shape = array.shape if array.ndim == len(spec.shape) else array.shape[1:]
    first = 1 if array.ndim == len(spec.shape) else 0
    fits = len(shape) == len(spec.shape) and all(
        not isinstance(a, int) or a == n for a, n in zip(spec.shape[first:], shape[first:], strict=True)
    )
    if not fits or not array.ndim:
        raise UsageError(
            f"{where} has shape {array.shape}, samples on axis 0, and the model takes {written(spec)}: "
            "prepare the samples as for the model itself, one after the other on axis 0."
        )
    if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
        broken = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
        raise UsageError(
            f"{where} has values that are NaN or infinite, in {len(broken)} of {len(array)} samples, the "
            f"first of them number {broken[0]} counted from 0: leave these samples out."
        )
    if array.dtype.kind in "iu" and spec.dtype.kind in "iu" and array.size:
        info = np.iinfo(spec.dtype)
        if array.min() < info.min or array.max() > info.max:
            raise UsageError(
                f"{where} has values from {array.min()} to {array.max()}, outside of {spec.dtype}: prepare "
                "the samples as for the model itself."
            )
    return array.astype(spec.dtype, copy=False)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
