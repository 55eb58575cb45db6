"""Evaluate an ONNX graph on torch tensors, node by node as it is written, with gradients.

Nothing is fused, folded or renamed: every float initializer is a leaf tensor under its ONNX name, so that
training changes the numbers of initializers and nothing else. Weights that the graph itself computes (a
codebook that is looked up, a scaled integer tensor, a transposed matrix) pass gradients on to the
initializers they are made of.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from onnxdecomp.errors import ModelError, unknown_name
from onnxdecomp.graph.io import Model
from onnxdecomp.graph.names import lone_initializers, named_initializers
from onnxdecomp.tune.elements import TRAINABLE, as_computed, to_torch
from onnxdecomp.tune.program import Binder, Step, Values, execute, initializers, schedule


class Network:
    """A literal interpreter of a model.

    16-bit floats (float16, bfloat16) are held and computed in float32 everywhere: initializers become
    float32 leaves, inputs are widened, a Cast to a 16-bit float is a Cast to float32, and outputs come in
    float32. So a float16 graph gives what it would without rounding between its nodes. float64 stays.
    Integers and shapes are tensors on the CPU as everything else; unsigned integers of 16 bits and more are
    held in the next larger signed type. BatchNormalization uses its stored statistics, Dropout does nothing.
    What follows from constants and initializers alone, none of them trained, is computed once and kept until
    `train_only` is called or one of these initializers is changed in place.

    Args:
        model: The model; it is not changed, and later changes of it are not seen.

    Attributes:
        parameters: Every float initializer by name, a leaf that `train_only` lets train. Those of bodies
            (If, Loop, Scan) are among them if nothing else in the model bears their name; others, as those
            of equal names in two branches, and those that are inputs of their body too, are constants.
        inputs: Inputs of the graph that are no initializers.
        outputs: Outputs of the graph.

    Raises:
        ModelError: Operators are missing, all of which are named, or the operator set is too old.
    """

    parameters: dict[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __init__(self, model: Model) -> None:
        graph = model.proto.graph
        floats = {n: t for n, t in named_initializers(model.proto).items() if t.data_type in TRAINABLE}
        leaves = floats.keys() & lone_initializers(model.proto).keys()
        binder = Binder(model, leaves)
        self._steps = binder.steps(graph.node, binder.opsets(model.proto.opset_import))
        if binder.missing:
            raise ModelError(
                f"fine-tuning cannot evaluate these operators yet: {', '.join(binder.missing)}; "
                "replace them in the model or leave it as it is"
            )
        self.parameters = {name: to_torch(model.array(tensor)) for name, tensor in floats.items()}
        self._constants = dict(initializers(model, graph, floats))
        stored = self.parameters.keys() | self._constants.keys()
        self.inputs = tuple(value.name for value in graph.input if value.name not in stored)
        self.outputs = tuple(value.name for value in graph.output)
        self._known = {
            *stored,
            *self.inputs,
            *(name for step in self._steps for name in step.targets if name),
        }
        self._plans: dict[tuple[str, ...], _Plan] = {}

    def __call__(self, feeds: Mapping[str, Tensor], wanted: Sequence[str] | None = None) -> dict[str, Any]:
        """Evaluate the graph.

        Args:
            feeds: Tensors for the inputs by name; more than that is not allowed.
            wanted: Tensors of the main graph to return, by default its outputs. Nodes that they do not need
                are not run, and a tensor is let go of after its last use.

        Returns:
            The wanted tensors by name. Outputs that are sequences come as lists.

        Raises:
            ModelError: An input is missing, or a node cannot be evaluated.
            UsageError: A name in `feeds` or `wanted` does not exist.
        """
        names = self.outputs if wanted is None else tuple(wanted)
        plan = self._plans.get(names)
        if plan is None:
            plan = self._plans[names] = self._plan(names)
        values: Values = {**self.parameters, **plan.constants()}
        for name, value in feeds.items():
            if name not in self.inputs:
                raise unknown_name("input", name, self.inputs)
            values[name] = as_computed(value) if isinstance(value, Tensor) else value
        missing = [name for name in plan.inputs if name not in values]
        if missing:
            raise ModelError(f"the network needs values for its inputs too: {', '.join(missing)}")
        execute(plan.steps, values)
        return {name: values[name] for name in names}

    def train_only(self, names: Collection[str]) -> None:
        """Let exactly these parameters gather gradients.

        Raises:
            UsageError: There is no parameter of one of these names.
        """
        for name in names:
            if name not in self.parameters:
                raise unknown_name("parameter", name, self.parameters)
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in names)
            parameter.grad = None
        self._plans.clear()

    def _plan(self, names: tuple[str, ...]) -> "_Plan":
        for name in names:
            if name not in self._known:
                raise unknown_name("tensor", name, self._known)
        fixed = {name: tensor for name, tensor in self.parameters.items() if not tensor.requires_grad}
        return _Plan(self._steps, names, self.inputs, self._constants | fixed, self.parameters)


class _Plan:
    """What is run for some wanted tensors: a part that is computed once and one that every call computes."""

    def __init__(
        self,
        steps: Sequence[Step],
        wanted: Sequence[str],
        inputs: Sequence[str],
        fixed: Mapping[str, Any],
        parameters: Mapping[str, Tensor],
    ) -> None:
        still = {*fixed, ""}
        early: list[Step] = []
        late: list[Step] = []
        for step in schedule(steps, wanted):
            if still.issuperset(step.sources):
                still.update(name for name in step.targets if name)
                early.append(step)
            else:
                late.append(step)
        read = {name for step in late for name in step.sources} | set(wanted)
        self.steps = schedule(late, {*wanted, *still})
        self.inputs = tuple(name for name in inputs if name in read)
        self._kept = tuple(name for name in read & still if name and name not in parameters)
        self._early = schedule(early, {*self._kept, *fixed})
        self._fixed = fixed
        behind = {name for step in early for name in step.sources} & parameters.keys()
        self._behind = tuple(parameters[name] for name in sorted(behind))
        self._versions: list[int] | None = None
        self._cache: dict[str, Any] = {}

    def constants(self) -> dict[str, Any]:
        """Return what the late steps read of the early ones; compute it anew if a parameter has changed."""
        versions = [parameter._version for parameter in self._behind]
        if versions != self._versions:
            values: Values = dict(self._fixed)
            with torch.inference_mode(False), torch.no_grad():
                execute(self._early, values)
            self._cache = {name: values[name] for name in self._kept}
            self._versions = versions
        return self._cache
