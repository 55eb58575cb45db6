"""What a changed model loses in its outputs, each of which is compared by a metric of its own."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import inf, nan, prod

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.runtime.divergence import first_output, is_float
from onnxdecomp.runtime.drop import Drop
from onnxdecomp.runtime.evaluate import Metric, Outputs
from onnxdecomp.runtime.judge import Judge
from onnxdecomp.runtime.session import Array

FloatArray = NDArray[np.float64]


class Jury:
    """Compares outputs of changed models with those of the original on one part of the data.

    Of several outputs the one that loses most counts: a budget is kept by all of them or by none. How far
    they move adds up.

    Args:
        metrics: The metric of each output, or part of one, that is compared. A single one gets all outputs,
            as a function of the user's needs.
        reference: Outputs of the original, samples on axis 0.
        labels: As `Judge` takes them.
        weights: As `Judge` takes them.
        alike: As `Judge` takes them.

    Raises:
        UsageError: There are not as many labels as samples, or a metric does not fit its output.
    """

    def __init__(
        self,
        metrics: Mapping[str, Metric],
        reference: Outputs,
        labels: Array | None = None,
        weights: FloatArray | None = None,
        alike: Callable[[], Outputs] | None = None,
    ) -> None:
        self._metrics, self._reference = metrics, reference
        self._judges = {
            name: Judge(
                measure,
                self._seen(name, reference),
                labels,
                weights,
                None if alike is None else partial(self._seen_of, name, alike),
            )
            for name, measure in metrics.items()
        }

    @property
    def n_answers(self) -> int | None:
        """How many classes are chosen where that is counted: one a sample, or one a step of it, at the least.

        None where no metric counts choices, or all samples have the same.
        """
        counted = [
            np.asarray(first_output(self._seen(name, self._reference)))
            for name, measure in self._metrics.items()
            if measure.compares == "choices"
        ]
        return min((_n_choices(output) for output in counted if np.any(output != output[:1])), default=None)

    def drop(self, outputs: Outputs) -> Drop:
        """Return how much worse the outputs of a changed model are: what the worst of them loses at the most.

        Args:
            outputs: On the same samples as the reference, in the same order.

        Raises:
            UsageError: A metric needs labels and there are none, or cannot compare these outputs.
        """
        return max((self.drop_of(name, outputs) for name in self._metrics), key=lambda drop: drop.bound)

    def drop_of(self, name: str, outputs: Outputs) -> Drop:
        """Return the same of one output, all of it where that is missing or of another shape.

        Args, Raises: As `drop`.
        """
        judge = self._judges[name]
        if len(self._judges) == 1:
            return judge.drop(outputs)
        whole = self._metrics[name].output_of(name)
        if np.shape(outputs.get(whole, ())) != np.shape(self._reference[whole]):
            return Drop(inf, 0.0, nan, nan, judge.n_samples, output=name)
        return replace(judge.drop(self._seen(name, outputs)), output=name)

    def divergence(self, outputs: Outputs) -> float:
        """Return how far outputs are from the original's: the sum over those that are compared."""
        return sum(judge.divergence(self._seen(name, outputs)) for name, judge in self._judges.items())

    def _seen_of(self, name: str, outputs: Callable[[], Outputs]) -> Outputs:
        return self._seen(name, outputs())

    def _seen(self, name: str, outputs: Outputs) -> Outputs:
        """Return what the judge of an output is shown; nothing where there is none of its shape."""
        if len(self._metrics) == 1:
            return outputs
        measure = self._metrics[name]
        whole = measure.output_of(name)
        if whole not in outputs or np.shape(outputs[whole])[1:] != np.shape(self._reference[whole])[1:]:
            return {}
        return {name: measure.seen_of(name, outputs)}


def _n_choices(output: Array) -> int:
    """Return how many choices an output is: of scores one a row, of whole numbers each is one."""
    return prod(output.shape[:-1]) if is_float(output) else output.size
