"""INT8 after decomposition, inside the same budget of accuracy and never slower."""

from functools import partial

import onnx

from onnxdecomp.config import Config
from onnxdecomp.proof import compare_latency
from onnxdecomp.runtime.quantize import Quantized, search_int8
from onnxdecomp.runtime.session import Model
from onnxdecomp.search.goal import DEFAULT_MAX_DROP
from onnxdecomp.search.trial import Trials
from onnxdecomp.selection import timed_inputs


def quantized(converted: Model, trials: Trials, config: Config) -> Quantized:
    """Return a decomposed model in INT8, as far as the budget of accuracy and the clock allow.

    Args:
        converted: The decomposed model.
        trials: Measures what it loses against the original.
        config: `max_drop`, `threads` and `seed` count.
    """
    budget = DEFAULT_MAX_DROP if config.max_drop is None else config.max_drop
    feeds = timed_inputs(trials.original, config)

    def faster(model: onnx.ModelProto, other: Model) -> bool:
        return compare_latency(other, model, feeds, config.threads).speedup_low > 1.0

    search = partial(search_int8, converted, trials.fit_samples, threads=config.threads, seed=config.seed)
    found = search(trials.expected_of, budget, faster=faster)
    if found.model is None or trials.confirmed(found.model).value <= budget:
        return found
    return Quantized(None, reason="In INT8 the model loses too much on samples it was not chosen on.")
