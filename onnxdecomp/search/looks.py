"""Looks at a model: how far the outputs move, on a few samples, where some of its layers become others."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx

from onnxdecomp.graph.find import Site
from onnxdecomp.runtime.evaluate import Metric, Outputs, outputs_over
from onnxdecomp.runtime.importance import draw
from onnxdecomp.runtime.jury import Jury
from onnxdecomp.runtime.outputs import with_outputs
from onnxdecomp.runtime.rows import part
from onnxdecomp.runtime.session import Model
from onnxdecomp.runtime.suffix import Suffix
from onnxdecomp.runtime.suited import compares_classes
from onnxdecomp.search.parts import Samples, batch_of, count


class Looks:
    """A few samples, drawn by how much they tell, with the original's outputs on them.

    Args:
        original: The model; its weights may be in files.
        metrics: By what each output is compared.
        samples: What is drawn from, without labels.
        reference: The original's outputs on those.
        n_drawn: Samples to draw; all of them where there are no more.
        names: Tensors that are compared instead of the outputs.
        jobs: Batches run side by side.
        seed: Of the draw.
    """

    def __init__(
        self,
        original: onnx.ModelProto,
        metrics: Mapping[str, Metric],
        samples: Samples,
        reference: Outputs,
        n_drawn: int,
        *,
        names: Sequence[str] | None = None,
        jobs: int = 1,
        seed: int = 0,
    ) -> None:
        (measure, *others) = metrics.values()
        as_classes = not others and compares_classes(measure, reference)
        drawn = draw(reference, n_drawn, seed, as_classes=as_classes)
        self._original = original if names is None else with_outputs(original, names)
        self._metrics, self._names, self._jobs = metrics, names, jobs
        self._samples, self._weights = part(samples, drawn.rows), drawn.weights
        self._reference = {name: array[drawn.rows] for name, array in reference.items()}
        self._jury = Jury(metrics, self._reference, None, drawn.weights)
        self._suffix: tuple[frozenset[str], Suffix | None] = frozenset(), None

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return count(self._samples)

    def divergence(self, model: Model, sites: Sequence[Site]) -> float:
        """Return how far the outputs of a model are from the original's.

        Args:
            model: The original with other nodes for some of its layers.
            sites: Where those are. Only what comes after them is run.
        """
        return self._jury.divergence(self._outputs(model, sites))

    def release(self) -> None:
        """Let go of what was kept for the next look at the same layer, or one behind it."""
        self._suffix = frozenset(), None

    def divergence_from(self, model: Model) -> Callable[[Model], float]:
        """Return what tells how far the outputs of other models are from this one's."""
        jury = Jury(self._metrics, self._run(model), None, self._weights)
        return lambda other: jury.divergence(self._run(other))

    def _outputs(self, model: Model, sites: Sequence[Site]) -> Outputs:
        if isinstance(model, Path) or any(site.place.scope.prefix for site in sites):
            return self._run(model)
        tensors = frozenset(site.place.proto.output[0] for site in sites)
        if self._suffix[0] != tensors:
            suffix = Suffix.of(
                self._original,
                tensors,
                self._samples,
                self._reference,
                ends=[site.output for site in sites],
                batch=batch_of(self._samples),
                jobs=self._jobs,
                start=self._suffix[1],
            )
            self._suffix = tensors, suffix
        suffix = self._suffix[1]
        return self._run(model) if suffix is None else suffix.run(model, self._jobs)

    def _run(self, model: Model) -> Outputs:
        batch = batch_of(self._samples)
        return outputs_over(model, self._samples, names=self._names, batch=batch, jobs=self._jobs)
