"""Draw what `bench.against` measured: speed-up against loss of accuracy, a panel a network."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.arms import ENERGY, EVBMF, INT8, OURS, OURS_INT8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

STYLES = {
    OURS: ("#0072B2", "o"),
    OURS_INT8: ("#D55E00", "D"),
    INT8: ("#000000", "s"),
    ENERGY: ("#009E73", "^"),
    EVBMF: ("#AA4499", "v"),
}
"""Colour and mark of the families: colours that are told apart by everybody, and marks for those in grey."""

COLUMNS = 3
PANEL_INCHES = (4.6, 3.7)
SHOWN_BUDGETS = 3.0
"""Losses beyond so many times the largest budget are drawn at the upper edge, with their number."""

RADII = (12, 22, 34, 48)
DIRECTIONS = ((1, 0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
"""Where a label may stand around its mark, in points and in order of preference."""


LEADER = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkB": 4}
"""The line from a label to its mark, where it does not stand beside it."""

BUDGET = "budget"


def draw(networks: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw the rows that count, and write the picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    n_columns = min(COLUMNS, len(networks))
    n_lines = -(-len(networks) // COLUMNS)
    size = (PANEL_INCHES[0] * n_columns, PANEL_INCHES[1] * n_lines)
    figure, grid = plt.subplots(n_lines, n_columns, figsize=size, squeeze=False, layout="constrained")
    panels = list(grid.flat)
    for panel in panels[len(networks) :]:
        panel.set_visible(False)
    for panel, (name, rows) in zip(panels, networks.items(), strict=False):
        _panel(panel, name, [row for row in rows if row.get("counts") and "error" not in row])
    figure.suptitle(
        "Speed-up on one thread against accuracy lost on the whole test set (bars: standard error)"
    )
    figure.draw_without_rendering()
    for panel, rows in zip(panels, networks.values(), strict=False):
        _label(panel, [row for row in rows if row.get("counts") and "error" not in row])
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(panel: "Axes", name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the marks and the budgets of a network."""
    top = _top(rows)
    for row in rows:
        colour, mark = STYLES[row["family"]]
        x, y = _place(row, top)
        panel.errorbar(
            x, y, yerr=_error(row, top), color=colour, marker=mark, markersize=7, capsize=3, linestyle="none"
        )
    for family, (colour, _) in STYLES.items():
        places = sorted(_place(row, top) for row in rows if row["family"] == family)
        if len(places) > 1:
            panel.plot(*zip(*places, strict=True), color=colour, linewidth=1, alpha=0.4)
    for budget in sorted({row["max_drop"] for row in rows}):
        panel.axhline(100 * budget, color="0.35", linewidth=1, linestyle="--", label=BUDGET)
        panel.annotate(
            f"{BUDGET} {100 * budget:g}",
            (0.995, 100 * budget),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
            color="0.35",
        )
    speedups = [row["latency"]["1"]["speedup"] for row in rows]
    panel.axvline(1.0, color="0.8", linewidth=1, zorder=0)
    panel.set_xscale("log")
    panel.set_xlim(min(0.9, 0.9 * min(speedups)), 1.6 * max(1.5, *speedups))
    ticks = [tick for tick in (0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 10, 15, 20, 30) if _inside(panel, tick)]
    panel.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    panel.minorticks_off()
    lowest = min(0.0, *(_drop(row) - 100 * row["whole_test_set"]["standard_error"] for row in rows))
    panel.set_ylim(lowest - 0.12 * top, 1.15 * top)
    before = 100 * rows[0]["accuracy_before"]
    panel.set_title(f"{name} (original {before:.2f} %)", fontsize=10)
    panel.set_xlabel("speed-up", fontsize=9)
    panel.set_ylabel("accuracy lost (points)", fontsize=9)
    panel.tick_params(labelsize=8)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _inside(panel: "Axes", x: float) -> bool:
    low, high = panel.get_xlim()
    return bool(low <= x <= high)


def _drop(row: Mapping[str, Any]) -> float:
    return -100 * float(row["whole_test_set"]["gain"])


def _top(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the highest loss that is drawn where it is."""
    limit = SHOWN_BUDGETS * 100 * max(row["max_drop"] for row in rows)
    return float(min(limit, max(0.6 * limit, *(_drop(row) for row in rows))))


def _place(row: Mapping[str, Any], top: float) -> tuple[float, float]:
    return float(row["latency"]["1"]["speedup"]), min(_drop(row), top)


def _error(row: Mapping[str, Any], top: float) -> float:
    return 0.0 if _drop(row) > top else 100 * float(row["whole_test_set"]["standard_error"])


def _label(panel: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what each mark is beside it, where neither marks nor other labels stand."""
    top = _top(rows)
    named = {row["family"]: row for row in rows}  # with several budgets the last one is named
    taken = [_box(panel, row, top) for row in rows] + [text.get_window_extent() for text in panel.texts]
    taken += [line.get_window_extent().padded(2) for line in panel.lines if line.get_label() == BUDGET]
    for family, row in sorted(named.items(), key=lambda pair: _place(pair[1], top)):
        text = f"{family}\n(loses {_drop(row):.1f})" if _drop(row) > top else family
        best, least = None, float("inf")
        for radius, (right, up) in product(RADII, DIRECTIONS):
            label = panel.annotate(
                text,
                _place(row, top),
                xytext=(radius * right, radius * up),
                textcoords="offset points",
                ha={1: "left", 0: "center", -1: "right"}[right],
                va={1: "bottom", 0: "center", -1: "top"}[up],
                fontsize=8,
                color=STYLES[family][0],
                arrowprops=None if radius == RADII[0] else LEADER,
            )
            overlap = _overlap(label, panel.bbox, taken)
            if overlap < least:
                best, least = _replaced(best, label), overlap
            else:
                label.remove()
            if not least:
                break
        assert best is not None, "an overlap is never infinite"
        taken.append(_extent(best))


def _replaced(old: "Annotation | None", new: "Annotation") -> "Annotation":
    if old is not None:
        old.remove()
    return new


def _extent(label: "Annotation") -> "Bbox":
    """Return where the text stands, without the line that leads to it."""
    from matplotlib.text import Text

    label.get_window_extent()  # of text and line; this brings the text to its place first
    return Text.get_window_extent(label)


def _overlap(label: "Annotation", panel: "Bbox", taken: Sequence["Bbox"]) -> float:
    """Return how much of a label lies on something else or outside of the panel, in square pixels."""
    box = _extent(label)
    outside = float(box.width * box.height) - _shared(box, panel)
    return outside + sum(_shared(box, other) for other in taken)


def _shared(box: "Bbox", other: "Bbox") -> float:
    from matplotlib.transforms import Bbox

    shared = Bbox.intersection(box, other)
    return float(shared.width * shared.height) if shared else 0.0


def _box(panel: "Axes", row: Mapping[str, Any], top: float) -> "Bbox":
    """Return where a mark and its error bar stand, in pixels."""
    from matplotlib.transforms import Bbox

    (x, y), error = _place(row, top), _error(row, top)
    (left, low), (_, high) = panel.transData.transform([(x, y - error), (x, y + error)])
    return Bbox.from_extents(left - 8, low - 8, left + 8, high + 8)
