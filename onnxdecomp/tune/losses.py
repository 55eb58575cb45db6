"""What training makes small: how far the student is from the teacher, or from labels.

Every term is a mean over samples, so that terms can be weighed against each other whatever the sizes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.divergence import (
    LEAST_PROBABILITY,
    are_class_scores,
    are_probabilities,
    is_float,
)
from onnxdecomp.runtime.session import Array

Tensors = Mapping[str, Tensor]

IGNORED = -1
"""A label that stands for no class: its sample or position does not count."""


class Term(Protocol):
    """One part of a loss."""

    def __call__(self, ours: Tensors, theirs: Tensors, labels: Tensor | None) -> Tensor:
        """Return a mean over the samples, at least 0."""
        ...


@dataclass(frozen=True)
class MeanSquare:
    """How far tensors are from the teacher's: ``mean (a - b)^2 / power``, the mean over the tensors.

    Args:
        powers: Mean square of the teacher's tensor by name, which makes the term a share of its energy.
    """

    powers: Mapping[str, float]

    def __call__(self, ours: Tensors, theirs: Tensors, labels: Tensor | None) -> Tensor:
        """Return the noise over the signal."""
        parts = [
            functional.mse_loss(ours[name], theirs[name].to(ours[name].dtype)) / power
            for name, power in self.powers.items()
        ]
        return torch.stack(parts).mean()


@dataclass(frozen=True)
class Scores:
    """Class scores among the tensors.

    Args:
        name: The tensor.
        axis: Its axis that counts classes.
        are_probabilities: Whether its rows are probabilities already. Their logarithms are scores, too:
            the softmax of a logarithm is the row itself.
    """

    name: str
    axis: int
    are_probabilities: bool

    def of(self, tensors: Tensors) -> Tensor:
        """Return scores that a softmax makes probabilities of, classes on axis 1."""
        scores = tensors[self.name].movedim(self.axis, 1)
        return scores.clamp_min(LEAST_PROBABILITY).log() if self.are_probabilities else scores


@dataclass(frozen=True)
class KullbackLeibler:
    """How far class probabilities are from the teacher's, both at a temperature T: ``T^2 KL(p || q)``.

    T^2 keeps the gradient's size. Classes that the teacher rules out, with a score of minus infinity, do
    not count.

    Args:
        scores: The tensor that holds them.
        temperature: T.

    Source: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network" (2015), section 2.
    """

    scores: Scores
    temperature: float

    def __call__(self, ours: Tensors, theirs: Tensors, labels: Tensor | None) -> Tensor:
        """Return the divergence in nats, the mean over samples and positions."""
        log_q = torch.log_softmax(self.scores.of(ours) / self.temperature, 1)
        log_p = torch.log_softmax(self.scores.of(theirs).to(log_q.dtype) / self.temperature, 1)
        p = log_p.exp()
        ruled_out = p == 0
        terms = p * (log_p.masked_fill(ruled_out, 0) - log_q.masked_fill(ruled_out, 0))
        return self.temperature**2 * terms.sum(1).mean()


@dataclass(frozen=True)
class CrossEntropy:
    """Minus the logarithm of the probability of the label's class.

    Args:
        scores: The tensor that holds the class scores.
    """

    scores: Scores

    def __call__(self, ours: Tensors, theirs: Tensors, labels: Tensor | None) -> Tensor:
        """Return it in nats, the mean over samples and positions.

        Raises:
            UsageError: A label is no class, or their shape is another.
        """
        scores = self.scores.of(ours)
        if labels is None:
            raise UsageError("cross-entropy needs an array 'labels' beside the inputs: add it to the samples")
        check_labels(labels, scores)
        return functional.cross_entropy(scores, labels.long(), ignore_index=IGNORED)


def check_labels(labels: Tensor, scores: Tensor) -> None:
    """Refuse labels that are no numbers of classes, ``scores`` having these on axis 1.

    Raises:
        UsageError: They are no whole numbers, of another shape, or beyond the classes.
    """
    n_classes, wanted = scores.shape[1], (scores.shape[0], *scores.shape[2:])
    if labels.is_floating_point() or tuple(labels.shape) != wanted:
        raise UsageError(
            f"labels of {labels.dtype} and shape {tuple(labels.shape)} do not fit: give the number of a "
            f"class for each sample, shape {wanted}"
        )
    if int(labels.max()) >= n_classes or int(labels.min()) < IGNORED:
        raise UsageError(
            f"labels go from {int(labels.min())} to {int(labels.max())} and the model has {n_classes} "
            f"classes, counted from 0: give labels of these classes"
        )


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms.

    Args:
        terms: Weight and term of each.
        names: What it needs of the student.
        needs_labels: Whether a term compares with labels.
        title: What it is called in reports.
    """

    terms: tuple[tuple[float, Term], ...]
    names: tuple[str, ...]
    needs_labels: bool
    title: str

    def __call__(self, ours: Tensors, theirs: Tensors, labels: Tensor | None) -> Tensor:
        """Return the loss."""
        return torch.stack([weight * term(ours, theirs, labels) for weight, term in self.terms]).sum()


def scores_of(outputs: Mapping[str, Array], loss: str) -> Scores:
    """Return where the class scores of the first output stand.

    Raises:
        UsageError: It has none.
    """
    name, first = next(iter(outputs.items()))
    axis = 2 if np.ndim(first) == 3 else 1
    if not is_float(np.asarray(first)) or np.ndim(first) < 2 or np.shape(first)[axis] < 2:
        raise UsageError(
            f"loss {loss} compares classes, and output '{name}' {np.shape(first)} has no axis of two or "
            "more: use mse"
        )
    return Scores(name, axis, are_probabilities(np.moveaxis(np.asarray(first), axis, -1)))


def default_loss(outputs: Mapping[str, Array], *, has_teacher: bool) -> str:
    """Return the loss for users who name none: of labels where there is no teacher, else what suits."""
    if not has_teacher:
        return "cross-entropy"
    return "kl" if are_class_scores(outputs) else "mse"
