"""Find the least cost at which the loss keeps a limit, with few looks at what is really lost.

The loss falls as the cost rises, and a rough prediction of it is known at every cost. So each look corrects
that by a factor, and the next one is where the corrected prediction meets the limit; a bracket between
what held and what did not keeps a bad prediction from leading astray.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, inf, log

AIM = 0.93
"""Share of the limit that the next look aims at: one just inside it is what is searched."""

CLOSE = 0.85
"""What keeps the limit and is expected to lose this share of it is good enough."""

RESOLUTION, ROUGH_RESOLUTION = 1.02, 1.04
"""Costs nearer to each other than this factor are not told apart: where a choice is made, and where it is
confirmed by what was counted, which has more noise."""

MARGIN = 0.15
"""Share of the bracket, in logarithms, that each look takes off it at the least.

As long as all looks kept the limit, or none did, it is the resolution, doubled with each look, and half of
the bracket at the most.
"""

STRIDE = 10.0
"""Predicted loss of a look over that of the one it is reckoned from, or the other way round, at the most.

Of a loss that is far from the limit little is known.
"""

STEPS = 20
"""Bisections that find where a prediction meets the limit."""


@dataclass(frozen=True)
class Look:
    """What is known of one budget of cost.

    Args:
        budget: What the choice may cost.
        cost: What it does cost.
        predicted: Loss as predicted.
        lost: Loss as it is expected after looking.
    """

    budget: float
    cost: float
    predicted: float
    lost: float


def next_budget(
    looks: Sequence[Look],
    predicted: Callable[[float], float],
    least: float,
    most: float,
    limit: float,
    resolution: float = RESOLUTION,
) -> float | None:
    """Return the budget of cost to look at next; None when the least one that keeps the limit is known.

    Args:
        looks: What was looked at.
        predicted: Returns the predicted loss at a budget; it does not rise with it.
        least: Cost of the cheapest choice there is.
        most: Cost of the choice that loses nothing.
        limit: The most that may be lost.
        resolution: Costs nearer to each other than this factor are not told apart.
    """
    holding = [look for look in looks if look.lost <= limit]
    high = min((look.cost for look in holding), default=most)
    failing = [look.budget for look in looks if look.lost > limit and look.budget <= high]
    low = max(failing, default=least)
    if high <= resolution * low or any(look.lost >= CLOSE * limit > 0 for look in holding):
        return None
    width, wanted = log(high / low), _wanted(looks, limit)
    if wanted is None:
        return exp(log(low) + width / 2)
    met = meeting(predicted, low, high, wanted)
    margin = MARGIN * width
    if not (holding and failing):
        margin = min(width / 2, log(resolution) * 2.0 ** (len(looks) - 1))
    return exp(min(max(log(met), log(low) + margin * bool(failing)), log(high) - margin * bool(holding)))


def _wanted(looks: Sequence[Look], limit: float) -> float | None:
    """Return the predicted loss where the loss should be what is aimed at; None when unknown.

    The loss over its prediction is taken from the look nearest to the limit, and between what keeps the limit
    and what does not it is interpolated.
    """
    known = [look for look in looks if 0 < look.predicted < inf]
    if limit <= 0 or (looks and not known):
        return None
    aim = AIM * limit
    if not looks:
        return aim
    below = max((look for look in known if look.lost <= limit), key=_by_loss, default=None)
    above = min((look for look in known if look.lost > limit), key=_by_loss, default=None)
    if below and above and below.lost > 0 and above.lost < inf and above.predicted > below.predicted:
        exponent = log(above.predicted / below.predicted) / log(above.lost / below.lost)
        return float(below.predicted * (aim / below.lost) ** exponent)
    sides = [look for look in (below, above) if look]
    nearest = min(sides, key=lambda look: abs(log(_times(aim, look.lost))))
    return _times(aim, nearest.lost) * nearest.predicted


def _by_loss(look: Look) -> tuple[float, float]:
    return look.lost, look.predicted


def _times(aim: float, lost: float) -> float:
    """Return how many times what was lost is to be lost, `STRIDE` at the most."""
    return min(max(aim / lost, 1 / STRIDE), STRIDE) if lost > 0 else STRIDE


def meeting(predicted: Callable[[float], float], low: float, high: float, wanted: float) -> float:
    """Return the budget between two at which a prediction falls to what is wanted."""
    for _ in range(STEPS):
        middle = exp((log(low) + log(high)) / 2)
        if predicted(middle) > wanted:
            low = middle
        else:
            high = middle
    return high
