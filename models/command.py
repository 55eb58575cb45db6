"""How every command of this folder ends."""

import sys
from collections.abc import Callable

from onnxdecomp.errors import OnnxdecompError

__all__ = ["exit_code"]


def exit_code(work: Callable[[], None]) -> int:
    """Do the work of a command and return its exit code; an error of ours is printed as one sentence."""
    try:
        work()
    except OnnxdecompError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
