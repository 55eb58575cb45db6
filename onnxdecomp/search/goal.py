"""What a search aims at, and what options cost in that."""

from collections.abc import Mapping
from dataclasses import dataclass

from onnxdecomp.config import Config
from onnxdecomp.search.auto import Cost
from onnxdecomp.search.options import LayerOptions, Option

DEFAULT_MAX_DROP = 0.01
"""Budget of accuracy when none is given, in the unit of the metric: one percentage point of top-1."""


@dataclass(frozen=True)
class Goal:
    """Either a budget of accuracy, or a target as a share of the original's cost; or both.

    Args:
        max_drop: Largest drop in the unit of the metric; None when only the target counts.
        target: ``latency``, ``macs`` or ``size``; None when only the drop counts.
        share: Cost of the whole model to be reached, as a share of the original's.
    """

    max_drop: float | None
    target: str | None = None
    share: float = 1.0

    @classmethod
    def of(cls, config: Config) -> "Goal":
        """Return the goal of a configuration."""
        for name in ("latency", "macs", "size"):
            share = getattr(config, f"target_{name}")
            if share is not None:
                return cls(config.max_drop, name, share)
        return cls(DEFAULT_MAX_DROP if config.max_drop is None else config.max_drop)


def cost_of(target: str | None, in_place_ms: Mapping[str, float]) -> Cost:
    """Return what counts the cost of options: milliseconds where nothing else is the target.

    Args:
        target: As in `Goal`.
        in_place_ms: Time of each layer inside the original, by key; a chain takes its share of it.
    """

    def n_macs(layer: LayerOptions, option: Option | None) -> float:
        sites = layer.target.group.sites
        if option is None:
            return float(sum(site.layer.n_macs or 0 for site in sites))
        return float(len(sites) * (option.candidate.n_macs or 0))

    def size_bytes(layer: LayerOptions, option: Option | None) -> float:
        return float(option.size_bytes if option else layer.target.group.stored_bytes)

    def latency_ms(layer: LayerOptions, option: Option | None) -> float:
        dense = sum(in_place_ms.get(site.layer.key, 0.0) for site in layer.target.group.sites)
        return dense * (option.ratio if option else 1.0)

    return {"macs": n_macs, "size": size_bytes}.get(target or "", latency_ms)
