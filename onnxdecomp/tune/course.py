"""From two models to trained numbers: network, parity, loss, loop."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf, sqrt

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxdecomp.errors import UsageError, unknown_name
from onnxdecomp.graph.blocks import blocks
from onnxdecomp.graph.io import Model
from onnxdecomp.graph.names import named_initializers
from onnxdecomp.graph.trainable import computed, replaced_outputs
from onnxdecomp.runtime.session import Model as RuntimeModel
from onnxdecomp.tune.batches import Batch, open_source
from onnxdecomp.tune.checkpoint import Checkpoint
from onnxdecomp.tune.elements import to_torch
from onnxdecomp.tune.fed import Fed
from onnxdecomp.tune.network import Network
from onnxdecomp.tune.objective import Matches, build_objective, needs_labels
from onnxdecomp.tune.parity import check_forward
from onnxdecomp.tune.settings import AUTO, Settings, Weighted
from onnxdecomp.tune.teacher import Teacher
from onnxdecomp.tune.train import Track, Trained, Training

SHOWN = 5
"""Names that an error lists."""


@dataclass(frozen=True)
class Loss:
    """A loss on samples.

    Args:
        mean: The mean over them.
        alone: That of each alone, ``(n,)``; of each batch where samples cannot be told apart.
    """

    mean: float
    alone: NDArray[np.float64]

    def gain_of(self, other: "Loss") -> tuple[float, float]:
        """Return by how much another model's loss is lower, with the standard error of that, paired."""
        lost = self.alone - other.alone
        return self.mean - other.mean, float(lost.std(ddof=1)) / sqrt(len(lost)) if len(lost) > 1 else inf


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
        self._model, self._original, self._settings = model, original, settings
        matches = _matches(model, original, settings)
        matched = [name for together, _ in matches for name in together]
        labels = needs_labels(settings, has_teacher=original is not None)
        self._source = open_source(settings, model.proto, labels=labels)
        outputs = [value.name for value in model.proto.graph.output]
        self._reference = Teacher(
            runnable(original or model),
            [*outputs, *matched],
            stored=self._source.stored if original is not None else None,
            again=tuple(self._source.held_out) if original is not None else (),
            threads=settings.threads,
        )
        self._objective = build_objective(
            settings,
            map(self._reference.arrays, self._source.held_out),
            outputs,
            () if settings.block_wise else matches,
            has_teacher=original is not None,
        )
        self.title = self._objective.title
        self._check_shapes()
        self._cuts = matched
        self._trainings = self._by_block(names) if settings.block_wise else self._whole(names)

    def train(self, track: Track) -> Trained:
        """Train.

        Raises:
            ModelError: No gradient reaches what should train; or as for the course, of a block.
        """
        parts = [training.run(track) for training in self._trainings]
        if not self._settings.block_wise:
            return parts[0]
        return Trained(
            {name: value for part in parts for name, value in part.values.items()},
            sum(part.n_steps for part in parts),
            sum(part.best_step for part in parts),
            None,
            "; ".join(dict.fromkeys(part.stopped for part in parts if part.stopped)),
        )

    def loss_of(self, model: RuntimeModel) -> Loss:
        """Return the loss on the samples set aside of a model that onnxruntime runs.

        Raises:
            ModelError: onnxruntime cannot run it.
        """
        student = Teacher(model, self._objective.names, threads=self._settings.threads)
        total, n_samples, alone = 0.0, 0, []
        with torch.no_grad():
            for batch in self._source.held_out:
                ours, theirs = student(batch), self._targets(batch)
                labels = None if batch.labels is None else to_torch(batch.labels)
                total += float(self._objective(ours, theirs, labels)) * batch.n_samples
                n_samples += batch.n_samples
                alone += [
                    float(self._objective(_at(ours, row), _at(theirs, row), _at({"": labels}, row).get("")))
                    for row in _rows((*ours.values(), *theirs.values()), batch.n_samples)
                ]
        return Loss(total / n_samples, np.nan_to_num(np.array(alone)))

    def _whole(self, names: tuple[str, ...]) -> Iterable[Training]:
        """Return the training of the whole model, whose outputs are compared with onnxruntime's first."""
        checkpoint = self._checkpoint(self._settings.checkpoint)
        network = Network(self._model)
        check_forward(network, self._model, next(iter(self._source.held_out)).feeds)
        objective, source, settings = self._objective, self._source, self._settings
        return [Training(network, names, objective, source, self._targets, settings, checkpoint)]

    def _by_block(self, names: tuple[str, ...]) -> Iterator[Training]:
        """Yield the training of each block; it is made when the one before is done with."""
        first = self._reference.arrays(next(iter(self._source.held_out)))
        kinds = {name: onnx.helper.np_dtype_to_tensor_dtype(first[name].dtype) for name in self._cuts}
        left, n_blocks = list(names), len(kinds) + 1
        assert self._original is not None
        for number, block in enumerate(blocks(self._model, kinds)):
            held = named_initializers(block.model.proto)
            own = [name for name in left if name in held]
            if not own:
                continue
            left = [name for name in left if name not in held]
            wanted = dict.fromkeys([*block.outputs, *(name for name in block.reads if name in kinds)])
            teacher = Teacher(runnable(self._original), list(wanted), threads=self._settings.threads)
            source = Fed(self._source, teacher, block.reads)
            network = Network(block.model)
            check_forward(network, block.model, next(iter(source.held_out)).feeds)
            path = self._settings.checkpoint
            yield Training(
                network,
                own,
                self._objective if block.outputs[0] not in kinds else source.mean_square(block.outputs),
                source,
                source.targets,
                self._settings,
                self._checkpoint(f"{path}.{number}" if path else None),
                f"block {number + 1} of {n_blocks}",
            )

    def _checkpoint(self, path: str | None) -> Checkpoint | None:
        return Checkpoint(path, self._model, self._original, self._settings) if path else None

    def _targets(self, batch: Batch) -> Mapping[str, Tensor]:
        return self._reference(batch) if self._original is not None else {}

    def _check_shapes(self) -> None:
        """Refuse a teacher whose tensors have other shapes than those of the student.

        Raises:
            UsageError: One has.
        """
        batch = next(iter(self._source.held_out))
        theirs = self._reference.arrays(batch)
        ours = Teacher(runnable(self._model), list(theirs), threads=self._settings.threads).arrays(batch)
        for name, array in theirs.items():
            if ours[name].shape != array.shape:
                raise UsageError(
                    f"tensor '{name}' has shape {array.shape} in the teacher and {ours[name].shape} in the "
                    "student: nothing can be compared"
                )


def _rows(tensors: Collection[Tensor], n_samples: int) -> list[slice]:
    """Return what cuts single samples out of tensors; everything where their first axes are not samples."""
    if all(tensor.ndim and len(tensor) == n_samples for tensor in tensors):
        return [slice(row, row + 1) for row in range(n_samples)]
    return [slice(None)]


def _at(tensors: Mapping[str, Tensor | None], row: slice) -> dict[str, Tensor]:
    return {name: tensor[row] for name, tensor in tensors.items() if tensor is not None}


def runnable(model: Model) -> RuntimeModel:
    """Return what onnxruntime loads a model from."""
    return model.path or model.proto


def _matches(model: Model, original: Model | None, settings: Settings) -> Matches:
    """Return the intermediate tensors to match.

    Raises:
        UsageError: There is no teacher, or it or the student has no such tensor.
    """
    terms = settings.matches or ((Weighted(AUTO, 1.0),) if settings.block_wise else ())
    if not terms:
        return ()
    if original is None:
        option = "--match" if settings.matches else "--block-wise"
        raise UsageError(f"{option} compares with the original: give it with --teacher")
    found = []
    for term in terms:
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
