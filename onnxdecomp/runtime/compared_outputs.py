"""What of a model is compared with the original, by which metrics, and what is to be said of that."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain

import onnx

from onnxdecomp.graph.walk import walk
from onnxdecomp.runtime.counted import what_is_counted
from onnxdecomp.runtime.evaluate import Metric, Outputs, labels_missing, metric
from onnxdecomp.runtime.feeds import input_specs
from onnxdecomp.runtime.session import Array, Model, read_proto
from onnxdecomp.runtime.suited import doubt_of_default, doubt_of_samples, suited_metrics

RANDOM = (
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)
"""Operators that draw numbers."""

MAX_NAMED = 4
"""Outputs that a sentence names, before it says how many more there are."""


class ComparedOutputs:
    """The outputs of a model that are compared, or what stands for them.

    Args:
        model: The model or its path.
        metric_name: Of the metric for the first output; None takes what suits labels and outputs.
        has_labels: Whether samples have labels. They are of the first output.

    Attributes:
        names: Tensors to put out instead of the outputs; None for these themselves.

    Raises:
        ModelError: onnxruntime cannot load a part of the model.
        UsageError: There is no such metric.
    """

    def __init__(self, model: Model, metric_name: str | None, *, has_labels: bool) -> None:
        self._named = metric(metric_name) if metric_name else None
        self._is_guessed = metric_name is None and not has_labels
        self._counted = what_is_counted(model) if self._is_guessed else {}
        proto = read_proto(model)
        outputs = [output.name for output in proto.graph.output]
        self._random = sorted({place.node.op_type for place in walk(proto.graph)} & set(RANDOM))
        self._likely_numbers = _likely_numbers(proto).union(*self._counted.values())
        stand = dict.fromkeys(chain(*(self._counted.get(name, [name]) for name in outputs)))
        self.names = list(stand) if self._counted and stand else None
        self._all = self.names or outputs

    def metrics(self, reference: Outputs, labels: Array | None) -> dict[str, Metric]:
        """Return the metric of each output, or part of one, that is compared, by its name.

        Args:
            reference: Outputs of the original, or what stands for them.
            labels: Of the samples; None where there are none.

        Raises:
            UsageError: The metric that was named needs labels, and there are none.
        """
        if self._named is None:
            return suited_metrics(reference, labels, self._likely_numbers)
        if labels is None and self._named.needs_labels:
            raise labels_missing(self._named.name)
        return {next(iter(reference)): self._named}

    def notes(self, metrics: Mapping[str, Metric], reference: Outputs) -> list[str]:
        """Return what is to be said of that, as sentences.

        Args:
            metrics: As `metrics` returned them.
            reference: The outputs they were found for.
        """
        (first, measure), *others = metrics.items()
        found = []
        made_of = {name: sources for name, sources in self._counted.items() if sources}
        if made_of:
            found.append(
                f"{_listed(made_of)}: what was chosen of more. What it is chosen from is compared instead: "
                f"{_listed(dict.fromkeys(chain(*made_of.values())))}."
            )
        if others:
            kinds = ", and each kind of numbers in one," if any(one.part for one in metrics.values()) else ""
            found.append(
                f"Each output{kinds} is compared by what seems to suit it, and the one that loses most "
                f"counts: {_by_what(metrics)}. --metric compares the first alone, or all by a function of "
                "your own."
            )
        hidden = [name for name in self._counted if name not in made_of]
        seen = {one.output_of(name) for name, one in metrics.items()}
        left = _listed([name for name in [*self._all, *hidden] if name not in seen])
        if left and self._is_guessed:
            found.append(
                f"What {left} loses is not measured: it has no row for each sample, or a value is not finite."
            )
        elif left and measure.compares != "anything":
            found.append(
                f"Metric {measure.name} looks at '{first}' alone, the first output. What {left} loses is not "
                "measured: a function of your own, --metric package.module:function, sees all outputs."
            )
        if self._random:
            found.append(
                f"The model draws random numbers ({', '.join(self._random)}), so that its outputs differ "
                "from run to run, which counts as loss: a model given them as an input has none of it."
            )
        doubts = [doubt_of_samples({name: reference[name] for name in seen})]
        if self._is_guessed and not others:
            doubts.append(doubt_of_default(reference, measure.name))
        return found + [doubt for doubt in doubts if doubt]


def _likely_numbers(proto: onnx.ModelProto) -> set[str]:
    """Return the outputs that are no rows of scores by what is declared of them.

    Their last axis is one of an input's, as the length of a text, or of another output's, as the frames of a
    recording, or is the only one and open. Or they are states, which come out behind the first output as they
    go in behind the first input.
    """
    fed = input_specs(proto)
    (_, *states) = inputs = [_axes(value) for value in proto.graph.input if value.name in fed] or [[]]
    open_axes = Counter(name for value in proto.graph.output for name in {*_axes(value)[1:]})
    shared = [name for name, n_outputs in open_axes.items() if n_outputs > 1]
    lengths = {axis for axis in chain(shared, *(axes[1:] for axes in inputs)) if isinstance(axis, str)}
    found = set()
    for number, value in enumerate(proto.graph.output):
        *others, last = axes = _axes(value) or [0]
        is_length = isinstance(last, str) and (not others or (last and last in lengths))
        if is_length or (number and axes in states):
            found.add(value.name)
    return found


def _axes(value: onnx.ValueInfoProto) -> list[int | str]:
    """Return the size of each axis, its name where it is open."""
    return [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim]


def described(metrics: Mapping[str, Metric]) -> str:
    """Return what a loss is counted in, for a sentence: a metric, or several of which the worst counts."""
    if len(metrics) == 1:
        return next(iter(metrics.values())).name
    return f"the output that loses most ({_by_what(metrics)})"


def _by_what(metrics: Mapping[str, Metric]) -> str:
    return _shown([f"'{name}' by {measure.name}" for name, measure in metrics.items()])


def _listed(names: Sequence[str] | Mapping[str, object]) -> str:
    return _shown([f"'{name}'" for name in names])


def _shown(texts: Sequence[str]) -> str:
    """Return some texts one after the other, and how many more there are.

    >>> _shown(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d and 2 more'
    """
    more = f" and {len(texts) - MAX_NAMED} more" if len(texts) > MAX_NAMED else ""
    return ", ".join(texts[:MAX_NAMED]) + more
