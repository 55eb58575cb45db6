"""Every error a user can meet, with the exit code the command line ends with.

OnnxdecompError
├── ModelError          1   the model cannot be read, understood or written
├── UsageError          2   an option, a rank, a pattern or a file of samples makes no sense
│   └── TooFewSamplesError
└── BudgetError         3   a budget or the verification failed; nothing was written
    └── VerificationError

Each message is one sentence that names the values at hand and says what to do next.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class OnnxdecompError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class ModelError(OnnxdecompError):
    """The model cannot be read, understood or written."""


class UsageError(OnnxdecompError):
    """An option, a rank, a pattern or a file of samples makes no sense."""

    exit_code = 2


class TooFewSamplesError(UsageError):
    """The calibration samples are fewer than anything can be learned from."""


class BudgetError(OnnxdecompError):
    """A budget was not met; nothing was written unless forced."""

    exit_code = 3


class VerificationError(BudgetError):
    """The converted model does not do what it should; nothing was written unless forced."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for a name that does not exist, with the nearest existing one.

    >>> str(unknown_name("method", "tuker2", ["tucker2", "svd"]))
    "unknown method 'tuker2': did you mean 'tucker2'? Known: svd, tucker2."
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f" did you mean '{near[0]}'?" if near else ""
    return UsageError(f"unknown {kind} '{name}':{hint} Known: {', '.join(names)}.")
