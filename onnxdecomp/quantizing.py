"""INT8 inside a conversion: the fastest model inside the budget, decomposed for INT8 or not at all.

What chains of a few channels save in float they may not save in INT8, and they use up accuracy. So a search
chooses the layers anew by what they cost there, and the original is tried too.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from onnxdecomp.config import Config
from onnxdecomp.decomposing import Decide, Run, decomposed_within
from onnxdecomp.errors import ModelError
from onnxdecomp.put_back import Staged, keep_all
from onnxdecomp.report.outcome import Report
from onnxdecomp.report.table import some
from onnxdecomp.runtime.int8.quantize import Quantized
from onnxdecomp.runtime.session import Model
from onnxdecomp.search.goal import FLOAT_SHARE, Goal, is_for_int8
from onnxdecomp.search.int8 import quantized
from onnxdecomp.search.track import watched
from onnxdecomp.search.trial import Trials

SHARES = (1.0, 0.85, FLOAT_SHARE)
"""Shares of the accuracy budget that a decomposition for INT8 may use, in the order they are tried: INT8 may
cost nothing."""


def in_int8(
    run: Run, trials: Trials, staged: Staged, blank: Report, decide_for: Decide, config: Config
) -> tuple[Staged, Report]:
    """Return the fastest model in INT8 with its report, or what is given where none is faster.

    Args:
        run: The conversion; its report is that of the model in float.
        trials: The samples.
        staged: The model in float.
        blank: The report before any layer was decided on.
        decide_for: Decides.
        config: Options.
    """

    def tried(model: Model, against: Model) -> Quantized:
        with run.clock.stage("int8"), watched(trials, run.track, "trying INT8"):
            return quantized(model, trials, config, against)

    def original_tried(against: Model, report: Report) -> Quantized:
        found = tried(trials.original, against)
        if found.model is not None:
            keep_all(report, "put back: in INT8 the original is faster than the decomposed model")
        return found

    fastest, reason = staged.model, ""
    best: tuple[Quantized, Staged, Report] | None = None
    original: Quantized | None = None
    for chosen, report in _decomposed(run, staged, blank, decide_for, config):
        found = tried(chosen.model, fastest)
        reason = reason or found.reason
        if found.model is not None:
            fastest, best = found.model, (found, chosen, report)
            if not found.spared:  # else a milder decomposition may be all in INT8, and faster
                break
        elif found.spared and report.decomposed and original is None:
            original = original_tried(fastest, report)
            if original.model is not None:
                fastest, best = original.model, (original, chosen, report)
            elif original.spared:  # INT8 alone loses too much, and no less after a decomposition
                break
    if report.decomposed and original is None:
        original = original_tried(fastest, report)
        if original.model is not None:
            best = original, chosen, report
    if best is None:
        run.report.notes.append(f"Kept in float: {reason}")
        return staged, run.report
    found, chosen, report = best
    assert found.model is not None
    report.int8 = found.quantized
    report.notes += _kept_in_float(found.kept)
    if found.padded:
        report.notes.append(
            f"{some(list(found.padded))}: channels of zero weight are added to the input, which is faster"
        )
    return Staged(chosen.writer, chosen.writer.stage(found.model)), report


def _kept_in_float(kept: Iterable[tuple[str, str]]) -> list[str]:
    """Return which nodes stay in float, a sentence for each reason."""
    by_reason: dict[str, list[str]] = {}
    for key, why in kept:
        by_reason.setdefault(why, []).append(key)
    return [
        f"{some(keys)} {'stays' if len(keys) == 1 else 'stay'} in float: {why}"
        for why, keys in by_reason.items()
    ]


def _decomposed(
    run: Run, staged: Staged, blank: Report, decide_for: Decide, config: Config
) -> Iterator[tuple[Staged, Report]]:
    """Yield decomposed models to be quantized, with their reports, the strongest first."""
    if not is_for_int8(config):
        yield staged, run.report
        return
    for share in SHARES:
        report = replace(blank)
        own = replace(config, max_drop=share * (Goal.of(config).max_drop or 0.0))
        try:
            yield decomposed_within(replace(run, report=report), decide_for, own), report
        except ModelError:  # it has no form in INT8; the model in float will say why
            yield staged, run.report
            return
