"""Losses that stand in a graph."""

import torch
from torch import Tensor
from torch.nn import functional

from onnxdecomp.tune.registry import Node, operator


def _likelihood(node: Node, scores: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    ignored = node.get("ignore_index", -100)
    return functional.nll_loss(
        scores, target.long(), weight, ignore_index=ignored, reduction=node.get("reduction", "mean")
    )


@operator("NegativeLogLikelihoodLoss")
def negative_log_likelihood(
    node: Node, scores: Tensor, target: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Return minus the scores of the target classes, weighted."""
    return _likelihood(node, scores, target, weight)


@operator("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(
    node: Node, scores: Tensor, target: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of softmax scores, and their logarithms."""
    logarithms = torch.log_softmax(scores, 1)
    return _likelihood(node, logarithms, target, weight), logarithms
