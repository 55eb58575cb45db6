"""Train initializers: steps along the gradient, and the weights that serve samples best that no step saw.

Learning rates are relative. A chain of CP or Tucker factors holds tensors whose entries differ in size by
orders of magnitude, since a factor may be made larger and its neighbour smaller without any change of their
product. A step that suits one of them ruins another; a step that is the same share of each suits all.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from math import cos, inf, isfinite, pi
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxdecomp.errors import ModelError
from onnxdecomp.tune.batches import Batch, Source
from onnxdecomp.tune.checkpoint import Checkpoint
from onnxdecomp.tune.elements import to_torch
from onnxdecomp.tune.losses import Objective
from onnxdecomp.tune.network import Network
from onnxdecomp.tune.settings import Settings

Array = NDArray[np.generic]
Targets = Callable[[Batch], Mapping[str, Tensor]]
Track = Callable[[Iterable[Any], Any], Iterable[Any]]

LOOKS = 32
"""How often the samples that were set aside are looked at."""

PATIENCE = LOOKS // 2
"""Looks without anything better after which training stops; much of the gain comes as the rate falls."""

HARM, BRAKE, MAX_BRAKES = 3, 0.3, 4
"""Looks in a row that are worse than before training, after which the best weights are taken back and the
rate falls to this share of itself; and how often. Components of CP that nearly cancel need small steps."""

WARM_UP = 0.05
"""Share of the steps over which the rate rises."""

DEFAULT_RATES = {"adamw": 0.003, "sgd": 0.05}
"""Learning rates by optimizer, relative to the size of a tensor."""

MOMENTUM = 0.9

SMALLEST = 1e-3
"""Tensors with smaller entries, such as a bias of zeros, move as if theirs were this large.

Source: Shazeer and Stern, "Adafactor: adaptive learning rates with sublinear memory cost" (2018), section 8.
"""


@dataclass(frozen=True)
class Trained:
    """What training came to.

    Args:
        values: The best weights by name; those the model had, where nothing was better.
        n_steps: Steps made.
        best_step: After how many of them the weights were best; 0 for those the model had.
        held_out: Loss on the samples set aside, with the first and with the best weights; None where blocks
            were trained one by one, each on a loss of its own.
        stopped: Why training ended before its last step; empty when it did not.
    """

    values: dict[str, Array]
    n_steps: int
    best_step: int
    held_out: tuple[float, float] | None
    stopped: str = ""


@dataclass
class _State:
    """What changes from step to step, and is kept in a checkpoint."""

    step: int = 0
    first: float = inf
    best: float = inf
    best_step: int = 0
    worse: int = 0
    harm: int = 0
    n_brakes: int = 0
    stopped: str = ""
    loss: float = field(default=inf)
    best_values: dict[str, Tensor] = field(default_factory=dict)


class Training:
    """Trains some parameters of a network.

    Args:
        network: The network.
        names: The parameters that train.
        objective: The loss.
        source: The samples.
        targets: What the teacher puts out on a batch; gives nothing where there is none.
        settings: `steps`, `optimizer`, `learning_rate`, `clip` and `seed` count.
        checkpoint: Where to go on from and to write to.
        title: What is being trained, to show.

    Raises:
        UsageError: The checkpoint does not fit.
    """

    def __init__(
        self,
        network: Network,
        names: Collection[str],
        objective: Objective,
        source: Source,
        targets: Targets,
        settings: Settings,
        checkpoint: Checkpoint | None = None,
        title: str = "training",
    ) -> None:
        self._network, self._objective, self._source = network, objective, source
        self._targets, self._settings, self._checkpoint = targets, settings, checkpoint
        self._title = title
        network.train_only(names)
        self._trained = {name: network.parameters[name] for name in names}
        self._sizes = [tensor_size(tensor) for tensor in self._trained.values()]
        self._optimizer = _optimizer(settings.optimizer, list(self._trained.values()))
        self._state = _State()
        saved = checkpoint.load() if checkpoint else None
        if saved is not None:
            self._restore(saved)

    def run(self, track: Track) -> Trained:
        """Train, and return the best weights.

        Raises:
            ModelError: No gradient reaches what should train.
        """
        state, n_steps = self._state, self._settings.steps
        every = max(1, n_steps // LOOKS)
        if not state.best_values:
            state.first = state.best = self.held_out_loss()
            if not isfinite(state.first):
                raise ModelError(
                    f"the loss of the student is {state.first} before it is trained: its outputs or those of "
                    "the teacher are not finite on the samples set aside"
                )
            self._check_reached()
            self._remember()
        batches = self._batches(state.step)
        left = range(state.step, n_steps if not state.stopped else state.step)
        with closing(_passed_on(track(left, self._describe))) as steps, closing(batches):
            for step in steps:
                self._step(step, next(batches))
                state.step = step + 1
                if not state.stopped and (state.step % every == 0 or state.step == n_steps):
                    self._look()
                if state.step % every == 0 or state.step == n_steps or state.stopped:
                    self._save()
                if state.stopped:
                    break
        values = {name: tensor.numpy() for name, tensor in state.best_values.items()}
        return Trained(values, state.step, state.best_step, (state.first, state.best), state.stopped)

    def held_out_loss(self) -> float:
        """Return the loss on the samples set aside, with the weights as they are."""
        total, n_samples = 0.0, 0
        with torch.no_grad():
            for batch in self._source.held_out:
                total += float(self._loss(batch)) * batch.n_samples
                n_samples += batch.n_samples
        return total / n_samples

    def _check_reached(self) -> None:
        """Refuse to train what no gradient reaches from any sample set aside."""
        if not any(self._loss(batch).requires_grad for batch in self._source.held_out):
            raise ModelError(
                f"no gradient reaches {', '.join(list(self._trained)[:3])}: an operator without one stands "
                "between them and the outputs, or they are in a branch that no sample set aside takes; name "
                "others with --train"
            )

    def _step(self, step: int, batch: Batch) -> None:
        """Go one step; a loss or gradient that is not finite stops training before it does harm."""
        state, settings = self._state, self._settings
        loss = self._loss(batch)
        state.loss = float(loss.detach())
        if isfinite(state.loss):
            self._optimizer.zero_grad()
            if loss.requires_grad:  # the branch that ran may hold nothing that trains
                torch.autograd.backward(loss)
            norm = float(torch.nn.utils.clip_grad_norm_(list(self._trained.values()), settings.clip))
        if not isfinite(state.loss) or not isfinite(norm):
            what = "loss" if not isfinite(state.loss) else "gradient"
            state.stopped = f"the {what} was no longer finite in step {step + 1}; try a lower --learning-rate"
            return
        rate = schedule(step, settings.steps) * (settings.learning_rate or DEFAULT_RATES[settings.optimizer])
        rate *= BRAKE**self._state.n_brakes
        for group, size in zip(self._optimizer.param_groups, self._sizes, strict=True):
            group["lr"] = rate * (size if settings.optimizer == "adamw" else size**2)
        self._optimizer.step()

    def _look(self) -> None:
        """Compare with the best on the samples set aside; stop when it has long been better."""
        state = self._state
        found = self.held_out_loss()
        if found < state.best:
            state.best, state.best_step, state.worse = found, state.step, 0
            state.harm = 0
            self._remember()
            return
        state.worse += 1
        state.harm = state.harm + 1 if found > state.first else 0
        if state.harm >= HARM and state.n_brakes < MAX_BRAKES:
            self._brake()
        if state.worse >= PATIENCE:
            state.stopped = f"nothing was better on the samples set aside for {PATIENCE} looks"

    def _brake(self) -> None:
        """Go on from the best weights with smaller steps."""
        state = self._state
        state.harm, state.worse, state.n_brakes = 0, 0, state.n_brakes + 1
        with torch.no_grad():
            for name, tensor in self._trained.items():
                tensor.copy_(state.best_values[name])
        self._optimizer.state.clear()

    def _loss(self, batch: Batch) -> Tensor:
        feeds = {name: to_torch(array) for name, array in batch.feeds.items()}
        labels = None if batch.labels is None else to_torch(batch.labels)
        return self._objective(self._network(feeds, self._objective.names), self._targets(batch), labels)

    def _batches(self, n_gone: int) -> Generator[Batch]:
        """Yield batches epoch by epoch, without the first `n_gone`."""
        epoch, count = 0, 0
        while True:
            for batch in self._source.epoch(epoch):
                count += 1
                if count > n_gone:
                    yield batch
            epoch += 1

    def _remember(self) -> None:
        self._state.best_values = {name: tensor.detach().clone() for name, tensor in self._trained.items()}

    def _describe(self) -> str:
        state = self._state
        best = f", set aside {state.best / state.first:.3g} of the start" if state.first > 0 else ""
        return f"{self._title}, loss {state.loss:.4g}{best}" if isfinite(state.loss) else self._title

    def _save(self) -> None:
        if self._checkpoint is not None:
            state = {name: getattr(self._state, name) for name in _State.__dataclass_fields__}
            weights = {name: tensor.detach() for name, tensor in self._trained.items()}
            self._checkpoint.save({**state, "weights": weights, "optimizer": self._optimizer.state_dict()})

    def _restore(self, saved: dict[str, Any]) -> None:
        for name in _State.__dataclass_fields__:
            setattr(self._state, name, saved[name])
        with torch.no_grad():
            for name, tensor in self._trained.items():
                tensor.copy_(saved["weights"][name])
        self._optimizer.load_state_dict(saved["optimizer"])


def schedule(step: int, n_steps: int) -> float:
    """Return the share of the learning rate in a step: up in a line, then down along half a cosine.

    >>> [round(schedule(step, 100), 2) for step in (0, 4, 52, 99)]
    [0.2, 1.0, 0.5, 0.0]
    """
    warm = max(1, round(WARM_UP * n_steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + cos(pi * (step + 1 - warm) / (n_steps + 1 - warm)))


def tensor_size(tensor: Tensor) -> float:
    """Return the root mean square of the entries, at least `SMALLEST`."""
    return max(float(tensor.detach().square().mean().sqrt()), SMALLEST) if tensor.numel() else SMALLEST


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """Let torch compute with so many threads, and always the same; afterwards as it was."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic  # filling memory that is written anyway takes time
    filled = memory.fill_uninitialized_memory
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        memory.fill_uninitialized_memory = filled


def _optimizer(name: str, tensors: Sequence[Tensor]) -> Any:
    groups = [{"params": [tensor], "lr": 0.0} for tensor in tensors]
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=False)
    return torch.optim.AdamW(groups, weight_decay=0.0)


def _passed_on(items: Iterable[Any]) -> Generator[Any]:
    """Yield the items; closing this closes what shows them."""
    yield from items
