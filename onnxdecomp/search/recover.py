"""Closed-form recovery: the last step of each chain makes up for what the layers before it changed.

Layer after layer, in the order of the model, the last step is solved so that the rewritten network gives on
the calibration samples what the original gave there::

    relu         r(A z + b) ~ r(y)   as asymmetric, where a ReLU follows through it    Zhang et al. 2015
    asymmetric   A z + b ~ y         the whole last step and its bias                  Zhang et al. 2015
    affine       a A z + b ~ y       a factor and the bias per channel                 batch normalization
    bias         A z + b ~ y         the bias alone                                    Nagel et al. 2019

y is the layer's output in the original, z what the last step is given in the network as rewritten so far.
"""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx

from onnxdecomp.graph.rewrite import set_last_step
from onnxdecomp.graph.walk import walk
from onnxdecomp.methods.base import FloatArray
from onnxdecomp.runtime.pairs import LastStepAt, Pairs
from onnxdecomp.runtime.session import Model, read_proto
from onnxdecomp.search.memory import contents
from onnxdecomp.search.replacement import Made, Replacement, Replacements
from onnxdecomp.search.trial import Trials
from onnxdecomp.weights.moments import PairMoments
from onnxdecomp.weights.refit import change_ridge, ridge_solve
from onnxdecomp.weights.through_relu import fit_through_relu

STEPS = ("relu", "asymmetric", "affine", "bias")
"""Names of the steps, strongest first."""

LIGHT_STEPS = ("affine", "bias")
"""Those with two unknowns per channel, for large models: few samples of these are run, whose places are
alike, and whole last steps fitted to them do harm."""

MAX_LIGHT_PLACES = 8192
"""Places that two unknowns per channel are solved from: more of the same few samples say no more."""


def recover(step: str, replaced: Replacements, trials: Trials) -> dict[str, Replacement]:
    """Return the replacements with every last step solved anew; all are, when one of them is asked for.

    Args:
        step: One of `STEPS`.
        replaced: What is replaced, in the order of the model.
        trials: Builds the network as rewritten so far.
    """
    solved = cache(partial(_recovered, step, replaced, trials))
    identity = f"{step} {contents(replaced)}"

    def made(key: str) -> Made:
        return solved()[key].chain, solved()[key].bias

    return {
        key: Replacement.later(replacement.group, f"{identity} {key}", partial(made, key))
        for key, replacement in replaced.items()
    }


def _recovered(step: str, replaced: Replacements, trials: Trials) -> dict[str, Replacement]:
    """Solve the last steps, layer after layer."""
    current = dict(replaced)
    hidden = _before_relu(read_proto(trials.original)) if step == "relu" else frozenset()
    groups = trials.searched or [replacement.group for replacement in replaced.values()]
    outputs = [site.output for group in groups for site in group.main_sites]
    if not outputs:
        return current
    pairs = Pairs(
        trials.original,
        outputs,
        trials.recovery_samples,
        jobs=trials.jobs,
        known=trials.known_outputs,
        max_places=MAX_LIGHT_PLACES if step in LIGHT_STEPS else None,
    )
    rewritten: Model | None = None
    for key, replacement in replaced.items():
        if not replacement.group.main_sites or (step in LIGHT_STEPS and replacement.bias is None):
            continue
        if replacement.chain.specs[-1].weight_shape[0] < replacement.group.layer.out_channels:
            continue  # the layer that reads its channels makes up for those that it lost
        if rewritten is None or isinstance(rewritten, Path):
            rewritten = trials.build(current)
        at = _last_step(read_proto(rewritten), replacement)
        if replacement.bias is not None and all(output in hidden for output, _ in at.tensors):
            rows = pairs.rows(rewritten, at)
            current[key] = current[key] if rows is None else _through_relu(current[key], *rows)
        else:
            pair = pairs.moments(rewritten, at)
            current[key] = current[key] if pair is None else _solved(step, current[key], pair)
        if isinstance(rewritten, onnx.ModelProto):
            set_last_step(rewritten, replacement.group, current[key].chain, current[key].bias)
        trials.looked()
    return current


def _before_relu(proto: onnx.ModelProto) -> frozenset[str]:
    """Return the tensors of the main graph that nothing but a ReLU reads."""
    readers: dict[str, set[str]] = {}
    for place in walk(proto.graph):
        kind = "" if place.scope else place.node.op_type
        for name in place.node.input:
            readers.setdefault(name, set()).add(kind)
    outputs = {output.name for output in proto.graph.output}
    return frozenset(name for name, kinds in readers.items() if kinds == {"Relu"} and name not in outputs)


def _last_step(proto: onnx.ModelProto, replacement: Replacement) -> LastStepAt:
    """Return where the last step of a chain is, and what it reads."""
    producers = {name: node for node in proto.graph.node for name in node.output}
    data = 1 if replacement.group.layer.weight_on_left else 0
    tensors = [(site.output, producers[site.output].input[data]) for site in replacement.group.main_sites]
    return LastStepAt(replacement.group.layer, replacement.chain.specs[-1], tensors)


def _solved(step: str, replacement: Replacement, pair: PairMoments) -> Replacement:
    """Return a replacement with its last step solved from joint moments."""
    chain, bias = replacement.chain, replacement.bias
    shape = chain.weights[-1].shape
    group = chain.specs[-1].geometry.group
    last = chain.weights[-1].reshape(shape[0], -1)  # (O, D)
    if step in ("relu", "asymmetric"):
        last = _least_squares(pair, last, group, centred=bias is not None)
    elif step == "affine":
        last = _factors(pair, last, group)[:, np.newaxis] * last
    if bias is not None:
        bias = pair.mean_y - _mean_output(pair, last, group)
    return _with_last(replacement, last, bias)


def _through_relu(replacement: Replacement, patches: FloatArray, outputs: FloatArray) -> Replacement:
    """Return a replacement with its last step fitted to what the ReLU behind it lets through."""
    assert replacement.bias is not None
    weight = replacement.chain.weights[-1]
    last, bias = fit_through_relu(patches, outputs, weight.reshape(len(weight), -1), replacement.bias)
    return _with_last(replacement, last, bias)


def _with_last(replacement: Replacement, last: FloatArray, bias: FloatArray | None) -> Replacement:
    """Return a replacement with another last step ``(O, D)`` and bias."""
    chain = replacement.chain
    weight = last.reshape(chain.weights[-1].shape)
    return Replacement(replacement.group, replace(chain, weights=(*chain.weights[:-1], weight)), bias)


def _least_squares(pair: PairMoments, last: FloatArray, group: int, *, centred: bool) -> FloatArray:
    """Return the last step ``(O, D)`` whose outputs are nearest to the original's.

    With few samples it stays near the last step that is there: the penalty is on the difference.
    """
    seen, wanted = pair.second_zz, pair.cross_yz.reshape(group, -1, pair.cross_yz.shape[1])
    if centred:
        mean_y = pair.mean_y.reshape(group, -1, 1)
        seen = seen - pair.mean_z[:, :, np.newaxis] * pair.mean_z[:, np.newaxis, :]
        wanted = wanted - mean_y * pair.mean_z[:, np.newaxis, :]
    blocks = last.reshape(wanted.shape)  # (G, O/G, D)
    change = ridge_solve(seen, wanted - blocks @ seen, change_ridge(seen, pair.n_patches))
    return (blocks + change).reshape(last.shape)


def _mean_output(pair: PairMoments, last: FloatArray, group: int) -> FloatArray:
    """Return the mean ``(O,)`` of what a last step makes of its patches, without a bias."""
    blocks = last.reshape(group, -1, last.shape[1])  # (G, O/G, D)
    return (blocks @ pair.mean_z[:, :, np.newaxis]).reshape(-1)


def _factors(pair: PairMoments, last: FloatArray, group: int) -> FloatArray:
    """Return ``cov(y, A z) / var(A z)`` of each channel, 1 where the chain's output is constant."""
    blocks = last.reshape(group, -1, last.shape[1])  # (G, O/G, D)
    covariance = pair.second_zz - pair.mean_z[:, :, np.newaxis] * pair.mean_z[:, np.newaxis, :]
    variance = np.sum((blocks @ covariance) * blocks, axis=2).reshape(-1)  # (O,)
    mean = _mean_output(pair, last, group)
    product = np.sum(pair.cross_yz * last, axis=1) - pair.mean_y * mean  # (O,)
    return np.where(variance > 0, product / np.where(variance > 0, variance, 1.0), 1.0)
