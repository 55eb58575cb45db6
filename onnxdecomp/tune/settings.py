"""How a model is fine-tuned: one frozen object, which the command line and the Python API both build."""

from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any

from onnxdecomp.errors import UsageError, unknown_name

LOSSES = ("auto", "mse", "kl", "cross-entropy")
OPTIMIZERS = ("adamw", "sgd")

AUTO = "auto"

DECOMPOSED, ALL = "decomposed", "all"
"""Words of `Settings.train`; everything else is a pattern."""


@dataclass(frozen=True)
class Weighted:
    """A name with the weight it has in a sum."""

    name: str
    weight: float


@dataclass(frozen=True)
class Settings:
    """How to fine-tune a model.

    Args:
        calibration: Samples to train on, as `runtime.samples.load_samples` reads them, or a function
            ``package.module:function`` that yields batches and is called anew for each epoch.
        held_out: Samples for the early stop; None sets a share of `calibration` aside. A student that was
            fitted to samples already is best judged on others.
        evaluation: Samples with labels to measure quality on before and after; nothing is chosen by them.
        steps: Updates at most.
        loss: Terms of the loss, ``name`` or ``name:weight``; see `LOSSES`.
        temperature: Scores are divided by it before a Kullback-Leibler divergence.
        match: Intermediate tensors that should come near the teacher's, ``name`` or ``name:weight``;
            ``auto`` stands for what replaced layers put out, with equal shares of its weight.
        train: ``decomposed`` (what the teacher does not hold), ``all``, or a pattern of names; None is
            ``decomposed`` with a teacher and ``all`` without.
        block_wise: Train block after block, each fed with what the teacher's blocks before it put out, for
            models too large to train whole. Blocks end at the tensors of `match`, ``auto`` where there are
            none; each has `steps` of its own.
        optimizer: ``adamw`` or ``sgd``.
        learning_rate: Relative to the size of each tensor: see `tune.train`. None chooses.
        batch: Samples in a step, where the model allows it.
        clip: Largest norm of the gradient.
        checkpoint: File to go on from, and to write now and then; None keeps none.
        threads: Threads inside an operator.
        seed: The only source of chance.
        metric: What quality is measured by; None chooses.

    Raises:
        UsageError: A value makes no sense.
    """

    calibration: str | None = None
    held_out: str | None = None
    evaluation: str | None = None
    steps: int = 1000
    loss: tuple[str, ...] = (AUTO,)
    temperature: float = 2.0
    match: tuple[str, ...] = ()
    train: str | None = None
    block_wise: bool = False
    optimizer: str = "adamw"
    learning_rate: float | None = None
    batch: int = 32
    clip: float = 1.0
    checkpoint: str | None = None
    threads: int = 1
    seed: int = 0
    metric: str | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "threads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} is {value}: give a whole number of at least 1.")
        for name in ("temperature", "clip", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value > 0):
                raise UsageError(f"{name} is {value}: give a number above 0.")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}: give a whole number of at least 0.")
        if self.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", self.optimizer, OPTIMIZERS)
        if not self.loss:
            raise UsageError(f"No loss is named: give at least one of {', '.join(LOSSES)}.")
        for term in self.losses:
            if term.name not in LOSSES:
                raise unknown_name("loss", term.name, LOSSES)
        for what, terms in (("loss", self.losses), ("match", self.matches)):
            names = [term.name for term in terms]
            for name in names:
                if names.count(name) > 1:
                    raise UsageError(f"{what} names '{name}' more than once: give it one weight.")

    @property
    def losses(self) -> tuple[Weighted, ...]:
        """The terms of `loss`."""
        return tuple(_weighted(text, "loss") for text in self.loss)

    @property
    def matches(self) -> tuple[Weighted, ...]:
        """The terms of `match`."""
        return tuple(_weighted(text, "match") for text in self.match)


def configured(settings: Settings | None, options: dict[str, Any]) -> Settings:
    """Return settings with the options that are not None in place of theirs.

    Raises:
        UsageError: There is no such option, or a value makes no sense.
    """
    names = [field.name for field in fields(Settings)]
    for name in options:
        if name not in names:
            raise unknown_name("option", name, names)
    return replace(settings or Settings(), **{n: v for n, v in options.items() if v is not None})


def parse_rate(text: str) -> float | None:
    """Return the learning rate that a text names, None for ``auto``.

    Raises:
        UsageError: It is neither that nor a number.
    """
    try:
        return None if text == AUTO else float(text)
    except ValueError as error:
        raise UsageError(f"learning rate '{text}' is no number: give one, or auto.") from error


def _weighted(text: str, what: str) -> Weighted:
    """Return ``name:weight``; names of tensors may hold colons, so what is no number is part of the name."""
    name, colon, number = text.rpartition(":")
    try:
        weight = float(number) if colon else 1.0
    except ValueError:
        colon, weight = "", 1.0
    if not (isfinite(weight) and weight > 0):
        raise UsageError(f"{what} '{text}' has the weight {weight:g}: give a number above 0.")
    return Weighted(name if colon else text, weight)
