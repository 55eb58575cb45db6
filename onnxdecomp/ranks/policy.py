"""What a rank policy is: it looks at one layer and answers with a candidate, or with a reason to keep it."""

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from onnxdecomp.errors import UsageError
from onnxdecomp.ranks.study import Candidate, Study

Choice = Candidate | str
"""The chosen candidate, or a sentence that says why the layer is kept."""


class Policy(ABC):
    """One way to choose ranks, written ``name`` or ``name:argument`` on the command line."""

    name: ClassVar[str]

    guarded: ClassVar[bool] = True
    """False when a layer may grow because the user asked for exactly that."""

    @classmethod
    @abstractmethod
    def parse(cls, argument: str) -> Self:
        """Make the policy from what follows the colon; raise UsageError when it makes no sense."""

    @abstractmethod
    def choose(self, study: Study) -> Choice:
        """Choose method and ranks for one layer."""


def share(policy: str, argument: str) -> float:
    """Read the argument of a policy as a number between 0 and 1, both excluded.

    Raises:
        UsageError: It is something else.
    """
    try:
        value = float(argument)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1.0:
        raise UsageError(f"--rank {policy}:{argument}: give a number between 0 and 1, as in {policy}:0.5.")
    return value


def no_argument(policy: str, argument: str) -> None:
    """Refuse an argument where none is taken."""
    if argument:
        raise UsageError(f"--rank {policy}:{argument}: {policy} takes no argument.")
