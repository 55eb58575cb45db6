"""What a search over a network starts from and ends with: samples, moments, and what was lost."""

from collections.abc import Sequence
from functools import partial

from onnxdecomp.config import Config
from onnxdecomp.graph.io import Model
from onnxdecomp.report.outcome import Accuracy
from onnxdecomp.runtime.activations import gather_moments
from onnxdecomp.runtime.evaluate import Outputs, all_joined
from onnxdecomp.runtime.machine import usable_cores
from onnxdecomp.runtime.session import Model as RuntimeModel
from onnxdecomp.search.goal import Goal
from onnxdecomp.search.memory import Memory
from onnxdecomp.search.parts import read_parts
from onnxdecomp.search.track import Track, untracked
from onnxdecomp.search.trial import Trials
from onnxdecomp.selection import Target, open_cache
from onnxdecomp.weights.moments import Moments


def open_trials(model: Model, targets: Sequence[Target], config: Config) -> Trials:
    """Run the original on the samples of a configuration.

    Args:
        model: The original.
        targets: Its layers, whose MACs say how long it takes to run.
        config: Samples, metric and how to run.

    Raises:
        UsageError: The samples or the metric do not fit the model.
    """
    parts = read_parts(config, model.path or model.proto)
    memory = Memory(
        open_cache(config.cache), model, (parts.fit, parts.choose, parts.confirm), {"seed": config.seed}
    )
    n_macs = sum(site.layer.n_macs or 0 for target in targets for site in target.group.sites)
    return Trials(
        model,
        parts,
        config.metric,
        config.threads,
        memory,
        n_macs=n_macs,
        jobs=n_jobs(config),
        seed=config.seed,
    )


def gathered(
    model: Model, targets: Sequence[Target], trials: Trials, config: Config, track: Track = untracked
) -> dict[str, Moments]:
    """Return the moments of the layers' inputs on the samples to fit to, by key.

    What the original puts out on these samples, if that is wanted, is kept on the way.
    """
    batches: list[tuple[Outputs, int]] = []
    gather = partial(
        gather_moments,
        trials.original,
        samples=trials.fit_samples,
        jobs=trials.jobs,
        seed=config.seed,
        track=track,
        also=trials.unknown_outputs,
        seen=lambda outputs, n_samples: batches.append((outputs, n_samples)),
    )
    found = trials.memory.moments([target.group for target in targets if not target.reason], gather)
    if batches:
        outputs, sizes = zip(*batches, strict=True)
        trials.keep_outputs(all_joined(outputs, sizes))
    return found


def measured(trials: Trials, converted: RuntimeModel, config: Config) -> Accuracy:
    """Return what a converted model loses on the samples that no decision was made on."""
    drop = trials.confirmed(converted)
    by_margins = drop.smoothed is not None and not drop.is_ceiling
    searched = "auto" in (config.rank, config.cluster)
    budget = Goal.of(config).max_drop if searched else config.max_drop
    return Accuracy(
        trials.metrics[drop.output].name if drop.output else trials.metric_name,
        trials.parts.description,
        drop.before,
        drop.after,
        drop.value,
        drop.standard_error,
        budget,
        drop.n_samples,
        drop.smoothed if by_margins else None,
        drop.smoothed_error if by_margins else None,
        drop.output,
    )


def n_jobs(config: Config) -> int:
    """Return how many layers or batches are worked on side by side where nothing is timed."""
    return config.jobs or usable_cores()
