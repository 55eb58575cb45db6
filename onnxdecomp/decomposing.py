"""Decompose a model: decide, prove chain by chain, rewrite, put back what is slower in place, fine-tune."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from onnxdecomp.config import Config
from onnxdecomp.graph.io import Model, ModelWriter
from onnxdecomp.graph.rewrite import Rewriter
from onnxdecomp.proof import failure_note, prove_chain
from onnxdecomp.put_back import Staged, put_layers_back, puts_layers_back, rewritten
from onnxdecomp.ranks.fixed import Keep
from onnxdecomp.report.outcome import Report
from onnxdecomp.reporting import Clock, outcome_of
from onnxdecomp.runtime.session import Model as RuntimeModel
from onnxdecomp.search.goal import Goal, goal_of_ranks, is_for_int8
from onnxdecomp.search.network import NetworkSearch, Searched
from onnxdecomp.search.replacement import Replacement
from onnxdecomp.search.run import gathered, measured
from onnxdecomp.search.track import Track
from onnxdecomp.search.trial import Trials
from onnxdecomp.selection import Decision, Target, decide
from onnxdecomp.tuned import shares, tuned

Decide = Callable[[Config], Searched]
"""Returns a decision for each target under a configuration that differs in its budget and `int8` alone."""


@dataclass(frozen=True)
class Run:
    """What the stages of one conversion share.

    Args:
        model: The original.
        output: Path of the result; None for a result in memory.
        trials: The samples; None without any.
        stack: Keeps files until the end.
        report: What was done so far.
        clock: Times the stages.
        track: Shows how far each is.
    """

    model: Model
    output: str | Path | None
    trials: Trials | None
    stack: ExitStack
    report: Report
    clock: Clock
    track: Track


def decider(
    model: Model, targets: Sequence[Target], trials: Trials | None, config: Config, track: Track
) -> Decide:
    """Return what decides for all targets: together where data allows a search, else one after the other."""
    if trials and config.rank == "auto":
        search = NetworkSearch(model, targets, trials, config, track)
        return lambda own: search.chosen(goal_of_ranks(own), in_int8=is_for_int8(own))
    fitted = [target for target in targets if not isinstance(target.policy, Keep)]
    moments = gathered(model, fitted, trials, config, track) if trials else {}
    return lambda own: Searched(
        (target, decide(target, own, moments.get(target.group.layer.key)))
        for target in track(targets, "layers")
    )


def decomposed_within(run: Run, decide_for: Decide, config: Config) -> Staged:
    """Return the decomposed model; where it is to be trained, the strongest that keeps the budget then."""
    report, trials = run.report, run.trials
    layers, notes = report.layers, report.notes
    budget = goal_of_ranks(config).max_drop
    for share in shares(config):
        report.layers, report.notes, report.recovered = list(layers), list(notes), ()
        own = config if share == 1.0 else replace(config, max_drop=share * (Goal.of(config).max_drop or 0.0))
        staged = _decomposed(run, decide_for, own)
        if config.finetune is None or trials is None or not report.decomposed:
            continue
        with run.clock.stage("finetune"):
            trained, told = tuned(run.model, staged, run.output, trials, run.stack, config, run.track)
        if budget is None or config.has_target or trials.holds(trained.model, budget):
            report.finetuned = told
            report.notes += told.notes
            return trained
    return staged


def _decomposed(run: Run, decide_for: Decide, config: Config) -> Staged:
    """Return the model with its layers decomposed, without the chains that are slower in place."""
    model, report, clock = run.model, run.report, run.clock
    writer = run.stack.enter_context(ModelWriter(model, run.output))
    with clock.stage("decompose"):
        rewriter = Rewriter(model, writer.add_tensor)
        found = decide_for(config)
        report.recovered = found.recovered
        report.notes += found.notes
        held = _decompose(found.decisions, report, rewriter, config, hold=puts_layers_back(model, config))
    with clock.stage("write"):
        staged = Staged(writer, writer.stage(rewriter.finish()))
    if not held:
        return staged
    with clock.stage("in place"):
        rewrite = partial(rewritten, model, run.output, run.stack)
        return put_layers_back(
            model, staged, held, report, config, rewrite, partial(_keeps, run.trials, config)
        )


def _decompose(
    decisions: Iterable[tuple[Target, Decision]],
    report: Report,
    rewriter: Rewriter,
    config: Config,
    *,
    hold: bool,
) -> dict[str, Replacement]:
    """Check the chain of one target after the other alone, and rewrite its nodes.

    Returns:
        What was replaced, by key of the layer, where that is to be held.
    """
    held = {}
    for target, decision in decisions:
        check = prove_chain(target, decision, config)
        if check is not None and check.problem:
            report.notes.append(failure_note(check.problem))
        if decision.chain is not None:
            rewriter.replace(target.group, decision.chain, decision.bias)
            if hold:
                held[target.group.layer.key] = Replacement(
                    target.group, decision.chain, decision.bias, decision.beside
                )
        output_error = check.output_error if check else None
        report.layers += [outcome_of(site, decision, output_error) for site in target.group.sites]
    return held


def _keeps(trials: Trials | None, config: Config, converted: RuntimeModel) -> bool:
    """Tell whether a model loses no more than allowed, where there are samples and a budget."""
    if trials is None:
        return True
    found = measured(trials, converted, config)
    return found.budget is None or found.drop <= found.budget
