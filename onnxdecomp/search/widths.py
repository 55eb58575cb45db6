"""Bits per weight by a knapsack: the fewest bytes inside a budget of accuracy, or the least loss in so many.

What a weight does to the network's output is measured at `PROBES` widths alone and read off a curve over its
relative error at the others (`search.sensitivity`). The predicted divergences add up, so that the knapsack
finds the widths for every number of bytes; for a budget of accuracy that number is found with few real
evaluations (`search.limit`), and the choice is confirmed on samples that it was not made on.
"""

from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path

from onnxdecomp.config import Config
from onnxdecomp.errors import BudgetError
from onnxdecomp.graph.codebook import CodebookWriter
from onnxdecomp.graph.io import Model, ModelWriter
from onnxdecomp.graph.stored import StoredCodebook
from onnxdecomp.ranks.knapsack import Option, choose
from onnxdecomp.report.outcome import WeightOutcome
from onnxdecomp.runtime.drop import Drop
from onnxdecomp.runtime.session import Model as RuntimeModel
from onnxdecomp.search.codebooks import (
    LEAST_BITS,
    MAX_SHARE,
    NODE_BYTES,
    Clusterable,
    clustered_outcome,
    codebook_of,
    metric_of,
    numbers,
    stored_bytes,
    stored_form,
)
from onnxdecomp.search.goal import DEFAULT_MAX_DROP, Goal
from onnxdecomp.search.limit import Look, meeting, next_budget
from onnxdecomp.search.sensitivity import Curve
from onnxdecomp.search.trial import Trials
from onnxdecomp.weights.cluster import curve
from onnxdecomp.weights.moments import Moments

BITS = range(LEAST_BITS, 9)
"""Widths that are chosen from."""

PROBES = (3, 5)
"""Widths of each weight whose divergence is measured."""

MAX_LOOKS = 6
"""Choices that are evaluated to find the fewest bytes, each on all samples that decide; about three are, as a
rule."""

MAX_WEAKER = 3
"""Wider choices that are tried after one that does not hold on samples it was not made on."""

LEAST_WEAKER = 1.1
"""Predicted loss of a choice that did not hold over that of the next one tried, at the least."""

NOT_WORTH = "its bytes are not worth what any width would do to the outputs inside the budget"

Chosen = Sequence[int | None]
"""Bits of each weight; None where it stays dense."""


class Widths:
    """The weights of a model and their codebooks of all widths, made when they are asked for and kept.

    Args:
        model: The model.
        pairs: Its weights that may become codebooks, with the moments of their layers' inputs.
        config: How to cluster.
        scratch: A folder for models whose weights are in files.
    """

    def __init__(
        self,
        model: Model,
        pairs: Sequence[tuple[Clusterable, Moments | None]],
        config: Config,
        scratch: Path,
    ) -> None:
        self._model, self._config, self._scratch = model, config, scratch
        self._kept: dict[tuple[int, int], tuple[StoredCodebook, WeightOutcome]] = {}
        self._pairs, self.refused = [], []
        for weight, moments in pairs:
            problem = numbers(model, weight)
            if isinstance(problem, str):
                self.refused.append(weight.outcome(problem))
            else:
                self._pairs.append((weight, moments))

    @property
    def weights(self) -> list[Clusterable]:
        """The weights that are chosen for."""
        return [weight for weight, _ in self._pairs]

    @property
    def dense(self) -> RuntimeModel:
        """The model without any codebook."""
        return self._model.path or self._model.proto

    def points(self, place: int) -> dict[int, tuple[float, int]]:
        """Return the relative error and the bytes of a weight by bits, before centroids are refitted.

        Widths that are named are among them whatever they are.
        """
        weight, moments = self._pairs[place]
        metric = metric_of(self._model, weight, moments)
        array = numbers(self._model, weight)
        assert not isinstance(array, str)
        found = curve(
            array,
            sorted({*BITS, *([weight.rule.bits] if weight.rule.bits else [])}),
            importance=metric.importance if metric else None,
            group_channels=weight.rule.group or None,
            per_channel_scale=weight.rule.scaled,
            centroids=weight.rule.centroids,
            axis=weight.stored.axis,
        )
        return {point.bits: (point.error, point.size_bytes + NODE_BYTES) for point in found}

    def build(self, chosen: Chosen) -> RuntimeModel:
        """Return the model with codebooks of these widths."""
        out = self._scratch / "trial.onnx" if self._model.data_files else None
        with ModelWriter(self._model, out) as writer:
            codebooks = CodebookWriter(self._model, writer.add_tensor)
            self._store(codebooks, chosen)
            made = writer.stage(codebooks.finish())
            writer.publish()
        return out or made

    def store(self, writer: CodebookWriter, chosen: Chosen) -> list[WeightOutcome]:
        """Write the weights as codebooks of these widths, and return what the report says of all."""
        self._store(writer, chosen)
        outcomes = [
            weight.outcome(NOT_WORTH) if bits is None else self._made(place, bits)[1]
            for place, (weight, bits) in enumerate(zip(self.weights, chosen, strict=True))
        ]
        return self.refused + outcomes

    def _store(self, writer: CodebookWriter, chosen: Chosen) -> None:
        for place, (weight, bits) in enumerate(zip(self.weights, chosen, strict=True)):
            if bits is not None:
                writer.store(weight.stored.name, self._made(place, bits)[0], weight.stored.scope)

    def _made(self, place: int, bits: int) -> tuple[StoredCodebook, WeightOutcome]:
        if (place, bits) not in self._kept:
            weight, moments = self._pairs[place]
            metric = metric_of(self._model, weight, moments)
            array = numbers(self._model, weight)
            assert not isinstance(array, str)
            codebook = codebook_of(array, weight, bits, metric)
            outcome = clustered_outcome(weight, array, codebook, metric)
            self._kept[place, bits] = stored_form(codebook), outcome
        return self._kept[place, bits]


def chosen_widths(
    widths: Widths, trials: Trials, original: Model, fixed_bytes: int, config: Config
) -> tuple[Chosen, list[str]]:
    """Return the bits of each weight, and notes for the user.

    Args:
        widths: The weights.
        trials: Evaluates.
        original: The model whose bytes a target is a share of.
        fixed_bytes: Bytes of the weights that stay dense in any case.
        config: Budgets.

    Raises:
        BudgetError: The target cannot be reached, and `force` is off.
    """
    if not widths.weights:
        return [], []
    search = _Search(widths, trials)
    goal = Goal.of(config)
    if goal.target != "size":
        max_drop = DEFAULT_MAX_DROP if goal.max_drop is None else goal.max_drop
        found = search.within_drop(max_drop)
        if found is not None:
            return found, []
        return search.named, [f"No width is chosen: none loses less than {max_drop:g}."]
    fixed_bytes += sum(int(outcome.size_bytes.before or 0) for outcome in widths.refused)
    total_bytes = stored_bytes(original)
    reached = search.at_bytes(goal.share * total_bytes - fixed_bytes)
    if reached is not None:
        return reached, []
    least = (search.least_bytes + fixed_bytes) / total_bytes
    problem = f"--target-size {goal.share:g} is not reached: codebooks of {LEAST_BITS} bits take {least:.3f}."
    if not config.force:
        raise BudgetError(f"{problem} Nothing was written: ask for less, or --force writes the smallest.")
    smallest = search.at_bytes(search.least_bytes)
    assert smallest is not None
    return smallest, [problem]


class _Search:
    """Finds widths at bytes and judges them by evaluation.

    Args:
        widths: The weights.
        trials: Evaluates.
    """

    def __init__(self, widths: Widths, trials: Trials) -> None:
        self._widths, self._trials = widths, trials
        self.all_dense: Chosen = [None] * len(widths.weights)
        diverge = trials.divergence_from(widths.dense)
        self._bits: list[list[int | None]] = []
        self._items: list[list[Option]] = []
        for place, weight in enumerate(widths.weights):
            points = widths.points(place)
            measured = [diverge(widths.build(self._alone(place, bits))) for bits in PROBES]
            predicted = Curve([points[bits][0] for bits in PROBES], measured)
            made = {bits: Option(predicted(error), float(cost)) for bits, (error, cost) in points.items()}
            options: dict[int | None, Option] = {None: Option(0.0, float(weight.size_bytes))}
            options |= {b: made[b] for b in BITS if made[b].cost <= MAX_SHARE * weight.size_bytes}
            if weight.rule.bits is not None:
                options = {weight.rule.bits: made[weight.rule.bits]}
            self._bits.append(list(options))
            self._items.append(list(options.values()))
        self.least_bytes = sum(min(item.cost for item in items) for items in self._items)
        self._dense_bytes = sum(items[0].cost for items in self._items)
        self.named: Chosen = [weight.rule.bits for weight in widths.weights]

    def _alone(self, place: int, bits: int) -> Chosen:
        chosen = list(self.all_dense)
        chosen[place] = bits
        return chosen

    def at_bytes(self, budget: float) -> Chosen | None:
        """Return the widths of least predicted divergence in so many bytes; None when they are too few."""
        found = choose(self._items, budget) if budget >= 0 else None
        if found is None:
            return None
        return [bits[index] for bits, index in zip(self._bits, found, strict=True)]

    def cost(self, chosen: Chosen) -> float:
        """Return the bytes of these widths."""
        return sum(option.cost for option in self._options(chosen))

    def _predicted(self, chosen: Chosen) -> float:
        """Return how far these widths are predicted to move the outputs."""
        return sum(option.error for option in self._options(chosen))

    def _predicted_at(self, budget: float) -> float:
        """Return the least predicted divergence in so many bytes."""
        chosen = self.at_bytes(budget)
        return inf if chosen is None else self._predicted(chosen)

    def _options(self, chosen: Chosen) -> Iterator[Option]:
        for items, bits, width in zip(self._items, self._bits, chosen, strict=True):
            yield items[bits.index(width)]

    def within_drop(self, max_drop: float) -> Chosen | None:
        """Return the widths of fewest bytes found that keep a budget; None when only dense weights do.

        What the model loses with dense weights is lost in any case; widths are predicted to add to it. They
        are confirmed on samples that they were not chosen on (`Drop.held`). What is tried after widths that
        do not hold is predicted to add as much less as they add too much.
        """
        drop_before, lost_before = self._trials.judged(self._widths.dense)
        limit = max_drop - lost_before
        looks: list[Look] = []
        accepted: list[tuple[Chosen, Drop]] = []
        for _ in range(MAX_LOOKS):
            budget = next_budget(looks, self._predicted_at, self.least_bytes, self._dense_bytes, limit)
            chosen = None if budget is None else self.at_bytes(budget)
            if budget is None or chosen is None:
                break
            drop, expected = self._trials.judged(self._widths.build(chosen))
            looks.append(Look(budget, self.cost(chosen), self._predicted(chosen), expected - lost_before))
            if expected <= max_drop:
                accepted.append((chosen, drop))
        if not accepted:
            return None
        chosen, drop = min(accepted, key=lambda found: self.cost(found[0]))
        if chosen == self.named:
            return None
        lost = self._trials.confirmed(self._widths.build(chosen)).held(drop)
        if lost <= max_drop:
            return chosen
        held_before = self._trials.confirmed(self._widths.dense).held(drop_before)
        for _ in range(MAX_WEAKER):
            share = (max_drop - held_before) / (lost - held_before) if lost > held_before else 0.0
            weaker = self._weaker(chosen, min(share, 1 / LEAST_WEAKER))
            if weaker is None or weaker == self.named:
                return None
            chosen, built = weaker, self._widths.build(weaker)
            lost = self._trials.confirmed(built).held(self._trials.judged(built)[0])
            if lost <= max_drop:
                return chosen
        return None

    def _weaker(self, chosen: Chosen, share: float) -> Chosen | None:
        """Return widths that are predicted to add this share of what others do; None if there are none."""
        wanted = share * self._predicted(chosen)
        budget = meeting(self._predicted_at, self.cost(chosen), self._dense_bytes, wanted)
        weaker = self.at_bytes(budget)
        return weaker if weaker is not None and self.cost(weaker) > self.cost(chosen) else None
