"""INT8 after decomposition, inside the same budget of accuracy and never slower."""

import onnx

from onnxdecomp.config import Config
from onnxdecomp.proof import compare_latency
from onnxdecomp.runtime.quantize import Quantized, search_int8
from onnxdecomp.runtime.session import Model
from onnxdecomp.search.goal import DEFAULT_MAX_DROP
from onnxdecomp.search.trial import Trials
from onnxdecomp.selection import timed_inputs


def fastest_int8(
    converted: Model, trials: Trials, config: Config, *, decomposed: bool
) -> tuple[Quantized, bool]:
    """Return the fastest model in INT8 inside the budget: of the decomposed model, or of the original.

    What chains of a few channels save in float they may not save in INT8, and they use up accuracy.

    Args:
        converted: The decomposed model.
        trials: Measures what models lose against the original.
        config: `max_drop`, `threads` and `seed` count.
        decomposed: Whether `converted` differs from the original.

    Returns:
        What was found, and whether it is the original in INT8.
    """
    found = quantized(converted, trials, config)
    if not decomposed:
        return found, False
    rival = quantized(trials.original, trials, config, converted if found.model is None else found.model)
    return (found, False) if rival.model is None else (rival, True)


def quantized(model: Model, trials: Trials, config: Config, against: Model | None = None) -> Quantized:
    """Return a model in INT8, as far as the budget of accuracy and the clock allow.

    Args:
        model: The model in float.
        trials: Measures what it loses against the original.
        config: `max_drop`, `threads` and `seed` count.
        against: What it has to be faster than; None is `model` itself.
    """
    budget = DEFAULT_MAX_DROP if config.max_drop is None else config.max_drop
    feeds = timed_inputs(trials.original, config)

    def faster(quick: onnx.ModelProto, slow: Model) -> bool:
        return compare_latency(slow, quick, feeds, config.threads).speedup_low > 1.0

    found = search_int8(
        model,
        trials.fit_samples,
        trials.expected_of,
        budget,
        faster=faster,
        against=against,
        threads=config.threads,
        seed=config.seed,
    )
    if found.model is None or trials.confirmed(found.model).value <= budget:
        return found
    return Quantized(None, reason="In INT8 the model loses too much on samples it was not chosen on.")
