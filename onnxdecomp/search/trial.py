"""Rewrite a model with some chains and see what that does to its outputs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import onnx

from onnxdecomp.errors import UsageError
from onnxdecomp.graph.find import LayerGroup
from onnxdecomp.graph.io import Model, ModelWriter, with_data_inside
from onnxdecomp.graph.rewrite import Rewriter
from onnxdecomp.runtime.compared_outputs import ComparedOutputs
from onnxdecomp.runtime.drop import Drop
from onnxdecomp.runtime.evaluate import Metric, Outputs, outputs_over
from onnxdecomp.runtime.judge import is_choice
from onnxdecomp.runtime.jury import Jury
from onnxdecomp.runtime.outputs import unseen_from
from onnxdecomp.runtime.pairs import KnownOutputs
from onnxdecomp.runtime.rows import part
from onnxdecomp.runtime.samples import LABELS
from onnxdecomp.runtime.session import Array
from onnxdecomp.runtime.session import Model as RuntimeModel
from onnxdecomp.search.evidence import PROPORTIONS, Evidence, Proportion
from onnxdecomp.search.looks import Looks
from onnxdecomp.search.memory import Memory
from onnxdecomp.search.parts import Parts, Samples, batch_of, count, without_labels
from onnxdecomp.search.replacement import Replacements
from onnxdecomp.search.work import Work, n_answers_each

MAX_INSIDE_BYTES = 1 << 29
"""Weights in files of their own are read into memory up to this size: a search builds hundreds of models."""

NOT_COMPARED = "nothing that is compared depends on it, so that nobody could tell what it loses"


class Trials:
    """The original's outputs, and those of models in which layers are replaced.

    Args:
        model: The model as it was read.
        parts: The samples.
        metric_name: Name of the metric for the first output; None takes what suits labels and outputs.
        threads: Threads inside an operator where something is timed.
        memory: Keeps what was measured, for the next search of the same model on the same samples.
        n_macs: Multiply-accumulates of the original on one sample.
        jobs: Batches that are run side by side where nothing is timed, each on one thread.
        seed: Of the draw of a few samples.

    Attributes:
        work: What looks at models may take.
        proportion: What is lost at a divergence, about.
        metrics: By what each output, or part of one, is compared, by its name.
        metric_name: The same on one line.
        notes: What to say of that.
        n_answers: Answers that a metric which counts them counts, on the smaller part of the samples; None
            where none does.
        known_outputs: What layers of the original put out on the recovery samples.
        searched: Layers that may be replaced, if that is known: recovery runs batches in which the outputs of
            all of them fit, so that what is known of the original stays known for other choices.
    """

    searched: Sequence[LayerGroup] = ()

    watch: Callable[[], object] | None = None
    """Called after each run of a model over samples, to show how far the work is."""

    def __init__(
        self,
        model: Model,
        parts: Parts,
        metric_name: str | None,
        threads: int,
        memory: Memory,
        *,
        n_macs: int,
        jobs: int = 1,
        seed: int = 0,
    ) -> None:
        self._model, self.threads, self.jobs = with_data_inside(model, MAX_INSIDE_BYTES), threads, jobs
        self.parts, self.memory = parts, memory
        self.original: RuntimeModel = model.path or model.proto
        compared = ComparedOutputs(self.original, metric_name, has_labels=LABELS in parts.choose)
        self._names = compared.names
        reference = self._original_outputs("choose", parts.choose)
        labels = _labels(parts.choose, reference)
        self.metrics: Mapping[str, Metric] = compared.metrics(reference, labels)
        self.metric_name = " and ".join(sorted({measure.name for measure in self.metrics.values()}))
        self.notes = compared.notes(self.metrics, reference)
        self._on_fitted: Outputs | None = None
        self._told_by_margins = [
            name
            for name, measure in self.metrics.items()
            if parts.are_alike and measure.name == "agreement" and is_choice({name: reference[name]})
        ]
        alike = [partial(self._half_alike, start) if self._told_by_margins else None for start in (0, 1)]
        self._choose = Jury(self.metrics, reference, labels, alike=alike[0])
        known = PROPORTIONS.get(self.metric_name) if len(self.metrics) == 1 else None
        self.proportion = known or Proportion()
        self._evidence = Evidence(known.growth if known else None)
        if self.metric_name == "top1" and labels is not None:
            _check_labels(labels, reference, self._choose)
        unseen = self._original_outputs("confirm", parts.confirm)
        self._confirm = Jury(self.metrics, unseen, _labels(parts.confirm, unseen), alike=alike[1])
        counts = [jury.n_answers for jury in (self._choose, self._confirm)]
        self.n_answers = min((n for n in counts if n is not None), default=None)
        self.work = work = Work(n_macs, n_answers_each(self.metrics, reference))
        inputs = without_labels(parts.choose)
        self._looks, self._rough_looks = (
            Looks(
                self._model.proto, self.metrics, inputs, reference, n, names=self._names, jobs=jobs, seed=seed
            )
            for n in (work.n_look, work.n_rough)
        )
        self.known_outputs = KnownOutputs()
        self._scratch = TemporaryDirectory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._scratch.cleanup()

    @property
    def size_bytes(self) -> int:
        """Size of the original."""
        return self._model.size_bytes

    @property
    def looks_are_long(self) -> bool:
        """Whether it takes long to see what a single layer does to the outputs."""
        return self.work.looks_are_long

    @property
    def macs_of_look(self) -> int:
        """Multiply-accumulates of one such look at the most."""
        return self._looks.n_samples * self.work.n_macs

    @property
    def fit_samples(self) -> Samples:
        """Samples that chains are fitted to."""
        return self.parts.fit

    @property
    def recovery_samples(self) -> Samples:
        """The first of them: the last step of a chain has far fewer unknowns than a patch of a layer."""
        n_samples = min(self.work.n_recovery, count(self.parts.fit))
        return part(self.parts.fit, np.arange(n_samples))

    def unseen(self, graph: onnx.GraphProto) -> set[str]:
        """Return the keys of the nodes that nothing that is compared depends on.

        Args:
            graph: Of the original, or of a model made of it.
        """
        if any(measure.compares == "anything" for measure in self.metrics.values()):
            return set()
        return unseen_from(graph, {measure.output_of(name) for name, measure in self.metrics.items()})

    def build(self, replaced: Replacements) -> RuntimeModel:
        """Return the model with its replacements; where its weights are in files, as a file for as long as
        no other one is built.
        """
        return self._built(replaced, Path(self._scratch.name, "trial.onnx"))

    @contextmanager
    def side_by_side(self, many: Iterable[Replacements]) -> Iterator[Iterator[RuntimeModel]]:
        """Give the models with each of several replacements, made one by one as they are asked for."""
        with TemporaryDirectory(dir=self._scratch.name) as folder:
            yield (self._built(one, Path(folder, f"{number}.onnx")) for number, one in enumerate(many))

    def _built(self, replaced: Replacements, path: Path) -> RuntimeModel:
        chains = {key: replacement.chain for key, replacement in replaced.items()}  # may build models too
        out = path if self._model.data_files else None
        with ModelWriter(self._model, out) as writer:
            rewriter = Rewriter(self._model, writer.add_tensor)
            for key, replacement in replaced.items():
                rewriter.replace(replacement.group, chains[key], replacement.bias)
            made = writer.stage(rewriter.finish())
            writer.publish()
        return out or made

    def divergence(self, replaced: Replacements, *, roughly: bool = False) -> float:
        """Return how far the outputs move on a few samples: smooth, 0 for equal outputs.

        Args:
            replaced: What is replaced.
            roughly: Fewer of them are enough.
        """
        looks, others = self._looks, self._rough_looks
        if roughly:
            looks, others = others, looks
        others.release()

        def measure() -> dict[str, float]:
            sites = [site for replacement in replaced.values() for site in replacement.group.sites]
            found = looks.divergence(self.build(replaced), sites)
            self.looked()
            return {"divergence": found}

        found = self.memory.number(f"divergence-{looks.n_samples}", replaced, measure)
        return float(found["divergence"])

    def divergence_from(self, model: RuntimeModel) -> Callable[[RuntimeModel], float]:
        """Return what tells how far the outputs of other models are from this one's on the few samples."""
        diverge = self._looks.divergence_from(model)

        def looked(other: RuntimeModel) -> float:
            found = diverge(other)
            self.looked()
            return found

        return looked

    def compared(self, replaced: Replacements) -> tuple[Drop, float]:
        """Return what replacements lose on the samples that decide, and how far the outputs move there."""

        def measure() -> dict[str, Any]:
            drop, divergence = self._measured(self.build(replaced))
            return {**asdict(drop), "divergence": divergence}

        found: dict[str, Any] = dict(self.memory.number(f"looked-{self.metric_name}", replaced, measure))
        divergence = found.pop("divergence")
        self._evidence.add(Drop(**found), divergence)
        return Drop(**found), divergence

    def expected(self, drop: Drop, divergence: float) -> float:
        """Return what a compared model is expected to lose on such samples."""
        return self._evidence.expected(drop, divergence)[0]

    def judged(self, model: RuntimeModel) -> tuple[Drop, float]:
        """Return what a model made elsewhere loses on the samples that decide, and is expected to lose."""
        drop, divergence = self._measured(model)
        self._evidence.add(drop, divergence)
        return drop, self.expected(drop, divergence)

    def holds(self, model: RuntimeModel, max_drop: float) -> bool:
        """Tell whether such a model is expected to keep a budget, and does on unseen samples."""
        drop, expected = self.judged(model)
        return expected <= max_drop and self.confirmed(model).held(drop) <= max_drop

    def confirmed(self, model: RuntimeModel) -> Drop:
        """Return what a model loses on the samples that no decision was made on."""

        def measure() -> dict[str, Any]:
            return asdict(self._confirm.drop(self._run(model, self.parts.confirm, self._names)))

        return Drop(**self.memory.number_of_model(f"drop-{self.metric_name}", model, measure))

    def confirmed_with(self, replaced: Replacements) -> Drop:
        """Return the same of the model with some replacements, which is remembered."""

        def measure() -> dict[str, Any]:
            return asdict(self.confirmed(self.build(replaced)))

        return Drop(**self.memory.number(f"drop-{self.metric_name}", replaced, measure))

    @property
    def unknown_outputs(self) -> list[str]:
        """Names of the outputs that are yet to be known of the original on the samples that are fitted to."""
        if self._on_fitted is None and self._told_by_margins:
            self._on_fitted = self.memory.known_outputs(self._part("fit", self.parts.fit))
        return self._told_by_margins if self._on_fitted is None else []

    def keep_outputs(self, outputs: Outputs) -> None:
        """Take those, once they are known."""
        self._on_fitted = outputs
        self.memory.keep_outputs(self._part("fit", self.parts.fit), outputs)

    def _half_alike(self, start: int) -> Outputs:
        """Return outputs of the original on every second of the samples that are fitted to."""
        unknown = self.unknown_outputs
        if unknown:
            self.keep_outputs(self._run(self.original, self.parts.fit, unknown))
        assert self._on_fitted is not None
        n = len(next(iter(self._on_fitted.values())))
        return part(self._on_fitted, np.arange(start, n, 2))

    def _original_outputs(self, name: str, samples: Samples) -> Outputs:
        part = self._part(name, samples)
        return self.memory.outputs(part, lambda: self._run(self.original, samples, self._names))

    def _part(self, name: str, samples: Samples) -> str:
        """Return a name for the original's outputs on some samples."""
        part = f"{name}, {batch_of(samples)} at once"
        return part if self._names is None else f"{part} of {', '.join(self._names)}"

    def _measured(self, model: RuntimeModel) -> tuple[Drop, float]:
        outputs = self._run(model, self.parts.choose, self._names)
        return self._choose.drop(outputs), self._choose.divergence(outputs)

    def _run(self, model: RuntimeModel, samples: Samples, names: Sequence[str] | None) -> Outputs:
        inputs, batch = without_labels(samples), batch_of(samples)
        outputs = outputs_over(model, inputs, names=names, batch=batch, jobs=self.jobs)
        self.looked()
        return outputs

    def looked(self) -> None:
        """Let whoever watches know that a model was run."""
        if self.watch is not None:
            self.watch()


def _labels(samples: Samples, outputs: Outputs) -> Array | None:
    """Return the labels of the samples that were run: the last may not have filled a fixed batch."""
    labels = samples.get(LABELS)
    return None if labels is None else labels[: len(next(iter(outputs.values())))]


def _check_labels(labels: Array, reference: Outputs, jury: Jury) -> None:
    """Refuse labels that are no classes, or that have nothing to do with what the original answers."""
    if labels.dtype.kind not in "iub":
        raise UsageError(f"The labels are {labels.dtype}: top1 takes the number of the class, an integer.")
    n_classes = int(np.shape(next(iter(reference.values())))[-1])
    share = jury.drop(reference).before
    if share <= 1 / n_classes:
        raise UsageError(
            f"The original gets {share:.1%} of the labels right, no more than chance with {n_classes} "
            "classes: check that labels and samples are in the same order and as the model expects them."
        )
