"""Reports, inspections and benchmarks as tables for a terminal."""

from collections.abc import Iterable, Sequence
from math import isfinite

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxdecomp.report.outcome import Accuracy, BeforeAfter, Footprint, LayerOutcome, Report, WeightOutcome

UNKNOWN = "?"

MAX_NAME = 64
"""Characters of a name that are shown: converters make names of all that a node was fused of."""

SHARES = ("top1", "agreement")
"""Metrics that are shares of the samples."""


def size(n_bytes: float | None) -> str:
    """Return bytes in the unit a person would use.

    >>> size(65_500_000)
    '65.5 MB'
    """
    if n_bytes is None:
        return UNKNOWN
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} GB"


def count(number: float | None) -> str:
    """Return a count with k, M or G.

    >>> count(17_600_000_000)
    '17.6G'
    """
    if number is None:
        return UNKNOWN
    for unit in ("", "k", "M"):
        if abs(number) < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}G"


def shape(sizes: Iterable[int]) -> str:
    """Return sizes as ``64x3x3x3``."""
    return "x".join(str(n) for n in sizes)


def pruned(before: Iterable[int], after: Iterable[int]) -> str:
    """Return sizes before and after in one.

    >>> pruned((64, 64, 3, 3), (64, 32, 3, 3))
    '64x64→32x3x3'
    """
    return "x".join(str(n) if n == m else f"{n}→{m}" for n, m in zip(before, after, strict=True))


def brief(name: str) -> str:
    """Return a name, a long one without its middle: reports as JSON have all of it.

    >>> brief("model/block_1/expand/Conv;" * 4)
    'model/block_1/expand/Conv;model…/Conv;model/block_1/expand/Conv;'
    """
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME // 2 - 1]}…{name[-MAX_NAME // 2 :]}"


def percent(error: float | None) -> str:
    """Return a relative error in percent."""
    return "" if error is None else f"{100 * error:.3g} %"


def relative(error: float) -> str:
    """Return a relative error in percent; infinite is that of another shape, or of what is not finite.

    >>> relative(0.125), relative(float("inf"))
    ('12.5 %', 'not comparable')
    """
    return percent(error) if isfinite(error) else "not comparable"


def some(names: list[str]) -> str:
    """Return the first names of a list and how many more there are.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(map(brief, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def report_table(report: Report) -> RenderableType:
    """Return the layers of a conversion and a summary of the model, before and after."""
    parts: list[RenderableType] = []
    if report.decomposed:
        parts.append(_decomposed_table(report.decomposed))
    kept = [layer for layer in report.layers if layer.status == "kept"]
    if kept:
        parts.append(_reasons_table("layer", "kept", [(layer.key, layer.reason) for layer in kept]))
    if report.clustered:
        parts.append(_clustered_table(report.clustered))
    dense = [weight for weight in report.weights if weight.status == "dense"]
    if dense:
        parts.append(_reasons_table("weight", "kept dense", [(w.name, w.reason) for w in dense]))
    parts.append(_summary(report))
    parts.extend(Text(note) for note in report.notes)
    return Group(*parts)


def show(renderable: RenderableType) -> None:
    """Print to standard output, as wide as a pipe needs and as narrow as a terminal is."""
    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console = Console(width=160)
    console.print(renderable)


def plain_table(title: str, *columns: str, left: int = 1) -> Table:
    """Return an empty table whose first `left` columns hold words and the others numbers."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    return table


def _decomposed_table(layers: list[LayerOutcome]) -> Table:
    fitted = any(layer.fit for layer in layers)
    words = ("layer", "operator", "weight", "method", *(("fit",) if fitted else ()))
    figures = ("ranks", "weight error", "error on data" if fitted else "output error", "weights", "MACs")
    done = "decomposed or pruned" if any(layer.pruned_shape for layer in layers) else "decomposed"
    table = plain_table(f"{_counted(len(layers), 'layer')} {done}", *words, *figures, left=len(words))
    for layer in layers:
        table.add_row(
            Text(brief(layer.key)),
            layer.op_type,
            pruned(layer.weight_shape, layer.pruned_shape)
            if layer.pruned_shape
            else shape(layer.weight_shape),
            layer.method,
            *((layer.fit,) if fitted else ()),
            shape(layer.ranks),
            percent(layer.weight_error),
            percent(layer.data_error if fitted else layer.output_error),
            _fewer(layer.params),
            _fewer(layer.macs),
        )
    return table


def _clustered_table(weights: list[WeightOutcome]) -> Table:
    words = ("weight", "operator", "shape")
    figures = ("bits", "centroids", "weight error", "error on data", "bytes", "ratio")
    table = plain_table(f"{_counted(len(weights), 'weight')} clustered", *words, *figures, left=len(words))
    for weight in weights:
        groups = f"{weight.n_codebooks} x " if weight.n_codebooks != 1 else ""
        table.add_row(
            Text(brief(weight.name)),
            weight.op_type,
            shape(weight.shape),
            str(weight.bits),
            f"{groups}{weight.n_centroids}",
            percent(weight.weight_error),
            percent(weight.data_error),
            f"{size(weight.size_bytes.before)} → {size(weight.size_bytes.after)}",
            _times(weight.size_bytes.ratio),
        )
    return table


def expansion_table(
    names: Sequence[str], size_bytes: BeforeAfter, output_error: float | None, notes: Sequence[str]
) -> RenderableType:
    """Return how many codebooks were expanded and what that does to the size."""
    table = plain_table(f"{len(names)} weights expanded", "", "before", "after", "ratio")
    table.add_row("file", size(size_bytes.before), size(size_bytes.after), _times(size_bytes.ratio))
    if output_error is not None:
        table.add_row("output error", "", percent(output_error), "")
    return Group(table, *(Text(note) for note in notes))


def packing_table(done: str, files: Sequence[str], size_bytes: BeforeAfter) -> Table:
    """Return which files were packed or unpacked, and their bytes before and after."""
    table = plain_table(f"{some(list(files))} {done}", "", "before", "after", "ratio")
    table.add_row("bytes", size(size_bytes.before), size(size_bytes.after), _times(size_bytes.ratio))
    return table


def _counted(number: int, thing: str) -> str:
    """Return a number of things: ``1 layer``, ``2 layers``."""
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _reasons_table(thing: str, what: str, named: list[tuple[str, str]]) -> Table:
    """List names with reasons, those with the same reason in one row."""
    reasons: dict[str, list[str]] = {}
    for name, reason in named:
        reasons.setdefault(reason, []).append(name)
    table = plain_table(f"{_counted(len(named), thing)} {what}", thing, "reason", left=2)
    for reason, names in reasons.items():
        table.add_row(Text(some(names)), Text(reason))
    return table


def _summary(report: Report) -> Table:
    table = plain_table("model", "", "before", "after", "ratio")
    for label, name, text in (("file", "bytes", size), ("weights", "params", count), ("MACs", "macs", count)):
        figure = report.model[name]
        table.add_row(label, text(figure.before), text(figure.after), _times(figure.ratio))
    if report.latency is not None:
        timing = report.latency
        speed = f"{timing.speedup:.2f}x" if timing.beyond_noise else "same within noise"
        table.add_row("latency", *(_latency(timing.median_ms, timing.spread_ms)), speed)
    if report.footprint is not None:
        _add_footprint(table, report.footprint, report.model["bytes"].before)
    if report.accuracy is not None:
        found = report.accuracy
        name = f"{found.metric} of {brief(found.output)}" if found.output else found.metric
        table.add_row(name, *_scores(found))
        if found.drop_by_margins is not None and found.error_by_margins is not None:
            told = _change(found, found.drop_by_margins, found.error_by_margins)
            table.add_row(f"{name} by margins", "", "", told)
    if report.output_error is not None:
        table.add_row("output error", "", relative(report.output_error), "")
    return table


def _add_footprint(table: Table, found: Footprint, original_bytes: float | None) -> None:
    for label, n_bytes in (("file if dense", found.dense_bytes), ("packed", found.packed_bytes)):
        sizes = BeforeAfter(original_bytes, n_bytes)
        table.add_row(label, "", size(n_bytes), _times(sizes.ratio))
    if found.load_ms.after is not None:
        load, memory = found.load_ms, found.memory_bytes
        table.add_row("load time", f"{load.before:.4g} ms", f"{load.after:.4g} ms", _times(load.ratio))
        table.add_row("memory", size(memory.before), size(memory.after), _times(memory.ratio))


def _scores(found: Accuracy) -> tuple[str, str, str]:
    """Return accuracy before and after, and the change with its standard error: shares in percent."""
    change = _change(found, found.drop, found.standard_error)
    if found.metric in SHARES:
        return f"{found.before:.2%}", f"{found.after:.2%}", change
    return f"{found.before:.4g}", f"{found.after:.4g}", change


def _change(found: Accuracy, drop: float, error: float) -> str:
    """Return a loss as a change with its standard error, of shares in points."""
    gain = 0.0 - drop
    if found.metric in SHARES:
        return f"{100 * gain:+.2f} ± {100 * error:.2f} points"
    return f"{gain:+.4g} ± {error:.2g}"


def _latency(median: BeforeAfter, spread: BeforeAfter) -> tuple[str, str]:
    return (
        f"{median.before:.4g} ± {spread.before:.2g} ms",
        f"{median.after:.4g} ± {spread.after:.2g} ms",
    )


def _fewer(figure: BeforeAfter) -> str:
    if figure.before is None or figure.after is None:
        return UNKNOWN
    return f"{count(figure.before)} → {count(figure.after)}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"
