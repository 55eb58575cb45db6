"""The command line: parse, call, print, exit code. Nothing is imported that `--help` can do without."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from onnxdecomp.errors import OnnxdecompError, UsageError, VerificationError

if TYPE_CHECKING:
    pass

T = TypeVar("T")

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Make ONNX models smaller and faster by low-rank factorization, proved in onnxruntime.",
)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command; every known error becomes one sentence on standard error and an exit code."""

    @wraps(function)
    def guarded(*args: Any, **options: Any) -> None:
        try:
            function(*args, **options)
        except OnnxdecompError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail("interrupted; nothing was written.", INTERRUPTED)

    return app.command()(guarded)


def _fail(message: str, exit_code: int) -> NoReturn:
    print(f"onnxdecomp: {message}", file=sys.stderr)
    raise typer.Exit(exit_code)


ModelIn = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of onnxruntime.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random choice.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="X.npz", help="Samples by input name; also a folder of .npy or package.module:function."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME=1x3x224x224", help="Sizes of an input that the model leaves open."),
]


@command
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN.onnx", help="The model to convert.")],
    output: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    rank: Annotated[
        str | None,
        typer.Option(help="auto | none | full | N | ratio:X | energy:X | evbmf[:W]  [default: auto]"),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="auto | svd | spatial-svd | channel-svd | tucker2 | tt | cp3 | cp4 | NAME/VARIANT  "
            "[default: auto]"
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Only layers whose name matches; may be repeated."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Keep layers whose name matches; may be repeated."),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(help="Largest relative weight error of a layer under --rank auto  [default: 0.1]"),
    ] = None,
    calibration: Calibration = None,
    evaluation: Annotated[
        str | None,
        typer.Option(
            "--eval", metavar="Y.npz", help="Samples to measure accuracy on, with an array 'labels'."
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="top1 | agreement | cosine | psnr | sqnr | r2 | package.module:function "
            " [default: top1 with labels, else every output by what suits it]"
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Largest loss of accuracy in the metric's unit  [default: 0.01, one point of top1]"
        ),
    ] = None,
    target_latency: Annotated[
        float | None, typer.Option(help="Latency to reach, as a share of the original's.")
    ] = None,
    target_macs: Annotated[float | None, typer.Option(help="The same for MACs of the layers.")] = None,
    target_size: Annotated[
        float | None, typer.Option(help="The same for bytes of the layers' weights.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantize to INT8 afterwards, inside the same accuracy budget.")
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="BITS|auto",
            help="Store weights as indices of 1 to 16 bits into codebooks; auto chooses inside the budget.",
        ),
    ] = None,
    cluster_group: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Output channels that share a codebook  [default: 0, all]"),
    ] = None,
    cluster_centroids: Annotated[
        str | None, typer.Option(help="float16 | bfloat16 | int16  [default: float16]")
    ] = None,
    cluster_scale: Annotated[
        str | None,
        typer.Option(help="none | channel: each output channel times a scale of its own  [default: none]"),
    ] = None,
    finetune: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="STEPS",
            help="Train the new weights against the original afterwards, and decompose further for it.",
        ),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(metavar="N", help="Raise the model to this operator set first.")
    ] = None,
    constant_weights: Annotated[
        bool,
        typer.Option(
            "--constant-weights",
            help="Weights that the model lists as inputs too are constants: no caller overrides them.",
        ),
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave out pruning | whitening | refit | joint | bias | relu | asymmetric | affine; may be "
            "repeated."
        ),
    ] = None,
    shape: Shapes = None,
    verify: Annotated[
        str | None, typer.Option(help="How much is proved first: model | layers | none  [default: model]")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of onnxruntime  [default: 1]")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Layers and batches worked on side by side where nothing is timed; the result is the same "
            "for any number  [default: usable cores]",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of every random choice  [default: 0]")] = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Keeps what was measured for the next run; none keeps nothing."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="REPORT.json", help="Write what was done as JSON.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="RECIPE.toml", help="Read options, also for single layers, from a file."),
    ] = None,
    allow_slower: Annotated[
        bool, typer.Option("--allow-slower", help="Take chains measured to be slower than their layers.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write the output even if it is found wrong.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Rewrite the layers of a model as chains of smaller nodes and prove the result."""
    from onnxdecomp import pipeline
    from onnxdecomp.config import Config, load_recipe, parse_shapes
    from onnxdecomp.report.as_json import report_json
    from onnxdecomp.report.table import report_table, show

    base = load_recipe(recipe) if recipe else Config()
    options: dict[str, Any] = {
        "rank": rank,
        "method": method,
        "include": tuple(include) if include else None,
        "exclude": tuple(exclude) if exclude else None,
        "max_error": max_error,
        "calibration": calibration,
        "evaluation": evaluation,
        "metric": metric,
        "max_drop": max_drop,
        "target_latency": target_latency,
        "target_macs": target_macs,
        "target_size": target_size,
        "int8": int8 or None,
        "cluster": cluster,
        "cluster_group": cluster_group,
        "cluster_centroids": cluster_centroids,
        "cluster_scale": cluster_scale,
        "finetune": finetune,
        "opset": opset,
        "constant_weights": constant_weights or None,
        "without": tuple(without) if without else None,
        "shapes": parse_shapes(shape) if shape else None,
        "verify": verify,
        "threads": threads,
        "jobs": jobs,
        "seed": seed,
        "cache": cache,
        "allow_slower": allow_slower or None,
        "force": force or None,
    }
    result = pipeline.convert(source, output, config=base, track=_tracker(quiet), **options)
    if report is not None:
        _write(report, report_json(result))
    if not quiet:
        show(report_table(result))


@command
def expand(
    source: Annotated[Path, typer.Argument(metavar="IN.onnx", help="A model with codebooks.")],
    output: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    calibration: Calibration = None,
    shape: Shapes = None,
    threads: Threads = 1,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Put dense weights back in place of codebooks; the outputs are equal."""
    from onnxdecomp import expansion
    from onnxdecomp.config import Config, parse_shapes
    from onnxdecomp.report.table import expansion_table, show

    config = Config(calibration=calibration, shapes=parse_shapes(shape or []), threads=threads, seed=seed)
    found = expansion.expand(source, output, config=config)
    if not quiet:
        show(expansion_table(found.names, found.size_bytes, found.output_error, found.notes))


@command
def pack(
    source: Annotated[Path, typer.Argument(metavar="IN.onnx", help="A model.")],
    output: Annotated[Path, typer.Argument(metavar="OUT.odz", help="The file to write.")],
    quiet: Quiet = False,
) -> None:
    """Put a model and its data files into one smaller file, to send or to keep; nothing is lost."""
    from onnxdecomp import packing
    from onnxdecomp.report.table import packing_table, show

    found = packing.pack(source, output)
    if not quiet:
        show(packing_table("packed", found.files, found.size_bytes))


@command
def unpack(
    source: Annotated[Path, typer.Argument(metavar="IN.odz", help="A packed model.")],
    output: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The model to write.")],
    quiet: Quiet = False,
) -> None:
    """Write the files of a packed model as they were, byte for byte, or refuse what was altered."""
    from onnxdecomp import packing
    from onnxdecomp.report.table import packing_table, show

    found = packing.unpack(source, output)
    if not quiet:
        show(packing_table("unpacked", found.files, found.size_bytes))


@command
def finetune(
    student: Annotated[Path, typer.Argument(metavar="STUDENT.onnx", help="The model to train.")],
    output: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    teacher: Annotated[
        Path | None,
        typer.Option(metavar="T.onnx", help="The original; without it labels are needed."),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="X.npz",
            help="Samples to train on, as for convert; package.module:function may yield batches, and is "
            "called anew for each epoch, with its number where it takes 'epoch'.",
        ),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="Z.npz",
            help="Samples to stop by, best such that the student was not fitted to  "
            "[default: an eighth of --calibration]",
        ),
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option("--eval", metavar="Y.npz", help="Samples to measure on before and after."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps at most  [default: 1000]")] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:WEIGHT]",
            help="auto | mse | kl | cross-entropy; may be repeated, as a sum  [default: auto]",
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="What kl divides class scores by  [default: 2]")
    ] = None,
    match: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TENSOR[:WEIGHT]|auto",
            help="Also bring intermediate tensors near the teacher's; auto: those of replaced layers.",
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            metavar="decomposed|all|PATTERN",
            help="Initializers that train  [default: decomposed, those the teacher does not hold]",
        ),
    ] = None,
    block_wise: Annotated[
        bool,
        typer.Option(
            "--block-wise", help="Train from one matched tensor to the next: for models too large at once."
        ),
    ] = False,
    optimizer: Annotated[str | None, typer.Option(help="adamw | sgd  [default: adamw]")] = None,
    learning_rate: Annotated[
        str | None,
        typer.Option(metavar="auto|X", help="Step as a share of the size of each tensor  [default: auto]"),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Samples in a step  [default: 32]")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient  [default: 1]")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Kept on the way; the same command goes on from it.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="What --eval measures, as for convert  [default: what suits]"),
    ] = None,
    threads: Threads = 1,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Train the numbers of a model towards its original's outputs or labels; the graph stays as it is."""
    from onnxdecomp import finetuning
    from onnxdecomp.report.table import show
    from onnxdecomp.tune.settings import parse_rate

    options: dict[str, Any] = {
        "calibration": calibration,
        "held_out": held_out,
        "evaluation": evaluation,
        "steps": steps,
        "loss": tuple(loss) if loss else None,
        "temperature": temperature,
        "match": tuple(match) if match else None,
        "train": train,
        "block_wise": block_wise or None,
        "optimizer": optimizer,
        "learning_rate": parse_rate(learning_rate) if learning_rate else None,
        "batch": batch,
        "clip": clip,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "metric": metric,
        "threads": threads,
        "seed": seed,
    }
    found = finetuning.finetune(student, output, teacher=teacher, track=_tracker(quiet), **options)
    if not quiet:
        show(finetuning.finetuning_table(found))


@command
def inspect(
    source: ModelIn,
    method: Annotated[str, typer.Option(help="auto, or the method to preview.")] = "auto",
    calibration: Calibration = None,
    shape: Shapes = None,
    threads: Threads = 1,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show every layer: shape, MACs, share of the time, and what each method would give, or why not."""
    from onnxdecomp import inspection
    from onnxdecomp.config import Config, parse_shapes
    from onnxdecomp.report.as_json import as_text
    from onnxdecomp.report.table import show

    config = Config(
        method=method, calibration=calibration, shapes=parse_shapes(shape or []), threads=threads, seed=seed
    )
    found = inspection.inspect(source, config=config, track=_tracker(quiet))
    if as_json:
        print(as_text(found))
    elif not quiet:
        show(inspection.inspection_table(found))


@command
def verify(
    original: Annotated[Path, typer.Argument(metavar="A.onnx", help="The reference.")],
    converted: Annotated[Path, typer.Argument(metavar="B.onnx", help="The model that should do the same.")],
    calibration: Calibration = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="top1 | agreement | cosine | psnr | sqnr | r2 | package.module:function  [default: sqnr]"
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Largest relative error of any output; without it errors are only shown."),
    ] = None,
    shape: Shapes = None,
    threads: Threads = 1,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Compare two models: validity, inputs and outputs, and results with optimizations off and on."""
    from onnxdecomp import comparison
    from onnxdecomp.config import Config, parse_shapes
    from onnxdecomp.report.as_json import as_text
    from onnxdecomp.report.table import show

    config = Config(
        calibration=calibration, metric=metric, shapes=parse_shapes(shape or []), threads=threads, seed=seed
    )
    found = comparison.verify(original, converted, tolerance=tolerance, config=config)
    if as_json:
        print(as_text(found))
    else:
        show(comparison.verification_table(found))
    if not found.check.passed:
        raise VerificationError(" ".join(found.check.problems))


@command
def bench(
    models: Annotated[
        list[Path], typer.Argument(metavar="A.onnx [B.onnx ...]", help="The models, the original first.")
    ],
    runs: Annotated[int, typer.Option(min=5, help="Runs of each model.")] = 30,
    calibration: Calibration = None,
    shape: Shapes = None,
    threads: Threads = 1,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Time models in turn in one run: latency, load time, size, MACs, memory."""
    from onnxdecomp import comparison
    from onnxdecomp.config import Config, parse_shapes
    from onnxdecomp.report.as_json import as_text
    from onnxdecomp.report.table import show

    config = Config(calibration=calibration, shapes=parse_shapes(shape or []), threads=threads, seed=seed)
    rows = comparison.bench(models, n_runs=runs, config=config)
    if as_json:
        print(as_text(rows))
    else:
        show(comparison.bench_table(rows))


Words = str | Callable[[], str]
"""What is being done; a function says it anew after each step."""


def _tracker(quiet: bool) -> Callable[[Iterable[T], Words], Iterable[T]] | None:
    """Return what shows progress on standard error, or None when nobody looks.

    It is drawn after each step and never in between: a thread that draws would disturb what is timed.
    """
    if quiet or not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    def track(items: Iterable[T], what: Words) -> Iterator[T]:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
            task = progress.add_task(_said(what), total=len(items) if isinstance(items, Sized) else None)
            progress.refresh()
            for item in items:
                yield item
                progress.update(task, advance=1, description=_said(what))
                progress.refresh()

    return track


def _said(what: Words) -> str:
    return what() if callable(what) else what


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"'{path}' cannot be written: {error.strerror}.") from error


def main() -> None:
    """Run the command line."""
    app()
