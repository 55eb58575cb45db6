"""`finetune`: train numbers in initializers so that a model comes near its original again, or near labels.

The graph stays as it is, byte for byte; only the data of initializers changes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from rich.console import Group, RenderableType
from rich.text import Text

from onnxdecomp.errors import UsageError, VerificationError
from onnxdecomp.graph.io import Model, load
from onnxdecomp.graph.trainable import all_of, check_floating, decomposed_of, has_half_floats, matching
from onnxdecomp.graph.write_back import NumbersWriter
from onnxdecomp.report.outcome import BeforeAfter
from onnxdecomp.report.table import SHARES, count, plain_table
from onnxdecomp.runtime.compared_outputs import ComparedOutputs
from onnxdecomp.runtime.drop import Drop
from onnxdecomp.runtime.evaluate import outputs_over
from onnxdecomp.runtime.jury import Jury
from onnxdecomp.runtime.samples import LABELS
from onnxdecomp.runtime.session import Model as RuntimeModel
from onnxdecomp.search.parts import load_evaluation
from onnxdecomp.search.track import Track, untracked
from onnxdecomp.tune.settings import ALL, DECOMPOSED, Settings, configured

if TYPE_CHECKING:
    from onnxdecomp.tune.course import Loss
    from onnxdecomp.tune.train import Trained

Source = str | Path | onnx.ModelProto

_Tensor = tuple[int, tuple[int, ...] | None]
"""Element type and sizes of an input or output: 0 for one that is not fixed, None where none is known."""

NO_TORCH = (
    "fine-tuning needs torch: install onnxdecomp[finetune], after 'pip install torch==2.13.0' from an index "
    "of CPU builds where no GPU is wanted."
)

SAME_LOSS = 0.05
"""How far the loss of the written model in onnxruntime may be from that in torch, as a share of it."""

SAME_LOSS_HALF = 0.5
"""The same for a model with numbers of 16 bits: torch trains without rounding to them."""

CERTAIN = 1.64
"""Standard errors by which the loss has to fall on samples set aside: 95 % sure, one-sided."""

UNCHANGED = "the student is written as it is."

LEAST_LOSS = 1e-4
"""Losses are compared as if they were at least this large: an output that is right has rounding errors."""


@dataclass(frozen=True)
class Quality:
    """What a metric says before and after.

    Args:
        metric: Its name; of several outputs that are compared, of the one that loses most afterwards.
        teacher: Of the teacher; None where there is none.
        before: What the student lost against the teacher, with its paired standard error; without a teacher
            nothing.
        after: What the result lost against the teacher, or against the student.
    """

    metric: str
    teacher: float | None
    before: Drop
    after: Drop


@dataclass
class Finetuning:
    """What `finetune` did.

    Args:
        names: The initializers that trained.
        n_values: How many numbers they hold.
        loss: What was made small.
        held_out: That loss on the samples set aside, as onnxruntime computes the models.
        n_steps: Steps made.
        best_step: The step whose weights were written; 0 when those of the student are the best.
        quality: What a metric says on evaluation samples; None when there are none.
        notes: Sentences the user should read.
        proto: The model, when there was no output path.
    """

    names: tuple[str, ...]
    n_values: int
    loss: str
    held_out: BeforeAfter
    n_steps: int
    best_step: int
    quality: Quality | None = None
    notes: tuple[str, ...] = ()
    proto: Any = None


def finetune(
    student: Source,
    output: str | Path | None = None,
    *,
    teacher: Source | None = None,
    settings: Settings | None = None,
    track: Track | None = None,
    **options: Any,
) -> Finetuning:
    """Train initializers of a model and write it; its graph stays as it is.

    The result is never worse than the student on the samples set aside; what may be chance is not written.

    Args:
        student: Path of the model to train, or a model in memory.
        output: Path to write; None keeps the result in `Finetuning.proto`.
        teacher: The original, whose outputs are to be met; without it, labels are.
        settings: How; the default is ``Settings()``.
        track: Shows how far training is.
        **options: Fields of `Settings` by name, such as ``steps=500``; they win over `settings`.

    Raises:
        UsageError: torch is not installed, or an option, a sample or a checkpoint does not fit.
        ModelError: A model cannot be read, trained or written, or torch computes other outputs than
            onnxruntime.
        VerificationError: The written model does not have the loss that training found; nothing is written.
    """
    settings = configured(settings, options)
    require_torch()
    model, original = load(student), load(teacher) if teacher is not None else None
    _refuse_overwriting(output, model, original)
    check_floating(model)
    if original is not None:
        _check_interface(model, original)
    if output is None and model.data_files:
        raise UsageError(
            "the model has its weights in a data file: name an output to write beside such a file."
        )
    names = _chosen(model, original, settings.train)
    with NumbersWriter(model, output) as writer:
        from onnxdecomp.tune.course import Course  # torch takes a second to import
        from onnxdecomp.tune.train import computing

        judged = _judged(model, original, settings)  # what is wrong with it is said before hours of training
        with computing(settings.threads):
            course = Course(model, original, names, settings)
            trained = course.train(track or untracked)
            staged = writer.stage_numbers(trained.values)
            before, after = course.loss_of(_runnable(model)), course.loss_of(staged)
        if trained.held_out is not None:
            _check_loss(after.mean, trained.held_out[1], half=has_half_floats(model))
        best_step, notes = _settled(trained, before, after)
        if not best_step:
            staged, after = writer.stage_numbers({}), before
        quality = judged(staged) if judged else None
        writer.publish()
    n_values = sum(value.size for value in trained.values.values())
    held_out = BeforeAfter(before.mean, after.mean)
    title, n_steps = course.title, trained.n_steps
    return Finetuning(names, n_values, title, held_out, n_steps, best_step, quality, notes, writer.result)


def _settled(trained: "Trained", before: "Loss", after: "Loss") -> tuple[int, tuple[str, ...]]:
    """Return the step whose weights are worth writing, 0 for those of the student, and what to say of it.

    A gain that may be chance is not worth it; rounding to 16 bits may also cost what was gained.
    """
    notes = [f"Training stopped early: {trained.stopped}."] if trained.stopped else []
    gain, error = before.gain_of(after)
    if not trained.best_step:
        notes.append(f"Nothing served the samples set aside better than the student: {UNCHANGED}")
    elif not gain > CERTAIN * error:
        notes.append(
            f"The loss fell by {gain:.3g} ± {error:.2g} on {len(before.alone)} samples set aside, which may "
            f"be chance: {UNCHANGED} Give more samples, or more to stop by with --held-out."
        )
        return 0, tuple(notes)
    return trained.best_step, tuple(notes)


def require_torch() -> None:
    """Refuse to go on where torch is not installed.

    Raises:
        UsageError: It is not.
    """
    if find_spec("torch") is None:
        raise UsageError(NO_TORCH)


def _refuse_overwriting(output: str | Path | None, model: Model, original: Model | None) -> None:
    if output is None:
        return
    out = Path(output)
    targets = {out.resolve(), out.with_name(out.name + ".data").resolve()}
    for what, source in (("student", model), ("teacher", original)):
        if source is None:
            continue
        files = source.data_files | ({source.path.resolve()} if source.path else set())
        if files & targets:
            raise UsageError(f"'{output}' would overwrite the {what}: give the output another name.")


def _check_interface(model: Model, original: Model) -> None:
    """Refuse a teacher that takes or puts out something else.

    Raises:
        UsageError: Names or element types differ, the number of axes, or sizes behind the first axis.
    """
    for kind in ("input", "output"):
        ours, theirs = (_interface(proto, kind) for proto in (model.proto, original.proto))
        if ours.keys() != theirs.keys() or any(not _are_alike(ours[name], theirs[name]) for name in ours):
            raise UsageError(
                f"the teacher has other {kind}s than the student: {_listed(theirs)} and not "
                f"{_listed(ours)}; give the model that the student was made from"
            )


def _interface(proto: onnx.ModelProto, kind: str) -> dict[str, _Tensor]:
    """Return the inputs or outputs by name."""
    held = {tensor.name for tensor in proto.graph.initializer} if kind == "input" else set()
    found = {}
    for value in getattr(proto.graph, kind):
        tensor = value.type.tensor_type
        if value.name not in held:
            sizes = tuple(axis.dim_value for axis in tensor.shape.dim) if tensor.HasField("shape") else None
            found[value.name] = tensor.elem_type, sizes
    return found


def _are_alike(ours: _Tensor, theirs: _Tensor) -> bool:
    """Tell whether what is known of two tensors agrees, but for the number of samples."""
    if ours[0] != theirs[0] or ours[1] is None or theirs[1] is None:
        return ours == theirs
    known = zip(ours[1][1:], theirs[1][1:], strict=False)
    return len(ours[1]) == len(theirs[1]) and all(one == other for one, other in known if one and other)


def _listed(interface: Mapping[str, _Tensor]) -> str:
    texts = []
    for name, (kind, sizes) in interface.items():
        element = onnx.TensorProto.DataType.Name(kind).lower()
        shape = "" if sizes is None else " [" + ", ".join(str(size or "?") for size in sizes) + "]"
        texts.append(f"{name} ({element}{shape})")
    return ", ".join(texts)


def _chosen(model: Model, original: Model | None, train: str | None) -> tuple[str, ...]:
    """Return the initializers that are to train.

    Raises:
        UsageError, ModelError: There is none.
    """
    wanted = train or (DECOMPOSED if original is not None else ALL)
    if wanted == ALL:
        return all_of(model)
    if wanted != DECOMPOSED:
        return matching(model, wanted)
    if original is None:
        raise UsageError(
            "--train decomposed is what the original does not hold: give it with --teacher, or --train all"
        )
    return decomposed_of(model, original)


def _runnable(model: Model) -> RuntimeModel:
    return model.path or model.proto


def _check_loss(found: float, expected: float, *, half: bool) -> None:
    """Raise when onnxruntime finds another loss in the written model than torch did in training.

    Raises:
        VerificationError: It does.
    """
    limit = (SAME_LOSS_HALF if half else SAME_LOSS) * max(abs(expected), LEAST_LOSS)
    if not isfinite(found) or abs(found - expected) > limit:
        raise VerificationError(
            f"The written model has a loss of {found:.6g} on the samples set aside, and training found "
            f"{expected:.6g}. Nothing was written."
        )


def _judged(
    model: Model, original: Model | None, settings: Settings
) -> Callable[[RuntimeModel], Quality] | None:
    """Return what tells the quality of a result; None without evaluation samples.

    Raises:
        UsageError: The samples or the metric do not fit.
    """
    if settings.evaluation is None:
        return None
    samples = load_evaluation(settings.evaluation, model.proto)

    compared = ComparedOutputs(_runnable(original or model), settings.metric, has_labels=LABELS in samples)

    def outputs(which: RuntimeModel) -> dict[str, Any]:
        return outputs_over(which, samples, names=compared.names, threads=settings.threads)

    before = outputs(_runnable(model))
    reference = outputs(_runnable(original)) if original is not None else before
    labels = samples.get(LABELS)
    if labels is not None:
        labels = labels[: len(next(iter(reference.values())))]  # the last may not have filled a fixed batch
    metrics = compared.metrics(reference, labels)
    first = next(iter(metrics))
    jury = Jury(metrics, reference, labels)
    jury.drop(before)  # refuses what cannot be compared before anything trains

    def quality(result: RuntimeModel) -> Quality:
        after = jury.drop(outputs(result))
        lost = jury.drop_of(after.output or first, before)
        teacher = lost.before if original is not None else None
        return Quality(metrics[after.output or first].name, teacher, lost, after)

    return quality


def finetuning_table(found: Finetuning) -> RenderableType:
    """Return the loss before and after, and the quality of teacher, student and result."""
    title = f"{len(found.names)} initializers trained, {count(found.n_values)} numbers"
    table = plain_table(title, "", "before", "after", "change")
    before, after = found.held_out.before or 0.0, found.held_out.after or 0.0
    change = f"{100 * (after / before - 1):+.1f} %" if before else ""
    table.add_row(f"loss on samples set aside ({found.loss})", f"{before:.4g}", f"{after:.4g}", change)
    table.add_row("best of the steps", "", f"{found.best_step} of {found.n_steps}", "")
    if found.quality is not None:
        quality = found.quality
        teacher, output = quality.teacher, quality.after.output
        name = f"{quality.metric} of {output}" if output else quality.metric
        table.add_row(
            name if teacher is None else f"{name}, teacher {_score(quality.metric, teacher)}",
            _score(quality.metric, quality.before.after),
            _score(quality.metric, quality.after.after),
            _gain(quality.metric, quality.before, quality.after),
        )
    return Group(table, *(Text(note) for note in found.notes))


def _score(name: str, value: float) -> str:
    return f"{value:.2%}" if name in SHARES else f"{value:.4g}"


def _gain(name: str, before: Drop, after: Drop) -> str:
    unit, scale = (" points", 100) if name in SHARES else ("", 1)
    return (
        f"{-scale * before.value:+.3g} ± {scale * before.standard_error:.2g} → "
        f"{-scale * after.value:+.3g} ± {scale * after.standard_error:.2g}{unit}"
    )
