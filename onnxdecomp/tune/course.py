"""From two models to trained numbers: network, parity, loss, loop."""

from collections.abc import Mapping
from difflib import get_close_matches

import torch
from torch import Tensor

from onnxdecomp.errors import UsageError, unknown_name
from onnxdecomp.graph.io import Model
from onnxdecomp.graph.trainable import computed, replaced_outputs
from onnxdecomp.runtime.session import Model as RuntimeModel
from onnxdecomp.tune.batches import Batch, open_source
from onnxdecomp.tune.checkpoint import Checkpoint
from onnxdecomp.tune.elements import to_torch
from onnxdecomp.tune.network import Network
from onnxdecomp.tune.objective import Matches, build_objective, needs_labels
from onnxdecomp.tune.parity import check_forward
from onnxdecomp.tune.settings import AUTO, Settings
from onnxdecomp.tune.teacher import Teacher
from onnxdecomp.tune.train import Track, Trained, Training

SHOWN = 5
"""Names that an error lists."""


class Course:
    """Everything that training some initializers of a model takes.

    Args:
        model: The student.
        original: The teacher; None to train on labels.
        names: The initializers that train.
        settings: How.

    Attributes:
        title: What the loss is called in reports.

    Raises:
        UsageError: Samples, losses, tensors to match or the checkpoint do not fit.
        ModelError: The student has operators that cannot be evaluated, or torch computes other outputs
            than onnxruntime.
    """

    def __init__(
        self, model: Model, original: Model | None, names: tuple[str, ...], settings: Settings
    ) -> None:
        matches = _matches(model, original, settings)
        matched = [name for together, _ in matches for name in together]
        checkpoint = None
        if settings.checkpoint is not None:
            checkpoint = Checkpoint(settings.checkpoint, model, original, settings)
        network = Network(model)
        labels = needs_labels(settings, has_teacher=original is not None)
        self._source = open_source(settings, model.proto, labels=labels)
        check_forward(network, model, self._source.held_out[0].feeds)
        self._threads, self._teacher = settings.threads, original is not None
        self._reference = Teacher(
            runnable(original or model),
            [*network.outputs, *matched],
            stored=self._source.stored if original is not None else None,
            threads=settings.threads,
        )
        self._objective = build_objective(
            settings,
            map(self._reference.arrays, self._source.held_out),
            network.outputs,
            matches,
            has_teacher=original is not None,
        )
        self.title = self._objective.title
        self._check_shapes(network)
        self._training = Training(
            network, names, self._objective, self._source, self._targets, settings, checkpoint
        )

    def train(self, track: Track) -> Trained:
        """Train.

        Raises:
            ModelError: No gradient reaches what should train.
        """
        return self._training.run(track)

    def loss_of(self, model: RuntimeModel) -> float:
        """Return the loss on the samples set aside of a model that onnxruntime runs.

        Raises:
            ModelError: onnxruntime cannot run it.
        """
        student = Teacher(model, self._objective.names, threads=self._threads)
        total, n_samples = 0.0, 0
        with torch.no_grad():
            for batch in self._source.held_out:
                labels = None if batch.labels is None else to_torch(batch.labels)
                loss = self._objective(student(batch), self._targets(batch), labels)
                total += float(loss) * batch.n_samples
                n_samples += batch.n_samples
        return total / n_samples

    def _targets(self, batch: Batch) -> Mapping[str, Tensor]:
        return self._reference(batch) if self._teacher else {}

    def _check_shapes(self, network: Network) -> None:
        """Refuse a teacher whose tensors have other shapes than those of the student.

        Raises:
            UsageError: One has.
        """
        batch = self._source.held_out[0]
        with torch.no_grad():
            ours = network({name: to_torch(a) for name, a in batch.feeds.items()}, self._objective.names)
        for name, theirs in self._targets(batch).items():
            if name in ours and ours[name].shape != theirs.shape:
                raise UsageError(
                    f"tensor '{name}' has shape {tuple(theirs.shape)} in the teacher and "
                    f"{tuple(ours[name].shape)} in the student: nothing can be compared"
                )


def runnable(model: Model) -> RuntimeModel:
    """Return what onnxruntime loads a model from."""
    return model.path or model.proto


def _matches(model: Model, original: Model | None, settings: Settings) -> Matches:
    """Return the intermediate tensors to match.

    Raises:
        UsageError: There is no teacher, or it or the student has no such tensor.
    """
    if not settings.matches:
        return ()
    if original is None:
        raise UsageError("--match compares with the original: give it with --teacher")
    found = []
    for term in settings.matches:
        names: tuple[str, ...] = (term.name,)
        if term.name == AUTO:
            names = replaced_outputs(model, original)
            if not names:
                raise UsageError(
                    "--match auto finds no tensor that student and teacher compute by different nodes: name "
                    "tensors, such as --match NAME"
                )
        for name in names:
            for what, side in (("student", model), ("teacher", original)):
                known = computed(side)
                if name not in known:
                    near = get_close_matches(name, known, n=SHOWN) or known[:SHOWN]
                    raise unknown_name(f"tensor to match in the {what}", name, near)
        found.append((names, term.weight))
    return tuple(found)
