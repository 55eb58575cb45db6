"""Which function evaluates which ONNX operator, and what it is told about its node."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from onnxdecomp.errors import ModelError

Operator = Callable[..., Any]
"""``(node, *inputs)`` to the value of the only output, or a tuple of those of all outputs.

A value is a tensor, a list of values for a sequence, or None for an optional input that is left out.
"""

OPERATORS: dict[str, Operator] = {}
"""The operators of the standard domain, by name."""


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """A node of a graph as its operator sees it.

    Args:
        op_type: Name of the operator.
        name: What error messages call the node.
        opset: Version of the operator set of its domain.
        attributes: By name: int, float, str, tuples of these, tensors, and bodies, which can be called.
        n_outputs: Outputs of the node, those included that nobody uses.
        captured: Names of what its bodies see from outside; their values follow the inputs.
    """

    op_type: str
    name: str
    opset: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    n_outputs: int = 1
    captured: tuple[str, ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or the default when the node does not name it."""
        return self.attributes.get(name, default)

    def require(self, name: str) -> Any:
        """Return an attribute that the operator cannot do without.

        Raises:
            ModelError: The node does not name it.
        """
        if name not in self.attributes:
            raise ModelError(
                f"node '{self.name}' ({self.op_type}) lacks its attribute '{name}': repair the model"
            )
        return self.attributes[name]

    def ints(self, name: str, given: Tensor | None) -> tuple[int, ...] | None:
        """Return numbers that are an input in newer operator sets and an attribute in older ones."""
        if given is not None:
            return tuple(given.reshape(-1).tolist())
        value = self.attributes.get(name)
        return None if value is None else tuple(value)

    def unsupported(self, what: str) -> ModelError:
        """Return the error for a use of the operator that cannot be evaluated."""
        return ModelError(
            f"node '{self.name}' ({self.op_type}) {what}, which fine-tuning cannot evaluate: "
            "leave this model as it is or export it without"
        )


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Register a function for operators of the standard domain.

    Raises:
        ValueError: One of them is registered already.
    """

    def register(function: Operator) -> Operator:
        for name in names:
            if name in OPERATORS:
                raise ValueError(f"operator {name} is registered twice: {OPERATORS[name]} and {function}")
            OPERATORS[name] = function
        return function

    return register
