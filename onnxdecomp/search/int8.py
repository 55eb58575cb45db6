"""INT8 after decomposition, inside the same budget of accuracy and never slower."""

import onnx

from onnxdecomp.config import Config
from onnxdecomp.proof import compare_latency
from onnxdecomp.runtime.int8.quantize import Quantized, search_int8
from onnxdecomp.runtime.session import Model, read_proto
from onnxdecomp.search.goal import DEFAULT_MAX_DROP
from onnxdecomp.search.trial import NOT_COMPARED, Trials
from onnxdecomp.selection import timed_inputs


def quantized(model: Model, trials: Trials, config: Config, against: Model) -> Quantized:
    """Return a model in INT8, as far as the budget of accuracy and the clock allow.

    Args:
        model: The model in float.
        trials: Measures what it loses against the original.
        config: `max_drop`, `threads` and `seed` count.
        against: What it has to be faster than.
    """
    budget = DEFAULT_MAX_DROP if config.max_drop is None else config.max_drop
    feeds = timed_inputs(trials.original, config)
    unseen = dict.fromkeys(trials.unseen(read_proto(model).graph), NOT_COMPARED)

    def faster(quick: onnx.ModelProto, slow: Model) -> bool:
        return compare_latency(slow, quick, feeds, config.threads).speedup_low > 1.0

    found = search_int8(
        model,
        trials.fit_samples,
        lambda tried: trials.judged(tried)[1],
        budget,
        faster=faster,
        against=against,
        exclude=unseen,
        threads=config.threads,
        jobs=trials.jobs,
        seed=config.seed,
    )
    if found.model is None or trials.holds(found.model, budget):
        return found
    reason = "In INT8 the model loses too much on samples it was not chosen on."
    return Quantized(None, reason=reason, spared=True)
