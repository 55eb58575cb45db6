"""How ranks are chosen: one policy a file, each a class with the name it has on the command line."""

from onnxdecomp.errors import unknown_name
from onnxdecomp.ranks.energy import Energy
from onnxdecomp.ranks.evbmf import Evbmf
from onnxdecomp.ranks.fastest import Fastest
from onnxdecomp.ranks.fixed import Fixed, Full, Keep
from onnxdecomp.ranks.policy import Policy
from onnxdecomp.ranks.ratio import Ratio

POLICIES: dict[str, type[Policy]] = {p.name: p for p in (Keep, Full, Fastest, Ratio, Energy, Evbmf)}


def parse_policy(text: str, max_error: float) -> Policy:
    """Return the policy that ``auto``, ``none``, ``full``, a number, ``ratio:X``, ... stands for.

    Args:
        text: As on the command line.
        max_error: Largest relative weight error for ``auto``.

    Raises:
        UsageError: There is no such policy, or its argument makes no sense.
    """
    name, _, argument = text.partition(":")
    if name.lstrip("-").isdigit():
        return Fixed.parse(text)
    if name == Fastest.name and not argument:
        return Fastest(max_error)
    if name not in POLICIES:
        raise unknown_name("rank", text, [*POLICIES, "a number"])
    return POLICIES[name].parse(argument)
