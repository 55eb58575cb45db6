"""Layers with fewer channels between them, as further forms of the layer that reads those.

Where nothing else reads what one layer puts out, channels can go: rows of that layer, columns of the next,
whose other weights make up for them on the data (`weights.prune`). What is left of it may be decomposed like
any layer. Which channels go is found out for the forms that are looked into, and not before.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from math import hypot, prod, sqrt

import numpy as np

from onnxdecomp.config import Config
from onnxdecomp.graph.channels import Coupled, coupled_layers
from onnxdecomp.graph.find import LayerGroup
from onnxdecomp.graph.io import Model
from onnxdecomp.layer import Layer, chain_macs, chain_params
from onnxdecomp.methods.base import Chain, FloatArray, decompose, recompose
from onnxdecomp.methods.whole import Whole
from onnxdecomp.ranks.fastest import Fastest
from onnxdecomp.ranks.study import Candidate
from onnxdecomp.runtime.cache import canonical
from onnxdecomp.search.fitting import Fitted
from onnxdecomp.search.memory import Memory
from onnxdecomp.search.options import LayerOptions, Option, Part
from onnxdecomp.search.subject import Subject
from onnxdecomp.search.workers import alone
from onnxdecomp.selection import Target
from onnxdecomp.weights.fit import Fit
from onnxdecomp.weights.moments import Moments
from onnxdecomp.weights.prune import Channels, best_of_channels, removal_order, taps_of, without_channels
from onnxdecomp.weights.refit import Metric, patch_size
from onnxdecomp.weights.thin_moment import ThinMoment

SHARES, FEW_SHARES = (0.75, 0.5, 0.375, 0.25, 0.125), (0.5,)
"""Shares of the channels that are kept; of models whose runs are long."""

MAX_PATCH, MAX_PATCH_OF_LARGE = 4096, 1152
"""Values of a patch of the largest layer that is pruned, and of models whose runs are long."""

ORDER = "pruned"
"""The kind of an order in which channels go, in what is remembered."""

WHOLE = Whole()
AS_IT_IS = Fit("", 1.0, refit=False)


@dataclass(frozen=True, eq=False)
class Between:
    """The channels between layers that lose them together.

    Args:
        coupled: The layers.
        targets: They as targets, by key.
        subject: What the options of the layer that reads the channels are found from.
        least: Channels that are left at the least.
        memory: Keeps in which order they go.
    """

    coupled: Coupled
    targets: Mapping[str, Target]
    subject: Subject
    least: int
    memory: Memory

    @cached_property
    def metric(self) -> Metric:
        """How errors of the layer that reads the channels count."""
        subject = self.subject
        with_bias = subject.bias is not None
        return Metric.of(subject.study.layer, subject.study.weight, subject.moments, with_bias=with_bias)

    @cached_property
    def order(self) -> list[int]:
        """The channels that go, first to last, remembered."""
        layer, with_bias = self.subject.study.layer, self.subject.bias is not None
        key = {"layer": layer.key, "least": self.least, "with_bias": with_bias}
        known = self.memory.get(ORDER, key)
        if known is None:
            known = {"order": alone(lambda least: removal_order(self.metric, least), self.least)}
            self.memory.put(ORDER, key, known)
        return list(known["order"])

    def kept(self, number: int) -> Channels:
        """Return which channels are left when so many are, in rising order."""
        channels = np.arange(self.coupled.consumer.layer.in_channels)
        return np.setdiff1d(channels, self.order[: len(channels) - number])


@dataclass(frozen=True, eq=False)
class Form:
    """A layer with fewer input channels, and the layers before it with fewer output channels.

    Args:
        between: The layers and their channels.
        number: Channels that are left.
    """

    between: Between
    number: int

    @cached_property
    def narrow(self) -> Layer:
        """The layer that reads the channels, with those that are left."""
        layer = self.between.subject.study.layer
        return replace(layer, weight_shape=(layer.out_channels, self.number, *layer.kernel), flattened=())

    @cached_property
    def layer(self) -> LayerOptions:
        """The same, undecomposed: one option in one step, and those before it beside it."""
        subject = self.between.subject
        before = [group for group in self.between.coupled.groups if group is not subject.target.group]
        beside = tuple(self._before(group) for group in before)

        def make() -> Fitted:
            weight, error = self._solved
            return Fitted(_one_step(self.narrow, weight), error, self._bias(weight))

        option = self._option(self.narrow, subject.target.group, make, lambda: self._solved[1])
        return LayerOptions(
            subject.target,
            lambda: subject.study.weight[:, self._kept],
            {AS_IT_IS.name: [option]},
            {},
            f"of {self.number} inputs",
            beside,
        )

    @property
    def whole(self) -> Option:
        """The layer in one step."""
        return self.layer.options[AS_IT_IS.name][0]

    @property
    def keys(self) -> frozenset[str]:
        """Keys of all layers that are changed."""
        return frozenset(group.layer.key for group in self.between.coupled.groups)

    def subject(self) -> Subject:
        """Return what decompositions of the layer are found from."""
        subject, taps = self.between.subject, self._taps
        study, moments = subject.study, subject.moments
        assert not isinstance(moments.second, ThinMoment)
        methods = tuple(method for method in study.methods if method.refusal(self.narrow) is None)
        weight, _ = self._solved
        return Subject(
            subject.target,
            replace(study, layer=self.narrow, weight=weight, methods=methods, _analyses={}),
            Moments(moments.n_patches, moments.mean[:, taps], moments.second[:, taps][:, :, taps]),
            self._bias(weight),
        )

    def with_options(self, found: LayerOptions | str) -> LayerOptions:
        """Return the layer with all options of the form: in one step, and those found for its subject."""
        if isinstance(found, str):
            return self.layer
        options = {
            name: [self.whole, *(self._counting(option) for option in own)]
            for name, own in found.options.items()
        }
        return replace(self.layer, options=options, ways=found.ways)

    def takes(self, candidate: Candidate) -> bool:
        """Tell whether method and ranks of a candidate suit the layer with fewer channels."""
        if candidate.method.refusal(self.narrow) is not None:
            return False
        bounds = candidate.method.rank_bounds(self.narrow)
        return all(rank <= bound for rank, bound in zip(candidate.ranks, bounds, strict=True))

    @property
    def is_of_matrix(self) -> bool:
        """Whether the first step of any chain sees all that the layer sees."""
        return prod(self.narrow.kernel) == 1

    def with_those_of_all(self, options: Sequence[Option]) -> LayerOptions:
        """Return the layer of a matrix with its options in one fit, given those of all channels.

        The first step of a chain reads what the channels that are left tell of all of them, which is best on
        the data for the same other steps, and no factorization is made anew.
        """
        own = [self._counting(self._fed(option)) for option in options if self.takes(option.candidate)]
        return replace(self.layer, options={options[0].fit.name: [self.whole, *own]})

    def _fed(self, option: Option) -> Option:
        """Return an option of all channels, fed with those that are left."""
        candidate = option.candidate
        specs = candidate.method.plan(self.narrow, candidate.ranks)
        n_params, macs = chain_params(specs), chain_macs(specs, self.narrow.in_shape)

        def make() -> Fitted:
            made = option.make()
            (first, *rest), metric = made.chain.weights, self.between.metric
            rows = np.asarray(first, np.float64).reshape(1, len(first), -1)  # (1, R, I)
            fed = alone(lambda rows: best_of_channels(metric, rows, self._kept), rows)  # (1, R, C)
            weights = (fed.reshape(specs[0].weight_shape), *rest)
            chain = replace(made.chain, layer=self.narrow, specs=specs, weights=weights)
            return Fitted(chain, made.error, self._bias(recompose(specs, weights, 1)))

        return replace(
            option,
            candidate=replace(candidate, specs=specs, n_params=n_params, n_macs=macs, measured=None),
            make=cache(make),
            size_bytes=n_params * self.between.subject.target.group.dtype.itemsize,
            identity=f"{option.identity} {self.whole.identity}",
        )

    def _counting(self, option: Option) -> Option:
        """Return an option whose error counts what was lost with the channels."""

        def measure() -> float:
            # what least squares leave is orthogonal to what they explain: the energy of the rest is smaller
            lost = self._solved[1]
            return hypot(lost, sqrt(max(0.0, 1.0 - lost**2)) * option.error)

        return replace(option, measure=measure)

    @cached_property
    def _kept(self) -> Channels:
        return self.between.kept(self.number)

    @cached_property
    def _taps(self) -> Channels:
        return taps_of(self.between.metric.layer, self._kept)

    @cached_property
    def _solved(self) -> tuple[FloatArray, float]:
        """The weight ``(O, C, *K)`` of the channels that are left, and the relative error of the output."""
        return alone(lambda kept: without_channels(self.between.metric, kept), self._kept)

    def _bias(self, weight: FloatArray) -> FloatArray | None:
        """Return ``(O,)`` with the mean of what a weight ``(O, C, *K)`` in place of the whole one loses."""
        bias, metric = self.between.subject.bias, self.between.metric
        if bias is None:
            return None
        whole = np.zeros_like(metric.weight)  # (1, O, D)
        whole[:, :, self._taps] = weight.reshape(len(weight), -1)
        return bias + metric.bias_shift(whole)

    def _before(self, group: LayerGroup) -> Part:
        """Return a layer with the output channels that are left, in one step."""
        n_groups = self.number if group.layer.group > 1 else 1
        layer = replace(
            group.layer,
            weight_shape=(self.number, *group.layer.weight_shape[1:]),
            geometry=replace(group.layer.geometry, group=n_groups),
        )

        def weight() -> FloatArray:
            return group.weight()[self._kept]

        def make() -> Fitted:
            bias = group.known_bias()
            assert bias is not None
            return Fitted(_one_step(layer, weight()), 0.0, bias[self._kept])

        option = self._option(layer, group, make, lambda: 0.0)
        target = self.between.targets[group.layer.key]
        return LayerOptions(target, weight, {AS_IT_IS.name: [option]}, {}), option

    def _option(
        self, layer: Layer, group: LayerGroup, make: Callable[[], Fitted], measure: Callable[[], float]
    ) -> Option:
        """Return the option of a layer in one step."""
        candidate = Candidate(WHOLE, (), (layer.spec,), 1.0, layer.n_params, layer.n_macs)
        with_bias = self.between.subject.bias is not None
        identity = canonical(
            {"spec": asdict(layer.spec), "with_bias": with_bias, "least": self.between.least}
        )
        size_bytes = layer.n_params * group.dtype.itemsize
        return Option(candidate, AS_IT_IS, make, measure, 1.0, size_bytes, identity)


def _one_step(layer: Layer, weight: FloatArray) -> Chain:
    return decompose(WHOLE, WHOLE.analyze(layer, weight, np.random.default_rng(0)), layer, ())


def find_forms(
    model: Model,
    targets: Sequence[Target],
    subjects: Sequence[Subject],
    config: Config,
    block: int,
    memory: Memory,
    *,
    is_large: bool = False,
) -> list[Form]:
    """Return the forms of layers with fewer channels, undecomposed; of each those with more channels first.

    Args:
        model: The model.
        targets: Its layers.
        subjects: Those whose input was seen and that may be changed.
        config: Says which layers may be touched.
        block: What numbers of channels are multiples of.
        memory: Keeps in which order channels go.
        is_large: Whether runs of the model are long, so that only a few forms are worth a look.
    """
    shares, max_patch = (FEW_SHARES, MAX_PATCH_OF_LARGE) if is_large else (SHARES, MAX_PATCH)
    own = {target.group.layer.key: target for target in targets if _may_be_pruned(target, config)}
    seen = {subject.target.group.layer.key: subject for subject in subjects}
    found = []
    for coupled in coupled_layers(model.proto.graph, [target.group for target in targets]):
        subject = seen.get(coupled.consumer.layer.key)
        numbers = _numbers(coupled.consumer.layer.in_channels, block, shares)
        may_be = all(group.layer.key in own for group in coupled.groups)
        if subject is not None and numbers and may_be and _can_be_pruned(coupled, max_patch):
            between = Between(coupled, own, subject, numbers[-1], memory)
            found += [Form(between, number) for number in numbers]
    return found


def _numbers(n_channels: int, block: int, shares: Sequence[float]) -> list[int]:
    """Return how many channels may be left, the most first."""
    numbers = {block * round(share * n_channels / block) for share in shares}
    return sorted((number for number in numbers if 0 < number < n_channels), reverse=True)


def _may_be_pruned(target: Target, config: Config) -> bool:
    """Tell whether channels of a layer may go: nobody asked for something else."""
    (site, *others) = target.group.sites
    is_selected = config.selects(site.layer.key, site.place.proto.name)
    return not others and is_selected and isinstance(target.policy, Fastest) and not target.asked_for


def _can_be_pruned(coupled: Coupled, max_patch: int) -> bool:
    """Tell whether the next layer is small enough, and what the layers before add to channels is known."""
    before = [group for group in coupled.groups if group is not coupled.consumer]
    known = all(group.known_bias() is not None and group.layer.in_shape is not None for group in before)
    return known and patch_size(coupled.consumer.layer) <= max_patch
